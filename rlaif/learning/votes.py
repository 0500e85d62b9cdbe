"""Which principles explain the labels: figures, the chance of a false discovery, and the choice. Pure.

A *vote* is what a principle says of one labelled pair: the probability that the preferred text is better, or None where
the judge gave no verdict. Above one half it is right, below wrong; one half is undecided.

How principles are chosen
-------------------------
1. **No discovery by chance.** A candidate's score is (right - wrong) / sqrt(right + wrong). The labels are shuffled
   `SHUFFLES` times (each prompt's pairs turned round, or not, by a coin), and each time the best score of *all*
   candidates is noted. A candidate qualifies when at most ``alpha`` of these are as good as its own: where labels have
   nothing to do with the candidates, anything qualifies in at most that share of data sets, however many candidates
   there are (Westfall and Young 1993, "Resampling-Based Multiple Testing"). The candidates must not have been made
   from the pairs they are tested on.
2. **Forward selection.** Of those that qualify the one is added whose votes, averaged with those already kept, raise
   right - wrong most; on a tie a program before a wording, then the better score. It ends when the best raises it by
   less than ``min_gain`` of the pairs, or ``most`` are kept.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from rlaif.config.base import Config
from rlaif.hashing import derived_seed
from rlaif.judging.agreement import RESAMPLES, Estimate, bootstrap

SHUFFLES = 999
_EPSILON = 1e-9

Votes = Sequence[float | None]


class KeepRule(Config):
    """See the top of this module. ``programs``: whether a check may be kept too, or is only measured."""

    alpha: float = Field(0.05, gt=0, lt=1)
    min_gain: float = Field(0.01, ge=0, lt=1)
    most: int = Field(8, gt=0)
    programs: bool = True


@dataclass(frozen=True)
class Figures:
    """``accuracy``: of the pairs it decides, the share it decides as the label; ``coverage``: of all pairs, the share
    it decides; both with a 95 % bootstrap interval over prompts where one was asked for. ``n``: pairs; ``unjudged`` of
    them have no verdict."""

    n: int
    right: int
    wrong: int
    unjudged: int
    accuracy: Estimate
    coverage: Estimate

    def report(self) -> dict[str, Any]:
        return {
            "pairs": self.n,
            "right": self.right,
            "wrong": self.wrong,
            "unjudged": self.unjudged,
            "accuracy": self.accuracy._asdict(),
            "coverage": self.coverage._asdict(),
        }


def figures(votes: Votes, prompts: Sequence[str], *, interval: bool = True) -> Figures:
    """``prompts``: the prompt of each pair; the pairs of one prompt are no independent evidence. ``interval``: for what
    is reported; where a principle was chosen for doing well its interval would say too much."""
    by_prompt: dict[str, Counter[str]] = {}
    for vote, prompt in zip(votes, prompts, strict=True):
        by_prompt.setdefault(prompt, Counter())[_said(vote)] += 1
    kinds = Counter((c["right"], c["wrong"], c.total()) for c in by_prompt.values())
    found = bootstrap(kinds, _rates, resamples=RESAMPLES if interval else 0)
    said = Counter(map(_said, votes))
    return Figures(len(votes), said["right"], said["wrong"], said["unjudged"], found["accuracy"], found["coverage"])


def beats_chance(found: Figures) -> bool:
    """Whether it is right more often than a coin: by the interval, and, since the bootstrap of a few votes that are all
    right has no width, by the sign test too (one-sided, 2.5 %)."""
    decided = found.right + found.wrong
    tail = sum(math.comb(decided, k) for k in range(found.right, decided + 1)) / 2**decided
    return found.accuracy.low is not None and found.accuracy.low > 0.5 and tail <= 0.025


def _said(vote: float | None) -> str:
    if vote is None:
        return "unjudged"
    return "right" if vote > 0.5 + _EPSILON else "wrong" if vote < 0.5 - _EPSILON else "undecided"


def _rates(kinds: Mapping[tuple[int, int, int], float]) -> dict[str, float | None]:
    right, wrong, total = (sum(kind[i] * weight for kind, weight in kinds.items()) for i in range(3))
    return {
        "accuracy": right / (right + wrong) if right + wrong > 0 else None,
        "coverage": (right + wrong) / total if total > 0 else None,
    }


def together(votes: Sequence[Votes]) -> list[float | None]:
    """What several principles of equal weight say together, pair by pair: the mean, as pairing has it. A missing
    verdict leaves the pair without one."""
    return [
        None if None in row else math.fsum(v for v in row if v is not None) / len(row)
        for row in zip(*votes, strict=True)
    ]


def turned(votes: Votes) -> list[float | None]:
    """The votes of the opposite principle."""
    return [None if vote is None else 1 - vote for vote in votes]


# ----------------------------------------------------------------------------------------------------------- chance


class Signs:
    """The votes of a candidate as bits, a bit a pair: quick to count after labels are turned round."""

    __slots__ = ("right", "wrong")

    def __init__(self, votes: Votes) -> None:
        self.right = sum(1 << i for i, vote in enumerate(votes) if _said(vote) == "right")
        self.wrong = sum(1 << i for i, vote in enumerate(votes) if _said(vote) == "wrong")

    @property
    def lead(self) -> int:
        """Pairs right less pairs wrong."""
        return self.right.bit_count() - self.wrong.bit_count()

    def score(self, turned: int = 0) -> float:
        """The score where the labels of the pairs in ``turned`` are the other way round."""
        right = ((self.right & ~turned) | (self.wrong & turned)).bit_count()
        decided = (self.right | self.wrong).bit_count()
        return (2 * right - decided) / math.sqrt(decided) if decided else 0.0


def chance(votes: Mapping[str, Votes], prompts: Sequence[str], seed: int) -> dict[str, float]:
    """For each candidate: how likely it is that the best of them all does as well on shuffled labels."""
    signs = {name: Signs(v) for name, v in votes.items()}
    masks: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        masks[prompt] = masks.get(prompt, 0) | 1 << i
    draw = random.Random(derived_seed("shuffled labels", seed))
    best = []
    for _ in range(SHUFFLES):
        mask = sum(m for m in masks.values() if draw.random() < 0.5)
        best.append(max((s.score(mask) for s in signs.values()), default=0.0))
    return {name: (1 + sum(b >= s.score() - _EPSILON for b in best)) / (1 + SHUFFLES) for name, s in signs.items()}


# ----------------------------------------------------------------------------------------------------------- choice


@dataclass(frozen=True)
class Choice:
    """``kept``: names in the order they were added, each with right - wrong of all kept so far."""

    kept: tuple[tuple[str, int], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.kept)


def choose(
    votes: Mapping[str, Votes], by_chance: Mapping[str, float], programs: frozenset[str], rule: KeepRule
) -> Choice:
    """Forward selection among those that qualify (see the top of this module)."""
    left = {name for name, p in by_chance.items() if p <= rule.alpha and (rule.programs or name not in programs)}
    kept: list[tuple[str, int]] = []
    n = max((len(v) for v in votes.values()), default=0)
    while left and len(kept) < rule.most:
        have = [votes[name] for name, _ in kept]
        leads = {name: Signs(together([*have, votes[name]])).lead for name in left}
        best = max(left, key=lambda name: (leads[name], name in programs, Signs(votes[name]).score(), name))
        before = kept[-1][1] if kept else 0
        if leads[best] - before < max(1.0, rule.min_gain * n):
            break
        kept.append((best, leads[best]))
        left.discard(best)
    return Choice(tuple(kept))
