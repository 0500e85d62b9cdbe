"""What a judge likes besides quality: the longer response, the one with a list, its own.

A preference for length is no bias where people share it. So each rate comes with the rate of the labels on the very
same pairs, and what is called a bias is the difference of the two. All of it is about the verdict both orders make
together, on pairs where that verdict and the label both choose a side and exactly one response has the trait.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.judging.agreement import Choice, Estimate, Label, Pair, bootstrap, quantile

Side = Literal["a", "b"]

_ITEM = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)


def has_list(text: str) -> bool:
    """Whether ``text`` has at least two lines that are items of a bulleted or numbered list."""
    items = _ITEM.finditer(text)
    return next(items, None) is not None and next(items, None) is not None


class Traits(NamedTuple):
    """Which response of a pair is the longer (in characters), the only one with a list, the only one the judge's own
    model wrote; None where neither or both. ``together``: the verdict of all orders."""

    together: Choice
    label: Label
    longer: Side | None = None
    listed: Side | None = None
    own: Side | None = None


def traits(together: Choice, label: Label, a: str, b: str, own: Side | None = None) -> Traits:
    """The traits of a pair from its texts."""
    return Traits(together, label, _the_one(len(a), len(b)), _the_one(has_list(a), has_list(b)), own)


def _the_one(a: int, b: int) -> Side | None:
    return None if a == b else "a" if a > b else "b"


def bias_figures(pairs: Sequence[Traits], *, resamples: int = 2000) -> dict[str, Estimate]:
    """For the traits "longer", "list" and "self": ``T_rate`` (the judge prefers the response with it), ``T_rate_label``
    (people do) and ``T_bias``, their difference. And ``verbosity_bias``: accuracy where people prefer the longer minus
    accuracy where they prefer the shorter (Saito et al. 2023, "Verbosity Bias in Preference Labeling by LLMs")."""
    return bootstrap(Counter(pairs), _figures, resamples=resamples)


def bias_counts(pairs: Sequence[Traits]) -> dict[str, int]:
    """How many pairs each of `bias_figures` rests on."""
    decided = [p for p in pairs if p.together in ("a", "b") and p.label != "tie"]
    return {name: sum(getattr(p, field) is not None for p in decided) for name, field in _TRAITS.items()}


_TRAITS = {"longer": "longer", "list": "listed", "self": "own"}


def _figures(pairs: Mapping[Traits, float]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    decided = {p: w for p, w in pairs.items() if p.together in ("a", "b") and p.label != "tie"}
    for name, field in _TRAITS.items():
        with_it = [(p, getattr(p, field), w) for p, w in decided.items() if getattr(p, field) is not None]
        judge = _mean([(p.together == side, w) for p, side, w in with_it])
        people = _mean([(p.label == side, w) for p, side, w in with_it])
        bias = None if judge is None or people is None else judge - people
        found |= {f"{name}_rate": judge, f"{name}_rate_label": people, f"{name}_bias": bias}
    longer = _mean([(p.together == p.label, w) for p, w in decided.items() if p.longer == p.label])
    shorter = _mean([(p.together == p.label, w) for p, w in decided.items() if p.longer not in (p.label, None)])
    found["verbosity_bias"] = None if longer is None or shorter is None else longer - shorter
    return found


def _mean(weighted: Sequence[tuple[bool, float]]) -> float | None:
    total = sum(w for _, w in weighted)
    return sum(w for held, w in weighted if held) / total if total > 0 else None


# --------------------------------------------------------------------------------------- length-controlled win rate


class WinRate(NamedTuple):
    """Share of comparisons won, 0 to 1. ``raw``: the mean preference. ``controlled``: what the GLM predicts for
    responses of equal length, with its 95 % interval. ``slope``: of tanh(length difference / its standard deviation),
    in log-odds."""

    raw: float
    controlled: float
    low: float
    high: float
    slope: float


def win_rate(preferences: Sequence[float]) -> float:
    """The mean of ``preferences`` for a model over its opponent: 1 won, 0 lost, 0.5 a draw, or a probability."""
    return math.fsum(preferences) / len(preferences)


def recorded_win_rate(pairs: Sequence[Pair], lengths: Mapping[str, tuple[int, int]]) -> tuple[WinRate, int] | None:
    """The win rate of a over b in recorded verdicts, and of how many pairs: those with lengths and a verdict in every
    look. A look counts by its ``p_a``, else 1, 0 or 0.5; a pair by the mean of its looks. None for no pairs."""
    preferences, known = [], []
    for pair in pairs:
        looks = [look for look in (pair.ab, pair.ba) if look is not None]
        if pair.id in lengths and all(look.verdict != "invalid" for look in looks):
            stated = [_POINTS[look.verdict] if look.p_a is None else look.p_a for look in looks]
            preferences.append(math.fsum(stated) / len(stated))
            known.append(lengths[pair.id])
    return (length_controlled_win_rate(preferences, known), len(known)) if known else None


_POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5}


def length_controlled_win_rate(
    preferences: Sequence[float], lengths: Sequence[tuple[int, int]], *, resamples: int = 200, seed: int = 0
) -> WinRate:
    """The win rate there would be without a difference in length.

    A generalised linear model, logit P(win) = theta + phi * tanh(d / s), fitted by maximum likelihood to the (soft)
    ``preferences``, where d is the length of the model's response minus that of its opponent's (``lengths``: both, in
    characters) and s the standard deviation of d; the rate at d = 0 is 1 / (1 + exp(-theta)). This is the model of
    Dubois et al. 2024 (2404.04475) with its length term alone: without their term for the difficulty of an instruction,
    which needs the verdicts on many other models. A penalty of 0.005 * (theta**2 + phi**2) keeps the fit finite where
    length decides everything. The interval is a percentile interval of the Bayesian bootstrap over comparisons.

    Where nearly all responses are shorter than their opponents' the rate at d = 0 is an extrapolation: read it beside
    ``raw``. Raises ValueError for no comparisons or two lists of different lengths.
    """
    if not preferences or len(preferences) != len(lengths):
        raise ValueError(f"{len(preferences)} preferences and {len(lengths)} pairs of lengths")
    differences = [own - other for own, other in lengths]
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / len(differences))
    z = [math.tanh(d / spread) if spread else 0.0 for d in differences]
    y = [min(max(p, 0.0), 1.0) for p in preferences]
    theta, phi = _logistic_fit(z, y, [1.0] * len(y))
    draw = random.Random(seed)
    drawn = sorted(
        _sigmoid(_logistic_fit(z, y, [draw.expovariate(1.0) for _ in y], start=(theta, phi))[0])
        for _ in range(resamples)
    )
    ends = (quantile(drawn, 0.025), quantile(drawn, 0.975)) if drawn else (math.nan, math.nan)
    return WinRate(win_rate(preferences), _sigmoid(theta), *ends, phi)


_PENALTY = 0.01


def _logistic_fit(
    z: Sequence[float], y: Sequence[float], weights: Sequence[float], start: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Intercept and slope of a weighted logistic regression on soft targets, by Newton's method."""
    theta, phi = start
    for _ in range(100):
        g0, g1 = -_PENALTY * theta, -_PENALTY * phi
        h00 = h11 = _PENALTY
        h01 = 0.0
        for x, target, weight in zip(z, y, weights, strict=True):
            p = _sigmoid(theta + phi * x)
            rest, curve = weight * (target - p), weight * p * (1.0 - p)
            g0 += rest
            g1 += rest * x
            h00 += curve
            h01 += curve * x
            h11 += curve * x * x
        determinant = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Far from the optimum the curvature is nearly nothing and a full step goes astray.
        scale = min(1.0, 4.0 / max(abs(step0), abs(step1), 1e-300))
        theta, phi = theta + scale * step0, phi + scale * step1
        if abs(step0) + abs(step1) < 1e-10:
            break
    return theta, phi


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
