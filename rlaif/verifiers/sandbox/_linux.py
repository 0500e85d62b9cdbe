"""The few Linux calls the standard library lacks. Each raises OSError with the call's name in it.

Standard library only: the fork-server loads this without the rest of the package.
"""

import ctypes
import os
import platform

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LAST_CAPABILITY = 63  # the kernel refuses those it does not have

# Calls without a wrapper in the C library, by machine; since Linux 5.1 new calls have one number everywhere.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
MACHINES = tuple(_PIVOT_ROOT)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None, name: str = "syscall") -> int:
    """A raw system call; whole numbers are passed as longs."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *passed), name)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind and kind.encode(),
            ctypes.c_ulong(flags),
            data and data.encode(),
        ),
        f"mount {target}",
    )


def set_mount(target: str, attributes: int, *, recursive: bool) -> None:
    """Set MOUNT_ATTR_* of a mount, and with ``recursive`` of all below it. Needs Linux 5.12."""
    packed = b"".join(n.to_bytes(8, "little") for n in (attributes, 0, 0, 0))
    syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE if recursive else 0,
        packed,
        len(packed),
        name=f"mount_setattr {target}",
    )


def pivot_root(new: str, old: str) -> None:
    syscall(_PIVOT_ROOT[platform.machine()], os.fsencode(new), os.fsencode(old), name="pivot_root")


def unmount(target: str) -> None:
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    longs = [ctypes.c_ulong(n) for n in (first, second, 0, 0)]
    _check(_libc.prctl(option, *longs), f"prctl {option}")


def set_filter(program: bytes) -> None:
    """Install a seccomp filter (an array of ``struct sock_filter``) for this process and its children."""
    instructions = ctypes.create_string_buffer(program, len(program))
    packed = (len(program) // 8).to_bytes(8, "little") + ctypes.addressof(instructions).to_bytes(8, "little")
    head = ctypes.create_string_buffer(packed, len(packed))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(head))


def drop_bounding_set() -> None:
    """No program started from here can gain a capability from a file."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last one this kernel has, or no right to: then there is nothing to drop
            return


def drop_capabilities() -> None:
    header = (0x20080522).to_bytes(4, "little") + bytes(4)  # version 3, this process
    _check(_libc.capset(header, bytes(24)), "capset")
