"""Landlock: which files a process may open, that it may not connect, and that it may not signal others.

Rights that an older kernel does not know are left out (`ABI` table below); what then closes the gap is the seccomp
filter. Standard library only. Source: the kernel's ``Documentation/userspace-api/landlock.rst``.
"""

import os

from rlaif.verifiers.sandbox import _linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14

READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE

# All file rights by ABI: 1 has 13, 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_FILES_LATEST = (1 << 16) - 1
_BIND_AND_CONNECT_TCP = 3  # ABI 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # ABI 6
_NO_AUDIT_RECORDS = 1  # ABI 7: a candidate must not be able to fill the machine's audit log


def abi() -> int:
    """The kernel's Landlock version, 0 where there is none (or it is switched off)."""
    try:
        return _linux.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG, name="landlock_create_ruleset")
    except OSError:
        return 0


def restrict(rules: list[tuple[int, int]], version: int) -> None:
    """Allow only ``rules``, pairs of an O_PATH descriptor and rights beneath it. Needs no-new-privileges."""
    handled = _FILES.get(version, _FILES_LATEST)
    attributes = [handled, _BIND_AND_CONNECT_TCP if version >= 4 else 0]
    if version >= 6:
        attributes.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    packed = b"".join(n.to_bytes(8, "little") for n in attributes)
    if version < 4:
        packed = packed[:8]
    ruleset = _linux.syscall(_CREATE_RULESET, packed, len(packed), 0, name="landlock_create_ruleset")
    try:
        for fd, rights in rules:
            rule = (rights & handled).to_bytes(8, "little") + fd.to_bytes(4, "little")
            _linux.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0, name="landlock_add_rule")
        flags = _NO_AUDIT_RECORDS if version >= 7 else 0
        _linux.syscall(_RESTRICT_SELF, ruleset, flags, name="landlock_restrict_self")
    finally:
        os.close(ruleset)
