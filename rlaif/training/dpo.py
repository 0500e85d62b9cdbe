"""`rlaif train dpo`: preference pairs and a model in, a tuned model out, in one folder.

The folder ``out`` holds ``config.yaml`` and ``manifest.json`` from the beginning, ``checkpoints/`` while it trains, and
at the end ``model/`` (all weights, with the tokenizer) and, for LoRA, ``adapter/``. ``model/`` appears in one piece:
a training is finished exactly when it is there.
"""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from rlaif.config.train import TrainDPOConfig
from rlaif.embedded import keep_buffers
from rlaif.errors import InputError
from rlaif.runs import write_manifest, write_text
from rlaif.training.check import CheckReport, Prepared, prepare

if TYPE_CHECKING:
    from rlaif.training.trl_adapter import PairTrainer

CONFIG, MANIFEST, MODEL, ADAPTER, CHECKPOINTS = "config.yaml", "manifest.json", "model", "adapter", "checkpoints"

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what to say beside it


@dataclass(frozen=True)
class TrainResult:
    """``model`` loads with transformers' ``from_pretrained``; ``adapter`` with peft's (None: all weights were trained).
    ``manifest``: what is in manifest.json."""

    out: Path
    model: Path
    adapter: Path | None
    manifest: dict[str, Any]


def train_dpo(
    config: TrainDPOConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Train ``config.model`` on the pairs of ``config.data`` and leave the tuned model in ``config.out``.

    ``on_check`` gets the report of `check_dpo` before anything is computed. A folder that holds this
    training finished already is returned as it is. ``resume`` continues from the last checkpoint, exactly.

    Raises InputError for what `check_dpo` refuses, for a folder made with another config or other data, and for an
    unfinished one without ``resume``; QualityError when the loss is no longer a number; KeyboardInterrupt after
    Ctrl-C, once the step in progress is done and its checkpoint written (at once when pressed again).
    """
    prepared = prepare(config)
    on_check(prepared.report)
    checkpoint = _open(config, prepared.report, resume)
    if (config.out / MODEL).is_dir():
        return _result(config, json.loads((config.out / MANIFEST).read_text(encoding="utf-8")))
    started = time.monotonic()
    earlier = _seconds_before(config.out) if checkpoint else 0.0
    try:
        trainer = _train(config, prepared, checkpoint, progress)
    finally:
        _note_seconds(config.out, earlier + time.monotonic() - started)
    manifest = _manifest(config, prepared.report) | {
        "finished": True,
        "seconds": round(earlier + time.monotonic() - started, 1),
        "shared_prompts": trainer.shares_prompts,
        "resumed_from": checkpoint.name if checkpoint else None,
        "curve": _curve(trainer.state.log_history),
    }
    _save(config, trainer, prepared.tokenizer, manifest)
    return _result(config, manifest)


def _train(config: TrainDPOConfig, prepared: Prepared, checkpoint: Path | None, progress: Progress) -> "PairTrainer":
    from transformers import set_seed

    from rlaif.training.callbacks import make_callbacks
    from rlaif.training.trl_adapter import make_trainer

    if prepared.plan.device == "cpu":
        keep_buffers()
    set_seed(config.seed)  # the adapter's first weights are drawn
    shown, stop = make_callbacks(progress, prepared.plan)
    trainer = make_trainer(
        config,
        prepared.plan,
        prepared.train,
        prepared.evaluate,
        prepared.tokenizer,
        prepared.model_path,
        config.out / CHECKPOINTS,
        [shown, stop],
    )
    with _finishing_the_step(stop.ask):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked:
        raise KeyboardInterrupt
    return trainer


@contextmanager
def _finishing_the_step(ask: Callable[[], None]) -> Iterator[None]:
    """While inside, the first Ctrl-C calls ``ask``; the second interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        ask()

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------- the folder


def _open(config: TrainDPOConfig, report: CheckReport, resume: bool) -> Path | None:
    """Make ``out`` this training's folder, or find that it is. Returns the checkpoint to go on from, if any."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with out.")
    resolved = config.model_dump(mode="json")
    if (out / CONFIG).is_file():
        _same_training(out, resolved, report)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: this folder is not empty and holds no training; give another with --out.")
    if (out / MODEL).is_dir():
        return None
    checkpoint = _last_checkpoint(out / CHECKPOINTS)
    if checkpoint and not resume:
        raise InputError(
            f"{out}: holds an unfinished training ({checkpoint.name} of {report.cost.steps} steps); go on with"
            " --resume, or give another folder with --out."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / CONFIG, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        if not checkpoint:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            write_manifest(out, _manifest(config, report))
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}).") from None
    return checkpoint


def _same_training(out: Path, resolved: dict[str, Any], report: CheckReport) -> None:
    try:
        known = yaml.safe_load((out / CONFIG).read_text(encoding="utf-8"))
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{out}: is no folder of a training; give another with --out.") from None
    differing = sorted(
        f"{key}.{inner}" if inner else key
        for key in {*known, *resolved} - {"out"}
        for inner in _differing(known.get(key), resolved.get(key))
    )
    if differing:
        raise InputError(
            f"{out}: was made with another config (different: {', '.join(differing)}); give another folder with --out."
        )
    if manifest.get("data", {}).get("digest") != report.data.digest:
        raise InputError(f"{out}: {report.data.source} has changed since; give another folder with --out.")


def _differing(old: Any, new: Any) -> list[str]:
    """The inner keys that differ, or [""] for the value itself."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [key for key in {*old, *new} if old.get(key) != new.get(key)]
    return [] if old == new else [""]


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last)."""
    whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


_SECONDS = "seconds.json"  # of work in this folder so far: in checkpoints/, for it is gone when the training is done


def _note_seconds(out: Path, seconds: float) -> None:
    if (out / CHECKPOINTS).is_dir():
        write_text(out / CHECKPOINTS / _SECONDS, json.dumps(seconds))


def _seconds_before(out: Path) -> float:
    file = out / CHECKPOINTS / _SECONDS
    return float(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else 0.0


def _save(config: TrainDPOConfig, trainer: "PairTrainer", tokenizer: Any, manifest: dict[str, Any]) -> None:
    out = config.out
    if config.lora:
        _in_one_piece(out / ADAPTER, trainer.save_adapter)
    model = trainer.trained_model()

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_manifest(out, manifest)  # first: what has a model has its manifest
    _in_one_piece(out / MODEL, write)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # they are large, and the result is complete


def _in_one_piece(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder under another name, then rename it."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as name:
        part = Path(name) / folder.name
        part.mkdir()
        write(part)
        for file in part.iterdir():  # safetensors writes private files; a folder is handed on
            file.chmod(0o644)
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


# -------------------------------------------------------------------------------------------------- the manifest


def _manifest(config: TrainDPOConfig, report: CheckReport) -> dict[str, Any]:
    return {
        "kind": "train dpo",
        "finished": False,
        "versions": report.versions,
        "config": config.model_dump(mode="json"),
        "data": report.data.model_dump(mode="json"),
        "model": report.model.model_dump(mode="json"),
        "cost": report.cost.model_dump(mode="json"),
        "settings": [setting.model_dump(mode="json") for setting in report.settings],
        "findings": [finding.model_dump(mode="json") for finding in report.findings],
    }


_LOGGED = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "eval_loss": "eval_loss",
    "eval_rewards/margins": "eval_margin",
    "eval_rewards/accuracies": "eval_accuracy",
}


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each step (and evaluation): the loss, the mean margin beta * (chosen - rejected) in nats, the share of pairs
    with a positive margin, the learning rate and the norm of the gradient."""
    points = []
    for entry in log_history:
        point = {name: float(entry[key]) for key, name in _LOGGED.items() if key in entry}
        if "loss" in point or "eval_loss" in point:
            points.append({"step": entry["step"], **point})
    return points


def _result(config: TrainDPOConfig, manifest: dict[str, Any]) -> TrainResult:
    out = config.out
    return TrainResult(out, out / MODEL, out / ADAPTER if config.lora else None, manifest)
