"""The one retry layer: what may work later is tried again, what never will is not.

==============================  =====================================================================================
raised below                    here
==============================  =====================================================================================
TransientError: server,         again, up to `ATTEMPTS` sends in all, after a random time that doubles with each, and
connection, timeout, bad_reply  never before its Retry-After
TransientError: rate_limit      no attempt: waits its Retry-After and asks again (a `LimitedClient` below has done so
                                already; one arrives here only without it)
RequestError, ProviderError     to the caller, at once
==============================  =====================================================================================

The last TransientError goes to the caller, who makes a row of it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from rlaif.clients.base import Client, Wrapper
from rlaif.errors import TransientError
from rlaif.types import ChatReply, ChatRequest

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds, on average
LONGEST_WAIT = 30.0

Sleep = Callable[[float], Awaitable[None]]


class RetryingClient(Wrapper):
    """A Client that asks ``client`` again after what may pass. ``first_wait=0``: without waiting in between (a model
    in this process is not overloaded). ``sleep``: for tests."""

    def __init__(
        self,
        client: Client,
        attempts: int = ATTEMPTS,
        *,
        first_wait: float = FIRST_WAIT,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(client)
        self._attempts, self._first_wait, self._sleep = attempts, first_wait, sleep

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises the last TransientError when ``attempts`` have failed; all else as the client raises it."""
        try:
            return await self._client.complete(request)
        except TransientError as error:  # only now the machinery of retrying is worth its while
            return await _Retries(self._client, request, error, self._attempts, self._first_wait).run(self._sleep)


class _Retries:
    """The further attempts of one request; the first has failed with ``error``."""

    def __init__(
        self, client: Client, request: ChatRequest, error: TransientError, attempts: int, first_wait: float
    ) -> None:
        self._client, self._request, self._first_wait = client, request, first_wait
        self._attempts = attempts
        self._error: TransientError | None = error
        self._failed = 0

    async def run(self, sleep: Sleep) -> ChatReply:
        retrying = AsyncRetrying(
            sleep=sleep, stop=self._stop, wait=self._wait, retry=retry_if_exception_type(TransientError), reraise=True
        )
        return await retrying(self._attempt)

    async def _attempt(self) -> ChatReply:
        try:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            return await self._client.complete(self._request)
        except TransientError as error:
            self._failed += error.kind != "rate_limit"
            raise

    def _stop(self, state: RetryCallState) -> bool:
        return self._failed >= self._attempts

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, TransientError)
        if error.kind == "rate_limit":
            return 1.0 if error.retry_after is None else error.retry_after
        backoff = min(LONGEST_WAIT, self._first_wait * 2.0 ** (self._failed - 1)) * random.uniform(0.5, 1.5)
        return max(backoff, error.retry_after or 0.0)
