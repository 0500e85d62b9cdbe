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


def stop_if_diverged(loss: torch.Tensor, inputs: dict[str, Any], step: int, args: Any, tokenizer: Any) -> None:
    """Raises QualityError where ``loss`` is no finite number, and writes what it was computed on into diverged.json of
    the training's folder. ``args``: the trainer's, whose output_dir is ``checkpoints/`` there."""
    value = float(loss.detach())
    if math.isfinite(value):
        return
    out = Path(args.output_dir).parent
    texts = [tokenizer.decode(row) for row in inputs["input_ids"].tolist()]
    told = {"step": step, "loss": str(value), "learning_rate": args.learning_rate, "texts": texts}
    written = ""
    try:
        write_text(out / BATCH, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        written = f" The batch is in {out / BATCH}."
    except OSError:  # a full disk must not hide what went wrong
        pass
    raise QualityError(
        f"training diverged at step {step}: the loss is {value}; lower learning_rate (now {args.learning_rate:g}) and"
        f" start over.{written}"
    )


class StopWhenBroken(TrainerCallback):  # type: ignore[misc]
    """Ends the training after an optimizer step that left a weight which is no number, before that is saved: the last
    checkpoint stays a good one."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        broken = next(
            (n for n, w in model.named_parameters() if w.requires_grad and not bool(w.isfinite().all())), None
        )
        if broken is not None:
            raise QualityError(
                f"training diverged at step {state.global_step}: {broken} is no longer a number; lower learning_rate"
                f" (now {args.learning_rate:g}) and start over."
            )
