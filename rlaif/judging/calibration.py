"""Does 0.8 mean right four times of five? Reliability bins and the expected calibration error of a judge."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rlaif.judging.agreement import Estimate, Label, Pair, bootstrap

BINS = 10


class Stated(NamedTuple):
    """A stated probability that a is better, and the label."""

    p_a: float
    label: Label

    @property
    def confidence(self) -> float:
        """Probability of the side preferred, 0.5 to 1."""
        return max(self.p_a, 1.0 - self.p_a)

    @property
    def right(self) -> float:
        """1 where the side preferred is the label's; one half where the label is a tie, or the judge is at 0.5."""
        if self.label == "tie" or self.p_a == 0.5:
            return 0.5
        return float((self.p_a > 0.5) == (self.label == "a"))


class Bin(NamedTuple):
    """Probabilities of nearly the same confidence: ``n`` of them, their mean confidence, and how often they are right.
    ``low`` belongs to the bin, ``high`` to the next one (to the last bin: both)."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def looks_stated(pair: Pair) -> list[Stated]:
    """What each look of a pair stated; looks without a probability say nothing here."""
    return [Stated(look.p_a, pair.label) for look in pair.looks if look.p_a is not None]


def averaged_stated(pair: Pair) -> list[Stated]:
    """What the orders stated together, where all of them gave a probability."""
    p = pair.probability
    return [Stated(p, pair.label)] if p is not None and all(look.p_a is not None for look in pair.looks) else []


def reliability(stated: Iterable[Stated], bins: int = BINS) -> list[Bin]:
    """``bins`` bins of equal width over confidence 0.5 to 1."""
    n, confidence, right = [0] * bins, [0.0] * bins, [0.0] * bins
    for s in stated:
        i = _bin(s, bins)
        n[i] += 1
        confidence[i] += s.confidence
        right[i] += s.right
    edges = [0.5 + i / (2 * bins) for i in range(bins + 1)]
    return [
        Bin(edges[i], edges[i + 1], n[i], *((confidence[i] / n[i], right[i] / n[i]) if n[i] else (None, None)))
        for i in range(bins)
    ]


def expected_calibration_error(groups: Iterable[list[Stated]], *, bins: int = BINS, resamples: int = 2000) -> Estimate:
    """Mean over all probabilities of |confidence - accuracy| of their bin (Naeini et al. 2015), with its bootstrap
    interval; resampled are the ``groups``, each what was stated about one pair. None where nothing was stated.

    The error is biased upwards in small samples: the bins of a perfect judge scatter too.
    """
    counts: Counter[_Kind] = Counter()
    sums: dict[_Kind, list[float]] = {}
    for group in groups:
        if not group:
            continue
        kind = tuple((_bin(s, bins), s.right) for s in group)
        counts[kind] += 1
        total = sums.setdefault(kind, [0.0] * len(group))
        for i, s in enumerate(group):
            total[i] += s.confidence
    means = {kind: [x / counts[kind] for x in total] for kind, total in sums.items()}

    def error(kinds: Mapping[_Kind, float]) -> dict[str, float | None]:
        gap, of = [0.0] * bins, 0.0
        for kind, weight in kinds.items():
            for (i, right), confidence in zip(kind, means[kind], strict=True):
                gap[i] += weight * (confidence - right)
                of += weight
        return {"ece": sum(map(abs, gap)) / of if of else None}

    return bootstrap(counts, error, resamples=resamples)["ece"]


_Kind = tuple[tuple[int, float], ...]  # of one pair: (bin, right) of each probability stated about it


def _bin(s: Stated, bins: int) -> int:
    return min(int((s.confidence - 0.5) * 2 * bins + 1e-9), bins - 1)  # 0.6 belongs to the bin that begins there
