"""The batch APIs as a transport: what OpenAI's and Anthropic's have in common.

A batch is a set of requests handed over at once and answered, at half the price, within a day. Here are only the calls;
what is durable, collected, repeated or sent online is decided in `rlaif.engine.batch`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import httpx2

from rlaif.clients._http import Endpoint, HttpTransport, bad_reply, no_connection, read_object
from rlaif.clients.base import Client
from rlaif.errors import ProviderError, RequestError, RlaifError, TransientError
from rlaif.types import ChatReply, ChatRequest, Row

T = TypeVar("T")
PAGE = 100  # batches in one page of a listing


class Mark(Row):
    """The newest batch of an account at some moment, by the provider's own clock (seconds since 1970)."""

    id: str = ""
    created: float = 0.0


class BatchState(Row):
    """A batch, as the provider describes it.

    status: "ended" has results (of some requests, at least); "failed" was refused as a whole, and nothing of it ran.
    said: the provider's own word. cancelled: somebody asked for that. requests: how many it has (0: not counted yet).
    problem: why it failed; queue_full: it failed only because too much is waiting already.
    """

    id: str
    status: Literal["in_progress", "cancelling", "ended", "failed"]
    said: str
    created: float
    requests: int = 0
    succeeded: int = 0
    errored: int = 0
    expired: int = 0
    cancelled_requests: int = 0
    cancelled: bool = False
    problem: str = ""
    queue_full: bool = False


class ItemResult(NamedTuple):
    """How one request of a batch ended: with the JSON of a reply, with the error that the same request online would
    have raised, or without having been processed (it expired or was cancelled, and cost nothing)."""

    key: str
    reply: dict[str, Any] | None = None
    error: RlaifError | None = None


class BatchTransport(Client, Protocol):
    """A Client (``complete`` asks online) that can also hand over many requests at once.

    ``max_requests``, ``max_bytes``: the API's own limits of one batch. ``traceable``: a batch carries the marker it was
    submitted with, so `find` names no other. All calls raise as ``complete`` does.
    """

    max_requests: int
    max_bytes: int
    traceable: bool

    def line(self, key: str, request: ChatRequest) -> bytes:
        """The request as an item of a batch. Raises RequestError for one that this model can never answer."""

    async def newest(self) -> Mark:
        """The account's newest batch."""

    async def prepare(self, marker: str, lines: Iterable[bytes]) -> Any:
        """What `submit` takes, of these items. Costs nothing and may be repeated."""

    async def submit(self, marker: str, prepared: Any) -> BatchState:
        """Make the batch. A TransientError does not say that none was made, except "rate_limit"."""

    async def find(self, marker: str, since: Mark, requests: int) -> list[BatchState]:
        """The batches, newest first, that a `submit` with this marker and so many items may have made after ``since``:
        of a traceable API exactly that one, else all of that size."""

    async def state(self, batch: str) -> BatchState: ...

    async def cancel(self, batch: str) -> BatchState: ...

    def results(self, batch: str, *, skip_broken: bool = False) -> AsyncIterator[ItemResult]:
        """The results of an ended batch, in any order. A line that is no JSON raises TransientError or is skipped."""

    def parse(self, reply: dict[str, Any]) -> ChatReply:
        """As `complete` reads the same JSON. Raises TransientError (bad_reply)."""

    def learn(self, error: RequestError) -> None:
        """Note which default this server refuses to hear: the request's next `line` may differ."""


def item(at: Endpoint, **parts: Any) -> bytes:
    """One item of a batch as JSON without a line break, exactly as the SDK would have sent it alone."""
    try:
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # a lone surrogate in a message, a NaN in options
        raise RequestError(f"{at}: the request is no valid JSON ({error}).", kind="invalid") from None


class BatchCalls(HttpTransport):
    """The calls of a batch API, with the failures of `HttpTransport`."""

    async def _ask(self, send: Awaitable[Any], *, batch: str = "", seconds: float | None = None) -> dict[str, Any]:
        """The JSON object that the SDK's raw response holds. ``batch``: the one asked about; ``seconds``: at most."""
        try:
            async with asyncio.timeout(seconds):
                response = await send
        except (self._sdk.APIConnectionError, self._sdk.APIStatusError, TimeoutError, TypeError, ValueError) as error:
            raise self._batch_failure(error, batch) from None
        return read_object(getattr(response, "http_response", response).content, self._at)

    def _batch_failure(self, error: Exception, batch: str) -> RlaifError:
        if batch and isinstance(error, self._sdk.APIStatusError) and error.response.status_code == 404:
            return gone(self._at, batch, "404")
        return self._failure(error)

    def _read(self, reader: Callable[[dict[str, Any]], T], value: dict[str, Any]) -> T:
        try:
            return reader(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # another shape than the API's
            raise bad_reply(self._at, f"a batch that cannot be read ({type(error).__name__})") from None

    async def _lines(
        self, opened: AbstractAsyncContextManager[Any], batch: str, skip_broken: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a JSON Lines file, read as it arrives, each with a custom_id.

        Split at "\n" only: U+2028 is a part of some text.
        """
        rest: list[bytes] = []
        try:
            async with opened as response:
                async for chunk in response.iter_bytes():
                    *lines, last = chunk.split(b"\n")
                    for line in lines:
                        whole, rest = b"".join((*rest, line)), []
                        if (entry := self._entry(whole, skip_broken)) is not None:
                            yield entry
                    rest.append(last)
        except (self._sdk.APIConnectionError, self._sdk.APIStatusError) as error:
            raise self._batch_failure(error, batch) from None
        except httpx2.HTTPError as error:  # it broke off on the way; the SDK leaves these as they are
            raise no_connection(self._at, error) from None
        except (TypeError, ValueError, AttributeError) as error:  # the SDK itself asks first where the results are
            raise bad_reply(self._at, f"a batch that cannot be read ({type(error).__name__})") from None
        if (entry := self._entry(b"".join(rest), skip_broken)) is not None:
            yield entry

    def _entry(self, line: bytes, skip_broken: bool) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            entry = read_object(line, self._at)
            if not isinstance(entry.get("custom_id"), str):
                raise bad_reply(self._at, "a result without custom_id")
        except TransientError:
            if skip_broken:
                return None
            raise
        return entry


class BatchGone(ProviderError):
    """The provider does not know this batch, or no longer has its results."""


def gone(at: Endpoint, batch: str, why: str) -> BatchGone:
    return BatchGone(
        f"{at}: the batch {batch} or its results are not there ({why}); it was made with another account's key,"
        " or is deleted or too old."
    )
