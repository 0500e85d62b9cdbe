"""A training as one self-contained HTML file: what was learned from what, each decision with its reason, each figure
over the steps. It depends on nothing but manifest.json (and samples.jsonl, if the training left one)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import InputError
from rlaif.pages import page
from rlaif.report.summary import read_object
from rlaif.runs import REPORT, write_text

SAMPLES = "samples.jsonl"
_WIDTH, _HEIGHT = 300, 90

# Figures of the curve -> what a reader is told. Others are shown under their own name.
_TITLES: Mapping[str, tuple[str, str]] = {
    "loss": ("Loss", "of each optimizer step"),
    "eval_loss": ("Loss on held-out rows", ""),
    "reward": ("Reward", "mean over rows that have one"),
    "reward_std": ("Reward, standard deviation", ""),
    "held_out_reward": ("Reward on held-out prompts", ""),
    "kl": ("KL", "from the reference, nats a completion or a token as the method says"),
    "entropy": ("Entropy", "nats a token"),
    "margin": ("Margin", "beta times (chosen - rejected), policy minus reference, nats"),
    "accuracy": ("Pairs ranked right", ""),
    "eval_margin": ("Margin on held-out pairs", ""),
    "eval_accuracy": ("Held-out pairs ranked right", ""),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Norm of the gradient", "before clipping"),
    "masked": ("Masked rows", "share of rows without a reward"),
    "flat_groups": ("Groups without signal", "all rewards equal or masked"),
    "length": ("Length", "tokens of a completion"),
    "ended": ("Ended by themselves", "share of completions with an end token"),
}


class Series(NamedTuple):
    """One figure over the steps. ``points``: "x,y x,y ..." in a box of 300 by 90; ``dots``: its measured places."""

    title: str
    note: str
    first: float
    last: float
    low: float
    high: float
    first_step: int
    last_step: int
    points: str
    dots: list[tuple[float, float]]


def is_training(folder: Path) -> bool:
    """Whether ``folder`` holds a training (and no generate run)."""
    return str(read_object(folder / "manifest.json").get("kind", "")).startswith("train ")


def render_training(folder: Path) -> str:
    """The page of a training's folder. Raises InputError when its manifest is none of a training."""
    manifest = read_object(folder / "manifest.json")
    if not is_training(folder):
        raise InputError(f"{folder}: its manifest.json is not that of a training.")
    return page(Path(__file__).with_name("training.html.jinja")).render(
        title=folder.resolve().name,
        manifest=manifest,
        series=[s for s in map(_series, _curves(manifest).items()) if s is not None],
        samples=_samples(folder / SAMPLES),
        parts={k: v for k, v in manifest.items() if k not in _SHOWN_ELSEWHERE},
    )


_SHOWN_ELSEWHERE = {"curve", "settings", "findings", "kind", "finished", "seconds", "resumed_from"}


def write_training_report(folder: Path) -> Path:
    """Write ``folder``/report.html and return its path. Raises as `render_training`."""
    write_text(folder / REPORT, render_training(folder))
    return folder / REPORT


def _curves(manifest: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in manifest.get("curve") or []:
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((int(entry["step"]), float(value)))
    return curves


def _series(item: tuple[str, Sequence[tuple[int, float]]]) -> Series | None:
    name, points = item
    title, note = _TITLES.get(name, (name.replace("_", " ").replace("/", ": "), ""))
    steps, values = [s for s, _ in points], [v for _, v in points]
    low, high = min(values), max(values)
    across, up = (max(steps) - min(steps)) or 1, (high - low) or 1.0
    places = [
        (round((s - min(steps)) / across * _WIDTH, 2), round((_HEIGHT - (v - low) / up * _HEIGHT), 2))
        for s, v in points
    ]
    line = " ".join(f"{x},{y}" for x, y in places)
    dots = places if len(places) <= 40 else [places[-1]]
    return Series(title, note, values[0], values[-1], low, high, steps[0], steps[-1], line, dots)


def _samples(path: Path) -> list[dict[str, Any]]:
    """Rows ``step``, ``prompt``, ``completion`` (and ``reward``), as the training left them."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError:
        return []
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise InputError(f"{path}: holds a line that is not JSON ({error}); delete it and report again.") from None
