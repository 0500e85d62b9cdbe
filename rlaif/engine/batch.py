"""``transport: batch``: requests go to a provider's batch API, at half the price; replies come within a day.

To the stages it is a Client like any other: ``complete`` returns when the reply is there. Requests are collected until
the run has nothing else to do, or a batch is full; then they are handed over together. A stage that needs the replies
of another makes a second wave of batches.

**Nothing is paid twice.** A batch is in the ledger before it is submitted, under a marker by which it is found again at
the provider when its submission was never confirmed, and under its name as soon as that is known. A later run, days
later, attaches to it: a request that is part of a batch under way waits for that batch, and for nothing else. All its
replies are kept, asked for again or not. The identity of the model, and so the key of a request, is the same as online:
a run may change its transport half-way and pays nothing again.

What an item's end means: a reply is read as online; a refusal is online's RequestError; a server's error, or an item
that expired, goes into the next batch (``max_attempts`` in all); a batch that validation refuses ends the run, with one
sentence; one that failed only because too much is waiting at the provider is submitted again later, in smaller ones. A
batch that somebody cancels while a run waits for it ends that run; the next one sends the rest again.

Not covered: Anthropic's batches carry no marker. If one run is killed in the moment of submitting, and another made a
batch of just as many requests in the same account at the same time, the first waits for that one to end to see that it
is not its own.
"""

import asyncio
import contextlib
import functools
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar

from rlaif.clients import open_batch_transport
from rlaif.clients.base import Capabilities, Client, Identity, asked_at_once, request_key
from rlaif.clients.batch import BatchGone, BatchState, BatchTransport, ItemResult
from rlaif.config.models import BatchConfig, ModelConfig
from rlaif.engine.batch_table import BatchRecord, BatchTable
from rlaif.engine.ledger import Ledger
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError, TransientError
from rlaif.types import ChatReply, ChatRequest

T = TypeVar("T")
log = logging.getLogger("rlaif.batch")

SETTLE_SECONDS = 60.0  # a batch that is not listed so long after its submission was never made
BUSY_SECONDS = 60.0  # something else under way in the run is not waited for longer: it may wait for this very batch
UNREACHABLE_SECONDS = 1800.0  # a provider that answers nothing for so long ends the run; its batches go on
SUBMISSIONS = 5  # of one batch, before the run ends
QUEUE_REFUSALS = 20  # in a row, because too much is waiting at the provider
BROKEN_DOWNLOADS = 3  # of the same results; then lines that are no JSON are passed over
FIRST_WAIT = 0.5  # seconds before a call that failed is repeated; doubles each time, up to a minute
SLOWEST_POLL = 4  # times poll_seconds
CHUNK = 200  # results that become durable together


class _Again(NamedTuple):
    """The request is to be part of another batch; ``counts`` as a failed attempt."""

    error: TransientError
    counts: bool


class _Online:
    """The request is to be asked online."""


_ONLINE = _Online()
_Outcome = ChatReply | _Again | _Online


class _Entry:
    """A request somebody waits for. ``batch``: the row of the batch it is part of; ``sent``: a hash of how it was
    spelled there (None: an earlier session sent it)."""

    __slots__ = ("batch", "futures", "key", "request", "sent", "size")

    def __init__(self, key: str, request: ChatRequest) -> None:
        self.key, self.request = key, request
        self.futures: set[asyncio.Future[_Outcome]] = set()
        self.batch: int | None = None
        self.sent: int | None = None
        self.size = 0

    def resolve(self, outcome: _Outcome | BaseException) -> None:
        for future in self.futures:
            if future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class Batches:
    """The batches of one run: what the models with ``transport: batch`` have in common."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.run = ledger.path.parent
        self.table = BatchTable(ledger)
        self.submitting = asyncio.Lock()  # one at a time: a batch that was lost sight of must be the only such
        self.waiting = 0  # requests that wait for a batch
        self._batchers: dict[str, Batcher] = {}

    @classmethod
    def of(cls, ledger: Ledger) -> "Batches":
        found = ledger.shared.get(cls)
        if found is None:
            found = ledger.shared[cls] = cls(ledger)
        assert isinstance(found, cls)
        return found

    def client(self, model: ModelConfig, online: Callable[[Client], Client]) -> "BatchClient":
        """The model as a Client. Clients of the same model share its batches. ``online``: what to put around the bare
        client where it is asked online."""
        transport = open_batch_transport(model)
        settings = model.batch or BatchConfig()
        name = transport.identity.model_dump_json()
        batcher = self._batchers.get(name)
        if batcher is None or batcher.closed:
            batcher = self._batchers[name] = Batcher(self, transport, settings, online(transport))
        elif batcher.settings != settings:
            raise InputError(f"{model.model} is used twice with different settings under 'batch'; make them the same.")
        return BatchClient(batcher)

    def is_busy(self) -> bool:
        """Whether the run has requests under way that do not wait for a batch."""
        return self._ledger.in_flight > self.waiting


class BatchClient:
    """A Client whose requests go into batches. ``complete`` raises as the online client does, and ProviderError when a
    batch is refused or cancelled."""

    def __init__(self, batcher: "Batcher") -> None:
        self._batcher = batcher
        batcher.clients += 1

    @property
    def identity(self) -> Identity:
        return self._batcher.transport.identity

    @property
    def capabilities(self) -> Capabilities:
        return self._batcher.transport.capabilities

    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self._batcher.complete(request)

    async def aclose(self) -> None:
        """Stop waiting. Batches under way stay under way at the provider, and the next run attaches to them."""
        self._batcher.clients -= 1
        if self._batcher.clients == 0:
            await self._batcher.aclose()


class Batcher:
    """Collects the requests to one model, submits them in batches, and waits for these."""

    def __init__(self, hub: Batches, transport: BatchTransport, settings: BatchConfig, online: Client) -> None:
        self.transport, self.settings = transport, settings
        self.clients = 0
        self.closed = False
        self._hub, self._table, self._online = hub, hub.table, online
        self._max_requests = min(settings.max_requests or transport.max_requests, transport.max_requests)
        self._max_bytes = min(settings.max_bytes or transport.max_bytes, transport.max_bytes)
        self._entries: dict[str, _Entry] = {}  # all that is waited for
        self._collected: dict[str, _Entry] = {}  # of these, what no batch has yet
        self._bytes = 0
        self._last = 0.0  # when something was collected
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._queue_refusals = 0
        self._room = asyncio.Event()  # whether the provider takes more batches
        self._room.set()

    # ------------------------------------------------------------------------------------------- one request's way

    async def complete(self, request: ChatRequest) -> ChatReply:
        if asked_at_once():
            return await self._online.complete(request)
        await self._open()
        key = request_key(self.transport.identity, request)
        attempts = 0
        while True:
            outcome = await self._outcome(key, request)
            if isinstance(outcome, ChatReply):
                return outcome
            if isinstance(outcome, _Online):
                return await self._online.complete(request)
            attempts += outcome.counts
            if attempts >= self.settings.max_attempts:
                raise outcome.error

    async def _outcome(self, key: str, request: ChatRequest) -> _Outcome:
        """What becomes of the request in the batch that has it, or else in the next."""
        entry = self._entries.get(key)
        if entry is None:
            known = self._table.item(key)
            if known is not None and known.reply is not None:
                try:
                    return self._parse(known.reply)
                except TransientError:  # a version of rlaif that reads less
                    await self._table.drop(key)
                    known = None
            is_open = known is not None and known.status in ("submitting", "live")
            finishes = self.settings.finish_online_after
            if not is_open and finishes is not None and (finishes == 0 or (known is not None and known.online)):
                return _ONLINE
            entry = _Entry(key, request)
            if known is not None and is_open:
                entry.batch = known.batch
            else:
                self._collect(entry)
            self._entries[key] = entry
        return await self._wait(entry)

    async def _wait(self, entry: _Entry) -> _Outcome:
        future: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        entry.futures.add(future)
        self._hub.waiting += 1
        try:
            return await future
        finally:
            self._hub.waiting -= 1
            entry.futures.discard(future)
            if not entry.futures and self._entries.get(entry.key) is entry:
                del self._entries[entry.key]
                if self._collected.pop(entry.key, None) is not None:
                    self._bytes -= entry.size

    def _resolve(self, entry: _Entry, outcome: _Outcome | BaseException) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]  # who asks again from here on begins anew
        entry.resolve(outcome)

    def _parse(self, reply: dict[str, Any]) -> ChatReply:
        return self.transport.parse(reply).model_copy(update={"batch": True})

    # -------------------------------------------------------------------------------------------------- collecting

    def _collect(self, entry: _Entry) -> None:
        """Put the request into the next batch. Raises RequestError for one that can be in none."""
        entry.size = len(self.transport.line(entry.key, entry.request)) + 1
        if entry.size > self._max_bytes:
            raise RequestError(
                f"{self.transport.identity}: a request of {entry.size:,} bytes fits in no batch of"
                f" {self._max_bytes:,} bytes.",
                kind="context_length",
            )
        if self._bytes + entry.size > self._max_bytes:
            self._cut()
        entry.batch = None
        self._collected[entry.key] = entry
        self._bytes += entry.size
        self._last = asyncio.get_running_loop().time()
        if len(self._collected) >= self._max_requests:
            self._cut()
        elif self._timer is None or self._timer.done():
            self._timer = self._spawn(self._when_quiet())

    async def _when_quiet(self) -> None:
        """Submit what is collected once nothing more seems to come."""
        loop = asyncio.get_running_loop()
        while self._collected:
            quiet = loop.time() - self._last
            if quiet < self.settings.quiet_seconds:
                await asyncio.sleep(self.settings.quiet_seconds - quiet)
            elif quiet < BUSY_SECONDS and self._hub.is_busy():
                await asyncio.sleep(min(self.settings.quiet_seconds, 1.0))
            else:
                self._cut()

    def _cut(self) -> None:
        """What is collected becomes a batch."""
        entries, self._collected, self._bytes = list(self._collected.values()), {}, 0
        if entries:
            self._spawn(self._submit(entries), lambda: entries)

    def _spawn(
        self, work: Coroutine[Any, Any, None], waiting: Callable[[], Iterable[_Entry]] = lambda: ()
    ) -> asyncio.Task[None]:
        """Do ``work`` beside the requests; should it fail, those ``waiting`` for it get its error."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("%s", error)
                for entry in list(waiting()):
                    self._resolve(entry, error)

        task.add_done_callback(done)
        return task

    # -------------------------------------------------------------------------------------------------- submitting

    async def _submit(self, entries: list[_Entry]) -> None:
        await self._room.wait()
        async with self._hub.submitting:
            entries = [entry for entry in entries if entry.futures]  # who has gone meanwhile is not asked for
            if not entries:
                return
            marker = secrets.token_hex(16)
            try:
                prepared = await self._patiently(lambda: self.transport.prepare(marker, map(self._line, entries)))
            except RequestError as error:
                raise _whole(error, len(entries)) from None
            since = await self._patiently(self.transport.newest)
            record = await self._table.intend(self.transport.identity, marker, since, [e.key for e in entries])
            for entry in entries:
                entry.batch = record.row
            state, confirmed = await self._hand_over(record, prepared)
            await self._table.found(record.row, state, confirmed=confirmed)
        log.info("%s: batch %s of %d requests submitted", self.transport.identity, state.id, len(entries))
        self._watch(record.row)

    def _line(self, entry: _Entry) -> bytes:
        line = self.transport.line(entry.key, entry.request)
        entry.sent = hash(line)
        return line

    async def _hand_over(self, record: BatchRecord, prepared: Any) -> tuple[BatchState, bool]:
        """The batch at the provider, and whether it is certainly ours. Made once, however often the reply is lost."""
        for attempt in range(SUBMISSIONS):
            if attempt:
                await self._table.touch(record.row)
            try:
                return await self.transport.submit(record.marker, prepared), True
            except TransientError as error:
                problem = error
            except RlaifError as error:
                await self._table.end(record.row, "failed")
                raise (_whole(error, record.requests) if isinstance(error, RequestError) else error) from None
            surely_not = problem.kind == "rate_limit" or (problem.kind == "connection" and not problem.sent)
            if not surely_not and (found := await self._find(record, time.time())) is not None:
                return found, self.transport.traceable
            await asyncio.sleep(max(problem.retry_after or 0.0, _backoff(attempt)))
        await self._table.end(record.row, "lost")
        raise ProviderError(f"{problem} No batch could be submitted; run again later.")

    async def _find(self, record: BatchRecord, submitted: float) -> BatchState | None:
        """The batch of an unconfirmed submission at that time (seconds since 1970), once it is certain that there is
        one, or none."""
        taken = {r.name for r in self._table.records() if r.confirmed} | set(record.not_ours)
        while True:
            found = await self._patiently(lambda: self.transport.find(record.marker, record.since, record.requests))
            candidates = [state for state in found if state.id not in taken]
            if candidates:
                return candidates[-1]
            left = submitted + SETTLE_SECONDS - time.time()
            if left <= 0:
                return None
            await asyncio.sleep(min(left, SETTLE_SECONDS / 10))

    # ----------------------------------------------------------------------------------------- batches of before

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._attach())
        await asyncio.shield(self._opening)

    async def _attach(self) -> None:
        """Take up the batches that earlier sessions left under way."""
        await self._table.open()
        for record in self._table.open_records(self.transport.identity):
            if record.status == "live":
                log.info("%s: attached to batch %s", self.transport.identity, record.name)
                self._watch(record.row)
            else:
                self._spawn(self._recover(record), functools.partial(self._part_of, record.row))

    async def _recover(self, record: BatchRecord) -> None:
        """A batch that may have been submitted, or not."""
        async with self._hub.submitting:
            found = await self._find(record, record.updated)
            if found is None:
                await self._table.end(record.row, "lost")
            else:
                await self._table.found(record.row, found, confirmed=self.transport.traceable)
        if found is not None:
            self._watch(record.row)
            return
        for entry in self._part_of(record.row):
            self._resolve(entry, _Again(TransientError("its batch was never made", kind="connection"), counts=False))

    def _part_of(self, row: int) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.batch == row]

    # ----------------------------------------------------------------------------------------------------- waiting

    def _watch(self, row: int) -> None:
        self._spawn(self._follow(row), lambda: self._part_of(row))

    async def _follow(self, row: int) -> None:
        """Wait for the batch to end, take its results, and settle what it left."""
        record = self._record(row)
        try:
            state, cancelled = await self._until_over(record)
            if state.status == "failed":
                await self._refused(record, state)
                return
            ours = await self._take(record, state)
        except BatchGone as error:
            cure = f"`rlaif batch cancel {self._hub.run} {record.name} --forget` lets its requests be sent again"
            raise ProviderError(f"{error} If it is lost for good, {cure}.") from None
        if not record.confirmed and not ours:
            await self._table.reject(record, state.id)
            await self._recover(self._record(row))
            return
        await self._table.end(row, "ended", state)
        self._room.set()
        log.info("%s: batch %s %s", self.transport.identity, state.id, state.said)
        self._settle(self._record(row), state, cancelled)

    def _record(self, row: int) -> BatchRecord:
        return next(record for record in self._table.records() if record.row == row)

    async def _until_over(self, record: BatchRecord) -> tuple[BatchState, bool]:
        """(the batch when it is over, whether somebody cancelled it meanwhile)."""
        name, interval = str(record.name), self.settings.poll_seconds
        known, first, asked, cancelled = record.state, True, False, False
        while True:
            state = await self._patiently(lambda: self.transport.state(name))
            if state != known:
                known = state
                await self._table.update(record.row, state)
                done = state.succeeded + state.errored
                log.info("%s: batch %s: %s, %d of %d", record.identity, name, state.said, done, record.requests)
            cancelled = cancelled or (state.cancelled and not first and not asked)
            first = False
            if state.status in ("ended", "failed"):
                return state, cancelled
            self._queue_refusals = 0
            left = self._until_overdue(record)
            if left <= 0 and not asked:
                await self._table.go_online(record.row)
                await self._cancel(name)
                asked, interval = True, self.settings.poll_seconds
                continue
            await asyncio.sleep(_jittered(interval) if asked else min(_jittered(interval), left))
            interval = min(1.5 * interval, SLOWEST_POLL * self.settings.poll_seconds)

    def _until_overdue(self, record: BatchRecord) -> float:
        """Seconds until what the batch has not answered is asked online."""
        after = self.settings.finish_online_after
        return float("inf") if after is None else record.created + after - time.time()

    async def _cancel(self, name: str) -> None:
        # A batch that has just ended refuses to be cancelled; its state tells.
        with contextlib.suppress(RequestError, TransientError):
            await self.transport.cancel(name)

    async def _refused(self, record: BatchRecord, state: BatchState) -> None:
        await self._table.end(record.row, "failed", state)
        waiting = self._part_of(record.row)
        about = f"{self.transport.identity}: the batch {state.id} of {record.requests} requests was refused"
        if not state.queue_full:
            raise ProviderError(f"{about}, and nothing of it ran: {state.problem or state.said}.")
        self._queue_refusals += 1
        if self._queue_refusals > QUEUE_REFUSALS:
            raise ProviderError(f"{about} again: {state.problem}. Run again when less is waiting there.")
        self._max_requests = max(1, min(self._max_requests, record.requests // 2))
        pause = min(600.0, self.settings.poll_seconds * 2 ** (self._queue_refusals - 1))
        self._room.clear()
        asyncio.get_running_loop().call_later(_jittered(pause), self._room.set)
        log.warning("%s: %s; submitting less, in %.0f s", about, state.problem, pause)
        for entry in waiting:
            self._resolve(entry, _Again(TransientError(f"{about}: {state.problem}", kind="rate_limit"), counts=False))

    def _settle(self, record: BatchRecord, state: BatchState, cancelled: bool) -> None:
        """What becomes of the requests that the batch did not process."""
        about = f"{self.transport.identity}: the batch {state.id}"
        for entry in self._part_of(record.row):
            if record.online and self.settings.finish_online_after is not None:
                self._resolve(entry, _ONLINE)
            elif cancelled:
                kept = "what it answered is kept, and running again sends the rest"
                self._resolve(entry, ProviderError(f"{about} was cancelled, not by this run; {kept}."))
            else:
                error = TransientError(f"{about} ended ({state.said}) before it came to this request", kind="timeout")
                self._resolve(entry, _Again(error, counts=not state.cancelled))

    # ------------------------------------------------------------------------------------------------- its results

    async def _take(self, record: BatchRecord, state: BatchState) -> int:
        """Keep and hand out the results; how many are of requests that the batch was made of."""
        broken, failed = 0, 0
        while True:
            try:
                return await self._download(record, state.id, skip_broken=broken >= BROKEN_DOWNLOADS)
            except TransientError as error:
                broken += error.kind == "bad_reply"
                failed += 1
                if failed > 3 * SUBMISSIONS:
                    raise ProviderError(f"{error} The results of batch {state.id} could not be had.") from None
                await asyncio.sleep(max(error.retry_after or 0.0, _backoff(failed)))

    async def _download(self, record: BatchRecord, name: str, *, skip_broken: bool) -> int:
        ours = 0
        async for results in _chunks(self.transport.results(name, skip_broken=skip_broken)):
            mine = self._table.members(record.row, [result.key for result in results])
            ours += len(mine)
            read = {r.key: self._read(r) for r in results if r.key in mine}
            replies = ((r.key, r.reply) for r in results if isinstance(read.get(r.key), ChatReply) and r.reply)
            await self._table.store(record.row, replies)
            for key, outcome in read.items():
                entry = self._entries.get(key)
                if entry is not None and entry.batch == record.row and outcome is not None:
                    self._hand_out(entry, outcome)
        return ours

    def _read(self, result: ItemResult) -> ChatReply | RlaifError | None:
        """The reply, or why there is none; None: it was not processed."""
        if result.reply is None:
            return result.error
        try:
            return self._parse(result.reply)
        except TransientError as error:
            return error

    def _hand_out(self, entry: _Entry, outcome: ChatReply | RlaifError) -> None:
        if isinstance(outcome, ChatReply):
            self._resolve(entry, outcome)
        elif isinstance(outcome, TransientError):
            self._resolve(entry, _Again(outcome, counts=True))
        elif isinstance(outcome, RequestError) and self._learned(entry, outcome):
            self._resolve(entry, _Again(TransientError(str(outcome), kind="server"), counts=False))
        else:
            self._resolve(entry, outcome)

    def _learned(self, entry: _Entry, error: RequestError) -> bool:
        """Whether the same request can be spelled as this server wants it."""
        self.transport.learn(error)
        if error.kind != "unsupported":
            return False
        return entry.sent is None or hash(self.transport.line(entry.key, entry.request)) != entry.sent

    # -------------------------------------------------------------------------------------------------------- both

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """``call`` until it succeeds; a provider that cannot be reached for long ends the run."""
        loop = asyncio.get_running_loop()
        since, failed = loop.time(), 0
        while True:
            try:
                return await call()
            except TransientError as error:
                if loop.time() - since > UNREACHABLE_SECONDS:
                    raise ProviderError(f"{error} Batches under way go on; run again later.") from None
                await asyncio.sleep(max(error.retry_after or 0.0, _backoff(failed)))
                failed += 1

    async def aclose(self) -> None:
        self.closed = True
        tasks = [*self._tasks, *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._opening is not None:
            with contextlib.suppress(RlaifError):  # the ledger cannot be written: that was said where it mattered
                await self._table.purge()
        await self._online.aclose()


async def _chunks(results: AsyncIterator[ItemResult]) -> AsyncIterator[list[ItemResult]]:
    chunk: list[ItemResult] = []
    async for result in results:
        chunk.append(result)
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _whole(error: RequestError, requests: int) -> ProviderError:
    return ProviderError(f"{error} (said of a batch of {requests} requests; nothing of it ran)")


def _backoff(failed: int) -> float:
    return _jittered(min(60.0, FIRST_WAIT * 2.0**failed))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)
