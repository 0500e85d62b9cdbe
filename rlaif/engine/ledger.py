"""The ledger: every request and its reply, durable, so that no answer is ever paid for twice.

One SQLite file (WAL) per run folder, the only durable state of a run. A request is committed before it is sent, its
reply before anyone sees it; both with ``synchronous=FULL``, so that neither ``kill -9`` nor a loss of power takes back
what was reported. Whatever has queued up is committed as one transaction (writer.py): the price of a disk flush is
shared by all requests in flight.

Not covered: a network file system without working ``flock`` (two runs could open one folder), and Windows (no fcntl).
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rlaif.clients.base import Client, Identity, Wrapper, request_key
from rlaif.engine.store import (
    RunLock,
    add,
    as_json,
    check,
    connect,
    dump,
    forget,
    from_json,
    load,
    pack,
    storage_error,
    verified,
)
from rlaif.engine.writer import NOT_SENT, Claim, Fail, Lose, Settle, Work, Writer
from rlaif.errors import InputError, RlaifError
from rlaif.types import ChatReply, ChatRequest, Row, Usage

T = TypeVar("T")

BATCH = " (batch)"  # ends the name of a stage in the statistics, for what came from a batch API


class StageStats(Row):
    """What one model did in one stage. ``sent``, ``reused`` and ``failed`` count this session (since the ledger was
    opened); the rest is the whole life of the ledger. ``stored``: distinct requests with a reply; ``paid``: replies
    received, those that replaced an unusable one included; ``usage``: their tokens, ``largest_input`` the input of the
    largest. ``unsettled``: requests on their way when an earlier session was killed, and not repeated since.
    ``lost_input`` and ``lost_output``: the most tokens that may have been charged for requests whose reply never came
    (see `Ledger.lose`). What a batch API answered is counted as a stage of its own ("judge (batch)")."""

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
        return add(*(stage.usage for stage in self.stages))


class Failure(Row):
    """A request that has no reply: ``error`` is why, or None where a session was killed while it was on its way."""

    key: str
    stage: str
    identity: Identity
    error: str | None


class _Flight:
    """One request on its way, and how many callers wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: "asyncio.Task[ChatReply]") -> None:
        self.task = task
        self.waiters = 0


class Ledger:
    """The requests and replies of one run folder. Use `open`, and as a context manager."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: "RunLock | None") -> None:
        self.path = path
        self._lock = lock
        self._reader = connection if lock is None else connect(path)
        self._reader_mutex = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._counts: dict[tuple[str, str], _Counts] = {}
        self.shared: dict[type, Any] = {}  # what the clients of one ledger have in common (see rlaif.engine.batch)
        self._closed = False
        self._writer = None if lock is None else Writer(path, connection, lambda: len(self._flights))

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, fresh: bool = False) -> "Ledger":
        """Open (or create) the ledger at ``path``, the SQLite file itself.

        Only one process may write: a second one gets an InputError that names the first. ``read_only`` takes no lock
        and works beside a running writer. ``fresh`` first deletes what is there, but for people's votes. Raises
        InputError for a file that is no ledger or was written by a newer version.
        """
        if read_only:
            return cls(path, check(path, connect(path, read_only=True)), None)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = RunLock(path)
        try:
            if fresh:
                forget(path)
            return cls(path, check(path, connect(path), create=True), lock)
        except BaseException:
            lock.release()
            raise

    def wrap(self, client: Client, stage: str) -> "LedgerClient":
        """``client`` with this ledger in front of it; ``stage`` ("sample", "judge", ...) is for the counts."""
        return LedgerClient(self, client, stage)

    def reply(self, key: str) -> ChatReply | None:
        """The stored reply of a request key; None when there is none or it is damaged."""
        rows = self._read("SELECT checksum, replies.body FROM requests JOIN replies USING (id) WHERE key = ?", key)
        for checksum, body in rows:
            return verified(key, checksum, body)
        return None

    def recall(self, stage: str, identity: Identity, request: ChatRequest) -> ChatReply | None:
        """`reply` to a request of ``stage``, counted as reused."""
        found = self.reply(request_key(identity, request))
        if found is not None:
            self._count((stage, identity.model_dump_json())).reused += 1
        return found

    def request(self, key: str) -> ChatRequest | None:
        """The stored request of a key, sent or not; None when the ledger does not know it."""
        for (body,) in self._read("SELECT body FROM requests WHERE key = ?", key):
            return load(ChatRequest, body)
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
            self._writer.post(Lose(source, input_tokens, output_tokens, key))

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
                    session_usage=Usage(**counts.tokens),
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
        """What ``work`` returns, once what it wrote is durable: a transaction of its own, in the event loop's thread.
        Raises ProviderError when the file cannot be written, and what ``work`` raises."""
        if self._writer is None or self._closed:
            raise InputError(f"{self.path}: the ledger is open for reading only; nothing can be written to it.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._writer.post(Work(work, done))
        return await done

    def read(self, sql: str, *parameters: Any) -> list[Any]:
        """The rows of a query."""
        return self._read(sql, *parameters)

    def _read(self, sql: str, *parameters: Any) -> list[Any]:
        with self._reader_mutex:
            try:
                return self._reader.execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise storage_error(self.path, error) from None

    # ------------------------------------------------------------------------------------------ one request's way

    async def _complete(self, client: Client, source: tuple[str, str], request: ChatRequest) -> ChatReply:
        """The stored reply, or the one of the identical request on its way, or else the client's, once stored."""
        key = request_key(client.identity, request)
        flight = self._flights.get(key)
        if flight is None:
            # No await between here and the flight's registration: nobody can begin a second one.
            reply, row, replaces = self._look_up(key)
            if reply is not None:
                self._count(source).reused += 1
                return reply
            flight = _Flight(asyncio.create_task(self._fly(client, source, key, request, row, replaces)))
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

    def _look_up(self, key: str) -> tuple[ChatReply | None, int | None, bool]:
        """(a reply that may be reused, the request's row, whether there is a reply that may not)."""
        sql = "SELECT id, checksum, replies.body FROM requests LEFT JOIN replies USING (id) WHERE key = ?"
        for row, checksum, body in self._read(sql, key):
            reply = None if checksum is None else verified(key, checksum, body)
            usable = reply is not None and reply.finish_reason != "unknown"
            return (reply if usable else None), row, checksum is not None
        return None, None, False

    def _landed(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # the waiters have it; without them asyncio would log it as never retrieved

    async def _fly(
        self,
        client: Client,
        source: tuple[str, str],
        key: str,
        request: ChatRequest,
        known_row: int | None,
        replaces: bool,
    ) -> ChatReply:
        writer, counts = self._writer, self._count(source)
        if writer is None or self._closed:
            raise InputError(f"{self.path}: the ledger is open for reading only; nothing can be sent through it.")
        row = await _claim(writer, Claim(key, source, dump(request), known_row, _future()))
        counts.sent += 1
        try:
            reply = await client.complete(request)
            # What the caller sees is what a later run will read back, so that both make the same files of it.
            text = as_json(reply)
            reply = from_json(ChatReply, text)
        except BaseException as error:
            counts.failed += isinstance(error, Exception)
            writer.post(Fail(row, _reason(error)))
            raise
        paid = (source[0] + BATCH, source[1]) if reply.batch else source  # at half the price: counted by itself
        self._count(paid).pay(reply.usage)
        settle = Settle(row, paid, key, pack(text), reply.usage, replaces, _future())
        # Posted without an await since the reply came: a cancellation from here on no longer loses it.
        writer.post(settle)
        await settle.waiter
        return reply

    def _count(self, source: tuple[str, str]) -> "_Counts":
        counts = self._counts.get(source)
        if counts is None:
            counts = self._counts[source] = _Counts()
        return counts


class LedgerClient(Wrapper):
    """A Client that answers from the ledger, and asks ``client`` (once) for what is not there.

    ``complete`` raises what ``client`` raises; a failure is recorded but never stored as a reply. It raises
    ProviderError when the ledger cannot be written (a full disk): what was stored before is kept.
    """

    def __init__(self, ledger: Ledger, client: Client, stage: str) -> None:
        super().__init__(client)
        self._ledger = ledger
        self._source = (stage, client.identity.model_dump_json())

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self._ledger._complete(self._client, self._source, request)


class _Counts:
    __slots__ = ("failed", "reused", "sent", "tokens")

    def __init__(self) -> None:
        self.sent = self.reused = self.failed = 0
        self.tokens = dict.fromkeys(Usage.model_fields, 0)

    def pay(self, usage: Usage) -> None:
        for kind, tokens in usage:
            self.tokens[kind] += tokens


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


async def _claim(writer: Writer, claim: Claim) -> int:
    """The row of a request that may now be sent. Cancelled before that, it is recorded as never sent."""
    writer.post(claim)
    try:
        return await claim.waiter
    except asyncio.CancelledError:
        if claim.waiter.done() and not claim.waiter.cancelled() and claim.waiter.exception() is None:
            writer.post(Fail(claim.waiter.result(), NOT_SENT))
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, RlaifError):
        kind = getattr(error, "kind", None)
        return f"{type(error).__name__}{f' ({kind})' if kind else ''}: {error}"
    # Text of a foreign exception may hold anything, a key among it: its type must do.
    return "interrupted" if isinstance(error, asyncio.CancelledError) else type(error).__name__
