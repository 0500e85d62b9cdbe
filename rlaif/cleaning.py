"""`rlaif data clean`: preference data without the rows that should not be trained on, in the format it came in.

What stays is copied as it stands (a JSONL line byte for byte, a parquet row with every column); what goes is written to
a second file, NAME.removed.jsonl beside the first, with its reason and the row it repeats. ``kept + removed == rows``.
Both are written under temporary names and renamed, and neither replaces a file that is there.
"""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rlaif.config.base import Config
from rlaif.config.dataset import GRAM, DatasetConfig, Drop
from rlaif.data_doctor import Removal, Removals, find_removals
from rlaif.data_folder import PAIRS, TRAIN, write_data
from rlaif.errors import InputError, QualityError
from rlaif.preferences import is_saved, load_data_set
from rlaif.runs import MANIFEST, write_manifest

DEFAULT: tuple[Drop, ...] = ("unusable", "duplicates", "near_duplicates")
_SENSITIVE = ("secret", "personal")


class Cleaned(Config):
    """What was done. ``kept`` + the sum of ``removed`` (by reason) = ``rows``."""

    source: str
    out: str
    removed_file: str
    rows: int
    kept: int
    removed: dict[str, int]


class Taken(NamedTuple):
    """One row of the source as it was copied, or, where it was not, what it held."""

    number: int
    stays: bool
    row: Any = None


# Copies the rows of a source into a new file or folder, except some, and tells of each.
Copier = Callable[[Path, Path, Collection[int]], Iterator[Taken]]


def clean(
    source: str | Path,
    out: str | Path,
    *,
    drop: Collection[Drop] | None = None,
    against: Sequence[Path] = (),
    gram: int = GRAM,
) -> Cleaned:
    """Write the preference data of ``source`` (a run folder, file or data set folder) to ``out`` without some rows.

    ``drop``: which (see rlaif.data_doctor.removal; default: `DEFAULT`, and "overlap" where ``against`` names
    benchmarks). Raises InputError, with nothing written, where ``source`` is no preference data or ``out`` exists or is
    of another format; QualityError, with all written, where no row stays.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    wanted = drop if drop is not None else (*DEFAULT, *(("overlap",) if against else ()))
    if bool(against) != ("overlap" in wanted):
        raise InputError("Removing overlap needs benchmarks (--against FILE), and they are for nothing else here.")
    copier = _copier(source, out)
    removed_file = out.with_name(f"{_stem(out)}.removed.jsonl")
    for path in (out, removed_file):
        if path.exists():
            raise InputError(f"{path}: is there already; give another --out or remove it.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder to write to.")
    found = find_removals(source, wanted, against=against, gram=gram)
    with _temporary(removed_file) as removed_temporary, _temporary(out) as temporary:
        kept = _write(copier(source, temporary, found.removed), found, removed_temporary)
        if copier is _copy_run:
            _finish_run(source, temporary, found, DatasetConfig(drop=(), against=tuple(against), ngram=gram))
        removed_temporary.replace(removed_file)
        temporary.replace(out)
    if not kept:
        raise QualityError(f"{out}: none of the {found.rows:,} rows stays; {removed_file} says why.")
    return Cleaned(
        source=str(source),
        out=str(out),
        removed_file=str(removed_file),
        rows=found.rows,
        kept=kept,
        removed=dict(sorted(found.counts.items())),
    )


def _write(taken: Iterator[Taken], found: Removals, removed_file: Path) -> int:
    """How many rows stay. Raises InputError where the source is not what was looked at."""
    kept = gone = 0
    with removed_file.open("w", encoding="utf-8", newline="\n") as file:
        for number, stays, row in taken:
            kept += stays
            gone += not stays
            if not stays:
                file.write(_removed_line(found.unit, number, found.removed[number], row))
    if (kept + gone, gone) != (found.rows, len(found.removed)):
        raise InputError("The rows changed while they were read; nothing was written.")
    return kept


def _removed_line(unit: str, number: int, why: Removal, row: Any) -> str:
    told: dict[str, Any] = {unit: number, "reason": why.reason, "detail": why.detail}
    if why.other is not None:
        told["contradicts" if why.reason == "contradiction" else "repeats"] = why.other
    if why.reason not in _SENSITIVE:  # a secret is not written down again
        told["content"] = row
    try:
        return json.dumps(told, default=str, allow_nan=False) + "\n"
    except ValueError:  # a number that JSON does not know
        return json.dumps(told | {"content": str(row)}) + "\n"


# ------------------------------------------------------------------------------------------------------- the formats


def _copier(source: Path, out: Path) -> Copier:
    """How to copy ``source``. Raises InputError where ``out`` is of another kind."""
    if source.is_dir():
        if out.suffix in (".jsonl", ".json", ".csv", ".parquet", ".gz"):
            raise InputError(f"{out}: {source} is a folder, so what stays of it is one, too; give a folder as --out.")
        return _copy_run if (source / PAIRS).is_file() else _copy_data_set
    ending = _ending(source)
    copiers = {".jsonl": _copy_jsonl, ".ndjson": _copy_jsonl, ".json": _copy_json, ".csv": _copy_csv}
    if ending != ".parquet" and ending not in copiers:
        raise InputError(f"{source}: not a preference file; give .jsonl, .json, .csv (all also .gz) or .parquet.")
    if ending != _ending(out):
        raise InputError(f"{out}: the format stays as it is; give a name that ends in {ending} as --out.")
    return copiers.get(ending, _copy_parquet)


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() == _ending(path) else name


def _copy_jsonl(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    with _reading(source) as rows, _writing(out) as file:
        for number, line in enumerate(rows, start=1):
            if not line.strip():
                continue
            if number not in removed:
                file.write(line if line.endswith(b"\n") else line + b"\n")
                yield Taken(number, True)
                continue
            text = line.decode("utf-8-sig", "replace")
            try:
                yield Taken(number, False, json.loads(text))
            except ValueError:
                yield Taken(number, False, text.rstrip("\n"))


def _copy_json(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    with _reading(source) as file:
        rows = json.loads(file.read().decode("utf-8-sig"))
    with _writing(out) as file:
        file.write(b"[")
        separator = b"\n"
        for number, row in enumerate(rows, start=1):
            if number in removed:
                yield Taken(number, False, row)
                continue
            file.write(separator + _json_bytes(row))
            separator = b",\n"
            yield Taken(number, True)
        file.write(b"\n]\n")


def _json_bytes(row: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row).encode()


def _copy_csv(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    with (
        _reading(source) as binary,
        _writing(out) as file,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
        io.TextIOWrapper(file, encoding="utf-8", newline="") as copy,
    ):
        rows = (row for row in csv.reader(text) if row)
        writer = csv.writer(copy, lineterminator="\n")
        header = next(rows)
        writer.writerow(header)
        for number, row in enumerate(rows, start=1):
            if number in removed:
                yield Taken(number, False, dict(zip(header, row, strict=True)) if len(row) == len(header) else row)
            else:
                writer.writerow(row)
                yield Taken(number, True)


def _copy_parquet(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    number = 0
    with pq.ParquetWriter(out, file.schema_arrow) as writer:
        for batch in file.iter_batches(batch_size=1000):
            numbers = range(number + 1, number + 1 + batch.num_rows)
            number += batch.num_rows
            stay = [i for i, n in enumerate(numbers) if n not in removed]
            writer.write_batch(batch if len(stay) == batch.num_rows else batch.take(_indices(stay)))
            gone = [i for i, n in enumerate(numbers) if n in removed]
            yield from (Taken(numbers[i], True) for i in stay)
            rows = batch.take(_indices(gone)).to_pylist() if gone else []
            yield from (Taken(numbers[i], False, row) for i, row in zip(gone, rows, strict=True))


def _indices(places: list[int]) -> Any:
    import pyarrow as pa

    return pa.array(places, pa.int64())


def _copy_data_set(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    loaded = load_data_set(source)
    stay = [i for i in range(len(loaded)) if i + 1 not in removed]
    staying = loaded.select(stay)
    out.mkdir()
    if is_saved(source):
        staying.save_to_disk(str(out))
    else:
        staying.to_parquet(str(out / TRAIN))
    for i in range(len(loaded)):
        yield Taken(i + 1, False, loaded[i]) if i + 1 in removed else Taken(i + 1, True)


def _copy_run(source: Path, out: Path, removed: Collection[int]) -> Iterator[Taken]:
    out.mkdir()
    yield from _copy_jsonl(source / PAIRS, out / PAIRS, removed)


def _finish_run(source: Path, out: Path, found: Removals, config: DatasetConfig) -> None:
    """data/ with its card, and the manifest of the run with what was taken out of it."""
    try:
        manifest = json.loads((source / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise InputError(
            f"{source}: has no readable {MANIFEST}, so its card cannot be written; give {PAIRS}."
        ) from None
    step = {"removed": dict(sorted(found.counts.items())), "against": [path.name for path in config.against]}
    manifest["cleaned"] = [*manifest.get("cleaned", ()), step]
    report = write_data(out, manifest, config)
    manifest["data"] = report.summary() if report else None
    write_manifest(out, manifest)


# --------------------------------------------------------------------------------------------------------- the files


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    zipped = path.name.lower().endswith(".gz")
    with cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb") as file:
        yield file


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not path.name.lower().endswith(".gz"):
            yield file
            return
        # No time and no name in it: the same rows are the same bytes.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to before it is renamed; what is left of it is removed."""
    temporary = path.with_name(f".tmp-{path.name}")
    _remove(temporary)  # of a process that was killed
    try:
        yield temporary
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from None
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
