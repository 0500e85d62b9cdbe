"""A local model server that lies when told to.

It speaks OpenAI's ``/v1/chat/completions`` and Anthropic's ``/v1/messages``.

In a test, a script (a function from what was asked to what is answered) decides every reply::

    with FaultServer(lambda asked: Answer("yes") if asked.nth else fault("500", asked)) as server:
        client = OpenAIClient(ModelConfig(model="openai:fake", base_url=server.openai_url))

As a process of its own it prints its port and draws faults at given rates, the same ones on every run::

    python -m tests.servers.fault_server --port 0 --fault 500=0.1 --fault drop=0.05 --latency 0.2 --rpm 600

``GET /stats`` tells what was asked: requests by content (a digest of path and body), and their number. Standard library
only, HTTP/1.1 with keep-alive, one thread; more than 3,000 short replies a second on one core.

Not covered: streaming replies, TLS; the batch endpoints are in batch_server.
"""

import argparse
import asyncio
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Self

from rlaif.hashing import digest, uniform

Api = Literal["openai", "anthropic"]
_PATHS: dict[str, Api] = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}


@dataclass(frozen=True)
class Asked:
    """One request as it arrived. ``key``: digest of its path and JSON body; ``nth``: how often that key came before;
    ``order``: how many requests of any key came before."""

    api: Api
    body: dict[str, Any]
    headers: Mapping[str, str]  # names in lower case
    key: str
    nth: int
    order: int

    @property
    def last_message(self) -> str:
        """The text of the last message, whichever way the protocol spells it."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


@dataclass(frozen=True)
class Answer:
    """What to send back.

    ``text`` and ``finish`` ("stop", "length", "content_filter", "refusal", "tool_calls") go into a well-formed reply of
    the asked protocol, whose JSON is then passed through ``edit``. ``body`` replaces all of it by these bytes.
    ``delay``: seconds before the first byte. ``cut``: send only this many bytes of the body, then close the connection,
    though the header promised more (with ``promise=False`` the header promises no more, so only the JSON is broken).
    ``drip``: seconds between single bytes. ``hang_up``: close without any reply. ``cached``, ``written``: input tokens
    read from and written to the provider's prompt cache.
    """

    text: str = "ok"
    finish: str = "stop"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    edit: Callable[[dict[str, Any]], Any] | None = None
    body: bytes | None = None
    delay: float = 0.0
    cut: int | None = None
    promise: bool = True
    drip: float = 0.0
    hang_up: bool = False
    cached: int = 0
    written: int = 0


Script = Callable[[Asked], Answer]


# ------------------------------------------------------------------------------------------------ well-formed replies


def reply_json(asked: Asked, answer: Answer) -> dict[str, Any]:
    """The reply a well-behaved server gives: token counts are word counts, log-probs where they were asked for."""
    words_in = sum(len(str(m["content"]).split()) for m in asked.body["messages"])
    words_out = max(1, len(answer.text.split()))
    build = _openai_reply if asked.api == "openai" else _anthropic_reply
    return build(asked, answer, words_in, words_out)


def _openai_reply(asked: Asked, answer: Answer, words_in: int, words_out: int) -> dict[str, Any]:
    refused = answer.finish == "refusal"
    message = {
        "role": "assistant",
        "content": None if refused else answer.text,
        "refusal": answer.text if refused else None,
    }
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "stop" if refused else answer.finish,
        "logprobs": None,
    }
    if asked.body.get("logprobs"):
        choice["logprobs"] = {"content": _logprobs(answer.text, int(asked.body.get("top_logprobs") or 0))}
    usage: dict[str, Any] = {
        "prompt_tokens": words_in,
        "completion_tokens": words_out,
        "total_tokens": words_in + words_out,
        "prompt_tokens_details": {"cached_tokens": answer.cached, "cache_write_tokens": answer.written},
    }
    return {
        "id": f"chatcmpl-{asked.key}-{asked.nth}",
        "object": "chat.completion",
        "created": 0,
        "model": asked.body["model"],
        "choices": [choice],
        "usage": usage,
    }


def _anthropic_reply(asked: Asked, answer: Answer, words_in: int, words_out: int) -> dict[str, Any]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return {
        "id": f"msg_{asked.key}_{asked.nth}",
        "type": "message",
        "role": "assistant",
        "model": asked.body["model"],
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": reasons.get(answer.finish, answer.finish),
        "stop_sequence": None,
        "usage": {
            "input_tokens": words_in - answer.cached - answer.written,  # this API counts only the rest
            "cache_read_input_tokens": answer.cached,
            "cache_creation_input_tokens": answer.written,
            "output_tokens": words_out,
        },
    }


def _logprobs(text: str, top: int) -> list[dict[str, Any]]:
    # Each word is a token of probability 1/2; the alternatives share a geometric tail below it.
    entries = []
    for i, word in enumerate(text.split() or [""]):
        token = word if i == 0 else f" {word}"
        ranked = [token] + [f"<{k}>" for k in range(1, top)]
        tops = [{"token": t, "logprob": -0.6931471805599453 * (k + 1), "bytes": None} for k, t in enumerate(ranked)]
        entries.append(
            {"token": token, "logprob": -0.6931471805599453, "bytes": None, "top_logprobs": tops if top else []}
        )
    return entries


def error_json(
    api: Api, message: str, *, type: str = "api_error", code: str | None = None, param: str | None = None
) -> bytes:
    """An error body in the protocol's own shape (Anthropic puts a code into ``details.error_code``)."""
    if api == "openai":
        return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()
    error: dict[str, Any] = {"type": type, "message": message}
    if code:
        error["details"] = {"error_code": code}
    return json.dumps({"type": "error", "error": error, "request_id": "req_0"}).encode()


# ------------------------------------------------------------------------------------------------------------- faults


def _status(status: int, message: str, *, type: str = "api_error", **headers: str) -> Script:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked: Answer(status=status, headers=named, body=error_json(asked.api, message, type=type))


def _edited(edit: Callable[[dict[str, Any]], Any]) -> Script:
    return lambda asked: Answer(edit=edit)


def _no_choices(reply: dict[str, Any]) -> dict[str, Any]:
    return {**reply, "choices": []} if "choices" in reply else {**reply, "content": None}


def _no_finish(reply: dict[str, Any]) -> dict[str, Any]:
    if "choices" in reply:
        del reply["choices"][0]["finish_reason"]
    else:
        reply["stop_reason"] = None
    return reply


FAULTS: dict[str, Script] = {
    # the server refuses, for now
    "429": _status(429, "Rate limit reached", type="rate_limit_error", retry_after="1"),
    "429-ms": _status(429, "Rate limit reached", type="rate_limit_error", retry_after_ms="250"),
    "429-wrong": _status(429, "Rate limit reached", type="rate_limit_error", retry_after="soon"),
    "429-bare": _status(429, "Rate limit reached", type="rate_limit_error"),
    "408": _status(408, "Request timed out"),
    "409": _status(409, "Conflict"),
    "500": _status(500, "Internal server error"),
    "503": _status(503, "Service unavailable", retry_after="1"),
    "529": _status(529, "Overloaded", type="overloaded_error"),
    # the connection fails
    "drop": lambda asked: Answer(hang_up=True),
    "half": lambda asked: Answer(text="half of this " * 20, cut=60),
    "stall": lambda asked: Answer(delay=3600.0),
    "drip": lambda asked: Answer(drip=0.5),
    # the reply is no reply
    "truncated-json": lambda asked: Answer(cut=60, promise=False),
    "garbage": lambda asked: Answer(body=b"<html><body>502 Bad Gateway</body></html>"),
    "nothing": lambda asked: Answer(body=b""),
    "no-object": lambda asked: Answer(body=b"[1, 2, 3]"),
    "bad-utf8": lambda asked: Answer(body=b'{"choices": "\xff\xfe"}'),
    "no-choices": _edited(_no_choices),
    "error-in-200": lambda asked: Answer(body=error_json(asked.api, "Upstream failed", type="server_error")),
    # a reply that must not become data
    "no-finish": _edited(_no_finish),
    "length": lambda asked: Answer(text="cut off in the mid", finish="length"),
    "content-filter": lambda asked: Answer(text="", finish="content_filter"),
    "refusal": lambda asked: Answer(text="I cannot help with that.", finish="refusal"),
    # a reply that is one, and says nothing useful
    "rubbish": lambda asked: Answer(text="%%% lorem &&& ipsum %%%"),
    "empty": lambda asked: Answer(text=""),
}
"""Every fault by name. "stall" and "drip" end when the client goes away."""


def fault(name: str, asked: Asked) -> Answer:
    """The answer of a named fault."""
    return FAULTS[name](asked)


def drawn(answer: Script, rates: Mapping[str, float], seed: int = 0, first_only: bool = False) -> Script:
    """``answer``, with faults at the given rates.

    The draw depends only on the seed, the request's content and how often it came, so every run meets the same faults.
    ``first_only``: a request repeated is always answered.
    """

    def script(asked: Asked) -> Answer:
        if asked.nth and first_only:
            return answer(asked)
        draw = uniform(seed, asked.key, asked.nth)
        for name, rate in rates.items():
            if draw < rate:
                return fault(name, asked)
            draw -= rate
        return answer(asked)

    return script


def limited(
    answer: Script, rpm: float, burst: float = 1.0, clock: Callable[[], float] = time.monotonic, *, terse: bool = False
) -> Script:
    """``answer``, allowed ``rpm`` times a minute (a token bucket that holds ``burst``); more is a 429 that says in
    ``retry-after-ms`` when the next is due. Every answer carries OpenAI's ``x-ratelimit`` headers. ``terse``: none
    does, and a 429 says only ``retry-after``, in whole seconds."""
    state = {"tokens": burst, "at": clock()}

    def told(headers: dict[str, str]) -> dict[str, str]:
        return {} if terse else headers

    def script(asked: Asked) -> Answer:
        now = clock()
        state["tokens"] = min(burst, state["tokens"] + (now - state["at"]) * rpm / 60)
        state["at"] = now
        headers = told({"x-ratelimit-limit-requests": f"{rpm:g}"})
        if state["tokens"] < 1:
            wait = (1 - state["tokens"]) * 60 / rpm
            headers |= told({"x-ratelimit-remaining-requests": "0", "retry-after-ms": f"{1000 * wait:.0f}"})
            headers |= {"retry-after": f"{math.ceil(wait)}"} if terse else {}
            return Answer(
                status=429, headers=headers, body=error_json(asked.api, "Rate limit", type="rate_limit_error")
            )
        state["tokens"] -= 1
        good = answer(asked)
        headers |= told({"x-ratelimit-remaining-requests": f"{int(state['tokens'])}"})
        return replace(good, headers={**headers, **good.headers})

    return script


def echo(asked: Asked) -> Answer:
    """The default script: repeats the last message."""
    return Answer(text=f"echo: {asked.last_message}")


# ------------------------------------------------------------------------------------------------------------- server


class FaultServer:
    """The server, in a thread of its own while the ``with`` block lasts.

    ``counts``: requests by content. ``asked``: the last 10,000 of them, in order. ``latency``: seconds before a reply.
    """

    KEPT = 10_000

    def __init__(self, script: Script = echo, *, host: str = "127.0.0.1", port: int = 0, latency: float = 0.0) -> None:
        self.script = script
        self.latency = latency
        self.counts: Counter[str] = Counter()
        self.asked: list[Asked] = []
        self.connections = 0
        self._address = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._order = 0

    # -- addresses

    @property
    def url(self) -> str:
        return f"http://{self._address[0]}:{self._address[1]}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        return self.url

    @property
    def open_connections(self) -> int:
        """None are open once every client has left and what it had sent was read."""
        return len(self._tasks)

    @property
    def port(self) -> int:
        return self._address[1]

    # -- in a thread

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the fault server did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _run(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await self.start()
        started.set()
        await self._stopping.wait()
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- in a running loop

    async def start(self) -> asyncio.Server:
        """Listen; from then on the port is known."""
        server = await asyncio.start_server(self._serve, *self._address, backlog=4096, limit=2**26)
        self._address = server.sockets[0].getsockname()[:2]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the server stops
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = path.partition("?")
        if method == "POST" and path in _PATHS:
            asked = self._note(_PATHS[path], json.loads(body), headers)
            return await self._answer(asked, self.script(asked), reader, writer)
        return await self._other(method, path, query, headers, body, writer)

    async def _other(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Whatever is no question to a model; whether the connection stays open."""
        status, payload = self._plain(method, path)
        await send(writer, status, {}, json.dumps(payload).encode())
        return True

    def _note(self, api: Api, body: dict[str, Any], headers: Mapping[str, str]) -> Asked:
        key = digest(api, body)
        asked = Asked(api, body, headers, key, self.counts[key], self._order)
        self._order += 1
        self.counts[key] += 1
        self.asked.append(asked)
        del self.asked[: -self.KEPT]
        return asked

    def _plain(self, method: str, path: str) -> tuple[int, Any]:
        if (method, path) == ("GET", "/health"):
            return 200, {}
        if (method, path) == ("GET", "/v1/models"):
            return 200, {"object": "list", "data": [{"id": "fake", "object": "model"}]}
        if (method, path) == ("GET", "/stats"):
            return 200, {"requests": self._order, "distinct": len(self.counts), "counts": dict(self.counts)}
        return 404, {"error": {"message": f"Not Found: {method} {path}", "type": "invalid_request_error"}}

    async def _answer(
        self, asked: Asked, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if delay := self.latency + answer.delay:
            await _pause(delay, reader)
        if answer.hang_up:
            return False
        body = answer.body
        if body is None:
            reply: Any = reply_json(asked, answer)
            if answer.edit is not None:
                reply = answer.edit(reply)
            body = json.dumps(reply).encode()
        shown = body if answer.cut is None else body[: answer.cut]
        promised = len(body) if answer.promise else len(shown)
        await send(writer, answer.status, answer.headers, shown, promised=promised, drip=answer.drip)
        return len(shown) == promised


async def _pause(seconds: float, reader: asyncio.StreamReader) -> None:
    """Wait, but leave as soon as the client has."""
    if seconds < 5:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), seconds)  # the clients here send nothing more before the reply


async def send(
    writer: asyncio.StreamWriter,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    promised: int | None = None,
    drip: float = 0.0,
) -> None:
    length = len(body) if promised is None else promised
    fields = {"content-type": "application/json", "content-length": str(length), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode("latin-1"))
    if drip:
        for i in range(len(body)):
            writer.write(body[i : i + 1])
            await writer.drain()
            await asyncio.sleep(drip)
    else:
        writer.write(body)
    await writer.drain()


# ------------------------------------------------------------------------------------------------------- as a process


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until killed; the first line printed is the port."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.fault_server", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--answer", default="", metavar="MODULE:FUNCTION", help="a function from Asked to Answer")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=RATE", help=", ".join(FAULTS))
    parser.add_argument("--first-only", action="store_true", help="a repeated request meets no fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--rpm", type=float, default=0.0, help="requests a minute; more are answered 429")
    parser.add_argument("--burst", type=float, default=1.0, help="how many requests --rpm lets through at once")
    parser.add_argument("--terse", action="store_true", help="of --rpm only Retry-After tells, in whole seconds")
    args = parser.parse_args(argv)
    script: Script = echo
    if args.answer:
        module, _, name = args.answer.partition(":")
        script = getattr(import_module(module), name)
    rates = {name: float(rate) for name, _, rate in (item.partition("=") for item in args.fault)}
    if unknown := rates.keys() - FAULTS.keys():
        parser.error(f"unknown fault {sorted(unknown)}; known: {', '.join(FAULTS)}")
    if rates:
        script = drawn(script, rates, args.seed, args.first_only)
    if args.rpm:
        script = limited(script, args.rpm, args.burst, terse=args.terse)
    asyncio.run(_forever(FaultServer(script, host=args.host, port=args.port, latency=args.latency)))


async def _forever(server: FaultServer) -> None:
    listening = await server.start()
    print(server.port, flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
