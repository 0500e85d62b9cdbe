"""What a sandbox is: a place where untrusted Python runs, and bytes are all that comes out.

Two layers, so that each can be tested alone:

* A **tier** (`Launcher`) starts an isolated process that runs ``guest.main(3, 4)`` and nothing else. It knows nothing
  of verdicts. Tiers: ``ns`` (namespaces, Landlock, seccomp), ``lsm`` (Landlock, seccomp), ``unsafe`` (limits only).
* A **guest** (guest.py, standard library only) reads what to do from descriptor 3, runs it, and answers on descriptor
  4 in plain tagged JSON; session.py is its other end, and trusts none of it.

Expected values and tests never enter the process, nor one that it was forked from: fork-servers start before any task
is loaded.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, Protocol

TIERS = (
    "unsafe",
    "remote",
    "interp",
    "bwrap",
    "lsm",
    "ns",
)  # from the weakest; a tier named ``min_tier`` or a later one will do
Tier = Literal["unsafe", "remote", "interp", "bwrap", "lsm", "ns"]


@dataclass(frozen=True)
class Limits:
    """What one run may use. Seconds are wall-clock, counted from the moment the process is started for it."""

    seconds: float = 5.0
    memory_mb: int = 512  # address space
    output_bytes: int = 1 << 20  # standard output and error, each; the rest is a "resource" ending
    reply_bytes: int = 8 << 20  # one message of the guest
    file_mb: int = 16  # all files in the scratch folder together
    threads: bool = False  # may start threads (never processes)


Ended = Literal[
    "exited",  # by itself, whatever its code
    "killed",  # by a signal: its own, or the kernel's for a forbidden call
    "timeout",  # by us, at the deadline
    "resource",  # by us or the kernel, for memory or output
]


@dataclass(frozen=True)
class Ending:
    how: Ended
    code: int | None = None  # exit code ("exited") or signal number ("killed")


class Process(Protocol):
    """One isolated process. All methods are for one asyncio loop; ``aclose`` kills it and everything it started."""

    async def write_stdin(self, data: bytes) -> None:
        """Give it all of its standard input, then the end of file. Returns early if it stops reading."""
        ...

    async def send(self, data: bytes) -> None:
        """Bytes to its descriptor 3. Raises BrokenPipeError when it is gone."""
        ...

    async def receive(self, size: int) -> bytes:
        """Up to ``size`` bytes from its descriptor 4; b"" at the end."""
        ...

    async def wait(self) -> Ending:
        """How it ended; enforces the deadline."""
        ...

    @property
    def stdout(self) -> bytes:
        """What it has written so far, at most ``output_bytes``; complete after `wait`."""
        ...

    @property
    def stderr(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Launcher(Protocol):
    """A tier. Use one for many runs: it keeps warm fork-servers. Runs at the same time are bounded by ``workers``."""

    tier: Tier

    def launch(self, limits: Limits) -> Awaitable[Process]:
        """Start a process that runs the guest. Waits for a free worker; the deadline starts after that. Raises
        SandboxError when the machinery fails (never because of what the guest does)."""
        ...

    async def aclose(self) -> None: ...


class SandboxError(Exception):
    """The sandbox itself failed; retrying may help. Becomes ``Unverified(reason="infrastructure")``."""
