import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmarks.generation
from benchmarks.generation.peers import PEERS, ROOT, install, python_of

SCENARIOS = ("zero", "run", "latency", "limited", "peers", "memory")
LATENCY = 0.2  # seconds
RPM = 600.0
Figures = dict[str, Any]  # what a side reported (see load.Meter), and what the server counted


@dataclass(frozen=True)
class Side:
    """One way to make the calls. ``module`` of this package, run by ``python``."""

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    python: Path = Path(sys.executable)

    def run(self, url: str, timeout: float) -> Figures | str:
        """Its figures, or why there are none."""
        with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
            options = {"url": url, "folder": folder, **self.options}
            flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
            command = [str(self.python), "-m", f"benchmarks.generation.{self.module}", *flags]
            before = asked(url)
            try:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
            except subprocess.TimeoutExpired:
                return f"no end within {timeout:.0f} s"
            if done.returncode:
                return (done.stderr.strip() or "no message").splitlines()[-1][:200]
            figures: Figures = json.loads(done.stdout.splitlines()[-1])
            return figures | {"requests": asked(url) - before}


def asked(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as reply:
        return int(json.load(reply)["requests"])


@contextmanager
def server(*flags: str) -> Iterator[str]:
    """The URL of a local server in a process of its own."""
    command = [sys.executable, "-m", "tests.servers.fault_server", "--answer", "benchmarks.generation.answers:answer"]
    process = subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)


def take_turns(sides: Sequence[Side], url: str, repeats: int, timeout: float = 300) -> dict[str, list[Figures]]:
    """The figures of each side in each repeat; the order is turned round every time. A side that fails is left out."""
    found: dict[str, list[Figures]] = {side.name: [] for side in sides}
    left = list(sides)
    for _ in range(repeats):
        for side in tuple(left):
            figures = side.run(url, timeout)
            if isinstance(figures, str):
                print(f"{side.name}: skipped: {figures}", flush=True)
                left.remove(side)
                del found[side.name]
            else:
                found[side.name].append(figures)
        left.reverse()
    return found


# ---------------------------------------------------------------------------------------------------------- the output


def spread(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def rates(runs: Sequence[Figures]) -> list[float]:
    return [run["calls"] / run["seconds"] for run in runs]


def cpu_per_call(runs: Sequence[Figures]) -> list[float]:
    return [1000 * run["cpu"] / run["calls"] for run in runs]


def print_rates(found: dict[str, list[Figures]], reference: dict[str, str]) -> None:
    """A table; ``reference``: which side another is compared with, where not the first."""
    first = next(iter(found), "")
    print("| side | calls/s (range) | of the loop's | CPU ms a call (range) | of the loop's | versions |")
    print("|---|---|---|---|---|---|")
    for name, runs in found.items():
        base = found.get(reference.get(name, first), runs)
        speed = statistics.median(rates(runs)) / statistics.median(rates(base))
        cpu = statistics.median(cpu_per_call(runs)) / statistics.median(cpu_per_call(base))
        columns = (name, spread(rates(runs)), f"{speed:.2f}", spread(cpu_per_call(runs), 2), f"{cpu:.2f}")
        print(f"| {' | '.join(columns)} | {runs[0]['versions']} |", flush=True)


def print_machine() -> None:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    load = " ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"{os.cpu_count()} x{cpu.partition(':')[2]}, {system}; load average {load}", flush=True)


# ----------------------------------------------------------------------------------------------------------- scenarios


def zero(args: argparse.Namespace) -> None:
    print(f"\nNo latency, {args.calls} calls, {args.concurrency} at once:", flush=True)
    common = {"calls": args.calls, "concurrency": args.concurrency, "warm-up": 2 * args.concurrency}
    sides = [
        Side(f"{what} {sdk}", module, {"variant": sdk, **common})
        for sdk in ("openai", "anthropic")
        for what, module in (("loop", "side_sdk"), ("rlaif", "side_rlaif"))
    ]
    with server() as url:
        print_rates(
            take_turns(sides, url, args.repeats), {f"{s} anthropic": "loop anthropic" for s in ("loop", "rlaif")}
        )


def run(args: argparse.Namespace) -> None:
    print(f"\nA whole run, {args.calls} calls (4 samples a prompt, 2 pairs, both orders), no latency:", flush=True)
    common = {"calls": args.calls, "concurrency": args.concurrency}
    sides = [
        Side("hand-written script", "side_sdk", {"variant": "script", **common}),
        Side("rlaif generate", "side_rlaif", {"variant": "generate", **common}),
    ]
    with server() as url:
        print_rates(take_turns(sides, url, args.repeats), {})


def latency(args: argparse.Namespace) -> None:
    """rlaif first: the loop gets the concurrency that it settled on."""
    print(f"\n{LATENCY * 1000:.0f} ms latency, {args.calls} calls, nothing said of the server:", flush=True)
    with server(f"--latency={LATENCY}") as url:
        ours = Side("rlaif", "side_rlaif", {"variant": "openai", "calls": args.calls})
        trial = ours.run(url, 300)
        if isinstance(trial, str):
            print(f"rlaif: skipped: {trial}", flush=True)
            return
        settled = int(trial["limit"])
        loop = Side("loop", "side_sdk", {"variant": "openai", "calls": args.calls, "concurrency": settled})
        found = take_turns([ours, loop], url, args.repeats)
    limits = sorted({run["limit"] for run in found["rlaif"]})
    ideal = math.ceil(args.calls / max(limits)) * LATENCY
    print(f"concurrency settled on: {', '.join(map(str, limits))}; ideal at {max(limits)}: {ideal:.2f} s")
    for name, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        print(f"{name}: {spread(seconds, 2)} s, {statistics.median(seconds) / ideal:.3f} of the ideal", flush=True)


def limited(args: argparse.Namespace) -> None:
    """All cases side by side, each with a server of its own: they are idle nearly all the time. They start a
    second apart, so that no start disturbs another."""
    calls = 1200  # two minutes of the limit: finding it out costs a fixed number of refusals
    print(f"\nA server that allows {RPM:g} requests a minute, {calls} calls:", flush=True)
    plain = Side("rlaif, told nothing", "side_rlaif", {"variant": "openai", "calls": calls})
    told = Side(f"rlaif, rpm: {RPM:g}", "side_rlaif", {"variant": "openai", "calls": calls, "rpm": RPM})
    loop = Side("loop, SDK's retries", "side_sdk", {"variant": "openai-retrying", "calls": calls, "concurrency": 64})
    talking = "x-ratelimit headers, retry-after-ms"
    terse = "only Retry-After, in seconds"
    cases = [
        (plain, talking, 10, ()),
        (told, talking, 10, ()),
        (plain, terse, 10, ("--terse",)),
        (told, terse, 10, ("--terse",)),
        (plain, talking, 1, ()),
        (loop, terse, 10, ("--terse",)),
    ]
    at_once = len(cases)

    def one(number: int) -> Figures | str:
        side, _, burst, flags = cases[number % len(cases)]
        time.sleep(number % at_once)
        with server(f"--rpm={RPM}", f"--burst={burst}", *flags) as url:
            return side.run(url, 600)

    with ThreadPoolExecutor(at_once) as pool:
        figures = list(pool.map(one, range(len(cases) * args.repeats)))
    print("| side | the server tells | bucket | seconds (range) | of the limit's own time | answered 429 (most) |")
    print("|---|---|---|---|---|---|")
    for i, (side, tells, burst, _) in enumerate(cases):
        runs = [run for run in figures[i :: len(cases)] if not isinstance(run, str)]
        if not runs:
            print(f"{side.name}: skipped: {figures[i]}")
            continue
        own = (calls - burst) * 60 / RPM
        seconds = [run["seconds"] for run in runs]
        refused = [1 - calls / run["requests"] for run in runs]
        share = f"{statistics.median(refused):.1%} ({max(refused):.1%})"
        columns = (side.name, tells, str(burst), spread(seconds, 1), f"{statistics.median(seconds) / own:.3f}", share)
        print(f"| {' | '.join(columns)} |", flush=True)


def peers(args: argparse.Namespace) -> None:
    """The whole of what each tool does with the prompts, its own start included (not the imports)."""
    common = {"calls": args.calls // 2, "concurrency": args.concurrency}
    sides = [
        Side("loop", "side_sdk", {"variant": "openai", **common}),
        Side("rlaif", "side_rlaif", {"variant": "openai", **common}),
    ]
    for peer in PEERS:
        if python_of(peer).exists():
            sides.append(Side(peer, f"peer_{peer}", common, python_of(peer)))
        else:
            print(f"{peer}: skipped: not installed (python -m benchmarks.generation install)", flush=True)
    print(f"\nOther tools, {common['calls']} prompts, {args.concurrency} at once, no latency:", flush=True)
    with server() as url:
        print_rates(take_turns(sides, url, args.repeats), {})


def memory(args: argparse.Namespace) -> None:
    from benchmarks.generation.memory import measure

    print("\nPeak memory of a whole run:", flush=True)
    measure()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=benchmarks.generation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", help=f"install, {', '.join(SCENARIOS)}; all but install, if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    args = parser.parse_args()
    if unknown := set(args.what) - {"install", *SCENARIOS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if "install" in args.what:
        install()
        return
    (ROOT / "runs").mkdir(exist_ok=True)
    print_machine()
    named = {"zero": zero, "run": run, "latency": latency, "limited": limited, "peers": peers, "memory": memory}
    for name in args.what or SCENARIOS:
        named[name](args)
    print_machine()


if __name__ == "__main__":
    main()
