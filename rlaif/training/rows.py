"""The way of a training that learns from rows known before it begins (sft, dpo, kto), whatever its loss."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlaif.config.train import TrainConfig
from rlaif.embedded import keep_buffers
from rlaif.training.check import CheckReport
from rlaif.training.folder import Progress, StopAsked, Trained, TrainResult, train_in_folder
from rlaif.training.plan import Plan


class Prepared(Protocol):
    """A training ready to begin. ``tokenizer``: saved beside the weights."""

    @property
    def report(self) -> CheckReport: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def tokenizer(self) -> Any: ...


def train_rows(
    method: str,
    config: TrainConfig,
    prepared: Prepared,
    open_trainer: Callable[[Sequence[Any]], Any],
    facts: Callable[[Any], dict[str, Any]],
    *,
    resume: bool,
    progress: Progress,
) -> TrainResult:
    """Train with the trainer that ``open_trainer`` makes of the callbacks it is given (one of ``trl_adapter``), in
    ``config.out``. ``facts``: what the trained trainer adds to the manifest. Raises as `train_in_folder`."""

    def train(checkpoint: Path | None, stop: StopAsked) -> Trained:
        from transformers import set_seed

        from rlaif.training.callbacks import make_callbacks
        from rlaif.training.saving import run

        if prepared.plan.device == "cpu":
            keep_buffers()
        set_seed(config.seed)  # the adapter's first weights are drawn
        trainer = open_trainer(make_callbacks(progress, prepared.plan, stop))
        run(trainer, checkpoint)

        def save_model(folder: Path) -> None:
            trainer.trained_model().save_pretrained(folder)
            prepared.tokenizer.save_pretrained(folder)

        return Trained(save_model, trainer.save_adapter if config.lora else None, facts(trainer))

    manifest = prepared.report.manifest(f"train {method}", config)
    return train_in_folder(config, manifest, train, steps=prepared.plan.steps, resume=resume)
