"""Peak memory of a whole run on scripted models, for few and for many prompts.

    python -m benchmarks.generation.memory [--prompts 100 100000]

Two samples of each prompt, judged in one order: 3 calls a prompt, through limiter, ledger and row files. Each run is
a process of its own; its peak resident set is what the kernel says when it has ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.generation.peers import ROOT
from rlaif.hashing import uniform
from rlaif.types import ChatRequest

COUNTS = (100, 100_000)
_SENTENCE = "This is a plain sentence of a sample that says neither much nor little. "


def policy(request: ChatRequest) -> str:
    return f"Sample {uniform(request.seed)}. {_SENTENCE * 6}"


def judge(request: ChatRequest) -> str:
    return "X" if uniform(request.messages[-1].content) < 0.5 else "Y"


def run(prompts: int, folder: Path) -> None:
    """One run, in this process."""
    from benchmarks.generation.load import make_prompts
    from rlaif.config.generate import GenerateConfig
    from rlaif.generation import generate

    source, constitution = folder / "prompts.jsonl", folder / "constitution.yaml"
    with source.open("w") as file:
        for start in range(0, prompts, 1000):  # never all of them in memory
            texts = make_prompts(min(1000, prompts - start))
            file.writelines(json.dumps({"prompt": f"{start}: {text}"}) + "\n" for text in texts)
    constitution.write_text(
        'name: quality\nversion: "1"\nprinciples:\n  - id: better\n    compare: Which response is better?\n'
    )
    config = {
        "prompts": str(source),
        "constitution": str(constitution),
        "policy": {"model": "scripted:benchmarks.generation.memory:policy", "n": 2},
        "judge": {"models": ["scripted:benchmarks.generation.memory:judge"], "orders": "one", "labels": "text"},
        "out": str(folder / "run"),
    }
    result = generate(GenerateConfig.model_validate(config))
    assert result.manifest["counts"]["comparisons"]["pairs"] == prompts, result.manifest["counts"]


def peak(prompts: int) -> tuple[float, float]:
    """(MiB at the peak, seconds) of a run in a process of its own."""
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        command = [sys.executable, "-m", "benchmarks.generation.memory", "--run", str(prompts), "--folder", folder]
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the run of {prompts} prompts failed")
        return usage.ru_maxrss / 1024, time.perf_counter() - begun


def measure(counts: Sequence[int] = COUNTS) -> None:
    first: float | None = None
    for count in counts:
        mib, seconds = peak(count)
        first = first or mib
        ratio = f"{mib / first:.2f} of that of {counts[0]:,}"
        print(f"{count:,} prompts: {mib:.0f} MiB at the peak ({ratio}), {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run, args.folder)
    else:
        measure(args.prompts)


if __name__ == "__main__":
    main()
