"""Several judges of one comparison: mean, majority, veto, and the cheap one first."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.config.generate import JudgeConfig, PairingConfig
from rlaif.estimate import estimate
from rlaif.judges.stats import in_words
from rlaif.pairing import pair
from rlaif.panel import Opinion, Rule, is_clear, together
from rlaif.types import Comparison, Judgement, Order, Outcome, Unjudged, Verdict
from tests import fakes, running
from tests.running import dropped, judgements, quality, rows, run
from tests.test_pairing import PROMPT, WEIGHTS, completion

AB = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
PRINCIPLE = next(iter(WEIGHTS))
PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]
RULES: tuple[Rule, ...] = ("mean", "majority", "veto", "escalate")


def said(judge: str, outcome: Outcome | float, order: Order | None = "ab") -> Judgement:
    if isinstance(outcome, float):
        choice: Any = "tie" if outcome == 0.5 else "a" if outcome > 0.5 else "b"
        outcome = Verdict(choice=choice, p_a=outcome, method="logprob")
    return Judgement(
        prompt_id="p",
        a=AB.a.id,
        b=AB.b.id,
        principles=(PRINCIPLE,),
        judge=judge,
        template="t@0",
        order=order,
        outcome=outcome,
    )


def opinion(rule: Rule, *found: Judgement) -> Opinion:
    result = together(rule, found, WEIGHTS)
    assert isinstance(result, Opinion)
    return result


def test_a_majority_outvotes_one_judge_however_sure_that_one_is() -> None:
    three = [said("x", 0.6), said("y", 0.55), said("z", 0.0)]
    assert opinion("mean", *three).p_a < 0.5
    assert opinion("majority", *three).p_a == pytest.approx(2 / 3)
    assert opinion("majority", said("x", 0.6), said("y", 0.5), said("z", 0.1)).p_a == 0.5


def test_a_judge_votes_once_with_the_mean_of_its_orders() -> None:
    found = [said("x", 0.9), said("x", 0.2, "ba"), said("y", 0.1), said("y", 0.2, "ba"), said("z", 0.6)]
    assert opinion("majority", *found).p_a == pytest.approx(2 / 3)


def test_a_veto_drops_what_one_judge_sees_the_other_way_round() -> None:
    config = PairingConfig(strategy="all")
    pairs, gone = pair([AB], [said("x", 0.9), said("y", 0.45)], WEIGHTS, config, None, "veto")
    assert (pairs, [d.reason for d in gone]) == ([], ["vetoed"])
    pairs, _ = pair([AB], [said("x", 0.9), said("y", 0.5)], WEIGHTS, config, None, "veto")
    assert pairs[0].prob_chosen == pytest.approx(0.7)


def test_after_an_escalation_the_last_judge_decides_alone() -> None:
    missing = Unjudged(reason="unparseable", detail="?")
    assert opinion("escalate", said("cheap", 0.6), said("strong", 0.1)).p_a == pytest.approx(0.1)
    assert opinion("escalate", said("cheap", missing), said("strong", 0.9)).p_a == pytest.approx(0.9)
    assert together("escalate", [said("cheap", 0.9), said("strong", missing)], WEIGHTS) == missing


@pytest.mark.parametrize("rule", ["mean", "majority", "veto"])
def test_one_missing_verdict_leaves_a_panel_undecided(rule: Rule) -> None:
    missing = Unjudged(reason="refused", detail="no")
    assert together(rule, [said("x", 0.9), said("y", missing), said("z", 0.9)], WEIGHTS) == missing


def test_clear_is_every_verdict_there_orders_agreeing_and_a_margin() -> None:
    assert is_clear([said("x", 0.8), said("x", 0.9, "ba")], WEIGHTS, 0.5)
    assert not is_clear([said("x", 0.7), said("x", 0.75, "ba")], WEIGHTS, 0.5)
    assert not is_clear([said("x", 1.0), said("x", 0.49, "ba")], WEIGHTS, 0.0)
    assert not is_clear([said("x", Unjudged(reason="refused", detail="")), said("x", 1.0, "ba")], WEIGHTS, 0.0)


probabilities = st.floats(0, 1).map(lambda p: round(p * 1024) / 1024)


@given(st.sampled_from(RULES), st.lists(probabilities, min_size=1, max_size=5))
def test_exchanging_the_two_exchanges_what_any_panel_says(rule: Rule, ps: list[float]) -> None:
    one = opinion(rule, *(said(f"j{i}", p) for i, p in enumerate(ps)))
    other = opinion(rule, *(said(f"j{i}", 1 - p) for i, p in enumerate(ps)))
    assert other.p_a == pytest.approx(1 - one.p_a)
    assert (other.split, other.opposed) == (one.split, one.opposed)


@given(st.sampled_from(RULES[:3]), st.permutations([0.1, 0.6, 0.7, 0.9]))
def test_the_order_of_the_judges_changes_nothing_unless_they_are_asked_in_turn(rule: Rule, ps: list[float]) -> None:
    assert opinion(rule, *(said(f"j{p}", p) for p in ps)).p_a == pytest.approx(
        opinion(rule, *(said(f"j{p}", p) for p in sorted(ps))).p_a
    )


def model(name: str) -> dict[str, Any]:
    return {"model": f"scripted:tests.judges.modes:{name}", "logprobs": True}


def settings(rule: str, *names: str, **judge: Any) -> dict[str, Any]:
    return {
        "judge_settings": {"models": [model(n) for n in names], "panel": rule, "ties": False, **judge},
        "pairing": {"strategy": "all"},
        "max_unjudged": 1.0,
    }


def right(folder: Path) -> list[bool]:
    pairs = rows(folder, "pairs")
    return [quality(p["chosen"][0]["content"]) > quality(p["rejected"][0]["content"]) for p in pairs]


def test_a_judge_that_was_never_needed_is_reported_as_saved_altogether(tmp_path: Path) -> None:
    manifest = run(tmp_path, PROMPTS[:4], **settings("escalate", "strong", "contrary")).manifest
    strong, contrary = (f"scripted:tests.judges.modes:{name}" for name in ("strong", "contrary"))
    panel = manifest["panel"]
    assert panel["asked"] == {strong: 24, contrary: 0}
    assert panel["saved"] == {strong: 0.0, contrary: 1.0}
    assert list(panel["asked"]) == [strong, contrary]  # in the order of the config, in every process
    assert in_words(manifest) == [
        f"{strong} was asked about 24 of 24 comparisons (0.0% saved)",
        f"{contrary} was asked about 0 of 24 comparisons (100.0% saved)",
    ]


def test_escalation_asks_the_strong_judge_only_what_is_not_clear_and_says_what_it_saved(tmp_path: Path) -> None:
    result = run(tmp_path, PROMPTS, **settings("escalate", "cheap", "strong"))
    panel = result.manifest["panel"]
    cheap, strong = (f"scripted:tests.judges.modes:{name}" for name in ("cheap", "strong"))
    far = 0
    text = {c["id"]: c["text"] for c in rows(tmp_path, "completions")}
    asked = {(j.a, j.b) for j in judgements(tmp_path) if j.judge == strong}
    for j in judgements(tmp_path):
        if j.judge == cheap and j.order == "ab":
            is_far = abs(quality(text[j.a]) - quality(text[j.b])) > 300
            assert ((j.a, j.b) in asked) == (not is_far)
            far += is_far
    assert panel["comparisons"] == 120
    assert panel["asked"] == {cheap: 120, strong: 120 - far}
    assert panel["saved"][strong] == pytest.approx(far / 120)
    assert all(right(tmp_path))
    assert len(right(tmp_path)) > 115
    run(tmp_path, **settings("escalate", "cheap", "strong"))
    assert fakes.SENT == []


def test_a_majority_of_good_judges_is_right_and_a_veto_lets_nothing_wrong_through(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS, **settings("majority", "strong", "contrary", "strong_too"))
    assert len(rows(tmp_path, "pairs")) > 115
    assert all(right(tmp_path))
    (tmp_path / "veto").mkdir()
    with pytest.raises(Exception, match="no preference pair"):
        run(tmp_path / "veto", PROMPTS, **settings("veto", "strong", "contrary"))
    assert {d.reason for d in dropped(tmp_path / "veto")} <= {"vetoed", "tie"}


def test_the_same_model_twice_is_no_panel() -> None:
    with pytest.raises(ValidationError, match="at least 2 different models"):
        JudgeConfig.model_validate({"models": ["openai:x", "openai:x"], "panel": "veto"})


def test_the_dry_run_expects_a_share_to_go_on_and_knows_exactly_what_was_answered(tmp_path: Path) -> None:
    running.write_prompts(tmp_path, PROMPTS)
    other = settings("escalate", "cheap", "strong")
    found = {s.model.split(":")[-1]: s.calls for s in estimate(running.config(tmp_path, **other)).stages}
    assert found == {"policy": 80, "cheap": 240, "strong": round(240 * 0.3)}
    run(tmp_path, **other)
    after = estimate(running.config(tmp_path, **other))
    assert sum(s.answered for s in after.stages) == sum(s.calls for s in after.stages) == len(fakes.SENT)
