"""The system calls a candidate may not make, as a BPF program for x86-64 and aarch64; no libseccomp needed.

Two filters, and both are in force in a run: the larger one is installed once, in the server that runs are forked from,
and the smaller one, with what the server itself still needs, in each run. (The kernel compiles a filter and tries it on
every call when it is installed: half a millisecond for all of it.)

A deny list, so that ordinary Python (and numpy) runs as it would outside; what the kernel learnt after Linux 5.16 is
"not implemented". A refused call fails with EPERM, so that a program that only asks goes on.
Standard library only.
"""

import errno
import struct

# The machine's number in a filter, and the highest call number known to this table.
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 450  # set_mempolicy_home_node; numbers are the same on both from 424 on
_X32 = 0x40000000

# name: (x86-64, aarch64)
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # the file tree, namespaces, the machine
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "personality": (135, 92),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "get_robust_list": (274, 100),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # new processes and programs
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # parts of the kernel with many holes and no use here
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "sync": (162, 81),  # makes the whole machine wait for its disks
    "syncfs": (306, 267),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "inotify_init": (253, None),  # tells names in folders that may not be read
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # the network: what is left is one connected pair of stream sockets, which asyncio needs
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    # owners, attributes, devices
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
}

# Landlock does not cover these, and outside a private tree they would reach files of the same user.
_DENIED_IN_HOST_TREE: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "truncate": (76, 45),  # before Landlock ABI 3
}

# Refused by a run's own filter: what its server does for it, up to the moment it is installed. (musl forks by fork.)
_SERVER_USES = ("mount", "unshare", "setns", "recvmsg", "pidfd_open", "fork")

_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKETPAIR, _PRCTL, _PRLIMIT, _FCNTL, _IOCTL = (53, 199), (157, 167), (302, 261), (72, 25), (16, 29)
_KILL_LIKE = ((62, 129), (200, 130), (234, 131), (129, 138), (297, 240))  # kill, tkill, tgkill, (rt_)tgsigqueueinfo

_CLONE_THREAD = 0x10000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
_PRCTL_ALLOWED = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (glibc names its memory)
# F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal to anybody when a pipe is ready; F_SETPIPE_SZ: memory that no limit counts
_FCNTL_DENIED = (8, 10, 15, 1031)
_IOCTL_DENIED = (0x8901, 0x8902, 0x5412, 0x541C)  # FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX

_LOAD, _JEQ, _JGT, _JSET, _AND, _RET = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def _op(code: int, k: int, when: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", code, when, otherwise, k)


def _argument(index: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * index)  # the low half: all those looked at here are ints to the kernel


def _among(values: tuple[int, ...], hit: int, miss: int) -> bytes:
    """Return ``hit`` if the loaded word is one of ``values``, else ``miss``."""
    tests = [_op(_JEQ, v, when=len(values) - i) for i, v in enumerate(values)]
    return b"".join(tests) + _op(_RET, miss) + _op(_RET, hit)


def _when(number: int | None, body: bytes) -> bytes:
    """``body`` (which returns) for one call; the call's number is loaded before and after."""
    if number is None:
        return b""
    return _op(_JEQ, number, otherwise=len(body) // 8) + body


def _clone(threads: bool) -> bytes:
    if not threads:
        return _op(_RET, _EPERM)
    return _argument(0) + _op(_JSET, _CLONE_THREAD, otherwise=1) + _op(_RET, _ALLOW) + _op(_RET, _EPERM)


def _stream_pair() -> bytes:
    return (
        _argument(0)
        + _op(_JEQ, _AF_UNIX, when=1)
        + _op(_RET, _EPERM)
        + _argument(1)
        + _op(_AND, _SOCK_TYPE)
        + _among((_SOCK_STREAM,), _ALLOW, _EPERM)
    )


def server_filter(machine: str, *, own_tree: bool) -> bytes:
    """What neither the server nor a run may do. own_tree: a run sees only files of its own."""
    which = _which(machine)
    listed = _DENIED if own_tree else _DENIED | _DENIED_IN_HOST_TREE
    refused = [n for name, numbers in listed.items() if name not in _SERVER_USES and (n := numbers[which]) is not None]
    return (
        _op(_LOAD, _ARCH)
        + _op(_JEQ, _AUDIT[machine], when=1)
        + _op(_RET, _KILL)
        + _op(_LOAD, _NUMBER)
        + _op(_JGT, _X32 - 1, otherwise=1)
        + _op(_RET, _KILL)
        + _op(_JGT, _NEWEST, otherwise=1)
        + _op(_RET, _ENOSYS)
        + _when(_CLONE3[which], _op(_RET, _ENOSYS))  # its flags lie in memory; the C library falls back to clone
        + _among(tuple(refused), _EPERM, _ALLOW)
    )


def run_filter(machine: str, pid: int, *, threads: bool) -> bytes:
    """What a run may not do besides. pid: its own number, the only one it may signal. threads: clone() may make
    threads; never processes."""
    which = _which(machine)
    kills = b"".join(_when(numbers[which], _argument(0) + _among((pid,), _ALLOW, _EPERM)) for numbers in _KILL_LIKE)
    return (
        _op(_LOAD, _NUMBER)
        + b"".join(_when(_DENIED[name][which], _op(_RET, _EPERM)) for name in _SERVER_USES)
        + kills
        + _when(_CLONE[which], _clone(threads))
        + _when(_SOCKETPAIR[which], _stream_pair())
        + _when(_PRCTL[which], _argument(0) + _among(_PRCTL_ALLOWED, _ALLOW, _EPERM))
        + _when(_PRLIMIT[which], _argument(0) + _among((0,), _ALLOW, _EPERM))
        + _when(_FCNTL[which], _argument(1) + _among(_FCNTL_DENIED, _EPERM, _ALLOW))
        + _when(_IOCTL[which], _argument(1) + _among(_IOCTL_DENIED, _EPERM, _ALLOW))
        + _op(_RET, _ALLOW)
    )


def _which(machine: str) -> int:
    return tuple(_AUDIT).index(machine)
