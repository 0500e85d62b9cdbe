"""The fork-server of the tiers ``ns`` and ``lsm``: a clean interpreter that forks one isolated process a run.

It is started by `launcher` with an empty environment and one socket, before any task is loaded, so nothing of the
host's memory is in it. It never sees a candidate's code, input or output either: descriptors and limits are all that
it is given, and the program comes to the run itself through them. A run gets

===============  ==================================================  ================================================
                 ns                                                  lsm
===============  ==================================================  ================================================
files            its own tree: the interpreter's libraries (read     the host's tree, of which it can open only the
                 only), three devices, a small tmpfs of its own      interpreter's libraries and devices; no own folder
processes        its own PID namespace, in which it is number 1      no signal to any other, no view through /proc
network          an empty network namespace                          no sockets (seccomp), no TCP (Landlock)
user             an unused one if root, in a user namespace          an unused one if root, else the host's
both             session of its own, resource limits, no capabilities, no-new-privileges, Landlock, a seccomp filter
                 (no processes or programs, no sockets, none of the kernel's administration), empty environment
===============  ==================================================  ================================================

Not covered: holes of the kernel itself; side channels (timing, caches, shared processor load); names, sizes and times
of files the user may look up (lsm only: ``stat`` is not a Landlock right); the kernel's version and, in lsm, the
host's name; how much processor time runs at once may use (that is the number of workers); memory of the kernel on
behalf of a run beyond its address space and files (pipes, page tables). The memory limit is one of address space.

Standard library only, and little of it (not even pathlib): the package's other modules are not imported.
"""
# ruff: noqa: PTH102, PTH103, PTH106, PTH110, PTH112, PTH116, PTH119, PTH120, PTH123, PTH211

import contextlib
import fcntl
import gc
import importlib
import json
import math
import os
import platform
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rlaif.verifiers.sandbox import _landlock, _linux, _seccomp

# What candidates use most; an import that is made here costs nothing in a run.
PRELOADED = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "hashlib"),
    *("heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "typing"),
)
DEVICES = ("null", "urandom", "zero")
WORK = "/sandbox"
_MAX_FILES = 512  # in its folder
_MAX_THREADS = 64
_MAX_DESCRIPTORS = 128
_OLD = "/.old"
_UNUSED_UIDS = (0x70000000, 60000)  # where nobody has users: above systemd's ranges; within a container's 65,536
_LIBRARIES = 5  # the one descriptor besides 0-4 that a run may have; see `_reach_libraries_by_descriptor`


class SetupError(Exception):
    """This machine does not let the tier be built; the message names the step."""


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(f"{what}: {error.strerror or error}") from error


@dataclass
class Zygote:
    """What a run needs to know of the server it is forked from."""

    tier: str
    host: socket.socket
    pid_namespace: int = -1  # a descriptor of the server's own, ns only
    private_user: bool = False  # no other process has this user (or this user namespace)
    landlock: int = 0
    readable: list[int] = field(default_factory=list)  # O_PATH descriptors of folders
    devices: list[int] = field(default_factory=list)
    kept: int = _LIBRARIES  # a run's descriptors end before this one
    notes: list[str] = field(default_factory=list)


def main() -> None:
    settings = json.loads(sys.argv[1])
    # the numbers that a run's descriptors take are kept free of ours; 2 stays the host's until all is set up
    host = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10))
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, *range(3, _LIBRARIES + 1)):
        os.dup2(null, number)
    os.environ.clear()
    os.umask(0o022)
    try:
        zygote = Zygote(settings["tier"], host)
        if platform.machine() not in _linux.MACHINES:
            raise SetupError(f"no table of system calls for {platform.machine()}")
        with step("watch the host"):
            host_process = os.pidfd_open(settings["host"])
        if os.getppid() != settings["host"]:
            os._exit(0)  # it is gone already, and its number may be another's
        zygote.landlock = min(_landlock.abi(), settings["landlock"])
        if zygote.tier == "lsm":
            _reach_libraries_by_descriptor(zygote)
        main_of_guest = _load_guest(settings["guest"])
        libraries = _libraries()
        gc.collect()
        gc.freeze()  # collections in a run leave these pages shared
        if zygote.tier == "ns":
            _enter_namespaces(zygote, libraries, host_process)
        else:
            _become_nobody(zygote, libraries)
        with step("install a seccomp filter"):
            _linux.prctl(_linux.PR_SET_NO_NEW_PRIVS, 1)
            _linux.set_filter(_seccomp.server_filter(platform.machine(), own_tree=zygote.tier == "ns"))
    except SetupError as error:
        host.send(json.dumps({"failed": str(error)}).encode())
        os._exit(1)
    os.dup2(null, 2)
    for name in [n for n in sys.modules if n.partition(".")[0] == "rlaif"]:
        del sys.modules[name]  # a run finds the standard library and the guest, and no package that is half there
    ready = {"landlock": zygote.landlock, "uid": os.getuid(), "notes": zygote.notes}
    host.send(json.dumps({"ready": ready}).encode())
    _serve(zygote, main_of_guest, host_process)


def _load_guest(path: str) -> Any:
    sys.path.insert(0, os.path.dirname(path))
    guest = importlib.import_module(os.path.basename(path).removesuffix(".py"))
    del sys.path[0]
    for name in PRELOADED:
        importlib.import_module(name)
    return guest.main


# ------------------------------------------------------------------------------------------------ building the tiers


def _libraries() -> list[str]:
    """Folders the interpreter and its extension modules are loaded from, none inside another."""
    found = {os.path.dirname(os.__file__)}
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if path.startswith("/") and ".so" in path:
                found.add(os.path.dirname(path))
    # where /usr is merged the loader still looks under the old names, and where it is not, under both
    twins = {f[4:] if f.startswith("/usr/lib") else f"/usr{f}" for f in found if f.startswith(("/lib", "/usr/lib"))}
    found |= {t for t in twins if os.path.isdir(t)}
    return [f for f in sorted(found) if not any(f.startswith(f"{other}/") for other in found)]


def _reach_libraries_by_descriptor(zygote: Zygote) -> None:
    """Where root's interpreter lies in a folder that only root may pass (~root/.pyenv), and root is given up.

    A run then reaches the standard library as /proc/self/fd/5: an O_PATH descriptor passes by the closed folder, and
    nothing else; Landlock still says what may be opened.
    """
    home = os.path.dirname(os.__file__)
    if os.getuid() != 0 or not _closed_to_others(home):
        return
    os.dup2(os.open(home, os.O_PATH), _LIBRARIES)
    zygote.kept = _LIBRARIES + 1
    zygote.notes.append(f"{home} is closed to other users: its modules are reached by a descriptor")
    new = f"/proc/self/fd/{_LIBRARIES}"
    sys.path[:] = [p.replace(home, new) for p in sys.path]
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [str(p).replace(home, new) for p in module.__path__]
    sys.path_importer_cache.clear()


def _closed_to_others(path: str) -> bool:
    parents = [path[:i] for i in range(1, len(path)) if path[i] == "/"]
    return not all(os.stat(p).st_mode & 1 for p in (*parents, path))


def _may_mount() -> bool:
    """Whether this root is one that may make a mount namespace; then it is in a new one."""
    try:
        _linux.unshare(_linux.CLONE_NEWNS)
    except OSError:
        return False
    return True


def _unused_uid() -> int:
    return _UNUSED_UIDS[0] + os.getpid() % (1 << 22)


def _give_up_root(zygote: Zygote) -> None:
    """Become a user that nobody else is, so that not even limits counted by user are shared.

    Where root may not (a container of one user, CAP_SETUID dropped), runs stay its number, without its capabilities.
    """
    for uid in (_unused_uid(), _UNUSED_UIDS[1] + os.getpid() % 1000):  # the second where users end at 65,535
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            _linux.prctl(_linux.PR_SET_DUMPABLE, 1)  # or its own entries in /proc would be root's
            zygote.private_user = True
            return
    zygote.notes.append("no other user can be become here: runs are user 0 without capabilities")


def _open_readable(zygote: Zygote, libraries: list[str]) -> None:
    with step("open the libraries"):
        zygote.readable = [os.open(path, os.O_PATH) for path in libraries]
        zygote.devices = [os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES]


def _become_nobody(zygote: Zygote, libraries: list[str]) -> None:
    if not zygote.landlock:
        raise SetupError("Landlock is not in this kernel, or is switched off (add it to lsm= at boot; Linux 5.13)")
    _open_readable(zygote, libraries)
    if os.getuid() == 0:
        _give_up_root(zygote)
    _linux.drop_bounding_set()


def _enter_namespaces(zygote: Zygote, libraries: list[str], host_process: int) -> None:
    """Move into namespaces of our own and fork there; the process outside stays to guard the one inside."""
    others = _linux.CLONE_NEWPID | _linux.CLONE_NEWNS | _linux.CLONE_NEWIPC | _linux.CLONE_NEWUTS | _linux.CLONE_NEWNET
    proc = os.open("/proc", os.O_PATH)
    as_root = os.getuid() == 0 and _may_mount()
    if as_root:
        # the tree is made as root, who may read the interpreter wherever it lies; then root is given up
        _build_tree(libraries)
        _give_up_root(zygote)
    elif os.getuid() == 0 and not _closed_to_others(os.path.dirname(os.__file__)):
        _give_up_root(zygote)
    uid, gid = os.getuid(), os.getgid()
    with step("new user namespace"):
        _linux.unshare(_linux.CLONE_NEWUSER | others)
    _map_user(proc, uid, gid)
    if not as_root:
        _build_tree(libraries)
    with contextlib.suppress(OSError):
        _linux.unshare(_linux.CLONE_NEWCGROUP)
    with step("set the host's name"):
        socket.sethostname("sandbox")
    pid = os.fork()
    if pid:
        zygote.host.close()
        _guard(pid, host_process)
    _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    with step("open the PID namespace"):
        zygote.pid_namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    _open_readable(zygote, libraries)
    zygote.private_user = True
    _linux.drop_bounding_set()


def _map_user(proc: int, uid: int, gid: int) -> None:
    """The namespace has one user, of the same number inside and outside."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with step(f"write {name}"):
            fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)


def _build_tree(libraries: list[str]) -> None:
    """A root of its own: read-only libraries, three devices, an empty folder for each run's files. No /proc."""
    bind = _linux.MS_BIND | _linux.MS_REC
    closed = _linux.MOUNT_ATTR_RDONLY | _linux.MOUNT_ATTR_NOSUID
    with step("make a new root"):
        _linux.mount("none", "/", None, _linux.MS_REC | _linux.MS_PRIVATE)
        _linux.mount("sandbox", "/tmp", "tmpfs", _linux.MS_NOSUID | _linux.MS_NODEV, "size=1m,mode=0755")
        os.chdir("/tmp")
        os.mkdir("." + _OLD)
        _linux.pivot_root(".", "." + _OLD)
        os.chdir("/")
    for folder in libraries:
        with step(f"show {folder}"):
            os.makedirs(folder, exist_ok=True)
            _linux.mount(_OLD + folder, folder, None, bind)
            _linux.set_mount(folder, closed | _linux.MOUNT_ATTR_NODEV, recursive=True)
    os.mkdir("/dev")
    for name, source in [(f"/dev/{d}", f"{_OLD}/dev/{d}") for d in DEVICES]:
        with step(f"show {name}"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
            _linux.mount(source, name, None, bind)
            _linux.set_mount(name, closed | _linux.MOUNT_ATTR_NOEXEC, recursive=True)
    cache = "/etc/ld.so.cache"
    if os.path.exists(_OLD + cache):
        with step(f"show {cache}"):
            os.mkdir("/etc")
            os.close(os.open(cache, os.O_CREAT | os.O_WRONLY))
            _linux.mount(_OLD + cache, cache, None, bind)
            _linux.set_mount(cache, closed | _linux.MOUNT_ATTR_NODEV, recursive=True)
    with step("close the new root"):
        os.mkdir(WORK)
        if not os.path.exists("/tmp"):  # no libraries lie there
            os.symlink(WORK, "/tmp")
        _linux.unmount(_OLD)
        os.rmdir(_OLD)
        _linux.set_mount("/", closed | _linux.MOUNT_ATTR_NODEV, recursive=False)


def _guard(zygote: int, host_process: int) -> NoReturn:
    """Wait outside: the namespace must not outlive the host, however that ends."""
    watched = os.pidfd_open(zygote)
    os.closerange(0, 3)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(host_process, select.POLLIN)
    if watched not in [fd for fd, _ in poll.poll()]:
        os.kill(zygote, signal.SIGKILL)
    os.waitpid(zygote, 0)
    os._exit(0)


# ------------------------------------------------------------------------------------------------------------- runs


def _serve(zygote: Zygote, guest: Any, host_process: int) -> NoReturn:
    """One run after another until the host is gone."""
    idle = select.poll()
    idle.register(zygote.host, select.POLLIN)
    idle.register(host_process, select.POLLIN)
    while True:
        if zygote.host.fileno() not in [fd for fd, _ in idle.poll()]:
            os._exit(0)
        message, received, _, _ = socket.recv_fds(zygote.host, 1 << 12, 5)
        if not message:
            os._exit(0)
        if message == b"kill":  # too late: that run is over and told
            continue
        limits = json.loads(message)
        deadline = time.monotonic() + limits["seconds"]
        report = _run(zygote, guest, received, limits, deadline, idle)
        zygote.host.send(json.dumps(report).encode())


def _run(
    zygote: Zygote,
    guest: Any,
    received: list[int],
    limits: dict[str, Any],
    deadline: float,
    events: select.poll,
) -> dict[str, Any]:
    """Fork, wait until it ends or has to; what became of it."""
    told, tell = os.pipe()
    parent = os.getpid()
    try:
        if zygote.pid_namespace >= 0:
            _linux.setns(zygote.pid_namespace, _linux.CLONE_NEWPID)  # or the next one would be made inside the last
            _linux.unshare(_linux.CLONE_NEWPID)
        pid = os.fork()
    except OSError as error:
        for fd in (told, tell, *received):
            os.close(fd)
        return {"failed": f"fork: {error}"}
    if not pid:
        _become_run(zygote, guest, received, limits, tell, parent)
    for fd in (tell, *received):
        os.close(fd)
    killed = _watch(zygote, pid, deadline, events)
    _, status, usage = os.wait4(pid, 0)
    said = os.read(told, 1 << 12)
    os.close(told)
    if said != b"\n" and killed != "asked":  # said before the first line of the program, which cannot bring it about
        return {"failed": said.decode(errors="replace") or f"it ended while it was prepared (status {status})"}
    cpu = usage.ru_utime + usage.ru_stime
    return {"status": status, "late": killed == "late", "cpu": cpu, "memory_mb": usage.ru_maxrss >> 10}


def _watch(zygote: Zygote, pid: int, deadline: float, events: select.poll) -> str:
    """Until it has ended; why it was killed: "late", "asked" (by the host) or not at all ("")."""
    process = os.pidfd_open(pid)
    events.register(process, select.POLLIN)
    killed = ""
    try:
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready = [fd for fd, _ in events.poll(None if killed else math.ceil(left * 1000))]
            if process in ready:
                return killed
            if not ready:
                killed = "late"
            elif zygote.host.fileno() in ready and zygote.host.recv(16) == b"kill":
                killed = killed or "asked"
            else:  # the host is gone, or says what it should not
                os.kill(pid, signal.SIGKILL)
                os._exit(1)
            os.kill(pid, signal.SIGKILL)
    finally:
        events.unregister(process)
        os.close(process)


def _become_run(
    zygote: Zygote,
    guest: Any,
    received: list[int],
    limits: dict[str, Any],
    tell: int,
    parent: int,
) -> NoReturn:
    """The forked process: give up everything, then be the guest."""
    try:
        _isolate(zygote, limits, parent)
        for number, fd in enumerate(received):
            os.dup2(fd, number)
        os.write(tell, b"\n")
        os.closerange(zygote.kept, 1 << 16)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it and this process end
        os.write(tell, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    code = 1
    try:
        guest(3, 4)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    except BaseException:  # noqa: BLE001 - the program's own end, as the interpreter would report it
        with contextlib.suppress(Exception):
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code & 0xFF)


def _isolate(zygote: Zygote, limits: dict[str, Any], parent: int) -> None:
    own_tree = zygote.tier == "ns"
    os.setsid()
    if own_tree:
        _linux.unshare(_linux.CLONE_NEWNS | _linux.CLONE_NEWIPC)
        size = f"size={limits['file_mb']}m,nr_inodes={_MAX_FILES},mode=0700"
        _linux.mount("work", WORK, "tmpfs", _linux.MS_NOSUID | _linux.MS_NODEV | _linux.MS_NOEXEC, size)
        os.chdir(WORK)
    else:
        _linux.prctl(_linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.chdir("/")
    _set_limits(limits, private_user=zygote.private_user)
    _linux.drop_capabilities()
    if zygote.landlock:
        rules = [(fd, _landlock.READ) for fd in zygote.readable]
        rules += [(fd, _landlock.READ_FILE | _landlock.WRITE_FILE) for fd in zygote.devices]
        if own_tree:
            rules.append((os.open(WORK, os.O_PATH), _landlock.WRITE))
        _landlock.restrict(rules, zygote.landlock)
    _linux.set_filter(_seccomp.run_filter(platform.machine(), os.getpid(), threads=limits["threads"]))


def _set_limits(limits: dict[str, Any], *, private_user: bool) -> None:
    cpu = math.ceil(limits["seconds"]) + 1  # wall-clock is what counts; this is for a server that is gone
    most = {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: limits["file_mb"] << 20,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _MAX_DESCRIPTORS,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_STACK: 8 << 20,
    }
    if private_user:  # counted by user; the filter forbids processes either way
        most[resource.RLIMIT_NPROC] = _MAX_THREADS if limits["threads"] else 1
    for what, value in most.items():
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(what, (value, value))
