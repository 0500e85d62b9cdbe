"""Verifiers inside a generate run: they decide where they can, at no cost; a failure of theirs is no label."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.base import Config
from rlaif.errors import InputError, QualityError, TaskError
from rlaif.estimate import estimate
from rlaif.pairing import Rewards, decide_by_rewards
from rlaif.types import Comparison, Dropped, Reward, Unverified
from rlaif.verifiers.base import Task
from tests import fakes
from tests.running import config, dropped, generate, judgements, quality, rows
from tests.test_pairing import PROMPT, completion

PROMPTS = [{"prompt": f"Question {i}: how?", "reference": "500"} for i in range(20)]


class AtLeast:
    """Passes a completion whose quality (see tests/running.py) is at least the reference."""

    identity = "at_least@1"

    class Options(Config):
        fails_on: int | None = None  # a last digit of the quality on which the machine fails

    def __init__(self, options: Options) -> None:
        self.options = options

    async def prepare(self, task: Task) -> None:
        if not str(task["reference"]).isdigit():
            raise TaskError(f"{task['reference']!r} is no number.")

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if quality(completion) % 10 == self.options.fails_on:
            return Unverified(reason="infrastructure", detail="no sandbox today")
        if quality(completion) >= int(task["reference"]):
            return Reward(value=1.0)
        return Reward(value=0.0, reason="wrong")

    async def aclose(self) -> None:
        pass


VERIFIER = "tests.test_generate_rewards:AtLeast"


def run(folder: Path, prompts: list[dict[str, Any]] | None = None, **other: Any) -> dict[str, Any]:
    lines = (json.dumps(row) + "\n" for row in prompts or PROMPTS)
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    fakes.SENT.clear()
    settings = {"reward": {"verifier": VERIFIER}, "pairing": {"strategy": "all"}} | other
    return generate(config(folder, **settings)).manifest


def qualities(folder: Path) -> dict[str, int]:
    return {c["id"]: quality(c["text"]) for c in rows(folder, "completions")}


def test_passing_beats_failing_and_only_equals_are_judged(tmp_path: Path) -> None:
    manifest = run(tmp_path)
    of = qualities(tmp_path)
    judged = {(j.a, j.b) for j in judgements(tmp_path)}
    by_verifier = [p for p in rows(tmp_path, "pairs") if p["source"] == "verifier"]
    assert by_verifier
    for pair in by_verifier:
        assert of[pair["chosen_id"]] >= 500 > of[pair["rejected_id"]]
        assert (pair["prob_chosen"], pair["judge"], pair["evidence"]) == (1.0, "at_least@1", [])
    for a, b in judged:
        assert (of[a] >= 500) == (of[b] >= 500)
    for pair in rows(tmp_path, "pairs"):
        ids = {pair["chosen_id"], pair["rejected_id"]}
        assert (pair["source"] == "judge") == any(set(asked) == ids for asked in judged)
    made = manifest["counts"]["comparisons"]
    assert made["planned"] == made["pairs"] + sum(made["dropped"].values()) == 3 * len(PROMPTS) * 2
    assert manifest["rewards"]["rows"] == len(rows(tmp_path, "rewards")) == 4 * len(PROMPTS)


def test_the_best_that_pass_become_data_for_supervised_tuning(tmp_path: Path) -> None:
    run(tmp_path, rejection={"keep": 2})
    of = qualities(tmp_path)
    best = rows(tmp_path, "best")
    assert best
    for row in best:
        assert of[row["completion_id"]] >= 500
        assert row["completion"][0]["role"] == "assistant"
    most = max(sum(row["prompt_id"] == other["prompt_id"] for other in best) for row in best)
    assert most == 2


def test_a_failed_verifier_labels_nothing_and_the_judge_does_not_stand_in(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="infrastructure failed"):
        run(tmp_path, reward={"verifier": VERIFIER, "options": {"fails_on": 7}})
    failed = {id_ for id_, quality in qualities(tmp_path).items() if quality % 10 == 7}
    lost = [d for d in dropped(tmp_path) if d.reason == "unverified"]
    assert lost
    assert all(failed & {d.a, d.b} for d in lost)
    assert not any(failed & {p["chosen_id"], p["rejected_id"]} for p in rows(tmp_path, "pairs"))
    assert not any(failed & {j.a, j.b} for j in judgements(tmp_path))
    assert {r["value"] for r in rows(tmp_path, "rewards") if r["completion_id"] in failed} == {None}


def test_a_wrong_task_is_dropped_before_anything_is_sampled_for_it(tmp_path: Path) -> None:
    run(tmp_path, [*PROMPTS, {"prompt": "Question x: how?", "reference": "five"}])
    (lost,) = [d for d in dropped(tmp_path) if d.reason == "task_error"]
    assert "'five' is no number" in lost.detail
    assert not any("Question x" in r.messages[-1].content for r in fakes.SENT)


def test_a_prompt_without_a_task_is_for_the_judge_alone(tmp_path: Path) -> None:
    run(tmp_path, [*PROMPTS, {"prompt": "Question x: how?"}])
    prompts = {c["prompt_id"] for c in rows(tmp_path, "completions")}
    without = prompts - {r["prompt_id"] for r in rows(tmp_path, "rewards")}
    assert len(without) == 1
    assert {p["source"] for p in rows(tmp_path, "pairs") if p["prompt_id"] in without} == {"judge"}


def test_the_run_goes_on_with_another_reward_and_asks_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path)
    before = {r.messages for r in fakes.SENT}
    run(tmp_path, rejection={"keep": 3})
    assert fakes.SENT == []
    run(tmp_path, reward=None)
    assert {r.messages for r in fakes.SENT}.isdisjoint(before)
    assert len(fakes.SENT) > 50


def test_a_right_answer_that_shaping_took_something_off_is_still_among_the_best(tmp_path: Path) -> None:
    shaped = {"shaping": {"of": {"verifier": VERIFIER}, "length": {"free": 0, "full": 1}}}
    run(tmp_path, reward=shaped, rejection={"keep": 4})
    best = rows(tmp_path, "best")
    assert best
    assert {row["reward"] for row in best} == {0.9}


def test_the_sandbox_that_decided_is_in_the_manifest(tmp_path: Path) -> None:
    asserts = {"tests": ["assert f(1) == 2", "assert f(2) == 3"]}
    manifest = run(tmp_path, [{"prompt": "Write f.", **asserts}], reward={"verifier": "code"})
    assert manifest["rewards"]["sandbox"] in (["ns"], ["lsm"])


@pytest.mark.parametrize("reward", [{"verifier": "mth"}, {"verifier": "math", "options": {"secnds": 1}}])
def test_a_dry_run_tells_a_wrong_reward(tmp_path: Path, reward: dict[str, Any]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?", "reference": "1"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="did you mean"):
        estimate(config(tmp_path, reward=reward))


def test_a_judge_inside_the_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run's own judge"):
        run(tmp_path, reward={"verifier": "judge", "options": {"model": "scripted:tests.fakes:judge"}})


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.75, 0.25, 0.75), (0.5, 0.5, None), (None, 1.0, "unverified")],
)
def test_the_difference_of_rewards_is_the_margin(
    a: float | None, b: float | None, expected: float | str | None
) -> None:
    pair = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    decided = decide_by_rewards(pair, Rewards({pair.a.id: a, pair.b.id: b}, 1.0, "it@1"))
    if isinstance(decided, Dropped):
        assert decided.reason == expected
    else:
        assert (decided.p_a if decided else None) == expected
