"""Whatever way a run was judged: what is read from its files, and that its ledger alone says the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlaif.engine.votes import Texts
from rlaif.review.rows import Item, Rows
from rlaif.types import Judgement
from tests import running
from tests.judges.test_rubric import CONSTITUTION as WITH_CRITERIA
from tests.review.runs import page
from tests.running import quality
from tests.test_generate_rewards import VERIFIER
from tests.test_revision import CONSTITUTION as WITH_REVISION

CHEAP, STRONG = ({"model": f"scripted:tests.judges.modes:{name}", "logprobs": True} for name in ("cheap", "strong"))


def one(name: str, **settings: Any) -> dict[str, Any]:
    model = {"model": f"scripted:tests.judges.modes:{name}", "logprobs": settings.pop("logprobs", False)}
    return {"judge_settings": {"models": [model], "ties": False, **settings}}


BY_PROGRAM = """
name: program
version: "1"
principles:
  - {id: high, check: {regex: "quality [5-9]\\\\d\\\\d"}}
"""
KINDS: dict[str, dict[str, Any]] = {
    "pairwise": {},
    "log-probs": {"judge": "judge_with_logprobs"},
    "rubbish": {"judge": "judge_with_rubbish", "max_unjudged": 1},
    "both bad": {"judge_settings": {"both_bad": True}},
    "one order": {"judge_settings": {"orders": "one"}},
    "score": one("score", type="score", logprobs=True),
    "rubric": one("rubric", type="rubric") | {"constitution": WITH_CRITERIA},
    "generated rubric": one("rubric", type="rubric", rubric="generated") | {"constitution": WITH_CRITERIA},
    "ranking": one("ranking", type="ranking"),
    "panel": {"judge_settings": {"models": [CHEAP, STRONG], "panel": "escalate", "ties": False}},
    "check": {
        "constitution": 'name: c\nversion: "1"\nprinciples:\n  - {id: big, check: {regex: "quality [5-9]\\\\d\\\\d"}}\n'
    },
    "revision": {
        "constitution": WITH_REVISION,
        "revision": {"model": "scripted:tests.judges.modes:reviser", "steps": 1},
    },
    "reward": {"reward": {"verifier": VERIFIER}},
    "best of each": {"pairing": {"strategy": "best_worst", "min_margin": 0.2}},
}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("kind")
    lines = ({"prompt": f"Question {i}?", "reference": "500"} for i in range(2))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    settings: dict[str, Any] = {"pairing": {"strategy": "all"}, "policy_settings": {"n": 3}} | KINDS[request.param]
    running.generate(running.config(tmp_path, **settings))
    return tmp_path / "run"


def judged_again(rows: Rows, item: Item) -> list[Judgement]:
    return [j for j in rows.judgements(item) if {j.a, j.b} == {item.a, item.b}]


async def test_every_comparison_is_there_once_with_its_own_texts_and_judgements(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))  # to be voted on
    rows = Rows(run)
    manifest = json.loads((run / "manifest.json").read_bytes())
    made = manifest["counts"]["comparisons"]
    assert len(rows.items) == made["planned"] - made["dropped"].get("identical", 0)
    assert sum(item.outcome == "pair" for item in rows.items) == made["pairs"]
    judgements = (run / "judgements.jsonl").read_text(encoding="utf-8").count("\n")
    assert sum(len(judged_again(rows, item)) for item in rows.items) == judgements
    for item in rows.items:
        texts = rows.texts(item)
        a, b = (texts.second, texts.first) if item.subject.flipped else (texts.first, texts.second)
        assert {texts.prompt_id} == {item.prompt_id}
        assert (a, b) == (rows.completion(item.a).text, rows.completion(item.b).text)
        if item.judge in ("a", "b") and item.margin is not None and item.source == "judge":
            assert (item.chosen == "a") == (item.p_a is not None and item.p_a > 0.5)
    async with page(run) as p:
        for item in rows.items:
            voted = await p.vote(item.subject.key, "left")
            assert voted["revealed"]["outcome"] == item.outcome
            if item.judge in ("a", "b"):
                side = "left" if voted["left"] == rows.completion(getattr(item, item.judge)).text else "right"
                assert voted["revealed"]["judge"] == side
            for look in voted["revealed"]["judgements"]:
                if look.get("scores") and look["said"] in ("left", "right"):
                    other = {"left": "right", "right": "left"}[look["said"]]
                    assert look["scores"][look["said"]] > look["scores"][other]
    rows.close()


def test_the_ledger_alone_says_the_same_as_the_files(run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "ledger.sqlite"):
        shutil.copy(run / name, tmp_path)
    finished, recalled = Rows(run), Rows(tmp_path)
    assert (finished.finished, recalled.finished) == (True, False)
    assert [item.subject for item in recalled.items] == [item.subject for item in finished.items]
    for old, new in zip(finished.items, recalled.items, strict=True):
        # A question that a verifier made needless is none of a finished run.
        assert _without_questions(finished.texts(old)) == _without_questions(recalled.texts(new))
        assert (old.judge, old.p_a, old.opposed) == (new.judge, new.p_a, new.opposed)
        if not (run / "rewards.jsonl").exists():  # no verifier runs for a page
            assert (old.outcome, old.chosen, old.prob_chosen) == (new.outcome, new.chosen, new.prob_chosen)
    finished.close()
    recalled.close()


def _without_questions(texts: Texts) -> Texts:
    return texts.model_copy(update={"principles": ()})


def test_judges_of_known_truth_are_read_as_right(tmp_path: Path) -> None:
    running.run(tmp_path, [f"Question {i}?" for i in range(3)], pairing={"strategy": "all"})
    rows = Rows(tmp_path / "run")
    for item in rows.items:
        a, b = (quality(rows.completion(id_).text) for id_ in (item.a, item.b))
        assert item.judge == ("a" if a > b else "b")
        assert (item.p_a, item.margin, item.opposed) == (float(a > b), 1.0, False)
    rows.close()
