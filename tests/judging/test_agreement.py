"""The coefficients and figures against numbers worked by hand, laws, and an independent bootstrap."""

import random
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.judging.agreement import (
    FIGURES,
    Choice,
    Label,
    Look,
    Pair,
    bootstrap,
    cohen_kappa,
    krippendorff_alpha,
    quantile,
    verdict_figures,
)

CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "invalid")
LABELS: tuple[Label, ...] = ("a", "b", "tie")


def pair(id_: str, label: Label, ab: Choice | None = None, ba: Choice | None = None) -> Pair:
    return Pair(id_, label, ab and Look(ab), ba and Look(ba))


def values(pairs: list[Pair]) -> dict[str, float | None]:
    return {name: e.value for name, e in verdict_figures(pairs, resamples=1).estimates.items()}


# ------------------------------------------------------------------------------------------------------ coefficients


def test_kappa_of_a_table_worked_by_hand() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: agreement 0.7, by chance 0.5*0.6 + 0.5*0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_is_1_for_the_same_and_minus_1_for_opposites_and_undefined_without_variation() -> None:
    assert cohen_kappa(["a", "b", "tie"], ["a", "b", "tie"]) == pytest.approx(1.0)
    assert cohen_kappa(["a", "b"], ["b", "a"]) == pytest.approx(-1.0)
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "a"], ["b", "b"]) == 0.0  # no agreement, and none expected
    with pytest.raises(ValueError, match="1 ratings against 2"):
        cohen_kappa(["a"], ["a", "b"])


def test_alpha_is_that_of_krippendorffs_own_example_with_missing_values() -> None:
    # Krippendorff (2011), example C: four observers, twelve units, nominal alpha 0.743.
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    raters = [[None if v == "." else v for v in row.split()] for row in rows]
    assert krippendorff_alpha(list(zip(*raters, strict=True))) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_raters_worked_by_hand() -> None:
    # Krippendorff (2011), example A: ten units, two observers, values 0 and 1, alpha 0.095.
    first, second = list("0100000010"), list("1110010000")
    assert krippendorff_alpha(list(zip(first, second, strict=True))) == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_undefined_where_nothing_can_disagree() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b", None]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None


@given(st.lists(st.tuples(st.sampled_from("abt"), st.sampled_from("abt")), min_size=1, max_size=40))
def test_coefficients_are_symmetric_bounded_and_blind_to_names(rated: list[tuple[str, str]]) -> None:
    first, second = [x for x, _ in rated], [y for _, y in rated]
    kappa = cohen_kappa(first, second)
    other = {"a": 7, "b": 8, "t": 9}
    renamed = cohen_kappa([other[x] for x in second], [other[y] for y in first])
    assert kappa == pytest.approx(renamed) if kappa is not None else renamed is None
    assert kappa is None or -1.0000001 <= kappa <= 1.0000001
    alpha = krippendorff_alpha(rated)
    assert alpha is None or alpha <= 1.0000001


# ----------------------------------------------------------------------------------------------------------- figures

# Ten pairs: label, verdict with a first, verdict with b first.
TEN: list[tuple[Label, Choice, Choice]] = [
    ("a", "a", "a"),
    ("a", "a", "a"),
    ("a", "a", "b"),
    ("a", "b", "b"),
    ("b", "b", "b"),
    ("b", "a", "b"),
    ("b", "a", "b"),
    ("b", "invalid", "b"),
    ("tie", "tie", "tie"),
    ("tie", "a", "invalid"),
]


def test_every_figure_of_ten_pairs_worked_by_hand() -> None:
    found = values([pair(str(i), *row) for i, row in enumerate(TEN)])
    assert found["accuracy_ab"] == pytest.approx(5 / 10)
    assert found["accuracy_ba"] == pytest.approx(7 / 10)
    assert found["accuracy"] == pytest.approx(12 / 20)
    assert found["both_right"] == pytest.approx(4 / 10)
    assert found["swap_consistency"] == pytest.approx(5 / 10)
    assert found["swap_consistency_valid"] == pytest.approx(5 / 8)
    assert found["invalid_rate"] == pytest.approx(2 / 20)
    assert found["tie_rate"] == pytest.approx(2 / 20)
    # With a first: a chosen 6 times of 8 decided. With b first: b chosen 6 times of 8 decided.
    assert found["first_position_rate"] == pytest.approx(12 / 16)
    # Verdicts a 8, b 8, tie 2, invalid 2; labels a 8, b 8, tie 4 of 20; 12 agree.
    chance = (8 * 8 + 8 * 8 + 2 * 4) / 400
    assert found["kappa"] == pytest.approx((0.6 - chance) / (1 - chance))
    # The orders together: right 2 + 1 (b) + 1 (tie); one half for the three ties of a decided label.
    assert found["accuracy_averaged"] == pytest.approx((4 + 3 / 2) / 10)


def test_an_invalid_verdict_is_never_right_nor_a_vote() -> None:
    found = values([pair(str(i), label, "invalid", "invalid") for i, label in enumerate(LABELS)])
    assert found["accuracy"] == found["accuracy_averaged"] == found["both_right"] == 0.0
    assert found["invalid_rate"] == 1.0
    assert found["first_position_rate"] is None
    assert found["swap_consistency_valid"] is None
    assert found["kappa"] == 0.0
    assert found["alpha"] is None


def test_a_judge_that_answers_only_the_easy_half_does_not_look_perfect() -> None:
    easy = [pair(str(i), "ab"[i % 2], "ab"[i % 2], "ab"[i % 2]) for i in range(10)]  # type: ignore[arg-type]
    hard = [pair(f"h{i}", "ab"[i % 2], "invalid", "invalid") for i in range(10)]  # type: ignore[arg-type]
    assert values(easy)["kappa"] == 1.0
    found = values(easy + hard)
    assert found["accuracy"] == 0.5
    assert found["kappa"] is not None
    assert found["kappa"] < 0.5


def test_a_judge_that_always_takes_the_first_is_seen_as_such() -> None:
    found = values([pair(str(i), "ab"[i % 2], "a", "b") for i in range(20)])  # type: ignore[arg-type]
    assert found["first_position_rate"] == 1.0
    assert found["swap_consistency"] == 0.0
    assert found["accuracy"] == found["accuracy_averaged"] == 0.5
    assert found["kappa"] == 0.0


def test_one_order_alone_gives_the_figures_that_it_can() -> None:
    found = values([pair("1", "a", "a"), pair("2", "b", "a")])
    assert found["accuracy_ab"] == found["accuracy"] == 0.5
    assert [found[n] for n in ("accuracy_ba", "swap_consistency", "both_right", "kappa_ba", "kappa_orders")] == [
        None
    ] * 5


def test_the_orders_together_go_by_the_mean_probability() -> None:
    leaning = Pair("1", "a", Look("a", 0.9), Look("b", 0.3))  # the orders disagree, the mean is for a
    assert leaning.together == "a"
    assert Pair("2", "a", Look("a", 0.7), Look("b", 0.3)).together == "tie"
    assert Pair("3", "a", Look("a"), Look("b")).together == "tie"
    assert Pair("4", "a", Look("a", 0.9), Look("invalid")).together == "invalid"
    assert values([leaning])["accuracy_averaged"] == 1.0


looks = st.none() | st.sampled_from(CHOICES)
rows = st.lists(st.tuples(st.sampled_from(LABELS), looks, looks).filter(lambda r: r[1:] != (None, None)), min_size=1)
MIRROR: dict[str | None, str | None] = {"a": "b", "b": "a", "tie": "tie", "invalid": "invalid", None: None}


@given(rows)
def test_exchanging_a_and_b_exchanges_the_orders_and_changes_nothing_else(
    rated: list[tuple[Label, Choice | None, Choice | None]],
) -> None:
    found = values([pair(str(i), *row) for i, row in enumerate(rated)])
    swapped = [pair(str(i), MIRROR[lab], MIRROR[ba], MIRROR[ab]) for i, (lab, ab, ba) in enumerate(rated)]  # type: ignore[arg-type]
    other = values(swapped)
    pairs_of_names = [(n, n.replace("_ab", "_BA").replace("_ba", "_ab").replace("_BA", "_ba")) for n in FIGURES]
    for name, twin in pairs_of_names:
        assert found[name] == (None if other[twin] is None else pytest.approx(other[twin]))


@given(rows)
def test_rates_are_shares_and_lie_inside_their_intervals(
    rated: list[tuple[Label, Choice | None, Choice | None]],
) -> None:
    figures = verdict_figures([pair(str(i), *row) for i, row in enumerate(rated)], resamples=40)
    for name, (value, low, high) in figures.estimates.items():
        if value is None:
            assert (low, high) == (None, None)
        elif "kappa" not in name and name != "alpha":
            assert 0 <= value <= 1
            assert low is not None
            assert high is not None
            assert 0 <= low <= high <= 1


# ---------------------------------------------------------------------------------------------------------- intervals


def test_the_interval_is_that_of_an_ordinary_bootstrap_over_pairs() -> None:
    generator = random.Random(7)
    pairs = []
    for i in range(300):
        first = generator.choices(["a", "b", "tie"], [5, 4, 1])[0]
        second = first if generator.random() < 0.6 else generator.choice(["a", "b"])
        pairs.append(pair(str(i), generator.choice(["a", "b"]), first, second))  # type: ignore[arg-type]
    figures = verdict_figures(pairs).estimates
    resampled: dict[str, list[float]] = {"accuracy": [], "kappa": [], "first_position_rate": [], "swap_consistency": []}
    for _ in range(600):
        drawn = values(generator.choices(pairs, k=len(pairs)))
        for name in resampled:
            resampled[name].append(drawn[name])  # type: ignore[arg-type]
    for name, found in resampled.items():
        value, low, high = figures[name]
        assert low is not None
        assert high is not None
        width = quantile(sorted(found), 0.975) - quantile(sorted(found), 0.025)
        assert high - low == pytest.approx(width, rel=0.12), name
        assert value == pytest.approx(statistics.mean(found), abs=0.1 * width), name


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = random.Random(3)
    covered = 0
    for _ in range(200):
        kinds = Counter(generator.random() < 0.7 for _ in range(80))
        found = bootstrap(kinds, lambda k: {"rate": k[True] / sum(k.values())}, resamples=200)["rate"]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_the_same_verdicts_give_the_same_intervals_in_any_order_of_lines() -> None:
    pairs = [pair(str(i), *row) for i, row in enumerate(TEN)]
    assert verdict_figures(pairs).report() == verdict_figures(list(reversed(pairs))).report()


def test_the_report_has_the_names_of_the_contract_each_rate_with_its_ends() -> None:
    report = verdict_figures([pair(str(i), *row) for i, row in enumerate(TEN)], resamples=20).report()
    rates = ["accuracy_ab", "accuracy_ba", "accuracy", "swap_consistency", "kappa", "invalid_rate"]
    for name in [*rates, "first_position_rate"]:
        assert {name, f"{name}_low", f"{name}_high"} <= report.keys()
    assert report["pairs"] == 10
