"""The pool of fork-servers: what a run is given and gives back; nothing is lost or left when things go wrong."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError
from rlaif.verifiers.sandbox.launcher import LinuxLauncher, Server
from tests.verifiers.sandbox.attacks import left_behind, of_us, run
from tests.verifiers.sandbox.test_attacks import TIERS, why_not
from tests.verifiers.sandbox.users import HERE, PACKAGE

GUEST = HERE / "tiny_guest.py"
ECHO = """
import os
os.write(4, b"ready")
while line := os.read(3, 1 << 16):
    os.write(4, line.upper())
os.write(4, b"bye")
"""


def program(source: str) -> bytes:
    return source.encode() + b"\0"


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Literal["ns", "lsm"]:
    if reason := why_not(request.param):
        pytest.skip(reason)
    name: Literal["ns", "lsm"] = request.param
    return name


@pytest.fixture
async def launcher(tier: Literal["ns", "lsm"]) -> AsyncIterator[LinuxLauncher]:
    made = LinuxLauncher(tier, 1, guest=GUEST)
    yield made
    await made.aclose()


def server_of(launcher: LinuxLauncher) -> Server:
    server = launcher._slots[0].server
    assert server is not None
    return server


def eventually(condition: Any, seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


async def test_a_program_reads_its_input_and_its_output_errors_and_code_come_out(launcher: LinuxLauncher) -> None:
    process = await launcher.launch(Limits())
    await process.send(program("import sys\nprint(input()[::-1])\nprint('no', file=sys.stderr)\nsys.exit(7)"))
    await process.write_stdin(b"abc\n")
    assert await process.wait() == Ending("exited", 7)
    assert (process.stdout, process.stderr) == (b"cba\n", b"no\n")
    await process.aclose()


async def test_messages_go_both_ways_while_it_runs_and_end_when_it_ends(launcher: LinuxLauncher) -> None:
    process = await launcher.launch(Limits())
    await process.send(program(ECHO))
    await process.write_stdin(b"")
    assert await process.receive(100) == b"ready"
    for word in (b"one", b"two"):
        await process.send(word)
        assert await process.receive(100) == word.upper()
    process._close(process._control_in)
    assert await process.receive(100) == b"bye"
    assert await process.receive(100) == b""
    assert await process.wait() == Ending("exited", 0)
    with pytest.raises(BrokenPipeError):
        await process.send(b"more")
    await process.aclose()


async def test_what_it_sent_last_can_be_received_after_its_end(launcher: LinuxLauncher) -> None:
    process = await launcher.launch(Limits())
    await process.send(program("import os\nos.write(4, b'last words')"))
    await process.wait()
    assert (await process.receive(100), await process.receive(100)) == (b"last words", b"")
    await process.aclose()


async def test_input_that_is_never_read_does_not_hold_the_host(launcher: LinuxLauncher) -> None:
    process = await launcher.launch(Limits())
    await process.send(program("print('done')"))
    await process.write_stdin(bytes(8 << 20))
    assert await process.wait() == Ending("exited", 0)
    await process.aclose()


async def test_output_up_to_the_limit_is_kept_and_one_byte_more_is_an_ending(launcher: LinuxLauncher) -> None:
    ending, out, _ = await run(launcher, program("print('x' * 999)"), output_bytes=1000)
    assert (ending.how, len(out)) == ("exited", 1000)
    ending, out, _ = await run(launcher, program("print('x' * 1000)"), output_bytes=1000)
    assert (ending.how, len(out)) == ("resource", 1000)


async def test_time_counts_from_the_start_of_a_run_and_not_from_its_place_in_the_queue(launcher: LinuxLauncher) -> None:
    one = run(launcher, program("import time\ntime.sleep(0.3)"), seconds=0.6)
    endings = await asyncio.gather(
        *[one, *(run(launcher, program("import time\ntime.sleep(0.3)"), seconds=0.6) for _ in "12")]
    )
    assert [e.how for e, _, _ in endings] == ["exited"] * 3


async def test_memory_is_limited_by_what_the_run_was_given(launcher: LinuxLauncher) -> None:
    code = program("try:\n    bytearray(48 << 20)\n    print('got it')\nexcept MemoryError:\n    print('refused')")
    assert (await run(launcher, code, memory_mb=256))[1] == b"got it\n"
    assert (await run(launcher, code, memory_mb=64))[1] == b"refused\n"


async def test_threads_run_where_they_are_allowed(launcher: LinuxLauncher) -> None:
    code = program("import threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\nt.join()")
    assert (await run(launcher, code, threads=True))[1] == b"hi\n"
    assert b"can't start new thread" in (await run(launcher, code))[2]


async def test_the_whole_standard_library_can_be_imported(launcher: LinuxLauncher) -> None:
    code = "import asyncio, csv, email.mime.text, encodings.idna, sqlite3, ssl, unittest, uuid, xml.etree.ElementTree"
    ending, _, error = await run(launcher, program(code + "\nasyncio.run(asyncio.sleep(0))"))
    assert (ending, error) == (Ending("exited", 0), b"")


async def test_a_program_sees_no_package_but_the_standard_library(launcher: LinuxLauncher) -> None:
    code = """
import importlib.util, sys
found = [name for name in ("rlaif", "pydantic", "numpy") if name in sys.modules or importlib.util.find_spec(name)]
print(found)
"""
    assert (await run(launcher, program(code)))[1] == b"[]\n"


async def test_a_set_has_the_same_order_in_every_server(tier: Literal["ns", "lsm"]) -> None:
    said = set()
    for _ in range(2):
        launcher = LinuxLauncher(tier, 1, guest=GUEST)
        said.add((await run(launcher, program("print({'a', 'b', 'c', 'd', 'e', 'f'})")))[1])
        await launcher.aclose()
    assert len(said) == 1


async def test_a_server_that_was_killed_is_replaced(launcher: LinuxLauncher) -> None:
    await run(launcher, program(""))
    first = server_of(launcher).process.pid
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.05)
    assert (await run(launcher, program("print(1)")))[1] == b"1\n"
    assert server_of(launcher).process.pid != first


async def test_a_server_that_dies_under_a_run_is_our_failure_and_no_ending(launcher: LinuxLauncher) -> None:
    process = await launcher.launch(Limits())
    await process.send(program("import time\ntime.sleep(100)"))
    os.kill(server_of(launcher).process.pid, signal.SIGKILL)
    assert await process.receive(100) == b""
    with pytest.raises(SandboxError):
        await process.wait()
    await process.aclose()
    assert (await run(launcher, program("print(1)")))[1] == b"1\n"


async def test_a_server_is_replaced_after_its_share_of_runs(tier: Literal["ns", "lsm"]) -> None:
    launcher = LinuxLauncher(tier, 1, guest=GUEST, runs_per_server=2)
    servers = set()
    for _ in range(5):
        process = await launcher.launch(Limits())
        servers.add(server_of(launcher).process.pid)
        await process.aclose()
    assert len(servers) == 3
    await launcher.aclose()


async def test_runs_at_the_same_time_are_bounded_by_the_workers(tier: Literal["ns", "lsm"]) -> None:
    launcher = LinuxLauncher(tier, 2, guest=GUEST)
    now = most = 0

    async def one() -> None:
        nonlocal now, most
        process = await launcher.launch(Limits())
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        await process.aclose()

    await asyncio.gather(*(one() for _ in range(12)))
    assert most == 2
    await launcher.aclose()


async def test_a_cancelled_run_or_wait_for_one_gives_its_place_back(launcher: LinuxLauncher) -> None:
    sleeper = asyncio.ensure_future(run(launcher, program("import time\ntime.sleep(100)"), seconds=100))
    waiting = asyncio.ensure_future(run(launcher, program("")))
    await asyncio.sleep(0.2)
    waiting.cancel()
    sleeper.cancel()
    await asyncio.wait((sleeper, waiting))
    assert (await run(launcher, program("print(1)")))[1] == b"1\n"


async def test_one_launcher_serves_the_loops_of_several_threads(launcher: LinuxLauncher) -> None:
    said: list[bytes] = []

    async def several() -> None:
        for _ in range(5):
            said.append((await run(launcher, program("print(1)")))[1])

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(3)]
    for thread in threads:
        thread.start()
    await several()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert said == [b"1\n"] * 20


async def test_closing_ends_what_runs_and_what_waits_and_refuses_more(tier: Literal["ns", "lsm"]) -> None:
    launcher = LinuxLauncher(tier, 1, guest=GUEST)
    sleeper = asyncio.ensure_future(run(launcher, program("import time\ntime.sleep(100)"), seconds=100))
    waiting = asyncio.ensure_future(run(launcher, program("")))
    await asyncio.sleep(0.2)
    await launcher.aclose()
    await launcher.aclose()
    for task in (sleeper, waiting):
        with pytest.raises(SandboxError):
            await task
    with pytest.raises(SandboxError, match="closed"):
        await launcher.launch(Limits())


async def test_an_interpreter_that_is_not_there_is_told(tier: Literal["ns", "lsm"]) -> None:
    launcher = LinuxLauncher(tier, 1, guest=GUEST, python="/no/such/python")
    with pytest.raises(SandboxError, match="/no/such/python cannot be started"):
        await launcher.launch(Limits())
    await launcher.aclose()


async def test_a_host_that_keeps_its_new_files_to_itself_can_have_a_sandbox(tier: Literal["ns", "lsm"]) -> None:
    launcher = LinuxLauncher(tier, 1, guest=GUEST)
    before = os.umask(0o077)
    try:
        ending, out, error = await run(launcher, program("import csv\nprint(1)"))
    finally:
        os.umask(before)
        await launcher.aclose()
    assert (ending, out, error) == (Ending("exited", 0), b"1\n", b"")


async def test_a_guest_that_is_broken_is_told(tier: Literal["ns", "lsm"], tmp_path: Path) -> None:
    guest = tmp_path / "broken_guest.py"
    guest.write_text("import no_such_module")
    launcher = LinuxLauncher(tier, 1, guest=guest)
    with pytest.raises(SandboxError, match="no_such_module"):
        await launcher.launch(Limits())
    await launcher.aclose()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    gc.collect()
    before = left_behind()
    yield
    gc.collect()
    assert eventually(lambda: left_behind() == before), (before, left_behind())


@pytest.mark.usefixtures("nothing_left")
def test_runs_of_every_kind_leave_no_descriptor_process_mount_or_shared_memory(tier: Literal["ns", "lsm"]) -> None:
    async def all_kinds() -> None:
        launcher = LinuxLauncher(tier, 2, guest=GUEST, runs_per_server=20)
        kinds = (
            "",
            "1/0",
            "import os\nos._exit(3)",
            "import ctypes\nctypes.string_at(0)",
            "while True: print('x' * 999)",
        )
        endings = await asyncio.gather(*(run(launcher, program(kinds[i % 5]), output_bytes=10_000) for i in range(60)))
        assert {e.how for e, _, _ in endings} == {"exited", "killed", "resource"}
        late = await run(launcher, program("import time\ntime.sleep(9)"), seconds=0.05)
        assert late[0].how == "timeout"
        await launcher.aclose()

    asyncio.run(all_kinds())


HOST_THAT_DIES = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from attacks import stub_packages
stub_packages({package!r})
from pathlib import Path
from rlaif.verifiers.sandbox.launcher import LinuxLauncher
from rlaif.verifiers.sandbox.base import Limits

async def main():
    launcher = LinuxLauncher({tier!r}, 2, guest=Path({guest!r}))
    for _ in range(2):
        process = await launcher.launch(Limits(seconds=1000))
        await process.send(b"import time\\nprint(1, flush=True)\\ntime.sleep(1000)\\0")
        while not process.stdout:
            await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_a_host_killed_outright_leaves_no_process(tier: Literal["ns", "lsm"]) -> None:
    code = HOST_THAT_DIES.format(tests=str(HERE), package=str(PACKAGE), tier=tier, guest=str(GUEST))
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"ready\n"
    marker = f'"host": {host.pid}}}'
    assert len(of_us(marker)) >= 4
    host.kill()
    host.wait()
    host.stdout.close()
    assert eventually(lambda: of_us(marker) == []), of_us(marker)


@pytest.mark.slow
def test_memory_stays_flat_over_many_runs(tier: Literal["ns", "lsm"]) -> None:
    count = int(os.environ.get("RLAIF_SOAK_RUNS", "20000"))

    async def soak() -> list[dict[str, int]]:
        launcher = LinuxLauncher(tier, 2, guest=GUEST)
        seen = []
        for _ in range(10):
            await asyncio.gather(*(run(launcher, program("print(1)")) for _ in range(count // 10)))
            gc.collect()
            seen.append({"kib": resident(os.getpid()), **left_behind()})
        await launcher.aclose()
        return seen

    before = left_behind()
    seen = asyncio.run(soak())
    print(json.dumps(seen))
    assert seen[-1]["kib"] - seen[1]["kib"] < 4096
    assert {k: v for k, v in seen[-1].items() if k not in ("kib", "servers")} == {
        k: v for k, v in seen[1].items() if k not in ("kib", "servers")
    }
    assert eventually(lambda: left_behind() == before)


def resident(pid: int) -> int:
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS")]
    return int(line.split()[1])
