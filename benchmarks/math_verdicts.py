"""Verdicts of the math verifier and of bare math-verify on the same rows, in one run: right ones and answers a second.

    python -m benchmarks.math_verdicts [--skip-peer] [--list] [--json FILE]

====================  ========================================================================================
hard cases            78 pairs written from issue reports and exploits, each with its expected verdict
GSM8K solutions       5,276 solutions of four systems; expected: the authors' flags
GSM8K chat, GPT-4     1,319 free-form answers; the recorded flags want the last number as text, so ``--list`` shows
GSM8K chat, Mixtral   where a verdict differs from the flag
golds                 every gold of GSM8K and ASDiv (with units), boxed, against itself
other golds           the same golds against the next row's, where those differ as text: nearly all must fail
boxed                 the GSM8K solutions with their last line boxed: the rate of "real boxed answers"
algebra               products, roots and logarithms that need computer algebra, half of them wrong
====================  ========================================================================================

math-verify runs as its documentation says, in this process, one row after the other, with its default settings; the
verifier through ``verify``, as a training loop calls it. Both rates are of wall time, CPU beside them (for the verifier
with its workers). The data is found through RLAIF_DATA and is not part of this repository.
"""

import argparse
import asyncio
import gzip
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif.types import Reward
from rlaif.verifiers.math import MathVerifier

DATA = Path(os.environ.get("RLAIF_DATA", "../shared/data")) / "math"
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Row:
    id: str
    completion: str
    reference: str
    expected: bool
    question: str = ""


@dataclass
class Result:
    """``right``: verdicts as expected. ``passed_wrongly``: expected to fail, and passed."""

    set: str
    side: str
    rows: int
    right: int
    passed_wrongly: int
    failed_wrongly: int
    seconds: float
    cpu_seconds: float
    slowest: float
    odd: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.set:20} {self.side:12} {self.rows:6,} {self.right:6,} right  {self.passed_wrongly:4} passed wrongly"
            f"  {self.failed_wrongly:4} failed wrongly  {self.rows / self.seconds:8,.0f}/s"
            f"  {self.rows / self.cpu_seconds:8,.0f}/CPU-s  slowest {self.slowest:.2f} s"
        )


# ------------------------------------------------------------------------------------------------------------ the rows


def read(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


def hard_cases() -> Iterator[Row]:
    for row in json.loads((DATA / "hard_cases_78.json").read_text(encoding="utf-8")):
        yield Row(row["id"], row["pred"], row["gold"], row["expected"])


def solutions() -> Iterator[Row]:
    for index, row in enumerate(read("gsm8k_openai_model_solutions.jsonl.gz")):
        gold = row["ground_truth"].rpartition("\nA: ")[2]
        for system in SYSTEMS:
            solution = row[system]
            yield Row(f"{index} {system}", solution["solution"], gold, solution["is_correct"], row["question"])


def boxed() -> Iterator[Row]:
    for row in solutions():
        before, line, answer = row.completion.rpartition("\nA: ")
        if line:
            yield Row(row.id, f"{before}\n\\boxed{{{answer}}}", row.reference, row.expected, row.question)


def chat(model: str) -> Iterator[Row]:
    golds = read("gsm8k_test.jsonl.gz")
    for index, (row, gold) in enumerate(zip(read("gsm8k_chat_model_responses.jsonl.gz"), golds, strict=True)):
        yield Row(str(index), row[f"{model}_response"], gold["answer"], row[f"{model}_correct"], row["prompt"])


def golds() -> list[str]:
    gsm8k = [r["answer"].rpartition("####")[2].strip() for f in ("train", "test") for r in read(f"gsm8k_{f}.jsonl.gz")]
    return gsm8k + [r["answer"] for r in read("asdiv_2215.jsonl.gz")]


def themselves() -> Iterator[Row]:
    for index, gold in enumerate(golds()):
        yield Row(str(index), rf"\boxed{{{gold}}}", gold, True)


def others() -> Iterator[Row]:
    all_golds = golds()
    for index, (gold, other) in enumerate(zip(all_golds, [*all_golds[1:], all_golds[0]], strict=True)):
        if gold != other:
            yield Row(str(index), rf"\boxed{{{other}}}", gold, False)


def algebra() -> Iterator[Row]:
    for n in range(1, 51):
        pairs = [
            (rf"x^2-{n * n}", rf"(x-{n})(x+{n})", rf"(x-{n})(x+{n + 1})"),
            (rf"\sqrt{{{n * n * 7}}}", rf"{n}\sqrt{{7}}", rf"{n}\sqrt{{5}}"),
            (rf"\ln {4**2 * n}", rf"2\ln 4 + \ln {n}", rf"3\ln 4 + \ln {n}"),
            (rf"\frac{{{n}\pi}}{{6}}", rf"\frac{{{2 * n}\pi}}{{12}}", rf"\frac{{{2 * n + 1}\pi}}{{12}}"),
        ]
        for gold, right, wrong in pairs:
            yield Row(right, rf"\boxed{{{right}}}", gold, True)
            yield Row(wrong, rf"\boxed{{{wrong}}}", gold, False)


SETS: dict[str, Callable[[], Iterator[Row]]] = {
    "hard cases": hard_cases,
    "GSM8K solutions": solutions,
    "GSM8K chat, GPT-4": lambda: chat("gpt4"),
    "GSM8K chat, Mixtral": lambda: chat("mixtral"),
    "golds": themselves,
    "other golds": others,
    "boxed": boxed,
    "algebra": algebra,
}


# ----------------------------------------------------------------------------------------------------------- the sides


def tally(
    name: str, side: str, rows: list[Row], verdicts: list[bool], seconds: float, cpu: float, slow: float
) -> Result:
    wrong = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row.expected != verdict]
    odd = [f"{row.id}: {'passed' if v else 'failed'}; reference {row.reference[-40:]!r}" for row, v in wrong]
    passed = sum(verdict for _, verdict in wrong)
    return Result(name, side, len(rows), len(rows) - len(wrong), passed, len(wrong) - passed, seconds, cpu, slow, odd)


async def by_rlaif(name: str, rows: list[Row], verifier: MathVerifier) -> Result:
    slowest = 0.0

    async def one(row: Row) -> bool:
        nonlocal slowest
        began = time.perf_counter()
        verdict = await verifier.verify(row.completion, {"reference": row.reference, "prompt": row.question})
        slowest = max(slowest, time.perf_counter() - began)
        return isinstance(verdict, Reward) and verdict.value == 1.0

    cpu, began = cpu_of(verifier), time.perf_counter()
    verdicts: list[bool] = []
    for start in range(0, len(rows), 64):  # a batch, as a training step has
        verdicts += await asyncio.gather(*(one(row) for row in rows[start : start + 64]))
    seconds = time.perf_counter() - began
    return tally(name, "rlaif", rows, verdicts, seconds, max(cpu_of(verifier) - cpu, 0.01), slowest)


def by_math_verify(name: str, rows: list[Row]) -> Result:
    from math_verify import parse, verify

    verdicts, slowest = [], 0.0
    cpu, began = time.process_time(), time.perf_counter()
    for row in rows:
        at = time.perf_counter()
        gold = row.reference.rpartition("####")[2].strip()
        # As its README does: LaTeX in math mode is what it parses, so a bare gold is put there.
        gold = gold if "$" in gold or not any(c in gold for c in "\\^_{") else f"${gold}$"
        verdicts.append(bool(verify(parse(gold), parse(row.completion))))
        slowest = max(slowest, time.perf_counter() - at)
    seconds = time.perf_counter() - began
    return tally(name, "math-verify", rows, verdicts, seconds, max(time.process_time() - cpu, 0.01), slowest)


def cpu_of(verifier: MathVerifier) -> float:
    """Of this process and the verifier's processes that live."""
    total = time.process_time()
    pool = verifier._pool
    if pool._server is not None:
        for pid in [pool._server.pid, *(w.pid for w in pool._idle)]:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(fields[i]) for i in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    return total


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--skip-peer", action="store_true", help="do not run math-verify")
    parser.add_argument("--list", action="store_true", help="list the rows whose verdict is not the expected one")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify's notes on timeouts

    verifier = MathVerifier(MathVerifier.Options())
    await verifier.verify(r"\boxed{x+1}", {"reference": "1+x"})  # start-up is not counted
    results = []
    for name, rows_of in SETS.items():
        rows = list(rows_of())
        for side in ("rlaif",) if options.skip_peer else ("rlaif", "math-verify"):
            result = await by_rlaif(name, rows, verifier) if side == "rlaif" else by_math_verify(name, rows)
            results.append(result)
            print(result.line(), flush=True)
            if options.list and side == "rlaif":
                print("\n".join(f"    {line}" for line in result.odd))
    print("versions", verifier.versions, "workers' confinement", verifier._pool.confinement)
    await verifier.aclose()
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
