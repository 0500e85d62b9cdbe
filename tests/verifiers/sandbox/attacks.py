"""Attacks on a sandbox, each with what must become of it; and a program that runs them all in one tier.

    python attacks.py <folder of the package rlaif> <ns | lsm | none> [attack ...]

"lsm@1" is tier ``lsm`` as on a kernel whose Landlock has version 1.

It needs the standard library only, so that it also runs as a user who has nothing else. It prints one JSON object:
``{"attacks": {id: what happened}, "before": {...}, "after": {...}}``. Each attack is followed by an honest program in
the same server.
"""
# ruff: noqa: E501, PTH101, PTH110, PTH116, PTH208

import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "hunter2-of-the-host"

# An attack returns what it got hold of; nothing, or an exception, is a failure of the attack.
FRAME = """
import ctypes, errno, os, platform, resource, signal, socket, struct, sys, time
H = {facts!r}
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def call(x86, arm, *arguments):
    got = libc.syscall(x86 if X86 else arm, *arguments)
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ("call", x86, got)
def any_of(*attempts):
    got = []
    for attempt in attempts:
        try:
            got.append(attempt())
        except Exception:
            pass
    return [g for g in got if g]
def read(path):
    with open(path, "rb") as file:
        return file.read(200) or b"(empty)"
def write(path):
    with open(path, "wb") as file:
        return path if file.write(b"x") else None
def attack():
{body}
try:
    got = attack()
except BaseException as error:
    print("contained:", type(error).__name__, str(error)[:80])
else:
    print("ESCAPED: " + repr(got)[:300] if got else "contained")
"""
HONEST = "import math, json\nprint(json.dumps({'sum': sum(range(10)), 'root': math.isqrt(49)}))"
HONEST_SAYS = b'{"sum": 45, "root": 7}\n'

EXITED = ("exited",)
DEAD = ("exited", "killed")
LATE = ("timeout",)
ANY = ("exited", "killed", "timeout", "resource")


@dataclass(frozen=True)
class Attack:
    id: str
    what: str
    body: str
    ends: tuple[str, ...] = EXITED
    then: str = ""  # a second run, which must find nothing
    seconds: float = 3.0
    threads: bool = False


ISOLATION = [
    Attack("I01", "read /etc/passwd", "return read('/etc/passwd')"),
    Attack("I02", "read /etc/shadow", "return read('/etc/shadow')"),
    Attack(
        "I03",
        "look into home folders",
        """
        def others(folder):  # than the way to the interpreter
            return [name for name in os.listdir(folder) if name not in os.__file__]
        return any_of(*[lambda p=p: others(p) for p in (H["home"], H["home"] + "/.ssh", "/root", "/home")])
        """,
    ),
    Attack("I04", "read a file of the host", "return read(H['file'])"),
    Attack(
        "I05",
        "find a secret in the environment",
        """
        import posix
        libc.getenv.restype = ctypes.c_char_p
        raw = ctypes.cast(ctypes.c_void_p.in_dll(libc, "environ"), ctypes.POINTER(ctypes.c_char_p))
        strings, at = [], 0
        while raw and raw[at]:
            strings.append(raw[at])
            at += 1
        seen = repr((dict(os.environ), posix.environ, libc.getenv(b"FAKE_TOKEN"), strings))
        return seen if "FAKE" in seen or H["secret"] in seen else None
        """,
    ),
    Attack(
        "I06",
        "read the environment in /proc",
        "return any_of(lambda: read('/proc/self/environ'), lambda: read(f\"/proc/{H['server']}/environ\"))",
    ),
    Attack(
        "I07",
        "read other processes in /proc",
        """
        pids = (os.getppid(), H["server"], H["host"], H["decoy"], 1)
        return any_of(*[lambda n=f"/proc/{p}/{f}": read(n) for p in pids for f in ("cmdline", "mem", "maps", "status")])
        """,
    ),
    Attack(
        "I08",
        "write outside",
        """
        names = [H["folder"] + "/new", H["file"], "/var/tmp/rlaif-escape", "/dev/shm/rlaif-escape", "/rlaif-escape"]
        return any_of(*[lambda n=n: write(n) for n in names], lambda: os.mkdir(H["folder"] + "/made") or "mkdir",
                      lambda: os.rename(H["file"], H["file"] + "2") or "rename",
                      lambda: os.unlink(H["file"]) or "unlink", lambda: os.truncate(H["file"], 0) or "truncate")
        """,
    ),
    Attack(
        "I09",
        "write into the interpreter's packages",
        """
        home = os.path.dirname(os.__file__)
        return any_of(*[lambda n=n: write(n) for n in (home + "/site-packages/evil.pth", home + "/evil.py", os.__file__)])
        """,
    ),
    Attack("I10", "write to /usr", "return any_of(lambda: write('/usr/evil'), lambda: write('/usr/lib/evil'))"),
    Attack(
        "I11",
        "connect to a server on this machine",
        "return socket.create_connection(('127.0.0.1', H['tcp']), 1).getpeername()",
    ),
    Attack(
        "I12",
        "send a datagram, ask a name server",
        """
        def send():
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", H["udp"]))
        return any_of(send, lambda: socket.getaddrinfo("example.com", 80), lambda: socket.socket(socket.AF_NETLINK))
        """,
    ),
    Attack(
        "I13",
        "reach unix sockets by name",
        """
        def stream(name):
            other = socket.socket(socket.AF_UNIX)
            other.connect(name)
            return 'connected'
        def pair():
            one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            return one.sendto(b"x", "\\0" + H["abstract"] + "-dgram")
        return any_of(lambda: stream("\\0" + H["abstract"]), lambda: stream(H["path_socket"]), pair)
        """,
    ),
    Attack(
        "I14",
        "kill another process of the user",
        """
        decoy = H["decoy"]
        return any_of(lambda: os.kill(decoy, 9) or "kill", lambda: call(234, 131, decoy, decoy, 9),
                      lambda: call(200, 130, decoy, 9), lambda: signal.pidfd_send_signal(os.pidfd_open(decoy), 9) or 1,
                      lambda: call(129, 138, decoy, 9, ctypes.create_string_buffer(struct.pack("iii", 9, 0, -1), 128)))
        """,
    ),
    Attack(
        "I15",
        "kill the parent, or the process group",
        """
        return any_of(lambda: os.kill(os.getppid(), 9) or "parent", lambda: os.kill(H["server"], 9) or "server",
                      lambda: os.kill(H["host"], 15) or "host", lambda: os.kill(0, 15) or "group",
                      lambda: os.killpg(H["group"], 9) or "host's group")
        """,
        DEAD,
    ),
    Attack("I16", "kill everybody", "return os.kill(-1, 9) or 'killed'", DEAD),
    Attack(
        "I17",
        "trace another process",
        "return any_of(*[lambda p=p: call(101, 117, 16, p, 0, 0) for p in (H['decoy'], H['server'], os.getppid())],"
        " lambda: call(101, 117, 0, 0, 0, 0))",
    ),
    Attack(
        "I18",
        "read another process's memory",
        """
        room = ctypes.create_string_buffer(64)
        local, remote = struct.pack("PP", ctypes.addressof(room), 64), struct.pack("PP", id(room), 64)
        return any_of(*[lambda p=p: call(310, 270, p, local, 1, remote, 1, 0) for p in (H["decoy"], H["server"])])
        """,
    ),
    Attack("I19", "make a user namespace", "return call(272, 97, 0x10000000)"),
    Attack(
        "I20",
        "mount",
        "return any_of(lambda: call(165, 40, b'x', b'/', b'tmpfs', 0, 0), lambda: call(428, 428, -100, b'/', 1),"
        " lambda: call(166, 39, b'/dev', 2), lambda: call(430, 430, b'tmpfs', 0))",
    ),
    Attack(
        "I21",
        "become root, change the root",
        "return any_of(lambda: os.setuid(0) or os.getuid() == 0 and H['uid'] != 0 and 'root',"
        " lambda: os.chroot('/') or 'chroot', lambda: os.setgroups([0]) or 'groups')",
    ),
    Attack("I22", "io_uring", "return call(425, 425, 1, ctypes.create_string_buffer(256))"),
    Attack("I23", "bpf", "return call(321, 280, 0, ctypes.create_string_buffer(128), 128)"),
    Attack(
        "I24",
        "keys",
        "return any_of(lambda: call(250, 219, 0, -3, 1), lambda: call(248, 217, b'user', b'k', b'v', 1, -3))",
    ),
    Attack("I25", "perf", "return call(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0)"),
    Attack("I26", "userfaultfd", "return any_of(lambda: call(323, 282, 1), lambda: call(323, 282, 0))"),
    Attack(
        "I27",
        "raise limits",
        """
        def raised(what):
            soft, hard = resource.getrlimit(what)
            resource.setrlimit(what, (hard, hard * 2 + 1))
            return what
        names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_STACK")
        return any_of(*[lambda n=n: raised(getattr(resource, n)) and n for n in names])
        """,
    ),
    Attack(
        "I28",
        "clone into new namespaces",
        """
        flags = 0x10000000 | 0x20000
        arguments = struct.pack("11Q", flags, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
        def child(got):
            if got[2] == 0:
                os._exit(0)
            return got
        return any_of(lambda: child(call(435, 435, arguments, 88)), lambda: child(call(56, 220, flags | 17, 0, 0, 0, 0)),
                      lambda: child(call(56, 220, 17, 0, 0, 0, 0)), lambda: child(call(56, 220, 0x10000 | 17, 0, 0, 0, 0)))
        """,
    ),
    Attack(
        "I29",
        "use descriptors it inherited",
        """
        def there(fd):
            try:
                return bool(os.fstat(fd))
            except OSError:
                return False
        extra = [fd for fd in range(5, 70000) if there(fd)]
        if H["tier"] == "lsm" and extra == [5]:  # the standard library, to look names up in
            up = "../" * 20
            return any_of(lambda: os.open(up + H["file"][1:], os.O_RDONLY, dir_fd=5), lambda: os.listdir(5),
                          lambda: os.open("../../../../..", os.O_RDONLY, dir_fd=5),
                          lambda: os.open(up + "root/.profile", os.O_RDONLY, dir_fd=5))
        return extra
        """,
    ),
    Attack(
        "I30",
        "run a shell",
        """
        import subprocess
        line = f"echo ESCAPED; echo x > {H['folder']}/shell"
        return any_of(lambda: subprocess.run(["/bin/sh", "-c", line]), lambda: os.system(line) == 0,
                      lambda: os.posix_spawn("/bin/sh", ["sh", "-c", line], {}),
                      lambda: os.execv("/bin/sh", ["sh", "-c", line]))
        """,
    ),
    Attack(
        "I31",
        "leave a file for the next run",
        "any_of(*[lambda n=n: write(n) for n in ('left', '/tmp/left-by-a-run', '/dev/shm/left')])",
        then="return any_of(*[lambda n=n: read(n) for n in ('left', '/tmp/left-by-a-run', '/dev/shm/left')],"
        " lambda: H['tier'] == 'ns' and os.listdir('.'))",
    ),
    Attack(
        "I32",
        "leave shared memory for the next run",
        """
        any_of(lambda: call(29, 194, 4711, 4096, 0o1666), lambda: call(240, 180, b"/left", 0o102, 0o666, 0))
        from multiprocessing import shared_memory
        any_of(lambda: shared_memory.SharedMemory("left", create=True, size=64))
        """,
        then="return any_of(lambda: call(29, 194, 4711, 4096, 0), lambda: call(240, 180, b'/left', 2, 0, 0),"
        " lambda: read('/dev/shm/left'))",
    ),
    Attack(
        "I33",
        "open devices",
        """
        names = ("mem", "kmsg", "kvm", "fuse", "tty", "ptmx", "sda", "vda", "nvme0n1", "net/tun", "shm")
        return any_of(*[lambda n=n: read("/dev/" + n) for n in names], lambda: os.mknod("d", 0o020666, 0x103) or "mknod")
        """,
    ),
    Attack(
        "I34",
        "escape by a link",
        """
        any_of(lambda: os.symlink("/etc/passwd", "link"), lambda: os.symlink("/", "up"))
        names = ("link", "up" + H["file"], "../../../../.." + H["file"], "/sandbox/../../.." + H["file"],
                 "/proc/1/root" + H["file"], f"/proc/{H['server']}/root" + H["file"], "/.old" + H["file"])
        return any_of(*[lambda n=n: read(n) for n in names], lambda: os.link(H["file"], "hard") or "link")
        """,
    ),
    Attack(
        "I35",
        "take the processor",
        """
        return any_of(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or "fifo",
                      lambda: os.setpriority(os.PRIO_PROCESS, 0, -5) or "priority", lambda: os.nice(-5) < 0 and "nice",
                      lambda: os.sched_setaffinity(H["decoy"], [0]) or "affinity")
        """,
    ),
    Attack(
        "I36",
        "rename the machine, set the clock",
        "return any_of(lambda: socket.sethostname('mine') or 'name', lambda: time.clock_settime(0, 0) or 'clock',"
        " lambda: call(164, 170, struct.pack('QQ', 0, 0), 0))",
    ),
    Attack(
        "I37",
        "leave a daemon",
        """
        def daemon():
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)
            return "forked"
        import subprocess
        return any_of(daemon, lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]),
                      lambda: os.forkpty())
        """,
    ),
    Attack(
        "I38",
        "leave data in the server's memory",
        """
        import builtins, json
        builtins.left = sys.left = json.left = os.environ["LEFT"] = "here"
        """,
        then="import builtins, json\nreturn [m for m in (builtins, sys, json) if hasattr(m, 'left')] or "
        "os.environ.get('LEFT')",
    ),
    # Beyond the list: what Landlock does not cover where the host's tree is in sight, and ways to signal.
    Attack(
        "I39",
        "change the rights, times or attributes of a file",
        """
        return any_of(lambda: os.chmod(H["file"], 0o777) or "chmod", lambda: os.utime(H["file"], (0, 0)) or "utime",
                      lambda: os.setxattr(H["file"], "user.x", b"1") or "xattr", lambda: os.chown(H["file"], -1, -1) or "chown",
                      lambda: call(452, 452, -100, H["file"].encode(), 0o777, 0))
        """,
    ),
    Attack(
        "I40",
        "change the limits or memory of another process",
        "return any_of(lambda: resource.prlimit(H['decoy'], resource.RLIMIT_CPU, (1, 1)) or 'prlimit',"
        " lambda: call(440, 440, os.pidfd_open(H['decoy']), 0, 0, 0, 0))",
    ),
    Attack(
        "I41",
        "have the kernel signal another process",
        """
        import fcntl
        end, other = os.pipe()
        def owned():
            fcntl.fcntl(end, fcntl.F_SETOWN, H["decoy"])
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            os.write(other, b"x")
            return "sigio"
        return any_of(owned, lambda: fcntl.ioctl(end, 0x8901, struct.pack("i", H["decoy"])) == 0 and "FIOSETOWN")
        """,
    ),
    Attack("I42", "outlive the server", "return libc.prctl(1, 0, 0, 0, 0) == 0 and 'no parent-death signal'"),
    Attack(
        "I43",
        "watch a folder of the host",
        "return any_of(lambda: call(254, 27, libc.inotify_init(), H['folder'].encode(), 0xfff), lambda: call(300, 262, 0, 0))",
    ),
    Attack(
        "I44",
        "enter the 32-bit or x32 calls, which the filter's numbers do not mean",
        """
        import mmap
        if not X86:
            return None
        room = mmap.mmap(-1, 4096, prot=7)
        room.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid by int 0x80
        got = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()
        return ("int 0x80", got) if got > 0 else None
        """,
        ("exited", "killed"),
    ),
    Attack("I45", "x32 calls", "return call(0x40000000 + 39, 172)", ("exited", "killed")),
    Attack(
        "I46",
        "use capabilities",
        """
        header, data = struct.pack("II", 0x20080522, 0), ctypes.create_string_buffer(24)
        libc.capget(header, data)
        return any(data.raw) and data.raw.hex()
        """,
    ),
    Attack(
        "I47",
        "enter another process's namespaces",
        "return any_of(*[lambda p=p: os.open(f'/proc/{p}/ns/mnt', os.O_RDONLY) for p in (1, H['decoy'], H['server'])],"
        " lambda: call(308, 268, 0, 0))",
    ),
]

DENIAL = [
    Attack("D01", "fork without end", "while True:\n    os.fork()", ANY),
    Attack(
        "D02",
        "500 threads",
        """
        import threading
        for _ in range(500):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        return "500 threads"
        """,
        ANY,
    ),
    Attack("D02t", "500 threads where threads are allowed", "", ANY, threads=True),
    Attack("D03", "take all memory", "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 24))", ANY),
    Attack(
        "D04",
        "take all memory in many processes",
        """
        for _ in range(10):
            os.fork()
        hoard = []
        while True:
            hoard.append(bytearray(1 << 24))
        """,
        ANY,
    ),
    Attack(
        "D05",
        "fill the disk",
        """
        wrote = 0
        try:
            for n in range(200):
                with open(f"fill{n}", "wb") as file:
                    for _ in range(16):
                        wrote += file.write(bytes(1 << 20))
        except OSError as error:
            pass
        return wrote > 17 << 20 and wrote
        """,
        ANY,
    ),
    Attack(
        "D06",
        "fill the inodes",
        """
        made = 0
        try:
            for n in range(100000):
                open(f"i{n}", "w").close()
                made += 1
        except OSError:
            pass
        return made > 1000 and made
        """,
        ANY,
    ),
    Attack("D07", "print without end", "while True:\n    os.write(1, b'x' * 65536)", ("resource",)),
    Attack("D07e", "print errors without end", "while True:\n    os.write(2, b'x' * 65536)", ("resource",)),
    Attack("D08", "spin", "while True:\n    pass", LATE, seconds=0.4),
    Attack("D09", "sleep", "time.sleep(1000)", LATE, seconds=0.4),
    Attack(
        "D10",
        "ignore signals and swallow exceptions",
        """
        for number in range(1, 65):
            any_of(lambda: signal.signal(number, signal.SIG_IGN))
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except BaseException:
                pass
        """,
        LATE,
        seconds=0.4,
    ),
    Attack("D11", "9**9**9**9 in C", "return 9**9**9**9 and None", ANY, seconds=0.4),
    Attack(
        "D12",
        "recurse without end",
        """
        sys.setrecursionlimit(1 << 30)
        class Deep:
            def __repr__(self):
                return repr(self)
        repr(Deep())
        """,
        ANY,
        seconds=2,
    ),
    Attack("D13", "crash", "ctypes.string_at(0)", ("killed",)),
    Attack("D14", "close the result pipe", "os.close(4)\nos.close(3)\nos.closerange(0, 100)", ANY),
    Attack("D14w", "fill the result pipe", "while True:\n    os.write(4, b'\\0garbage\\n' * 10000)", LATE, seconds=0.4),
    Attack("D15", "stop itself", "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)", LATE, seconds=0.4),
    Attack("D16", "a million brackets", "compile('(' * 10**6 + ')' * 10**6, 'x', 'eval')", ANY),
    Attack("D16a", "a deep tree", "compile('-' * 10**5 + '1', 'x', 'eval')", ANY),
    Attack(
        "D16b",
        "a compiler bomb",
        "compile('(1<<19**8,)*4**1', 'x', 'eval')\ncompile('((1,)*10**8,)*10**8', 'x', 'eval')",
        ANY,
    ),
    Attack("D16c", "a huge source", "compile('x = 1\\n' * 10**5, 'x', 'exec')\nreturn None", ANY),
    Attack("D17", "exit", "sys.exit(0)"),
    Attack("D17o", "exit at once", "os._exit(0)"),
    Attack("D18", "kill itself", "os.kill(os.getpid(), signal.SIGKILL)\nos.abort()", ("killed",)),
    Attack(
        "D19",
        "large pipes",
        """
        import fcntl
        for _ in range(500):
            for fd in os.pipe():
                any_of(lambda: fcntl.fcntl(fd, 1031, 1 << 20))
        return "500 pipes"
        """,
    ),
    Attack("D20", "memory in unnamed files", "return any_of(lambda: os.memfd_create('x'), lambda: call(447, 447, 0))"),
    Attack(
        "D21",
        "have a timer kill it, as if from outside",
        """
        event = struct.pack("QiiQ", 0, 9, 0, 0) + bytes(40)
        timer = ctypes.c_void_p()
        libc.timer_create(0, event, ctypes.byref(timer))
        libc.timer_settime(timer, 0, struct.pack("QQQQ", 0, 0, 0, 1000), None)
        time.sleep(0.2)
        """,
        ("exited", "killed"),
    ),
]
_threads = next(a for a in DENIAL if a.id == "D02").body
DENIAL = [Attack(a.id, a.what, _threads, a.ends, threads=True) if a.id == "D02t" else a for a in DENIAL]
ATTACKS = [*ISOLATION, *DENIAL]


def source(body: str, facts: dict[str, Any]) -> bytes:
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ") or "    pass"
    return FRAME.format(facts=facts, body=lines).encode() + b"\0"


def stub_packages(folder: str) -> None:
    """Import the sandbox without its packages' own imports."""
    for name, path in (
        ("rlaif", ""),
        ("rlaif.verifiers", "/verifiers"),
        ("rlaif.verifiers.sandbox", "/verifiers/sandbox"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [folder + path]
        sys.modules[name] = package


class Host:
    """What there is on a host to be attacked: files, sockets, a process of the same user, a secret."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="rlaif-attacked-")
        os.chmod(self.folder, 0o777)
        self.file = self.folder + "/file"
        Path(self.file).write_text(SECRET)
        os.chmod(self.file, 0o666)
        self.before = os.stat(self.file)
        os.environ["FAKE_TOKEN"] = "FAKE-" + SECRET
        self.decoy = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        abstract = f"rlaif-attacked-{os.getpid()}"
        self.listeners = [self._listen(socket.AF_INET, ("127.0.0.1", 0)), self._listen(socket.AF_UNIX, "\0" + abstract)]
        self.listeners.append(self._listen(socket.AF_UNIX, self.folder + "/socket"))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind("\0" + abstract + "-dgram")
        self.facts: dict[str, Any] = {
            "file": self.file,
            "folder": self.folder,
            "home": str(Path.home()),
            "secret": SECRET,
            "tcp": self.listeners[0].getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": abstract,
            "path_socket": self.folder + "/socket",
            "decoy": self.decoy.pid,
            "host": os.getpid(),
            "group": os.getpgrp(),
            "uid": os.getuid(),
        }

    @staticmethod
    def _listen(family: int, address: Any) -> socket.socket:
        listener = socket.socket(family)
        listener.bind(address)
        listener.listen()
        return listener

    def harm(self) -> list[str]:
        """What an attack has changed here."""
        found = []
        now = os.stat(self.file) if os.path.exists(self.file) else None
        if now is None or (now.st_mode, now.st_mtime, now.st_size) != (
            self.before.st_mode,
            self.before.st_mtime,
            self.before.st_size,
        ):
            found.append("the file was changed")
        if sorted(os.listdir(self.folder)) != ["file", "socket"]:
            found.append(f"new files: {os.listdir(self.folder)}")
        if self.decoy.poll() is not None:
            found.append("the other process was killed")
        for receiver in (self.udp, self.datagrams):
            receiver.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                found.append(f"a datagram came: {receiver.recv(10)!r}")
        return found

    def close(self) -> None:
        self.decoy.kill()
        self.decoy.wait()
        for each in (*self.listeners, self.udp, self.datagrams):
            each.close()
        shutil.rmtree(self.folder)


def of_us(marker: str) -> list[int]:
    """Processes with ``marker`` in their command line."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and marker.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def left_behind() -> dict[str, int]:
    """Counts that must be the same before and after."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "shared memory": len(Path("/proc/sysvipc/shm").read_text().splitlines()),
        "servers": len(of_us(f'"host": {os.getpid()}')),
    }


async def run(launcher: Any, code: bytes, **limits: Any) -> tuple[Any, bytes, bytes]:
    from rlaif.verifiers.sandbox.base import Limits

    process = await launcher.launch(Limits(**limits))
    try:
        with contextlib.suppress(BrokenPipeError):
            await process.send(code)
        await process.write_stdin(b"")
        ending = await process.wait()
        return ending, process.stdout, process.stderr
    finally:
        await process.aclose()


async def attack_all(tier: str, chosen: list[Attack]) -> dict[str, Any]:
    from rlaif.verifiers.sandbox.launcher import LinuxLauncher

    guest = Path(__file__).parent / "tiny_guest.py"
    tier, _, version = tier.partition("@")
    launcher = LinuxLauncher(tier, 1, guest=guest, python=sys.executable, landlock=int(version or 99))  # type: ignore[arg-type]
    results: dict[str, Any] = {}
    host = Host()
    try:
        await run(launcher, HONEST.encode() + b"\0")
        server = launcher._slots[0].server
        assert server is not None
        facts = {**host.facts, "server": server.process.pid, "tier": tier}
        for attack in chosen:
            began = time.monotonic()
            limits = {"seconds": attack.seconds, "threads": attack.threads}
            ending, out, err = await run(launcher, source(attack.body, facts), **limits)
            took = time.monotonic() - began
            if attack.then:
                _, out, err = await run(launcher, source(attack.then, facts))
            _, honest, _ = await run(launcher, HONEST.encode() + b"\0")
            same = launcher._slots[0].server
            results[attack.id] = {
                "ending": ending.how,
                "out": out[-400:].decode(errors="replace"),
                "err": err[-400:].decode(errors="replace"),
                "seconds": round(took, 3),
                "honest": honest == HONEST_SAYS,
                "same server": same is server and server.process.poll() is None,
                "harm": host.harm(),
            }
    finally:
        await launcher.aclose()
        host.close()
    return results


def attack_unguarded(chosen: list[Attack]) -> dict[str, str]:
    """The same programs with nothing around them: what they print when they succeed. Only for those that do no harm."""
    said = {}
    for attack in chosen:
        host = Host()
        try:
            code = source(attack.body, {**host.facts, "server": os.getpid(), "tier": "none"})[:-1].decode()
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=20)
            said[attack.id] = done.stdout + done.stderr
        finally:
            host.close()
    return said


def main() -> None:
    folder, tier = sys.argv[1:3]
    chosen = [a for a in ATTACKS if not sys.argv[3:] or a.id in sys.argv[3:]]
    if tier == "none":
        print(json.dumps({"attacks": attack_unguarded(chosen)}))
        return
    stub_packages(folder)
    asyncio.run(asyncio.sleep(0))  # what the event loop keeps open is not a leak
    before = left_behind()
    results = asyncio.run(attack_all(tier, chosen))
    for _ in range(40):  # the kernel ends a namespace's processes a moment after their guard
        after = left_behind()
        if after == before:
            break
        time.sleep(0.05)
    print(json.dumps({"attacks": results, "before": before, "after": after, "machine": platform.machine()}))


if __name__ == "__main__":
    main()
