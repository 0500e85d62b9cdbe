"""What a run's ledger knows of its batches: which were made, of which requests, and what came back.

A batch is committed here, with the keys of its requests, before it is submitted; its name as soon as the provider tells
it; and each reply before anybody sees it. So a run that is killed at any moment finds its batches again, and a request
is never part of two batches that may both answer it.

Two tables in the ledger's file, made when the first batch is. A reply stays here until the ledger has it under the key
of the request that was asked. (That may be another one, where a wrapper in between leaves out a parameter that the
model refuses; then it stays here for good.)
"""

import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from rlaif.clients.base import Identity
from rlaif.clients.batch import BatchState, Mark
from rlaif.engine.ledger import Ledger
from rlaif.types import Row

# submitting: intended; the provider may have it or not. live: the provider has it, and its results are not all here.
# ended, failed, lost (never arrived), forgotten (by the user): over.
Status = Literal["submitting", "live", "ended", "failed", "lost", "forgotten"]

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS batches (
        row INTEGER PRIMARY KEY, identity TEXT NOT NULL, marker TEXT NOT NULL, since TEXT NOT NULL,
        created REAL NOT NULL, requests INTEGER NOT NULL, status TEXT NOT NULL, name TEXT,
        confirmed INTEGER NOT NULL DEFAULT 0, online INTEGER NOT NULL DEFAULT 0, not_ours TEXT NOT NULL DEFAULT '[]',
        state TEXT, updated REAL NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS batch_items (key TEXT PRIMARY KEY, batch INTEGER NOT NULL, reply BLOB)",
    "CREATE INDEX IF NOT EXISTS batch_items_by_batch ON batch_items (batch)",
)
_COLUMNS = "row, identity, marker, since, created, requests, status, name, confirmed, online, not_ours, state, updated"


class BatchRecord(Row):
    """One batch.

    ``name``: the provider's id for it; ``confirmed``: it is certainly ours; ``not_ours``: names that were taken for it,
    wrongly. ``online``: what it leaves unanswered is asked online. ``created`` and ``updated``: seconds since 1970, by
    this machine's clock. ``state``: as the provider last described it.
    """

    row: int
    identity: Identity
    marker: str
    since: Mark
    created: float
    requests: int
    status: Status
    name: str | None
    confirmed: bool
    online: bool
    not_ours: tuple[str, ...]
    state: BatchState | None
    updated: float

    @property
    def is_open(self) -> bool:
        return self.status in ("submitting", "live")


class BatchItem(NamedTuple):
    """Where a request is: its batch, that batch's status, and the JSON of the reply, if it is there."""

    batch: int
    status: Status
    online: bool
    reply: dict[str, Any] | None


class BatchTable:
    """The batches of one ledger. Writing methods return when what they write is durable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # ---------------------------------------------------------------------------------------------------- reading

    def records(self) -> list[BatchRecord]:
        """All batches, oldest first."""
        if not self._ledger.read("SELECT 1 FROM sqlite_master WHERE name = 'batches'"):
            return []
        return [_record(row) for row in self._ledger.read(f"SELECT {_COLUMNS} FROM batches ORDER BY row")]

    def open_records(self, identity: Identity) -> list[BatchRecord]:
        """The batches of a model that are not over."""
        return [record for record in self.records() if record.is_open and record.identity == identity]

    def item(self, key: str) -> BatchItem | None:
        sql = """SELECT batch, status, online, reply FROM batch_items JOIN batches ON batches.row = batch
                 WHERE key = ?"""
        for batch, status, online, reply in self._ledger.read(sql, key):
            return BatchItem(batch, status, bool(online), None if reply is None else json.loads(zlib.decompress(reply)))
        return None

    def members(self, row: int, keys: Sequence[str]) -> set[str]:
        """Which of ``keys`` (a few hundred) belong to the batch."""
        marks = ",".join("?" * len(keys))
        sql = f"SELECT key FROM batch_items WHERE batch = ? AND key IN ({marks})"
        return {key for (key,) in self._ledger.read(sql, row, *keys)}

    # ---------------------------------------------------------------------------------------------------- writing

    async def open(self) -> None:
        """Make the tables; drop the items whose reply the ledger has."""

        def work(db: sqlite3.Connection) -> None:
            for statement in _SCHEMA:
                db.execute(statement)
            _purge(db)

        await self._ledger.write(work)

    async def purge(self) -> None:
        """Drop the items whose reply the ledger has."""
        await self._ledger.write(_purge)

    async def intend(self, identity: Identity, marker: str, since: Mark, keys: Sequence[str]) -> BatchRecord:
        """Note that a batch of these requests is about to be submitted."""
        now = time.time()
        identity_json, since_json = identity.model_dump_json(), since.model_dump_json()

        def work(db: sqlite3.Connection) -> int:
            cursor = db.execute(
                "INSERT INTO batches (identity, marker, since, created, requests, status, updated)"
                " VALUES (?, ?, ?, ?, ?, 'submitting', ?)",
                (identity_json, marker, since_json, now, len(keys), now),
            )
            row = cursor.lastrowid
            db.executemany("INSERT OR REPLACE INTO batch_items (key, batch) VALUES (?, ?)", [(k, row) for k in keys])
            return int(row or 0)

        await self._ledger.write(work)
        (found,) = self._ledger.read(f"SELECT {_COLUMNS} FROM batches WHERE marker = ?", marker)
        return _record(found)

    async def found(self, row: int, state: BatchState, *, confirmed: bool) -> None:
        """The batch is at the provider under this name; not ``confirmed``: so it seems."""
        await self._set(row, status="live", name=state.id, confirmed=int(confirmed), state=state.model_dump_json())

    async def touch(self, row: int) -> None:
        """It is about to be submitted once more."""
        await self._set(row)

    async def reject(self, record: BatchRecord, name: str) -> None:
        """The batch of that name is somebody else's; ours is to be looked for again."""
        names = json.dumps([*record.not_ours, name])
        await self._set(record.row, status="submitting", name=None, confirmed=0, state=None, not_ours=names)

    async def update(self, row: int, state: BatchState) -> None:
        await self._set(row, state=state.model_dump_json())

    async def go_online(self, row: int) -> None:
        """What the batch leaves unanswered is to be asked online."""
        await self._set(row, online=1)

    async def store(self, row: int, replies: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Keep the replies of requests that are part of the batch."""
        bodies = [(zlib.compress(json.dumps(reply).encode(), 1), key, row) for key, reply in replies]

        def work(db: sqlite3.Connection) -> None:
            db.executemany("UPDATE batch_items SET reply = ? WHERE key = ? AND batch = ?", bodies)

        if bodies:
            await self._ledger.write(work)

    async def end(self, row: int, status: Status, state: BatchState | None = None) -> None:
        """The batch is over: requests without a reply may be sent again. Those to be asked online stay known."""
        told = {} if state is None else {"state": state.model_dump_json()}

        def work(db: sqlite3.Connection) -> None:
            _update(db, row, status=status, **told)
            db.execute(
                "DELETE FROM batch_items WHERE batch = ? AND reply IS NULL"
                " AND (? OR NOT (SELECT online FROM batches WHERE row = ?))",
                (row, status == "forgotten", row),
            )

        await self._ledger.write(work)

    async def drop(self, key: str) -> None:
        """The reply of this request is none."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM batch_items WHERE key = ?", (key,))

        await self._ledger.write(work)

    async def _set(self, row: int, **columns: Any) -> None:
        await self._ledger.write(lambda db: _update(db, row, **columns))


def _update(db: sqlite3.Connection, row: int, **columns: Any) -> None:
    names = "".join(f"{name} = ?, " for name in columns)
    db.execute(f"UPDATE batches SET {names}updated = ? WHERE row = ?", (*columns.values(), time.time(), row))


def _purge(db: sqlite3.Connection) -> None:
    db.execute(
        "DELETE FROM batch_items WHERE key IN"
        " (SELECT batch_items.key FROM batch_items JOIN requests USING (key) JOIN replies ON replies.id = requests.id)"
    )


def _record(row: tuple[Any, ...]) -> BatchRecord:
    values = dict(zip(map(str.strip, _COLUMNS.split(",")), row, strict=True))
    state = values["state"]
    return BatchRecord(
        **values
        | {
            "identity": Identity.model_validate_json(values["identity"]),
            "since": Mark.model_validate_json(values["since"]),
            "confirmed": bool(values["confirmed"]),
            "online": bool(values["online"]),
            "not_ours": tuple(json.loads(values["not_ours"])),
            "state": None if state is None else BatchState.model_validate_json(state),
        }
    )
