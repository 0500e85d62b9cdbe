"""The configs of `rlaif train`: one class and one file for each method, on the keys of ``base.py``."""

from rlaif.config.train.base import LoraConfig, TrainConfig
from rlaif.config.train.dpo import TrainDPOConfig
from rlaif.config.train.elsewhere import replaced_key
from rlaif.config.train.ppo import TrainPPOConfig
from rlaif.config.train.reward import TrainRewardConfig

__all__ = ["LoraConfig", "TrainConfig", "TrainDPOConfig", "TrainPPOConfig", "TrainRewardConfig", "replaced_key"]
