"""An event loop whose clock jumps to the next timer, and servers to simulate on it: minutes of traffic in a second."""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rlaif.clients.base import Capabilities, Identity
from rlaif.errors import TransientError
from rlaif.types import ChatReply, ChatRequest, Message, Usage

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """A selector that never waits: where it would, the clock moves on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]], clock: type[VirtualLoop] = VirtualLoop) -> T:
    """``asyncio.run`` on a virtual clock. No threads and no real I/O inside."""
    with asyncio.Runner(loop_factory=clock) as runner:
        return runner.run(main())


def ask(i: int = 0) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=f"question {i}"),), max_tokens=16)


class SimulatedServer:
    """A Client with a server's limits. ``admit(now)`` gives None, or the Retry-After of a 429.

    ``slots``: requests worked on at once (more wait). ``latency``: seconds of work. ``slow_refusal``: a 429 takes as
    long as an answer. ``jitter``: up to so many seconds until a request arrives.
    """

    def __init__(
        self,
        admit: Callable[[float], float | None] = lambda now: None,
        *,
        latency: float = 0.05,
        slots: int | None = None,
        slow_refusal: bool = False,
        jitter: float = 0.0,
        retry_after: Callable[[float], float | None] = lambda seconds: seconds,
    ) -> None:
        self.identity = Identity(backend="scripted", model="simulated")
        self.capabilities = Capabilities()
        self.answered = self.refused = self.in_flight = self.most_in_flight = 0
        self._admit, self._latency, self._slow_refusal, self._jitter = admit, latency, slow_refusal, jitter
        self._retry_after = retry_after
        self._slots = asyncio.Semaphore(slots) if slots else None
        self._random = random.Random(0)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer()
        finally:
            self.in_flight -= 1

    async def _answer(self) -> ChatReply:
        if self._jitter:
            await asyncio.sleep(self._random.uniform(0, self._jitter))
        wait = self._admit(asyncio.get_running_loop().time())
        if wait is not None:
            self.refused += 1
            await asyncio.sleep(self._latency if self._slow_refusal else 0.001)
            raise TransientError("429", kind="rate_limit", status=429, retry_after=self._retry_after(wait))
        if self._slots is None:
            await asyncio.sleep(self._latency)
        else:
            async with self._slots:
                await asyncio.sleep(self._latency)
        self.answered += 1
        return ChatReply(text="ok", finish_reason="stop", usage=Usage(input_tokens=10, output_tokens=10))

    async def aclose(self) -> None:
        return None


def bucket(rpm: float, burst: float) -> Callable[[float], float | None]:
    """A token bucket, full at first."""
    state = {"level": burst, "at": 0.0}

    def admit(now: float) -> float | None:
        state["level"] = min(burst, state["level"] + (now - state["at"]) * rpm / 60)
        state["at"] = now
        if state["level"] < 1 - 1e-9:
            return (1 - state["level"]) * 60 / rpm
        state["level"] -= 1
        return None

    return admit


def fixed_window(limit: int, period: float = 60.0, offset: float = 0.0) -> Callable[[float], float | None]:
    """``limit`` in each period of the clock; the first one ends ``offset`` seconds early."""
    counts: dict[int, int] = {}

    def admit(now: float) -> float | None:
        window = int((now + offset) // period)
        if counts.get(window, 0) >= limit:
            return (window + 1) * period - (now + offset)
        counts[window] = counts.get(window, 0) + 1
        return None

    return admit


def sliding_window(limit: int, period: float = 60.0) -> Callable[[float], float | None]:
    """``limit`` in any ``period`` seconds."""
    admitted: deque[float] = deque()

    def admit(now: float) -> float | None:
        while admitted and admitted[0] <= now - period:
            admitted.popleft()
        if len(admitted) >= limit:
            return admitted[0] + period - now
        admitted.append(now)
        return None

    return admit
