"""Paired differences of two models on the same rows, with bootstrap intervals. Pure."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from rlaif.config.evaluate import Aim
from rlaif.types import Row

RESAMPLES = 2000

Change = Literal["better", "worse", "unclear", "up", "down", "same"]


@dataclass
class Measured:
    """One figure: for each row (prompt, question, text) its value before and after. ``lost``: rows without one, by
    reason; they are left out for both models. ``note``: what else a reader should know."""

    name: str
    aim: Aim | None
    rows: list[tuple[float, float]]
    lost: Counter[str] = field(default_factory=Counter)
    note: str = ""


class Figure(Row):
    """A measured figure: means over ``n`` rows, the mean paired difference and its 95 % percentile bootstrap interval.

    ``change``: "better" or "worse" where the interval leaves out 0 ("up" or "down" where no direction is better), else
    "unclear" ("same" where nothing differs at all). ``fails``: worse by more than ``tolerance``, with that certainty.
    """

    task: str
    name: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    aim: Aim | None
    tolerance: float
    change: Change
    fails: bool
    lost: dict[str, int]
    note: str = ""


def figure(task: str, measured: Measured, seed: int, *, tolerance: float = 0.0, gate: bool = False) -> Figure | None:
    """None where no row is left."""
    if not measured.rows:
        return None
    differences = [after - before for before, after in measured.rows]
    low, high = interval(differences, f"{seed} {task} {measured.name}")
    sign = {"up": 1.0, "down": -1.0, None: 1.0}[measured.aim]
    worst = min(sign * low, sign * high)  # the two ends, seen from the better side
    best = max(sign * low, sign * high)
    return Figure(
        task=task,
        name=measured.name,
        n=len(measured.rows),
        before=fmean(b for b, _ in measured.rows),
        after=fmean(a for _, a in measured.rows),
        difference=fmean(differences),
        low=low,
        high=high,
        aim=measured.aim,
        tolerance=tolerance,
        change=_change(measured.aim, worst, best),
        fails=gate and measured.aim is not None and best < -tolerance,
        lost=dict(sorted(measured.lost.items())),
        note=measured.note,
    )


def _change(aim: Aim | None, worst: float, best: float) -> Change:
    if worst == best == 0:
        return "same"
    if worst > 0:
        return "better" if aim else "up"
    if best < 0:
        return "worse" if aim else "down"
    return "unclear"


def interval(values: Sequence[float], name: str, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; the same for the same values and name."""
    generator = random.Random(name)
    means = sorted(fmean(generator.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]
