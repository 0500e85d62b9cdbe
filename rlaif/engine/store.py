"""The ledger's file: SQLite opened, locked, checked; rows as bytes; what SQLite's errors mean to a user."""

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from rlaif.errors import InputError, ProviderError, RlaifError
from rlaif.types import ChatReply, Row, Usage

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x524C4149  # "RLAI": tells our files from any other SQLite file
_CACHE_KIB = 4096  # of SQLite's own, for each connection: constant, whatever the ledger's size

# sources: one row for each (stage, model), with running totals, so that opening a ledger scans nothing.
# pending: one row for each request without a reply; error is NULL while it is on its way (or was, when it was killed).
_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, identity TEXT NOT NULL,
    stored INTEGER NOT NULL DEFAULT 0, paid INTEGER NOT NULL DEFAULT 0, largest_input INTEGER NOT NULL DEFAULT 0,
    lost_input INTEGER NOT NULL DEFAULT 0, lost_output INTEGER NOT NULL DEFAULT 0,
    {", ".join(f"{field} INTEGER NOT NULL DEFAULT 0" for field in Usage.model_fields)},
    UNIQUE (stage, identity)
);
CREATE TABLE requests (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, source INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE replies (id INTEGER PRIMARY KEY, checksum BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE pending (id INTEGER PRIMARY KEY, source INTEGER NOT NULL, session INTEGER NOT NULL, error TEXT);
"""

R = TypeVar("R", bound=Row)


class EmptyLedger(InputError):
    """A ledger to be read was begun and never made: a session was killed as it did so."""


class DamagedLedger(ProviderError):
    """SQLite finds the file damaged."""


# --------------------------------------------------------------------------------------------------- rows as bytes


def dump(row: Row) -> bytes:
    return pack(as_json(row))


def pack(text: bytes) -> bytes:
    return zlib.compress(text, 1)


def as_json(row: Row) -> bytes:
    try:
        return row.model_dump_json().encode()
    except PydanticSerializationError:  # a lone surrogate in some text: the standard library escapes it
        return json.dumps(row.model_dump(mode="json"), separators=(",", ":")).encode()


def load(model: type[R], body: bytes) -> R:
    return from_json(model, zlib.decompress(body))


def from_json(model: type[R], text: bytes) -> R:
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return model.model_validate(json.loads(text))


def seal(key: str, body: bytes) -> bytes:
    """A checksum of a reply's bytes that also ties them to their request."""
    return blake2b(body, key=key.encode(), digest_size=16).digest()


def verified(key: str, checksum: bytes, body: bytes) -> ChatReply | None:
    """The reply, or None for a row that is damaged or of another shape: it is as if it were not there."""
    if seal(key, body) != checksum:
        return None
    try:
        return load(ChatReply, body)
    except (zlib.error, ValueError):  # ValidationError and JSONDecodeError are ValueErrors
        return None


def add(*usages: Usage) -> Usage:
    return Usage(**{field: sum(getattr(usage, field) for usage in usages) for field in Usage.model_fields})


# ------------------------------------------------------------------------------------------------- opening, locking


class RunLock:
    """An flock on a file beside the ledger. The system releases it however the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = Path(f"{path}.lock")
        while True:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
                os.close(self._fd)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise InputError(f"{self._path}: cannot be locked ({error.strerror}).") from None
                raise InputError(
                    f"{path.parent}: another run (process {owner or 'unknown'}) is writing to this folder;"
                    " wait for it or choose another --out."
                ) from None
            if self._is_current():
                break
            os.close(self._fd)  # its owner removed it between our open and our lock
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _is_current(self) -> bool:
        try:
            on_disk, ours = self._path.stat(), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (on_disk.st_dev, on_disk.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    if read_only and not path.is_file():
        raise InputError(f"{path}: there is no ledger here; is this a run folder?")

    def open_(uri: str) -> sqlite3.Connection:
        # isolation_level=None: transactions are ours to begin and end.
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)

    uri = path.absolute().as_uri()
    try:
        # SQLite makes -wal and -shm files even for a reader, and leaves them; a reader must leave a folder as it was.
        alone = read_only and not Path(f"{path}-wal").exists() and not Path(f"{path}.lock").exists()
        db = open_(f"{uri}?{'immutable=1' if alone else 'mode=ro'}" if read_only else uri)
        if read_only and not alone:
            try:
                db.execute("SELECT 1 FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                # A finished run on a medium that cannot be written: no -shm file can be made, and none is needed.
                db.close()
                db = open_(f"{uri}?immutable=1")
        else:
            db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    except sqlite3.Error as error:
        raise storage_error(path, error) from None
    return db


def forget(path: Path) -> None:
    """Make the ledger at ``path`` as if it had never been used, but for what people voted.

    Where nobody did, the file goes. Where somebody did (they may have it open), it stays and is emptied."""
    if not (path.is_file() and _holds_votes(path) and _emptied(path)):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _holds_votes(path: Path) -> bool:
    try:
        with contextlib.closing(check(path, connect(path))) as db:
            return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'votes'").fetchall())
    except (InputError, DamagedLedger):  # not a ledger that we can read
        return False


def _emptied(path: Path) -> bool:
    """Empty the tables of a run. False where the file is damaged."""
    try:
        with contextlib.closing(connect(path)) as db, transaction(db):
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                if table not in _KEPT:
                    db.execute(f"DELETE FROM {table}")
    except sqlite3.Error as error:
        problem = storage_error(path, error)
        if not isinstance(problem, DamagedLedger):
            raise problem from None
        return False
    return True


_KEPT = {"meta", "votes", "voted", "sqlite_sequence"}


def check(path: Path, db: sqlite3.Connection, *, create: bool = False) -> sqlite3.Connection:
    """``db``, known to be a ledger of a version we read; an empty file becomes one when ``create``."""
    try:
        ((application,),) = db.execute("PRAGMA application_id")
        ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
        if create and tables == 0:
            db.execute("PRAGMA journal_mode = WAL")
            _create(db)
        elif tables == 0:
            raise EmptyLedger(f"{path}: is empty; the run was interrupted before it began, so run it again.")
        elif application != _APPLICATION_ID:
            raise InputError(f"{path}: this SQLite file is not a ledger of rlaif.")
        ((version,),) = db.execute("SELECT value FROM meta WHERE key = 'schema_version'")
    except sqlite3.Error as error:
        db.close()
        raise storage_error(path, error) from None
    except InputError:
        db.close()
        raise
    if int(version) != SCHEMA_VERSION:
        db.close()
        raise InputError(
            f"{path}: was written by another version of rlaif (ledger schema {version}, this one reads"
            f" {SCHEMA_VERSION}); upgrade rlaif, or start anew with --fresh."
        )
    return db


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        db.execute(statement)
    db.execute(f"INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}'), ('session', '0')")
    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    db.execute("COMMIT")


def storage_error(path: Path, error: sqlite3.Error) -> RlaifError:
    """One sentence for what SQLite says: exit 2 for a file that is no ledger, else 4 (what is stored is kept)."""
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith("SQLITE_NOTADB"):
        return InputError(f"{path}: is not an SQLite file, so not a ledger; choose another --out.")
    if code.startswith("SQLITE_CANTOPEN"):
        return InputError(f"{path}: cannot be opened; check that its folder exists and may be written.")
    if code.startswith("SQLITE_READONLY"):
        return InputError(f"{path}: cannot be written; check its permissions.")
    kept = "everything stored before is kept, and running again goes on from there"
    if code.startswith("SQLITE_FULL"):
        return ProviderError(f"{path}: the disk is full; free some space ({kept}).")
    if code.startswith("SQLITE_CORRUPT"):
        return DamagedLedger(f"{path}: the file is damaged ({error}); restore it, or start anew with --fresh.")
    return ProviderError(f"{path}: cannot be written ({error}; {code}); {kept}.")
