"""The filter's program, run by a small interpreter of BPF: both machines' tables can be tested on either."""

import errno
import re
import struct
from pathlib import Path

import pytest

from rlaif.verifiers.sandbox import _seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
MACHINES = {"x86_64": 0, "aarch64": 1}
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "mmap": (9, 222),
    "exit_group": (231, 94),
    "futex": (202, 98),
}


def verdict(
    machine: str, number: int, arguments: tuple[int, ...] = (), *, threads: bool = False, own_tree: bool = True
) -> int:
    """What a run is told: the kernel asks both filters, and the stricter one has its way."""
    data = struct.pack("<IIQ6Q", number, ARCH[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    filters = (
        _seccomp.server_filter(machine, own_tree=own_tree),
        _seccomp.run_filter(machine, PID, threads=threads),
    )
    told = [interpret(program, data) for program in filters]
    return next((strict for strict in (KILL, EPERM, ENOSYS) if strict in told), ALLOW)


def interpret(program: bytes, data: bytes) -> int:
    instructions = list(struct.iter_unpack("<HBBI", program))
    at = word = 0
    while True:
        code, when, otherwise, k = instructions[at]
        at += 1
        match code:
            case 0x20:
                (word,) = struct.unpack_from("<I", data, k)
            case 0x15:
                at += when if word == k else otherwise
            case 0x25:
                at += when if word > k else otherwise
            case 0x45:
                at += when if word & k else otherwise
            case 0x54:
                word &= k
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_table_is_refused_and_ordinary_ones_are_not(machine: str) -> None:
    which = MACHINES[machine]
    for name, numbers in _seccomp._DENIED.items():
        if (number := numbers[which]) is not None:
            assert verdict(machine, number) == EPERM, name
    for name, number in ((n, v[which]) for n, v in ALLOWED.items()):
        assert verdict(machine, number) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_the_rights_and_times_of_files_are_out_of_reach_where_the_hosts_tree_is_in_sight(machine: str) -> None:
    for name, numbers in _seccomp._DENIED_IN_HOST_TREE.items():
        if (number := numbers[MACHINES[machine]]) is not None:
            assert verdict(machine, number, own_tree=False) == EPERM, name
            assert verdict(machine, number) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_newer_than_the_table_and_of_other_machines_do_not_pass(machine: str) -> None:
    assert verdict(machine, 451) == ENOSYS
    assert verdict(machine, 467) == ENOSYS
    if machine == "x86_64":
        assert verdict(machine, 0x40000000 + 39) == KILL
    program = _seccomp.server_filter(machine, own_tree=True)
    for other in {*ARCH.values(), 0x40000003} - {ARCH[machine]}:
        assert interpret(program, struct.pack("<IIQ6Q", 0, other, 0, *[0] * 6)) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_threads_where_they_are_allowed_and_processes_never(machine: str) -> None:
    clone, clone3 = (numbers[MACHINES[machine]] for numbers in (_seccomp._CLONE, _seccomp._CLONE3))
    thread, process = (0x3D0F00,), (0x11,)
    assert verdict(machine, clone, thread, threads=True) == ALLOW
    assert verdict(machine, clone, process, threads=True) == EPERM
    assert verdict(machine, clone, thread) == EPERM
    assert verdict(machine, clone3) == ENOSYS  # the C library then uses clone, whose flags can be read


@pytest.mark.parametrize("machine", MACHINES)
def test_signals_and_limits_are_for_the_process_itself(machine: str) -> None:
    which = MACHINES[machine]
    for numbers in _seccomp._KILL_LIKE:
        assert verdict(machine, numbers[which], (PID,)) == ALLOW
        for other in (0, 1, PID + 1, 2**64 - 1):
            assert verdict(machine, numbers[which], (other,)) == EPERM
    assert verdict(machine, _seccomp._PRLIMIT[which], (0,)) == ALLOW
    assert verdict(machine, _seccomp._PRLIMIT[which], (PID + 1,)) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_of_sockets_only_a_pair_of_unix_streams_is_left(machine: str) -> None:
    pair = _seccomp._SOCKETPAIR[MACHINES[machine]]
    assert verdict(machine, pair, (1, 1)) == ALLOW
    assert verdict(machine, pair, (1, 1 | 0o2000000)) == ALLOW  # close-on-exec
    assert verdict(machine, pair, (1, 2)) == EPERM  # a datagram socket could send to any address
    assert verdict(machine, pair, (2, 1)) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_that_reach_others_are_refused(machine: str) -> None:
    which = MACHINES[machine]
    assert verdict(machine, _seccomp._PRCTL[which], (1,)) == EPERM  # the parent-death signal stays
    assert verdict(machine, _seccomp._PRCTL[which], (15,)) == ALLOW
    assert verdict(machine, _seccomp._FCNTL[which], (0, 8)) == EPERM
    assert verdict(machine, _seccomp._FCNTL[which], (0, 3)) == ALLOW
    assert verdict(machine, _seccomp._IOCTL[which], (0, 0x5412)) == EPERM
    assert verdict(machine, _seccomp._IOCTL[which], (0, 0x5401)) == ALLOW


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", re.MULTILINE)
    true = {name: int(number) for name, number in pattern.findall(HEADERS[machine].read_text())}
    listed = {**_seccomp._DENIED, **_seccomp._DENIED_IN_HOST_TREE}
    listed |= {"clone": _seccomp._CLONE, "clone3": _seccomp._CLONE3, "socketpair": _seccomp._SOCKETPAIR}
    listed |= {
        "prctl": _seccomp._PRCTL,
        "prlimit64": _seccomp._PRLIMIT,
        "fcntl": _seccomp._FCNTL,
        "ioctl": _seccomp._IOCTL,
    }
    names = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
    listed |= dict(zip(names, _seccomp._KILL_LIKE, strict=True))
    wrong = {
        name: (numbers[MACHINES[machine]], true.get(name))
        for name, numbers in listed.items()
        if numbers[MACHINES[machine]] != true.get(name)
    }
    # calls of other machines stand in the generic header too
    assert not wrong
