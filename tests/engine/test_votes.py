"""Votes in a ledger: which count, and that none is ever lost."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.clients.scripted import open_scripted
from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger
from rlaif.engine.votes import CHOICES, Texts, Vote, VoteBook, VoteTable, read_votes, subject_of, text_digest
from rlaif.errors import InputError
from rlaif.types import ChatRequest, Comparison, Completion, Message, Prompt

TEXTS = Texts(prompt_id="p-1", messages=(Message(role="user", content="Q?"),), first="one", second="two")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Ledger.open(tmp_path / "ledger.sqlite"):
        pass
    return tmp_path / "ledger.sqlite"


def stored(path: Path) -> VoteBook:
    with Ledger.open(path, read_only=True) as ledger:
        return read_votes(ledger)


def test_a_ledger_without_votes_has_none(path: Path) -> None:
    assert len(stored(path)) == 0
    assert stored(path).subjects == []


def test_a_vote_is_there_when_the_call_returns_and_undo_is_one_more_row(path: Path) -> None:
    with VoteTable(path) as table:
        table.cast("s1", TEXTS, "anna", "first")
        table.cast("s2", TEXTS, "anna", "tie")
        assert [v.action for v in stored(path).votes("s2")] == ["tie"]
        assert table.undo("anna") == "s2"
        assert stored(path).subjects == ["s1"]
        assert table.undo("anna") == "s1"
        assert table.undo("anna") is None
    assert sqlite3.connect(path).execute("SELECT count(*) FROM votes").fetchone() == (4,)


def test_several_people_vote_and_each_takes_back_only_their_own(path: Path) -> None:
    with VoteTable(path) as table:
        table.cast("s", TEXTS, "ben", "second")
        table.cast("s", TEXTS, "anna", "first")
        table.cast("s", TEXTS, "carl", "skip")
        assert [(v.reviewer, v.action) for v in table.book.votes("s")] == [("anna", "first"), ("ben", "second")]
        assert table.book.reviewers == ["anna", "ben"]
        assert table.undo("ben") == "s"
        assert [v.reviewer for v in table.book.votes("s")] == ["anna"]
        assert table.texts("s") == TEXTS


def test_a_vote_after_the_reveal_is_not_blind_even_where_the_first_was_taken_back(path: Path) -> None:
    with VoteTable(path) as table:
        table.cast("s", TEXTS, "anna", "first")
        table.undo("anna")
        table.cast("s", TEXTS, "anna", "second")
        table.cast("t", TEXTS, "anna", "reveal")
        table.cast("t", TEXTS, "anna", "second")
        table.cast("u", TEXTS, "anna", "skip")
        table.cast("u", TEXTS, "anna", "tie")
        found = {s: table.book.votes(s)[0].blind for s in ("s", "t", "u")}
    assert found == {"s": False, "t": False, "u": True}


ACTIONS = st.sampled_from([*CHOICES, "skip", "reveal", "undo"])


@given(
    st.lists(st.tuples(st.sampled_from("st"), st.sampled_from(["anna", "ben"]), ACTIONS), max_size=30),
    st.integers(0, 30),
)
def test_the_votes_that_count_are_those_of_a_replay_however_the_rows_come(
    rows: list[tuple[str, str, str]], cut: int
) -> None:
    votes: list[Vote] = []
    stacks: dict[str, list[Vote]] = {"anna": [], "ben": []}
    for number, (subject, reviewer, action) in enumerate(rows, 1):
        stack = stacks[reviewer]
        undone = stack.pop() if action == "undo" and stack else None
        if action == "undo" and undone is None:
            continue
        vote = Vote(number, undone.subject if undone else subject, reviewer, action, True, undone and undone.row)  # type: ignore[arg-type]
        votes.append(vote)
        if action not in ("undo", "reveal"):
            stack.append(vote)
    whole, parts = VoteBook(votes), VoteBook(votes[:cut])
    parts.add(votes[cut:])
    for subject in "st":
        for reviewer, stack in stacks.items():
            mine = [v for v in stack if v.subject == subject]
            assert whole.vote(subject, reviewer) == parts.vote(subject, reviewer) == (mine[-1] if mine else None)
    assert len(whole) == len(parts)


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_subject_is_the_same_whichever_text_is_a(x: str, y: str) -> None:
    one, other = (subject_of("p", text_digest(a), text_digest(b)) for a, b in ((x, y), (y, x)))
    assert one.key == other.key
    if x != y:
        assert one.of("a") == other.of("b") != one.of("b")
        assert one.side(one.of("a")) == "a"
        assert subject_of("q", text_digest(x), text_digest(y)).key != one.key


def test_votes_find_their_comparison_in_whatever_order_and_under_whatever_ids_it_comes(path: Path) -> None:
    prompt = Prompt(id="p-1", messages=TEXTS.messages)

    def sample(id_: str, text: str) -> Completion:
        return Completion(id=id_, prompt_id="p-1", index=0, text=text, model="m", finish_reason="stop")

    subject = subject_of("p-1", text_digest("good"), text_digest("bad"))
    with VoteTable(path) as table:
        table.cast(subject.key, TEXTS, "anna", subject.of("a"))
        good_first = Comparison(prompt=prompt, a=sample("c-1", "good"), b=sample("c-2", "bad"))
        bad_first = Comparison(prompt=prompt, a=sample("c-9", "bad"), b=sample("c-8", "good"))
        assert table.book.on([good_first, bad_first]) == {("c-1", "c-2"): ("a",), ("c-9", "c-8"): ("b",)}


# ------------------------------------------------------------------------------------------------ nothing is lost


def test_fresh_forgets_the_run_and_keeps_what_people_said(path: Path) -> None:
    with Ledger.open(path) as ledger:
        asyncio.run(_asked(ledger, 3))
    with VoteTable(path) as table:
        table.cast("s", TEXTS, "anna", "first")
        with Ledger.open(path, fresh=True) as ledger:
            assert ledger.stats().total("stored") == 0
            asyncio.run(_asked(ledger, 2))
            assert ledger.stats().total("stored") == 2
        table.cast("t", TEXTS, "anna", "second")  # the page was open all the time
    assert stored(path).subjects == ["s", "t"]


def test_fresh_removes_a_ledger_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with Ledger.open(path, fresh=True) as ledger:
        assert ledger.stats().total("stored") == 0


def test_votes_from_other_processes_beside_a_running_session_are_all_kept(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rlaif.engine.votes import VoteTable\n"
        "from tests.engine.test_votes import TEXTS\n"
        "with VoteTable(Path(sys.argv[1])) as t:\n"
        "    [t.cast(f's{i}', TEXTS, sys.argv[2], 'tie') for i in range(15)]\n"
    )
    with Ledger.open(path) as ledger:
        people = [
            subprocess.Popen([sys.executable, "-c", script, str(path), name], cwd=Path(__file__).parents[2])
            for name in ("anna", "ben")
        ]
        asked = 0
        while any(p.poll() is None for p in people):
            asyncio.run(_asked(ledger, 20, since=asked))
            asked += 20
        assert [p.returncode for p in people] == [0, 0]
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.stats().total("stored") == asked > 0
        assert len(read_votes(ledger)) == 30


@pytest.mark.slow
def test_a_vote_that_was_answered_survives_a_kill(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from rlaif.engine.votes import VoteTable\n"
        "from tests.engine.test_votes import TEXTS\n"
        "t = VoteTable(Path(sys.argv[1])); t.cast('s', TEXTS, 'anna', 'first'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2]).returncode == -9
    assert [v.action for v in stored(path).votes("s")] == ["first"]


def test_there_is_no_vote_without_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this a run folder"):
        VoteTable(tmp_path / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


async def _asked(ledger: Ledger, n: int, since: int = 0) -> None:
    client = ledger.wrap(open_scripted(ModelConfig(model="scripted:tests.fakes:judge_rubbish")), "judge")
    messages = (Message(role="user", content="Q"),)
    requests = (ChatRequest(messages=messages, max_tokens=5, sample_index=since + i) for i in range(n))
    await asyncio.gather(*(client.complete(request) for request in requests))
