"""What the parts of a reward do over many rows, and what looks wrong about it.

    monitor.add_all(scored)
    for sentence in monitor.alarms().values(): ...
    monitor.check()            # QualityError when too many rows were lost to infrastructure

All figures are running sums: memory does not grow with the rows.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rlaif.errors import QualityError
from rlaif.rewards.composite import Scored
from rlaif.types import Reward

_ENOUGH = 100  # rows before a share means anything in the middle of a run
_ODD_ZEROS = 0.95  # a part that so rarely, or so often, gives 0 teaches little
_ODD_FAILURES = 0.05
_ODD_CHEATS = 0.01
_DOMINATES, _SILENT = 0.9, 0.1  # r² with the total: of the part, and of every other


@dataclass
class Moments:
    """Running mean and variance of x, and its correlation with y (Welford)."""

    count: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    m2_x: float = 0.0
    m2_y: float = 0.0
    co: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.count += 1
        dx, dy = x - self.mean_x, y - self.mean_y
        self.mean_x += dx / self.count
        self.mean_y += dy / self.count
        self.m2_x += dx * (x - self.mean_x)
        self.m2_y += dy * (y - self.mean_y)
        self.co += dx * (y - self.mean_y)

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.m2_x) / self.count) if self.count else 0.0

    @property
    def correlation(self) -> float | None:
        """None where either does not vary."""
        if min(self.m2_x, self.m2_y) <= 1e-18 * max(1, self.count):
            return None
        return max(-1.0, min(1.0, self.co / math.sqrt(self.m2_x * self.m2_y)))


@dataclass
class PartStatistics:
    """Of one part: ``values`` over the rows where it decided; ``with_total`` over those of them that have a total.
    A ``penalty`` counts as a part whose values are -1 to 0."""

    penalty: bool = False
    asked: int = 0
    zeros: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of rewards below full
    values: Moments = field(default_factory=Moments)
    with_total: Moments = field(default_factory=Moments)

    @property
    def failed(self) -> int:
        """Rows on which the part failed; to abstain is no failure."""
        return self.failures.total() - self.failures["abstained"]

    def report(self) -> dict[str, Any]:
        decided = self.values.count
        return {
            "asked": self.asked,
            "decided": decided,
            "mean": self.values.mean_x if decided else None,
            "std": self.values.std if decided else None,
            "share_zero": self.zeros / decided if decided else None,
            "share_failed": self.failed / self.asked,
            "failures": dict(self.failures),
            "reasons": dict(self.reasons),
            "correlation": self.with_total.correlation,
        }


class PartsMonitor:
    """Statistics of scored rows. ``max_infrastructure``: the share of rows that may be lost to it."""

    def __init__(self, max_infrastructure: float = 0.01) -> None:
        self.max_infrastructure = max_infrastructure
        self.rows = self.retries = 0
        self.masked: Counter[str] = Counter()
        self.total = Moments()
        self.parts: dict[str, PartStatistics] = {}
        self.infrastructure = 0
        self.example = ""  # of an infrastructure failure

    def add_all(self, scored: Iterable[Scored]) -> None:
        for row in scored:
            self.add(row)

    def add(self, row: Scored) -> None:
        self.rows += 1
        self.retries += row.retries
        if row.value is None:
            self.masked[row.masked or "infrastructure"] += 1
        else:
            self.total.add(row.value, row.value)
        lost = row.masked == "infrastructure"
        for name, verdict in row.parts.items():
            part = self.parts.setdefault(name, PartStatistics())
            part.asked += 1
            if isinstance(verdict, Reward):
                self._value(part, verdict.value, row.value)
                if verdict.reason is not None:
                    part.reasons[verdict.reason] += 1
            else:
                part.failures[verdict.reason] += 1
                if verdict.reason == "infrastructure":
                    lost, self.example = True, self.example or f"{name}: {verdict.detail}"
        for name, share in row.penalties.items():
            part = self.parts.setdefault(name, PartStatistics(penalty=True))
            part.asked += 1
            self._value(part, -share, row.value)
        self.infrastructure += lost
        if lost:
            self.example = self.example or row.why

    def _value(self, part: PartStatistics, value: float, total: float | None) -> None:
        part.values.add(value, value)
        part.zeros += value == 0.0
        if total is not None:
            part.with_total.add(value, total)

    # ------------------------------------------------------------------------------------------------------- alarms

    def check(self, *, final: bool = False) -> None:
        """Raises QualityError when more than ``max_infrastructure`` of the rows met an infrastructure failure that
        outlived its retries. Before the end of a run (``final``) only once there are rows enough to say so."""
        if (final or self.rows >= _ENOUGH) and self.infrastructure > self.max_infrastructure * self.rows:
            raise QualityError(
                f"infrastructure failed on {self.infrastructure:,} of {self.rows:,} rows"
                f" ({self.infrastructure / self.rows:.1%}, at most {self.max_infrastructure:.1%} may): {self.example};"
                " such rows are masked, so what is learnt leans towards those that were not; repair it and run again."
            )

    def alarms(self) -> dict[str, str]:
        """What looks wrong: a name for each thing, and a sentence. Empty before there are rows enough."""
        if self.rows < _ENOUGH:
            return {}
        found: dict[str, str] = {}
        if self.total.count and self.total.std <= 1e-9:
            found["constant"] = (
                f"every reward is {self.total.mean_x:.3g}: there is nothing to learn; look at a few completions."
            )
        for name, part in self.parts.items():
            found |= _part_alarms(name, part)
        if (leader := self._dominant()) is not None:
            r2 = (self.parts[leader].with_total.correlation or 0.0) ** 2
            found[f"{leader}: dominates"] = (
                f"{leader!r} alone decides the reward (r² {r2:.2f} with the total, every other part below {_SILENT});"
                " lower its weight or drop the others."
            )
        if self.infrastructure > self.max_infrastructure * self.rows:
            share = f"{self.infrastructure / self.rows:.1%}"
            found["infrastructure"] = f"infrastructure failed on {share} of the rows: {self.example}; repair it."
        return found

    def _dominant(self) -> str | None:
        """The part that explains the total, where others vary too and explain nothing of it."""
        moments = {name: part.with_total for name, part in self.parts.items() if part.with_total.count >= _ENOUGH}
        explained = {name: r**2 for name, m in moments.items() if (r := m.correlation) is not None}
        if len(explained) < 2:
            return None
        leader = max(explained, key=lambda name: explained[name])
        others = [r2 for name, r2 in explained.items() if name != leader]
        return leader if explained[leader] >= _DOMINATES and max(others) <= _SILENT else None

    def report(self) -> dict[str, Any]:
        """All figures and alarms as JSON, for the manifest."""
        return {
            "rows": self.rows,
            "masked": dict(self.masked),
            "mean": self.total.mean_x if self.total.count else None,
            "std": self.total.std if self.total.count else None,
            "infrastructure_failures": self.infrastructure,
            "retries": self.retries,
            "parts": {name: part.report() for name, part in self.parts.items()},
            "alarms": self.alarms(),
        }


def _part_alarms(name: str, part: PartStatistics) -> dict[str, str]:
    found: dict[str, str] = {}
    if part.asked >= _ENOUGH and part.failed > _ODD_FAILURES * part.asked:
        reasons = ", ".join(f"{n} {why}" for why, n in part.failures.most_common() if why != "abstained")
        share = f"{part.failed / part.asked:.0%}"
        found[f"{name}: fails"] = f"{name!r} failed on {share} of the rows ({reasons}); look at what it says of them."
    if part.asked >= _ENOUGH and part.failures["abstained"] == part.asked:
        found[f"{name}: abstains"] = f"{name!r} abstained on every row; it has no say here: remove it."
    if part.reasons["cheat"] > _ODD_CHEATS * part.asked:
        share = f"{part.reasons['cheat'] / part.asked:.1%}"
        found[f"{name}: cheats"] = f"{share} of the completions tried to reach the verdict of {name!r}; read some."
    if (decided := part.values.count) >= _ENOUGH:
        mean = part.values.mean_x
        if part.zeros > _ODD_ZEROS * decided and not part.penalty:
            share = f"{part.zeros / decided:.0%}"
            found[f"{name}: zeros"] = f"{name!r} is 0 on {share} of the rows: too hard, or its task is misread."
        elif part.values.std <= 1e-9 and mean != 0:
            found[f"{name}: constant"] = f"{name!r} is {mean:.3g} on every row: it teaches nothing; remove it."
    return found
