"""The ledger: every request and its reply, durable, so that no answer is ever paid for twice.

One SQLite file (WAL) per run folder, the only durable state of a run. A request is committed before it is sent, its
reply before anyone sees it; both with ``synchronous=FULL``, so that neither ``kill -9`` nor a loss of power takes back
what was reported. One writer thread commits whatever has queued up as one transaction (group commit): the price of a
disk flush is shared by all requests in flight.

Not covered: a network file system without working ``flock`` (two runs could open one folder), and Windows (no fcntl).
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import queue
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from rlaif.clients.base import Capabilities, Client, Identity, request_key
from rlaif.errors import InputError, ProviderError, RlaifError
from rlaif.types import ChatReply, ChatRequest, Row, Usage

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x524C4149  # "RLAI": tells our files from any other SQLite file
_MAX_BATCH = 512  # operations in one transaction: bounds what a crash can lose and what a batch holds in memory

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
T = TypeVar("T")


class StageStats(Row):
    """What one model did in one stage. ``sent``, ``reused`` and ``failed`` count this session (since the ledger was
    opened); the rest is the whole life of the ledger. ``stored``: distinct requests with a reply; ``paid``: replies
    received, those that replaced an unusable one included; ``usage``: their tokens, ``largest_input`` the input of the
    largest. ``unsettled``: requests that were on their way when an earlier session was killed and have not been repeated
    since. ``lost_input`` and ``lost_output``: the most tokens that were charged, perhaps, for requests whose reply never
    came (see `Ledger.lose`)."""

    stage: str
    model: str
    identity: Identity
    sent: int = 0
    reused: int = 0
    failed: int = 0
    stored: int = 0
    paid: int = 0
    largest_input: int = 0
    lost_input: int = 0
    lost_output: int = 0
    unsettled: int = 0
    usage: Usage = Usage()
    session_usage: Usage = Usage()


class LedgerStats(Row):
    """`Ledger.stats`: one entry for each stage and model, and their sums."""

    stages: tuple[StageStats, ...] = ()

    def total(self, field: str) -> int:
        """The sum of one of the counters of `StageStats` over all stages and models."""
        return sum(getattr(stage, field) for stage in self.stages)

    @property
    def usage(self) -> Usage:
        return _add(*(stage.usage for stage in self.stages))


class Failure(Row):
    """A request that has no reply: ``error`` is why, or None where a session was killed while it was on its way."""

    key: str
    stage: str
    identity: Identity
    error: str | None


class _Claimed(NamedTuple):
    """What the writer found for a claim: the reply (then nothing is sent), else the row to settle."""

    reply: ChatReply | None
    row: int


class _Claim(NamedTuple):
    key: str
    source: tuple[str, str]  # stage, identity as JSON
    body: bytes
    waiter: "asyncio.Future[_Claimed]"


class _Settle(NamedTuple):
    row: int
    source: tuple[str, str]
    key: str
    body: bytes
    usage: Usage
    waiter: "asyncio.Future[None]"


class _Fail(NamedTuple):
    row: int
    error: str


class _Lose(NamedTuple):
    source: tuple[str, str]
    input_tokens: int
    output_tokens: int
    key: str | None


class _Work(NamedTuple):
    """A transaction of somebody else's tables, in this file."""

    work: Callable[[sqlite3.Connection], Any]
    waiter: "asyncio.Future[Any]"


_Operation = _Claim | _Settle | _Fail | _Lose | _Work


class _Flight:
    """One request on its way, and how many callers wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: "asyncio.Task[ChatReply]") -> None:
        self.task = task
        self.waiters = 0


class Ledger:
    """The requests and replies of one run folder. Use `open`, and as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: "_RunLock | None") -> None:
        self.path = path
        self._lock = lock
        self._reader = connection if lock is None else _connect(path)
        self._reader_mutex = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._counts: dict[tuple[str, str], _Counts] = {}
        self.shared: dict[type, Any] = {}  # what the clients of one ledger have in common (see rlaif.engine.batch)
        self._closed = False
        self._writer = None if lock is None else _Writer(path, connection)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, fresh: bool = False) -> "Ledger":
        """Open (or create) the ledger at ``path``, the SQLite file itself.

        Only one process may write: a second one gets an InputError that names the first. ``read_only`` takes no lock
        and works beside a running writer. ``fresh`` first deletes what is there. Raises InputError for a file that is
        no ledger or was written by a newer version.
        """
        if read_only:
            return cls(path, _check(path, _connect(path, read_only=True)), None)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _RunLock(path)
        try:
            if fresh:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
            return cls(path, _check(path, _connect(path), create=True), lock)
        except BaseException:
            lock.release()
            raise

    def wrap(self, client: Client, stage: str) -> "LedgerClient":
        """``client`` with this ledger in front of it; ``stage`` ("sample", "judge", ...) is for the counts."""
        return LedgerClient(self, client, stage)

    def reply(self, key: str) -> ChatReply | None:
        """The stored reply of a request key; None when there is none or it is damaged."""
        rows = self._read("SELECT checksum, body FROM requests JOIN replies USING (id) WHERE key = ?", key)
        for checksum, body in rows:
            return _verified(key, checksum, body)
        return None

    def request(self, key: str) -> ChatRequest | None:
        """The stored request of a key, sent or not; None when the ledger does not know it."""
        for (body,) in self._read("SELECT body FROM requests WHERE key = ?", key):
            return _load(ChatRequest, body)
        return None

    def failures(self) -> Iterator[Failure]:
        """The requests without a reply, oldest first."""
        sql = """SELECT pending.id, key, stage, identity, error FROM pending JOIN requests USING (id)
                 JOIN sources ON sources.id = requests.source WHERE pending.id > ? ORDER BY pending.id LIMIT 1000"""
        last = -1
        while rows := self._read(sql, last):
            for last, key, stage, identity, error in rows:  # noqa: B007 (last goes on to the next page)
                yield Failure(key=key, stage=stage, identity=Identity.model_validate_json(identity), error=error)

    def lose(
        self, stage: str, identity: Identity, input_tokens: int, output_tokens: int, *, key: str | None = None
    ) -> None:
        """Remember that up to so many tokens may have been charged for a request whose reply never came. ``key``: a
        request that was on its way when an earlier session was killed; `failures` then no longer says so of it."""
        if self._writer is not None and not self._closed:
            source = (stage, identity.model_dump_json())
            self._writer.post(_Lose(source, input_tokens, output_tokens, key))

    def stats(self) -> LedgerStats:
        """Counts and tokens by stage and model. Reads the totals kept with every commit, never the rows."""
        session = self._writer.session if self._writer else -1
        open_rows = "SELECT source, count(*) FROM pending WHERE error IS NULL AND session != ? GROUP BY source"
        unsettled = dict(self._read(open_rows, session))
        fields = ", ".join(Usage.model_fields)
        columns = f"id, stage, identity, stored, paid, largest_input, lost_input, lost_output, {fields}"
        rows = self._read(f"SELECT {columns} FROM sources ORDER BY id")
        found = {(row[1], row[2]): row for row in rows}
        stages = []
        for source in dict.fromkeys([*found, *self._counts]):
            row = found.get(source) or (0, *source, *(0 for _ in range(5 + len(Usage.model_fields))))
            counts = self._counts.get(source, _Counts())
            identity = Identity.model_validate_json(source[1])
            stages.append(
                StageStats(
                    stage=source[0],
                    model=str(identity),
                    identity=identity,
                    sent=counts.sent,
                    reused=counts.reused,
                    failed=counts.failed,
                    stored=row[3],
                    paid=row[4],
                    largest_input=row[5],
                    lost_input=row[6],
                    lost_output=row[7],
                    unsettled=unsettled.get(row[0], 0),
                    usage=Usage(**dict(zip(Usage.model_fields, row[8:], strict=True))),
                    session_usage=counts.usage,
                )
            )
        return LedgerStats(stages=tuple(stages))

    def close(self) -> None:
        """Commit what is queued, then let go of the file and of the run lock."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._writer.close()
            # The last connection to go folds the WAL into the file; on a full disk it stays beside it, and is valid.
        with self._reader_mutex:
            self._reader.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def in_flight(self) -> int:
        """How many requests are on their way."""
        return len(self._flights)

    # --------------------------------------------------------------------------------------- somebody else's tables

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns, once what it wrote is durable. It runs in the writer's thread, as a transaction of its
        own. Raises ProviderError when the file cannot be written."""
        if self._writer is None or self._closed:
            raise InputError(f"{self.path}: the ledger is open for reading only; nothing can be written to it.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writer.post(_Work(work, done))
        return await done

    def read(self, sql: str, *parameters: Any) -> list[Any]:
        """The rows of a query."""
        return self._read(sql, *parameters)

    def _read(self, sql: str, *parameters: Any) -> list[Any]:
        with self._reader_mutex:
            try:
                return self._reader.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise _storage_error(self.path, error) from None

    # ------------------------------------------------------------------------------------------ one request's way

    async def _complete(self, client: Client, source: tuple[str, str], request: ChatRequest) -> ChatReply:
        """The stored reply, or the one of the identical request on its way, or else the client's, once stored."""
        key = request_key(client.identity, request)
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(self._fly(client, source, key, request)))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        else:
            self._count(source).reused += 1
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiters == 1 and not flight.task.done():
                # Nobody else waits: stop it, and leave only when it has stopped.
                self._landed(key, flight)
                flight.task.cancel()
                await asyncio.wait([flight.task])
            raise
        finally:
            flight.waiters -= 1

    def _landed(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # the waiters have it; without them asyncio would log it as never retrieved

    async def _fly(self, client: Client, source: tuple[str, str], key: str, request: ChatRequest) -> ChatReply:
        writer, counts = self._writer, self._count(source)
        if writer is None or self._closed:
            raise InputError(f"{self.path}: the ledger is open for reading only; nothing can be sent through it.")
        loop = asyncio.get_running_loop()
        claimed: asyncio.Future[_Claimed] = loop.create_future()
        writer.post(_Claim(key, source, _dump(request), claimed))
        reply, row = await claimed
        if reply is not None:
            counts.reused += 1
            return reply
        counts.sent += 1
        try:
            reply = await client.complete(request)
            # What the caller sees is what a later run will read back, so that both make the same files of it.
            body = _dump(reply)
            reply = _load(ChatReply, body)
        except BaseException as error:
            counts.failed += isinstance(error, Exception)
            writer.post(_Fail(row, _reason(error)))
            raise
        counts.usage = _add(counts.usage, reply.usage)
        settled: asyncio.Future[None] = loop.create_future()
        # Posted without an await since the reply came: a cancellation from here on no longer loses it.
        writer.post(_Settle(row, source, key, body, reply.usage, settled))
        await settled
        return reply

    def _count(self, source: tuple[str, str]) -> "_Counts":
        counts = self._counts.get(source)
        if counts is None:
            counts = self._counts[source] = _Counts()
        return counts


class LedgerClient:
    """A Client that answers from the ledger, and asks ``client`` (once) for what is not there.

    ``complete`` raises what ``client`` raises; a failure is recorded but never stored as a reply. It raises
    ProviderError when the ledger cannot be written (a full disk): what was stored before is kept.
    """

    def __init__(self, ledger: Ledger, client: Client, stage: str) -> None:
        self._ledger, self._client = ledger, client
        self._source = (stage, client.identity.model_dump_json())

    @property
    def identity(self) -> Identity:
        return self._client.identity

    @property
    def capabilities(self) -> Capabilities:
        return self._client.capabilities

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self._ledger._complete(self._client, self._source, request)

    async def aclose(self) -> None:
        await self._client.aclose()


class _Counts:
    __slots__ = ("failed", "reused", "sent", "usage")

    def __init__(self) -> None:
        self.sent = self.reused = self.failed = 0
        self.usage = Usage()


# ------------------------------------------------------------------------------------------------- the writer thread


class _Writer:
    """The one thread that writes. Operations queue up while a commit is being flushed; the next commit takes them all.

    Replies found for a claim are handed back before the commit, everything else after it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._db = path, connection
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._sources: dict[tuple[str, str], int] = {}
        self._broken: RlaifError | None = None
        self._next_row = self._begin_session()
        self._thread = threading.Thread(target=self._run, name="rlaif-ledger", daemon=True)
        self._thread.start()

    def _begin_session(self) -> int:
        """Number this session (kill -9 leaves rows of an older one pending); the next free row id."""
        try:
            with _transaction(self._db):
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'session'")
            ((session,),) = self._db.execute("SELECT value FROM meta WHERE key = 'session'")
            self.session = int(session)
            ((last,),) = self._db.execute("SELECT coalesce(max(id), 0) FROM requests")
        except sqlite3.Error as error:
            raise _storage_error(self._path, error) from None
        return int(last) + 1

    def post(self, operation: _Operation) -> None:
        self._queue.put(operation)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = [self._queue.get()]
            while len(batch) < _MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            if None in batch:
                open_ = False
            self._handle([operation for operation in batch if operation is not None])

    def _handle(self, batch: list[_Operation]) -> None:
        for op in batch:
            if isinstance(op, _Work):
                self._work(op)
        settles = [op for op in batch if isinstance(op, _Settle)]
        fails = [op for op in batch if isinstance(op, _Fail)]
        losses = [op for op in batch if isinstance(op, _Lose)]
        claims = [op for op in batch if isinstance(op, _Claim)]
        try:
            # After a failed write nothing new is sent; replies that still arrive are worth another try.
            if self._broken is not None and claims:
                _deliver([(claim.waiter, self._broken) for claim in claims])
                claims = []
            found, new = self._look_up(claims)
            _deliver(found)
            self._commit(settles, fails, losses, new)
        except sqlite3.Error as error:
            self._broken = _storage_error(self._path, error)
            _deliver([(claim.waiter, self._broken) for claim in claims])
            try:
                self._commit(settles, fails, losses, [])
            except sqlite3.Error:
                _deliver([(settle.waiter, self._broken) for settle in settles])

    def _work(self, op: _Work) -> None:
        result: Any
        try:
            with _transaction(self._db):
                result = op.work(self._db)
        except sqlite3.Error as error:
            result = _storage_error(self._path, error)
        _deliver([(op.waiter, result)])

    def _look_up(
        self, claims: list[_Claim]
    ) -> tuple[list[tuple["asyncio.Future[Any]", Any]], list[tuple[_Claim, int, bool]]]:
        """(replies to hand back, claims to send with their row and whether that row is new)."""
        sql = "SELECT id, checksum, replies.body FROM requests LEFT JOIN replies USING (id) WHERE key = ?"
        found: list[tuple[asyncio.Future[Any], Any]] = []
        send: list[tuple[_Claim, int, bool]] = []
        created: dict[str, int] = {}  # a key may come twice: its first caller was cancelled while in the queue
        for claim in claims:
            if claim.key in created:
                send.append((claim, created[claim.key], False))
                continue
            row = self._db.execute(sql, (claim.key,)).fetchone()
            if row is None:
                created[claim.key] = self._next_row
                send.append((claim, self._next_row, True))
                self._next_row += 1
                continue
            reply = None if row[1] is None else _verified(claim.key, row[1], row[2])
            if reply is None or reply.finish_reason == "unknown":
                send.append((claim, row[0], False))
            else:
                found.append((claim.waiter, _Claimed(reply, row[0])))
        return found, send

    def _commit(
        self, settles: list[_Settle], fails: list[_Fail], losses: list[_Lose], new: list[tuple[_Claim, int, bool]]
    ) -> None:
        if not (settles or fails or losses or new):
            return
        try:
            with _transaction(self._db):
                self._write_replies(settles)
                self._db.executemany("UPDATE pending SET error = ? WHERE id = ?", [(op.error, op.row) for op in fails])
                self._write_losses(losses)
                self._write_intents(new)
        except sqlite3.Error:
            self._sources.clear()  # rows of this transaction are gone
            raise
        _deliver([(op.waiter, None) for op in settles])
        _deliver([(claim.waiter, _Claimed(None, row)) for claim, row, _ in new])

    def _write_intents(self, new: list[tuple[_Claim, int, bool]]) -> None:
        rows = [(row, claim.key, self._source(claim.source), claim.body) for claim, row, is_new in new if is_new]
        self._db.executemany("INSERT INTO requests (id, key, source, body) VALUES (?, ?, ?, ?)", rows)
        self._db.executemany(
            "INSERT OR REPLACE INTO pending (id, source, session, error) VALUES (?, ?, ?, NULL)",
            [(row, self._source(claim.source), self.session) for claim, row, _ in new],
        )

    def _write_replies(self, settles: list[_Settle]) -> None:
        self._db.executemany("DELETE FROM pending WHERE id = ?", [(op.row,) for op in settles])
        totals: dict[tuple[str, str], list[Usage]] = {}
        stored: dict[tuple[str, str], int] = {}
        for op in settles:
            row = (op.row, _checksum(op.key, op.body), op.body)
            known = self._db.execute("SELECT 1 FROM replies WHERE id = ?", (op.row,)).fetchone()
            self._db.execute("INSERT OR REPLACE INTO replies (id, checksum, body) VALUES (?, ?, ?)", row)
            stored[op.source] = stored.get(op.source, 0) + (known is None)
            totals.setdefault(op.source, []).append(op.usage)
        sums = ", ".join(f"{field} = {field} + ?" for field in Usage.model_fields)
        for source, usages in totals.items():
            usage = _add(*usages)
            self._db.execute(
                f"UPDATE sources SET stored = stored + ?, paid = paid + ?, largest_input = max(largest_input, ?),"
                f" {sums} WHERE id = ?",
                (
                    stored[source],
                    len(usages),
                    max(usage.input_tokens for usage in usages),
                    *usage.model_dump().values(),
                    self._source(source),
                ),
            )

    def _write_losses(self, losses: list[_Lose]) -> None:
        sql = "UPDATE sources SET lost_input = lost_input + ?, lost_output = lost_output + ? WHERE id = ?"
        self._db.executemany(sql, [(op.input_tokens, op.output_tokens, self._source(op.source)) for op in losses])
        sql = "UPDATE pending SET error = 'interrupted' WHERE id = (SELECT id FROM requests WHERE key = ?)"
        self._db.executemany(sql, [(op.key,) for op in losses if op.key is not None])

    def _source(self, source: tuple[str, str]) -> int:
        known = self._sources.get(source)
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO sources (stage, identity) VALUES (?, ?)", source)
            row = self._db.execute("SELECT id FROM sources WHERE stage = ? AND identity = ?", source).fetchone()
            known = self._sources[source] = int(row[0])
        return known


def _deliver(results: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    """Hand results (exceptions among them) to their futures, one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for future, result in results:
        by_loop.setdefault(future.get_loop(), []).append((future, result))
    for loop, of_loop in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set_results, of_loop)


def _set_results(results: "list[tuple[asyncio.Future[Any], Any]]") -> None:
    for future, result in results:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


# --------------------------------------------------------------------------------------------------- rows as bytes


def _dump(row: Row) -> bytes:
    try:
        text = row.model_dump_json()
    except PydanticSerializationError:  # a lone surrogate in some text: the standard library escapes it
        text = json.dumps(row.model_dump(mode="json"), separators=(",", ":"))
    return zlib.compress(text.encode(), 1)


def _load(model: type[R], body: bytes) -> R:
    text = zlib.decompress(body)
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return model.model_validate(json.loads(text))


def _checksum(key: str, body: bytes) -> bytes:
    return blake2b(body, key=key.encode(), digest_size=16).digest()


def _verified(key: str, checksum: bytes, body: bytes) -> ChatReply | None:
    """The reply, or None for a row that is damaged or of another shape: it is as if it were not there."""
    if _checksum(key, body) != checksum:
        return None
    try:
        return _load(ChatReply, body)
    except (zlib.error, ValueError):  # ValidationError and JSONDecodeError are ValueErrors
        return None


def _add(*usages: Usage) -> Usage:
    return Usage(**{field: sum(getattr(usage, field) for usage in usages) for field in Usage.model_fields})


def _reason(error: BaseException) -> str:
    if isinstance(error, RlaifError):
        kind = getattr(error, "kind", None)
        return f"{type(error).__name__}{f' ({kind})' if kind else ''}: {error}"
    # Text of a foreign exception may hold anything, a key among it: its type must do.
    return "interrupted" if isinstance(error, asyncio.CancelledError) else type(error).__name__


# ------------------------------------------------------------------------------------------------- opening, locking


class _RunLock:
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
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    if read_only and not path.is_file():
        raise InputError(f"{path}: there is no ledger here; is this a run folder?")

    def connect(uri: str) -> sqlite3.Connection:
        # isolation_level=None: transactions are ours to begin and end.
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)

    uri = path.absolute().as_uri()
    try:
        db = connect(f"{uri}?mode=ro" if read_only else uri)
        if read_only:
            try:
                db.execute("SELECT 1 FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                # A finished run on a medium that cannot be written: no -shm file can be made, and none is needed.
                db.close()
                db = connect(f"{uri}?immutable=1")
        else:
            db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -65536")  # 64 MiB: constant, whatever the ledger's size
    except sqlite3.Error as error:
        raise _storage_error(path, error) from None
    return db


def _check(path: Path, db: sqlite3.Connection, *, create: bool = False) -> sqlite3.Connection:
    """``db``, known to be a ledger of a version we read; an empty file becomes one when ``create``."""
    try:
        ((application,),) = db.execute("PRAGMA application_id")
        ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
        if create and tables == 0:
            db.execute("PRAGMA journal_mode = WAL")
            _create(db)
        elif application != _APPLICATION_ID:
            raise InputError(f"{path}: this SQLite file is not a ledger of rlaif.")
        ((version,),) = db.execute("SELECT value FROM meta WHERE key = 'schema_version'")
    except sqlite3.Error as error:
        db.close()
        raise _storage_error(path, error) from None
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


def _storage_error(path: Path, error: sqlite3.Error) -> RlaifError:
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
        return ProviderError(f"{path}: the file is damaged ({error}); restore it, or start anew with --fresh.")
    return ProviderError(f"{path}: cannot be written ({error}; {code}); {kept}.")
