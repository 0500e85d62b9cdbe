"""Training: one file a method, behind `rlaif.training.check`; only ``trl_adapter/`` imports trl.

What it offers is loaded when it is asked for: importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.training.check import CheckReport, check_dpo
    from rlaif.training.dpo import train_dpo
    from rlaif.training.folder import TrainResult
    from rlaif.training.grpo import check_grpo, train_grpo
    from rlaif.training.kto import check_kto, train_kto
    from rlaif.training.online import check_online, train_online
    from rlaif.training.ppo import train_ppo
    from rlaif.training.ppo_check import check_ppo
    from rlaif.training.rejection import check_rejection, train_rejection
    from rlaif.training.reward import check_reward, train_reward
    from rlaif.training.reward_functions import RewardFunction
    from rlaif.training.reward_model import RewardModel
    from rlaif.training.rloo import check_rloo, train_rloo
    from rlaif.training.sft import check_sft, train_sft

_HOME = {
    "CheckReport": "rlaif.training.check",
    "RewardFunction": "rlaif.training.reward_functions",
    "RewardModel": "rlaif.training.reward_model",
    "TrainResult": "rlaif.training.folder",
    "check_dpo": "rlaif.training.check",
    "check_grpo": "rlaif.training.grpo",
    "check_kto": "rlaif.training.kto",
    "check_online": "rlaif.training.online",
    "check_ppo": "rlaif.training.ppo_check",
    "check_rejection": "rlaif.training.rejection",
    "check_reward": "rlaif.training.reward",
    "check_rloo": "rlaif.training.rloo",
    "check_sft": "rlaif.training.sft",
    "train_dpo": "rlaif.training.dpo",
    "train_grpo": "rlaif.training.grpo",
    "train_kto": "rlaif.training.kto",
    "train_online": "rlaif.training.online",
    "train_ppo": "rlaif.training.ppo",
    "train_rejection": "rlaif.training.rejection",
    "train_reward": "rlaif.training.reward",
    "train_rloo": "rlaif.training.rloo",
    "train_sft": "rlaif.training.sft",
}
__all__ = [
    "CheckReport",
    "RewardFunction",
    "RewardModel",
    "TrainResult",
    "check_dpo",
    "check_grpo",
    "check_kto",
    "check_online",
    "check_ppo",
    "check_rejection",
    "check_reward",
    "check_rloo",
    "check_sft",
    "train_dpo",
    "train_grpo",
    "train_kto",
    "train_online",
    "train_ppo",
    "train_rejection",
    "train_reward",
    "train_rloo",
    "train_sft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
