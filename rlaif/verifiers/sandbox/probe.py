"""Which sandbox this machine can give: each tier is really started and attacked before it is believed.

    launcher = open_sandbox(min_tier="lsm")  # the best that holds; InputError if none of that rank does
    manifest["sandbox"] = survey().as_json()  # what was chosen, and why nothing better

Nothing is fallen back to in silence: what was chosen is logged, as a warning where something better is missing, and
``unsafe`` is only taken where it is asked for.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from rlaif.errors import InputError
from rlaif.verifiers.sandbox.base import TIERS, Launcher, Limits, SandboxError, Tier

if TYPE_CHECKING:
    from rlaif.verifiers.sandbox.bwrap import LanguageName

LOCAL: tuple[Literal["ns", "lsm"], ...] = ("ns", "lsm")  # tiers that are tried here, best first
_logger = logging.getLogger(__name__)
_ESCAPES = Path(__file__).with_name("_escapes.py")
_SECRET_NAME = "RLAIF_SANDBOX_PROBE"


@dataclass(frozen=True)
class Trial:
    """One tier, tried. ``why``: empty if it holds, else what stands in its way and how to get it."""

    tier: Tier
    why: str = ""
    notes: list[str] = field(default_factory=list)  # what was done in a way that a reader should know

    @property
    def holds(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Report:
    """What was chosen on which machine; `as_json` goes into a run's manifest."""

    tier: Tier
    missing: dict[str, str]  # better tiers that this machine lacks: why, and how to get them
    landlock_abi: int
    kernel: str
    arch: str
    python: str
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lacking = "".join(f"; no {tier}: {why}" for tier, why in self.missing.items())
        return (
            f"sandbox: tier {self.tier} (Landlock ABI {self.landlock_abi}, Linux {self.kernel}, {self.arch}){lacking}"
        )


def survey(min_tier: Tier | None = None, tier: Tier | None = None, allow_unsafe: bool = False) -> Report:
    """The tier that `open_sandbox` takes with the same arguments. Raises InputError as it does."""
    for name in (min_tier, tier):
        if name is not None and name not in get_args(Tier):
            raise InputError(f"sandbox: there is no tier {name!r}; from the weakest there are: {', '.join(TIERS)}.")
    if tier in ("remote", "interp", "bwrap"):
        raise InputError(f"sandbox: tier {tier!r} does not run Python on this machine; there are: {', '.join(LOCAL)}.")
    missing: dict[str, str] = {}
    taken: Trial | None = None
    for candidate in LOCAL:
        if taken is None and tier in (None, candidate):
            trial = _try(candidate)
            if trial.holds:
                taken = trial
            else:
                missing[candidate] = trial.why
    if tier == "unsafe" or (taken is None and tier is None and allow_unsafe):
        if not allow_unsafe:
            raise InputError("sandbox: tier 'unsafe' is no sandbox; it is only taken with allow_unsafe.")
        taken = Trial("unsafe")
    if taken is None:
        wanted = f"tier {tier!r}" if tier else "no tier"
        raise InputError(f"sandbox: {wanted} {'does not hold' if tier else 'holds'} on this machine: {_told(missing)}")
    refuse_weaker(taken.tier, min_tier, f": {_told(missing)}" if missing else ".")
    return Report(
        tier=taken.tier,
        missing=missing,
        landlock_abi=_landlock_abi(),
        kernel=platform.release(),
        arch=platform.machine(),
        python=platform.python_version(),
        notes=taken.notes,
    )


def open_sandbox(
    min_tier: Tier | None = None,
    tier: Tier | None = None,
    allow_unsafe: bool = False,
    workers: int | None = None,
    remote_url: str | None = None,
) -> Launcher:
    """A launcher of the best tier that holds here, or of ``tier``.

    min_tier: refuse anything weaker. allow_unsafe: processes with limits only, if there is nothing better or if
    ``tier`` says so. workers: runs at the same time; by default one a core. remote_url: of the service, for tier
    "remote", which is taken only where ``tier`` says so. Blocks for a few tenths of a second the
    first time in a process. Raises InputError where there is no such tier, with what to do.
    """
    if tier == "remote":
        return _remote(min_tier, workers, remote_url)
    report = survey(min_tier, tier, allow_unsafe)
    _logger.log(logging.WARNING if report.missing or report.tier == "unsafe" else logging.INFO, "%s", report)
    if report.tier == "unsafe":
        from rlaif.verifiers.sandbox.unsafe import UnsafeLauncher

        _logger.warning("sandbox: programs run WITHOUT isolation: they can read, write and send what this user can.")
        return UnsafeLauncher(workers or os.cpu_count() or 1)
    from rlaif.verifiers.sandbox.launcher import LinuxLauncher

    return LinuxLauncher(cast('Literal["ns", "lsm"]', report.tier), workers)


def _remote(min_tier: Tier | None, workers: int | None, url: str | None) -> Launcher:
    from rlaif.verifiers.sandbox.remote import RemoteLauncher

    refuse_weaker("remote", min_tier)
    if url is None:
        raise InputError("sandbox: tier 'remote' needs remote_url: where the service is (http://host:port).")
    _logger.info("sandbox: tier remote (%s): how well it isolates is that service's affair", url)
    return RemoteLauncher(url, workers or 16)


def open_bubblewrap(language: "LanguageName", min_tier: Tier | None = None, workers: int | None = None) -> Launcher:
    """A launcher of tier ``bwrap``, for programs in a language other than Python; attacked before it is believed.
    Raises InputError where it is missing or does not hold, with what to do."""
    from rlaif.verifiers.sandbox.bwrap import BubblewrapLauncher

    refuse_weaker("bwrap", min_tier)
    launcher = BubblewrapLauncher(language, workers or os.cpu_count() or 1)
    try:
        with _bait() as bait, ThreadPoolExecutor(1) as pool:  # the caller may be inside an event loop
            trying = launcher.trial(Path(bait["file"]), bait["secret"])
            why = pool.submit(asyncio.run, trying).result()
            if Path(bait["file"]).read_text() != bait["secret"]:
                why = "a program in it could write to this machine's files"
    except SandboxError as error:
        why = _explained(str(error).removeprefix("tier bwrap: "))
    if why:
        raise InputError(f"sandbox: tier 'bwrap', which {language} needs, does not hold on this machine: {why}.")
    _logger.info("sandbox: tier bwrap for programs in %s (%s)", language, launcher.bwrap)
    return launcher


def refuse_weaker(tier: Tier, min_tier: Tier | None, detail: str = ".") -> None:
    """Raises InputError where ``tier`` is less than ``min_tier``."""
    if min_tier is not None and _rank(tier) < _rank(min_tier):
        raise InputError(f"sandbox: tier {tier!r} is less than the {min_tier!r} that is asked for{detail}")


def _rank(tier: Tier) -> int:
    return TIERS.index(tier)


def _landlock_abi() -> int:
    if sys.platform != "linux":
        return 0
    from rlaif.verifiers.sandbox import _landlock

    return _landlock.abi()


def _told(missing: dict[str, str]) -> str:
    return "; ".join(f"{tier}: {why}" for tier, why in missing.items()) + "."


@functools.cache
def _try(tier: Literal["ns", "lsm"]) -> Trial:
    if sys.platform != "linux":
        return Trial(tier, f"it needs Linux, and this is {platform.system()}")
    with ThreadPoolExecutor(1) as pool:  # the caller may be inside an event loop
        return pool.submit(lambda: asyncio.run(_attack(tier))).result()


async def _attack(tier: Literal["ns", "lsm"]) -> Trial:
    from rlaif.verifiers.sandbox.launcher import LinuxLauncher

    launcher = LinuxLauncher(tier, 1, guest=_ESCAPES)
    try:
        with _bait() as bait:
            reached, said = await _one(launcher, json.dumps(bait).encode())
        if reached is None:
            return Trial(tier, f"its trial ended without an answer ({said})")
        if reached:
            return Trial(tier, f"it does not hold: a program could {', '.join(reached)}")
    except SandboxError as error:
        return Trial(tier, _explained(str(error).removeprefix(f"tier {tier}: ")))
    finally:
        await launcher.aclose()
    return Trial(tier, notes=launcher.facts["notes"])


async def _one(launcher: Launcher, task: bytes) -> tuple[list[str] | None, str]:
    process = await launcher.launch(Limits(seconds=10.0, memory_mb=256))
    try:
        with contextlib.suppress(BrokenPipeError):
            await process.send(task)
        await process.write_stdin(b"")
        answer = await process.receive(1 << 16)
        ending = await process.wait()
    finally:
        await process.aclose()
    error = process.stderr.decode(errors="replace").strip().splitlines()
    return (json.loads(answer) if answer else None), f"{ending.how} {ending.code}: {error[-1] if error else ''}"


@contextlib.contextmanager
def _bait() -> Iterator[dict[str, Any]]:
    """What there is to be reached on this host while a tier is tried."""
    secret = os.urandom(8).hex()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        file = Path(folder, "file")
        file.write_text(secret)
        for path in (Path(folder), file):
            path.chmod(0o777)  # so that nothing but the tier is in the way
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        local.bind("\0rlaif-" + secret)
        local.listen()
        os.environ[_SECRET_NAME] = secret
        try:
            yield {
                "file": str(file),
                "secret": secret,
                "host": os.getpid(),
                "port": tcp.getsockname()[1],
                "socket": "\0rlaif-" + secret,
            }
        finally:
            del os.environ[_SECRET_NAME]


_HELD_BACK = (
    # a setting that refuses user namespaces, its value then, and what to set
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
)


def _explained(why: str) -> str:
    """What a server could not do, and how this machine could let it."""
    if why.startswith(
        (
            "bwrap: No permissions",
            "bwrap: setting up uid map",
            "new user namespace",
            "new mount namespace",
            "make a new root",
            "write uid_map",
            "show ",
        )
    ):
        for path, value, cure in _HELD_BACK:
            with contextlib.suppress(OSError):
                if Path(path).read_text().strip() == value:
                    return f"{why} (this system refuses user namespaces; as root: {cure})"
        return f"{why} (in a container, let it make namespaces, as with --security-opt seccomp=unconfined)"
    return why
