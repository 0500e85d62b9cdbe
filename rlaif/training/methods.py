"""The methods of `rlaif train`, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlaif.config.train import TrainConfig, TrainDPOConfig
from rlaif.training.check import CheckReport, check_dpo
from rlaif.training.dpo import train_dpo
from rlaif.training.folder import TrainResult


@dataclass(frozen=True)
class Method:
    """``check(config)`` says what ``train(config, resume=, progress=, on_check=)`` would do, and computes nothing."""

    config: type[TrainConfig]
    check: Callable[[Any], CheckReport]
    train: Callable[..., TrainResult]


METHODS = {
    "dpo": Method(TrainDPOConfig, check_dpo, train_dpo),
}
