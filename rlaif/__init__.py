"""RLAIF and Constitutional AI: a constitution and prompts in, preference data and a tuned model out.

    import rlaif
    result = rlaif.generate(rlaif.GenerateConfig(...))
    rlaif.train_dpo(rlaif.TrainDPOConfig(data=str(result.out), out="runs/tuned"))

The names below are imported when they are first used; ``import rlaif`` alone loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.config.evaluate import EvalConfig
    from rlaif.config.generate import GenerateConfig
    from rlaif.config.train import (
        TrainDPOConfig,
        TrainGRPOConfig,
        TrainKTOConfig,
        TrainOnlineConfig,
        TrainPPOConfig,
        TrainRejectionConfig,
        TrainRewardConfig,
        TrainRLOOConfig,
        TrainSFTConfig,
    )
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.evaluate import evaluate
    from rlaif.generation import GenerateResult, generate
    from rlaif.training import (
        RewardFunction,
        RewardModel,
        TrainResult,
        train_dpo,
        train_grpo,
        train_kto,
        train_online,
        train_ppo,
        train_rejection,
        train_reward,
        train_rloo,
        train_sft,
    )
    from rlaif.verification import verify_file
    from rlaif.verifiers import open_verifier

__version__ = "0.1.0"

_HOME = {
    "EvalConfig": "rlaif.config.evaluate",
    "GenerateConfig": "rlaif.config.generate",
    "GenerateResult": "rlaif.generation",
    "RewardFunction": "rlaif.training",
    "RewardModel": "rlaif.training",
    "TrainDPOConfig": "rlaif.config.train",
    "TrainGRPOConfig": "rlaif.config.train",
    "TrainKTOConfig": "rlaif.config.train",
    "TrainOnlineConfig": "rlaif.config.train",
    "TrainPPOConfig": "rlaif.config.train",
    "TrainRLOOConfig": "rlaif.config.train",
    "TrainRejectionConfig": "rlaif.config.train",
    "TrainResult": "rlaif.training",
    "TrainRewardConfig": "rlaif.config.train",
    "TrainSFTConfig": "rlaif.config.train",
    "evaluate": "rlaif.evaluation.evaluate",
    "generate": "rlaif.generation",
    "load_constitution": "rlaif.constitution",
    "open_verifier": "rlaif.verifiers",
    "train_dpo": "rlaif.training",
    "train_grpo": "rlaif.training",
    "train_kto": "rlaif.training",
    "train_online": "rlaif.training",
    "train_ppo": "rlaif.training",
    "train_rejection": "rlaif.training",
    "train_reward": "rlaif.training",
    "train_rloo": "rlaif.training",
    "train_sft": "rlaif.training",
    "verify_file": "rlaif.verification",
}
__all__ = [
    "EvalConfig",
    "GenerateConfig",
    "GenerateResult",
    "RewardFunction",
    "RewardModel",
    "TrainDPOConfig",
    "TrainGRPOConfig",
    "TrainKTOConfig",
    "TrainOnlineConfig",
    "TrainPPOConfig",
    "TrainRLOOConfig",
    "TrainRejectionConfig",
    "TrainResult",
    "TrainRewardConfig",
    "TrainSFTConfig",
    "__version__",
    "evaluate",
    "generate",
    "load_constitution",
    "open_verifier",
    "train_dpo",
    "train_grpo",
    "train_kto",
    "train_online",
    "train_ppo",
    "train_rejection",
    "train_reward",
    "train_rloo",
    "train_sft",
    "verify_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
