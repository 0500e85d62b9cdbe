"""The folder of a training, whatever the method: ``config.yaml`` and ``manifest.json`` from the beginning,
``checkpoints/`` while it trains, and at the end ``model/`` (all weights, with the tokenizer) and, for LoRA,
``adapter/``. ``model/`` appears in one piece: a training is finished exactly when it is there.
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
from typing import Any

import yaml

from rlaif.config.train import TrainConfig
from rlaif.errors import InputError
from rlaif.runs import write_manifest, write_text
from rlaif.training.card import model_card

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


@dataclass(frozen=True)
class Trained:
    """What a method hands over when its last step is done. ``save_model`` and ``save_adapter`` fill an empty folder;
    ``manifest``: what the training adds to what was known before it."""

    save_model: Callable[[Path], None]
    save_adapter: Callable[[Path], None] | None
    manifest: dict[str, Any]


class StopAsked:
    """Whether the user has asked to end after the step in progress (Ctrl-C, SIGTERM)."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        self.asked = True


def train_in_folder(
    config: TrainConfig,
    manifest: dict[str, Any],
    train: Callable[[Path | None, StopAsked], Trained],
    *,
    steps: int,
    resume: bool,
) -> TrainResult:
    """Run ``train`` in ``config.out`` and leave its model there; return what is there if it is finished already.

    ``manifest``: what is known before training; its ``data.digest`` tells changed data. ``train`` gets the checkpoint
    to go on from (None: from the beginning), looks at the `StopAsked` after each step and then writes a checkpoint and
    returns; it writes checkpoints as ``checkpoints/checkpoint-STEP``, with ``trainer_state.json`` last.

    Raises InputError for a folder made with another config or other data, and for an unfinished one without
    ``resume``; KeyboardInterrupt when it was stopped (at once when Ctrl-C is pressed again); and what ``train`` raises.
    """
    checkpoint = _open(config, manifest, steps, resume)
    if (config.out / MODEL).is_dir():
        return _result(config, json.loads((config.out / MANIFEST).read_text(encoding="utf-8")))
    started = time.monotonic()
    earlier = _seconds_before(config.out) if checkpoint else 0.0
    stop = StopAsked()
    try:
        with _finishing_the_step(stop.ask):
            trained = train(checkpoint, stop)
        if stop.asked:
            raise KeyboardInterrupt
    finally:
        _note_seconds(config.out, earlier + time.monotonic() - started)
    done = {
        "finished": True,
        "seconds": round(earlier + time.monotonic() - started, 1),
        "resumed_from": checkpoint.name if checkpoint else None,
    }
    return _save(config, trained, manifest | done | trained.manifest)


@contextmanager
def _finishing_the_step(ask: Callable[[], None]) -> Iterator[None]:
    """While inside, the first Ctrl-C or SIGTERM calls ``ask``; the second acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number: int, frame: FrameType | None) -> None:
        restore()
        ask()

    for number in before:
        signal.signal(number, asked)
    try:
        yield
    finally:
        restore()


def _open(config: TrainConfig, manifest: dict[str, Any], steps: int, resume: bool) -> Path | None:
    """Make ``out`` this training's folder, or find that it is. Returns the checkpoint to go on from, if any."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with out.")
    resolved = config.model_dump(mode="json")
    if (out / CONFIG).is_file():
        _same_training(out, resolved, type(config), manifest)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: this folder is not empty and holds no training; give another with --out.")
    if (out / MODEL).is_dir():
        return None
    checkpoint = last_checkpoint(out / CHECKPOINTS)
    if checkpoint and not resume:
        raise InputError(
            f"{out}: holds an unfinished training ({checkpoint.name} of {steps} steps); go on with"
            " --resume, or give another folder with --out."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / CONFIG, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        if not checkpoint:
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            write_manifest(out, manifest | {"finished": False})
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}).") from None
    return checkpoint


def _same_training(
    out: Path, resolved: dict[str, Any], config_class: type[TrainConfig], manifest: dict[str, Any]
) -> None:
    try:
        known = yaml.safe_load((out / CONFIG).read_text(encoding="utf-8"))
        before = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{out}: is no folder of a training; give another with --out.") from None
    if (was := before.get("kind")) != manifest["kind"]:
        raise InputError(f"{out}: holds the result of '{was}'; give another folder with --out.")
    known = _with_defaults(known, config_class)  # a folder of an earlier version lacks newer keys
    differing = sorted(
        f"{key}.{inner}" if inner else key
        for key in {*known, *resolved} - {"out"}
        for inner in _differing(known.get(key), resolved.get(key))
    )
    if differing:
        raise InputError(
            f"{out}: was made with another config (different: {', '.join(differing)}); give another folder with --out."
        )
    if before.get("data", {}).get("digest") != manifest["data"]["digest"]:
        raise InputError(f"{out}: {manifest['data']['source']} has changed since; give another folder with --out.")


def _with_defaults(known: dict[str, Any], config_class: type[TrainConfig]) -> dict[str, Any]:
    try:
        return config_class.model_validate(known).model_dump(mode="json")
    except ValueError:  # made by a version that knew other keys: they are compared as they stand
        return known


def _differing(old: Any, new: Any) -> list[str]:
    """The inner keys that differ, or [""] for the value itself."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [key for key in {*old, *new} if old.get(key) != new.get(key)]
    return [] if old == new else [""]


def last_checkpoint(folder: Path) -> Path | None:
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


def _save(config: TrainConfig, trained: Trained, manifest: dict[str, Any]) -> TrainResult:
    out = config.out
    if trained.save_adapter is not None:
        in_one_piece(out / ADAPTER, trained.save_adapter)
    write_manifest(out, manifest)  # first: what has a model has its manifest

    def write_model(folder: Path) -> None:
        trained.save_model(folder)
        write_text(folder / "README.md", model_card(manifest))

    in_one_piece(out / MODEL, write_model)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # they are large, and the result is complete
    return _result(config, manifest)


def in_one_piece(folder: Path, write: Callable[[Path], None]) -> None:
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


def keep_samples(file: Path, step: int) -> None:
    """Forget the samples of steps after ``step``: they will be made again."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(file, "".join(f"{line}\n" for line in kept))


def _result(config: TrainConfig, manifest: dict[str, Any]) -> TrainResult:
    out = config.out
    return TrainResult(out, out / MODEL, out / ADAPTER if config.lora else None, manifest)
