"""``openai:NAME`` with ``transport: batch``: OpenAI's Batch API, and every server that speaks it (Files and Batches).

The items are uploaded as a file, then a batch is made of it. The batch carries a marker in its metadata, so that one
whose making was never confirmed is found again in the account's listing.

Not covered: servers that drop the metadata (there, a crash within the second of submitting may submit twice).
"""

import json
import tempfile
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

from rlaif.clients._http import failure
from rlaif.clients._refusals import shorten
from rlaif.clients.batch import PAGE, BatchCalls, BatchState, ItemResult, Mark, item
from rlaif.clients.openai import OpenAIClient, parse_reply
from rlaif.config.models import MAX_BATCH_REQUESTS
from rlaif.errors import RequestError, RlaifError, TransientError
from rlaif.types import ChatReply, ChatRequest

_ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_MARKER = "rlaif_batch"  # the metadata's key
_STATUS: dict[str, Literal["in_progress", "cancelling", "ended", "failed"]] = {
    "cancelling": "cancelling",
    "completed": "ended",
    "expired": "ended",
    "cancelled": "ended",
    "failed": "failed",
}
_UNPROCESSED = ("batch_expired", "batch_cancelled")


class OpenAIBatch(BatchCalls, OpenAIClient):
    """A BatchTransport of OpenAI's Batch API; its identity is that of the online client."""

    max_requests = MAX_BATCH_REQUESTS["openai"]
    max_bytes = 200_000_000
    traceable = True

    def line(self, key: str, request: ChatRequest) -> bytes:
        return item(self._at, custom_id=key, method="POST", url=_ENDPOINT, body=self._body(request))

    def parse(self, reply: dict[str, Any]) -> ChatReply:
        return parse_reply(reply, self._at)

    def learn(self, error: RequestError) -> None:
        self._learn(error)

    async def newest(self) -> Mark:
        page = await self._ask(self._batches.list(limit=1), seconds=self._timeout)
        return self._read(_newest, page)

    async def prepare(self, marker: str, lines: Iterable[bytes]) -> str:
        with tempfile.TemporaryFile() as file:
            file.writelines(line + b"\n" for line in lines)
            file.seek(0)
            files = self._client.files.with_raw_response
            upload = files.create(file=(f"rlaif-{marker}.jsonl", file, "application/jsonl"), purpose="batch")
            return self._read(lambda uploaded: str(uploaded["id"]), await self._ask(upload))

    async def submit(self, marker: str, prepared: str) -> BatchState:
        make = self._batches.create(
            completion_window="24h", endpoint=_ENDPOINT, input_file_id=prepared, metadata={_MARKER: marker}
        )
        try:
            return self._read(_state, await self._ask(make, seconds=self._timeout))
        except RlaifError as error:
            if prepared in str(error) and "find file" in str(error):  # not yet known everywhere: nothing was made
                raise TransientError(str(error), kind="rate_limit", retry_after=5.0) from None
            raise

    async def find(self, marker: str, since: Mark, requests: int) -> list[BatchState]:
        after: dict[str, str] = {}
        while True:
            page = await self._ask(self._batches.list(limit=PAGE, **after), seconds=self._timeout)
            listed = self._read(lambda page: [(_state(b), b.get("metadata") or {}) for b in page["data"]], page)
            for state, metadata in listed:
                if metadata.get(_MARKER) == marker:
                    return [state]
            # The listing's order is not promised: a whole page must be older.
            if not page.get("has_more") or all(state.created < since.created for state, _ in listed):
                return []
            after = {"after": listed[-1][0].id}

    async def state(self, batch: str) -> BatchState:
        return self._read(_state, await self._ask(self._batches.retrieve(batch), batch=batch, seconds=self._timeout))

    async def cancel(self, batch: str) -> BatchState:
        return self._read(_state, await self._ask(self._batches.cancel(batch), batch=batch, seconds=self._timeout))

    async def results(self, batch: str, *, skip_broken: bool = False) -> AsyncIterator[ItemResult]:
        made = await self._ask(self._batches.retrieve(batch), batch=batch, seconds=self._timeout)
        for file in (made.get("output_file_id"), made.get("error_file_id")):
            if file:
                opened = self._client.files.with_streaming_response.content(file)
                async for entry in self._lines(opened, batch, skip_broken):
                    yield self._result(entry)

    @property
    def _batches(self) -> Any:
        return self._client.batches.with_raw_response

    def _result(self, entry: dict[str, Any]) -> ItemResult:
        key, response, error = entry["custom_id"], entry.get("response"), entry.get("error")
        if isinstance(response, dict):
            status, body = response.get("status_code"), response.get("body")
            if status == 200 and isinstance(body, dict):
                return ItemResult(key, reply=body)
            code = status if isinstance(status, int) else 500
            return ItemResult(key, error=failure(code, {}, json.dumps(body).encode(), self._at))
        if isinstance(error, dict) and error.get("code") in _UNPROCESSED:
            return ItemResult(key)
        said = shorten(json.dumps(error))
        return ItemResult(key, error=TransientError(f"{self._at}: not answered in its batch: {said}", kind="server"))


def _newest(page: dict[str, Any]) -> Mark:
    return next((Mark(id=batch["id"], created=batch["created_at"]) for batch in page["data"]), Mark())


def _state(batch: dict[str, Any]) -> BatchState:
    said, counts = str(batch.get("status")), batch.get("request_counts") or {}
    total, done, failed = (int(counts.get(name) or 0) for name in ("total", "completed", "failed"))
    status = _STATUS.get(said, "in_progress")
    left = total - done - failed if status == "ended" else 0
    problems = [p for p in (batch.get("errors") or {}).get("data") or () if isinstance(p, dict)]
    return BatchState(
        id=batch["id"],
        status=status,
        said=said,
        created=batch["created_at"],
        requests=total,
        succeeded=done,
        errored=failed,
        expired=left if said == "expired" else 0,
        cancelled_requests=left if said == "cancelled" else 0,
        cancelled=said in ("cancelling", "cancelled"),
        problem="; ".join(map(_problem, problems[:3])),
        queue_full=bool(problems) and all(p.get("code") == "token_limit_exceeded" for p in problems),
    )


def _problem(problem: dict[str, Any]) -> str:
    line = problem.get("line")
    said = shorten(str(problem.get("message") or problem.get("code"))).rstrip(".")
    return f"line {line}: {said}" if line is not None else said
