"""`rlaif train dpo`: preference pairs and a model in, a tuned model out, in one folder (see folder.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlaif.config.train import TrainDPOConfig
from rlaif.embedded import keep_buffers
from rlaif.training.check import CheckReport, Prepared, prepare
from rlaif.training.folder import CHECKPOINTS, Progress, StopAsked, Trained, TrainResult, train_in_folder


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

    def train(checkpoint: Path | None, stop: StopAsked) -> Trained:
        return _train(config, prepared, checkpoint, stop, progress)

    manifest = prepared.report.manifest("train dpo", config)
    return train_in_folder(config, manifest, train, steps=prepared.plan.steps, resume=resume)


def _train(
    config: TrainDPOConfig, prepared: Prepared, checkpoint: Path | None, stop: StopAsked, progress: Progress
) -> Trained:
    from transformers import set_seed

    from rlaif.training.callbacks import make_callbacks
    from rlaif.training.saving import run
    from rlaif.training.trl_adapter.dpo import make_trainer

    if prepared.plan.device == "cpu":
        keep_buffers()
    set_seed(config.seed)  # the adapter's first weights are drawn
    trainer = make_trainer(
        config,
        prepared.plan,
        prepared.train,
        prepared.evaluate,
        prepared.tokenizer,
        prepared.model_path,
        config.out / CHECKPOINTS,
        make_callbacks(progress, prepared.plan, stop),
    )
    run(trainer, checkpoint)

    def save_model(folder: Path) -> None:
        trainer.trained_model().save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)

    facts = {"shared_prompts": trainer.shares_prompts, "curve": _curve(trainer.state.log_history)}
    return Trained(save_model, trainer.save_adapter if config.lora else None, facts)


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
