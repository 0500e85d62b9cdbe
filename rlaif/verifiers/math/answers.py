"""The types an answer can have. `parse` makes them from text, `compare` says which are equal."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class Number:
    """A rational, exact. ``digits``: significant digits where it was written as a decimal (``0.250`` has 2), else 0.
    ``unit_in_last_place``: what one step in its last written digit is worth."""

    value: Fraction
    digits: int = 0
    unit_in_last_place: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Expr:
    """Mathematics that is no rational number: roots, symbols, functions. Two are equal if a computer algebra says so,
    or if they are spelled the same."""

    latex: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or expression with a unit: a measure of `units.UNITS`, "%", or a counted noun ("apple")."""

    amount: "Number | Expr"
    unit: str


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number written in a named base: ``1011_2``. The base is part of the answer."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a multiple-choice question, by its letter; ``says``: what stands behind it, as in "(C) 14"."""

    letter: str
    says: "Answer | None" = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words. ``words`` is folded: case, articles and outer punctuation do not count."""

    words: str


@dataclass(frozen=True, slots=True)
class Tuple:
    """Ordered: a point, a vector, a ratio. ``brackets`` is "()", "[]" or ":"."""

    brackets: str
    items: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Interval:
    """``brackets``: "[)" includes the left end only. (1, 2) without more is read as a `Tuple`."""

    brackets: str
    low: "Answer"
    high: "Answer"


@dataclass(frozen=True, slots=True)
class Set:
    """Unordered: ``{1, 2}``, "1, 2", "1 or 2", ``\\pm 3``. Repetitions do not count."""

    items: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Union:
    """Of intervals and sets; unordered."""

    parts: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: "tuple[tuple[Answer, ...], ...]"


@dataclass(frozen=True, slots=True)
class Relation:
    """``sides`` joined by ``operators`` ("=", "<", "\\le", "\\in", ...), as they were written."""

    operators: tuple[str, ...]
    sides: "tuple[Answer, ...]"


Answer = Number | Expr | Quantity | Numeral | Choice | Text | Tuple | Interval | Set | Union | Matrix | Relation


def leaves_of(answer: Any) -> Iterator[Expr]:
    """All expressions in an answer."""
    if isinstance(answer, Expr):
        yield answer
    elif isinstance(answer, tuple):
        for item in answer:
            yield from leaves_of(item)
    elif isinstance(answer, Answer) and not isinstance(answer, Number):
        for field in fields(answer):
            yield from leaves_of(getattr(answer, field.name))
