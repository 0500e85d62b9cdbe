"""How far people agree with the judge, and with one another. Only blind votes count here.

What people say of a comparison is compared with what all judges say of it together, as the judge card does: a tie of
the judge counts one half against a decided vote, and no verdict is never right. "Both bad" is a tie here. The interval
of the rate is Wilson's (1927), which says something after one vote, too; that of kappa is the judge card's bootstrap.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from rlaif.engine.votes import CHOICES, Subject, Vote, VoteBook
from rlaif.judging.agreement import Choice, Label, agreement, bootstrap, kappa_of, krippendorff_alpha
from rlaif.judging.gold import plurality
from rlaif.review.rows import Item

RESAMPLES = 1000  # of the intervals: they are made anew after every vote


def label_of(vote: Vote, subject: Subject) -> Label | None:
    """What a vote says of the comparison's a and b; None for a skip."""
    if vote.action not in CHOICES:
        return None
    return subject.side(vote.action) if vote.action in ("first", "second") else "tie"


def blind_labels(book: VoteBook, subject: Subject) -> tuple[Label, ...]:
    """What everybody who voted blind says of a and b, by the names of the reviewers."""
    found = (label_of(vote, subject) for vote in book.votes(subject.key) if vote.blind)
    return tuple(label for label in found if label is not None)


def differs(item: Item, labels: Sequence[Label]) -> bool:
    """Whether people disagree with the judge, or with one another."""
    return len(set(labels)) > 1 or (item.judge is not None and any(label != item.judge for label in labels))


def report(items: Iterable[Item], book: VoteBook, reviewer: str) -> dict[str, Any]:
    """``you``: the agreement of ``reviewer`` with the judge; ``all``: of everybody's plurality, where several people
    voted, with Krippendorff's ``alpha`` among them."""
    yours: Counter[tuple[Choice, Label]] = Counter()
    everybody: Counter[tuple[Choice, Label]] = Counter()
    units = []
    for item in items:
        labels = blind_labels(book, item.subject)
        units.append(labels)
        if item.judge is None or not labels:
            continue
        everybody[item.judge, plurality(labels)] += 1
        own = book.vote(item.subject.key, reviewer)
        if own is not None and own.blind and (label := label_of(own, item.subject)) is not None:
            yours[item.judge, label] += 1
    found: dict[str, Any] = {"you": _figures_with_intervals(yours)}
    if len(book.reviewers) > 1:
        found["all"] = _figures_with_intervals(everybody) | {
            "reviewers": len(book.reviewers),
            "alpha": krippendorff_alpha(units),
        }
    return found


def _figures_with_intervals(kinds: Counter[tuple[Choice, Label]]) -> dict[str, Any]:
    votes = kinds.total()
    made: dict[str, Any] = {"votes": votes}
    if votes:
        rate = sum(agreement(judge, label) * n for (judge, label), n in kinds.items()) / votes
        low, high = wilson(rate, votes)
        kappa = bootstrap(kinds, _kappa, resamples=RESAMPLES)["kappa"]
        made |= {"rate": rate, "rate_low": low, "rate_high": high}
        made |= {"kappa": kappa.value, "kappa_low": kappa.low, "kappa_high": kappa.high}
    return made


def _kappa(kinds: Mapping[tuple[Choice, Label], float]) -> dict[str, float | None]:
    table: dict[tuple[Hashable, Hashable], float] = dict(kinds.items())
    return {"kappa": kappa_of(table)}


def wilson(rate: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share ``rate`` of ``n`` (95 % by default)."""
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
