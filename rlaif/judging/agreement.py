"""How far a judge agrees with people, with the other order, and with itself: pure functions of recorded verdicts.

The figures of `VerdictFigures`, exactly. A *look* is one verdict in one order; a *pair* has one or two looks.

* ``accuracy_ab``, ``accuracy_ba``: share of that order's looks whose verdict is the label. A tie is right where the
  label is a tie and wrong otherwise. **An invalid verdict is never right, and stays in the denominator**: a judge that
  answers only what is easy gains nothing.
* ``accuracy``: mean over pairs of the share of the pair's looks that are right. Where every pair was shown in both
  orders it is the mean of the two rates above.
* ``both_right``: share of the pairs shown in both orders with both looks right.
* ``swap_consistency``: share of the pairs shown in both orders whose two verdicts are the same word. No verdict twice
  is the same word (the count of LLMBar, Zeng et al. 2023); ``swap_consistency_valid`` leaves out pairs with an invalid
  verdict.
* ``kappa``: Cohen's, of the verdict and the label over all looks. An invalid verdict is a category that no label has,
  so it is a disagreement here too. ``kappa_ab``, ``kappa_ba``: in one order. ``kappa_orders``: of the two orders with
  each other, over pairs with two valid verdicts.
* ``alpha``: Krippendorff's for nominal data, of the verdict and the label over all looks; an invalid verdict is a
  missing value.
* ``accuracy_averaged``: of the verdict that both orders make together (`Pair.together`: the side with the larger mean
  probability). A tie counts one half against a decided label, as a coin would; a pair with an invalid look counts 0.
* ``invalid_rate``, ``tie_rate``: of all looks. ``first_position_rate``: of the looks that chose a side, those that
  chose the response shown first; 0.5 is no preference.

A figure is None where it has no denominator (no pair in that order; a kappa without any variation).

Intervals are 95 % percentile intervals of the Bayesian bootstrap over pairs (Rubin 1981): every pair gets a weight
drawn from Exp(1) instead of a multinomial count. The two looks of a pair stay together. The sum of c such weights is
Gamma(c), and all figures depend only on how many pairs look alike, so a resample draws one number for each *kind* of
pair and costs the same for 100 pairs and for 100,000. Like any bootstrap it knows nothing that the sample does not
show: where all pairs are right the interval has no width, and that is no certainty.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

Choice = Literal["a", "b", "tie", "invalid"]
Label = Literal["a", "b", "tie"]
Kind = TypeVar("Kind", bound=Hashable)

RESAMPLES = 2000
SEED = 0
_EPSILON = 1e-9  # two orders that lean apart by the same amount are a tie, whatever their rounding


class Look(NamedTuple):
    """One verdict about a and b themselves (un-swapped). ``p_a``: probability that a is better, where one was given."""

    verdict: Choice
    p_a: float | None = None

    @property
    def probability(self) -> float | None:
        """``p_a``, or 1, 0.5 or 0 by the verdict where none was given; None for an invalid verdict."""
        if self.verdict == "invalid":
            return None
        return self.p_a if self.p_a is not None else {"a": 1.0, "b": 0.0, "tie": 0.5}[self.verdict]


@dataclass(frozen=True, slots=True)
class Pair:
    """A labelled pair and the looks at it. ``ab``: a was shown first. Ids of pairs are unique."""

    id: str
    label: Label
    ab: Look | None = None
    ba: Look | None = None

    @property
    def looks(self) -> list[Look]:
        return [look for look in (self.ab, self.ba) if look is not None]

    @property
    def probability(self) -> float | None:
        """Mean probability that a is better, over the orders seen; None as soon as one of them is invalid."""
        found = [look.probability for look in self.looks]
        known = [p for p in found if p is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    @property
    def contrary(self) -> int:
        """How many looks choose the side to which they give the smaller probability: a sign of a swap half undone."""
        known = [(look.verdict, look.p_a) for look in self.looks if look.p_a is not None]
        return sum((verdict == "a" and p < 0.5) or (verdict == "b" and p > 0.5) for verdict, p in known)

    @property
    def together(self) -> Choice:
        """The verdict of all orders seen: by the mean probability."""
        p = self.probability
        if p is None:
            return "invalid"
        return "tie" if abs(p - 0.5) < _EPSILON else "a" if p > 0.5 else "b"


# ------------------------------------------------------------------------------------------------------ coefficients


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two raters who rated the same items (Cohen 1960): agreement beyond what their own marginal rates
    would give by chance. None without items, or where both always say the same one thing."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} ratings against {len(second)}")
    return kappa_of(Counter(zip(first, second, strict=True)))


def kappa_of(confusion: Mapping[tuple[Hashable, Hashable], float]) -> float | None:
    """Cohen's kappa of a confusion table: (first's rating, second's) -> weight."""
    total = math.fsum(confusion.values())
    if total <= 0:
        return None
    rows: dict[Hashable, float] = {}
    columns: dict[Hashable, float] = {}
    agreed = 0.0
    for (x, y), weight in confusion.items():
        rows[x] = rows.get(x, 0.0) + weight
        columns[y] = columns.get(y, 0.0) + weight
        agreed += weight if x == y else 0.0
    by_chance = sum(weight * columns.get(x, 0.0) for x, weight in rows.items()) / total**2
    return None if by_chance >= 1.0 else (agreed / total - by_chance) / (1.0 - by_chance)


def krippendorff_alpha(units: Iterable[Sequence[Hashable | None]]) -> float | None:
    """Krippendorff's alpha for nominal data: ``units`` are the items, each with the values its raters gave (None:
    missing; any number of raters, in any order). Units with fewer than two values are left out. None where nothing
    can be compared or all values are one. Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"."""
    coincidences: Counter[tuple[Hashable, Hashable]] = Counter()
    for unit in units:
        values = Counter(value for value in unit if value is not None)
        m = values.total()
        if m < 2:
            continue
        for x, n in values.items():
            for y, k in values.items():
                coincidences[x, y] += n * (k - (x == y)) / (m - 1)  # type: ignore[assignment]
    return alpha_of(coincidences)


def alpha_of(coincidences: Mapping[tuple[Hashable, Hashable], float]) -> float | None:
    """Krippendorff's alpha (nominal) of a coincidence matrix: (value, value) -> weight, symmetric."""
    margins: dict[Hashable, float] = {}
    for (x, _), weight in coincidences.items():
        margins[x] = margins.get(x, 0.0) + weight
    n = math.fsum(margins.values())
    expected = n**2 - sum(m**2 for m in margins.values())
    if n <= 1 or expected <= 1e-12 * n**2:
        return None
    observed = sum(weight for (x, y), weight in coincidences.items() if x != y)
    return 1.0 - (n - 1) * observed / expected


# ---------------------------------------------------------------------------------------------------------- bootstrap


class Estimate(NamedTuple):
    """A figure and its 95 % interval; the ends are None where no resample defines it."""

    value: float | None
    low: float | None = None
    high: float | None = None


Figures = Callable[[Mapping[Kind, float]], Mapping[str, float | None]]


def bootstrap(
    kinds: Mapping[Kind, int], figures: Figures[Kind], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Estimate]:
    """Each figure of ``figures(kinds)`` with its interval.

    ``kinds``: how many pairs there are of each kind, where pairs of a kind are alike to ``figures``, which must take
    weights for counts. The same input gives the same intervals, in whatever order it comes.
    """
    draw = random.Random(seed)
    ordered = sorted(kinds.items(), key=lambda item: repr(item[0]))
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        weights = {kind: draw.gammavariate(count, 1.0) for kind, count in ordered if count}
        for name, value in figures(weights).items():
            if value is not None:
                drawn.setdefault(name, []).append(value)
    return {name: Estimate(value, *_ends(drawn.get(name, []), value)) for name, value in figures(kinds).items()}


def _ends(values: list[float], value: float | None) -> tuple[float | None, float | None]:
    if not values or value is None:
        return None, None
    values.sort()
    # The estimate belongs to its interval: in a handful of pairs a kappa's resamples may all lie to one side of it.
    low, high = min(quantile(values, 0.025), value), max(quantile(values, 0.975), value)
    # Rounding may put a resample of a constant a hair beside it.
    return (
        value if math.isclose(low, value, abs_tol=1e-12) else low,
        value if math.isclose(high, value, abs_tol=1e-12) else high,
    )


def quantile(ordered: Sequence[float], q: float) -> float:
    """The ``q`` quantile of sorted numbers, linear between neighbours."""
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# ---------------------------------------------------------------------------------------------- figures of verdicts


class _Kind(NamedTuple):
    """What the figures know of a pair."""

    ab: Choice | None
    ba: Choice | None
    together: Choice
    label: Label


FIGURES = (
    "accuracy_ab",
    "accuracy_ba",
    "accuracy",
    "swap_consistency",
    "kappa",
    "invalid_rate",
    "first_position_rate",
    "tie_rate",
    "both_right",
    "accuracy_averaged",
    "swap_consistency_valid",
    "kappa_ab",
    "kappa_ba",
    "kappa_orders",
    "alpha",
)


@dataclass(frozen=True)
class VerdictFigures:
    """The figures named in the module's docstring, by name. ``pairs`` and ``looks``: how many there are."""

    pairs: int
    looks: int
    estimates: Mapping[str, Estimate]

    def report(self) -> dict[str, float | int | None]:
        """``pairs``, then each figure followed by its ``_low`` and ``_high``."""
        made: dict[str, float | int | None] = {"pairs": self.pairs, "looks": self.looks}
        for name in FIGURES:
            estimate = self.estimates[name]
            made |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return made


def verdict_figures(pairs: Iterable[Pair], *, resamples: int = RESAMPLES, seed: int = SEED) -> VerdictFigures:
    """All figures of recorded verdicts, with intervals. Reads ``pairs`` once and keeps none of them."""
    kinds = Counter(
        _Kind(p.ab.verdict if p.ab else None, p.ba.verdict if p.ba else None, p.together, p.label) for p in pairs
    )
    looks = sum(count * ((kind.ab is not None) + (kind.ba is not None)) for kind, count in kinds.items())
    return VerdictFigures(kinds.total(), looks, bootstrap(kinds, _figures, resamples=resamples, seed=seed))


class _Share:
    """A weighted share: of what was counted, what held."""

    __slots__ = ("held", "of")

    def __init__(self) -> None:
        self.held = self.of = 0.0

    def add(self, held: float, weight: float) -> None:
        self.held += held * weight
        self.of += weight

    @property
    def value(self) -> float | None:
        return self.held / self.of if self.of > 0 else None


def _figures(kinds: Mapping[_Kind, float]) -> dict[str, float | None]:
    shares = {name: _Share() for name in FIGURES if "kappa" not in name and name != "alpha"}
    by_order: dict[str, dict[tuple[Hashable, Hashable], float]] = {"ab": {}, "ba": {}}
    orders: dict[tuple[Hashable, Hashable], float] = {}
    for (ab, ba, together, label), weight in kinds.items():
        right = []
        for order, said in (("ab", ab), ("ba", ba)):
            if said is None:
                continue
            right.append(said == label)
            shares[f"accuracy_{order}"].add(right[-1], weight)
            shares["invalid_rate"].add(said == "invalid", weight)
            shares["tie_rate"].add(said == "tie", weight)
            if said in ("a", "b"):
                shares["first_position_rate"].add(said == order[0], weight)
            table = by_order[order]
            table[said, label] = table.get((said, label), 0.0) + weight
        if right:
            shares["accuracy"].add(sum(right) / len(right), weight)
            shares["accuracy_averaged"].add(agreement(together, label), weight)
        if ab is not None and ba is not None:
            shares["swap_consistency"].add(ab == ba, weight)
            shares["both_right"].add(all(right), weight)
            if "invalid" not in (ab, ba):
                shares["swap_consistency_valid"].add(ab == ba, weight)
                orders[ab, ba] = orders.get((ab, ba), 0.0) + weight
    both = Counter(by_order["ab"])
    both.update(by_order["ba"])
    found = {name: share.value for name, share in shares.items()}
    return found | {
        "kappa": kappa_of(both),
        "kappa_ab": kappa_of(by_order["ab"]),
        "kappa_ba": kappa_of(by_order["ba"]),
        "kappa_orders": kappa_of(orders),
        "alpha": alpha_of(_coincidences(both)),
    }


def agreement(verdict: Choice, label: Label) -> float:
    """1 where they are the same, one half for a tie against a decided label, else 0."""
    if verdict == label:
        return 1.0
    return 0.5 if verdict == "tie" else 0.0


def _coincidences(confusion: Mapping[tuple[Hashable, Hashable], float]) -> dict[tuple[Hashable, Hashable], float]:
    """Of two raters, invalid verdicts left out: each item counts once in either direction."""
    found: dict[tuple[Hashable, Hashable], float] = {}
    for (x, y), weight in confusion.items():
        if x != "invalid":
            found[x, y] = found.get((x, y), 0.0) + weight
            found[y, x] = found.get((y, x), 0.0) + weight
    return found
