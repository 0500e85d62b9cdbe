"""Recorded verdicts, one a line: ``id``, ``order``, ``verdict``, ``label`` and perhaps ``p_a``, ``length_a`` and
``length_b`` (characters of the responses); other columns are left alone. Read and checked line by line."""

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rlaif.errors import InputError
from rlaif.judging.agreement import Look, Pair

ORDERS = ("ab", "ba")
VERDICTS = ("a", "b", "tie", "invalid")
LABELS = ("a", "b", "tie")
LENGTHS = ("length_a", "length_b")


class VerdictRow(NamedTuple):
    """A checked line. ``where``: file and line."""

    where: str
    id: str
    order: str
    look: Look
    label: str


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of verdicts, in the order of their first line.

    Raises InputError with file and line for a line that is none, a missing column, a value that is not offered, an
    order of a pair given twice, two labels for one pair, or a file without verdicts.
    """
    return pairs_of(read_rows(path), str(path))


def pairs_of(rows: Iterable[VerdictRow], name: str) -> list[Pair]:
    """``rows`` by pair; ``name`` stands for the file in messages."""
    found: dict[str, Pair] = {}
    for row in rows:
        old = found.get(row.id)
        if old is None:
            old = Pair(row.id, row.label)  # type: ignore[arg-type]
        elif old.label != row.label:
            raise InputError(
                f"{row.where}: the label of {row.id!r} is {row.label!r} here and was {old.label!r} before;"
                " a pair has one label."
            )
        if (old.ab if row.order == "ab" else old.ba) is not None:
            raise InputError(f"{row.where}: a verdict on {row.id!r} in order {row.order!r} was there before; keep one.")
        ab, ba = (row.look, old.ba) if row.order == "ab" else (old.ab, row.look)
        found[row.id] = Pair(old.id, old.label, ab, ba)
    if not found:
        raise InputError(f"{name}: no verdicts in it; a line is an object with id, order, verdict and label.")
    return list(found.values())


def read_rows(path: Path) -> Iterator[VerdictRow]:
    """The lines of ``path`` (JSONL, perhaps gzip), each checked; blank ones are skipped."""
    for number, row in json_lines(path):
        yield _checked(row, f"{path}:{number}")


def read_lengths(path: Path) -> dict[str, tuple[int, int]]:
    """The lengths of a and b by pair, of the lines that have them. Raises InputError for one that is no length."""
    found: dict[str, tuple[int, int]] = {}
    for number, row in json_lines(path):
        values = [row.get(name) for name in LENGTHS]
        if values == [None, None]:
            continue
        for name, value in zip(LENGTHS, values, strict=True):
            if type(value) is not int or value < 0:
                raise InputError(
                    f"{path}:{number}: {name!r} must be a number of characters, beside the other one"
                    f" (found {_shown(value)})."
                )
        found[str(row["id"])] = (values[0], values[1])
    return found


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line that is not blank. Raises InputError for a file that cannot be read or
    a line that is not JSON."""
    try:
        with _open(path) as lines:  # binary lines end at "\n" alone, not at U+2028 inside a text
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    # The bytes of a text: json would also take UTF-16, and a byte order mark is a common slip.
                    yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}:{number}: not a line of JSON ({error}).") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a .jsonl file.") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _checked(row: Any, where: str) -> VerdictRow:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected an object with id, order, verdict and label.")
    missing = [name for name in ("id", "order", "verdict", "label") if row.get(name) is None]
    if missing:
        raise InputError(f"{where}: {_listed(missing)} missing; columns found: {', '.join(map(str, row)) or 'none'}.")
    id_ = row["id"]
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        raise InputError(f"{where}: 'id' must be text or a whole number (found {_shown(id_)}).")
    for name, allowed in (("order", ORDERS), ("verdict", VERDICTS), ("label", LABELS)):
        if not isinstance(row[name], str) or row[name] not in allowed:
            raise InputError(f"{where}: '{name}' must be one of {', '.join(allowed)} (found {_shown(row[name])}).")
    return VerdictRow(where, str(id_), row["order"], Look(row["verdict"], _probability(row, where)), row["label"])


def _probability(row: Mapping[str, Any], where: str) -> float | None:
    p = row.get("p_a")
    if p is None:
        return None
    if isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or not 0 <= p <= 1:
        raise InputError(f"{where}: 'p_a' must be a probability, 0 to 1 (found {_shown(p)}).")
    if row["verdict"] == "invalid":
        raise InputError(f"{where}: an invalid verdict has no 'p_a'; leave it out.")
    return float(p)


def _listed(names: list[str]) -> str:
    return f"the column {names[0]!r} is" if len(names) == 1 else f"the columns {', '.join(map(repr, names))} are"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
