"""Exactly once, whenever the run is killed: kill -9 at random moments, against a server that counts."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlaif.clients.base import request_key
from rlaif.engine.ledger import Ledger
from tests.engine.kill_worker import REQUESTS, SocketClient, question

ROOT = Path(__file__).parents[2]


class CountingServer:
    """Answers each question with its text in capitals after some milliseconds, and counts who asked what."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = (await reader.readline()).decode().strip()
        if text:
            self.counts[text] += 1
            await asyncio.sleep(self._random.uniform(0.002, 0.02))
            writer.write(text.upper().encode() + b"\n")
        writer.close()

    @contextmanager
    def running(self) -> Iterator[int]:
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield server.sockets[0].getsockname()[1]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


class Runs:
    """Starts runs on a folder and kills them."""

    def __init__(self, port: int, folder: Path, seed: int) -> None:
        self.path, self.told = folder / "ledger.sqlite", folder / "told.txt"
        self._line = f"{port} {self.path} {self.told}\n"
        self._random = random.Random(seed)
        self._forker = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.kill_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, kill_within: float | None) -> int:
        """One run's exit code; it is killed after a random time up to ``kill_within`` seconds."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(self._line)
        self._forker.stdin.flush()
        pid = int(self._forker.stdout.readline())
        if kill_within is not None:
            time.sleep(self._random.uniform(0, kill_within))
            os.kill(pid, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
        self._forker.stdin.write("wait\n")
        self._forker.stdin.flush()
        return int(self._forker.stdout.readline())

    def seen(self) -> dict[int, str]:
        """The answers that runs have seen, by number; each run may see an answer again, always the same."""
        answers: dict[int, str] = {}
        for line in self.told.read_text().splitlines() if self.told.exists() else []:
            number, _, text = line.partition(" ")
            assert answers.setdefault(int(number), text) == text
        return answers

    def close(self) -> None:
        self._forker.communicate()


def stored_after_kill(runs: Runs, server: CountingServer) -> set[int]:
    """The numbers whose reply is stored, having checked that all that was seen is among them, and that everything the
    server was asked is on record."""
    if not server.counts:
        return set()
    with Ledger.open(runs.path, read_only=True) as ledger:
        identity = SocketClient.identity
        stored = {i for i in range(REQUESTS) if ledger.reply(request_key(identity, question(i))) is not None}
        assert stored >= runs.seen().keys(), "an answer was seen that is not stored"
        for text in server.counts:
            i = int(text.split()[1])
            assert ledger.request(request_key(identity, question(i))) is not None, f"{text} was sent without a trace"
    return stored


def kill_often(folder: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """(requests sent more than once, runs that were killed), over as many folders as it takes."""
    killed = resent = 0
    while killed < kills:
        server = CountingServer()
        here = folder / str(killed)
        here.mkdir()
        with server.running() as port:
            runs = Runs(port, here, seed + killed)
            stored: set[int] = set()
            try:
                while killed < kills:
                    before = Counter(server.counts)
                    code = runs.run(kill_within=0.25)
                    time.sleep(0.03)  # what is under way at the server arrives there
                    again = [text for text, n in server.counts.items() if before[text] and n > before[text]]
                    assert not {int(text.split()[1]) for text in again} & stored, "a stored reply was asked for again"
                    stored = stored_after_kill(runs, server)
                    if code == 0:
                        break  # all answered before the kill came
                    killed += 1
                assert runs.run(kill_within=None) == 0
                assert runs.seen() == {i: f"QUESTION {i}" for i in range(REQUESTS)}  # as if never interrupted
                sent = sum(server.counts.values())
                assert runs.run(kill_within=None) == 0
                assert sum(server.counts.values()) == sent, "a finished run sent something again"
            finally:
                runs.close()
        assert len(server.counts) == REQUESTS
        resent += sent - REQUESTS
    return resent, killed


def test_a_run_killed_30_times_asks_again_only_for_what_was_on_its_way(tmp_path: Path) -> None:
    resent, killed = kill_often(tmp_path, 30)
    assert resent <= killed * 24  # no more than were in flight


@pytest.mark.slow
def test_a_run_killed_200_times_asks_again_only_for_what_was_on_its_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resent, killed = kill_often(tmp_path, 200, seed=1000)
    with capsys.disabled():
        print(f"\n{killed} kills: {resent} requests were sent again, {resent / killed:.1f} a kill")
    assert resent <= killed * 24
