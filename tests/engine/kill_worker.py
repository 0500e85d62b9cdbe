"""A run that test_kill.py kills: many requests to a counting server, through a ledger. Forks a run for each line of
its input, so that Python starts only once; tells its number, and when asked to wait for it, its exit code."""

import asyncio
import os
import sys
from pathlib import Path

from rlaif.clients.base import Capabilities, Identity
from rlaif.engine.ledger import Ledger
from rlaif.types import ChatReply, ChatRequest, Message, Usage

REQUESTS, AT_ONCE = 300, 24


def question(i: int) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=f"question {i}"),), max_tokens=8)


class SocketClient:
    """Asks the counting server, one connection for each request."""

    identity = Identity(backend="openai", model="counting", base_url="http://127.0.0.1/v1")
    capabilities = Capabilities()

    def __init__(self, port: int) -> None:
        self._port = port

    async def complete(self, request: ChatRequest) -> ChatReply:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request.messages[0].content.encode() + b"\n")
            text = (await reader.readline()).decode().strip()
        finally:
            writer.close()
        return ChatReply(text=text, finish_reason="stop", usage=Usage(input_tokens=2, output_tokens=1))

    async def aclose(self) -> None:
        return None


async def run(port: int, path: Path, told: int) -> None:
    """Ask everything; each answer that was seen is told at once, as one line ``number text``."""
    todo = iter(range(REQUESTS))
    with Ledger.open(path) as ledger:
        client = ledger.wrap(SocketClient(port), "sample")

        async def work() -> None:
            for i in todo:
                reply = await client.complete(question(i))
                os.write(told, f"{i} {reply.text}\n".encode())

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def main() -> None:
    while line := sys.stdin.readline():
        port, path, told = line.split()
        child = os.fork()
        if child == 0:
            out = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            asyncio.run(run(int(port), Path(path), out))
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()  # "wait"
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
