"""The host's side of the tiers ``ns`` and ``lsm``: a pool of fork-servers, and what a run says on its way out.

Standard output and error are read as they come and kept up to a limit; a run ends when its server says so, and the
server is believed because it never runs a line of the candidate's. One server does one run at a time, so a run that
waits for an answer keeps its place.

asyncio only, but of no one loop: a launcher may be used from several threads, each with its own.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError, Tier

HERE = Path(__file__).parent
GUEST = HERE / "guest.py"
RUNS_PER_SERVER = 5_000  # then a fresh one, against whatever a kernel or an allocator may keep
NEWEST_LANDLOCK = 1 << 10  # whatever the kernel has
_START_SECONDS = 20.0
_GRACE_SECONDS = 10.0  # the server keeps the deadline; this is for a server that does not
_CHUNK = 1 << 16

# The packages' own __init__ files (and what they import) stay out of the server.
_BOOT = """
import sys, types
for depth, name in enumerate(("rlaif.verifiers.sandbox", "rlaif.verifiers", "rlaif")):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [sys.argv[2].rsplit("/", depth)[0]]
from rlaif.verifiers.sandbox.zygote import main
main()
"""
# As -I, but with one variable of our own: sets and dictionaries have the same order in every run of every server.
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}


@dataclass
class Server:
    """One fork-server process, and the socket that it is talked to with."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket
    facts: dict[str, Any]  # what it said of itself: landlock, uid, notes
    runs: int = 0

    @classmethod
    def start(cls, tier: str, guest: Path, python: str, landlock: int = NEWEST_LANDLOCK) -> "Server":
        """Blocks until it is ready. Raises SandboxError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = json.dumps({"tier": tier, "guest": str(guest), "landlock": landlock, "host": os.getpid()})
        try:
            with theirs:
                process = subprocess.Popen(
                    [python, *_FLAGS, "-c", _BOOT, settings, str(HERE)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C is for the host, which decides what becomes of its runs
                )
        except OSError as error:
            ours.close()
            raise SandboxError(f"tier {tier}: {python} cannot be started ({error.strerror or error})") from error
        try:
            facts = cls._greeting(tier, process, ours)
        except BaseException:
            process.kill()
            process.wait()
            ours.close()
            raise
        finally:
            assert process.stderr is not None
            process.stderr.close()
        ours.setblocking(False)
        return cls(process, ours, facts)

    @staticmethod
    def _greeting(tier: str, process: "subprocess.Popen[bytes]", ours: socket.socket) -> dict[str, Any]:
        ours.settimeout(_START_SECONDS)
        try:
            said = ours.recv(1 << 16)
        except TimeoutError:
            raise SandboxError(f"tier {tier}: the fork-server was not ready after {_START_SECONDS:.0f} s") from None
        except OSError as error:
            raise SandboxError(f"tier {tier}: {error}") from error
        message = json.loads(said) if said else {}
        if "ready" not in message:
            assert process.stderr is not None
            lines = [] if said else process.stderr.read().decode(errors="replace").strip().splitlines()
            why = message.get("failed") or (lines[-1] if lines else "it ended without a word")
            raise SandboxError(f"tier {tier}: {why}")
        facts: dict[str, Any] = message["ready"]
        return facts

    def stop(self) -> None:
        """Kill it and all that it runs (its guard or its parent-death signal see to the rest)."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


@dataclass(eq=False)
class _Slot:
    """A place for one run at a time; its server is started when first needed."""

    server: Server | None = None


class LinuxLauncher:
    """Tier ``ns`` or ``lsm`` (see zygote.py); see `rlaif.verifiers.sandbox.base.Launcher`.

    workers: servers, so runs at the same time; by default one a core. guest: the program that runs. python: an
    interpreter other than this one. landlock: use no newer version of it (to see how an older kernel holds).
    """

    def __init__(
        self,
        tier: Literal["ns", "lsm"],
        workers: int | None = None,
        *,
        guest: Path = GUEST,
        python: str | None = None,
        runs_per_server: int = RUNS_PER_SERVER,
        landlock: int = NEWEST_LANDLOCK,
    ) -> None:
        self.tier: Tier = tier
        self.workers = workers or len(os.sched_getaffinity(0))
        self.guest = guest.absolute()
        self.python = python or getattr(sys, "_base_executable", "") or sys.executable
        self.runs_per_server = runs_per_server
        self.landlock = landlock
        self.facts: dict[str, Any] = {}
        self._slots = [_Slot() for _ in range(self.workers)]
        self._lock = threading.Lock()
        self._free = list(self._slots)
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[_Slot]]] = deque()
        self._closed = False
        self._owner = os.getpid()

    async def launch(self, limits: Limits) -> "LinuxProcess":
        """Start a run. Raises SandboxError."""
        if os.getpid() != self._owner:
            raise SandboxError(f"tier {self.tier}: the sandbox was opened by another process; open one in each")
        slot = await self._acquire()
        try:
            if slot.server is not None:
                with contextlib.suppress(SandboxError):  # it died since its last run
                    return self._begin(slot, slot.server, limits)
                self._drop(slot)
            return self._begin(slot, await self._start(slot), limits)
        except BaseException:
            self._done(slot, False)
            raise

    def _begin(self, slot: _Slot, server: Server, limits: Limits) -> "LinuxProcess":
        return LinuxProcess(server, limits, lambda sound: self._done(slot, sound))

    async def aclose(self) -> None:
        """Stop all servers and with them every run. May be called twice."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            running = [s.server for s in self._slots if s not in self._free and s.server is not None]
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_fail, future)
        for slot in self._free:
            self._drop(slot)
        for server in running:  # their runs then end with a SandboxError, and see to the rest
            server.process.kill()

    async def _start(self, slot: _Slot) -> Server:
        starting = asyncio.ensure_future(
            asyncio.to_thread(Server.start, self.tier, self.guest, self.python, self.landlock)
        )
        try:
            server = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_stop_unwanted)
            raise
        with self._lock:
            if not self._closed:
                slot.server = server
        if slot.server is not server:
            server.stop()
            raise SandboxError(f"tier {self.tier}: the sandbox is closed")
        self.facts = server.facts
        return server

    async def _acquire(self) -> _Slot:
        with self._lock:
            if self._closed:
                raise SandboxError(f"tier {self.tier}: the sandbox is closed")
            if self._free:
                return self._free.pop()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[_Slot] = loop.create_future()
            self._waiting.append((loop, future))
        try:
            return await future
        except asyncio.CancelledError:
            with self._lock:
                if (loop, future) in self._waiting:
                    self._waiting.remove((loop, future))
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())
            raise

    def _done(self, slot: _Slot, sound: bool) -> None:
        """A run is over. A server that is not sound, or has done its share, is replaced when next needed."""
        if slot.server is not None:
            slot.server.runs += 1
            if not sound or self._closed or slot.server.runs >= self.runs_per_server:
                self._drop(slot)
        self._release(slot)

    def _release(self, slot: _Slot) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._free.append(slot)
                    return
                loop, future = self._waiting.popleft()
            with contextlib.suppress(RuntimeError):  # that loop is closed: the next one, then
                loop.call_soon_threadsafe(self._hand_over, slot, future)
                return

    def _hand_over(self, slot: _Slot, future: "asyncio.Future[_Slot]") -> None:
        if future.done():  # cancelled meanwhile
            self._release(slot)
        else:
            future.set_result(slot)

    def _drop(self, slot: _Slot) -> None:
        with self._lock:
            server, slot.server = slot.server, None
        if server is not None:
            server.stop()


def _fail(future: "asyncio.Future[_Slot]") -> None:
    if not future.done():
        future.set_exception(SandboxError("the sandbox is closed"))


def _stop_unwanted(starting: "asyncio.Future[Server]") -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().stop()


@dataclass
class _Output:
    """What a run wrote to one descriptor, up to a limit; ``full`` once there was more."""

    fd: int
    limit: int
    kept: bytearray = field(default_factory=bytearray)
    full: bool = False

    def drain(self) -> bool:
        """Take what there is; False at the end (or when there is more than the limit)."""
        while not self.full:
            try:
                chunk = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            left = self.limit - len(self.kept)
            self.kept += chunk[:left]
            self.full = len(chunk) > left
        return False


class LinuxProcess:
    """One run; see `rlaif.verifiers.sandbox.base.Process`."""

    def __init__(self, server: Server, limits: Limits, done: Callable[[bool], None]) -> None:
        """Starts it. Raises SandboxError."""
        self.limits = limits
        self._server = server
        self._done: Callable[[bool], None] | None = done
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ending | SandboxError] = self._loop.create_future()
        self._flooded = False
        theirs, ours = _pipes()
        self._stdin, out, err, self._control_in, self._control_out = ours
        self._open = set(ours)
        self._outputs = (_Output(out, limits.output_bytes), _Output(err, limits.output_bytes))
        try:
            socket.send_fds(server.channel, [_message(limits)], theirs)
        except OSError as error:
            self._close_all()
            raise SandboxError(f"the fork-server is gone ({error.strerror})") from error
        finally:
            for fd in theirs:
                os.close(fd)
        for output in self._outputs:
            self._loop.add_reader(output.fd, self._readable, output)
        self._loop.add_reader(server.channel.fileno(), self._told)
        self._backstop = self._loop.call_later(limits.seconds + _GRACE_SECONDS, self._give_up)

    @property
    def stdout(self) -> bytes:
        return bytes(self._outputs[0].kept)

    @property
    def stderr(self) -> bytes:
        return bytes(self._outputs[1].kept)

    async def write_stdin(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            await self._write(self._stdin, data)
        self._close(self._stdin)

    async def send(self, data: bytes) -> None:
        await self._write(self._control_in, data)

    async def receive(self, size: int) -> bytes:
        while self._control_out in self._open:
            try:
                return os.read(self._control_out, size)
            except BlockingIOError:
                if self._ended.done():
                    break
                await self._ready(self._control_out, self._loop.add_reader, self._loop.remove_reader)
        return b""

    async def wait(self) -> Ending:
        ended = await asyncio.shield(self._ended)
        if isinstance(ended, SandboxError):
            raise ended
        return ended

    async def aclose(self) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        try:
            if not self._ended.done():
                self._kill()
                await asyncio.shield(self._ended)  # at the latest when the backstop ends the server itself
        finally:
            self._finish(SandboxError("a run was given up"))  # only if even its end was not awaited
            self._close_all()
            done(isinstance(self._ended.result(), Ending))

    async def _write(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if fd not in self._open:
                raise BrokenPipeError("the process is gone")
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                await self._ready(fd, self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Until ``fd`` can be used, or the run is over."""
        ready: asyncio.Future[None] = self._loop.create_future()
        add(fd, _set, ready)
        try:
            await asyncio.wait((ready, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if fd in self._open:
                remove(fd)

    def _readable(self, output: _Output) -> None:
        if output.drain():
            return
        self._loop.remove_reader(output.fd)
        if output.full:
            self._flooded = True
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            self._server.channel.send(b"kill")

    def _told(self) -> None:
        """The server speaks: the run is over; or the server is."""
        try:
            said = self._server.channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._finish(SandboxError("the fork-server died"))
            return
        report = json.loads(said)
        if "failed" in report:
            self._finish(SandboxError(report["failed"]))
            return
        for output in self._outputs:  # its processes are gone, so all that was ever written is there
            output.drain()
        self._flooded = self._flooded or any(o.full for o in self._outputs)
        self._finish(self._ending(report))

    def _ending(self, report: dict[str, Any]) -> Ending | SandboxError:
        if self._flooded:
            return Ending("resource")
        code = os.waitstatus_to_exitcode(report["status"])
        if code >= 0:
            return Ending("exited", code)
        if report["late"] or -code == signal.SIGXCPU or report["cpu"] >= math.ceil(self.limits.seconds):
            return Ending("timeout")
        if -code == signal.SIGKILL and report["memory_mb"] * 2 > self.limits.memory_mb:
            return Ending("resource", signal.SIGKILL)  # by the kernel, short of memory
        return Ending("killed", -code)

    def _give_up(self) -> None:
        self._finish(SandboxError("the fork-server did not end a run at its deadline"))

    def _finish(self, ending: Ending | SandboxError) -> None:
        """The run is over. What it said last can still be received."""
        if self._ended.done():
            return
        self._backstop.cancel()
        for fd in (self._server.channel.fileno(), *(o.fd for o in self._outputs)):
            self._loop.remove_reader(fd)
        self._ended.set_result(ending)
        for fd in self._open - {self._control_out}:
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def _close_all(self) -> None:
        for fd in tuple(self._open):
            self._close(fd)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _pipes() -> tuple[list[int], list[int]]:
    """Their ends and ours of: standard input, output and error, control in, control out."""
    theirs, ours = [], []
    try:
        for we_write in (True, False, False, True, False):
            read, write = os.pipe()
            theirs.append(read if we_write else write)
            ours.append(write if we_write else read)
            os.set_blocking(ours[-1], False)
    except OSError as error:
        for fd in (*theirs, *ours):
            os.close(fd)
        raise SandboxError(f"no pipes for a run ({error.strerror})") from error
    return theirs, ours


def _message(limits: Limits) -> bytes:
    return json.dumps(
        {
            "seconds": limits.seconds,
            "memory_mb": limits.memory_mb,
            "file_mb": limits.file_mb,
            "threads": limits.threads,
        }
    ).encode()
