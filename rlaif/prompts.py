"""Prompts from files: JSONL, CSV or parquet, or ``hf:owner/name``; read as a stream, every row checked.

Columns: ``prompt`` (text or messages), else ``messages``, ``question`` or ``instruction`` (with ``input``).
``reference``, ``tests`` and ``verifier`` are kept by name, everything else as metadata.
"""

import csv
import gzip
import io
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pydantic import ValidationError

from rlaif.errors import InputError
from rlaif.hashing import canonical_json, digest
from rlaif.types import Message, Prompt

ACCEPTED = "prompt, messages, question or instruction (with input)"
_TEXT_COLUMNS = ("prompt", "messages", "question", "instruction")
_FORMATS = "a .jsonl, .csv or .parquet file (the first two may end in .gz), or hf:owner/name"


class PromptFile(NamedTuple):
    """What a first pass over the prompts found: how many different ones, repeats, and a digest of their content."""

    prompts: int
    repeats: int
    digest: str


def check_prompts(source: str, *, samples: bool = False) -> PromptFile:
    """Read the whole file once, before anything is spent. Raises InputError naming the first broken row.

    ``samples``: the rows also hold ``completions`` (see `read_samples`)."""
    count, total, seen = 0, 0, 0
    ids = _Seen()
    for where, row in read_columns(source):
        total += 1
        if samples:
            _texts(where, row)
        prompt = _prompt(where, row)
        if ids.add(prompt.id):
            count += 1
            seen = (seen + int(prompt.id[2:], 16)) % 2**64  # a sum: the order of the rows does not matter
        elif samples:
            raise InputError(f"{where}: this prompt was there before; put all its completions into one row.")
    if count == 0:
        raise InputError(f"{source}: no prompts in it; it needs rows with {ACCEPTED}.")
    return PromptFile(count, total - count, f"{seen:016x}")


def read_prompts(source: str) -> Iterator[Prompt]:
    """The prompts, each once, in the file's order."""
    ids = _Seen()
    for where, row in read_columns(source):
        prompt = _prompt(where, row)
        if ids.add(prompt.id):
            yield prompt


def read_samples(source: str) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    """Samples made elsewhere: rows as for prompts, with ``completions``, a list of texts."""
    for where, row in read_columns(source):
        texts = _texts(where, row)
        yield _prompt(where, row), texts


def read_rows(source: str) -> Iterator[tuple[str, Prompt]]:
    """Every row, repeats too: where it stands, and its prompt with the other columns as metadata."""
    for where, row in read_columns(source):
        yield where, _prompt(where, row)


def _texts(where: str, row: dict[str, Any]) -> tuple[str, ...]:
    texts = row.pop("completions", None)
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{where}: 'completions' must be a list of texts; other columns found: {', '.join(row)}.")
    return tuple(texts)


class _Seen:
    """A set of prompt ids, 64 bits each: a hash table in an array. It is the one thing that grows with the number of
    prompts, by 12 to 24 bytes each (a Python set takes six times as much)."""

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))  # 0: free
        self._used = 0

    def add(self, prompt_id: str) -> bool:
        """Whether ``prompt_id`` is new."""
        if 3 * self._used >= 2 * len(self._table):
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for id_ in filter(None, old):
                self._table[self._place(id_)] = id_
        id_ = int(prompt_id[2:], 16) or 1
        place = self._place(id_)
        if self._table[place] == id_:
            return False
        self._table[place] = id_
        self._used += 1
        return True

    def _place(self, id_: int) -> int:
        """Where ``id_`` is, or the free place where it belongs. The ids are hashes already."""
        table, last = self._table, len(self._table) - 1
        place = id_ & last
        while table[place] and table[place] != id_:
            place = (place + 1) & last
        return place


def _prompt(where: str, row: dict[str, Any]) -> Prompt:
    column = next((c for c in _TEXT_COLUMNS if row.get(c) is not None), None)
    if column is None:
        raise InputError(f"{where}: no prompt in this row; columns found: {', '.join(row)}; accepted: {ACCEPTED}.")
    value = row.pop(column)
    if column == "instruction" and (extra := row.pop("input", None)):
        value = f"{value}\n\n{extra}"
    content = value if isinstance(value, list) else [{"role": "user", "content": value}]
    try:
        messages = tuple(Message.model_validate(m) for m in content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"{where}: '{column}' must be text or a list of messages with role (system, user, assistant) and content"
            f" ({'.'.join(map(str, first['loc'])) or column}: {first['msg']})."
        ) from None
    if not messages or not any(m.content.strip() for m in messages):
        raise InputError(f"{where}: the prompt is empty.")
    if messages[-1].role != "user":
        raise InputError(
            f"{where}: the messages end with role '{messages[-1].role}'; a prompt ends with the user's turn."
        )
    reference, tests, verifier = row.pop("reference", None), row.pop("tests", None), row.pop("verifier", None)
    reference = None if reference is None else reference if isinstance(reference, str) else canonical_json(reference)
    if verifier is not None and not isinstance(verifier, str):
        raise InputError(f"{where}: 'verifier' must be the name of a verifier.")
    id_ = "p-" + digest([m.model_dump() for m in messages], reference, tests, verifier)
    return Prompt(id=id_, messages=messages, reference=reference, tests=tests, verifier=verifier, metadata=row)


def read_columns(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) for each row; every error names the row."""
    if source.startswith("hf:"):
        yield from _hub_rows(source)
        return
    path = Path(source)
    if not path.exists():
        raise InputError(f"{source}: no such file; prompts are {_FORMATS}.")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix in (".jsonl", ".jsonl.gz", ".ndjson"):
        yield from _jsonl_rows(path)
    elif suffix in (".csv", ".csv.gz"):
        yield from _csv_rows(path)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise InputError(f"{source}: not a format for prompts; give {_FORMATS}.")


def _open(path: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}).") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path) as file:  # binary lines end at "\n" alone, not at U+2028 inside a text
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
                json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{where}: holds half a surrogate pair, which is not text.") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not a line of JSON ({error}).") from None
            if not isinstance(row, dict):
                raise InputError(f"{where}: expected a JSON object with {ACCEPTED}.")
            yield where, row


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}).") from None


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: this row has not as many columns as the header.")
                yield where, {key: value for key, value in row.items() if value != ""}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}:{reader.line_num + 1}: not a row of CSV in UTF-8 ({error}).") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}).") from None


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{source}: reading from the hub needs the extra: pip install 'rlaif[hub]'.") from None
    name, _, split = source.removeprefix("hf:").partition("@")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source}: row {number}", dict(row)
    except Exception as error:  # noqa: BLE001  (a third-party boundary: many kinds of network and format errors)
        raise InputError(f"{source}: cannot be loaded ({type(error).__name__}: {error}).") from None
