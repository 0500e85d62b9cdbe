"""Code verdicts against recorded ones: every reference must pass, and 16,564 recorded answers must get their verdicts.

    RLAIF_DATA=... python -m benchmarks.code_verdicts [--tier ns|lsm|unsafe] [--workers N] [PART ...]

Parts: humaneval, mbpp, sanitized, wizardcoder, codegen (about 5 minutes on two cores). Rows that differ are listed.
"""

import argparse
import asyncio
import gzip
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlaif.types import Reward, Unverified
from rlaif.verifiers.code import CodeVerifier

Row = dict[str, Any]
Result = Reward | Unverified
PARTS = ("humaneval", "mbpp", "sanitized", "wizardcoder", "codegen")
# An answer's own limit is that of the recorded verdicts, 3 s, so that a slow machine changes none.
MIN_SECONDS, MAX_SECONDS = 3.0, 10.0


def rows(name: str) -> list[Row]:
    folder = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[2] / "shared" / "data"))
    with gzip.open(folder / "code" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


async def verified(verifier: CodeVerifier, pairs: Sequence[tuple[str, Row]]) -> list[Result]:
    """Verdicts of (answer, row) pairs, in order, a bounded number at a time."""
    results: list[Result | None] = [None] * len(pairs)
    queue = iter(enumerate(pairs))

    async def work() -> None:
        for index, (answer, row) in queue:
            results[index] = await verifier.verify(answer, row)

    await asyncio.gather(*(work() for _ in range(16)))
    return [r for r in results if r is not None]


async def references(verifier: CodeVerifier, name: str, column: str) -> None:
    found = rows(name)
    begun = time.monotonic()
    loaded = await asyncio.gather(*(verifier.prepare(row) for row in found), return_exceptions=True)
    checked = time.monotonic() - begun
    before, begun = cpu_seconds(), time.monotonic()
    results = await verified(verifier, [(row[column], row) for row in found])
    seconds = time.monotonic() - begun
    cpu = cpu_seconds() - before
    passed = sum(_passed(r) for r in results)
    print(f"{name}: {passed}/{len(found)} references pass")
    print(f"    self-check of all tasks {checked:.1f} s ({sum(e is not None for e in loaded)} refused)")
    print(f"    verdicts {seconds:.2f} s = {len(found) / seconds:.0f} problems/s")
    print(f"    {cpu:.2f} s CPU of all processes = {2 * len(found) / cpu:.0f} problems/s on two idle cores")
    for row, result in zip(found, results, strict=True):
        if not _passed(result):
            print(f"    {row['task_id']}: {result.reason}: {result.detail}")


def cpu_seconds() -> float:
    """CPU time so far of this process and of every process below it, also of those that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(stat.parent.name)] = int(fields[1])
        ticks[int(stat.parent.name)] = sum(map(int, fields[11:15]))  # user, system; the same of children waited for

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return sum(t for pid, t in ticks.items() if ours(pid)) / os.sysconf("SC_CLK_TCK")


def _passed(result: Result) -> bool:
    return isinstance(result, Reward) and result.value == 1.0


async def wizardcoder(verifier: CodeVerifier) -> None:
    tasks = {row["task_id"]: row for row in rows("humaneval_164")}
    recorded = rows("humaneval_wizardcoder15b")
    answers = {
        "cut out by its authors": [r["completion"] for r in recorded],
        "whole chat answer": [r["all_code"].partition("### Response:")[2] for r in recorded],
    }
    for what, texts in answers.items():
        pairs = [(text, tasks[r["task_id"]]) for text, r in zip(texts, recorded, strict=True)]
        results = await verified(verifier, pairs)
        differ = [
            (r, result) for r, result in zip(recorded, results, strict=True) if _passed(result) != bool(r["passed"])
        ]
        print(
            f"wizardcoder ({what}): {sum(map(_passed, results))}/164 pass, {len(differ)} rows differ from their flags"
        )
        for r, result in differ:
            print(f"    {r['task_id']}: recorded {r['result']!r}, here {result.reason}: {result.detail}")


async def codegen(verifier: CodeVerifier) -> None:
    tasks = {row["task_id"]: row for row in rows("humaneval_164")}
    problems = rows("humaneval_codegen16b_100samples")
    pairs = [(s, {**tasks[p["task_id"]], "prompt": p["prompt"]}) for p in problems for s in p["samples"]]
    begun = time.monotonic()
    results = await verified(verifier, pairs)
    seconds = time.monotonic() - begun
    right = [sum(map(_passed, results[i : i + 100])) for i in range(0, len(results), 100)]
    print(f"codegen: {len(results):,} answers in {seconds:.0f} s = {len(results) / seconds:.0f}/s")
    for k in (1, 10, 100):
        print(f"    pass@{k}: {100 * _pass_at(k, right):.2f}")
    print("   ", dict(Counter(r.reason or "passed" for r in results)))
    unverified = [r for r in results if isinstance(r, Unverified)]
    for r in unverified[:5]:
        print("    unverified:", r.reason, r.detail)


def _pass_at(k: int, right: Iterable[int], n: int = 100) -> float:
    """The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, eq. 1), averaged over problems."""
    shares = [1 - math.comb(n - c, k) / math.comb(n, k) for c in right]
    return sum(shares) / len(shares)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=PARTS)
    parser.add_argument("--tier", default="ns", choices=("ns", "lsm", "unsafe"))
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    options = CodeVerifier.Options(
        min_seconds=MIN_SECONDS,
        max_seconds=MAX_SECONDS,
        tier=given.tier,
        allow_unsafe=given.tier == "unsafe",
        workers=given.workers,
    )
    verifier = CodeVerifier(options)
    print(f"tier {given.tier}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for part in given.parts:
        match part:
            case "humaneval":
                await references(verifier, "humaneval_164", "canonical_solution")
            case "mbpp":
                await references(verifier, "mbpp_974", "code")
            case "sanitized":
                await references(verifier, "mbpp_sanitized_427", "canonical_solution")
            case "wizardcoder":
                await wizardcoder(verifier)
            case "codegen":
                await codegen(verifier)
            case _:
                parser.error(f"unknown part {part!r}; there are: {', '.join(PARTS)}")
    await verifier.aclose()


if __name__ == "__main__":
    asyncio.run(main())
