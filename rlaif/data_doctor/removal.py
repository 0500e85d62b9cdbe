"""Which rows of preference data to take out, and why: decided from hashes, in one pass over the rows.

A row goes for the first of these reasons that holds and was asked for:

    unusable         no preference pair, or its answers are equal or empty, or it has no prompt
    overlap          so many words in a row stand in a benchmark, too
    secret           it holds a key or token
    personal         it holds personal data
    contradiction    another row has its very texts with the labels swapped: both go, for nobody knows which is right
    duplicate        a row before it that stays has the same prompt, chosen and rejected text
    near_duplicate   a row before it that stays has nearly the same answers (see rlaif.data_doctor.similar); a row that
                     another contradicts is none

Of rows that repeat one another **the first in the file stays**, and what goes resembles a row that stays: of a chain A,
B, C where only neighbours are alike, A and C stay. Taking out twice takes out nothing more.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlaif.config.dataset import GRAM, Drop
from rlaif.data_doctor.checks import Benchmark, read_benchmarks
from rlaif.data_doctor.rows import Reading, Row
from rlaif.data_doctor.sensitive import find
from rlaif.data_doctor.similar import PairSketches, text_hash

Reason = Literal["unusable", "overlap", "secret", "personal", "contradiction", "duplicate", "near_duplicate"]


@dataclass(frozen=True)
class Removal:
    """Why a row goes. ``other``: the number of the row it repeats, which stays, or of one it contradicts, which goes,
    too. ``detail`` quotes no text."""

    reason: Reason
    other: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Removals:
    """``removed``: by the number of the row, in the file's order. ``unit``: what is counted, lines or rows."""

    rows: int
    removed: Mapping[int, Removal]
    unit: Literal["line", "row"]

    @property
    def counts(self) -> Counter[str]:
        return Counter(removal.reason for removal in self.removed.values())


def find_removals(source: Path, drop: Collection[Drop], *, against: Sequence[Path] = (), gram: int = GRAM) -> Removals:
    """What to take out of the preference data of ``source``. ``gram``: words of a passage shared with a benchmark.

    Keeps under a kilobyte of hashes a row. Raises InputError as `examine` does.
    """
    benchmarks = read_benchmarks(against, gram) if "overlap" in drop else []
    reading = Reading(source, None)
    removed: dict[int, Removal] = {}
    rows = _Rows(near="near_duplicates" in drop)
    for row in reading.pairs():
        reason = _overlap(row, benchmarks) or _sensitive(row, drop)
        if reason:
            removed[row.number] = reason
        else:
            rows.add(row)
    if "unusable" in drop:
        removed |= {number: Removal("unusable", detail=why) for number, why in reading.unusable.items()}
    removed |= rows.repeats(drop)
    return Removals(reading.rows, dict(sorted(removed.items())), reading.unit)


def _overlap(row: Row, benchmarks: Sequence[Benchmark]) -> Removal | None:
    for benchmark in benchmarks:
        if sides := benchmark.sides(row):
            return Removal("overlap", detail=f"{' and '.join(sides)}, with {benchmark.name}")
    return None


def _sensitive(row: Row, drop: Collection[Drop]) -> Removal | None:
    if "secrets" not in drop and "personal" not in drop:
        return None
    hits = find(f"{row.prompt}\n{row.chosen}\n{row.rejected}")
    for sort, name in (("secret", "secrets"), ("personal", "personal")):
        if name in drop and (kinds := sorted(hit.name for hit in hits if hit.sort == sort)):
            return Removal("secret" if sort == "secret" else "personal", detail=", ".join(kinds))
    return None


class _Rows:
    """The hashes of the rows that may stay, in the file's order."""

    def __init__(self, *, near: bool) -> None:
        self._numbers = array("Q")
        self._pairs, self._swapped = array("q"), array("q")
        self._sketches = PairSketches() if near else None

    def add(self, row: Row) -> None:
        prompt, chosen, rejected = (text_hash(text) for text in (row.prompt, row.chosen, row.rejected))
        self._numbers.append(row.number)
        self._pairs.append(hash((prompt, chosen, rejected)))  # of integers: the same in every process
        self._swapped.append(hash((prompt, rejected, chosen)))
        if self._sketches:
            self._sketches.add(row.chosen_words, row.rejected_words)

    def repeats(self, drop: Collection[Drop]) -> dict[int, Removal]:
        removed: dict[int, Removal] = {}
        first: dict[int, int] = {}
        # Not among those compared: a contradiction that may stay is no near-duplicate, whose first label would hold.
        alone: list[int] = []
        numbers = dict(zip(self._pairs, self._numbers, strict=True))
        for i, pair in enumerate(self._pairs):
            number, opposite = self._numbers[i], numbers.get(self._swapped[i])
            if opposite is not None and "contradictions" in drop:
                removed[number] = Removal("contradiction", other=opposite)
            elif "duplicates" in drop and first.setdefault(pair, number) != number:
                removed[number] = Removal("duplicate", other=first[pair])
            elif opposite is None:
                alone.append(i)
        for i, other in (self._sketches.repeats(alone) if self._sketches else {}).items():
            removed[self._numbers[i]] = Removal("near_duplicate", other=self._numbers[other])
        for number, removal in removed.items():
            # What a duplicate repeats may itself be nearly another row, and go.
            if removal.reason == "duplicate" and (gone := removed.get(removal.other or 0)) is not None:
                removed[number] = gone
        return removed
