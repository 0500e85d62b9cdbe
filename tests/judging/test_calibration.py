"""Calibration against bins worked by hand, and judges whose calibration is known."""

import random

import pytest

from rlaif.judging.agreement import Look, Pair
from rlaif.judging.calibration import Stated, averaged_stated, expected_calibration_error, looks_stated, reliability


def test_bins_and_error_worked_by_hand() -> None:
    stated = [
        Stated(0.92, "a"),  # confident and right
        Stated(0.06, "a"),  # confident and wrong (0.94 for b)
        Stated(0.6, "b"),  # wrong
        Stated(0.38, "b"),  # right, confidence 0.62
        Stated(1.0, "tie"),  # half right, in the last bin
    ]
    bins = {round(b.low, 2): b for b in reliability(stated)}
    assert bins[0.9].n == 2
    assert bins[0.9].confidence == pytest.approx(0.93)
    assert bins[0.9].accuracy == pytest.approx(0.5)
    assert bins[0.6].n == 2
    assert bins[0.6].accuracy == pytest.approx(0.5)
    assert bins[0.95].accuracy == 0.5
    assert bins[0.5].accuracy is None
    assert sum(b.n for b in bins.values()) == 5
    # (2 * |0.93 - 0.5| + 2 * |0.61 - 0.5| + 1 * |1 - 0.5|) / 5
    assert expected_calibration_error([[s] for s in stated]).value == pytest.approx((0.86 + 0.22 + 0.5) / 5)


def test_a_judge_who_is_right_as_often_as_it_says_has_almost_no_error_and_a_boaster_much() -> None:
    generator = random.Random(0)
    honest, boaster = [], []
    for _ in range(4000):
        p = generator.uniform(0.5, 1)
        label = "a" if generator.random() < p else "b"
        honest.append([Stated(p, label)])  # type: ignore[arg-type]
        boaster.append([Stated(0.99, label)])  # type: ignore[arg-type]
    good, bad = (expected_calibration_error(g, resamples=200) for g in (honest, boaster))
    assert good.value is not None
    assert good.value < 0.03
    assert bad.value == pytest.approx(0.99 - 0.75, abs=0.02)
    assert bad.low is not None
    assert bad.high is not None
    assert bad.low < 0.24 < bad.high


def test_what_a_pair_states() -> None:
    pair = Pair("1", "a", Look("a", 0.9), Look("b", 0.4))
    assert [s.p_a for s in looks_stated(pair)] == [0.9, 0.4]
    assert [s.p_a for s in averaged_stated(pair)] == [pytest.approx(0.65)]
    words = Pair("2", "a", Look("a"), Look("b"))  # verdicts without probabilities state none
    assert looks_stated(words) == averaged_stated(words) == []
    assert averaged_stated(Pair("3", "a", Look("a", 0.9), Look("invalid"))) == []
    assert expected_calibration_error([]).value is None
