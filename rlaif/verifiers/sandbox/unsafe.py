"""Tier ``unsafe``: a process of its own with resource limits, and nothing else. No sandbox.

The program can read and write all that the user can, use the network and signal other processes. It is never chosen
automatically: only an explicit option takes it, for machines that offer nothing better and for code that is trusted.
The verdict is still computed outside of it.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError, Tier

# What the new interpreter runs: `-I -S` keeps this process's environment, site-packages and folder out of it.
_START = """
import resource, sys
reading, writing, memory, files, seconds = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_FSIZE, (files, files))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path.insert(0, sys.argv[1])
import guest
del sys.path[0]
guest.main(reading, writing)
"""
_GUEST_FOLDER = str(Path(__file__).parent)


class UnsafeProcess:
    """See `rlaif.verifiers.sandbox.base.Process`."""

    def __init__(self, limits: Limits, folder: str) -> None:
        self.limits = limits
        self.folder = folder
        self.deadline = time.monotonic() + limits.seconds
        self.outputs = {1: bytearray(), 2: bytearray()}
        self.flooded = False
        self.late = False

    async def start(self) -> None:
        guest_in, host_out = os.pipe()
        host_in, guest_out = os.pipe()
        limits = self.limits
        numbers = (guest_in, guest_out, limits.memory_mb << 20, limits.file_mb << 20, int(limits.seconds) + 1)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _START, _GUEST_FOLDER, *map(str, numbers)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(guest_in, guest_out),
                cwd=self.folder,
                env={},
                start_new_session=True,
            )
        except BaseException:
            os.close(host_out)
            os.close(host_in)
            raise
        finally:
            os.close(guest_in)
            os.close(guest_out)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        loop = asyncio.get_running_loop()
        self.control_in = asyncio.StreamReader()
        self.reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.control_in), os.fdopen(host_in, "rb", buffering=0)
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(host_out, "wb", buffering=0)
        )
        self.control_out = asyncio.StreamWriter(transport, protocol, None, loop)
        self.drains = [
            asyncio.create_task(self._collect(1, self.process.stdout)),
            asyncio.create_task(self._collect(2, self.process.stderr)),
        ]

    async def _collect(self, descriptor: int, stream: asyncio.StreamReader) -> None:
        kept = self.outputs[descriptor]
        while chunk := await stream.read(1 << 16):
            kept += chunk[: self.limits.output_bytes - len(kept)]
            if len(chunk) and len(kept) >= self.limits.output_bytes:
                self.flooded = True
                self.kill()

    async def write_stdin(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(data)
            await self.process.stdin.drain()
        self.process.stdin.close()

    async def send(self, data: bytes) -> None:
        try:
            self.control_out.write(data)
            await self.control_out.drain()
        except ConnectionResetError:
            raise BrokenPipeError("the guest is gone") from None

    async def receive(self, size: int) -> bytes:
        return await self.control_in.read(size)

    async def wait(self) -> Ending:
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                code = await self.process.wait()
        except TimeoutError:
            self.kill()
            self.late = True
            code = await self.process.wait()
        await asyncio.wait(self.drains, timeout=1)  # a grandchild may hold its standard output open
        if self.flooded:
            return Ending("resource")
        if self.late or code == -signal.SIGXCPU:
            return Ending("timeout")
        return Ending("exited", code) if code >= 0 else Ending("killed", -code)

    @property
    def stdout(self) -> bytes:
        return bytes(self.outputs[1])

    @property
    def stderr(self) -> bytes:
        return bytes(self.outputs[2])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        self.kill()
        await self.process.wait()
        for task in self.drains:
            task.cancel()
        self.reading.close()
        self.control_out.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class UnsafeLauncher:
    """See `rlaif.verifiers.sandbox.base.Launcher`. ``workers``: processes at the same time."""

    tier: Tier = "unsafe"

    def __init__(self, workers: int = 4) -> None:
        self.slots = asyncio.Semaphore(workers)

    async def launch(self, limits: Limits) -> UnsafeProcess:
        await self.slots.acquire()
        folder = ""
        try:
            folder = tempfile.mkdtemp(prefix="rlaif-unsafe-")
            process = _Slotted(limits, folder, self.slots)
            await process.start()
        except BaseException as error:
            self.slots.release()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise SandboxError(f"no process could be started ({error})") from error
            raise
        return process

    async def aclose(self) -> None:
        """Nothing is kept between runs."""


class _Slotted(UnsafeProcess):
    """Gives its slot back when it is closed."""

    def __init__(self, limits: Limits, folder: str, slots: asyncio.Semaphore) -> None:
        super().__init__(limits, folder)
        self.slots: asyncio.Semaphore | None = slots

    async def aclose(self) -> None:
        if self.slots is None:
            return
        slots, self.slots = self.slots, None
        try:
            await super().aclose()
        finally:
            slots.release()
