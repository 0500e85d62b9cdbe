"""The recorded verdicts of other people's judges give the numbers those people published."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.judges.reply import Labels, read_probabilities
from rlaif.judging.agreement import Choice, Label, Look, Pair, cohen_kappa, krippendorff_alpha, verdict_figures
from rlaif.types import TokenLogprobs

DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (DATA / "judge_logs").is_dir(), reason=f"no data in {DATA}; set RLAIF_DATA")


def rows(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / name, "rb") as lines:
        for line in lines:
            yield json.loads(line)


def recorded() -> dict[tuple[str, str], list[Pair]]:
    """LLMBar's logs of eight judges on two sets, as pairs."""
    verdict: dict[str | None, Choice] = {"1": "a", "2": "b", None: "invalid"}
    found: dict[tuple[str, str], list[Pair]] = {}
    for row in rows("judge_logs/mtbench200_faireval66_judge_logs.jsonl.gz"):
        ab, ba = (Look(verdict[row["results"][-1][f"swap = {swap}"]["winner"]]) for swap in (False, True))
        label: Label = "a" if row["label"] == 1 else "b"
        pairs = found.setdefault((row["subset"], row["evaluator"]), [])
        pairs.append(Pair(str(row["idx"]), label, ab, ba))
    return found


def test_every_statistic_of_llmbar_is_reproduced() -> None:
    logs = recorded()
    published = list(rows("judge_logs/mtbench200_faireval66_judge_statistics.jsonl.gz"))
    assert len(published) == len(logs) == 16
    for theirs in published:
        pairs = logs[theirs["subset"], theirs["evaluator"]]
        ours = {name: e.value for name, e in verdict_figures(pairs, resamples=1).estimates.items()}

        def percent(name: str, theirs: dict[str, Any] = theirs) -> float:
            return float(theirs[name].split("= ")[-1].rstrip("%")) / 100

        assert ours["accuracy_ab"] == pytest.approx(percent("correct_False"), abs=1e-12)
        assert ours["accuracy_ba"] == pytest.approx(percent("correct_True"), abs=1e-12)
        assert ours["accuracy"] == pytest.approx(percent("correct_average"), abs=1e-12)
        assert ours["both_right"] == pytest.approx(percent("correct_both"), abs=1e-12)
        assert ours["swap_consistency"] == pytest.approx(percent("equal"), abs=1e-12)
        # Their kappas read every verdict that is not "1" as "0" (so "2" and no verdict are one category), and compare
        # that with labels 1 and 2. Done the same way, the numbers are the same.
        ab = [1 if p.ab and p.ab.verdict == "a" else 0 for p in pairs]
        ba = [1 if p.ba and p.ba.verdict == "a" else 0 for p in pairs]
        labels = [1 if p.label == "a" else 2 for p in pairs]
        assert cohen_kappa(ab, ba) == pytest.approx(theirs["kappa_agreement"], abs=1e-12)
        assert cohen_kappa(ab, labels) == pytest.approx(theirs["kappa_False"], abs=1e-12)
        assert cohen_kappa(ba, labels) == pytest.approx(theirs["kappa_True"], abs=1e-12)
        if all(look.verdict != "invalid" for p in pairs for look in p.looks):
            assert ours["kappa_orders"] == pytest.approx(theirs["kappa_agreement"], abs=1e-12)


def test_pandalms_annotators_agree_as_published() -> None:
    table = list(rows("preferences/pandalm_testset_v1.jsonl.gz"))
    first, second, third = ([row[f"annotator{i}"] for row in table] for i in (1, 2, 3))
    assert [f"{cohen_kappa(*two):.2f}" for two in ((first, second), (first, third), (second, third))] == [
        "0.85",
        "0.88",
        "0.86",
    ]
    alpha = krippendorff_alpha(list(zip(first, second, third, strict=True)))
    assert alpha is not None
    assert 0.85 < alpha < 0.88  # between the pairwise kappas, as it must be for such even annotators


def test_alpaca_evals_preferences_are_what_we_read_from_the_same_log_probs() -> None:
    """GPT-4 answers "m" or "M"; which of them stands for which output was drawn for each row and is not recorded."""
    read = 0
    for row in rows("judge_logs/alpaca_eval2_gpt4turbo_logprob_annotations.jsonl.gz"):
        if not row.get("top_logprobs"):
            continue
        top = tuple(sorted(row["top_logprobs"][0].items(), key=lambda item: -item[1]))
        p = read_probabilities(TokenLogprobs(token=top[0][0], logprob=top[0][1], top=top), Labels("m", "M"))
        assert p is not None
        assert min(abs(row["preference"] - 1 - x) for x in (p.first, p.second)) < 1e-7
        read += 1
    assert read == 3207
