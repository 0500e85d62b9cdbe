"""How many replies a second the ledger stores, how fast it opens, and how much memory it takes.

    python -m benchmarks.ledger [--requests 1000000] [--at-once 256] [--folder DIR]

A model that answers at once, so only the ledger is measured: requests and replies of about 2,000 and 700
characters, each durable before the next step. Then the finished ledger is opened and its replies are asked for again.
"""

import argparse
import asyncio
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rlaif.clients.scripted import ScriptedClient
from rlaif.engine.ledger import Ledger
from rlaif.types import ChatRequest, Message

WORDS = [f"{a}{b}" for a in ("con", "pre", "in", "re", "de", "ex") for b in ("tent", "sume", "spect", "tract", "port")]


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


RULES = text(-1, 120)
TEXTS = [text(i, 160) for i in range(997)]
ANSWERS = [text(i, 80) for i in range(1009)]


def requests(n: int) -> Iterator[ChatRequest]:
    for i in range(n):
        rules = Message(role="system", content=RULES)
        yield ChatRequest(messages=(rules, Message(role="user", content=f"{i}: {TEXTS[i % 997]}")), max_tokens=256)


class Instant(ScriptedClient):
    """A model that answers at once and remembers nothing."""

    def __init__(self) -> None:
        super().__init__(lambda request: ANSWERS[len(request.messages[1].content) % 1009], "instant")

    @property
    def requests(self) -> list[ChatRequest]:
        return []

    @requests.setter
    def requests(self, value: list[ChatRequest]) -> None:
        return None


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def ask_all(ledger: Ledger, n: int, at_once: int) -> tuple[float, float]:
    """(seconds, seconds of CPU)."""
    client = ledger.wrap(Instant(), "sample")
    todo = requests(n)

    async def work() -> None:
        for request in todo:
            await client.complete(request)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - start, time.process_time() - cpu


def measure(folder: Path, n: int, at_once: int) -> dict[str, float]:
    path = folder / "ledger.sqlite"
    results: dict[str, float] = {"requests": n, "at_once": at_once, "memory_mib_before": memory_mib()}
    with Ledger.open(path) as ledger:
        few = min(n, 10_000)
        asyncio.run(ask_all(ledger, few, at_once))
        results["memory_mib_at_10000"] = memory_mib()
        seconds, cpu = asyncio.run(ask_all(ledger, n, at_once))
        results["stored_per_second"] = (n - few) / seconds if n > few else n / seconds
        results["cpu_us_per_stored"] = 1e6 * cpu / n
        start = time.perf_counter()
    results["close_seconds"] = time.perf_counter() - start
    results["memory_mib_at_end"] = memory_mib()
    results["file_mib"] = path.stat().st_size / 2**20
    start = time.perf_counter()
    with Ledger.open(path) as ledger:
        stats = ledger.stats()
        results["open_and_stats_seconds"] = time.perf_counter() - start
        assert stats.total("stored") == n
        again = min(n, 100_000)
        seconds, _ = asyncio.run(ask_all(ledger, again, at_once))
        results["reused_per_second"] = again / seconds
        assert ledger.stats().total("sent") == 0
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to put the ledger (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = measure(Path(folder), args.requests, args.at_once)
    print(json.dumps({name: round(value, 4) for name, value in results.items()}, indent=2))


if __name__ == "__main__":
    main()
