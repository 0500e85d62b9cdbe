"""The page of a training: every figure of the curve, every decision, nothing that could run."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError
from rlaif.report import write_report
from tests.report.test_html import HOSTILE, Page

MANIFEST: dict[str, Any] = {
    "kind": "train dpo",
    "finished": True,
    "seconds": 12.3,
    "resumed_from": "checkpoint-2",
    "config": {"data": HOSTILE},
    "settings": [{"name": "device", "value": "cpu", "reason": HOSTILE}],
    "findings": [{"level": "warning", "text": HOSTILE}],
    "curve": [{"step": 1, "loss": 0.75, "reward": 0.0, "own/figure": 3.0}, {"step": 2, "loss": 0.5, "reward": 1.0}],
}


def page(folder: Path, manifest: dict[str, Any]) -> Page:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Page(write_report(folder))


def test_every_figure_decision_and_sample_is_shown_and_no_text_is_markup(tmp_path: Path) -> None:
    sample = {"step": 2, "prompt": HOSTILE, "completion": HOSTILE, "reward": 0.25}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    text = page(tmp_path, MANIFEST).text
    for shown in ("Loss", "0.75 → 0.5", "Reward", "own: figure", "resumed from checkpoint-2", "device", "reward 0.250"):
        assert shown in text
    assert text.count("alert(1)") >= 5


@pytest.mark.parametrize("curve", [None, [], [{"step": 1, "loss": float("nan")}], [{"step": 3, "loss": 1.0}]])
def test_a_curve_of_no_or_one_or_undefined_points_is_still_a_page(tmp_path: Path, curve: Any) -> None:
    assert "Over the steps" in page(tmp_path, {**MANIFEST, "curve": curve, "finished": False}).text


def test_samples_that_are_broken_are_named(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{not json\n")
    with pytest.raises(InputError, match=r"samples\.jsonl: holds a line that is not JSON"):
        page(tmp_path, MANIFEST)
