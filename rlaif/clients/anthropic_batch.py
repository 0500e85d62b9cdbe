"""``anthropic:NAME`` with ``transport: batch``: Anthropic's Message Batches API.

A batch carries nothing that its maker chose. One whose making was never confirmed is therefore looked for among the
batches of its size that are newer than the newest one before it; whether one of them is it, its results tell (their
custom_id are request keys).
"""

import json
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from io import BytesIO
from typing import Any, Literal

import anthropic
import httpx2

from rlaif.clients._http import failure
from rlaif.clients._refusals import shorten
from rlaif.clients.anthropic import AnthropicClient, parse_reply, version
from rlaif.clients.batch import PAGE, BatchCalls, BatchState, ItemResult, Mark, gone, item
from rlaif.config.models import MAX_BATCH_REQUESTS
from rlaif.errors import RequestError, TransientError
from rlaif.types import ChatReply, ChatRequest

_STATUS: dict[str, Literal["in_progress", "cancelling", "ended", "failed"]] = {
    "canceling": "cancelling",
    "ended": "ended",
}
_UNPROCESSED = ("expired", "canceled")
# The status that the same error has online.
_HTTP = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicBatch(BatchCalls, AnthropicClient):
    """A BatchTransport of Anthropic's Message Batches API; its identity is that of the online client."""

    max_requests = MAX_BATCH_REQUESTS["anthropic"]
    max_bytes = 256_000_000
    traceable = False

    def line(self, key: str, request: ChatRequest) -> bytes:
        return item(self._at, custom_id=key, params=self._body(request))

    def parse(self, reply: dict[str, Any]) -> ChatReply:
        return parse_reply(reply, self._at)

    def learn(self, error: RequestError) -> None:
        self._learn(error)

    async def newest(self) -> Mark:
        page = await self._ask(self._batches.list(limit=1), seconds=self._timeout)
        newest = self._read(_states, page)[:1]
        return Mark(id=newest[0].id, created=newest[0].created) if newest else Mark()

    async def prepare(self, marker: str, lines: Iterable[bytes]) -> tuple[bytes, dict[str, str]]:
        body, headers = BytesIO(b'{"requests":['), dict[str, str]()
        body.seek(0, 2)
        for n, line in enumerate(lines):
            body.write(b"," + line if n else line)
            # The API's version is one for the whole batch.
            headers = headers or version(json.loads(line)["params"])
        body.write(b"]}")
        return body.getvalue(), headers

    async def submit(self, marker: str, prepared: tuple[bytes, dict[str, str]]) -> BatchState:
        body, headers = prepared
        # The SDK's create() would want every item as Python objects again, to encode them a second time.
        send = self._client.post(
            "/v1/messages/batches",
            cast_to=httpx2.Response,
            content=body,
            options={"headers": {"content-type": "application/json", **headers}},
        )
        return self._read(_state, await self._ask(send))

    async def find(self, marker: str, since: Mark, requests: int) -> list[BatchState]:
        after: dict[str, str] = {}
        found: list[BatchState] = []
        while True:
            page = await self._ask(self._batches.list(limit=PAGE, **after), seconds=self._timeout)
            listed = self._read(_states, page)
            newer = [b for b in listed if b.created >= since.created and b.id != since.id]
            found += [b for b in newer if b.requests == requests]
            if not page.get("has_more") or len(newer) < len(listed):  # the newest come first
                return found
            after = {"after_id": listed[-1].id}

    async def state(self, batch: str) -> BatchState:
        return self._read(_state, await self._ask(self._batches.retrieve(batch), batch=batch, seconds=self._timeout))

    async def cancel(self, batch: str) -> BatchState:
        return self._read(_state, await self._ask(self._batches.cancel(batch), batch=batch, seconds=self._timeout))

    async def results(self, batch: str, *, skip_broken: bool = False) -> AsyncIterator[ItemResult]:
        opened = self._client.messages.batches.with_streaming_response.results(batch)
        try:
            async for entry in self._lines(opened, batch, skip_broken):
                yield self._result(entry)
        except anthropic.AnthropicError:  # the SDK asked where the results are, and was told of none
            raise gone(self._at, batch, "archived") from None

    @property
    def _batches(self) -> Any:
        return self._client.messages.batches.with_raw_response

    def _result(self, entry: dict[str, Any]) -> ItemResult:
        key, result = entry["custom_id"], entry.get("result")
        kind = result.get("type") if isinstance(result, dict) else None
        if isinstance(result, dict) and kind == "succeeded" and isinstance(result.get("message"), dict):
            return ItemResult(key, reply=result["message"])
        if kind in _UNPROCESSED:
            return ItemResult(key)
        if isinstance(result, dict) and kind == "errored" and isinstance(result.get("error"), dict):
            said = result["error"]
            inner = said.get("error")
            status = _HTTP.get(str(inner.get("type") if isinstance(inner, dict) else said.get("type")), 500)
            return ItemResult(key, error=failure(status, {}, json.dumps(said).encode(), self._at))
        said = shorten(json.dumps(result))
        return ItemResult(key, error=TransientError(f"{self._at}: not answered in its batch: {said}", kind="server"))


def _states(page: dict[str, Any]) -> list[BatchState]:
    return [_state(batch) for batch in page["data"]]


def _state(batch: dict[str, Any]) -> BatchState:
    said, counts = str(batch["processing_status"]), batch.get("request_counts") or {}
    return BatchState(
        id=batch["id"],
        status=_STATUS.get(said, "in_progress"),
        said=said,
        created=datetime.fromisoformat(batch["created_at"]).timestamp(),
        requests=sum(int(n) for n in counts.values()),
        succeeded=int(counts.get("succeeded") or 0),
        errored=int(counts.get("errored") or 0),
        expired=int(counts.get("expired") or 0),
        cancelled_requests=int(counts.get("canceled") or 0),
        cancelled=bool(batch.get("cancel_initiated_at")),
    )
