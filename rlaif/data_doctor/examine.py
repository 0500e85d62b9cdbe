"""The examination: one pass over the rows, each given to every check; findings at the end.

Only what a row counts, never where it stands, decides what is found: the order of the rows changes no count.
"""

import heapq
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlaif.data_doctor import sensitive
from rlaif.data_doctor.balance import STYLE, Lean
from rlaif.data_doctor.report import Finding, Report, Tally, in_order
from rlaif.data_doctor.similar import Passages, Sketches, text_hash, words
from rlaif.errors import InputError
from rlaif.preferences import Pair, Shape, describe, read_pair, read_rows, useless
from rlaif.verifiers.refusal import classify

GRAM = 13  # words of a passage shared with a benchmark
MAX_WORDS = 1500  # prompt and the longer answer: about 2,000 tokens of English
LANGUAGE_SAMPLE = 300  # pairs; telling a language takes milliseconds
_MIN_WORDS = 20  # fewer tell neither a language nor whether a text was cut
_COMMON = 0.05  # a share of truncated answers or ties from which on a note is a warning
_TURN = "\n\nAssistant:"  # of the HH data sets, whose rows are whole dialogues as text


@dataclass(frozen=True)
class Row:
    """A pair as the checks see it. ``columns``: the others of its row."""

    number: int
    prompt: str
    chosen: str
    rejected: str
    columns: Mapping[str, Any]

    @cached_property
    def prompt_words(self) -> list[str]:
        return words(self.prompt)

    @cached_property
    def chosen_words(self) -> list[str]:
        return words(self.chosen)

    @cached_property
    def rejected_words(self) -> list[str]:
        return words(self.rejected)


def examine(
    source: str | Path,
    *,
    against: Sequence[Path] = (),
    limit: int | None = None,
    gram: int = GRAM,
    max_words: int = MAX_WORDS,
) -> Report:
    """What is wrong with the preference data of a run folder, file or data set folder (its first ``limit`` rows).

    ``against``: benchmark files of which no ``gram`` words in a row may stand in the data. Raises InputError where
    there is no such file, where it holds no pair at all (the message names the kind of data and what fits), or where
    ``against`` cannot be read.
    """
    checks: list[Any] = [_Benchmark(path, gram) for path in against]
    checks += [_Labels(), _Repeats(), _Sensitive(), _Balance(), _Truncated(), _Long(max_words), _Languages()]
    reading = _Reading(Path(source).expanduser(), limit)
    for row in reading.pairs():
        for check in checks:
            check.add(row)
    findings = reading.findings()
    figures: dict[str, Any] = {}
    for check in checks:
        findings += check.findings(reading.rows)
        figures |= check.figures()
    return Report(
        source=reading.name,
        unit=reading.unit,
        format=describe(reading.shape),
        rows=reading.rows,
        pairs=reading.usable,
        findings=in_order(findings),
        figures=figures,
        skipped=[reason for check in checks if (reason := getattr(check, "skipped", None))],
    )


class _Reading:
    """The rows of the file, and what is wrong with them as rows."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.name, rows = read_rows(path)
        self._rows = itertools.islice(rows, limit)
        self.unit: Literal["line", "row"] = "row"
        self.rows = self.usable = 0
        self._bad = Tally()
        self._useless: dict[str, Tally] = {"identical": Tally(), "empty_answer": Tally(), "no_prompt": Tally()}
        self._shapes: dict[Shape, Tally] = {}

    def pairs(self) -> Iterator[Row]:
        """The usable rows. Raises InputError where there is none."""
        first: InputError | None = None
        for at, row in self._rows:
            self.unit = "line" if isinstance(at, int) else "row"
            number = at if isinstance(at, int) else int(at.rpartition(" ")[2])
            self.rows += 1
            try:
                if isinstance(row, InputError):
                    raise row
                pair, shape = read_pair(row, self.name, at)
            except InputError as error:
                first = first or error
                self._bad.add(number)
                continue
            self._shapes.setdefault(shape, Tally()).add(number)
            if reason := useless(pair):
                self._useless[reason].add(number)
                continue
            self.usable += 1
            yield Row(number, *_texts(pair), columns=row)
        if not self._shapes:
            raise first or InputError(f"{self.name}: no rows; give preference data (chosen, rejected, prompt).")

    @property
    def shape(self) -> Shape:
        """The format of most rows."""
        return max(sorted(self._shapes), key=lambda shape: self._shapes[shape].count)

    def findings(self) -> list[Finding]:
        found = self._bad.finding("schema", self.rows)
        for kind, tally in self._useless.items():
            found += tally.finding(kind, self.rows)
        for shape, tally in self._shapes.items():
            if shape != self.shape:
                found += tally.finding("mixed_format", self.rows, detail=describe(shape))
        return found


def _texts(pair: Pair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text. Where a dialogue is one text, the answer is its last turn, from its first
    word on, which the two may have in common."""
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        dialogues = (pair.prompt + pair.chosen, pair.prompt + pair.rejected)
        (prompt, turn, chosen), (other, _, rejected) = (text.rpartition(_TURN) for text in dialogues)
        if turn and prompt == other:
            return prompt + turn, chosen.strip(), rejected.strip()
        return pair.prompt, pair.chosen, pair.rejected
    prompt = pair.prompt if isinstance(pair.prompt, str) else "\n".join(turn["content"] for turn in pair.prompt)
    return prompt, pair.chosen_text, pair.rejected_text


class _Repeats:
    """The same or nearly the same prompts, answers and pairs."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._prompts, self._chosen, self._rejected = array("Q"), array("Q"), array("Q")
        self._pair_sketches, self._prompt_sketches = Sketches(), Sketches()

    def add(self, row: Row) -> None:
        self._numbers.append(row.number)
        self._prompts.append(text_hash(row.prompt))
        self._chosen.append(text_hash(row.chosen))
        self._rejected.append(text_hash(row.rejected))
        self._pair_sketches.add(row.chosen_words, row.rejected_words)
        self._prompt_sketches.add(row.prompt_words)

    def findings(self, total: int) -> list[Finding]:
        return [f for kind, tally in self._tallies().items() for f in tally.finding(kind, total)]

    def figures(self) -> dict[str, Any]:
        return {"distinct_prompts": len(set(self._prompts))}

    def _tallies(self) -> dict[str, Tally]:
        """Each row counts under the first kind that holds of it."""
        kinds = ("duplicate", "contradiction", "both_roles", "repeated_prompt", "near_duplicate", "near_prompt")
        tallies = {kind: Tally() for kind in kinds}
        rows: list[int] = []
        seen: set[int] = set()
        for i, pair in enumerate(self._keys(self._prompts, self._chosen, self._rejected)):
            if pair in seen:
                tallies["duplicate"].add(self._numbers[i])
            else:
                seen.add(pair)
                rows.append(i)
        rows = self._contradictions(rows, seen, tallies["contradiction"])
        rows = self._both_roles(rows, tallies["both_roles"])
        first: dict[int, int] = {}
        for i in rows:
            if first.setdefault(self._prompts[i], i) != i:
                tallies["repeated_prompt"].add(self._numbers[i])
        self._near(self._pair_sketches, rows, tallies["near_duplicate"])
        self._near(self._prompt_sketches, list(first.values()), tallies["near_prompt"])
        return tallies

    def _contradictions(self, rows: list[int], pairs: set[int], tally: Tally) -> list[int]:
        rest = []
        for i in rows:
            if hash((self._prompts[i], self._rejected[i], self._chosen[i])) in pairs:
                tally.add(self._numbers[i])
            else:
                rest.append(i)
        return rest

    def _both_roles(self, rows: list[int], tally: Tally) -> list[int]:
        chosen = {hash((self._prompts[i], self._chosen[i])) for i in rows}
        both = chosen & {hash((self._prompts[i], self._rejected[i])) for i in rows}
        rest = []
        for i in rows:
            if any(hash((self._prompts[i], answers[i])) in both for answers in (self._chosen, self._rejected)):
                tally.add(self._numbers[i])
            else:
                rest.append(i)
        return rest

    def _near(self, sketches: Sketches, rows: list[int], tally: Tally) -> None:
        for group in sketches.groups(rows):
            for i in group[1:]:  # the first is what the others repeat
                tally.add(self._numbers[i])

    @staticmethod
    def _keys(*columns: "array[int]") -> Iterator[int]:
        return (hash(hashes) for hashes in zip(*columns, strict=True))  # of integers: the same in every process


class _Benchmark:
    """Passages that stand in a benchmark too."""

    def __init__(self, path: Path, gram: int) -> None:
        self._path = path
        self._passages = Passages(_all_texts(path), gram)
        self._gram = gram
        self._tally = Tally()

    def add(self, row: Row) -> None:
        sides = {"prompt": row.prompt_words, "chosen": row.chosen_words, "rejected": row.rejected_words}
        if found := [side for side, tokens in sides.items() if self._passages.found_in(tokens)]:
            self._tally.add(row.number, *found)

    def findings(self, total: int) -> list[Finding]:
        where = ", ".join(f"{n} in the {side}" for side, n in sorted(self._tally.kinds.items()))
        return self._tally.finding("benchmark", total, detail=f"{self._gram} words of {self._path.name}: {where}")

    def figures(self) -> dict[str, Any]:
        return {f"against {self._path.name}": {"texts": self._passages.texts, "too_short": self._passages.short}}


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


class _Sensitive:
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


class _Balance:
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


class _Truncated:
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
    if text.count("```") % 2:
        return True
    last = text.rpartition("\n")[2].split()
    if len(last) < 6 or len(text.split()) < _MIN_WORDS or "://" in last[-1] or last[0] in ("-", "*", "•", "|"):
        return False
    return text[-1].islower() or text[-1] in ",;(-–—"


class _Long:
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


class _Labels:
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


class _Languages:
    """Languages of a sample: the pairs with the smallest hashes, so that it is the same whatever their order."""

    def __init__(self) -> None:
        from rlaif.verifiers.language import load

        self.skipped: str | None = None
        self._sample: list[tuple[int, int, str, str]] = []  # a heap of (minus hash, row, chosen, rejected)
        self._found: Counter[str] = Counter()
        try:
            load()
        except InputError as error:
            self.skipped = f"language: {error}"

    def add(self, row: Row) -> None:
        if self.skipped or min(len(row.chosen_words), len(row.rejected_words)) < _MIN_WORDS:
            return
        entry = (-text_hash(row.prompt, row.chosen, row.rejected), row.number, row.chosen, row.rejected)
        if len(self._sample) < LANGUAGE_SAMPLE:
            heapq.heappush(self._sample, entry)
        else:
            heapq.heappushpop(self._sample, entry)

    def findings(self, total: int) -> list[Finding]:
        from rlaif.verifiers.language import detect

        tally = Tally()
        for _, number, chosen, rejected in self._sample:
            one, other = detect(chosen), detect(rejected)
            self._found[one or "unknown"] += 1
            if one != other and None not in (one, other):
                tally.add(number)
        return tally.finding("language", len(self._sample), detail=f"of {len(self._sample)} looked at")

    def figures(self) -> dict[str, Any]:
        return {"languages": dict(self._found.most_common(10))} if self._found else {}
