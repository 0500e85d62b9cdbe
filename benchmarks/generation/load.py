"""What every side is given and has to report. Standard library only: the other tools' environments import it, too."""

import argparse
import json
import random
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

MODEL = "fake"
MAX_TOKENS = 256
TEMPERATURE = 0.8
_WORDS = """answer balance careful describe evening figure garden honest improve journey kitchen letter measure number
object people question reason simple travel useful village weather winter yellow"""


def make_prompts(count: int, words: int = 40) -> list[str]:
    """``count`` different prompts, the same ones every time."""
    draw, known = random.Random(0), _WORDS.split()
    return [f"Task {i}: {' '.join(draw.choices(known, k=words))}?" for i in range(count)]


class Arguments(argparse.Namespace):
    """What a side is told."""

    url: str  # OpenAI's protocol is spoken at URL/v1, Anthropic's at URL
    calls: int
    concurrency: int | None
    warm_up: int
    rpm: float | None
    variant: str
    folder: Path  # an empty folder to work in


def arguments(argv: Sequence[str] | None = None) -> Arguments:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--warm-up", type=int, default=0)
    parser.add_argument("--rpm", type=float)
    parser.add_argument("--variant", default="")
    parser.add_argument("--folder", type=Path, required=True)
    return parser.parse_args(argv, namespace=Arguments())


class Meter:
    """Seconds and CPU seconds (children that have ended among them) since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def report(self, calls: int, *packages: str, **more: float | str) -> None:
        """Print the figures as the process's last line. ``packages``: whose versions to name."""
        seconds, cpu = time.perf_counter() - self._wall, _cpu_seconds() - self._cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        versions = ", ".join(f"{package} {version(package)}" for package in packages)
        figures = {"calls": calls, "seconds": seconds, "cpu": cpu, "peak_mib": peak, "versions": versions, **more}
        print("\n" + json.dumps(figures), flush=True)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
