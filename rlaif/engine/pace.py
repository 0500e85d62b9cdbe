"""What a server allows that tells it only by 429s.

An epoch lies between the first 429s of two bursts. What its 429 teaches:

* Retry-After ends a minute after the epoch began: the server counts by the minute, and as many as went through are
  allowed in each (`Window`).
* The epoch brought 100 answers or more and 429s are rare: nothing need be learned; after the pause sends begin slowly
  and double every quarter of a second.
* Else the server drips. Sends are paced: at the rate that a Retry-After below a second gives exactly (that much too
  early was the last send), or at the epoch's answers a second, pause included (what a bucket let through between empty
  and empty is its rate). Then a little faster, as long as that works: a 429 returns to the rate before the last step.
* Pacing changes nothing (six epochs in a row stay short, or 429s come far below a rate that went through before): these
  429s are not about the pace. It is given up, until most of what is sent is refused.

Measured with simulated servers (tests/engine/test_limits.py): token buckets of 10 to 600, fixed and sliding windows of
600 a minute, Retry-After exact, rounded up or absent. A bucket of one with whole seconds in Retry-After stays slow:
each of its 429s stops everything for ten requests' time.
"""

import math
import random
from collections import deque
from typing import NamedTuple

from rlaif.engine.quotas import MARGIN, Pace, Window

STEP_SECONDS = 30.0  # the longest time between two steps up
SLOWEST = 1 / 60  # sends a second
VAIN_EPOCHS = 6
CHEAP_EPOCH = 100  # answers that outweigh the 429s at their end
_KEPT = 100_000  # send times of the present epoch that are remembered, at most


class Lesson(NamedTuple):
    """After a 429: seconds to pause, whether it begins a burst, whether a pace of ours already allows for it."""

    wait: float
    first: bool
    known: bool


class _Ramp:
    """After a pause of unknown use: slowly at first, twice as fast every quarter of a second."""

    def __init__(self, start: float, now: float) -> None:
        self._start, self._since = start, now
        self.pace = Pace(start, now)

    def take(self, now: float) -> bool:
        """Whether the ramp is over: so fast that it holds nobody back."""
        self.pace.take(1, now)
        rate = self._start * 2 ** min(20.0, max(0.0, now - self._since) / 0.25)
        self.pace.set_rate(rate, now)
        return rate > 2000


class LearnedPace:
    """See the head of this module. All times are of one clock, given by the caller."""

    def __init__(self, now: float) -> None:
        self._window: Window | None = None
        self._pace: Pace | None = None
        self._ramp: _Ramp | None = None
        # the epoch
        self._burst_at = now  # when the last burst began, and with it this epoch
        self._began: float | None = None  # its first send
        self._sent = self._answers = 0
        self._own_answers = 0  # to what was sent in it
        self._sends: deque[float] = deque(maxlen=_KEPT)
        self._bursts = 0  # what a full bucket let through before the first says little about its rate
        self._silent = 0  # bursts without Retry-After and without an answer since
        # the search for a better pace
        self._step, self._due, self._due_at = 0.01, 0, math.inf  # the next step up; after so many answers, or then
        self._before_step: float | None = None  # the rate before the last step of this epoch
        self._sure = False  # the rate is known to a few per cent
        self._held = False  # the next send has to wait for it
        self._holds = 0.0  # since the last step: sends that had to, less half of all
        self._vain = 0  # epochs in a row that the pace made no longer
        self._measured: deque[float] = deque(maxlen=5)  # answers a second of the last epochs
        self._contradictions = 0
        self._given_up: tuple[int, int] | None = None  # (sends, 429s) since then
        self._proven = 0.0  # a rate that 100 answers in a row have come at

    def ready_at(self, now: float) -> float:
        at = now
        if self._pace is not None:
            at = self._pace.ready_at(1, now)
            self._held |= at > now
        if self._window is not None:
            at = max(at, self._window.ready_at(now))
        if self._ramp is not None:
            at = max(at, self._ramp.pace.ready_at(1, now))
        return at

    def take(self, now: float) -> None:
        self._sent += 1
        self._holds += self._held - 0.5
        self._held = False
        if self._began is None:
            self._began = now
        if self._given_up is not None:
            sends, refused = self._given_up
            self._given_up = (sends + 1, refused) if sends < 200 else (100, refused // 2)  # of late, not of always
        if self._pace is not None:
            self._pace.take(1, now)
        if self._window is not None:
            self._window.take(now)
        if self._ramp is not None and self._ramp.take(now):
            self._ramp = None

    def answered(self, sent_at: float, now: float) -> None:
        self._silent = 0
        self._answers += 1
        self._own_answers += sent_at > self._burst_at
        if self._window is not None:
            self._window.answered(sent_at)
        elif self._began is not None and now - self._began <= Window.PERIOD + 2:
            self._sends.append(sent_at)
        elif self._sends:
            self._sends.clear()  # it is no minute of the server's any more: see `_counts_minutes`
        if self._pace is not None:
            self._due -= 1
            if self._holds > 0 and (self._due <= 0 or now >= self._due_at):
                self._step_up(self._pace, now)

    def answered_429(self, sent_at: float, retry_after: float | None, share: float, now: float) -> Lesson:
        """Learn from a 429. ``share``: of all sends so far, those answered 429."""
        if self._given_up is not None:
            sends, refused = self._given_up
            # Most of what is sent is refused: it is about the pace after all.
            self._given_up = (sends, refused + 1) if sends < 50 or refused + 1 < sends / 2 else None
        full = self._window is not None and self._window.full
        if self._window is not None:
            self._window.answered_429(sent_at)
        if sent_at <= self._burst_at and self._bursts:
            return Lesson(retry_after or 0.0, first=False, known=True)
        if full and retry_after is not None and retry_after < 1:
            return Lesson(retry_after, first=False, known=True)  # the window is right, only its edge a hair too early
        known = self._given_up is not None
        known |= retry_after is not None and (self._pace is not None or self._window is not None)
        wait = retry_after
        if wait is None:
            self._silent += 1
            wait = min(60.0, 2.0 ** (self._silent - 1)) * random.uniform(0.75, 1.25)
        self._learn(retry_after, now + wait, share, full, now)
        self._bursts += 1
        self._burst_at, self._began = now, None
        self._sent = self._answers = self._own_answers = 0
        self._sends = deque(maxlen=_KEPT)
        return Lesson(wait, first=True, known=known)

    def _learn(self, retry_after: float | None, until: float, share: float, full: bool, now: float) -> None:
        if self._given_up is not None:
            return
        if self._window is not None and full and now - self._burst_at > Window.PERIOD / 4:
            self._window.shrink()
            return
        self._window = None
        if self._counts_minutes(retry_after, until):
            self._window = Window(self._sends, self._answers, now)
            self._pace = self._ramp = None
        elif self._pace is None and self._answers >= CHEAP_EPOCH and share < 0.01:
            self._ramp = _Ramp(_first_rate(retry_after), until)
        else:
            self._learn_pace(retry_after, until, now)

    def _counts_minutes(self, retry_after: float | None, until: float) -> bool:
        if retry_after is None or retry_after <= 5 or self._began is None or self._answers < 10:
            return False
        return abs(until - self._began - Window.PERIOD) <= 1.5  # Retry-After may be rounded to whole seconds

    def _learn_pace(self, retry_after: float | None, until: float, now: float) -> None:
        old = self._pace.rate if self._pace is not None else None
        tried = self._ramp.pace.rate if self._ramp is not None else old
        measured = MARGIN * self._answers / max(now - self._burst_at, 1e-3)
        if self._answers >= CHEAP_EPOCH:
            self._proven = 0.98 * (self._before_step or old or 0.0)
        else:
            self._proven *= 0.9
        if retry_after is not None and old is not None and retry_after < 0.15 / old and self._answers >= 15:
            # A hair too early, as clocks and networks go: with a step up for each 100 answers, one in 100 is.
            self._set_rate(0.99 * old, now)
            self._sure, self._before_step = True, None
            self._step, self._due, self._due_at = 0.01, 100, now + STEP_SECONDS
            return
        surely = MARGIN * self._own_answers / max(now - self._burst_at, 1e-3)
        if self._in_vain(old, surely):
            self._give_up()
            return
        if retry_after is not None and tried is not None and retry_after < (1 if old is None else 0.5 / old):
            rate, self._sure = 0.98 / (1 / tried + retry_after), True
            if self._own_answers >= 10 and self._bursts:
                rate = max(rate, surely)
        elif old is not None:
            rate = self._corrected(old, measured)
        elif self._answers and self._bursts:
            rate, self._sure = measured, False
        else:
            self._ramp = _Ramp(_first_rate(retry_after), until)
            return
        self._ramp = self._before_step = None
        self._set_rate(rate, now)
        self._due_at = now + STEP_SECONDS
        self._step, self._due = (0.01, 200) if self._sure else (max(0.01, min(0.05, self._step / 4)), 20)

    def _in_vain(self, old: float | None, surely: float) -> bool:
        """Whether pacing has been shown to be of no use."""
        if old is not None and self._answers:
            self._vain = self._vain + 1 if max(self._answers, self._sent) < 30 else 0
            # From empty to empty a bucket gives its rate, whatever our pace: far below it no 429 can come.
            if self._measured and old < 0.7 * max(self._measured):
                self._contradictions += 1
        if self._answers >= CHEAP_EPOCH:
            self._contradictions = 0
        if self._own_answers >= 20 and self._bursts:
            self._measured.append(surely)
        return self._vain >= VAIN_EPOCHS or self._contradictions >= 2

    def _give_up(self) -> None:
        """However slowly we send, 429s come as before: they are not about the pace."""
        self._given_up = (0, 0)
        self._pace = self._ramp = self._window = self._before_step = None
        self._vain = self._contradictions = 0
        self._measured.clear()

    def _corrected(self, old: float, measured: float) -> float:
        """The pace after ``old`` was too fast."""
        if not self._answers:
            return old  # still refusing everything: that says nothing about the pace
        if self._before_step is not None:
            self._sure = old < 1.05 * self._before_step
            return max(measured, 0.99 * self._before_step)
        if self._sent < 5:
            return 0.7 * old
        self._sure = self._answers >= 15
        if self._sure:
            return max(measured, self._proven)
        far_off = measured < old / 3 and self._answers >= 5
        return math.sqrt(measured * old) if far_off else 0.95 * old

    def _step_up(self, pace: Pace, now: float) -> None:
        self._holds = 0.0
        self._before_step = pace.rate
        self._set_rate(pace.rate * (1 + self._step), now)
        self._step = min(2 * self._step, 0.25)
        self._due = 100 if self._sure else 20 if self._step <= 0.1 else 5
        self._due_at = now + STEP_SECONDS

    def _set_rate(self, rate: float, now: float) -> None:
        rate = max(rate, SLOWEST)
        if self._pace is None:
            self._pace = Pace(rate, now)
        self._pace.set_rate(rate, now)


def _first_rate(retry_after: float | None) -> float:
    return max(2.0, min(1 / retry_after, 1000.0)) if retry_after else 2.0
