"""The fault server with the batch APIs of both protocols: OpenAI's Files and Batches, Anthropic's Message Batches.

The same script answers single requests and the items of batches::

    with BatchServer(answer, plan=lambda nth: Plan(seconds=0.2, expired=lambda i: i % 3 == 0)) as server:
        client = OpenAIBatch(ModelConfig(model="openai:fake", base_url=server.openai_url, transport="batch"))

A plan, one for each batch in the order of their making, says what goes wrong with it. As a process of its own::

    python -m tests.servers.batch_server --port 0 --seconds 0.5 --expired 0.1 --answer MODULE:FUNCTION

What was paid for is visible: ``items`` counts the answers given by custom_id (batches only), ``paid`` by content
(single requests too). Results come in an order of their own; a cancelled batch keeps what was done by then.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs

from rlaif.hashing import digest, uniform
from tests.servers.fault_server import Answer, Api, Asked, FaultServer, Script, echo, error_json, reply_json, send

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Plan:
    """What happens to one batch.

    ``seconds`` until it ends; ``cancelling``: seconds that a cancel takes. ``expired``: the positions that are never
    processed. ``failure``: (code, message, line) for which validation refuses the whole (OpenAI). ``lost``: the batch
    is made, but the connection breaks before the reply. ``refused``: no batch is made, this is answered instead.
    ``made_after``, ``told_after``: seconds until the batch exists, and from then until the reply says so (whether the
    client is still there or not). ``cut``: that many downloads of its results break in the middle. ``extra``: results
    under keys nobody asked for.
    """

    seconds: float = 0.0
    cancelling: float = 0.0
    expired: Callable[[int], bool] = lambda position: False
    failure: tuple[str, str, int | None] | None = None
    lost: bool = False
    refused: Answer | None = None
    made_after: float = 0.0
    told_after: float = 0.0
    cut: int = 0
    extra: int = 0


@dataclass
class Batch:
    id: str
    api: Api
    plan: Plan
    items: list[tuple[str, dict[str, Any]]]  # custom_id, body
    headers: Mapping[str, str]
    created: float
    metadata: dict[str, str] = field(default_factory=dict)
    input_file: str = ""
    cancelled_at: float | None = None
    processed: int = 0  # how far it has come
    over: bool = False
    cuts: int = 0
    results: list[tuple[str, Answer, dict[str, Any] | None]] = field(default_factory=list)  # custom_id, answer, reply
    problem: tuple[str, str, int | None] | None = None

    @property
    def ends(self) -> float:
        end = self.created + self.plan.seconds
        return end if self.cancelled_at is None else min(end, self.cancelled_at + self.plan.cancelling)


class BatchServer(FaultServer):
    """The server, in a thread of its own while the ``with`` block lasts.

    ``attempts``: how often a batch was to be made. ``submitted``: how often each custom_id was part of one; ``items``:
    answers given to each; ``paid``: answers given (status 200) by content, batches and single requests together.
    ``trouble``: answered instead to the batch endpoint's call of that number, if not None.
    """

    def __init__(
        self, script: Script = echo, *, plan: Callable[[int], Plan] = lambda nth: Plan(), **other: Any
    ) -> None:
        super().__init__(self._paying(script), **other)
        self._of_items = script
        self.plan = plan
        self.trouble: Callable[[int], Answer | None] = lambda call: None
        self.calls = 0
        self.batches: list[Batch] = []
        self.files: dict[str, tuple[str, bytes]] = {}
        self.items: Counter[str] = Counter()
        self.submitted: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.polls = 0
        self.attempts = 0

    def _paying(self, script: Script) -> Script:
        def paying(asked: Asked) -> Answer:
            answer = script(asked)
            self.paid[asked.key] += _is_paid(answer)
            return answer

        return paying

    # ------------------------------------------------------------------------------------------------ the endpoints

    async def _other(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        self.calls += 1
        if (answer := self.trouble(self.calls)) is not None:
            await send(writer, answer.status, answer.headers, answer.body or b"")
            return False
        parts, asked = path.removeprefix("/v1/").split("/"), parse_qs(query)
        match method, parts:
            case "POST", ["files"]:
                return await _json(writer, self._upload(headers, body))
            case "GET", ["files", file, "content"]:
                return await self._content(file, writer)
            case "POST", ["batches"]:
                return await self._make_openai(headers, json.loads(body), writer)
            case "POST", ["messages", "batches"]:
                return await self._make_anthropic(headers, json.loads(body), writer)
            case "GET", ["batches"]:
                return await _json(writer, self._list("openai", asked, "after"))
            case "GET", ["messages", "batches"]:
                return await _json(writer, self._list("anthropic", asked, "after_id"))
            case "GET", ["messages", "batches", id, "results"]:
                return await self._send_results(id, writer)
            case (("GET" | "POST"), ["batches", id, *rest]) if rest in ([], ["cancel"]):
                return await self._one("openai", id, rest == ["cancel"], writer)
            case (("GET" | "POST"), ["messages", "batches", id, *rest]) if rest in ([], ["cancel"]):
                return await self._one("anthropic", id, rest == ["cancel"], writer)
        return await super()._other(method, path, query, headers, body, writer)

    def _plain(self, method: str, path: str) -> tuple[int, Any]:
        if (method, path) == ("GET", "/stats"):
            for batch in self.batches:
                self._process(batch)
            status, stats = super()._plain(method, path)
            made = {"batches": len(self.batches), "items": dict(self.items), "submitted": dict(self.submitted)}
            return status, stats | made
        return super()._plain(method, path)

    async def _one(self, api: Api, id: str, cancel: bool, writer: asyncio.StreamWriter) -> bool:
        batch = self._find(id)
        if batch is None:
            return await _error(writer, api, 404, f"No batch found with id '{id}'.", "not_found_error")
        self.polls += 1
        self._process(batch)
        if cancel:
            if batch.cancelled_at is None and batch.over:
                return await _error(writer, api, 409, "This batch has already ended.", "invalid_request_error")
            batch.cancelled_at = batch.cancelled_at or time.time()
            self._process(batch)
        return await _json(writer, _describe(batch))

    def _find(self, id: str) -> Batch | None:
        return next((batch for batch in self.batches if batch.id == id), None)

    def _list(self, api: Api, asked: dict[str, list[str]], cursor: str) -> Any:
        found = [batch for batch in reversed(self.batches) if batch.api == api]  # newest first
        after = asked.get(cursor, [""])[0]
        if after:
            found = found[1 + [batch.id for batch in found].index(after) :]
        limit = int(asked.get("limit", ["20"])[0])
        page = found[:limit]
        for batch in page:
            self._process(batch)
        ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
        return {"object": "list", "data": [_describe(b) for b in page], "has_more": len(found) > limit, **ends}

    # --------------------------------------------------------------------------------------------- making a batch

    def _upload(self, headers: Mapping[str, str], body: bytes) -> Any:
        boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
        for part in body.split(b"--" + boundary):
            head, _, content = part.partition(b"\r\n\r\n")
            if name := re.search(rb'filename="([^"]*)"', head):
                id = f"file-{len(self.files):06d}"
                self.files[id] = (name[1].decode(), content.removesuffix(b"\r\n"))
                return {"id": id, "object": "file", "purpose": "batch", "filename": name[1].decode(), "created_at": 0}
        raise ValueError("no file in the upload")

    async def _make_openai(
        self, headers: Mapping[str, str], body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        lines = self.files[body["input_file_id"]][1].split(b"\n")
        items: list[tuple[str, dict[str, Any]]] = []
        problem: tuple[str, str, int | None] | None = None
        for number, line in enumerate(filter(None, lines), 1):
            entry = json.loads(line)
            if (entry["method"], entry["url"]) != ("POST", body["endpoint"]):
                problem = ("mismatched_endpoint", "The url is not the batch's endpoint.", number)
            items.append((entry["custom_id"], entry["body"]))
        if len({key for key, _ in items}) < len(items):
            problem = ("duplicate_custom_id", "The custom_id is used twice.", None)
        batch = Batch("", "openai", self._next_plan(), items, headers, 0.0)
        batch.metadata, batch.input_file = body.get("metadata") or {}, body["input_file_id"]
        batch.problem = problem or batch.plan.failure
        return await self._made(batch, writer)

    async def _make_anthropic(
        self, headers: Mapping[str, str], body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        items = [(entry["custom_id"], entry["params"]) for entry in body["requests"]]
        names = [key for key, _ in items]
        if len(set(names)) < len(names) or not all(map(_CUSTOM_ID.fullmatch, names)):
            return await _error(writer, "anthropic", 400, "requests: bad custom_id", "invalid_request_error")
        batch = Batch("", "anthropic", self._next_plan(), items, headers, 0.0)
        return await self._made(batch, writer)

    def _next_plan(self) -> Plan:
        self.attempts += 1
        return self.plan(self.attempts - 1)

    async def _made(self, batch: Batch, writer: asyncio.StreamWriter) -> bool:
        if refused := batch.plan.refused:
            await send(writer, refused.status, refused.headers, refused.body or b"{}")
            return True
        await asyncio.sleep(batch.plan.made_after)
        batch.created = time.time()
        batch.id = f"{'batch' if batch.api == 'openai' else 'msgbatch'}_{len(self.batches):06d}"
        self.batches.append(batch)
        if batch.problem is None:
            self.submitted.update(key for key, _ in batch.items)
        await asyncio.sleep(batch.plan.told_after)
        return False if batch.plan.lost else await _json(writer, _describe(batch))

    # ----------------------------------------------------------------------------------------------- processing it

    def _process(self, batch: Batch) -> None:
        """Answer what should be answered by now."""
        if batch.problem is not None:
            return
        now, end = time.time(), batch.created + batch.plan.seconds
        until = min(now, batch.cancelled_at or end)
        due = (
            len(batch.items)
            if until >= end
            else int(len(batch.items) * (until - batch.created) / (end - batch.created))
        )
        for position in range(batch.processed, due):
            key, body = batch.items[position]
            if not batch.plan.expired(position):
                self._answer_item(batch, key, body)
        batch.processed = max(batch.processed, due)
        batch.over = now >= batch.ends

    def _answer_item(self, batch: Batch, key: str, body: dict[str, Any]) -> None:
        content = digest(batch.api, body)
        asked = Asked(batch.api, body, batch.headers, content, self.counts[content], self._order)
        self._order += 1
        self.counts[content] += 1
        answer = self._of_items(asked)
        reply = None
        if _is_paid(answer):
            self.items[key] += 1
            self.paid[content] += 1
            reply = reply_json(asked, answer)
            reply = reply if answer.edit is None else answer.edit(reply)
        batch.results.append((key, answer, reply))

    # ------------------------------------------------------------------------------------------------- its results

    async def _content(self, file: str, writer: asyncio.StreamWriter) -> bool:
        kind, _, id = file.partition(":")
        batch = self._find(id)
        if batch is None:
            return await _error(writer, "openai", 404, f"No such File object: {file}", "invalid_request_error")
        lines = _openai_output(batch) if kind == "out" else _openai_errors(batch)
        return await self._send_lines(batch, lines, writer)

    async def _send_results(self, id: str, writer: asyncio.StreamWriter) -> bool:
        batch = self._find(id)
        if batch is None or not _ended(batch):
            return await _error(writer, "anthropic", 404, f"No results for {id}.", "not_found_error")
        return await self._send_lines(batch, _anthropic_results(batch), writer)

    async def _send_lines(self, batch: Batch, lines: list[dict[str, Any]], writer: asyncio.StreamWriter) -> bool:
        lines.sort(key=lambda line: uniform("order", line["custom_id"]))
        # Not escaped: a text's U+2028 arrives as it is.
        body = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
        if batch.cuts < batch.plan.cut:
            batch.cuts += 1
            await send(writer, 200, {}, body[: len(body) // 2], promised=len(body))
            return False
        await send(writer, 200, {"content-type": "application/x-jsonl"}, body)
        return True


def _is_paid(answer: Answer) -> bool:
    return answer.status == 200 and not answer.hang_up and answer.body is None


def _ended(batch: Batch) -> bool:
    return batch.problem is None and batch.over


def _unprocessed(batch: Batch) -> list[str]:
    done = {key for key, _, _ in batch.results}
    return [key for key, _ in batch.items if key not in done]


def _extra(batch: Batch) -> list[str]:
    return [digest("extra", batch.id, i, length=40) for i in range(batch.plan.extra)]


def _error_of(answer: Answer, api: Api) -> tuple[int, dict[str, Any]]:
    """Status and body with which an item failed; what breaks a connection online is a 500 in a batch."""
    if answer.status != 200 and answer.body is not None:
        return answer.status, json.loads(answer.body)
    return 500, json.loads(error_json(api, "Internal server error"))


# ---------------------------------------------------------------------------------------- as the protocols say it


def _describe(batch: Batch) -> dict[str, Any]:
    return _describe_openai(batch) if batch.api == "openai" else _describe_anthropic(batch)


def _describe_openai(batch: Batch) -> dict[str, Any]:
    good = sum(reply is not None for _, _, reply in batch.results)
    bad = len(batch.results) - good
    if batch.problem is not None:
        status = "failed"
    elif not _ended(batch):
        status = "cancelling" if batch.cancelled_at else "in_progress"
    elif batch.cancelled_at:
        status = "cancelled"
    else:
        status = "expired" if _unprocessed(batch) else "completed"
    ended = status in ("cancelled", "expired", "completed")
    code, message, line = batch.problem or ("", "", None)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "status": status,
        "created_at": int(batch.created),
        "input_file_id": batch.input_file,
        "output_file_id": f"out:{batch.id}" if ended and (good or batch.plan.extra) else None,
        "error_file_id": f"err:{batch.id}" if ended and (bad or _unprocessed(batch)) else None,
        "metadata": batch.metadata,
        "errors": {"object": "list", "data": [{"code": code, "message": message, "line": line, "param": None}]}
        if batch.problem
        else None,
        "request_counts": {"total": len(batch.items), "completed": good, "failed": bad},
    }


def _openai_output(batch: Batch) -> list[dict[str, Any]]:
    good = {key: reply for key, _, reply in batch.results if reply is not None}
    good |= {key: {"choices": [], "usage": {}} for key in _extra(batch)}
    return [
        {"id": "batch_req", "custom_id": key, "response": {"status_code": 200, "body": reply}, "error": None}
        for key, reply in good.items()
    ]


def _openai_errors(batch: Batch) -> list[dict[str, Any]]:
    lines = []
    for key, answer, reply in batch.results:
        if reply is None:
            status, body = _error_of(answer, "openai")
            lines.append({"custom_id": key, "response": {"status_code": status, "body": body}, "error": None})
    code = "batch_cancelled" if batch.cancelled_at else "batch_expired"
    error = {"code": code, "message": "This request was not executed."}
    return lines + [{"custom_id": key, "response": None, "error": error} for key in _unprocessed(batch)]


def _describe_anthropic(batch: Batch) -> dict[str, Any]:
    ended = _ended(batch)
    good = sum(reply is not None for _, _, reply in batch.results)
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    if ended:  # zero until then
        left = len(batch.items) - len(batch.results)
        counts |= {"succeeded": good, "errored": len(batch.results) - good}
        counts["canceled" if batch.cancelled_at else "expired"] = left
    else:
        counts["processing"] = len(batch.items)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else "canceling" if batch.cancelled_at else "in_progress",
        "request_counts": counts,
        "created_at": _time(batch.created),
        "expires_at": _time(batch.created + 86400),
        "ended_at": _time(batch.ends) if ended else None,
        "cancel_initiated_at": _time(batch.cancelled_at) if batch.cancelled_at else None,
        "archived_at": None,
        "results_url": f"/v1/messages/batches/{batch.id}/results" if ended else None,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _anthropic_results(batch: Batch) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for key, answer, reply in batch.results:
        if reply is not None:
            lines.append({"custom_id": key, "result": {"type": "succeeded", "message": reply}})
        else:
            error = _error_of(answer, "anthropic")[1]
            lines.append({"custom_id": key, "result": {"type": "errored", "error": error}})
    kind = "canceled" if batch.cancelled_at else "expired"
    lines += [{"custom_id": key, "result": {"type": kind}} for key in _unprocessed(batch)]
    message: dict[str, Any] = {"content": [], "usage": {}}
    return lines + [{"custom_id": k, "result": {"type": "succeeded", "message": message}} for k in _extra(batch)]


async def _json(writer: asyncio.StreamWriter, value: Any) -> bool:
    await send(writer, 200, {}, json.dumps(value).encode())
    return True


async def _error(writer: asyncio.StreamWriter, api: Api, status: int, message: str, type: str) -> bool:
    await send(writer, status, {}, error_json(api, message, type=type))
    return True


# ------------------------------------------------------------------------------------------------------- as a process


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until killed; the first line printed is the port."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.batch_server", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--answer", default="", metavar="MODULE:FUNCTION", help="a function from Asked to Answer")
    parser.add_argument("--seconds", type=float, default=0.0, help="until a batch ends")
    parser.add_argument("--cancelling", type=float, default=0.0, help="seconds that a cancel takes")
    parser.add_argument("--expired", type=float, default=0.0, help="share of the items that are never processed")
    parser.add_argument("--lost", type=float, default=0.0, help="share of the batches whose making is not confirmed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before the reply to a single request")
    args = parser.parse_args(argv)
    script: Script = echo
    if args.answer:
        module, _, name = args.answer.partition(":")
        script = getattr(import_module(module), name)

    def plan(nth: int) -> Plan:
        return Plan(
            seconds=args.seconds,
            cancelling=args.cancelling,
            expired=lambda position: uniform("expired", nth, position) < args.expired,
            lost=uniform("lost", nth) < args.lost,
        )

    asyncio.run(_forever(BatchServer(script, plan=plan, host=args.host, port=args.port, latency=args.latency)))


async def _forever(server: BatchServer) -> None:
    listening = await server.start()
    print(server.port, flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
