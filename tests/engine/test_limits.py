"""The limiter against simulated servers on a virtual clock: as fast as they allow, and hardly ever refused.

Each server is one of those really met: token buckets, fixed and sliding windows, a number of slots. The bounds are what
was measured with some room; what is not reached is said where it is tested.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVarTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.clients.base import Capabilities, Identity
from rlaif.engine.breaker import Breaker
from rlaif.engine.concurrency import CEILING, START
from rlaif.engine.headers import Told, read_rate_limits, read_seconds
from rlaif.engine.limits import LimitedClient, Limiter
from rlaif.engine.quotas import Window
from rlaif.engine.retry import RetryingClient
from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.types import ChatReply, ChatRequest, Message, Usage
from tests.engine.virtual import SimulatedServer, VirtualLoop, ask, bucket, fixed_window, run_virtual, sliding_window

Admit = Callable[[float], float | None]


@dataclass
class Outcome:
    seconds: float
    server: Any
    limiter: Limiter

    @property
    def refused(self) -> float:
        """The share of sends answered 429."""
        return float(self.limiter.throttled / self.limiter.sent)


def drive(
    make: Callable[[], Any], calls: int, at_once: int = 256, clock: type[VirtualLoop] = VirtualLoop, **limits: Any
) -> Outcome:
    """``calls`` requests, as a run makes them: ``at_once`` wait for an answer at any time."""

    async def main() -> Outcome:
        server, limiter = make(), Limiter(**limits)
        client = LimitedClient(server, limiter)
        todo = iter(range(calls))

        async def work() -> None:
            for i in todo:
                await client.complete(ask(i))

        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return Outcome(loop.time() - start, server, limiter)

    return run_virtual(main, clock)


# --------------------------------------------------------------------------------- 600 requests a minute, only 429s

EXACT: Callable[[float], float] = lambda seconds: seconds  # noqa: E731
WHOLE: Callable[[float], float] = lambda seconds: float(math.ceil(seconds))  # noqa: E731


@pytest.mark.parametrize("retry_after", [EXACT, WHOLE], ids=["exact", "whole"])
@pytest.mark.parametrize("latency", [0.02, 0.1, 0.2])
@pytest.mark.parametrize(
    ("name", "admit", "own"),
    [
        ("bucket of 10", lambda: bucket(600, 10), 239.0),
        ("bucket of 100", lambda: bucket(600, 100), 230.0),
        ("bucket of 600", lambda: bucket(600, 600), 180.0),
        ("fixed window", lambda: fixed_window(600), 180.0),
        ("fixed window, begun before", lambda: fixed_window(600, offset=40), 140.0),
        ("sliding window", lambda: sliding_window(600), 180.0),
    ],
)
def test_600_a_minute_takes_the_servers_own_time_with_few_refusals(
    name: str, admit: Callable[[], Admit], own: float, latency: float, retry_after: Callable[[float], float]
) -> None:
    outcome = drive(
        lambda: SimulatedServer(admit(), latency=latency, jitter=0.002, retry_after=retry_after), calls=2400
    )
    assert outcome.server.answered == 2400
    assert outcome.seconds <= 1.05 * (own + latency)
    assert outcome.refused < 0.02


@given(
    sent=st.lists(st.floats(0, 59), min_size=1, max_size=8),
    asked=st.lists(st.floats(60, 200), min_size=1, max_size=20),
)
def test_a_window_never_lets_through_more_than_its_size_in_a_period(sent: list[float], asked: list[float]) -> None:
    window = Window(deque(sorted(sent)), len(sent), 59.0)
    now = 0.0
    for time in sorted(asked):
        now = window.ready_at(max(now, time))  # as a timer set for that moment does
        assert window.ready_at(now) <= now
        window.take(now)
        assert len(window.sent) <= window.size


def test_a_server_that_spaces_requests_evenly_is_found_out_too() -> None:
    outcome = drive(lambda: SimulatedServer(bucket(600, 1), latency=0.2, jitter=0.002), calls=1200)
    assert outcome.seconds <= 1.05 * 120.1
    assert outcome.refused < 0.02


@pytest.mark.parametrize("admit", [lambda: bucket(600, 10), lambda: fixed_window(600), lambda: sliding_window(600)])
def test_without_retry_after_it_takes_longer_and_refusals_stay_few(admit: Callable[[], Admit]) -> None:
    outcome = drive(lambda: SimulatedServer(admit(), latency=0.2, retry_after=lambda seconds: None), calls=1200)
    assert outcome.seconds <= 1.25 * 120
    assert outcome.refused < 0.03


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
def test_429s_that_are_not_about_the_pace_do_not_slow_a_run_down_more_and_more(share: float) -> None:
    draw = random.Random(1)

    def admit(now: float) -> float | None:
        return 0.25 if draw.random() < share else None

    def a_quarter(seconds: float) -> float:
        return 0.25

    seconds = drive(lambda: SimulatedServer(admit, latency=0.05, retry_after=a_quarter), calls=2000).seconds
    assert seconds < 60 + 2000 * share * 0.4  # a minute to find out, then the pauses asked for


def test_a_limit_that_is_raised_is_found() -> None:
    rate = {"rpm": 300.0}
    inner = {300.0: bucket(300, 10), 3000.0: bucket(3000, 50)}

    async def main() -> float:
        server = SimulatedServer(lambda now: inner[rate["rpm"]](now), latency=0.1)
        client = LimitedClient(server, Limiter())
        await asyncio.gather(*(client.complete(ask(i)) for i in range(600)))
        rate["rpm"] = 3000.0
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(*(client.complete(ask(i)) for i in range(3000)))
        return loop.time() - start

    assert run_virtual(main) < 300  # at the old limit it would take 600 s, at the new one 60


# --------------------------------------------------------------------------------------------- pauses and refusals


class Answers:
    """A Client that plays answers, each an exception or a text, and notes when each request came."""

    def __init__(self, *answers: Any, latency: float = 0.01) -> None:
        self.identity = Identity(backend="openai", model="m", base_url="http://x/v1")
        self.capabilities = Capabilities()
        self.answers, self.latency = list(answers), latency
        self.came: list[float] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.came.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if self.answers else "ok"
        await asyncio.sleep(self.latency)
        if isinstance(answer, Exception):
            raise answer
        return ChatReply(text=answer, finish_reason="stop", usage=Usage(input_tokens=10, output_tokens=10))

    async def aclose(self) -> None:
        return None


def too_many(retry_after: float | None) -> TransientError:
    return TransientError("too many", kind="rate_limit", status=429, retry_after=retry_after)


def test_retry_after_is_waited_for_in_full_by_everybody() -> None:
    async def main() -> list[float]:
        client = Answers("ok", too_many(37.5))
        limited = LimitedClient(client, Limiter())
        await limited.complete(ask(0))
        first = asyncio.create_task(limited.complete(ask(1)))
        await asyncio.sleep(1)
        await asyncio.gather(first, *(limited.complete(ask(i)) for i in range(2, 10)))
        return client.came

    came = run_virtual(main)
    assert len(came) == 11
    assert came[2] >= came[1] + 0.01 + 37.5  # the repeated one
    assert min(came[2:]) == came[2]  # and everybody after it


def test_429s_are_no_attempts_and_are_not_seen_above() -> None:
    async def main() -> int:
        client = Answers(*(too_many(0.5) for _ in range(40)))
        reply = await RetryingClient(LimitedClient(client, Limiter())).complete(ask())
        assert reply.text == "ok"
        return len(client.came)

    assert run_virtual(main) == 41


def test_a_wait_of_hours_ends_the_run_at_once_and_says_so() -> None:
    async def main() -> int:
        client = Answers(too_many(20 * 3600.0))
        limited = LimitedClient(client, Limiter())
        for _ in range(2):
            with pytest.raises(ProviderError, match=r"20\.0 hours"):
                await limited.complete(ask())
        return len(client.came)

    assert run_virtual(main) == 1


def test_nothing_but_429s_for_half_an_hour_ends_the_run() -> None:
    async def main() -> float:
        limited = LimitedClient(Answers(*(too_many(None) for _ in range(10_000))), Limiter())
        with pytest.raises(ProviderError, match="Nothing but 429"):
            await asyncio.gather(*(limited.complete(ask(i)) for i in range(20)))
        return asyncio.get_running_loop().time()

    assert 1800 <= run_virtual(main) < 2000


def test_what_the_provider_refuses_to_everybody_is_not_asked_by_those_who_wait() -> None:
    async def main() -> int:
        client = Answers(*(ProviderError("wrong key") for _ in range(1000)), latency=1.0)
        limited = LimitedClient(client, Limiter())
        results = await asyncio.gather(*(limited.complete(ask(i)) for i in range(500)), return_exceptions=True)
        assert all(isinstance(result, ProviderError) for result in results)
        return len(client.came)

    assert run_virtual(main) == START


def test_a_request_that_waits_can_be_cancelled_and_leaves_no_gap() -> None:
    async def main() -> None:
        client = Answers(latency=1.0)
        limiter = Limiter(max_concurrency=2)
        limited = LimitedClient(client, limiter)
        tasks = [asyncio.create_task(limited.complete(ask(i))) for i in range(10)]
        await asyncio.sleep(0.5)
        for task in (tasks[0], tasks[4], tasks[5]):  # one on its way, two that wait
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, ChatReply) for result in done) == 7
        assert (limiter.in_flight, limiter.waiting) == (0, 0)

    run_virtual(main)


# ------------------------------------------------------------------------------------------------- how many at once


@pytest.mark.parametrize("slots", [None, 64, 100])
def test_2000_calls_of_200_ms_take_little_longer_than_the_concurrency_found_would(slots: int | None) -> None:
    outcome = drive(lambda: SimulatedServer(latency=0.2, slots=slots), calls=2000, at_once=2000)
    found = outcome.limiter.limit
    assert found == CEILING
    assert outcome.seconds <= 1.15 * 2000 * 0.2 / found
    assert outcome.refused == 0


@pytest.mark.parametrize(("slots", "found"), [(3, 16), (16, 16), (40, 64)])
def test_a_server_that_is_full_and_never_says_so_is_not_pressed(slots: int, found: int) -> None:
    outcome = drive(lambda: SimulatedServer(latency=0.2, slots=slots), calls=2000, at_once=2000)
    assert outcome.limiter.limit <= found
    assert outcome.server.most_in_flight <= max(2 * found, 32)
    assert outcome.seconds <= 1.05 * 2000 * 0.2 / slots + 0.5


def test_a_server_with_more_room_is_used_more_as_time_goes_on() -> None:
    outcome = drive(lambda: SimulatedServer(latency=0.5, slots=300), calls=30_000, at_once=2000)
    assert outcome.limiter.limit > 2 * CEILING
    assert outcome.seconds < 0.5 * 30_000 * 0.5 / CEILING


def test_a_maximum_is_reached_and_never_passed() -> None:
    for maximum in (1, 5, 200):
        outcome = drive(lambda: SimulatedServer(latency=0.2), 2000, at_once=1000, max_concurrency=maximum)
        assert outcome.server.most_in_flight == maximum


def test_a_limit_that_is_not_needed_does_not_grow() -> None:
    outcome = drive(lambda: SimulatedServer(latency=0.2), calls=2000, at_once=4)
    assert outcome.limiter.limit == START


def test_a_burst_of_429s_halves_the_limit_once() -> None:
    limits = []

    async def main() -> None:
        limiter = Limiter()
        limited = LimitedClient(SimulatedServer(latency=0.2), limiter)
        await asyncio.gather(*(limited.complete(ask(i)) for i in range(500)))
        limits.append(limiter.limit)
        burst = LimitedClient(Answers(*(too_many(1.0) for _ in range(40)), latency=0.2), limiter)
        await asyncio.gather(*(burst.complete(ask(i)) for i in range(40)))
        limits.append(limiter.limit)

    run_virtual(main)
    before, after = limits
    assert before == CEILING
    assert before // 2 <= after < before


def test_single_failures_do_not_slow_a_run_down_and_an_overloaded_server_is_relieved() -> None:
    class Failing(SimulatedServer):
        def __init__(self, share: float) -> None:
            super().__init__(latency=0.1)
            self.share = share

        async def complete(self, request: ChatRequest) -> ChatReply:
            reply = await super().complete(request)
            if self._random.random() < self.share:
                raise TransientError("500", kind="server", status=500)
            return reply

    async def limit_with(share: float) -> int:
        limiter = Limiter()
        limited = RetryingClient(LimitedClient(Failing(share), limiter))
        await asyncio.gather(*(limited.complete(ask(i)) for i in range(2000)), return_exceptions=True)
        return limiter.limit

    assert run_virtual(lambda: limit_with(0.3)) >= CEILING
    assert run_virtual(lambda: limit_with(0.95)) < START


def test_a_model_in_this_process_has_only_the_limits_it_is_given() -> None:
    assert drive(lambda: SimulatedServer(latency=1.0), 500, at_once=500, adaptive=False).seconds == 1.0
    limited = drive(lambda: SimulatedServer(latency=1.0), 500, at_once=500, adaptive=False, max_concurrency=100)
    assert limited.seconds == 5.0


# ---------------------------------------------------------------------------------------------------- what is told


Args = TypeVarTuple("Args")


class LateLoop(VirtualLoop):
    """Of a busy machine: each timer fires 20 ms late."""

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when + 0.02, callback, *args, context=context)


def test_what_a_busy_machine_sends_late_is_made_up_for() -> None:
    outcome = drive(lambda: SimulatedServer(bucket(600, 2)), calls=600, clock=LateLoop, rpm=600.0)
    assert outcome.seconds <= 1.01 * 600 / 9.7  # without making up for it: 1.17
    assert outcome.limiter.throttled == 0


def test_a_server_that_minds_is_not_sent_two_requests_too_close_again() -> None:
    outcome = drive(lambda: SimulatedServer(bucket(600, 1)), calls=600, clock=LateLoop, rpm=600.0)
    assert outcome.limiter.throttled < 6


@pytest.mark.parametrize("rpm", [60.0, 600.0, 6000.0])
def test_an_rpm_of_the_config_is_kept_without_a_single_429(rpm: float) -> None:
    outcome = drive(
        lambda: SimulatedServer(bucket(rpm, 2), latency=0.2, jitter=0.002), int(2 * rpm), at_once=500, rpm=rpm
    )
    assert outcome.limiter.throttled == 0
    assert outcome.seconds <= 1.05 * 120


def test_a_tpm_of_the_config_is_kept_by_the_tokens_really_used() -> None:
    sent: list[tuple[float, int]] = []

    class Counting(SimulatedServer):
        async def complete(self, request: ChatRequest) -> ChatReply:
            size = len(request.messages[0].content)
            sent.append((asyncio.get_running_loop().time(), size + 100))
            await asyncio.sleep(0.2)
            return ChatReply(text="x", finish_reason="stop", usage=Usage(input_tokens=size, output_tokens=100))

    async def main() -> float:
        client = LimitedClient(Counting(), Limiter(tpm=60_000))
        requests = [
            ChatRequest(messages=(Message(role="user", content="x" * (100 if i % 3 else 900)),), max_tokens=400)
            for i in range(600)
        ]
        await asyncio.gather(*(client.complete(request) for request in requests))
        return asyncio.get_running_loop().time()

    seconds = run_virtual(main)
    total = sum(tokens for _, tokens in sent)
    assert seconds <= 1.05 * 60 * total / 60_000
    for start, _ in sent:  # in no minute more than a minute's tokens and the few that went before they were counted
        assert sum(tokens for at, tokens in sent if start <= at < start + 60) <= 1.15 * 60_000


class Telling(SimulatedServer):
    """A token bucket that tells in its headers what is left, as OpenAI's does."""

    def __init__(self, limiter: Limiter, rpm: float, burst: float, latency: float) -> None:
        super().__init__(self._spend, latency=latency, jitter=0.002)
        self._limiter, self._rpm, self._burst, self._left, self._at = limiter, rpm, burst, burst, 0.0

    def _spend(self, now: float) -> float | None:
        self._left = min(self._burst, self._left + (now - self._at) * self._rpm / 60)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * 60 / self._rpm
        self._left -= 1
        return None

    async def _answer(self) -> ChatReply:
        try:
            return await super()._answer()
        finally:
            headers = {
                "x-ratelimit-limit-requests": f"{self._rpm:g}",
                "x-ratelimit-remaining-requests": f"{int(self._left)}",
            }
            self._limiter.on_headers(headers)


@pytest.mark.parametrize(("burst", "own"), [(1.0, 120.0), (600.0, 60.0)])
def test_headers_that_tell_the_limit_save_the_429s(burst: float, own: float) -> None:
    async def main() -> tuple[float, int]:
        limiter = Limiter()
        client = LimitedClient(Telling(limiter, 600, burst, 0.2), limiter)
        await asyncio.gather(*(client.complete(ask(i)) for i in range(1200)))
        return asyncio.get_running_loop().time(), limiter.throttled

    seconds, throttled = run_virtual(main)
    assert throttled <= START  # those sent before the first answer
    assert seconds <= 1.05 * own


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, {}),
        (
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "599",
                "x-ratelimit-reset-requests": "100ms",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            {"requests": Told(600, 599, 0.1), "tokens": Told(None, 149984, 360)},
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "1970-01-01T00:00:00Z",
                "anthropic-ratelimit-input-tokens-limit": "20000",
                "anthropic-ratelimit-input-tokens-remaining": "12000",
            },
            {"requests": Told(50, 0, 0), "input-tokens": Told(20000, 12000, None)},
        ),
        ({"x-ratelimit-remaining-requests": "soon"}, {}),
        ({"x-ratelimit-remaining-requests": "-1"}, {}),
        ({"x-ratelimit-remaining-requests": "nan"}, {}),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-limit-requests": "0"}, {"requests": Told(None, 3, None)}),
    ],
)
def test_headers_are_read_and_nonsense_is_left_out(headers: Mapping[str, str], told: dict[str, Told]) -> None:
    assert read_rate_limits(headers) == told


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m", 3720), ("7", 7), ("", None), ("later", None), ("5 s", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert read_seconds(text) == seconds


# ---------------------------------------------------------------------------------------------- a provider that is gone


class Gone(Answers):
    """Every request fails with ``kind`` until ``back``."""

    def __init__(self, kind: Any, since: float = 0.0, back: float = math.inf) -> None:
        super().__init__()
        self.kind, self.since, self.back = kind, since, back

    async def complete(self, request: ChatRequest) -> ChatReply:
        now = asyncio.get_running_loop().time()
        self.came.append(now)
        await asyncio.sleep(0.05)
        if self.since <= now < self.back:
            raise TransientError("http://x/v1: no connection", kind=self.kind)
        return ChatReply(text="ok", finish_reason="stop")


def rows(client: Any, n: int) -> tuple[list[Any], float]:
    """What becomes of ``n`` rows (a reply or an exception each), 64 at a time, and how long it takes."""

    async def main() -> tuple[list[Any], float]:
        retrying = RetryingClient(LimitedClient(client, Limiter()))
        results: list[Any] = []
        todo = iter(range(n))

        async def work() -> None:
            for i in todo:
                try:
                    results.append(await retrying.complete(ask(i)))
                except (TransientError, RequestError) as error:
                    results.append(error)

        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(work()) for _ in range(64)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            results.append(loop.time())
        return results[:-1], loop.time()

    return run_virtual(main)


@pytest.mark.parametrize("n", [1, 10_000])
def test_a_wrong_base_url_ends_the_run_in_seconds_and_names_it(n: int) -> None:
    client = Gone("connection")
    with pytest.raises(ProviderError, match="http://x/v1: no connection"):
        rows(client, n)
    assert client.came[-1] < 20
    assert len(client.came) < 50


def test_a_server_that_stays_away_ends_the_run_in_minutes_not_after_every_row() -> None:
    client = Gone("server", since=5.0)
    with pytest.raises(ProviderError, match="run again"):
        rows(client, 100_000)
    assert 5 + Breaker.PATIENCE <= client.came[-1] < 5 + Breaker.PATIENCE + 40
    assert len([at for at in client.came if at >= 5]) < 200


def test_an_outage_of_a_minute_costs_hardly_a_row_and_the_run_goes_on_at_full_speed() -> None:
    client = Gone("connection", since=5.0, back=65.0)
    results, seconds = rows(client, 20_000)
    lost = [result for result in results if isinstance(result, Exception)]
    assert len(lost) <= 2
    assert seconds < 65 + 35 + 20_000 * 0.05 / CEILING * 1.5


def test_a_few_requests_that_the_server_cannot_answer_do_not_stop_the_run() -> None:
    class Poisoned(Answers):
        async def complete(self, request: ChatRequest) -> ChatReply:
            await asyncio.sleep(60.0)
            if request.messages[0].content in ("question 7", "question 8", "question 9"):
                raise TransientError("500", kind="server", status=500)
            return ChatReply(text="ok", finish_reason="stop")

    results, _ = rows(Poisoned(), 20)
    assert sum(isinstance(result, TransientError) for result in results) == 3
    assert sum(isinstance(result, ChatReply) for result in results) == 17


def test_a_request_the_server_refuses_says_nothing_about_the_server() -> None:
    class Refusing(Answers):
        async def complete(self, request: ChatRequest) -> ChatReply:
            await asyncio.sleep(0.05)
            raise RequestError("too long", kind="context_length")

    results, seconds = rows(Refusing(), 1000)
    assert len(results) == 1000
    assert seconds < 10
