"""What a card and recorded verdicts say of a judge's preference for a position, before and after."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.judge import judge as command
from rlaif.judges.position import probability
from rlaif.judging import read_pairs
from rlaif.judging.agreement import Look, Pair
from rlaif.judging.position import position_report, recorded_prior, without_prior
from tests.judging.test_card import run

BIAS = 3.0


def pairs(bias: float = BIAS, n: int = 60) -> list[Pair]:
    """Of a judge that knows better and leans to what is shown first by more than that."""
    made = []
    for i in range(n):
        opinion = 1.0 if i % 2 else -1.0
        ab, ba = probability(opinion + bias), probability(opinion - bias)
        looks = (Look("a" if p > 0.5 else "b", p) for p in (ab, ba))
        made.append(Pair(str(i), "a" if i % 2 else "b", *looks))
    return made


def test_recorded_verdicts_are_right_without_the_preference() -> None:
    recorded = pairs()
    prior = recorded_prior(recorded)
    report = position_report(prior, recorded, without_prior(recorded, prior))
    assert report["prior"]["p_first"] == pytest.approx(probability(BIAS), abs=1e-5)
    assert report["before"]["swap_consistency"]["value"] == 0.0
    assert report["before"]["accuracy"]["value"] == 0.5
    assert report["after"]["swap_consistency"]["value"] == 1.0
    assert report["after"]["accuracy"]["value"] == 1.0
    assert report["after"]["kappa"]["value"] == 1.0


@pytest.mark.parametrize(("bias", "n", "why"), [(BIAS, 29, "30 are needed"), (0.0, 60, "no preference")])
def test_where_nothing_can_be_measured_nothing_changes_and_the_report_says_why(bias: float, n: int, why: str) -> None:
    recorded = pairs(bias, n)
    prior = recorded_prior(recorded)
    assert without_prior(recorded, prior) == recorded
    report = position_report(prior, recorded, recorded)
    assert why in report["why_not"]
    assert report["after"] is None


def test_verdicts_without_probabilities_have_no_prior_to_take_out() -> None:
    recorded = [Pair(str(i), "a", Look("a"), Look("b")) for i in range(50)]
    assert recorded_prior(recorded).questions == 0


def test_the_command_tells_it_as_json_and_in_words(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    lines = [
        {"id": p.id, "order": order, "verdict": look.verdict, "p_a": look.p_a, "label": p.label}
        for p in pairs()
        for order, look in (("ab", p.ab), ("ba", p.ba))
        if look is not None
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = json.loads(CliRunner().invoke(command, ["stats", str(file), "--json"]).output)
    assert report["position"]["after"]["accuracy"]["value"] == 1.0
    assert report["accuracy"] == 0.5  # the figures themselves are of what was recorded
    said = CliRunner().invoke(command, ["stats", str(file)]).output
    assert "probability of the first place whatever stands there: 0.953" in said
    assert "swap_consistency without it: 0.000 -> 1.000" in said


def leaning_card(tmp_path: Path, **judge: Any) -> Any:
    return run(tmp_path, "leans_by_odds", logprobs=True, judge=judge)


def test_a_card_tells_the_prior_and_the_figures_without_it_and_stays_as_the_judge_said(tmp_path: Path) -> None:
    card = leaning_card(tmp_path)
    position = card.report["position"]
    assert position["prior"]["p_first"] == pytest.approx(probability(5.0), abs=1e-5)
    assert card.report["first_position_rate"] > 0.85
    assert position["before"]["accuracy"]["value"] == card.report["accuracy"] < 0.65
    assert position["after"]["accuracy"]["value"] == 1.0
    page = (tmp_path / "card" / "card.html").read_text(encoding="utf-8")
    assert "measured without the labels" in page


def test_a_card_of_a_calibrated_judge_is_about_the_corrected_verdicts(tmp_path: Path) -> None:
    card = leaning_card(tmp_path, calibrate="position")
    assert card.report["accuracy"] == card.kappa == 1.0
    assert {look.verdict for p in read_pairs(tmp_path / "card" / "verdicts.jsonl") for look in p.looks} == {"a", "b"}
    again = run(tmp_path, "leans_by_odds", logprobs=True, judge={"calibrate": "position"})
    assert again.report["position"] == card.report["position"]


def test_a_judge_without_probabilities_has_no_prior_on_its_card(tmp_path: Path) -> None:
    card = run(tmp_path, "right", judge={"labels": "text"})
    assert set(card.report["position"]) == {"mean_p_first"}
