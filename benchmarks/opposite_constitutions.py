"""Does the constitution steer the model? The quickstart with `brief` and with `thorough`, nothing else changed.

    python -m benchmarks.opposite_constitutions [--seeds 0 1 2] [--out FOLDER]

For each seed both runs use the same prompts, the same samples (the second run finds them in a copy of the first one's
ledger) and the same held-out questions and sampling seeds. Reported: mean words before and after, the paired difference
with its 95 % interval, and over seeds the mean and standard deviation of the gap between the two tuned models. About
ten minutes a seed on two idle cores.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from rlaif.quickstart import Update, quickstart

CONSTITUTIONS = ("brief", "thorough")


def silent(title: str) -> Update:
    return lambda done, total, note: None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/opposite"))
    arguments = parser.parse_args()
    gaps = []
    print(
        "seed  constitution  words before  after   difference (95 %)         check before  after   seconds", flush=True
    )
    for seed in arguments.seeds:
        after = {}
        for name in CONSTITUTIONS:
            out = arguments.out / f"{name}-{seed}"
            first = arguments.out / f"{CONSTITUTIONS[0]}-{seed}" / "ledger.sqlite"
            if name != CONSTITUTIONS[0] and not out.exists():
                share_samples(first, out, name, seed)
            started = time.monotonic()
            result = quickstart(name, out, seed=seed, say=lambda line: print(line, file=sys.stderr), progress=silent)
            metrics = {m.name: m for m in result.comparison.metrics}
            words = metrics["words"]
            check = next(m for key, m in metrics.items() if key.startswith("check"))
            after[name] = words.after
            print(
                f"{seed:>4}  {name:<12}  {words.before:>12.1f}  {words.after:>5.1f}   {words.difference:+6.1f}"
                f" ({words.low:+.1f} to {words.high:+.1f})".ljust(70)
                + f"{check.before:>8.2f}  {check.after:>9.2f}   {time.monotonic() - started:>7.0f}",
                flush=True,
            )
        gaps.append(after["thorough"] - after["brief"])
    deviation = statistics.stdev(gaps) if len(gaps) > 1 else float("nan")
    print(f"words, thorough minus brief, after tuning: {statistics.mean(gaps):+.1f} (sd over seeds {deviation:.1f})")


def share_samples(ledger: Path, out: Path, constitution: str, seed: int) -> None:
    """Start ``out`` as a run of its own that finds the samples of the first run in its ledger."""
    from rlaif.quickstart import generate_config
    from rlaif.runs import LEDGER, open_run

    open_run(out, generate_config(constitution, out, seed)).close()
    shutil.copy(ledger, out / LEDGER)


if __name__ == "__main__":
    main()
