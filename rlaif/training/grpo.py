"""`rlaif train grpo`: see groups.py for what it shares, and config/train/grpo.py for its settings."""

from collections.abc import Callable

from rlaif.config.train.grpo import TrainGRPOConfig
from rlaif.training.check import CheckReport
from rlaif.training.folder import Progress, TrainResult
from rlaif.training.groups import GroupCheck, prepare_groups, train_groups


def check_grpo(config: TrainGRPOConfig) -> GroupCheck:
    """What ``train_grpo(config)`` would do. Raises InputError when it could not."""
    return prepare_groups(config, "grpo").report


def train_grpo(
    config: TrainGRPOConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Train ``config.model`` to earn ``config.reward`` and leave the tuned model in ``config.out``.

    ``on_check`` gets the report of `check_grpo` before anything is computed. A folder that holds this training finished
    already is returned as it is. ``resume`` continues from the last checkpoint, exactly.

    Raises InputError for what `check_grpo` refuses, for a folder made with another config or other data, and for an
    unfinished one without ``resume``; QualityError when the loss is no longer a number (the completions are then in
    diverged.jsonl), too many rewards failed or no group gave a signal for long; ProviderError when a judge's provider
    refuses or ``max_cost`` is reached; KeyboardInterrupt after Ctrl-C, once the round in progress is done and saved.
    """
    return train_groups(config, "grpo", resume=resume, progress=progress, on_check=on_check)
