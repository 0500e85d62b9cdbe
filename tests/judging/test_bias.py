"""Biases of judges whose bias is known, and the length-controlled rate on data made by its own model."""

import gzip
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from rlaif.judging.bias import Traits, bias_counts, bias_figures, has_list, length_controlled_win_rate, traits, win_rate

DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- one\n- two", True),
        ("Steps:\n 1. one\n 2) two", True),
        ("* one\n\n* two", True),
        ("- only one", False),
        ("a - b\nc * d", False),
        ("-5 degrees\n-6 degrees", False),
        ("2023. was a year\n", False),
        ("", False),
    ],
)
def test_a_list_has_two_items(text: str, expected: bool) -> None:
    assert has_list(text) is expected


def test_the_traits_of_a_pair() -> None:
    assert traits("a", "b", "- x\n- y", "long enough to win", own="b") == Traits("a", "b", "b", "a", "b")
    assert traits("tie", "tie", "ab", "cd") == Traits("tie", "tie", None, None, None)


def test_a_judge_that_takes_the_longer_is_found_out_where_people_do_not() -> None:
    # People prefer the longer in 6 of 10, the judge in all.
    pairs = [Traits("a", "a" if i < 6 else "b", longer="a") for i in range(10)]
    found = {name: e.value for name, e in bias_figures(pairs, resamples=20).items()}
    assert found["longer_rate"] == 1.0
    assert found["longer_rate_label"] == pytest.approx(0.6)
    assert found["longer_bias"] == pytest.approx(0.4)
    assert found["verbosity_bias"] == 1.0  # always right where people prefer the longer, never where the shorter
    assert found["list_rate"] is found["self_bias"] is None


def test_a_judge_that_agrees_with_people_has_no_bias_whatever_people_like() -> None:
    pairs = [Traits(side, side, longer="a", listed="b", own="a") for side in ("a", "a", "a", "b")]
    found = {name: e.value for name, e in bias_figures(pairs, resamples=20).items()}
    assert [found[n] for n in ("longer_bias", "list_bias", "self_bias", "verbosity_bias")] == [0, 0, 0, 0]
    assert found["longer_rate"] == 0.75


def test_pairs_without_a_decision_are_no_evidence_of_a_preference() -> None:
    pairs = [Traits("tie", "a", longer="a"), Traits("invalid", "a", longer="a"), Traits("a", "tie", longer="a")]
    assert bias_counts(pairs) == {"longer": 0, "list": 0, "self": 0}
    assert bias_figures(pairs, resamples=2)["longer_rate"].value is None


def test_the_glm_recovers_the_truth_it_was_made_from() -> None:
    generator = random.Random(1)
    lengths = [
        (max(1, round(generator.gauss(900, 300))), max(1, round(generator.gauss(1100, 300)))) for _ in range(4000)
    ]
    d = [a - b for a, b in lengths]
    mean = sum(d) / len(d)
    spread = math.sqrt(sum((x - mean) ** 2 for x in d) / len(d))
    won = [float(generator.random() < 1 / (1 + math.exp(-(0.5 + 1.5 * math.tanh(x / spread))))) for x in d]
    found = length_controlled_win_rate(won, lengths, resamples=20)
    truth = 1 / (1 + math.exp(-0.5))
    assert found.raw == pytest.approx(sum(won) / len(won))
    assert found.raw < truth - 0.05  # shorter on average, so beaten more often than deserved
    assert found.controlled == pytest.approx(truth, abs=0.03)
    assert found.low < found.controlled < found.high
    assert found.slope == pytest.approx(1.5, abs=0.25)


def test_without_any_difference_in_length_nothing_is_corrected() -> None:
    found = length_controlled_win_rate([1, 1, 1, 0] * 50, [(10, 10)] * 200, resamples=20)
    assert found.raw == 0.75
    assert found.controlled == pytest.approx(0.75, abs=1e-3)
    assert found.slope == 0


def test_a_win_that_length_alone_decides_does_not_break_the_fit() -> None:
    found = length_controlled_win_rate([1, 0] * 20, [(200, 100), (100, 200)] * 20, resamples=5)
    assert found.controlled == pytest.approx(0.5)
    assert math.isfinite(found.slope)
    with pytest.raises(ValueError, match="0 preferences"):
        length_controlled_win_rate([], [])


@pytest.mark.skipif(not (DATA / "judge_logs").is_dir(), reason=f"no data in {DATA}; set RLAIF_DATA")
def test_alpaca_evals_win_rates_are_reproduced_and_the_twins_come_closer_when_length_is_controlled() -> None:
    import csv

    def rows(name: str) -> list[dict[str, Any]]:
        with gzip.open(DATA / "judge_logs" / name, "rb") as lines:
            return [json.loads(line) for line in lines]

    def leaderboard(name: str) -> dict[str, dict[str, str]]:
        with (DATA / "judge_logs" / name).open(encoding="utf-8", newline="") as file:
            return {row[""]: row for row in csv.DictReader(file)}

    texts = {(r["generator"], r["instruction"]): r["output"] for r in rows("alpaca_eval_outputs.jsonl.gz")}
    controlled = {}
    for log, board in (
        ("alpaca_eval1_gpt4_annotations.jsonl.gz", "alpaca_eval1_gpt4_leaderboard.csv"),
        ("alpaca_eval2_gpt4turbo_logprob_annotations.jsonl.gz", "alpaca_eval2_gpt4turbo_leaderboard.csv"),
    ):
        published, annotations = leaderboard(board), rows(log)
        for model in {r["generator_2"] for r in annotations}:
            kept = [r for r in annotations if r["generator_2"] == model and r["preference"] is not None]
            won = [0.5 if r["preference"] == 0 else r["preference"] - 1 for r in kept]  # 0 and 1.5: a draw
            assert 100 * win_rate(won) == pytest.approx(float(published[model]["win_rate"]), rel=1e-13), model
            assert len(won) == int(published[model]["n_total"])
            if "eval2" in log:
                pairs = [(len(texts[r["generator_2"], r["instruction"]]), r) for r in kept]
                lengths = [(n, len(texts[r["generator_1"], r["instruction"]])) for n, r in pairs]
                controlled[model] = length_controlled_win_rate(won, lengths, resamples=2)
    concise, verbose = (controlled[f"gpt-3.5-turbo-1106_{kind}"] for kind in ("concise", "verbose"))
    assert abs(verbose.controlled - concise.controlled) < 0.6 * abs(verbose.raw - concise.raw)
