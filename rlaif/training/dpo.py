"""`rlaif train dpo`: preference pairs and a model in, a tuned model out, in one folder (see folder.py)."""

from collections.abc import Callable, Sequence
from typing import Any

from rlaif.config.train import TrainDPOConfig
from rlaif.training.check import CheckReport, prepare
from rlaif.training.folder import CHECKPOINTS, Progress, TrainResult
from rlaif.training.rows import train_rows


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

    def open_trainer(callbacks: Sequence[Any]) -> Any:
        from rlaif.training.trl_adapter.dpo import make_trainer

        return make_trainer(
            config,
            prepared.plan,
            prepared.train,
            prepared.evaluate,
            prepared.tokenizer,
            prepared.model_path,
            config.out / CHECKPOINTS,
            callbacks,
        )

    return train_rows("dpo", config, prepared, open_trainer, _facts, resume=resume, progress=progress)


def _facts(trainer: Any) -> dict[str, Any]:
    return {"shared_prompts": trainer.shares_prompts, "curve": _curve(trainer.state.log_history)}


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
