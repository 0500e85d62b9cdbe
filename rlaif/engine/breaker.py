"""The circuit breaker: ends a run whose provider is gone, instead of failing its rows one by one."""

import math

from rlaif.errors import ProviderError, TransientError
from rlaif.types import ChatRequest


class Breaker:
    """After `OPEN_AFTER` failures in a row one request at a time is sent, 1, 2, 4 ... 30 seconds apart, so that an
    outage costs few rows their attempts. It ends the run

    * when nothing has succeeded for `PATIENCE` seconds and the failures come from `DIFFERENT` requests (a few that a
      server cannot answer must not stop the rest), or
    * when no connection was ever made, for `FIRST_PATIENCE` seconds: a wrong base_url.
    """

    OPEN_AFTER = 10
    PATIENCE = 120.0
    DIFFERENT = 5
    FIRST_FAILURES = 5
    FIRST_PATIENCE = 5.0
    LONGEST_HOLD = 30.0

    def __init__(self) -> None:
        self._refusal: ProviderError | None = None
        self._ever = False  # something has succeeded
        self._failures = 0  # in a row
        self._since = 0.0
        self._requests: list[ChatRequest] = []
        self._probes = 0
        self._held_until = -math.inf

    def check(self) -> None:
        """Raises the ProviderError that ended this, if one did."""
        if self._refusal is not None:
            raise self._refusal

    def refuse(self, error: ProviderError) -> ProviderError:
        """Nobody else need ask. Gives back ``error``."""
        self._refusal = self._refusal or error
        return error

    def succeeded(self) -> bool:
        """Whether this ends an outage."""
        outage = self._failures >= self.OPEN_AFTER
        self._ever, self._failures, self._probes = True, 0, 0
        self._requests.clear()
        return outage

    def failed(self, request: ChatRequest, error: TransientError, now: float) -> float:
        """Seconds for which nothing should be sent. Raises ProviderError when it has lasted too long."""
        if self._failures == 0:
            self._since = now
        self._failures += 1
        if len(self._requests) < self.DIFFERENT and all(request is not known for known in self._requests):
            self._requests.append(request)
        lasted = now - self._since
        unreachable = not self._ever and error.kind == "connection"
        if unreachable and self._failures >= self.FIRST_FAILURES and lasted >= self.FIRST_PATIENCE:
            raise self.refuse(ProviderError(f"{error} ({self._failures} attempts in {lasted:.0f} s, none succeeded.)"))
        if lasted >= self.PATIENCE and self._failures >= self.OPEN_AFTER and len(self._requests) >= self.DIFFERENT:
            raise self.refuse(
                ProviderError(
                    f"{error} (No request has succeeded for {lasted:.0f} s; {self._failures} attempts failed.) What was"
                    " answered is kept: run again when the server is back."
                )
            )
        if self._failures < self.OPEN_AFTER or now < self._held_until:
            return 0.0
        hold = min(self.LONGEST_HOLD, 2.0**self._probes)
        self._probes += 1
        self._held_until = now + hold
        return hold
