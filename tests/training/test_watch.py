"""Each sign of a hacked reward is told when it is there, once, and not before; ordinary training is told nothing."""

import random
from collections.abc import Callable

import pytest

from rlaif.config.train.watch import WatchConfig
from rlaif.training.watch import Alarm, Watch, text_figures

USUAL = {
    "words": 50.0,
    "repeated": 0.05,
    "distinct": 0.5,
    "refused": 0.0,
    "cut_off": 0.1,
    "entropy": 2.0,
    "kl": 1.0,
}


def alarms(change: Callable[[int], dict[str, float]], steps: int = 60, **config: object) -> list[Alarm]:
    watch = Watch(WatchConfig.model_validate(config))
    noise = random.Random(0)
    found: list[Alarm] = []
    for step in range(steps):
        figures = {name: value * (1 + 0.1 * noise.uniform(-1, 1)) for name, value in USUAL.items()}
        found += watch.add(step, figures | change(step))
    return found


def test_ordinary_training_is_told_nothing() -> None:
    rising = alarms(lambda step: {"kl": step / 10}, steps=300)
    assert rising == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("length", {"words": 200.0}),
        ("length", {"words": 5.0}),
        ("length", {"words": 0.1}),
        ("repetition", {"repeated": 0.6}),
        ("diversity", {"distinct": 0.05}),
        ("refusals", {"refused": 0.9}),
        ("cut_off", {"cut_off": 0.8}),
        ("entropy", {"entropy": 0.1}),
        ("kl", {"kl": 40.0}),
    ],
)
def test_each_sign_is_told_once(rule: str, change: dict[str, float]) -> None:
    found = alarms(lambda step: change if step >= 30 else {}, kl=20)
    assert [a.rule for a in found] == [rule]
    assert 30 <= found[0].step < 45
    assert not found[0].stop


def test_a_sign_that_goes_and_comes_again_is_told_again() -> None:
    found = alarms(lambda step: {"words": 300.0} if step in range(20, 40) or step >= 70 else {}, steps=100)
    assert [a.rule for a in found] == ["length", "length"]


def test_a_rule_may_stop_and_null_switches_it_off() -> None:
    change: Callable[[int], dict[str, float]] = lambda step: {"words": 300.0} if step > 20 else {}  # noqa: E731
    assert [a.stop for a in alarms(change, stop=["length"])] == [True]
    assert alarms(change, length=None) == []


def test_a_figure_that_is_missing_or_no_number_is_not_judged() -> None:
    watch = Watch(WatchConfig())
    for step in range(50):
        assert watch.add(step, {"words": float("nan"), "entropy": float("inf")}) == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {"words": 0, "repeated": 0, "distinct": 0, "refused": 0}),
        (["", "  "], {"words": 0, "repeated": 0, "distinct": 0, "refused": 0}),
        (["a b c", "a b c"], {"words": 3, "repeated": 0, "distinct": 0.5, "refused": 0}),
        (["x x x x x"], {"words": 5, "repeated": 2 / 3, "distinct": 0.2, "refused": 0}),
        (["I cannot help with that.", "Sure: four."], {"refused": 0.5}),
    ],
)
def test_the_figures_of_texts(texts: list[str], expected: dict[str, float]) -> None:
    found = text_figures(texts)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
