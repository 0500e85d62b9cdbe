"""What writes the ledger: group commits that never hold up the event loop.

Statements run in the event loop's thread, a few microseconds each; only COMMIT, which waits for the disk, runs in a
thread of its own. What is posted meanwhile goes into the next transaction, so all requests in flight share the price of
a flush. (With the statements in the thread, too, each of them would wait for Python's lock whenever the loop is busy.)
"""

import asyncio
import contextlib
import math
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from rlaif.engine.store import add, seal, storage_error
from rlaif.errors import InputError, RlaifError
from rlaif.types import Usage

MAX_BATCH = 512  # operations in one transaction
CROWD = 8  # requests on their way from which on commits are
INTERVAL = 0.01  # seconds apart
NOT_SENT = "not sent"  # cancelled after its claim was committed, and before it was sent

Source = tuple[str, str]  # stage, identity as JSON


class Claim(NamedTuple):
    """A request about to be sent. ``row``: its row, if it has one already. The waiter gets the row."""

    key: str
    source: Source
    body: bytes
    row: int | None
    waiter: "asyncio.Future[int]"


class Settle(NamedTuple):
    """The reply of a claimed request. ``replaces``: there is an unusable one already."""

    row: int
    source: Source
    key: str
    body: bytes
    usage: Usage
    replaces: bool
    waiter: "asyncio.Future[None]"


class Fail(NamedTuple):
    row: int
    error: str


class Lose(NamedTuple):
    source: Source
    input_tokens: int
    output_tokens: int
    key: str | None


class Work(NamedTuple):
    """A transaction of somebody else's tables, in this file."""

    work: Callable[[sqlite3.Connection], Any]
    waiter: "asyncio.Future[Any]"


Operation = Claim | Settle | Fail | Lose | Work


class _Batch:
    """The operations of one transaction, and what their waiters get once it is durable."""

    def __init__(self, operations: list[Operation], *, again: bool = False) -> None:
        self.operations, self.again = operations, again
        self.results: list[tuple[asyncio.Future[Any], Any]] = []
        self.claims: list[tuple[Claim, int]] = []  # with their rows
        self.error: sqlite3.Error | None = None


class Writer:
    """The one writer of a ledger, for one event loop at a time. ``session``: how often the ledger was opened."""

    def __init__(self, path: Path, connection: sqlite3.Connection, crowd: Callable[[], int]) -> None:
        self._path, self._db = path, connection
        self._crowd = crowd  # how many requests are on their way
        self._begun_at = -math.inf  # when the last transaction began
        self._waiting: deque[Operation] = deque()
        self._sources: dict[Source, int] = {}
        self._uncommitted: dict[str, int] = {}  # rows of requests that a reader cannot see yet
        self._broken: RlaifError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = self._closed = False
        self._underway: _Batch | None = None
        self.session, self._next_row = self._begin_session()
        self._commits: queue.SimpleQueue[tuple[_Batch, asyncio.AbstractEventLoop] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="rlaif-ledger", daemon=True)
        self._thread.start()

    def _begin_session(self) -> tuple[int, int]:
        """(the number of this session, the next free row): kill -9 leaves rows of an older session pending."""
        try:
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'session'")
            ((session,),) = self._db.execute("SELECT value FROM meta WHERE key = 'session'")
            ((last,),) = self._db.execute("SELECT coalesce(max(id), 0) FROM requests")
        except sqlite3.Error as error:
            raise storage_error(self._path, error) from None
        return int(session), int(last) + 1

    def post(self, operation: Operation) -> None:
        """Put an operation into the next transaction. Outside a running loop it waits for one, or for `close`."""
        self._waiting.append(operation)
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            if loop is not self._loop:
                self._idle.wait()
                self._loop, self._scheduled, self._begun_at = loop, False, -math.inf
                if self._underway is not None:
                    self._committed(self._underway)  # in an earlier loop, where nobody was left to hear of it
            self._schedule()

    def close(self) -> None:
        """Commit what was posted, and stop."""
        self._closed = True
        self._commits.put(None)
        self._thread.join()
        if self._underway is not None:
            self._committed(self._underway)
        while self._waiting:
            batch = self._next_batch()
            self._refuse_claims(batch, InputError(f"{self._path}: the ledger was closed before this was sent."))
            try:
                self._write(batch)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                batch.results = [(op.waiter, storage_error(self._path, error)) for op in batch.operations if _waits(op)]
            _set_results(batch.results)
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    # ----------------------------------------------------------------------------------------- in the loop's thread

    def _schedule(self) -> None:
        """Begin the next transaction once the last has ended, or, when many wait, after `INTERVAL`: a commit takes
        a good deal of CPU whatever it holds, and then the few milliseconds matter to nobody."""
        if self._scheduled or self._underway is not None or not self._waiting or self._closed or self._loop is None:
            return
        self._scheduled = True
        wait = self._begun_at + INTERVAL - self._loop.time() if self._crowd() >= CROWD else 0.0
        if wait > 0:
            self._loop.call_later(wait, self._flush)
        else:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while self._waiting and self._underway is None and not self._closed:
            self._begin(self._next_batch())

    def _next_batch(self) -> _Batch:
        operations = [self._waiting.popleft()]
        if not isinstance(operations[0], Work):
            while self._waiting and len(operations) < MAX_BATCH and not isinstance(self._waiting[0], Work):
                operations.append(self._waiting.popleft())
        return _Batch(operations)

    def _begin(self, batch: _Batch) -> None:
        """Write the batch, and have the thread commit it."""
        assert self._loop is not None
        if self._broken is not None:
            self._refuse_claims(batch, self._broken)
        if not batch.operations:
            return
        try:
            self._write(batch)
        except sqlite3.Error as error:
            self._roll_back()
            self._failed(batch, error)
            return
        except Exception as error:  # noqa: BLE001 (of somebody else's work: it goes to who asked for that)
            self._roll_back()
            _set_results([(op.waiter, error) for op in batch.operations if _waits(op)])
            return
        self._underway = batch
        self._begun_at = self._loop.time()
        self._idle.clear()
        self._commits.put((batch, self._loop))

    def _committed(self, batch: _Batch) -> None:
        if self._underway is not batch:
            return  # `close` was faster
        self._underway = None
        self._uncommitted.clear()
        if batch.error is None:
            self._report(batch)
        else:
            self._failed(batch, batch.error)
        self._schedule()

    def _report(self, batch: _Batch) -> None:
        """What the batch did is durable."""
        self._waiting.extend(Fail(row, NOT_SENT) for claim, row in batch.claims if claim.waiter.cancelled())
        _set_results(batch.results)

    def _failed(self, batch: _Batch, error: sqlite3.Error) -> None:
        """Nothing new is sent from now on. Replies that came are worth another try, without the claims beside them."""
        self._sources.clear()  # rows of this transaction are gone
        self._uncommitted.clear()
        problem = storage_error(self._path, error)
        if isinstance(batch.operations[0], Work):
            _set_results([(op.waiter, problem) for op in batch.operations if _waits(op)])
            return
        self._broken = problem
        self._refuse_claims(batch, problem)
        if batch.again:
            _set_results([(op.waiter, problem) for op in batch.operations if _waits(op)])
        elif not self._closed:
            self._begin(_Batch(batch.operations, again=True))

    def _refuse_claims(self, batch: _Batch, problem: RlaifError) -> None:
        _set_results([(op.waiter, problem) for op in batch.operations if isinstance(op, Claim)])
        batch.operations = [op for op in batch.operations if not isinstance(op, Claim)]

    # -------------------------------------------------------------------------------------------- in its own thread

    def _run(self) -> None:
        while (job := self._commits.get()) is not None:
            batch, loop = job
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                batch.error = error
                self._roll_back()
            self._idle.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._committed, batch)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite has done so by itself after some errors
            self._db.execute("ROLLBACK")

    # ------------------------------------------------------------------------------------------------ the statements

    def _write(self, batch: _Batch) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        first = batch.operations[0] if batch.operations else None
        if isinstance(first, Work):
            batch.results = [(first.waiter, first.work(self._db))]
            return
        settles = [op for op in batch.operations if isinstance(op, Settle)]
        claims = [op for op in batch.operations if isinstance(op, Claim)]
        self._write_replies(settles)
        failures = [(op.error, op.row) for op in batch.operations if isinstance(op, Fail)]
        self._db.executemany("UPDATE pending SET error = ? WHERE id = ?", failures)
        self._write_losses([op for op in batch.operations if isinstance(op, Lose)])
        batch.results = [(op.waiter, None) for op in settles]
        batch.claims = self._write_claims(claims)
        batch.results += [(op.waiter, row) for op, row in batch.claims]

    def _write_claims(self, claims: list[Claim]) -> list[tuple[Claim, int]]:
        rows = []
        new = []
        for claim in claims:
            if claim.waiter.cancelled():
                continue
            # A key may come twice: its first caller was cancelled before its claim was committed.
            row = claim.row if claim.row is not None else self._uncommitted.get(claim.key)
            if row is None:
                row = self._uncommitted[claim.key] = self._next_row
                self._next_row += 1
                new.append((row, claim.key, self._source(claim.source), claim.body))
            rows.append((claim, row))
        self._db.executemany("INSERT INTO requests (id, key, source, body) VALUES (?, ?, ?, ?)", new)
        self._db.executemany(
            "INSERT OR REPLACE INTO pending (id, source, session, error) VALUES (?, ?, ?, NULL)",
            [(row, self._source(claim.source), self.session) for claim, row in rows],
        )
        return rows

    def _write_replies(self, settles: list[Settle]) -> None:
        self._db.executemany("DELETE FROM pending WHERE id = ?", [(op.row,) for op in settles])
        self._db.executemany(
            "INSERT OR REPLACE INTO replies (id, checksum, body) VALUES (?, ?, ?)",
            [(op.row, seal(op.key, op.body), op.body) for op in settles],
        )
        by_source: dict[Source, list[Settle]] = {}
        for op in settles:
            by_source.setdefault(op.source, []).append(op)
        sums = ", ".join(f"{field} = {field} + ?" for field in Usage.model_fields)
        for source, of_source in by_source.items():
            usage = add(*(op.usage for op in of_source))
            self._db.execute(
                f"UPDATE sources SET stored = stored + ?, paid = paid + ?, largest_input = max(largest_input, ?),"
                f" {sums} WHERE id = ?",
                (
                    sum(not op.replaces for op in of_source),
                    len(of_source),
                    max(op.usage.input_tokens for op in of_source),
                    *usage.model_dump().values(),
                    self._source(source),
                ),
            )

    def _write_losses(self, losses: list[Lose]) -> None:
        sql = "UPDATE sources SET lost_input = lost_input + ?, lost_output = lost_output + ? WHERE id = ?"
        self._db.executemany(sql, [(op.input_tokens, op.output_tokens, self._source(op.source)) for op in losses])
        sql = "UPDATE pending SET error = 'interrupted' WHERE id = (SELECT id FROM requests WHERE key = ?)"
        self._db.executemany(sql, [(op.key,) for op in losses if op.key is not None])

    def _source(self, source: Source) -> int:
        known = self._sources.get(source)
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO sources (stage, identity) VALUES (?, ?)", source)
            row = self._db.execute("SELECT id FROM sources WHERE stage = ? AND identity = ?", source).fetchone()
            known = self._sources[source] = int(row[0])
        return known


def _waits(operation: Operation) -> TypeGuard[Claim | Settle | Work]:
    return isinstance(operation, Claim | Settle | Work)


def _set_results(results: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    """Hand results (exceptions among them) to the futures that still want them."""
    for future, result in results:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
