"""What is stored is never paid for twice, and nothing but a verified reply counts as stored."""

import asyncio
import gc
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.clients.base import Client, Identity, request_key
from rlaif.clients.scripted import ScriptedClient
from rlaif.engine.ledger import Ledger
from rlaif.engine.store import dump, seal
from rlaif.errors import InputError, ProviderError, RequestError, TransientError
from rlaif.types import ChatReply, ChatRequest, Message, TokenLogprobs, Usage
from tests.engine.virtual import ask

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


def key_of(request: ChatRequest, client: ScriptedClient) -> str:
    return request_key(client.identity, request)


def counted(answer: Callable[[ChatRequest], Any] = lambda request: f"re: {request.messages[0].content}") -> Any:
    return ScriptedClient(answer)


# --------------------------------------------------------------------------------------------------- never twice


async def test_a_stored_reply_is_returned_without_sending_also_by_a_later_run(path: Path) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        first = await ledger.wrap(client, "sample").complete(ask(1))
        again = await ledger.wrap(client, "judge").complete(ask(1))
    with Ledger.open(path) as ledger:
        later = await ledger.wrap(client, "sample").complete(ask(1))
    assert first == again == later
    assert len(client.requests) == 1


async def test_a_reply_is_the_same_in_every_part_when_it_is_read_back(path: Path) -> None:
    reply = ChatReply(
        text="naïve \u2028 🙂 \ud800 end",  # with a lone surrogate
        finish_reason="length",
        usage=Usage(input_tokens=7, output_tokens=3, cached_input_tokens=2, reasoning_tokens=1),
        model="m-1",
        logprobs=(TokenLogprobs(token="A", logprob=-0.1, top=(("A", -0.1), ("B", -2.3025850929940455))),),
        downgrades=("seed",),
        raw={"nested": [1, {"x": None}], "pair": (1, 2), "tiny": 5e-324, "text": "\udfff"},
    )
    with Ledger.open(path) as ledger:
        first = await ledger.wrap(counted(lambda request: reply), "s").complete(ask())
        second = await ledger.wrap(counted(lambda request: reply), "s").complete(ask())
    assert first == second
    assert first.model_copy(update={"raw": {}}) == reply.model_copy(update={"raw": {}})
    assert first.raw == {**reply.raw, "pair": [1, 2]}


async def test_identical_requests_at_once_are_sent_once(path: Path) -> None:
    go = asyncio.Event()

    async def slow(request: ChatRequest) -> str:
        await go.wait()
        return "one"

    client = counted(slow)
    with Ledger.open(path) as ledger:
        waiting = [
            asyncio.create_task(ledger.wrap(client, stage).complete(ask())) for stage in ("sample", "judge") * 20
        ]
        await asyncio.sleep(0.05)
        go.set()
        replies = await asyncio.gather(*waiting)
        stats = ledger.stats()
    assert {reply.text for reply in replies} == {"one"}
    assert len(client.requests) == 1
    assert (stats.total("sent"), stats.total("reused"), stats.total("stored")) == (1, 39, 1)


async def test_the_cancellation_of_one_caller_does_not_take_the_reply_from_the_others(path: Path) -> None:
    go = asyncio.Event()

    async def slow(request: ChatRequest) -> str:
        await go.wait()
        return "kept"

    client = counted(slow)
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        first, second = (asyncio.create_task(wrapped.complete(ask())) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        assert (await second).text == "kept"
    assert len(client.requests) == 1


async def test_when_all_callers_are_cancelled_the_send_is_too_and_a_new_caller_sends_anew(path: Path) -> None:
    ended: list[str] = []

    async def stuck(request: ChatRequest) -> str:
        if ended:
            return "second"
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")
        raise AssertionError

    client = counted(stuck)
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        callers = [asyncio.create_task(wrapped.complete(ask())) for _ in range(3)]
        await asyncio.sleep(0.05)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert ended == ["cancelled"]  # nothing is left running behind
        assert (await wrapped.complete(ask())).text == "second"
        assert [f.error for f in ledger.failures()] == []
    assert len(client.requests) == 2


async def test_a_caller_cancelled_before_its_request_was_sent_leaves_no_request_on_its_way(path: Path) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        caller = asyncio.create_task(ledger.wrap(client, "s").complete(ask()))
        await asyncio.sleep(0)  # the claim is posted, and not yet committed
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.stats().total("unsettled") == 0
    assert client.requests == []


# ------------------------------------------------------------------------------------------------ before and after


async def test_the_request_is_durable_before_it_is_sent_and_the_reply_before_it_is_seen(path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stored() -> tuple[int, int]:
        with Ledger.open(path, read_only=True) as other:
            stats = other.stats()
            return stats.total("unsettled"), stats.total("stored")

    def answer(request: ChatRequest) -> str:
        seen.append(stored())
        return "x"

    with Ledger.open(path) as ledger:
        await ledger.wrap(counted(answer), "s").complete(ask())
        seen.append(stored())
    assert seen == [(1, 0), (0, 1)]


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger._writer is not None
        db = ledger._writer._db
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "error",
    [
        TransientError("server failed", kind="server"),
        RequestError("too long", kind="context_length"),
        ProviderError("no money"),
    ],
)
async def test_a_failure_is_recorded_and_never_stored_as_a_reply(path: Path, error: Exception) -> None:
    answers: list[Any] = [error, "fine"]

    def script(request: ChatRequest) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    client = counted(script)
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        with pytest.raises(type(error)):
            await wrapped.complete(ask())
        await ledger.write(lambda db: None)  # what was posted before is committed before
        (failure,) = ledger.failures()
        assert str(error) in (failure.error or "")
        assert ledger.reply(failure.key) is None
        assert ledger.request(failure.key) == ask()
    with Ledger.open(path) as ledger:
        assert (await ledger.wrap(client, "s").complete(ask())).text == "fine"
        assert list(ledger.failures()) == []


async def test_the_text_of_a_foreign_exception_is_not_written_down(path: Path) -> None:
    def script(request: ChatRequest) -> str:
        raise RuntimeError("Authorization: Bearer sk-canary-1234567890")

    with Ledger.open(path) as ledger:
        with pytest.raises(RuntimeError):
            await ledger.wrap(counted(script), "s").complete(ask())
        await ledger.write(lambda db: None)
        assert [f.error for f in ledger.failures()] == ["RuntimeError"]
    assert all(b"canary" not in file.read_bytes() for file in path.parent.iterdir())


# -------------------------------------------------------------------------------------------------- only verified


def replace_reply(path: Path, body: bytes, *, sealed: bool = False) -> None:
    db = sqlite3.connect(path)
    ((key,),) = db.execute("SELECT key FROM requests")
    if sealed:
        db.execute("UPDATE replies SET body = ?, checksum = ?", (body, seal(key, body)))
    else:
        db.execute("UPDATE replies SET body = ?", (body,))
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("what", "body", "sealed"),
    [
        ("another reply's bytes", dump(ChatReply(text="not what was answered", finish_reason="stop")), False),
        ("no compressed text", b"rubbish", True),
        ("no JSON", zlib.compress(b"{"), True),
        ("not a reply", zlib.compress(b'{"text": "x"}'), True),
        ("an unknown ending", dump(ChatReply(text="x", finish_reason="unknown")), True),
        ("nothing", b"", True),
    ],
)
async def test_a_reply_that_does_not_verify_is_asked_for_again(
    path: Path, what: str, body: bytes, sealed: bool
) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        await ledger.wrap(client, "s").complete(ask())
    replace_reply(path, body, sealed=sealed)
    for _ in range(2):
        with Ledger.open(path) as ledger:
            assert (await ledger.wrap(client, "s").complete(ask())).text == "re: question 0"
            (stats,) = ledger.stats().stages
    assert len(client.requests) == 2, what
    assert (stats.stored, stats.paid) == (1, 2)
    assert stats.usage.input_tokens == 2 * 2  # what was paid for twice is counted twice


async def test_a_reply_of_unknown_ending_is_kept_as_evidence_and_asked_for_again(path: Path) -> None:
    client = counted(lambda request: ChatReply(text="?", finish_reason="unknown"))
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        assert (await wrapped.complete(ask())).finish_reason == "unknown"
        await wrapped.complete(ask())
        evidence = ledger.reply(key_of(ask(), client))
    assert evidence is not None
    assert evidence.text == "?"
    assert len(client.requests) == 2


# ------------------------------------------------------------------------------------------------------------ keys

requests = st.builds(
    ChatRequest,
    messages=st.lists(
        st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=20)),
        min_size=1,
        max_size=3,
    ).map(tuple),
    max_tokens=st.integers(1, 1000),
    temperature=st.floats(0, 2),
    top_p=st.floats(0.1, 1),
    stop=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    seed=st.none() | st.integers(0, 100),
    top_logprobs=st.none() | st.integers(1, 20),
    labels=st.lists(st.text(max_size=3), max_size=2).map(tuple),
    json_schema=st.none() | st.fixed_dictionaries({"type": st.sampled_from(["object", "array"])}),
    sample_index=st.integers(0, 5),
    cache_prefix=st.integers(0, 3),
    continuation=st.none() | st.text(min_size=1, max_size=3),
)
identities = st.builds(
    Identity,
    backend=st.sampled_from(["openai", "anthropic"]),
    model=st.text(max_size=5),
    base_url=st.none() | st.sampled_from(["http://a/v1", "http://b/v1"]),
    extra=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2),
)


@given(identities, requests, identities, requests)
def test_two_keys_are_equal_exactly_when_one_answer_would_serve_both(
    i: Identity, a: ChatRequest, j: Identity, b: ChatRequest
) -> None:
    same = i == j and a.model_copy(update={"cache_prefix": 0}) == b.model_copy(update={"cache_prefix": 0})
    assert (request_key(i, a) == request_key(j, b)) == same


@given(identities, requests, requests, st.sampled_from(sorted(ChatRequest.model_fields)))
def test_any_field_that_affects_the_answer_changes_the_key(
    i: Identity, a: ChatRequest, b: ChatRequest, field: str
) -> None:
    changed = a.model_copy(update={field: getattr(b, field)})
    equal = field == "cache_prefix" or getattr(a, field) == getattr(b, field)
    assert (request_key(i, changed) == request_key(i, a)) == equal


def test_the_keys_of_ledgers_written_by_earlier_versions_are_still_found() -> None:
    identity = Identity(backend="openai", model="m", base_url="http://x/v1", extra={"n": 1})
    ask = (Message(role="user", content="Hi"),)
    plain = ChatRequest(messages=ask, max_tokens=5)
    full = ChatRequest(
        messages=(Message(role="system", content="S"), *ask),
        max_tokens=1,
        temperature=0.5,
        top_p=0.9,
        stop=("a",),
        seed=3,
        top_logprobs=20,
        labels=("X", "Y"),
        json_schema={"type": "object"},
        sample_index=2,
        cache_prefix=1,
    )
    assert request_key(identity, plain) == "e5451e308e2e5c83e203260a6870a4a5db5e7242"
    assert request_key(identity, full) == "a60d88a5f00852c03e9da0f868193a9655100680"


# ---------------------------------------------------------------------------------------------------- one at a time

HOLDER = """
import sys, time
from pathlib import Path
from rlaif.engine.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    return holder


def test_a_second_process_on_the_folder_is_refused_until_the_first_is_gone_even_by_kill_9(path: Path) -> None:
    holder = hold(path)
    try:
        with pytest.raises(InputError, match=f"process {holder.pid}\\)") as refused:
            Ledger.open(path)
        assert "\n" not in str(refused.value)
        with pytest.raises(InputError):
            Ledger.open(path, fresh=True)  # and nothing of the first run's is deleted
        with Ledger.open(path, read_only=True) as reading:
            assert reading.stats().stages == ()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    Ledger.open(path).close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["ledger.sqlite"]  # no lock is left behind


async def test_reading_leaves_the_folder_as_it_was_and_sends_nothing(path: Path) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        await ledger.wrap(client, "s").complete(ask())
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with Ledger.open(path, read_only=True) as ledger:
        assert (await ledger.wrap(client, "s").complete(ask())).text == "re: question 0"
        with pytest.raises(InputError, match="reading only"):
            await ledger.wrap(client, "s").complete(ask(1))
    assert before == {file.name: file.read_bytes() for file in path.parent.iterdir()}


async def test_fresh_forgets_everything(path: Path) -> None:
    client = counted()
    for fresh in (False, True):
        with Ledger.open(path, fresh=fresh) as ledger:
            await ledger.wrap(client, "s").complete(ask())
    assert len(client.requests) == 2


# --------------------------------------------------------------------------------------------- files that are none


def test_files_that_are_no_ledger_are_refused_in_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("hello " * 1000)
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    db.close()
    newer = tmp_path / "newer.sqlite"
    Ledger.open(newer).close()
    db = sqlite3.connect(newer)
    db.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    db.commit()
    db.close()
    missing = tmp_path / "nowhere" / "ledger.sqlite"
    for path, words, read_only in (
        (text, "not an SQLite file", False),
        (text, "not an SQLite file", True),
        (other, "not a ledger", False),
        (newer, "another version", False),
        (newer, "another version", True),
        (missing, "no ledger here", True),
    ):
        with pytest.raises(InputError, match=words) as refused:
            Ledger.open(path, read_only=read_only)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert text.read_text() == "hello " * 1000


# ------------------------------------------------------------------------------------------------------- full disk


async def send(client: Client, numbers: Iterable[int]) -> None:
    for i in numbers:
        await client.complete(ask(i))


async def test_a_full_file_ends_the_run_with_one_sentence_and_keeps_what_was_stored(path: Path) -> None:
    client = counted(lambda request: os.urandom(4000).hex())
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        kept = [await wrapped.complete(ask(i)) for i in range(3)]
        assert ledger._writer is not None
        db = ledger._writer._db
        ((pages,),) = db.execute("PRAGMA page_count")
        db.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite then says what it says on a full disk
        with pytest.raises(ProviderError, match="disk is full") as full:
            await send(wrapped, range(3, 60))
        sent = len(client.requests)
        with pytest.raises(ProviderError, match="disk is full"):
            await wrapped.complete(ask(100))
        assert len(client.requests) == sent  # nothing more is sent, since it could not be stored
    assert "\n" not in str(full.value)
    with Ledger.open(path) as ledger:
        assert [await ledger.wrap(client, "s").complete(ask(i)) for i in range(3)] == kept
    assert len(client.requests) == sent


FULL_DISK = """
import asyncio, os, resource, sys
from pathlib import Path
from rlaif.clients.scripted import ScriptedClient
from rlaif.engine.ledger import Ledger
from rlaif.errors import RlaifError
from tests.engine.virtual import ask

async def main():
    client = ScriptedClient(lambda request: os.urandom(2000).hex())
    with Ledger.open(Path(sys.argv[1])) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        wrapped = ledger.wrap(client, "s")
        todo = iter(range(400))
        async def work():
            for i in todo:
                await wrapped.complete(ask(i))
                print(i, flush=True)
        await asyncio.gather(*(work() for _ in range(16)))

try:
    asyncio.run(main())
except RlaifError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_when_the_system_refuses_to_write_more_nothing_that_was_reported_is_lost(path: Path) -> None:
    limit = 300_000
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(limit)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 4, run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert "kept" in run.stderr
    reported = [int(line) for line in run.stdout.split()]
    assert 10 < len(reported) < 400
    client = counted()
    with Ledger.open(path, read_only=True) as ledger:
        assert all(ledger.reply(key_of(ask(i), client)) is not None for i in reported)
    again = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(resource.RLIM_INFINITY)], capture_output=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


# ------------------------------------------------------------------------------------------------- the bookkeeping


async def test_counts_and_tokens_add_up_by_stage_and_model(path: Path) -> None:
    small, large = ScriptedClient(lambda r: "a b", "small"), ScriptedClient(lambda r: "a b c", "large")
    with Ledger.open(path) as ledger:
        for client, stage, n in ((small, "sample", 5), (large, "judge", 3), (small, "judge", 7)):
            await asyncio.gather(*(ledger.wrap(client, stage).complete(ask(i)) for i in range(n)))
        stats = {(s.stage, s.model): s for s in ledger.stats().stages}
    assert {name: (s.sent, s.reused, s.stored, s.usage.output_tokens) for name, s in stats.items()} == {
        ("sample", "scripted:small"): (5, 0, 5, 10),
        ("judge", "scripted:large"): (3, 0, 3, 9),
        ("judge", "scripted:small"): (2, 5, 2, 4),  # five of them were answered in the other stage
    }
    with Ledger.open(path, read_only=True) as ledger:
        later = ledger.stats()
    assert (later.total("stored"), later.total("sent"), later.usage.output_tokens) == (10, 0, 23)
    assert later.usage.input_tokens == 10 * 2


def test_one_ledger_serves_one_event_loop_after_another(path: Path) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")
        for i in range(3):
            assert asyncio.run(wrapped.complete(ask(i))).text == f"re: question {i}"

        async def stuck(request: ChatRequest) -> str:
            await asyncio.sleep(3600)
            return ""

        async def interrupted() -> None:
            await asyncio.wait_for(ledger.wrap(counted(stuck), "s").complete(ask(9)), 0.05)

        with pytest.raises(TimeoutError):
            asyncio.run(interrupted())
        assert asyncio.run(wrapped.complete(ask(9))).text == "re: question 9"
    with Ledger.open(path, read_only=True) as ledger:
        assert (ledger.stats().total("stored"), ledger.stats().total("unsettled")) == (4, 0)


async def test_other_tables_are_written_whole_or_not_at_all(path: Path) -> None:
    def create(db: sqlite3.Connection) -> str:
        db.execute("CREATE TABLE mine (x)")
        return "made"

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO mine VALUES (1)")
        raise ValueError("changed my mind")

    with Ledger.open(path) as ledger:
        assert await ledger.write(create) == "made"
        with pytest.raises(ValueError, match="changed my mind"):
            await ledger.write(fail)
        await ledger.write(lambda db: db.execute("INSERT INTO mine VALUES (2)").rowcount)
        assert ledger.read("SELECT x FROM mine") == [(2,)]
        assert (await ledger.wrap(counted(), "s").complete(ask())).text == "re: question 0"


async def test_memory_does_not_grow_with_the_number_of_requests(path: Path) -> None:
    client = counted(lambda request: "x" * 200)
    with Ledger.open(path) as ledger:
        wrapped = ledger.wrap(client, "s")

        async def send(n: int, start: int) -> int:
            todo = iter(range(start, start + n))

            async def work() -> None:
                for i in todo:
                    await wrapped.complete(ask(i))

            await asyncio.gather(*(work() for _ in range(32)))
            client.requests.clear()
            gc.collect()
            return len(gc.get_objects())

        few = await send(200, 0)
        many = await send(2000, 1000)
    assert many < few + 1000


async def test_the_ledger_holds_the_question_and_the_answer_and_no_header(path: Path) -> None:
    client = counted()
    with Ledger.open(path) as ledger:
        await ledger.wrap(client, "s").complete(ask(3))
    db = sqlite3.connect(path)
    ((body,),) = db.execute("SELECT body FROM requests")
    assert json.loads(zlib.decompress(body)) == ask(3).model_dump(mode="json")
    ((identity,),) = db.execute("SELECT identity FROM sources")
    db.close()
    assert json.loads(identity) == client.identity.model_dump()
