"""Training: one file a method, behind `rlaif.training.check`; only ``trl_adapter/`` imports trl.

What it offers is loaded when it is asked for: importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.training.check import CheckReport, check_dpo
    from rlaif.training.dpo import train_dpo
    from rlaif.training.folder import TrainResult
    from rlaif.training.ppo import train_ppo
    from rlaif.training.ppo_check import check_ppo
    from rlaif.training.reward import check_reward, train_reward
    from rlaif.training.reward_model import RewardModel

_HOME = {
    "CheckReport": "rlaif.training.check",
    "check_dpo": "rlaif.training.check",
    "TrainResult": "rlaif.training.folder",
    "train_dpo": "rlaif.training.dpo",
    "check_ppo": "rlaif.training.ppo_check",
    "train_ppo": "rlaif.training.ppo",
    "check_reward": "rlaif.training.reward",
    "train_reward": "rlaif.training.reward",
    "RewardModel": "rlaif.training.reward_model",
}
__all__ = [
    "CheckReport",
    "RewardModel",
    "TrainResult",
    "check_dpo",
    "check_ppo",
    "check_reward",
    "train_dpo",
    "train_ppo",
    "train_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
