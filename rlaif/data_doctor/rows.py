"""The rows of a file as the checks see them, and what is wrong with them as rows."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlaif.data_doctor.report import Finding, Tally
from rlaif.data_doctor.similar import words
from rlaif.errors import InputError
from rlaif.preferences import Pair, Shape, describe, read_pair, read_rows, useless

_TURN, _ASKED = "\n\nAssistant:", "\n\nHuman:"  # of the HH data sets, whose rows are whole dialogues as text


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


class Reading:
    """The rows of the file, and what is wrong with them as rows. ``unusable``: which are no pair, and why."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.name, rows = read_rows(path)
        self._rows = itertools.islice(rows, limit)
        self.unit: Literal["line", "row"] = "row"
        self.rows = self.usable = 0
        self._bad = Tally()
        self._useless: dict[str, Tally] = {"identical": Tally(), "empty_answer": Tally(), "no_prompt": Tally()}
        self._shapes: dict[Shape, Tally] = {}
        self.unusable: dict[int, str] = {}

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
                pair, shape = read_pair(_unlabelled(row), self.name, at)
            except InputError as error:
                first = first or error
                self._bad.add(number)
                self.unusable[number] = "no preference pair"
                continue
            self._shapes.setdefault(shape, Tally()).add(number)
            prompt, chosen, rejected = _texts(pair)
            reason = useless(pair) or ("identical" if chosen.strip() == rejected.strip() else None)
            if reason:
                self._useless[reason].add(number)
                self.unusable[number] = reason.replace("_", " ")
                continue
            self.usable += 1
            yield Row(number, prompt, chosen, rejected, columns=row)
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


def _unlabelled(row: Any) -> Any:
    """The row without its label: a wrong one makes it no less a pair, and is found by a check of its own."""
    return {**row, "prob_chosen": None} if isinstance(row, dict) and "prob_chosen" in row else row


def _texts(pair: Pair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text. Where a dialogue is one text, the answer is its last turn, from its first
    word on, which the two may have in common."""
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        dialogues = (pair.prompt + pair.chosen, pair.prompt + pair.rejected)
        (prompt, turn, chosen), (other, _, rejected) = (text.rpartition(_TURN) for text in dialogues)
        if (
            turn and prompt == other and _ASKED not in chosen
        ):  # else the last turn is a question, and the answer all of it
            return prompt + turn, chosen.strip(), rejected.strip()
        return pair.prompt, pair.chosen, pair.rejected
    prompt = pair.prompt if isinstance(pair.prompt, str) else "\n".join(turn["content"] for turn in pair.prompt)
    return prompt, pair.chosen_text, pair.rejected_text
