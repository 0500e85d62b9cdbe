"""The methods of `rlaif train`, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlaif.config.train import TrainConfig, TrainDPOConfig, TrainPPOConfig, TrainRewardConfig
from rlaif.config.train.grpo import TrainGRPOConfig, TrainRLOOConfig
from rlaif.config.train.kto import TrainKTOConfig
from rlaif.config.train.online import TrainOnlineConfig
from rlaif.config.train.rejection import TrainRejectionConfig
from rlaif.config.train.sft import TrainSFTConfig
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
from rlaif.training.rloo import check_rloo, train_rloo
from rlaif.training.sft import check_sft, train_sft


@dataclass(frozen=True)
class Method:
    """``check(config)`` says what ``train(config, resume=, progress=, on_check=)`` would do, and computes nothing."""

    config: type[TrainConfig]
    check: Callable[[Any], CheckReport]
    train: Callable[..., TrainResult]


METHODS = {
    "sft": Method(TrainSFTConfig, check_sft, train_sft),
    "reward": Method(TrainRewardConfig, check_reward, train_reward),
    "dpo": Method(TrainDPOConfig, check_dpo, train_dpo),
    "ppo": Method(TrainPPOConfig, check_ppo, train_ppo),
    "grpo": Method(TrainGRPOConfig, check_grpo, train_grpo),
    "kto": Method(TrainKTOConfig, check_kto, train_kto),
    "online": Method(TrainOnlineConfig, check_online, train_online),
    "rejection": Method(TrainRejectionConfig, check_rejection, train_rejection),
    "rloo": Method(TrainRLOOConfig, check_rloo, train_rloo),
}
