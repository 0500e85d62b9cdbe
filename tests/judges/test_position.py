"""A judge's preference for a position, measured on the run and taken out of its probabilities."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.config.generate import JudgeConfig
from rlaif.hashing import uniform
from rlaif.judges.orders import is_drawn
from rlaif.judges.position import LEAST, PositionPriors, log_odds, probability
from rlaif.report import write_report
from rlaif.types import ChatReply, ChatRequest, Judgement, Order, Unjudged, Verdict
from tests import fakes
from tests.fakes import shown_qualities
from tests.judges.modes import said
from tests.running import config as run_config
from tests.running import generate, quality, rows, run

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]
BIAS = 2.5


def leaning(request: ChatRequest) -> ChatReply:
    """Knows which response is better, and leans to the first one by more than that."""
    fakes.SENT.append(request)
    first, second = shown_qualities(request)
    p = probability(BIAS + (first - second) / 500)
    return said({"X": 0.9 * p, "Y": 0.9 * (1 - p), "The": 0.1})


def look(pair: int, order: Order, odds_first: float, **changes: Any) -> Judgement:
    p = probability(odds_first if order == "ab" else -odds_first)
    choice = "a" if p > 0.5 else "b" if p < 0.5 else "tie"
    outcome = Verdict(choice=choice, p_a=p, method="logprob", label_mass=0.9)
    row: dict[str, Any] = {
        "prompt_id": f"p{pair}",
        "a": f"a{pair}",
        "b": f"b{pair}",
        "principles": ("better",),
        "judge": "scripted:judge",
        "template": "pairwise-1",
        "order": order,
        "outcome": outcome,
    }
    return Judgement.model_validate(row | changes)


def both(pair: int, opinion: float, bias: float, noise: tuple[float, float] = (0.0, 0.0)) -> list[Judgement]:
    """The two looks of a judge whose log-odds for a are ``opinion``."""
    return [look(pair, "ab", opinion + bias + noise[0]), look(pair, "ba", bias - opinion + noise[1])]


def priors(questions: Sequence[Sequence[Judgement]], **judge: Any) -> PositionPriors:
    config = {"models": ["scripted:m:o"], "calibrate": "position", **judge}
    found = PositionPriors(JudgeConfig.model_validate(config), seed=0)
    for looks in questions:
        found.add(looks)
    return found


def p_a(j: Judgement) -> float:
    assert isinstance(j.outcome, Verdict)
    return j.outcome.p_a


def swap(j: Judgement) -> Judgement:
    other: Order = "ba" if j.order == "ab" else "ab"
    return j.model_copy(update={"a": j.b, "b": j.a, "order": other, "outcome": j.outcome.swap()})


opinions = st.lists(st.floats(-4, 4), min_size=LEAST, max_size=60)


@given(st.floats(-4, 4), opinions)
@settings(max_examples=50)
def test_both_orders_give_back_the_opinion_of_a_judge_with_any_bias(bias: float, truth: list[float]) -> None:
    questions = [both(i, opinion, bias) for i, opinion in enumerate(truth)]
    found = priors(questions)
    for looks, opinion in zip(questions, truth, strict=True):
        for after in found.correct(looks):
            assert p_a(after) == pytest.approx(probability(opinion), abs=1e-6)


@given(st.floats(-3, 3), st.integers(0, 10**6))
@settings(max_examples=50)
def test_one_order_drawn_by_hash_recovers_the_bias_within_its_interval(bias: float, seed: int) -> None:
    draw = Random(seed)
    questions = []
    for i in range(400):
        opinion, order = draw.gauss(0.5, 1), "ab" if draw.random() < 0.5 else "ba"
        questions.append([both(i, opinion, bias)[order == "ba"]])
    (row,) = priors(questions, orders="one").report()["judges"]
    assert row["shown_in"] == "one order"
    assert row["log_odds"] == pytest.approx(bias, abs=4 * math.sqrt(1.25 / 400))  # four standard errors
    assert row["p_first_low"] < row["p_first"] < row["p_first_high"]


@given(st.floats(-3, 3), opinions)
@settings(max_examples=50)
def test_swapping_a_and_b_swaps_the_corrected_verdict_exactly(bias: float, truth: list[float]) -> None:
    questions = [both(i, opinion, bias) for i, opinion in enumerate(truth)]
    swapped = [[swap(j) for j in reversed(looks)] for looks in questions]
    found, mirrored = priors(questions), priors(questions)
    for looks, other in zip(questions, swapped, strict=True):
        assert [swap(j) for j in reversed(found.correct(looks))] == mirrored.correct(other)


@given(opinions)
@settings(max_examples=25)
def test_a_judge_without_a_preference_is_left_to_the_byte(truth: list[float]) -> None:
    questions = [both(i, opinion, 0.0) for i, opinion in enumerate(truth)]
    found = priors(questions)
    assert [found.correct(looks) for looks in questions] == questions


def test_noise_is_seldom_taken_for_a_preference() -> None:
    draw, touched, runs = Random(0), 0, 300
    for _ in range(runs):
        questions = [both(i, draw.gauss(0, 1), 0.0, (draw.gauss(0, 1), draw.gauss(0, 1))) for i in range(50)]
        (row,) = [priors(questions)]
        row.correct(questions[0])
        touched += row.report()["judges"][0]["corrected"]
    assert touched / runs < 0.09  # 5 % by the interval, and a little for 50 questions


def test_too_few_questions_correct_nothing_and_say_so() -> None:
    questions = [both(i, 0.3, 2.0) for i in range(LEAST - 1)]
    found = priors(questions)
    assert [found.correct(looks) for looks in questions] == questions
    (row,) = found.report()["judges"]
    assert row["corrected"] is False
    assert (
        row["why_not"] == f"{LEAST - 1} questions with label probabilities; {LEAST} are needed to measure a preference"
    )


def test_second_looks_that_a_verdict_asked_for_measure_nothing() -> None:
    # Shown twice only where the first look was unsure: among those the first look's log-odds are near 0 by selection.
    draw, bias, questions = Random(1), 1.5, []
    for i in range(3000):
        first, second = both(i, draw.gauss(0, 1.5), bias, (draw.gauss(0, 1), draw.gauss(0, 1)))
        if draw.random() < 0.5:
            first, second = second, first
        twice = abs(log_odds(p_a(first))) < log_odds(0.9) or is_drawn(0, first.a, first.b, 0.05)
        questions.append([first, second] if twice else [first])
    (row,) = priors(questions, orders="auto", audit=0.05).report()["judges"]
    assert row["shown_in"] == "both orders"
    assert 100 < row["questions"] < 200  # the audit sample alone
    assert row["log_odds"] == pytest.approx(bias, abs=0.25)


def test_a_written_verdict_and_a_missing_one_are_not_touched() -> None:
    text = look(1000, "ab", 1.0, outcome=Verdict(choice="a", p_a=1.0, method="text"))
    vote = look(1000, "ba", 1.0, outcome=Verdict(choice="a", p_a=0.75, method="vote"))
    missing = look(1001, "ab", 1.0, outcome=Unjudged(reason="refused", detail=""))
    found = priors([*(both(i, 0.0, 2.0) for i in range(LEAST)), [text, vote, missing]])
    assert found.correct([text, vote, missing]) == [text, vote, missing]
    assert found.report()["judges"][0]["questions"] == LEAST


def test_a_tie_that_was_said_stays_one_and_certainty_stays_certain() -> None:
    tie = look(1000, "ab", 1.0, outcome=Verdict(choice="tie", p_a=0.7, method="logprob"))
    sure = look(1001, "ab", 1.0, outcome=Verdict(choice="a", p_a=1.0, method="logprob"))
    found = priors([both(i, 0.0, 2.0) for i in range(LEAST)])
    after = found.correct([tie, sure])
    assert isinstance(after[0].outcome, Verdict)
    assert after[0].outcome.choice == "tie"
    assert after[0].outcome.p_a < 0.3
    assert after[1] == sure


def test_each_judge_and_each_template_has_a_prior_of_its_own() -> None:
    ours = [both(i, 0.0, 2.0) for i in range(LEAST)]
    other = [[j.model_copy(update={"template": "other-1"}) for j in both(i, 0.0, -1.0)] for i in range(LEAST)]
    found = priors([*ours, *other])
    for looks in (*ours, *other):
        assert [p_a(j) for j in found.correct(looks)] == pytest.approx([0.5, 0.5])
    assert [round(row["log_odds"], 6) for row in found.report()["judges"]] == [2.0, -1.0]


@given(st.floats(0, 1))
def test_log_odds_and_probability_undo_each_other_and_keep_symmetry(p: float) -> None:
    p = round(p * 2**40) / 2**40
    assert log_odds(1 - p) == -log_odds(p)
    assert probability(log_odds(p)) == pytest.approx(p, abs=1e-12)
    assert probability(-log_odds(p)) == 1 - probability(log_odds(p))


# ------------------------------------------------------------------------------------------------------- whole runs


def leaning_run(folder: Path, calibrate: str, orders: str = "one", **other: Any) -> Any:
    judge = {
        "models": [{"model": "scripted:tests.judges.test_position:leaning", "logprobs": True}],
        "ties": False,
        "orders": orders,
        "calibrate": calibrate,
    }
    return run(folder, PROMPTS, judge_settings=judge, pairing={"strategy": "all"}, **other)


def share_right(folder: Path) -> float:
    found = [[quality(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows(folder, "pairs")]
    return sum(chosen > rejected for chosen, rejected in found) / len(found)


def written(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "run").rglob("*") if p.suffix in (".jsonl", ".parquet", ".md")}


def test_a_run_in_one_order_is_right_only_with_the_correction(tmp_path: Path) -> None:
    raw, corrected = tmp_path / "raw", tmp_path / "corrected"
    for folder, calibrate in ((raw, "none"), (corrected, "position")):
        folder.mkdir()
        leaning_run(folder, calibrate)
    assert share_right(raw) < 0.75
    assert share_right(corrected) > 0.9
    assert rows(raw, "judgements") == rows(corrected, "judgements")  # the rows keep what the judge said


def test_the_manifest_tells_the_prior_and_the_swap_consistency_before_and_after(tmp_path: Path) -> None:
    manifest = leaning_run(tmp_path, "position", orders="both").manifest
    (row,) = manifest["position"]["judges"]
    assert row["corrected"]
    assert row["p_first"] == pytest.approx(probability(BIAS), abs=1e-5)
    assert row["p_first_low"] <= row["p_first"] <= row["p_first_high"]
    assert row["swap_consistency"] < 0.3
    assert row["swap_consistency_corrected"] == 1.0
    counts = manifest["counts"]["comparisons"]
    assert counts["pairs"] == len(rows(tmp_path, "pairs")) == counts["planned"] - sum(counts["dropped"].values())


def test_without_calibration_the_prior_is_told_and_nothing_is_corrected(tmp_path: Path) -> None:
    manifest = leaning_run(tmp_path, "none", orders="both").manifest
    assert manifest["position"]["calibrate"] == "none"
    (row,) = manifest["position"]["judges"]
    assert row["p_first"] == pytest.approx(probability(BIAS), abs=1e-5)
    assert "corrected" not in row


def test_a_second_run_and_a_reparse_send_nothing_and_write_the_same_bytes(tmp_path: Path) -> None:
    leaning_run(tmp_path, "position")
    first = written(tmp_path)
    leaning_run(tmp_path, "position")
    assert fakes.SENT == []
    assert written(tmp_path) == first
    settings = {"models": [{"model": "scripted:tests.judges.test_position:leaning", "logprobs": True}], "ties": False}
    settings |= {"orders": "one", "calibrate": "position"}
    generate(run_config(tmp_path, judge_settings=settings, pairing={"strategy": "all"}), reparse=True)
    assert fakes.SENT == []
    assert written(tmp_path) == first


def test_turning_the_correction_on_pays_for_nothing(tmp_path: Path) -> None:
    leaning_run(tmp_path, "none")
    leaning_run(tmp_path, "position")
    assert fakes.SENT == []


def test_a_run_leaves_no_file_of_what_waited(tmp_path: Path) -> None:
    leaning_run(tmp_path, "none")
    names = {p.name for p in (tmp_path / "run").rglob("*")}
    leaning_run(tmp_path, "position")
    assert {p.name for p in (tmp_path / "run").rglob("*")} == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "text"}, "labels: text gives none"),
        ({"rationale": True, "clamp": True}, "clamp cuts them off"),
        ({"type": "score"}, "calibrate is for type: pairwise"),
    ],
)
def test_a_correction_that_could_do_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate({"models": ["scripted:m:o"], "calibrate": "position", **settings})


def test_hash_and_order_of_the_audit_sample_agree() -> None:
    drawn = [is_drawn(0, f"a{i}", f"b{i}", 0.5) for i in range(200)]
    assert drawn == [is_drawn(0, f"b{i}", f"a{i}", 0.5) for i in range(200)]
    assert 60 < sum(drawn) < 140
    assert uniform("audit", 0, "a0", "b0") == uniform("audit", 0, "a0", "b0")


def test_the_report_tells_of_the_preference_and_what_was_done(tmp_path: Path) -> None:
    leaning_run(tmp_path, "position", orders="both")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "gives the first place a probability of 0.924" in page
    assert "The pairs are made without that preference" in page
