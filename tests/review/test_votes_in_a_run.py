"""What a run makes of people's votes, and what a judge is measured on afterwards."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.review import review as command
from rlaif.config.generate import PairingConfig
from rlaif.errors import InputError, QualityError
from rlaif.judging.gold import read_gold
from rlaif.pairing import pair
from rlaif.review import export_votes
from rlaif.types import Comparison, Completion, Message, PreferencePair, Prompt
from tests import fakes, running
from tests.review.runs import ALL, COMPARISONS, PROMPTS, made, page
from tests.running import dropped, quality, rows


def vote_all(run: Path, said: dict[str, str] | None = None, reviewer: str = "anna") -> None:
    """Vote on everything: for the response of lower quality, or ``said`` by prompt."""

    async def main() -> None:
        async with page(run, reviewer) as p:
            while (key := (await p.next())["key"]) is not None:
                shown = await p.comparison(key)
                worse = "right" if await p.better(key) == "left" else "left"
                await p.vote(key, worse if said is None else said.get(shown["prompt"][-1]["content"], "skip"))

    asyncio.run(main())


def test_people_come_before_the_judge_and_nothing_is_sent_for_it(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = rows(tmp_path, "pairs")
    assert {row["source"] for row in before} == {"judge"}
    vote_all(run)
    judged = rows(tmp_path, "judgements")
    result = running.run(tmp_path, **ALL)
    assert fakes.SENT == []
    after = rows(tmp_path, "pairs")
    assert len(after) == len(before)
    for row in after:
        assert (row["source"], row["judge"], row["prob_chosen"]) == ("human", "human", 1.0)
        assert quality(row["chosen"][0]["content"]) < quality(row["rejected"][0]["content"])
    assert result.manifest["counts"]["human"] == {"comparisons": len(after), "votes": len(after)}
    assert rows(tmp_path, "judgements") == judged  # what the judge said stays, to be measured


def test_reparse_takes_the_votes_too(tmp_path: Path) -> None:
    run = made(tmp_path)
    vote_all(run)
    running.generate(running.config(tmp_path, **ALL), reparse=True)
    assert {row["source"] for row in rows(tmp_path, "pairs")} == {"human"}


def test_a_comparison_that_the_judge_dropped_becomes_a_pair(tmp_path: Path) -> None:
    with pytest.raises(QualityError):  # it always says the first: order disagreement everywhere
        made(tmp_path, judge="judge_always_first")
    assert {d.reason for d in dropped(tmp_path)} == {"order_disagreement"}
    vote_all(tmp_path / "run")
    result = running.run(tmp_path, judge="judge_always_first", **ALL)
    assert result.manifest["counts"]["comparisons"]["pairs"] == COMPARISONS


@pytest.mark.parametrize(("said", "reason"), [("tie", "tie"), ("both_bad", "both_bad")])
def test_a_tie_of_people_takes_a_pair_away(tmp_path: Path, said: str, reason: str) -> None:
    run = made(tmp_path)
    vote_all(run, {PROMPTS[0]: said})
    running.run(tmp_path, **ALL)
    assert [(d.reason, d.detail) for d in dropped(tmp_path)] == [(reason, "by people: 1 vote")] * 3
    assert len(rows(tmp_path, "pairs")) == COMPARISONS - 3


def test_a_skip_and_a_vote_taken_back_change_nothing(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = rows(tmp_path, "pairs")

    async def main() -> None:
        async with page(run) as p:
            one = (await p.next())["key"]
            await p.vote(one, "left")
            await p.undo()
            await p.vote(one, "skip")

    asyncio.run(main())
    result = running.run(tmp_path, **ALL)
    assert rows(tmp_path, "pairs") == before
    assert "human" not in result.manifest["counts"]


def test_votes_outlive_a_fresh_start(tmp_path: Path) -> None:
    run = made(tmp_path)
    vote_all(run)
    running.generate(running.config(tmp_path, **ALL), fresh=True)
    assert {row["source"] for row in rows(tmp_path, "pairs")} == {"human"}
    assert run.exists()


# --------------------------------------------------------------------------------------------------- by whole rule


def _comparisons() -> list[Comparison]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Q"),))
    a, b, c = (
        Completion(id=id_, prompt_id="p", index=i, text=id_, model="m", finish_reason="stop")
        for i, id_ in enumerate(("a", "b", "c"))
    )
    return [Comparison(prompt=prompt, a=x, b=y) for x, y in ((a, b), (a, c), (b, c))]


def paired(votes: dict[tuple[str, str], tuple[str, ...]], **config: Any) -> tuple[list[PreferencePair], dict[str, str]]:
    made, left = pair(_comparisons(), [], {}, PairingConfig(**config), votes=votes)
    assert len(made) + len(left) == 3
    return made, {f"{d.a}{d.b}": d.reason for d in left}


def test_the_probability_is_the_share_of_the_votes_a_tie_counting_half() -> None:
    votes = {("a", "b"): ("a", "a", "b"), ("a", "c"): ("b", "tie"), ("b", "c"): ("a", "b")}
    made, left = paired(votes, strategy="all")
    assert [(p.chosen, p.rejected, p.prob_chosen) for p in made] == [("a", "b", 0.666666667), ("c", "a", 0.75)]
    assert left == {"bc": "tie"}


def test_half_of_the_votes_for_both_bad_drop_the_comparison() -> None:
    made, left = paired({("a", "b"): ("a", "both_bad"), ("a", "c"): ("a", "a", "both_bad")}, strategy="all")
    assert [(p.chosen, p.rejected) for p in made] == [("a", "c")]
    assert left == {"ab": "both_bad", "bc": "unjudged"}


def test_a_margin_that_people_do_not_reach_is_low() -> None:
    assert paired({("a", "b"): ("a", "a", "b")}, min_margin=0.5)[1]["ab"] == "low_margin"


@pytest.mark.parametrize("strategy", ["best_worst", "margin"])
def test_where_one_pair_is_taken_it_is_one_that_people_decided(tmp_path: Path, strategy: str) -> None:
    run = made(tmp_path)  # with all pairs, to vote on any
    lowest = min(rows(tmp_path, "pairs"), key=lambda r: quality(r["chosen"][0]["content"]))

    async def main() -> None:
        async with page(run) as p:
            for item in await _keys(p):
                shown = await p.comparison(item)
                texts = {lowest["chosen"][0]["content"], lowest["rejected"][0]["content"]}
                if {shown["left"], shown["right"]} == texts:
                    await p.vote(item, await p.better(item))

    asyncio.run(main())
    running.run(tmp_path, **ALL | {"pairing": {"strategy": strategy}})
    pairs = {row["prompt_id"]: row for row in rows(tmp_path, "pairs")}
    assert len(pairs) == len(PROMPTS)
    human = [row for row in pairs.values() if row["source"] == "human"]
    assert [(row["chosen_id"], row["rejected_id"]) for row in human] == [(lowest["chosen_id"], lowest["rejected_id"])]


async def _keys(p: Any) -> list[str]:
    found: list[str] = []
    while (key := (await p.next(show="all", after=found[-1] if found else ""))["key"]) is not None:
        found.append(key)
    return found


# --------------------------------------------------------------------------------------------------------- export


def test_votes_become_labelled_pairs_that_a_judge_is_measured_on(tmp_path: Path) -> None:
    run = made(tmp_path)

    async def right(reviewer: str, wrong: int) -> None:
        async with page(run, reviewer) as p:
            for number, key in enumerate(await _keys(p)):
                better = await p.better(key)
                await p.vote(key, better if number >= wrong else "tie")

    asyncio.run(right("anna", 0))
    asyncio.run(right("ben", 3))
    gold = tmp_path / "gold" / "labelled.jsonl"
    told = CliRunner().invoke(command, [str(run), "--export", str(gold)], catch_exceptions=False)
    assert told.output == f"{gold}: 12 labelled pairs\n"
    pairs = read_gold(str(gold))
    assert len(pairs) == 12
    assert sum(p.labels.count("tie") for p in pairs) == 3
    for p in pairs:
        best = "a" if quality(p.comparison.a.text) > quality(p.comparison.b.text) else "b"
        assert p.labels[0] == best  # by name: anna first
        assert p.models == ("scripted:tests.fakes:policy",) * 2
    measured = running.config(
        tmp_path, judge_settings={"gold": str(gold), "min_kappa": 0.3}, out=str(tmp_path / "next")
    )
    (figures,) = running.generate(measured).manifest["gold"]
    assert figures["pairs"] == 12
    assert 0.3 < figures["kappa"] < 1


def test_the_judge_is_asked_the_question_that_people_answered(tmp_path: Path) -> None:
    two = running.CONSTITUTION + "  - id: other\n    compare: Which is other?\n"
    run = made(tmp_path, constitution=two)
    vote_all(run)
    gold = tmp_path / "gold.jsonl"
    assert export_votes(run, gold) == COMPARISONS
    asked = {pair.id: pair.principles for pair in read_gold(str(gold))}
    assert {principle for (principle,) in asked.values()} == {"better", "other"}
    settings = {"gold": str(gold), "min_kappa": -1}
    running.generate(running.config(tmp_path, constitution=two, judge_settings=settings, out=str(tmp_path / "next")))
    lines = (tmp_path / "next" / "judge-0" / "judgements.jsonl").read_text(encoding="utf-8").split("\n")
    found = [json.loads(line)["principles"] for line in lines if line]
    assert [tuple(principles) for principles in found[::2]] == list(asked.values())


def test_what_was_not_blind_is_no_label(tmp_path: Path) -> None:
    run = made(tmp_path)

    async def main() -> None:
        async with page(run) as p:
            one = (await p.next())["key"]
            await p.vote(one, "reveal")
            await p.vote(one, "left")

    asyncio.run(main())
    with pytest.raises(InputError, match="nobody has voted blind"):
        export_votes(run, tmp_path / "gold.jsonl")


def test_labels_carry_the_metadata_that_principles_go_by(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Q?", "topic": "law", "id": "mine"}) + "\n")
    running.generate(running.config(tmp_path, **ALL))
    vote_all(tmp_path / "run")
    assert export_votes(tmp_path / "run", tmp_path / "gold.jsonl") == 3
    first = json.loads((tmp_path / "gold.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["topic"] == "law"
    assert first["id"] != "mine"
    assert read_gold(str(tmp_path / "gold.jsonl"))[0].comparison.prompt.metadata["topic"] == "law"


def test_export_of_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        export_votes(tmp_path, tmp_path / "gold.jsonl")
