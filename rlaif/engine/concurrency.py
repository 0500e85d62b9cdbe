"""How many requests at once: as many as still mean more answers a second.

A round is the answers to ``limit`` requests sent since the limit last changed. By Little's law a full pipe answers
limit / (mean latency) requests a second, so latencies alone tell whether a larger limit brought anything: where twice
the requests take twice as long each, the server is full. Only rounds in which the limit held somebody back count.
"""

import math
from typing import Literal

from rlaif.engine.quotas import Pace

START = 8  # before anything is known: a server that allows one a second refuses few
CEILING = 64  # where doubling ends; beyond it, half as many more every HOLD seconds while that pays
HARD_CEILING = 1024
SHORTEST_ROUND = 0.03  # seconds: where answers come at once, a bucket is empty before the first refusal is heard
SPREAD = 4  # sends at most that many times as fast as answers can come
HOLD = 10.0  # seconds between two trials of more; twice as long after each that brought nothing, up to 16 times
NO_LIMIT = 1_000_000_000


class Concurrency:
    """``limit`` is the number of requests to have on their way at once.

    ``maximum``: never more; a maximum the user gives is meant, so doubling goes on up to it. ``adaptive=False``: the
    limit is the maximum.
    """

    def __init__(self, maximum: int | None, adaptive: bool, now: float) -> None:
        self.limit = START
        self._adaptive = adaptive
        self._latency: float | None = None  # smoothed
        self._spread: Pace | None = None
        self._trouble = 0.0  # smoothed share of failures
        self._changed_at = -math.inf  # the last decrease
        self.cap(maximum)
        self.slow_start(now)

    def cap(self, maximum: int | None) -> None:
        self._ceiling = CEILING if maximum is None else maximum
        self._hard = (HARD_CEILING if self._adaptive else NO_LIMIT) if maximum is None else maximum
        self.limit = min(self.limit, self._hard) if self._adaptive else self._hard

    def slow_start(self, now: float) -> None:
        """Begin as if nothing were known (also when an outage has ended)."""
        if self._adaptive:
            self.limit = min(START, self._hard)
        self._phase: Literal["double", "hold", "try"] = "double"
        self._recover_to = 0.0
        self._before: tuple[int, float] | None = None  # (limit, answers a second) of the round to beat
        self._hold = HOLD
        self._tried_at = now
        self._new_round(now)

    def _new_round(self, now: float) -> None:
        self._round_at = now
        self._answers = 0
        self._seconds = 0.0
        self._full = False

    def ready_at(self, now: float) -> float:
        return now if self._spread is None else self._spread.ready_at(1, now)

    def take(self, in_flight: int, now: float) -> None:
        if self._spread is not None:
            self._spread.take(1, now)
        if in_flight >= self.limit:
            self._full = True

    def answered(self, sent_at: float, now: float) -> None:
        if not self._adaptive:
            return
        self._trouble *= 0.98
        latency = now - sent_at
        self._latency = latency if self._latency is None else 0.9 * self._latency + 0.1 * latency
        if sent_at >= self._round_at:
            self._answers += 1
            self._seconds += latency
            if self._answers >= max(4, self.limit) and now - self._round_at >= SHORTEST_ROUND:
                self._end_round(now)
        self._spread_sends(now)

    def _spread_sends(self, now: float) -> None:
        # Spread over a part of the round trip, the first refusal of a burst comes back before the rest of it is sent.
        assert self._latency is not None
        rate = SPREAD * self.limit / max(self._latency, 1e-4)
        if self._spread is None:
            self._spread = Pace(rate, now)
        self._spread.set_rate(rate, now)

    def _end_round(self, now: float) -> None:
        rate = self.limit * self._answers / max(self._seconds, 1e-9)
        if self._full:
            if self._phase == "double":
                self._double(rate, now)
            elif self._phase == "try":
                self._judge_trial(rate, now)
            elif self.limit < self._recover_to:
                self.limit += 1
            elif now - self._tried_at >= self._hold and self.limit < self._hard:
                self._before = (self.limit, rate)
                self.limit = min(self._hard, math.ceil(self.limit * 1.5))
                self._phase = "try"
        self._new_round(now)

    def _double(self, rate: float, now: float) -> None:
        if self._before is not None and rate < 1.3 * self._before[1]:
            if rate < 1.15 * self._before[1]:
                self.limit = self._before[0]
            self._settle(now)
            return
        self._before = (self.limit, rate)
        self.limit = min(self.limit * 2, self._ceiling)
        if self.limit >= self._ceiling:
            self._settle(now)

    def _judge_trial(self, rate: float, now: float) -> None:
        assert self._before is not None
        if rate >= 1.15 * self._before[1]:
            self._hold = HOLD
        else:
            self._give_up_trial()
        self._settle(now)

    def _give_up_trial(self) -> None:
        assert self._before is not None
        self.limit = self._before[0]
        self._hold = min(2 * self._hold, 16 * HOLD)

    def _settle(self, now: float) -> None:
        self._phase = "hold"
        self._tried_at = now

    def answered_429(self, now: float) -> None:
        """The first 429 of a burst that no pace of ours explains."""
        # So few at once as at the start are rarely the reason: the pace that is learned slows them down.
        if self._phase != "double" or self.limit > START:
            self._decrease(now)

    def failed(self, sent_at: float, now: float) -> None:
        """A failure. Single ones say nothing about load; when most sends fail, the first of each burst counts."""
        self._trouble = 0.98 * self._trouble + 0.02
        if self._trouble > 0.5 and sent_at >= self._changed_at:
            self._decrease(now)

    def _decrease(self, now: float) -> None:
        """Half of it, then one more each round, back to a little below."""
        if not self._adaptive:
            return
        if self._phase == "try":
            self._give_up_trial()
        aimed_at = self._recover_to if self.limit < self._recover_to else 0.0
        self._recover_to = max(aimed_at, 0.85 * self.limit)
        self.limit = max(1, self.limit // 2)
        self._changed_at = now
        self._settle(now)
        self._new_round(now)

    def probe_only(self) -> None:
        """One at a time, until `slow_start`: the server is not there."""
        if self._adaptive:
            self.limit = 1
