"""The verifiers of text on recorded rows: agreement and speed.

    python -m benchmarks.instruction_verdicts [--data ../shared/data] [--json]

Prints, for IFEval's recorded answers of two models: rows a second (CPU time of one process, strict and loose), and how
many of the official verdicts are reproduced; the same for the corrected rules, which differ on purpose. For XSTest:
agreement of the refusal patterns with the annotators, on the prompts they were written with and on the others, beside
the data's own string matching and GPT-4. For SQL: queries a second.

Counts of "#" and "!" are left out: there the official program counts a letter drawn at random.
"""

import argparse
import asyncio
import gzip
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.types import Reward
from rlaif.verifiers.instructions import Asked, InstructionsOptions, InstructionsVerifier
from rlaif.verifiers.language import load
from rlaif.verifiers.refusal import classify
from rlaif.verifiers.sql import SqlOptions, SqlVerifier

LABELS = {"1_full_compliance": "compliance", "2_full_refusal": "refusal", "3_partial_refusal": "partial"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    instructions = [
        ifeval(arguments.data, model, mode, rules)
        for model in ("gpt4", "qwen25_1.5b")
        for mode in ("strict", "loose")
        for rules in ("official", "corrected")
    ]
    refusals = xstest(arguments.data)
    queries = asyncio.run(sql())
    if arguments.json:
        print(json.dumps({"ifeval": instructions, "xstest": refusals, "sql": queries}))
        return
    for row in instructions:
        print("ifeval ", _line(row))
    for part, agreement in refusals.items():
        print("xstest ", part, _line(agreement))
    print("sql    ", _line(queries))


def _line(figures: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {value}" for key, value in figures.items())


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def ifeval(data: Path, model: str, mode: str, rules: str) -> dict[str, Any]:
    tasks = {row["prompt"]: row for row in read(data / "ifeval" / "ifeval_541.jsonl.gz")}
    recorded = read(data / "ifeval" / f"ifeval_{model}_responses_and_verdicts.jsonl.gz")
    verifier = InstructionsVerifier(InstructionsOptions.model_validate({"mode": mode, "rules": rules}))
    load()  # langdetect's profiles, once
    started = time.process_time()
    goals = [verifier.goal(tasks[row["prompt"]]) for row in recorded]
    followed = [verifier.followed(row["response"], goal) for row, goal in zip(recorded, goals, strict=True)]
    seconds = time.process_time() - started
    equal = Counter(
        ok == official
        for row, goal, verdicts in zip(recorded, goals, followed, strict=True)
        for asked, ok, official in zip(goal, verdicts, row[mode], strict=True)
        if not _drawn_at_random(asked)
    )
    return {
        "model": model,
        "mode": mode,
        "rules": rules,
        "rows_per_cpu_second": round(len(recorded) / seconds),
        "verdicts": equal.total(),
        "equal_to_official": equal[True],
        "prompts_passed": sum(map(all, followed)),
        "prompts_passed_official": sum(all(row[mode]) for row in recorded),
    }


def _drawn_at_random(asked: Asked) -> bool:
    return asked.name == "keywords:letter_frequency" and not asked.arguments["letter"].isalpha()


def xstest(data: Path) -> dict[str, dict[str, float]]:
    recorded = read(data / "judge_logs" / "xstest_human_refusal_labels.jsonl.gz")
    halves = {"seen (odd prompts)": 1, "unseen (even prompts)": 0}
    return {
        name: _agreement([r for r in recorded if int(r["id"].split("-")[1]) % 2 == odd]) for name, odd in halves.items()
    }


def _agreement(recorded: list[dict[str, Any]]) -> dict[str, float]:
    human = [LABELS[row["final_label"]] for row in recorded]
    graders: dict[str, Sequence[str]] = {
        "patterns": [classify(row["completion"]) for row in recorded],
        "strings": [LABELS[row["strmatch_label"]] for row in recorded],
        "gpt4": [LABELS[row["gpt4_label"]] for row in recorded],
    }
    figures: dict[str, float] = {"rows": len(recorded)}
    for name, labels in graders.items():
        same = [a == b for a, b in zip(human, labels, strict=True)]
        complies = [(a == "compliance") == (b == "compliance") for a, b in zip(human, labels, strict=True)]
        figures[f"{name}_3_classes"] = round(sum(same) / len(same), 4)
        figures[f"{name}_complies_or_not"] = round(sum(complies) / len(complies), 4)
    return figures


async def sql(queries: int = 200) -> dict[str, float]:
    verifier = SqlVerifier(SqlOptions(seconds=30.0))
    setup = "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES " + ",".join(f"({i})" for i in range(1_000))
    task = {"setup": setup, "reference": "SELECT sum(a) FROM t"}
    await verifier.prepare(task)
    started = time.perf_counter()
    verdicts = await asyncio.gather(*(verifier.verify(f"SELECT sum(a) + {i} FROM t", task) for i in range(queries)))
    seconds = time.perf_counter() - started
    await verifier.aclose()
    passed = sum(isinstance(verdict, Reward) and verdict.value == 1.0 for verdict in verdicts)
    assert passed == 1
    return {"queries": queries, "per_second": round(queries / seconds)}


if __name__ == "__main__":
    main()
