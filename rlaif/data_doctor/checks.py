"""The checks of single rows and of the two sides: each is given every row, and says in the end what it found."""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlaif.data_doctor import sensitive
from rlaif.data_doctor.balance import STYLE, Lean
from rlaif.data_doctor.report import Finding, Tally
from rlaif.data_doctor.rows import Row
from rlaif.data_doctor.similar import Passages, text_hash
from rlaif.errors import InputError
from rlaif.preferences import read_rows
from rlaif.verifiers.refusal import classify

LANGUAGE_SAMPLE = 300  # pairs; telling a language takes milliseconds
_MIN_WORDS = 20  # fewer tell neither a language nor whether a text was cut
_COMMON = 0.05  # a share of truncated answers or ties from which on a note is a warning


class Check(Protocol):
    """``findings`` is asked once, after the last row and before ``figures``; ``total``: all rows read."""

    def add(self, row: Row) -> None: ...

    def findings(self, total: int) -> list[Finding]: ...

    def figures(self) -> dict[str, Any]: ...


class Benchmark:
    """Passages that stand in a benchmark too."""

    def __init__(self, path: Path, gram: int) -> None:
        self.name = path.name
        self._passages = Passages(_all_texts(path), gram)
        self._gram = gram
        self._tally = Tally()

    def sides(self, row: Row) -> list[str]:
        """Of prompt, chosen and rejected those that hold such a passage."""
        sides = {"prompt": row.prompt_words, "chosen": row.chosen_words, "rejected": row.rejected_words}
        return [side for side, tokens in sides.items() if self._passages.found_in(tokens)]

    def add(self, row: Row) -> None:
        if found := self.sides(row):
            self._tally.add(row.number, *found)

    def findings(self, total: int) -> list[Finding]:
        where = ", ".join(f"{n} in the {side}" for side, n in sorted(self._tally.kinds.items()))
        return self._tally.finding("benchmark", total, detail=f"{self._gram} words of {self.name}: {where}")

    def figures(self) -> dict[str, Any]:
        return {f"against {self.name}": {"texts": self._passages.texts, "too_short": self._passages.short}}


def read_benchmarks(paths: Iterable[Path], gram: int) -> list[Benchmark]:
    """Raises InputError for a file that cannot be read as rows."""
    return [Benchmark(path, gram) for path in paths]


def _all_texts(path: Path) -> Iterator[str]:
    """Every text of every row of a benchmark file."""
    _, rows = read_rows(path)
    for _, row in rows:
        if isinstance(row, InputError):
            raise row
        yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        yield from itertools.chain.from_iterable(map(_strings, value))


class Sensitive:
    def __init__(self) -> None:
        self._tallies: dict[sensitive.Sort, Tally] = {"secret": Tally(), "personal": Tally()}

    def add(self, row: Row) -> None:
        hits = sensitive.find(f"{row.prompt}\n{row.chosen}\n{row.rejected}")
        for sort, tally in self._tallies.items():
            if names := [hit.name for hit in hits if hit.sort == sort]:
                tally.add(row.number, *names)

    def findings(self, total: int) -> list[Finding]:
        return [f for sort, tally in self._tallies.items() for f in tally.finding(sort, total)]

    def figures(self) -> dict[str, Any]:
        return {}


class Balance:
    """Length, style and refusals of the two sides."""

    def __init__(self) -> None:
        self._words, self._characters, self._refusals = Lean(), Lean(), Lean()
        self._style = {name: Lean() for name in STYLE}

    def add(self, row: Row) -> None:
        self._words.add(len(row.chosen_words), len(row.rejected_words))
        self._characters.add(len(row.chosen), len(row.rejected))
        self._refusals.add(classify(row.chosen) == "refusal", classify(row.rejected) == "refusal")
        for name, measure in STYLE.items():
            self._style[name].add(measure(row.chosen), measure(row.rejected))

    def findings(self, total: int) -> list[Finding]:
        found = self._characters.length_bias()
        found += self._refusals.bias("refusal_bias", "refusals")
        for name, lean in self._style.items():
            found += lean.bias("style_bias", name.replace("_", " "))
        return found

    def figures(self) -> dict[str, Any]:
        if not self._words.n:
            return {}
        return {
            "longer_wins_characters": self._characters.baseline(),
            "longer_wins_words": self._words.baseline(),
            "refusals": self._refusals.decided(),
            **{name: lean.decided() for name, lean in self._style.items()},
        }


class Truncated:
    """Answers that stop where no sentence ends."""

    def __init__(self) -> None:
        self._tally = Tally()

    def add(self, row: Row) -> None:
        sides = {"chosen": row.chosen, "rejected": row.rejected}
        if cut := [side for side, text in sides.items() if is_cut(text)]:
            self._tally.add(row.number, *cut)

    def findings(self, total: int) -> list[Finding]:
        return self._tally.finding(
            "truncated", total, severity="warning" if self._tally.count > _COMMON * total else "note"
        )

    def figures(self) -> dict[str, Any]:
        return {}


def is_cut(text: str) -> bool:
    """Whether a text of some length ends in an open code fence, or in a last line of several words without an end."""
    text = text.rstrip()
    if not text:
        return False
    if text.count("```") % 2:
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and lines[-2].rstrip()[-1].isalpha():
        return False  # a list without bullets, or verse
    last = lines[-1].split()
    if len(last) < 6 or len(text.split()) < _MIN_WORDS or "://" in last[-1] or last[0] in ("-", "*", "•", "|"):
        return False
    return text[-1].islower() or text[-1] in ",;(-–—"


class Long:
    def __init__(self, max_words: int) -> None:
        self._max = max_words
        self._tally = Tally()
        self._longest = 0

    def add(self, row: Row) -> None:
        size = len(row.prompt_words) + max(len(row.chosen_words), len(row.rejected_words))
        self._longest = max(self._longest, size)
        if size > self._max:
            self._tally.add(row.number)

    def findings(self, total: int) -> list[Finding]:
        return self._tally.finding("long", total, detail=f"{self._max} words of prompt and longer answer")

    def figures(self) -> dict[str, Any]:
        return {"longest_words": self._longest}


class Labels:
    """The columns prob_chosen, margin and source, where there are such."""

    def __init__(self) -> None:
        self._range, self._side, self._ties = Tally(), Tally(), Tally()
        self._values: dict[str, list[float]] = {}  # column: smallest, largest, sum, number
        self._sources: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        given = {name: row.columns.get(name) for name in ("prob_chosen", "margin")}
        numbers = {name: _number(value) for name, value in given.items() if value is not None}
        probability = numbers.get("prob_chosen")
        if None in numbers.values() or (probability is not None and not 0 <= probability <= 1):
            self._range.add(row.number)
        elif probability is not None and probability < 0.5:
            self._side.add(row.number)
        elif probability == 0.5 or (probability is None and numbers.get("margin") == 0):
            self._ties.add(row.number)
        for name, number in numbers.items():
            if number is not None:
                low, high, total, n = self._values.get(name, [number, number, 0.0, 0])
                self._values[name] = [min(low, number), max(high, number), total + number, n + 1]
        if isinstance(source := row.columns.get("source"), str):
            self._sources[source] += 1

    def findings(self, total: int) -> list[Finding]:
        found = self._range.finding("label_range", total) + self._side.finding("label_side", total)
        return found + self._ties.finding(
            "tie", total, severity="warning" if self._ties.count > _COMMON * total else "note"
        )

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            name: {"min": low, "max": high, "mean": total / n, "rows": int(n)}
            for name, (low, high, total, n) in self._values.items()
        }
        if self._sources:
            figures["source"] = dict(self._sources.most_common(10))
        return figures


def _number(value: Any) -> float | None:
    """A finite number (as text too, which is all that CSV has), or None."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Languages:
    """Languages of a sample: the pairs with the smallest hashes, so that it is the same whatever their order.
    ``skipped``: why they were not told, after the findings."""

    def __init__(self) -> None:
        self.skipped: str | None = None
        self._sample: list[tuple[int, int, str, str]] = []  # a heap of (minus hash, row, chosen, rejected)
        self._found: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        if min(len(row.chosen_words), len(row.rejected_words)) < _MIN_WORDS:
            return
        entry = (-text_hash(row.prompt, row.chosen, row.rejected), row.number, row.chosen, row.rejected)
        if len(self._sample) < LANGUAGE_SAMPLE:
            heapq.heappush(self._sample, entry)
        else:
            heapq.heappushpop(self._sample, entry)

    def findings(self, total: int) -> list[Finding]:
        from rlaif.verifiers.language import detect, load

        if not self._sample:
            return []
        try:
            load()  # here, because it takes half a second
        except InputError as error:
            self.skipped = f"language: {error}"
            return []
        tally = Tally()
        for _, number, chosen, rejected in self._sample:
            one, other = detect(chosen), detect(rejected)
            self._found[one or "unknown"] += 1
            if one != other and None not in (one, other):
                tally.add(number)
        return tally.finding("language", len(self._sample), detail=f"of {len(self._sample)} looked at")

    def figures(self) -> dict[str, Any]:
        return {"languages": dict(self._found.most_common(10))} if self._found else {}
