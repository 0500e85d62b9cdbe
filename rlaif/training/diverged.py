"""How a training ends that has gone wrong: before a loss or a weight that is no number is saved, with the batch that
did it written out. Imports torch and transformers."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlaif.errors import QualityError
from rlaif.runs import write_text

BATCH = "diverged.json"


class StopWhenBroken(TrainerCallback):  # type: ignore[misc]
    """Ends the training after an optimizer step that left a weight which is no number, before that is saved: the last
    checkpoint stays a good one. ``batch``: what the step in progress has been computed on so far."""

    def __init__(self) -> None:
        self.batch: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        bad = next((n for n, w in model.named_parameters() if w.requires_grad and not bool(w.isfinite().all())), None)
        if bad is not None:
            told = {"step": state.global_step, "weight": bad, "learning_rate": args.learning_rate}
            raise _diverged(f"{bad} is no longer a number", told, args, others.get("processing_class"), self.batch)
        self.batch.clear()


def stop_if_diverged(trainer: Any, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
    """Raises QualityError where ``loss`` is no finite number, and writes what it was computed on into diverged.json of
    the training's folder. ``trainer``: of transformers; its output_dir is ``checkpoints/`` there."""
    watch = next((c for c in trainer.callback_handler.callbacks if isinstance(c, StopWhenBroken)), None)
    if watch is not None and trainer.model.training:
        watch.batch.append(inputs["input_ids"])
    value = float(loss.detach())
    if not math.isfinite(value):
        step = trainer.state.global_step + 1
        told = {"step": step, "loss": str(value), "learning_rate": trainer.args.learning_rate}
        batch = [inputs["input_ids"]]
        raise _diverged(f"the loss is {value}", told, trainer.args, trainer.processing_class, batch)


def _diverged(what: str, told: dict[str, Any], args: Any, tokenizer: Any, batch: list[torch.Tensor]) -> QualityError:
    file = Path(args.output_dir).parent / BATCH
    texts = [tokenizer.decode(row) for ids in batch for row in ids.tolist()] if tokenizer is not None else []
    written = ""
    try:
        write_text(file, json.dumps({**told, "texts": texts}, indent=2, ensure_ascii=False) + "\n")
        written = f" The batch is in {file}."
    except OSError:  # a full disk must not hide what went wrong
        pass
    return QualityError(
        f"training diverged at step {told['step']}: {what}; lower learning_rate (now {args.learning_rate:g}) and start"
        f" over.{written}"
    )
