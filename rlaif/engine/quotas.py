"""Counting what may be sent: the buckets that the limiter's parts are made of."""

from collections import deque

MARGIN = 0.97  # of a limit: clocks and networks are not exact, and a 429 costs more than 3 %
_CATCH_UP = 0.002  # seconds: a timer that fires late by less than this may send early the next time


class Quota:
    """A token bucket that may go into debt: ``rate`` units a second, at most ``capacity`` of them saved up."""

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate, self.capacity = rate, capacity
        self._level, self._at = capacity, now

    def level(self, now: float) -> float:
        return min(self.capacity, self._level + (now - self._at) * self.rate)

    def set_level(self, level: float, now: float) -> None:
        self._level, self._at = min(level, self.capacity), now

    def change(self, rate: float, capacity: float, now: float) -> None:
        self.set_level(self.level(now), now)
        self.rate, self.capacity = rate, capacity

    def ready_at(self, cost: float, now: float) -> float:
        """When ``cost`` may be taken. A cost above the capacity waits for a full bucket and leaves a debt."""
        missing = min(cost, self.capacity) - self.level(now)
        return now if missing <= 1e-9 else now + missing / self.rate

    def take(self, cost: float, now: float) -> None:
        self.set_level(self.level(now) - cost, now)


class Pace(Quota):
    """One after the other, ``rate`` a second. A send that is late by up to ``slack`` of the time of one, on a busy
    machine, is made up for by the next."""

    __slots__ = ("_slack",)

    def __init__(self, rate: float, now: float, slack: float = 0.0) -> None:
        self._slack = slack
        super().__init__(rate, self._capacity(rate), now)
        self.set_level(1, now)

    def _capacity(self, rate: float) -> float:
        return 1 + max(self._slack, rate * _CATCH_UP)

    def set_rate(self, rate: float, now: float) -> None:
        self.change(rate, self._capacity(rate), now)

    def be_strict(self, now: float) -> None:
        """No slack from now on: the server minds."""
        self._slack = 0.0
        self.set_rate(self.rate, now)


class Window:
    """At most ``size`` sends in any ``PERIOD`` seconds: how a server counts that answers 429 until its minute is over.

    ``sent``: when each of the last period was sent. A full period without a 429 lets ``probe`` more through, which
    doubles each time, because limits are raised, too.
    """

    PERIOD = 60.0
    GUARD = 0.1  # seconds between our clock and the server's

    def __init__(self, sent: deque[float], size: int, now: float) -> None:
        self.sent, self.size, self.probe = sent, size, 1
        self._made_at = self._grown_at = now

    @property
    def full(self) -> bool:
        return len(self.sent) >= self.size

    def ready_at(self, now: float) -> float:
        while self.sent and self.sent[0] + self.PERIOD + self.GUARD <= now:  # as below: floats round
            self.sent.popleft()
        if self.full and now >= self._grown_at + self.PERIOD:
            self.size += self.probe
            self.probe *= 2
            self._grown_at = now
        return self.sent[0] + self.PERIOD + self.GUARD if self.full else now

    def take(self, now: float) -> None:
        self.sent.append(now)

    def answered(self, sent_at: float) -> None:
        """A request that was on its way when the window was found full was within it."""
        if sent_at <= self._made_at:
            self.sent.append(sent_at)
            self.size += 1

    def answered_429(self, sent_at: float) -> None:
        if sent_at in self.sent:
            self.sent.remove(sent_at)  # it was not let in, so it does not count

    def shrink(self) -> None:
        """The last probe was refused."""
        self.size = max(1, self.size - max(1, self.probe // 2))
        self.probe = 1
