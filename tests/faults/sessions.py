"""`rlaif` as a process that can be killed, started in a fiftieth of the time.

A process that has imported everything forks one `rlaif` for each command (run as a module, this file is that process).
What is forked is a real process with a pid, signals and limits of its own, and runs the command line's own ``main``;
only the imports, two seconds of them, are shared. POSIX only.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_IMPORTS = (
    *(
        "openai",
        "anthropic",
        "pyarrow.json",
        "pyarrow.parquet",
        "rlaif.cli.generate",
        "rlaif.generation",
        "rlaif.report",
    ),
    *("rich.progress", "rlaif.cli.batch", "rlaif.cli.cost", "rlaif.estimate", "rlaif.judges.pairwise"),
    *("httpcore2", "h11", "truststore", "anyio.streams", "anyio._backends._asyncio"),
    *("rlaif.clients.openai", "rlaif.clients.anthropic", "rlaif.cli.progress", "tests.fakes"),
)


class Session:
    """One command. ``pid`` is a process group of its own."""

    def __init__(self, owner: "Sessions", pid: int, folder: Path) -> None:
        self.pid, self._owner, self._folder = pid, owner, folder

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code, negative for a signal. Fails when it takes longer: nothing may hang."""
        code = self._owner.ask(wait=self.pid, seconds=seconds)
        if code is None:
            self.signal(signal.SIGABRT)
            raise AssertionError(f"still running after {seconds} s: {self.err}")
        assert isinstance(code, int)
        return code

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """kill -9. Returns -9, or the exit code where it had ended already."""
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        return self.wait(10)

    @property
    def out(self) -> str:
        return self._said("out")

    @property
    def err(self) -> str:
        return self._said("err")

    def _said(self, where: str) -> str:
        path = self._folder / f"{self.pid}.{where}"
        return path.read_text() if path.exists() else ""


class Sessions:
    """Starts sessions; used as a context manager. ``folder`` takes their output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Sessions":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sessions"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ask(ready=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        cwd: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        constants: Mapping[str, Any] | None = None,
        file_size: int | None = None,
    ) -> Session:
        """``rlaif ARGUMENTS`` in ``cwd``. ``constants``: of modules, by "module:name", to wait less. ``file_size``:
        no file of it may become larger (bytes)."""
        pid = self.ask(
            start=arguments,
            cwd=str(cwd),
            env=dict(env or {}),
            constants=dict(constants or {}),
            file_size=file_size,
            folder=str(self.folder),
        )
        return Session(self, pid, self.folder)

    def run(self, cwd: Path, *arguments: str, seconds: float = 60.0, **other: Any) -> tuple[int, Session]:
        """`start`, then its exit code."""
        session = self.start(cwd, *arguments, **other)
        return session.wait(seconds), session


# ------------------------------------------------------------------------------------------- the process that forks


def _serve() -> None:
    for module in _IMPORTS:
        import_module(module)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until a session has become one, there is nothing to interrupt
    for line in sys.stdin:
        question = json.loads(line)
        answer: int | None = 0
        if "wait" in question:
            answer = _wait(question["wait"], question["seconds"])
        elif "start" in question:
            answer = os.fork()
            if answer == 0:
                break
        print(json.dumps(answer), flush=True)
    else:
        return
    _become(question)
    from rlaif.cli import main

    code: Any = 1
    try:
        main(question["start"])
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 (what Python itself does with an exception that nobody caught)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all those modules apart would take longer than what they were used for


def _wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def _become(question: dict[str, Any]) -> None:
    """Make this forked process the session that was asked for."""
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "out"), (2, "err")):
        path = Path(question["folder"]) / f"{os.getpid()}.{name}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.chdir(question["cwd"])
    os.environ.update(question["env"])
    for where, value in question["constants"].items():
        module, _, name = where.partition(":")
        place: Any = import_module(module)
        *parents, last = name.split(".")
        for parent in parents:
            place = getattr(place, parent)
        getattr(place, last)  # a name that is gone must not pass silently
        setattr(place, last, value)
    if question["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (question["file_size"], resource.RLIM_INFINITY))
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    _serve()
