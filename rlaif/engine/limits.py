"""How many requests, and how fast: finds what an endpoint allows, and keeps to it.

One `Limiter` for each model at each URL, whichever stages use it. A request waits here until all of these let it go:

* **concurrency** (concurrency.py): begins at 8, doubles for each round trip in which it held requests back, and stops
  where more at once no longer mean more answers a second; halved once for each burst of 429s;
* **quotas**: ``rpm`` and ``tpm`` of the config; what rate-limit headers tell (headers.py); and, for a server that only
  says 429, what its 429s teach (pace.py);
* **pauses**: Retry-After in full, for everybody.

A 429 is not an answer: the request goes back to the head of the queue, and nobody above hears of it. Sustained failure
ends the run (breaker.py) instead of failing every row one by one. A deadline is the transport's business: it begins
when a request is sent, never while it waits here.

Times are seconds of the running loop's clock, so a loop with a virtual clock simulates all of this exactly.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar

from rlaif.clients.base import Client, Wrapper
from rlaif.engine.breaker import Breaker
from rlaif.engine.concurrency import Concurrency
from rlaif.engine.headers import Told, read_rate_limits
from rlaif.engine.pace import LearnedPace
from rlaif.engine.quotas import MARGIN, Pace, Quota
from rlaif.errors import ProviderError, TransientError
from rlaif.types import ChatReply, ChatRequest

LONGEST_WAIT = 3600.0  # seconds; a provider that asks for more ends the run: it is a daily quota
SAID_FROM = 60.0  # nobody should wonder for longer why nothing happens
LONGEST_REFUSAL = 1800.0  # nothing but 429s for so many seconds ends it, too
CHARACTERS_PER_TOKEN = 4.0  # an estimate is enough: quotas are corrected by what the replies say

log = logging.getLogger("rlaif.limits")

_Cost = tuple[float, float, float]  # requests, input tokens, output tokens (estimates)
_ONE: _Cost = (1.0, 0.0, 0.0)


class Ticket:
    """Leave to send one request. ``taken``: all that had been let go before and with it."""

    __slots__ = ("cost", "sent_at", "taken")

    def __init__(self, sent_at: float, cost: _Cost, taken: _Cost) -> None:
        self.sent_at, self.cost, self.taken = sent_at, cost, taken


# The ticket of the request that this task is sending: a transport's ``on_headers`` does not say which one it answers.
_current: ContextVar[Ticket | None] = ContextVar("rlaif_ticket", default=None)


class _Waiter:
    __slots__ = ("cost", "future")

    def __init__(self, cost: _Cost) -> None:
        self.cost = cost
        self.future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()


class Limiter:
    """The gate in front of one model at one URL: `acquire` a ticket, send, say how it went, `release` it.

    ``adaptive=False``, for models in this process: only ``max_concurrency``, ``rpm`` and ``tpm`` hold, and failures say
    nothing about a server. ``limit``, ``in_flight``, ``waiting``, ``sent`` and ``throttled`` (sends answered 429) are
    for reading.
    """

    def __init__(
        self,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        max_concurrency: int | None = None,
        adaptive: bool = True,
    ) -> None:
        self.rpm, self.tpm, self.max_concurrency = rpm, tpm, max_concurrency
        self.sent = self.throttled = self.in_flight = 0
        self._adaptive = adaptive
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Waiter] = deque()
        self._concurrency = Concurrency(max_concurrency, adaptive, 0.0)

    @property
    def limit(self) -> int:
        return self._concurrency.limit

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def tighten(self, rpm: float | None, tpm: float | None, max_concurrency: int | None) -> None:
        """Keep to these as well: another config names the same model at the same URL."""
        self.rpm = min((x for x in (self.rpm, rpm) if x is not None), default=None)
        self.tpm = min((x for x in (self.tpm, tpm) if x is not None), default=None)
        self.max_concurrency = min((x for x in (self.max_concurrency, max_concurrency) if x is not None), default=None)
        self._concurrency.cap(self.max_concurrency)
        if self._loop is not None:
            self._make_quotas(self._loop.time())

    def _bind(self) -> asyncio.AbstractEventLoop:
        """The running loop. What another one had under way is gone with it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            now = loop.time()
            self._loop = loop
            self.in_flight = 0
            self._queue.clear()
            self._timer: asyncio.TimerHandle | None = None
            self._resume_at = -math.inf
            self._refused_since: float | None = None
            self._taken: _Cost = (0.0, 0.0, 0.0)
            self._mean_output: float | None = None
            self._told: dict[str, Quota] = {}
            self._pace = LearnedPace(now)
            self._concurrency = Concurrency(self.max_concurrency, self._adaptive, now)
            self._breaker = Breaker()
            self._make_quotas(now)
        return loop

    def _make_quotas(self, now: float) -> None:
        self._rpm = None if self.rpm is None else Pace(MARGIN * self.rpm / 60, now, slack=0.5)
        # A minute's tokens come in requests of very different size: five seconds' worth may go at once.
        self._tpm = None if self.tpm is None else Quota(MARGIN * self.tpm / 60, max(1.0, self.tpm / 12), now)

    # ------------------------------------------------------------------------------------------------- the queue

    async def acquire(self, request: ChatRequest, *, first: bool = False) -> Ticket:
        """Wait for leave to send. ``first``: ahead of everybody (it was sent before, and answered 429).

        Raises the ProviderError that ended this endpoint, if one did.
        """
        self._bind()
        self._breaker.check()
        waiter = _Waiter(self._cost(request))
        if first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._pump()
        try:
            ticket = await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                self.release(waiter.future.result())
            else:
                with contextlib.suppress(ValueError):  # `_pump` has passed over it already
                    self._queue.remove(waiter)
            raise
        try:
            self._breaker.check()
        except ProviderError:
            self.release(ticket)
            raise
        return ticket

    def release(self, ticket: Ticket) -> None:
        """The request is no longer on its way."""
        self.in_flight -= 1
        self._pump()

    def _pump(self) -> None:
        """Let go whoever may go now; set a timer for the next."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._queue and self.in_flight < self.limit:
            waiter = self._queue[0]
            if not waiter.future.done():
                at = self._ready_at(waiter.cost, now)
                if at > now:
                    self._timer = self._loop.call_at(at, self._pump)
                    return
                waiter.future.set_result(self._take(waiter.cost, now))
            self._queue.popleft()

    def _ready_at(self, cost: _Cost, now: float) -> float:
        at = max(now, self._resume_at, self._pace.ready_at(now), self._concurrency.ready_at(now))
        if self._rpm is not None:
            at = max(at, self._rpm.ready_at(1, now))
        if self._tpm is not None:
            at = max(at, self._tpm.ready_at(_part(cost, "tokens"), now))
        for kind, quota in self._told.items():
            at = max(at, quota.ready_at(_part(cost, kind), now))
        return at

    def _take(self, cost: _Cost, now: float) -> Ticket:
        if self._rpm is not None:
            self._rpm.take(1, now)
        if self._tpm is not None:
            self._tpm.take(_part(cost, "tokens"), now)
        for kind, quota in self._told.items():
            quota.take(_part(cost, kind), now)
        self.in_flight += 1
        self.sent += 1
        self._pace.take(now)
        self._concurrency.take(self.in_flight, now)
        self._taken = (self._taken[0] + cost[0], self._taken[1] + cost[1], self._taken[2] + cost[2])
        return Ticket(now, cost, self._taken)

    def _cost(self, request: ChatRequest) -> _Cost:
        if self._tpm is None and not any(kind != "requests" for kind in self._told):
            return _ONE
        expected = request.max_tokens if self._mean_output is None else min(request.max_tokens, self._mean_output)
        characters = sum(len(m.content) for m in request.messages) + len(request.continuation or "")
        return (1.0, characters / CHARACTERS_PER_TOKEN, expected)

    # ----------------------------------------------------------------------------------------------- how it went

    def answered(self, ticket: Ticket, reply: ChatReply) -> None:
        now = self._bind().time()
        self._refused_since = None
        if self._breaker.succeeded():
            self._concurrency.slow_start(now)
        self._pace.answered(ticket.sent_at, now)
        self._concurrency.answered(ticket.sent_at, now)
        output = float(reply.usage.output_tokens)
        self._mean_output = output if self._mean_output is None else 0.95 * self._mean_output + 0.05 * output
        if self._tpm is not None and reply.usage.input_tokens:
            self._tpm.take(reply.usage.input_tokens + output - _part(ticket.cost, "tokens"), now)

    def answered_429(self, ticket: Ticket, error: TransientError) -> None:
        """Pause as long as the server says, and learn from it. Raises ProviderError when it says too long."""
        now = self._bind().time()
        self.throttled += 1
        if self._rpm is not None:
            self._rpm.be_strict(now)
        self._check_wait(error)
        if self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since > LONGEST_REFUSAL:
            minutes = LONGEST_REFUSAL / 60
            raise self._breaker.refuse(
                ProviderError(f"{error} (Nothing but 429 for {minutes:.0f} minutes.) Run again later.")
            )
        lesson = self._pace.answered_429(ticket.sent_at, error.retry_after, self.throttled / self.sent, now)
        self._pause(lesson.wait, error, now)
        if lesson.first and not lesson.known:
            self._concurrency.answered_429(now)

    def failed(self, ticket: Ticket, request: ChatRequest, error: TransientError) -> None:
        """Slow down for a server in trouble. Raises ProviderError when the trouble lasts."""
        if not self._adaptive:
            return
        now = self._bind().time()
        self._check_wait(error)
        self._concurrency.failed(ticket.sent_at, now)
        hold = self._breaker.failed(request, error, now)
        if hold:
            self._concurrency.probe_only()
        self._pause(max(hold, error.retry_after or 0.0), error, now)

    def _pause(self, seconds: float, error: TransientError, now: float) -> None:
        if seconds >= SAID_FROM and now + seconds > self._resume_at + SAID_FROM:
            log.warning("%s Waiting %.0f s, as it asks; interrupt and run again later to go on.", error, seconds)
        self._resume_at = max(self._resume_at, now + seconds)

    def _check_wait(self, error: TransientError) -> None:
        if error.retry_after is not None and error.retry_after > LONGEST_WAIT:
            hours = error.retry_after / 3600
            raise self._breaker.refuse(
                ProviderError(
                    f"{error} (It asks for a wait of {hours:.1f} hours.) What was answered is kept: run again then."
                )
            )

    def refused(self, error: ProviderError) -> None:
        """The provider refuses everything: nobody else need ask."""
        self._bind()
        self._breaker.refuse(error)

    def on_headers(self, headers: Mapping[str, str]) -> None:
        """Take what the headers of a response say about what is left. For the transport's ``on_headers``."""
        ticket = _current.get()
        if ticket is not None:
            for kind, told in read_rate_limits(headers).items():
                self._hear(kind, told, ticket)

    def _hear(self, kind: str, told: Told, ticket: Ticket) -> None:
        now = self._bind().time()
        if told.limit is not None:
            rate, capacity = MARGIN * told.limit / 60, max(1.0, told.limit)
        elif told.reset is not None and told.remaining < 1:
            rate, capacity = 1 / max(told.reset, 0.001), 1.0
        else:
            self._told.pop(kind, None)  # there is some left, and it is not said how much
            return
        quota = self._told.setdefault(kind, Quota(rate, capacity, now))
        quota.change(rate, capacity, now)
        # The server counted when the request came: since then more has become free, and we have sent more.
        since = _part(self._taken, kind) - _part(ticket.taken, kind)
        quota.set_level(told.remaining + rate * (now - ticket.sent_at) - since, now)


def _part(cost: _Cost, kind: str) -> float:
    """The part of a cost that a quota of ``kind`` counts."""
    if kind == "requests":
        return cost[0]
    return cost[1] if kind == "input-tokens" else cost[2] if kind == "output-tokens" else cost[1] + cost[2]


class LimitedClient(Wrapper):
    """A Client whose requests pass ``limiter``, each send of them: it stands next to the transport, so that nothing
    (a retry, a downgrade) is sent around it."""

    def __init__(self, client: Client, limiter: Limiter) -> None:
        super().__init__(client)
        self.limiter = limiter

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises what the client raises, except for a 429: it waits and asks again. Raises ProviderError when the
        provider is gone, or asks for a wait of hours."""
        again = False
        while True:
            ticket = await self.limiter.acquire(request, first=again)
            try:
                return await self._send(request, ticket)
            except TransientError as error:
                if error.kind != "rate_limit":
                    raise
                again = True
            finally:
                self.limiter.release(ticket)

    async def _send(self, request: ChatRequest, ticket: Ticket) -> ChatReply:
        token = _current.set(ticket)
        try:
            reply = await self._client.complete(request)
        except TransientError as error:
            if error.kind == "rate_limit":
                self.limiter.answered_429(ticket, error)
            else:
                self.limiter.failed(ticket, request, error)
            raise
        except ProviderError as error:
            self.limiter.refused(error)
            raise
        finally:
            _current.reset(token)
        self.limiter.answered(ticket, reply)
        return reply
