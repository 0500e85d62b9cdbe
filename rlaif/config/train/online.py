"""The config of `rlaif train online`."""

from decimal import Decimal

from pydantic import Field

from rlaif.config.base import Config
from rlaif.config.generate import JudgeConfig, PairingConfig
from rlaif.config.rewards import RewardConfig
from rlaif.config.train.dpo import TrainDPOConfig


class SamplingConfig(Config):
    """How the policy of a round is sampled; as ``policy`` of a generate config."""

    n: int = Field(4, ge=2, le=64)
    temperature: float = Field(0.8, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, gt=0)  # a sample that is cut off here is never used
    system: str | None = None  # a system message before every prompt that has none


class TrainOnlineConfig(TrainDPOConfig):
    """Online preference tuning (Guo et al., arXiv 2402.04792, in rounds): sample from the policy as it is now, let
    judges prefer, learn from the pairs by DPO, and again.

    ``data``: a file of prompts. Each of ``rounds`` takes the next ``prompts_per_round`` of them, from the beginning
    again where they end (None: all, in every round). ``sampling``, ``judge``, ``constitution``, ``pairing`` and
    ``reward`` are those of a generate run; all other keys are those of `rlaif train dpo`, for each round. Within a
    round the reference is the policy at its beginning. ``max_cost``: USD of all rounds together.
    """

    rounds: int = Field(3, ge=1, le=100)
    prompts_per_round: int | None = Field(None, ge=1)
    constitution: str
    judge: JudgeConfig
    sampling: SamplingConfig = SamplingConfig()
    pairing: PairingConfig = PairingConfig()
    reward: RewardConfig | None = None
    max_cost: Decimal | None = Field(None, ge=0)
    max_unjudged: float = Field(0.1, ge=0, le=1)
