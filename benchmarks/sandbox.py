"""What a sandboxed run costs, in each tier of this machine, beside plain interpreters.

    python -m benchmarks.sandbox [--runs 400] [--workers N]

A run is ``print(1)``: median and 95th percentile of one after another; runs a second with all workers busy, and the
processor time of one, of all processes together; the time until a first server has done its first run; the memory of
this process before and after. The peers start a new interpreter for each run: ``python -I -S`` alone (no isolation),
and inside of bubblewrap where ``bwrap`` is installed (whose own processor time cannot be seen from outside).
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Launcher, Limits
from rlaif.verifiers.sandbox.launcher import LinuxLauncher
from rlaif.verifiers.sandbox.probe import LOCAL, survey

JOB = values.dumps({"do": "script", "sources": ["print(1)"]})
PYTHON = getattr(sys, "_base_executable", "") or sys.executable
PLAIN = (PYTHON, "-I", "-S", "-c", "print(1)")
BWRAP = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--cap-drop", "ALL", "--die-with-parent")
Run = Callable[[], Awaitable[None]]


async def sandboxed(launcher: Launcher) -> None:
    process = await launcher.launch(Limits())
    try:
        await process.send(JOB)
        await process.write_stdin(b"")
        await process.wait()
        assert process.stdout == b"1\n", process.stderr
    finally:
        await process.aclose()


async def started(command: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out == b"1\n"


async def measured(run: Run, runs: int, workers: int) -> dict[str, float]:
    await run()
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        await run()
        took.append((time.perf_counter() - began) * 1000)
    left = iter(range(runs * 2))

    async def worker() -> None:
        for _ in left:
            await run()

    cpu, began = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(workers)))
    seconds = time.perf_counter() - began
    return {
        "median ms": round(statistics.median(took), 2),
        "p95 ms": round(statistics.quantiles(took, n=20)[18], 2),
        "runs/s": round(runs * 2 / seconds),
        "CPU ms/run": round((cpu_seconds() - cpu) / runs / 2 * 1000, 2),
    }


def cpu_seconds() -> float:
    """Of this process, all that it started and all that those started; needs /proc."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS")]
    return round(int(line.split()[1]) / 1024, 1)


async def tier(name: str, runs: int, workers: int) -> dict[str, float]:
    starts = []
    for _ in range(5):
        launcher = LinuxLauncher(name, 1)  # type: ignore[arg-type]
        began = time.perf_counter()
        await sandboxed(launcher)
        starts.append((time.perf_counter() - began) * 1000)
        await launcher.aclose()
    launcher = LinuxLauncher(name, workers)  # type: ignore[arg-type]
    await asyncio.gather(*(sandboxed(launcher) for _ in range(workers)))
    before = resident_mb()
    numbers = await measured(lambda: sandboxed(launcher), runs, workers)
    await launcher.aclose()
    return {**numbers, "start ms": round(statistics.median(starts), 1), "MB before": before, "MB after": resident_mb()}


async def main(runs: int, workers: int) -> None:
    for name in LOCAL:
        try:
            survey(tier=name)
        except InputError as error:
            print(json.dumps({"tier": name, "missing": str(error)}))
            continue
        print(json.dumps({"tier": name, **await tier(name, runs, workers)}), flush=True)
    few = max(20, runs // 4)
    print(json.dumps({"peer": "python -I -S", **await measured(lambda: started(PLAIN), few, workers)}), flush=True)
    if shutil.which("bwrap"):
        print(
            json.dumps(
                {"peer": "bwrap + python -I -S", **await measured(lambda: started((*BWRAP, *PLAIN)), few, workers)}
            )
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    asyncio.run(main(arguments.runs, arguments.workers))
