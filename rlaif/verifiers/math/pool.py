"""The host's side of the workers: ask one question, get an answer or be told why not, within a deadline.

Works from any thread and under any event loop: no signals, no alarm, blocking sockets with time-outs, and as many
questions at once as there are threads asking. A worker that misses its deadline is killed and another is forked when
it is needed. After a fork of the host, the child starts processes of its own. When the host dies, by whatever signal,
the fork-server sees the end of its control socket and kills all workers.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

Party = Literal["gold", "pred"]

_START_SECONDS = 60.0  # importing sympy on a busy machine
_QUESTIONS = 500  # a worker answers so many, then a fresh one takes over: sympy's caches only grow


class PoolError(Exception):
    """The machinery failed, not one of the answers."""


@dataclass(frozen=True)
class Decided:
    equal: bool


@dataclass(frozen=True)
class Undecidable:
    """Why there is no verdict, and which of the two answers is to blame."""

    party: Party
    reason: Literal["timeout", "unparseable", "resource", "crashed"]
    detail: str


@dataclass
class _Worker:
    pid: int
    link: socket.socket
    questions: int = 0
    buffered: bytes = b""


class Pool:
    """Workers behind one fork-server, started when first asked. ``seconds``: the deadline of a question."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.confinement: tuple[str, ...] = ()
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()  # for the fork-server and the list of idle workers
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: list[_Worker] = []

    def ask(self, gold: str, pred: str | None) -> Decided | Undecidable:
        """Whether the two are equal; with ``pred`` None, whether the gold can be read at all (then it equals itself).
        Raises PoolError."""
        if self._owner != os.getpid():
            self._reset()  # forked: what is inherited belongs to the parent
        signalled = 0
        for _ in range(2):
            answer, signalled = self._put(self._take(), gold, pred)
            if answer is not None:
                return answer
            # It died. Once may be an accident (the out-of-memory killer, an operator); twice alike is not.
        if signalled in (signal.SIGKILL, signal.SIGTERM, 0):
            raise PoolError("two workers ended, by themselves or killed from outside, while they compared two answers.")
        return Undecidable("pred" if pred is not None else "gold", "crashed", f"the worker ended by signal {signalled}")

    def close(self) -> None:
        """End all processes; may be called twice. A later question starts them again."""
        if self._owner == os.getpid():
            self._stop_server()

    # ------------------------------------------------------------------------------------------------- one question

    def _put(self, worker: _Worker, gold: str, pred: str | None) -> tuple[Decided | Undecidable | None, int]:
        """The answer, or None and the signal the worker died of."""
        deadline = time.monotonic() + self.seconds
        party: Party = "gold"
        try:
            worker.link.sendall(json.dumps({"gold": gold, "pred": pred}).encode() + b"\n")
            while True:
                message = self._line(worker, deadline)
                if "read" in message:
                    party = "pred"
                    continue
                break
        except TimeoutError:
            self._kill(worker)
            if pred is None:
                party = "gold"
            return Undecidable(party, "timeout", f"no answer within {self.seconds:g} s"), 0
        except (OSError, EOFError, ValueError):
            return None, self._kill(worker)
        if "error" in message:
            self._kill(worker)
            raise PoolError(f"a worker failed on {gold[:80]!r} and {(pred or '')[:80]!r} ({message['error']}).")
        worker.questions += 1
        blamed: Party = "gold" if (message.get("unreadable") or message.get("exhausted")) == "gold" else "pred"
        if "exhausted" in message:
            self._kill(worker)
            return Undecidable(blamed, "resource", "more memory or nesting than an answer may use"), 0
        self._give_back(worker)
        if "unreadable" in message:
            return Undecidable(blamed, "unparseable", str(message.get("detail", ""))), 0
        return Decided(message.get("equal") is True), 0

    def _line(self, worker: _Worker, deadline: float) -> dict[str, Any]:
        while b"\n" not in worker.buffered:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([worker.link], [], [], remaining)[0]:
                raise TimeoutError
            received = worker.link.recv(65536)
            if not received:
                raise EOFError
            worker.buffered += received
            if len(worker.buffered) > 65536:
                raise ValueError("a reply that is none")
        line, _, worker.buffered = worker.buffered.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a reply that is none")
        return message

    # ------------------------------------------------------------------------------------------------- the workers

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            return self._forked()
        except (OSError, EOFError):
            self._stop_server()  # it died: another one
        try:
            return self._forked()
        except (OSError, EOFError) as error:
            self._stop_server()
            raise PoolError(f"the process for computer algebra cannot be started ({error}).") from error

    def _forked(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            socket.send_fds(self._running(), [b"F"], [theirs.fileno()])
            return _Worker(int(self._heard()["pid"]), ours)

    def _give_back(self, worker: _Worker) -> None:
        if worker.questions >= _QUESTIONS:
            self._kill(worker)
            return
        with self._lock:
            self._idle.append(worker)

    def _kill(self, worker: _Worker) -> int:
        """The signal it died of: ours (9) if it lived."""
        worker.link.close()
        with self._lock:
            if self._control is None:
                return signal.SIGKILL
            try:
                self._control.sendall(b"K%d" % worker.pid)
                return int(self._heard()["ended"]) & 0x7F
            except (OSError, EOFError, KeyError, ValueError):
                return signal.SIGKILL  # the fork-server is gone, and took its workers along

    # --------------------------------------------------------------------------------------------- the fork-server

    def _running(self) -> socket.socket:
        """The control socket of a living fork-server. Call with the lock held."""
        if self._control is None:
            ours, theirs = socket.socketpair()
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from rlaif.verifiers.math.forkserver import main; main({theirs.fileno()})"
            )
            # Its environment is empty but for what keeps libraries from starting threads; -I: nothing of the user's.
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
            )
            theirs.close()
            self._control = ours
            ours.settimeout(_START_SECONDS)
            greeting = self._heard()
            if "ready" not in greeting:
                raise OSError(str(greeting.get("failed", "no greeting")))
            self.confinement = tuple(greeting["ready"])
        return self._control

    def _heard(self) -> dict[str, Any]:
        """One line of the fork-server. Call with the lock held."""
        assert self._control is not None
        line = b""
        while not line.endswith(b"\n"):
            received = self._control.recv(4096)
            if not received:
                raise EOFError("the fork-server ended")
            line += received
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def _stop_server(self) -> None:
        with self._lock:
            for worker in self._idle:
                worker.link.close()
            self._idle.clear()
            if self._control is not None:
                self._control.close()
                self._control = None
            if self._server is not None:
                try:
                    self._server.wait(5)  # it ends by itself when the control socket closes
                except subprocess.TimeoutExpired:
                    self._server.kill()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._server.wait(5)
                self._server = None
