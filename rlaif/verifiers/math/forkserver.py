"""The processes that run computer algebra: a fork-server with sympy loaded, and the workers it forks.

The host (pool.py) starts the fork-server once; a worker is then a fork of some milliseconds, not an import of a second,
so that killing one costs nothing. A worker reads hostile text, so it has little: an address space of `MEMORY_MB`, no
core file, no writing, few descriptors, processor time for one question at a time, and where the kernel has them
no-new-privileges, no capabilities, Landlock (read the interpreter's libraries, nothing else) and a seccomp filter.
What of these holds is told in the greeting.

Not covered: a hole in CPython, sympy or the kernel; two workers are of one user (Landlock, where there is any, keeps
signals apart).

Protocol. Control socket: host sends ``F`` with a descriptor (a worker's socket), gets ``{"pid": n}``; or ``K`` and a
pid, gets ``{"ended": status}``. At the end of file everything is killed. Worker socket: one JSON line a question,
``{"gold", "pred"}``; lines back: ``{"read": "gold"}``, ``{"read": "pred"}``, then ``{"equal": bool}``; or
``{"unreadable": which, "detail"}``, ``{"exhausted": which}``. So the host knows which of the two a worker hung on.
"""

import contextlib
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

MEMORY_MB = 1024
_CPU_SECONDS = 30  # for one question; the host's deadline is far below, this is for when the host is gone


def main(descriptor: int) -> NoReturn:
    """The fork-server. ``descriptor``: its control socket."""
    host = os.getppid()
    control = socket.socket(fileno=descriptor)
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's; we end when it does
    try:
        from rlaif.verifiers.math import algebra

        algebra.warm_up()
        confinement = _confine_files()
    except Exception as error:  # told to the host, who raises it  # noqa: BLE001
        _send(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    gc.collect()
    gc.freeze()
    _send(control, {"ready": confinement})
    _serve(control, host)


def _serve(control: socket.socket, host: int) -> NoReturn:
    workers: set[int] = set()
    while True:
        # A process the host forked may hold the other end open, so that no end of file comes: look for the host too.
        while not select.select([control], [], [], 1.0)[0]:
            if os.getppid() != host:
                _end(workers)
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        except OSError:
            _end(workers)
        if not message:
            _end(workers)
        if message[:1] == b"F":
            pid = os.fork()
            if pid == 0:
                _become_worker(control, descriptors[0])
            os.close(descriptors[0])
            workers.add(pid)
            _send(control, {"pid": pid})
        else:
            pid = int(message[1:])
            status = 0
            if pid in workers:  # not reaped before, so the number is still its own
                workers.discard(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
            _send(control, {"ended": status})


def _end(workers: set[int]) -> NoReturn:
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _send(to: socket.socket, message: dict[str, Any]) -> None:
    to.sendall(json.dumps(message).encode() + b"\n")


# --------------------------------------------------------------------------------------------------------- a worker


def _become_worker(control: socket.socket, descriptor: int) -> NoReturn:
    try:
        control.close()
        _confine_process(descriptor)
        _answer_questions(descriptor)
    finally:
        os._exit(1)


def _answer_questions(descriptor: int) -> None:
    from rlaif.verifiers.math.algebra import Sympy

    with open(descriptor, "rb", buffering=1 << 16) as questions, open(descriptor, "wb", 0, closefd=False) as replies:

        def reply(message: dict[str, Any]) -> None:
            replies.write(json.dumps(message).encode() + b"\n")

        algebra = Sympy()
        for line in questions:
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + _CPU_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
            if len(algebra._values) > 512:
                algebra = Sympy()
            reply(_answer(json.loads(line), algebra, reply))


def _answer(question: dict[str, str | None], algebra: Any, reply: Any) -> dict[str, Any]:
    from rlaif.verifiers.math.algebra import NotMathematics
    from rlaif.verifiers.math.answers import leaves_of
    from rlaif.verifiers.math.compare import equal
    from rlaif.verifiers.math.parse import TooComplex, Unreadable, parse

    stage, answers = "gold", []
    try:
        for stage in ("gold", "pred"):
            text = question[stage]
            if text is None:  # only the reference is looked at
                break
            answers.append(parse(text))
            for leaf in leaves_of(answers[-1]):
                algebra.value(leaf)
            reply({"read": stage})
        return {"equal": equal(answers[0], answers[-1], algebra)}
    except (NotMathematics, Unreadable, TooComplex) as error:
        return {"unreadable": stage, "detail": str(error)}
    except (MemoryError, RecursionError):
        return {"exhausted": stage}
    except Exception as error:  # a mistake of ours: told, and never a verdict  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:500]}


# ---------------------------------------------------------------------------------------------------- confinement


_seccomp_holds = False  # set by the fork-server before it forks a worker


def _confine_files() -> list[str]:
    """What holds for the fork-server and so for all workers. Returns what was applied, and what workers will add."""
    global _seccomp_holds
    applied = ["limits"]
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return applied
    from rlaif.verifiers.sandbox import _landlock, _linux, _seccomp

    _linux.prctl(_linux.PR_SET_NO_NEW_PRIVS, 1)
    # A layer that is refused here (by the kernel, or by a sandbox around us) is not in the list.
    with contextlib.suppress(OSError):
        if version := _landlock.abi():
            _landlock.restrict([(fd, _landlock.READ) for fd in _libraries()], version)
            applied.append(f"landlock {version}")
    with contextlib.suppress(OSError):
        _linux.set_filter(_seccomp.server_filter(platform.machine(), own_tree=False))
        applied.append("seccomp")
        _seccomp_holds = True
    return applied


def _libraries() -> list[int]:
    """Descriptors of the folders that Python imports from; workers close them."""
    folders = {Path(folder).resolve() for folder in [*sys.path, str(Path(os.__file__).parent)] if folder}
    return [os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in folders if folder.is_dir()]


def _confine_process(descriptor: int) -> None:
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, 256)
    with contextlib.suppress(OSError):
        os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    sys.setrecursionlimit(3000)
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return
    from rlaif.verifiers.sandbox import _linux, _seccomp

    _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # the fork-server died before that
    _linux.drop_capabilities()
    if _seccomp_holds:
        _linux.set_filter(_seccomp.run_filter(platform.machine(), os.getpid(), threads=False))
