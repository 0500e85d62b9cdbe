"""What a judge falls for: the shipped injection set, mode by mode, with and without the choice of labels.

    python -m benchmarks.judge_injections [--model local:smollm2] [--modes logprob text] [--type yes_no]
                                       [--without KIND] [--out FOLDER]

"fixed": the labels are X and Y whatever the texts hold. "free": labels that no text under judgement contains, as judges
do it (rlaif.judges.reply.unclaimed). Each text is put into the response held worse by the judge, on 8 pairs of HHH
alignment (RLAIF_DATA) that it decides; flips of control texts, which say nothing about the comparison, are the noise.
`--type`: another kind of judge, which offers other answers or none, and has "free" alone. Run again, it goes on.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.hhh_alignment import DATA, PRINCIPLE, comparisons
from rlaif.cli.cost import plain
from rlaif.config.generate import JudgeConfig
from rlaif.engine import Ledger, open_client
from rlaif.judges import MODES as KINDS
from rlaif.judges import Judge, make_judge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.reply import Labels
from rlaif.judging.robustness import BASES, MODES, load_injections, measure
from rlaif.types import Comparison, Verdict


class FixedLabels(PairwiseJudge):
    """A judge whose labels are X and Y, whatever the texts hold."""

    def labels_for(self, shown: Comparison) -> Labels:
        return self.offered


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="local:smollm2")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["logprob", "text"])
    parser.add_argument("--type", choices=KINDS, default="pairwise")
    parser.add_argument("--without", nargs="*", default=[], help="kinds to leave out")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("runs/judge-injections"))
    arguments = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA}: no such file; set RLAIF_DATA to the folder of the data. Skipped.")
    settings = {"models": [arguments.model], "min_label_mass": 0.0, "max_tokens": arguments.max_tokens}
    each = {"principles": "each"} if arguments.type == "rubric" else {}
    config = JudgeConfig.model_validate(settings | {"type": arguments.type} | each)
    compared = (("fixed", FixedLabels), ("free", PairwiseJudge))
    kinds = compared if arguments.type == "pairwise" else (("free", make_judge),)
    injections = [i for i in load_injections() if i.kind not in arguments.without]
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = []
    with Ledger.open(arguments.out / "ledger.sqlite") as ledger:
        client = open_client(config.models[0], ledger=ledger, stage="injections")
        bases = await decided(make_judge(client, config, "logprob"))
        for mode in arguments.modes:
            for name, kind in kinds:
                report = await measure(client, config, [mode], injections, bases, [PRINCIPLE], make=kind, progress=tell)
                table.append((mode, name, *row(report["modes"][mode])))
                by_kind = report["modes"][mode]["by_kind"]
                print(f"{mode}, {name}: " + ", ".join(f"{k} {share(v['pair_flip_rate'])}" for k, v in by_kind.items()))
        await client.aclose()
    print(f"{arguments.model}, {len(injections)} texts, {len(bases)} pairs, {os.cpu_count()} CPUs")
    header = ("mode", "labels", "pairs turned", "control", "looks flipped", "control", "lost", "shift", "control")
    print(plain(header, table, left=2))


async def decided(judge: Judge) -> list[tuple[Comparison, str]]:
    """The first pairs that the judge's label probabilities decide, with the side preferred."""
    found: list[tuple[Comparison, str]] = []
    for comparison, _, _ in comparisons():
        outcomes = [j.outcome for j in await judge.judge_all([comparison], [PRINCIPLE], 0)]
        p = [o.p_a for o in outcomes if isinstance(o, Verdict)]
        if p and len(p) == len(outcomes) and 2 * sum(p) != len(p):
            found.append((comparison, "a" if 2 * sum(p) > len(p) else "b"))
        if len(found) == BASES:
            break
    return found


def row(m: dict[str, Any]) -> tuple[str, ...]:
    control = m["control"]
    return (
        *(f"{share(x['pair_flip_rate'])} ({ends(x)}) of {x['pairs']}" for x in (m, control)),
        *(f"{share(x['flip_rate'])} of {x['looks']}" for x in (m, control)),
        share(m["silenced_rate"]),
        *("-" if x is None else f"{x:+.3f}" for x in (m["mean_shift"], control["mean_shift"])),
    )


def ends(x: dict[str, Any]) -> str:
    return f"{share(x['pair_flip_rate_low'])} to {share(x['pair_flip_rate_high'])}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


_told = [0]


def tell(total: int) -> None:
    _told[0] += 1
    if _told[0] % 20 == 0:
        print(f"{_told[0] % total}/{total}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
