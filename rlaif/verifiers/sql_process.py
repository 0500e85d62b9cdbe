"""Warm processes for queries: each forks a child for every query it is asked (see sql_guest.py).

Blocking, for use in threads. A process that does not answer, or answers what cannot be read, is killed with its
children and replaced.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_GUEST = Path(__file__).with_name("sql_guest.py")


class ProcessError(Exception):
    """A process of ours did not do its work; not the query's fault."""


class Processes:
    """As many warm processes as threads ask at once."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask(self, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The guest's answer. Raises ProcessError, also when there is none within ``seconds`` of wall-clock time."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _start()
        timer = threading.Timer(seconds, _kill, [process])
        timer.start()
        try:
            answer = _exchange(process, asked)
        except (OSError, ValueError) as error:
            _kill(process)
            raise ProcessError(f"the process of a query gave no answer within {seconds:g} s ({error})") from None
        finally:
            timer.cancel()
        self._idle.put(process)
        return answer

    def close(self) -> None:
        """End the processes that wait for work; one that is busy ends with its query."""
        while True:
            try:
                _kill(self._idle.get_nowait())
            except queue.Empty:
                return

    def __del__(self) -> None:
        self.close()


def _start() -> "subprocess.Popen[bytes]":
    # -I -S: nothing of this machine's or the user's Python settings is read, and nothing of our environment.
    command = [sys.executable, "-I", "-S", str(_GUEST)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise ProcessError(f"no process for a query: {error}") from None


def _exchange(process: "subprocess.Popen[bytes]", asked: Mapping[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """The process and all its children, at once."""
    if process.returncode is not None:  # gone already, and its number may be another's
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
