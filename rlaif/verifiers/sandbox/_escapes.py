"""A guest that tries to get out: what `probe` runs to see whether a tier holds on this machine.

It reads what there is to reach (one line of JSON) and answers with the names of what it reached. A handful of attempts,
one for each wall; the whole list of attacks is in the tests. Standard library only.
"""

import ctypes
import json
import os
import socket
from collections.abc import Callable
from typing import Any

_MORE_THAN_ALLOWED = 1 << 30
_SEIZE = 0x4206  # of ptrace: attach without stopping it


def main(control_in: int, control_out: int) -> None:
    there = json.loads(os.read(control_in, 1 << 16))
    tries: dict[str, Callable[[], Any]] = {
        "read a file of the host": lambda: os.open(there["file"], os.O_RDONLY),
        "write a file of the host": lambda: os.open(there["file"], os.O_WRONLY),
        "make a file on the host": lambda: os.open(there["file"] + ".new", os.O_WRONLY | os.O_CREAT),
        "change a file's rights": lambda: os.chmod(there["file"], 0o777),  # noqa: PTH101
        "read another process": lambda: os.open(f"/proc/{there['host']}/environ", os.O_RDONLY),
        "see the host's environment": lambda: _found(there["secret"] in repr(dict(os.environ))),
        "open a connection": lambda: socket.create_connection(("127.0.0.1", there["port"]), 1),
        "reach a unix socket": lambda: socket.socket(socket.AF_UNIX).connect(there["socket"]),
        "signal another process": lambda: os.kill(there["host"], 0),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "start a process": _fork,
        "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "trace another process": lambda: _done(ctypes.CDLL(None, use_errno=True).ptrace(_SEIZE, there["host"], 0, 0)),
        "make a namespace": lambda: _done(ctypes.CDLL(None, use_errno=True).unshare(0x10000000)),
        "use an inherited descriptor": lambda: _found(any(_open(fd) for fd in range(6, 256))),
        "take more memory than allowed": lambda: bytearray(_MORE_THAN_ALLOWED),
    }
    reached = [name for name, attempt in tries.items() if _succeeds(attempt)]
    os.write(control_out, json.dumps(reached).encode())


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, MemoryError, LookupError):
        return False
    return True


def _found(it: bool) -> None:
    if not it:
        raise LookupError


def _done(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
