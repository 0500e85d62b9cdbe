"""Our statistics of other people's recorded judges, beside the numbers those people published.

    python -m benchmarks.judge_statistics

Three tables: LLMBar's eight judges on MT-Bench and FairEval (accuracy by order, right in both, order agreement,
kappas), PandaLM's three annotators and two judges (Cohen's kappa, Krippendorff's alpha), and AlpacaEval's win rates,
raw and with length controlled. The data is found through RLAIF_DATA and is not part of this repository. Exits with 1
where a published number is not reproduced to its last digit.
"""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.cli.cost import plain
from rlaif.judging.agreement import Choice, Look, Pair, cohen_kappa, krippendorff_alpha, verdict_figures
from rlaif.judging.bias import length_controlled_win_rate, win_rate
from rlaif.judging.gold import plurality

DATA = Path(os.environ.get("RLAIF_DATA", "../shared/data"))
_VERDICT: dict[str | None, Choice] = {"1": "a", "2": "b", None: "invalid"}


class Differences:
    """What was compared, and what was not the same."""

    def __init__(self) -> None:
        self.compared = 0
        self.found: list[str] = []

    def check(self, what: str, ours: float | None, theirs: float, *, within: float = 1e-12) -> None:
        self.compared += 1
        if ours is None or abs(ours - theirs) > within:
            self.found.append(f"{what}: {ours} here, {theirs} published")


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rb") as lines:
        for line in lines:
            yield json.loads(line)


def llmbar(differences: Differences) -> None:
    """Their kappas read "2" and no verdict as one category, 0, and compare it with labels 1 and 2; they are reproduced
    that way ("their kappa" is the one of the two orders). "of orders" and "kappa" are ours, of the verdicts as they
    are: of one order with the other, and of the verdicts with the labels."""
    logs: dict[tuple[str, str], list[Pair]] = {}
    for row in rows("judge_logs/mtbench200_faireval66_judge_logs.jsonl.gz"):
        ab, ba = (Look(_VERDICT[row["results"][-1][f"swap = {swap}"]["winner"]]) for swap in (False, True))
        pairs = logs.setdefault((row["subset"], row["evaluator"]), [])
        pairs.append(Pair(str(row["idx"]), "a" if row["label"] == 1 else "b", ab, ba))
    table = []
    for theirs in rows("judge_logs/mtbench200_faireval66_judge_statistics.jsonl.gz"):
        name = f"{theirs['subset'].removeprefix('Processed/')} {theirs['evaluator']}"
        pairs = logs[theirs["subset"], theirs["evaluator"]]
        ours = verdict_figures(pairs).estimates
        for figure, published in {
            "accuracy_ab": "correct_False",
            "accuracy_ba": "correct_True",
            "accuracy": "correct_average",
            "both_right": "correct_both",
            "swap_consistency": "equal",
        }.items():
            percent = float(theirs[published].split("= ")[-1].rstrip("%")) / 100
            differences.check(f"{name} {published}", ours[figure].value, percent)
        said = {order: [getattr(p, order).verdict == "a" for p in pairs] for order in ("ab", "ba")}
        as_labels = [1 if p.label == "a" else 2 for p in pairs]
        for published, order in (("kappa_False", "ab"), ("kappa_True", "ba")):
            numbers = [int(chose_a) for chose_a in said[order]]
            differences.check(f"{name} {published}", cohen_kappa(numbers, as_labels), theirs[published])
        agreement = cohen_kappa(said["ab"], said["ba"])
        differences.check(f"{name} kappa_agreement", agreement, theirs["kappa_agreement"])
        kappa = ours["kappa"]
        table.append(
            (
                name,
                *(_percent(ours[f].value) for f in ("accuracy_ab", "accuracy_ba", "accuracy", "both_right")),
                _percent(ours["swap_consistency"].value),
                f"{agreement:.3f}",
                f"{ours['kappa_orders'].value:.3f}",
                f"{kappa.value:.3f} ({kappa.low:.3f} to {kappa.high:.3f})",
                _percent(ours["invalid_rate"].value),
                _percent(ours["first_position_rate"].value),
            )
        )
    header = (
        "LLMBar's logs",
        "ab",
        "ba",
        "mean",
        "both",
        "equal",
        "their kappa",
        "of orders",
        "kappa",
        "invalid",
        "first",
    )
    print(plain(header, table, left=1), end="\n\n")


def pandalm(differences: Differences) -> None:
    data = list(rows("preferences/pandalm_testset_v1.jsonl.gz"))
    people = [[row[f"annotator{i}"] for row in data] for i in (1, 2, 3)]
    table = []
    for i, j, published in ((0, 1, 0.85), (0, 2, 0.88), (1, 2, 0.86)):
        kappa = cohen_kappa(people[i], people[j])
        differences.check(f"PandaLM annotators {i + 1}, {j + 1}", round(kappa or 0, 2), published)
        table.append((f"annotators {i + 1} and {j + 1}", f"{kappa:.4f}", f"{published:.2f}"))
    table.append(("alpha of the three", f"{krippendorff_alpha(list(zip(*people, strict=True))):.4f}", "-"))
    names = {0: "tie", 1: "a", 2: "b"}
    majority = [plurality([names[x] for x in votes]) for votes in zip(*people, strict=True)]  # type: ignore[misc]
    for judge in ("gpt35", "pandalm7b"):
        verdicts = [
            {"1": "a", "2": "b", "0": "tie", "Tie": "tie"}.get(str(r[f"{judge}_result"]), "invalid") for r in data
        ]
        accuracy = sum(v == m for v, m in zip(verdicts, majority, strict=True)) / len(data)
        kappa = cohen_kappa(verdicts, majority)
        table.append((f"{judge} and the majority (accuracy {accuracy:.3f})", f"{kappa:.4f}", "-"))
    print(plain(("PandaLM test set", "Cohen's kappa", "published"), table, left=1), end="\n\n")


def alpaca_eval(differences: Differences) -> None:
    texts = {(r["generator"], r["instruction"]): r["output"] for r in rows("judge_logs/alpaca_eval_outputs.jsonl.gz")}
    table = []
    for version, log, board in (
        ("1", "alpaca_eval1_gpt4_annotations", "alpaca_eval1_gpt4_leaderboard"),
        ("2", "alpaca_eval2_gpt4turbo_logprob_annotations", "alpaca_eval2_gpt4turbo_leaderboard"),
    ):
        with (DATA / "judge_logs" / f"{board}.csv").open(encoding="utf-8", newline="") as file:
            published = {row[""]: row for row in csv.DictReader(file)}
        annotations = [r for r in rows(f"judge_logs/{log}.jsonl.gz") if r["preference"] is not None]
        for model in sorted({r["generator_2"] for r in annotations}):
            kept = [r for r in annotations if r["generator_2"] == model]
            won = [0.5 if r["preference"] == 0 else r["preference"] - 1 for r in kept]  # 0 and 1.5 are draws
            theirs = published[model]
            raw = 100 * win_rate(won)
            # The last of their 16 digits depends on the order of a sum.
            differences.check(f"AlpacaEval {version} {model}", raw, float(theirs["win_rate"]), within=1e-13 * raw)
            controlled = "-"
            if all((r[g], r["instruction"]) in texts for r in kept for g in ("generator_1", "generator_2")):
                lengths = [
                    (len(texts[model, r["instruction"]]), len(texts[r["generator_1"], r["instruction"]])) for r in kept
                ]
                rate = length_controlled_win_rate(won, lengths)
                controlled = f"{100 * rate.controlled:.2f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
            lc = f"{float(theirs['length_controlled_winrate']):.2f}"
            table.append(
                (
                    f"{version} {model}",
                    str(len(won)),
                    f"{raw:.13g}",
                    f"{float(theirs['win_rate']):.13g}",
                    controlled,
                    lc,
                )
            )
    header = ("AlpacaEval", "n", "win rate", "published", "length controlled", "their own")
    print(plain(header, table, left=1), end="\n\n")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def main() -> None:
    if not (DATA / "judge_logs").is_dir():
        sys.exit(f"{DATA}: no such data; set RLAIF_DATA to the folder of the data. Skipped.")
    differences = Differences()
    llmbar(differences)
    pandalm(differences)
    alpaca_eval(differences)
    print(f"{differences.compared} published numbers compared, {len(differences.found)} different")
    print("\n".join(differences.found), end="")
    sys.exit(bool(differences.found))


if __name__ == "__main__":
    main()
