"""Preference data, as users have it, read into pairs: a run folder, a file in any of TRL's preference formats, or a
data set folder.

=====================  ===========================================================================================
format                 a row
=====================  ===========================================================================================
conversational         ``prompt``: messages, ``chosen`` and ``rejected``: the messages that answer
conversational,        ``chosen`` and ``rejected``: whole conversations; the messages they begin with in common are
implicit prompt        the prompt
plain                  ``prompt``, ``chosen``, ``rejected``: text; the completion goes on right where the prompt ends
plain, implicit        ``chosen`` and ``rejected``: whole texts; what they begin with in common is the prompt
=====================  ===========================================================================================

Files: JSONL (split on "\\n" only), JSON (a list of rows), CSV (text alone), parquet; all but the last also gzipped.
"""

import csv
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from rlaif.errors import InputError

Format = Literal["conversational", "plain"]
Shape = tuple[Format, bool]  # the format, and whether the prompt is implicit
Turn = dict[str, str]  # {"role": ..., "content": ...}
DropReason = Literal["identical", "empty_answer", "no_prompt"]

ACCEPTED = "chosen and rejected (and prompt): messages [{role, content}, ..] or text"
ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Pair:
    """One preference: ``chosen`` is better than ``rejected`` as an answer to ``prompt``. All three are lists of
    messages or all three are text. ``row`` is where it stood: "line 3" of a JSONL file, "row 3" elsewhere.
    ``prob_chosen``: how probably it is better, if the row says so. ``margin``: by how much, likewise."""

    prompt: list[Turn] | str
    chosen: list[Turn] | str
    rejected: list[Turn] | str
    row: str
    prob_chosen: float | None = None
    margin: float | None = None

    @property
    def chosen_text(self) -> str:
        return _text(self.chosen)

    @property
    def rejected_text(self) -> str:
        return _text(self.rejected)


@dataclass(frozen=True)
class Preferences:
    """The pairs of one source. ``pairs`` + ``dropped`` = ``rows``. ``digest``: SHA-256 of the pairs' content."""

    source: str
    format: Format
    implicit_prompt: bool
    rows: int
    pairs: tuple[Pair, ...]
    dropped: Counter[DropReason]
    digest: str


def read_preferences(source: str, limit: int | None = None) -> Preferences:
    """The pairs of a run folder, a preference file or a data set folder; at most ``limit`` of them.

    Raises InputError: no such file, a broken line (its number), missing columns (found and accepted), a data set of
    another kind (which), an empty one, or one without a single pair that prefers anything.
    """
    path = Path(source).expanduser()
    name, rows = read_rows(path)
    pairs: list[Pair] = []
    dropped: Counter[DropReason] = Counter()
    shape: Shape | None = None
    seen = 0
    for at, row in rows:
        if isinstance(row, InputError):
            raise row
        pair, found = read_pair(row, name, at)
        if shape is not None and found != shape:
            raise InputError(
                f"{place(name, at)}: this row is {describe(found)}, the rows before it are {describe(shape)};"
                " a file must hold one format."
            )
        shape, seen = found, seen + 1
        reason = useless(pair)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append(pair)
        if limit is not None and len(pairs) >= limit:
            break
    if shape is None:
        raise InputError(f"{name}: no rows; preference data has a row for each pair with {ACCEPTED}.")
    if not pairs:
        raise InputError(f"{name}: none of its {seen} rows prefers anything ({counted(dropped)}); nothing to learn.")
    return Preferences(name, shape[0], shape[1], seen, tuple(pairs), dropped, _digest(pairs))


def counted(counts: Counter[Any]) -> str:
    """ "3 identical, 1 empty_answer" """
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))


# ------------------------------------------------------------------------------------------------- finding the rows

At = int | str  # a line number of JSONL, or "row N"
Rows = Iterator[tuple[At, Any]]


def read_rows(path: Path) -> tuple[str, Rows]:
    """The name to speak of it by, and its rows with their places, as a stream. A row that cannot be read alone (a line
    that is no JSON) is the InputError that says so; raises InputError where nothing can be read at all."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; data is a run folder, a preference file or a data set folder.")
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    if plain.endswith((".jsonl", ".ndjson")):
        return str(path), _jsonl(path)
    if plain.endswith(".json"):
        return str(path), _json(path)
    if plain.endswith(".csv"):
        return str(path), _csv(path)
    if name.endswith(".parquet"):
        return str(path), _parquet(path)
    raise InputError(f"{path}: not a preference file; give .jsonl, .json, .csv (all also .gz) or .parquet.")


def _folder(path: Path) -> tuple[str, Rows]:
    pairs = path / "pairs.jsonl"
    if pairs.is_file():
        return str(pairs), _jsonl(pairs)
    if (path / "ledger.sqlite").exists():
        raise InputError(f"{path}: this run is not finished (no pairs.jsonl); run `rlaif generate` on it again.")
    return str(path), _data_set(path)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path}: not a whole gzip file; make it again or name it without .gz.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _jsonl(path: Path) -> Rows:
    with _opened(path) as file:
        # "\n" alone ends a row: splitlines() would also split at U+2028 and others that JSON strings may hold raw.
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, ten thousand brackets
                problem = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
                problem = "nested too deeply" if isinstance(error, RecursionError) else problem
                yield number, InputError(f"{path}:{number}: not valid JSON ({problem}).")
                continue
            # UTF-8 has no half of a pair, so only an escape can have made one.
            yield number, _whole(row, str(path), number) if _ESCAPED_HALF.search(line) else row


def _json(path: Path) -> Rows:
    try:
        with _opened(path) as file:
            data = json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = " (one row a line? name it .jsonl)" if error.msg == "Extra data" else ""
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}{hint}.") from None
    except ValueError:
        raise InputError(f"{path}: not UTF-8 text.") from None
    except RecursionError:
        raise InputError(f"{path}: not valid JSON: nested too deeply.") from None
    if not isinstance(data, list):
        raise InputError(f"{path}: expected a list of rows, found {_kind(data)}.")
    for i, row in enumerate(data):
        yield f"row {i + 1}", _whole(row, str(path), f"row {i + 1}")


_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def _whole(row: Any, name: str, at: At) -> Any:
    """``row``, or the InputError that says that its text is none: tokenizers, Arrow and files of UTF-8 refuse it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return InputError(f"{place(name, at)}: holds half a surrogate pair, which is not text.")
    return row


def _csv(path: Path) -> Rows:
    """Every cell is text, an empty one nothing; rows are counted without the header."""
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        number = 0
        try:
            for row in csv.DictReader(text, strict=True):
                number += 1
                if None in row or None in row.values():
                    where = place(str(path), f"row {number}")
                    yield f"row {number}", InputError(f"{where}: this row has not as many columns as the header.")
                else:
                    yield f"row {number}", {key: value if value != "" else None for key, value in row.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: after row {number}: not a row of CSV in UTF-8 ({error}).") from None


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        columns = [c for c in file.schema_arrow.names if c in _COLUMNS_READ] or file.schema_arrow.names
        number = 0
        for batch in file.iter_batches(batch_size=1000, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", _named(row, file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}).") from None


def _data_set(path: Path) -> Rows:
    for i, row in enumerate(load_data_set(path)):
        yield f"row {i + 1}", row


def is_saved(path: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` of ``datasets`` wrote."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def load_data_set(path: Path) -> Any:
    """The train split (or the only one) of a folder that ``datasets.load_dataset`` opens or ``save_to_disk`` wrote, as
    a `datasets.Dataset`. Raises InputError where it is none."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{path}: reading a data set folder needs `pip install 'rlaif[hub]'`.") from None
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(path)) if is_saved(path) else datasets.load_dataset(str(path))
    except Exception as error:  # noqa: BLE001  whatever a builder raises on whatever lies in the folder
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: neither a run folder (no pairs.jsonl) nor a data set that `datasets` opens ({problem})."
        ) from None
    if isinstance(loaded, dict):
        if "train" not in loaded and len(loaded) != 1:
            raise InputError(f"{path}: has the splits {', '.join(loaded)} and no 'train'; give the file of one split.")
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    return loaded


def _named(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    # Columns that were not read are still named, for the message about the kind of data set.
    return row if _is_preference(row) else {**dict.fromkeys(names), **row}


# ------------------------------------------------------------------------------------------- one row to one pair

_COLUMNS_READ = ("prompt", "chosen", "rejected", "prob_chosen", "margin", "source", "messages", "completion", "label")

_PAIRED = (("_a", "_b"), ("_1", "_2"), ("1", "2"), (" 1", " 2"))

# Columns that show what a data set is when it is none of preferences: the first that match.
_TWO_ANSWERS = "comparisons in columns of their own; name the better answer chosen and the other one rejected"
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    *(((f"{name}{a}", f"{name}{b}"), _TWO_ANSWERS) for name in ("response", "answer", "output") for a, b in _PAIRED),
    (("prompt", "a", "b"), "labelled comparisons, the format of `rlaif judge check`"),
    (("prompt", "completions", "labels"), "stepwise supervision (completions with a label for each step)"),
    (("prompt", "completion", "label"), "unpaired preferences (one completion and a label), for `rlaif train kto`"),
    (("prompt", "completions"), "samples without a judgement; `rlaif generate` with policy.completions judges them"),
    (("prompt", "completion"), "prompt-completion pairs, for supervised fine-tuning (`rlaif train sft`)"),
    (("messages",), "conversations, for supervised fine-tuning (`rlaif train sft`)"),
    (("conversations",), "conversations, for supervised fine-tuning"),
    (("instruction", "output"), "instructions with answers, for supervised fine-tuning"),
    (("text",), "text, for language modelling"),
    (
        ("prompt",),
        "prompts only; `rlaif generate` makes preferences from them, `rlaif train grpo` or ppo learn from a reward",
    ),
    (("question",), "questions only; `rlaif generate` makes preferences from them"),
    (("instruction",), "instructions only; `rlaif generate` makes preferences from them"),
)


def _is_preference(row: dict[str, Any]) -> bool:
    return row.get("chosen") is not None and row.get("rejected") is not None


def place(name: str, at: At) -> str:
    """ "pairs.jsonl:3" or "pairs.parquet, row 3" """
    return f"{name}:{at}" if isinstance(at, int) else f"{name}, {at}"


def read_pair(row: Any, name: str, at: At) -> tuple[Pair, Shape]:
    """The pair that a row of `read_rows` holds, and its format. Raises InputError where it holds none."""
    where = place(name, at)
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a row with {ACCEPTED}, found {_kind(row)}.")
    if not _is_preference(row):
        raise InputError(_missing(row, where))
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    stood = f"line {at}" if isinstance(at, int) else at
    label = _label(row, where)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None and not isinstance(prompt, str):
            raise InputError(f"{where}: prompt is {_kind(prompt)} but chosen and rejected are text; use one form.")
        if prompt is None:
            return Pair(*_split_text(chosen, rejected), stood, *label), ("plain", True)
        return Pair(prompt, chosen, rejected, stood, *label), ("plain", False)
    preferred, other = (read_turns(row[key], key, where) for key in ("chosen", "rejected"))
    if prompt is None:
        return Pair(*_split_turns(preferred, other), stood, *label), ("conversational", True)
    return Pair(read_turns(prompt, "prompt", where), preferred, other, stood, *label), ("conversational", False)


def _label(row: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    """(prob_chosen, margin). Other data sets have margins that are no numbers: those count as none given."""
    prob, margin = (_number(row.get(key)) for key in ("prob_chosen", "margin"))
    number = isinstance(prob, int | float) and not isinstance(prob, bool)
    if prob is not None and not (number and 0 <= prob <= 1):
        raise InputError(f"{where}: prob_chosen is {prob!r}; expected a probability, 0 to 1.")
    measured = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
    return None if prob is None else float(prob), float(margin) if measured else None


def _number(value: Any) -> Any:
    """``value``, or the number that a text is: CSV has nothing but text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _missing(row: dict[str, Any], where: str) -> str:
    found = ", ".join(row) or "none"
    lacking = [key for key in ("chosen", "rejected") if row.get(key) is None]
    named = [key for key in lacking if key in row]
    if len(lacking) == 1 or len(named) == 2:
        state = "is empty" if named else "is missing"
        return f"{where}: {' and '.join(named or lacking)} {state} (columns found: {found}; accepted: {ACCEPTED})."
    for columns, kind in _KINDS:
        if all(column in row for column in columns):
            return f"{where}: this is no preference data but {kind} (columns found: {found}; accepted: {ACCEPTED})."
    return f"{where}: no preference data (columns found: {found}; accepted: {ACCEPTED})."


def read_turns(value: Any, key: str, where: str) -> list[Turn]:
    """``value`` of the column ``key`` as messages. Raises InputError where it is none."""
    if isinstance(value, dict):  # one message without its list
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} is {_kind(value)}; expected messages [{{role, content}}, ..].")
    turns = []
    for message in value:
        if not isinstance(message, dict):
            raise InputError(f"{where}: {key} holds {_kind(message)}; expected messages {{role, content}}.")
        role, content = message.get("role"), message.get("content")
        if "from" in message and "value" in message and role is None:
            raise InputError(f"{where}: {key} is in ShareGPT's form (from, value); rename to role and content.")
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f"{where}: a message of {key} needs role and content as text; found {_keys(message)}.")
        if role not in ROLES:
            raise InputError(f"{where}: {key} has the role {role!r}; known are {', '.join(ROLES)}.")
        if message.get("tool_calls"):
            raise InputError(f"{where}: {key} has tool calls, which are not supported.")
        turns.append({"role": role, "content": content})
    return turns


def _split_turns(chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    shared = 0
    # The last message of each is its answer, even where the other conversation goes on from it.
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What the texts begin with in common is the prompt, up to a white space: no word is cut in two, and a completion
    begins with its space, as tokenizers have it. (The words that two completions begin with in common count as
    prompt; in the loss they cancel anyway.)"""
    if chosen == rejected:
        return "", chosen, rejected
    differ = (i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
    end = next(differ, min(len(chosen), len(rejected)))
    if not (chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()):
        while end > 0 and not chosen[end - 1].isspace():
            end -= 1
        if end > 0 and chosen[end - 1] == " ":
            end -= 1
    return chosen[:end], chosen[end:], rejected[end:]


def useless(pair: Pair) -> DropReason | None:
    """Why nothing can be learned from the pair, or None."""
    if pair.chosen == pair.rejected:
        return "identical"
    # An empty answer is what a failure leaves behind; preferred or not, it would teach the model to say nothing.
    if not pair.chosen_text.strip() or not pair.rejected_text.strip():
        return "empty_answer"
    if not (pair.prompt if isinstance(pair.prompt, list) else pair.prompt.strip()):
        return "no_prompt"
    return None


def _text(part: list[Turn] | str) -> str:
    return part if isinstance(part, str) else "\n".join(turn["content"] for turn in part)


def describe(shape: Shape) -> str:
    """ "plain with an implicit prompt" """
    return f"{shape[0]} with {'an implicit' if shape[1] else 'a'} prompt"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _keys(message: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {_kind(value)}" for key, value in message.items()) or "no keys"


def _digest(pairs: Sequence[Pair]) -> str:
    sha = hashlib.sha256()
    for pair in pairs:
        sha.update(json.dumps([pair.prompt, pair.chosen, pair.rejected], sort_keys=True).encode())
    return sha.hexdigest()
