"""What a training says while it runs, and how it ends early. Imports transformers."""

import time
from typing import Any

from transformers import TrainerCallback

from rlaif.training.diverged import StopWhenBroken
from rlaif.training.folder import Progress, StopAsked
from rlaif.training.plan import Plan


class Shown(TrainerCallback):  # type: ignore[misc]
    """Reports each optimizer step to ``progress`` (steps done, steps in all, note)."""

    def __init__(self, progress: Progress, plan: Plan) -> None:
        self.progress, self.plan = progress, plan
        self.last: dict[str, float] = {}
        self.began = time.monotonic()
        self.references = 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the first step these are the reference's forward passes.
        if state.max_steps <= 0:
            self.references += args.per_device_train_batch_size
            pairs = self.plan.train_rows + self.plan.eval_rows
            self.progress(0, self.plan.steps, f"reference log-probs {min(self.references, pairs)}/{pairs}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.last |= logs or {}
        if "loss" in (logs or {}):
            note = f"loss {self.last['loss']:.3f}"
            if "rewards/accuracies" in self.last:
                note += f", {self.last['rewards/accuracies']:.0%} of pairs right"
            elif "accuracy" in self.last:
                note += f", {self.last['accuracy']:.0%} of pairs right"
            self.progress(state.global_step, state.max_steps, note)


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Ends the training after the step in progress, with a checkpoint, once the user asked for it; and saves none at
    the very end, where the model itself is about to be written."""

    def __init__(self, stop: StopAsked) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif self.stop.asked:
            control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control


def make_callbacks(progress: Progress, plan: Plan, stop: StopAsked) -> list[TrainerCallback]:
    return [Shown(progress, plan), StopWhenBroken(), StopWhenAsked(stop)]
