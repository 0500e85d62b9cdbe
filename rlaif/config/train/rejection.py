"""The config of `rlaif train rejection`."""

from decimal import Decimal
from typing import Any

from pydantic import Field, field_serializer

from rlaif.config.rewards import Node, RewardConfig
from rlaif.config.train.base import TrainConfig


class TrainRejectionConfig(TrainConfig):
    """Rejection sampling (RAFT, Dong et al., arXiv 2304.06767): the best of ``n`` answers of the model itself are what
    it is fine-tuned on.

    ``data``: a file of prompts, as `rlaif generate` takes it. Of each prompt the ``keep`` best completions whose
    ``reward`` is at least ``threshold`` are kept (None: the highest there is, a full pass), each text once.
    ``batch_size``: conversations in one optimizer step of the fine-tuning; ``epochs`` and ``max_length`` are its too.
    ``max_cost``: USD for judges in the reward.
    """

    reward: RewardConfig
    n: int = Field(8, ge=1, le=64)
    keep: int = Field(1, ge=1)
    threshold: float | None = None
    temperature: float = Field(0.8, gt=0)
    max_new_tokens: int = Field(256, ge=1)  # a sample that is cut off here is never used
    system: str | None = None  # a system message before every prompt that has none
    max_cost: Decimal | None = Field(None, ge=0)
    epochs: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=16)

    @field_serializer("reward")
    def _as_written(self, reward: Node) -> dict[str, Any]:
        return reward.model_dump(mode="json", exclude_unset=True)
