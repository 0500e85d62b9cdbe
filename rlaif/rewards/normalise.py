"""Running mean and standard deviation of a value, by batches (Chan, Golub, LeVeque 1983).

Not covered: several processes. Each has the statistics of its own rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.errors import InputError


@dataclass
class RunningNorm:
    """``m2``: the sum of squared distances from the mean, of ``count`` values."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        return math.sqrt(self.m2 / self.count) if self.count else 0.0

    def update(self, values: Sequence[float]) -> None:
        """Learn a batch. Sums are exactly rounded, so the order within the batch changes nothing."""
        if not values:
            return
        n = len(values)
        mean = math.fsum(values) / n
        m2 = math.fsum((value - mean) ** 2 for value in values)
        total, delta = self.count + n, mean - self.mean
        self.m2 += m2 + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    def __call__(self, value: float, clip: float) -> float:
        """``value`` in standard deviations from the mean; 0 while all values were the same, and as it is before
        anything was learnt."""
        if not self.count:
            return max(-clip, min(clip, value))
        if self.std <= 1e-12 * max(1.0, abs(self.mean)):
            return 0.0
        return max(-clip, min(clip, (value - self.mean) / self.std))

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RunningNorm":
        """Raises InputError for what `state` never gives."""
        try:
            norm = cls(int(state["count"]), float(state["mean"]), float(state["m2"]))
        except (KeyError, TypeError, ValueError):
            raise InputError("the saved reward statistics cannot be read: count, mean and m2 belong there.") from None
        if norm.count < 0 or norm.m2 < 0 or not math.isfinite(norm.mean + norm.m2):
            raise InputError("the saved reward statistics are damaged; start without them.")
        return norm
