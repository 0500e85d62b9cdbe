"""The figures, the chance of a false discovery and the choice, by hand and as laws."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.learning.votes import KeepRule, Signs, beats_chance, chance, choose, figures, together, turned

VOTES = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])), min_size=1, max_size=30)


def prompts(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_the_figures_of_a_handful_of_votes() -> None:
    found = figures([1.0, 0.9, 0.51, 0.2, 0.5, None], prompts(6))
    assert (found.n, found.right, found.wrong, found.unjudged) == (6, 3, 1, 1)
    assert found.accuracy.value == 0.75
    assert found.coverage.value == pytest.approx(4 / 6)
    assert found.accuracy.low is not None
    assert found.accuracy.high is not None
    assert found.accuracy.low < 0.75 < found.accuracy.high


def test_a_missing_verdict_is_neither_right_nor_wrong_nor_half() -> None:
    found = figures([None, None], prompts(2))
    assert (found.right, found.wrong, found.unjudged) == (0, 0, 2)
    assert found.accuracy.value is None
    assert found.coverage.value == 0.0


@pytest.mark.parametrize(
    ("right", "wrong", "beats"),
    [(1, 0, False), (5, 0, False), (6, 0, True), (0, 0, False), (55, 45, False), (65, 35, True), (35, 65, False)],
)
def test_a_few_right_votes_do_not_beat_chance(right: int, wrong: int, beats: bool) -> None:
    assert beats_chance(figures([*[1.0] * right, *[0.0] * wrong, 0.5], prompts(right + wrong + 1))) is beats


def test_many_pairs_of_one_prompt_are_no_more_evidence_than_one() -> None:
    votes = [1.0] * 12 + [0.0] * 4
    apart = figures(votes, prompts(16)).accuracy
    at_once = figures(votes, ["a"] * 12 + ["b"] * 4).accuracy
    assert apart.low is not None
    assert at_once.low is not None
    assert at_once.low < apart.low


@given(VOTES)
def test_the_opposite_has_right_and_wrong_exchanged(votes: list[float | None]) -> None:
    one, two = Signs(votes), Signs(turned(votes))
    assert (one.right, one.wrong) == (two.wrong, two.right)
    assert one.score() == -two.score()
    assert turned(turned(votes)) == votes


@given(VOTES, st.integers(0, 2**30 - 1))
def test_turning_labels_is_turning_votes(votes: list[float | None], mask: int) -> None:
    shuffled = [
        v if v is None or not mask >> i & 1 else 1 - v for i, v in enumerate(votes)
    ]  # fmt: skip
    assert Signs(votes).score(mask) == pytest.approx(Signs(shuffled).score())


def test_principles_together_say_the_mean_and_nothing_where_one_has_no_verdict() -> None:
    assert together([[1.0, 0.6, None], [0.0, 0.6, 1.0]]) == [0.5, 0.6, None]
    assert together([]) == []


def test_the_better_explanation_is_the_less_likely_by_chance() -> None:
    rng = random.Random(0)
    votes: dict[str, list[float | None]] = {
        f"decoy {i}": [rng.choice((0.0, 1.0)) for _ in range(60)] for i in range(20)
    }
    votes["planted"] = [float(rng.random() < 0.85) for _ in range(60)]
    votes["silent"] = [0.5] * 60
    found = chance(votes, prompts(60), 0)
    assert found["planted"] == min(found.values()) == 0.001
    assert found["silent"] > 0.9
    assert min(p for name, p in found.items() if name != "planted") > 0.05


def test_a_few_lucky_pairs_do_not_qualify() -> None:
    votes: dict[str, list[float | None]] = {"rare": [*[1.0] * 3, *[0.5] * 57]}
    assert chance(votes, prompts(60), 0)["rare"] > 0.05


def test_pairs_of_one_prompt_are_turned_round_together() -> None:
    votes: dict[str, list[float | None]] = {"one prompt": [1.0] * 40}
    assert chance(votes, ["same"] * 40, 0)["one prompt"] > 0.4
    assert chance(votes, prompts(40), 0)["one prompt"] == 0.001


def test_discoveries_among_labels_that_mean_nothing_are_rare() -> None:
    """3 of 60 data sets are expected to let one of 20 candidates qualify; more than 8 would be one in 200."""
    found = 0
    for seed in range(60):
        rng = random.Random(seed)
        votes: dict[str, list[float | None]] = {
            str(c): [rng.choice((0.0, 0.5, 1.0, 1.0, 0.0)) for _ in range(40)] for c in range(20)
        }
        found += min(chance(votes, prompts(40), seed).values()) <= 0.05
    assert found <= 8


# ----------------------------------------------------------------------------------------------------------- choice


def chosen(
    votes: dict[str, list[float | None]], *, programs: tuple[str, ...] = (), **rule: object
) -> list[tuple[str, int]]:
    return list(choose(votes, dict.fromkeys(votes, 0.01), frozenset(programs), KeepRule.model_validate(rule)).kept)


def test_what_adds_nothing_is_not_kept() -> None:
    a: list[float | None] = [*[1.0] * 6, *[0.5] * 4]
    b: list[float | None] = [*[0.5] * 6, *[1.0] * 3, 0.5]
    assert chosen({"a": a, "like a": list(a), "b": b}) == [("like a", 6), ("b", 9)]


def test_on_a_tie_the_program_is_kept() -> None:
    a: list[float | None] = [1.0] * 6
    assert chosen({"wording": a, "a program": list(a)}, programs=("a program",)) == [("a program", 6)]
    only = choose(
        {"wording": a, "p": list(a)}, {"wording": 0.01, "p": 0.01}, frozenset({"p"}), KeepRule(programs=False)
    )
    assert only.names == ("wording",)


def test_what_does_not_qualify_is_not_kept_however_much_it_adds() -> None:
    a: list[float | None] = [1.0] * 6
    assert choose({"a": a}, {"a": 0.051}, frozenset(), KeepRule()).kept == ()


def test_no_more_are_kept_than_asked_for_and_none_for_less_than_the_gain() -> None:
    votes: dict[str, list[float | None]] = {
        str(i): [1.0 if i * 5 <= j < i * 5 + 5 else 0.5 for j in range(40)] for i in range(8)
    }
    assert len(chosen(votes)) == 8
    assert len(chosen(votes, most=3)) == 3
    assert chosen(votes, min_gain=0.2) == []
