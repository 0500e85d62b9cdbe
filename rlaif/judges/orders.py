"""In which order a pair is shown first, and when one look is enough.

``orders: auto`` shows each pair once, in an order drawn by hash, and a second time where the first verdict is not sure.
Every so many-th pair is shown twice whatever was said: on that audit sample it is known what two looks would have
decided, and so what the saving costs (`OrderStats`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.hashing import uniform
from rlaif.types import Comparison, Judgement, Order, Verdict


def first_order(seed: int, comparison: Comparison) -> Order:
    """The order a pair is shown in where it is shown once."""
    return "ab" if uniform("order", seed, comparison.a.id, comparison.b.id) < 0.5 else "ba"


def is_audited(seed: int, comparison: Comparison, share: float) -> bool:
    """Whether the pair belongs to the audit sample; the same for both its orders."""
    return is_drawn(seed, comparison.a.id, comparison.b.id, share)


def is_drawn(seed: int, a: str, b: str, share: float) -> bool:
    """`is_audited` by the ids of the two completions, in either order."""
    return uniform("audit", seed, *sorted((a, b))) < share


@dataclass
class OrderStats:
    """What ``orders: auto`` saved and what it cost, counted from the judgements alone.

    ``sure``, ``share``: as in the config. A question is one judge asked about one comparison and principle set.
    """

    seed: int
    sure: float
    share: float
    questions: int = 0
    twice: int = 0  # were shown in both orders
    unsure: int = 0
    audited: int = 0  # of the audit sample, with both verdicts
    audited_sure: int = 0  # of these: would have been decided by the first look
    lost: int = 0  # of these: two looks decide otherwise

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Count one prompt's judgements. The first of a question's two is the one that was asked first."""
        questions: dict[tuple[str, tuple[str, ...], str, str], list[Judgement]] = {}
        for j in judgements:
            if j.order is not None:
                questions.setdefault((j.judge, j.principles, j.a, j.b), []).append(j)
        for looks in questions.values():
            self._question(looks)

    def _question(self, looks: Sequence[Judgement]) -> None:
        self.questions += 1
        self.twice += len(looks) > 1
        first = looks[0].outcome
        if not isinstance(first, Verdict):
            return
        sure = first.method == "logprob" and max(first.p_a, 1 - first.p_a) >= self.sure
        self.unsure += not sure
        second = looks[-1].outcome
        audited = len(looks) > 1 and is_drawn(self.seed, looks[0].a, looks[0].b, self.share)
        if not audited or not isinstance(second, Verdict):
            return
        self.audited += 1
        if sure:
            self.audited_sure += 1
            self.lost += (first.p_a > 0.5) != (first.p_a + second.p_a > 1)

    @property
    def share_twice(self) -> float | None:
        """Of the questions, how many were shown in both orders; None before any was counted."""
        return self.twice / self.questions if self.questions else None

    def report(self) -> dict[str, Any]:
        """For the manifest. ``loss_of_agreement``: of the audit sample, the share that one look decided otherwise than
        two; None where nothing was audited."""
        return {
            "questions": self.questions,
            "asked_twice": self.twice,
            "unsure": self.unsure,
            "looks_saved": self.questions - self.twice,
            "audited": self.audited,
            "audited_decided_by_one_look": self.audited_sure,
            "audited_decided_otherwise_by_two": self.lost,
            "loss_of_agreement": round(self.lost / self.audited, 6) if self.audited else None,
        }
