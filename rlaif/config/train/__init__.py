"""The configs of `rlaif train`: one class and one file for each method, on the keys of ``base.py``."""

from rlaif.config.train.base import LoraConfig, TrainConfig
from rlaif.config.train.dpo import TrainDPOConfig
from rlaif.config.train.elsewhere import replaced_key
from rlaif.config.train.grpo import TrainGRPOConfig, TrainRLOOConfig
from rlaif.config.train.kto import TrainKTOConfig
from rlaif.config.train.online import TrainOnlineConfig
from rlaif.config.train.ppo import TrainPPOConfig
from rlaif.config.train.rejection import TrainRejectionConfig
from rlaif.config.train.reward import TrainRewardConfig
from rlaif.config.train.sft import TrainSFTConfig

__all__ = [
    "LoraConfig",
    "TrainConfig",
    "TrainDPOConfig",
    "TrainGRPOConfig",
    "TrainKTOConfig",
    "TrainOnlineConfig",
    "TrainPPOConfig",
    "TrainRLOOConfig",
    "TrainRejectionConfig",
    "TrainRewardConfig",
    "TrainSFTConfig",
    "replaced_key",
]
