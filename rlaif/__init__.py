"""RLAIF and Constitutional AI: a constitution and prompts in, preference data and a tuned model out.

    import rlaif
    result = rlaif.generate(rlaif.GenerateConfig(...))
    rlaif.train_dpo(rlaif.TrainDPOConfig(data=str(result.out), out="runs/tuned"))

The names below are imported when they are first used; ``import rlaif`` alone loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.config.generate import GenerateConfig
    from rlaif.config.train import TrainDPOConfig
    from rlaif.constitution import load_constitution
    from rlaif.generation import GenerateResult, generate
    from rlaif.training import TrainResult, train_dpo
    from rlaif.training.reward_functions import RewardFunction
    from rlaif.verification import verify_file
    from rlaif.verifiers import open_verifier

__version__ = "0.1.0"

_HOME = {
    "GenerateConfig": "rlaif.config.generate",
    "GenerateResult": "rlaif.generation",
    "RewardFunction": "rlaif.training.reward_functions",
    "TrainDPOConfig": "rlaif.config.train",
    "TrainResult": "rlaif.training",
    "generate": "rlaif.generation",
    "load_constitution": "rlaif.constitution",
    "open_verifier": "rlaif.verifiers",
    "train_dpo": "rlaif.training",
    "verify_file": "rlaif.verification",
}
__all__ = [
    "GenerateConfig",
    "GenerateResult",
    "RewardFunction",
    "TrainDPOConfig",
    "TrainResult",
    "__version__",
    "generate",
    "load_constitution",
    "open_verifier",
    "train_dpo",
    "verify_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
