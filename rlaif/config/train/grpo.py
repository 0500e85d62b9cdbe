"""The configs of `rlaif train grpo` and `rlaif train rloo`: completions of the policy itself, scored by a reward."""

from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, model_validator

from rlaif.config.base import Config
from rlaif.config.rewards import RewardConfig
from rlaif.config.train.base import TrainConfig
from rlaif.config.train.watch import WatchConfig


class SpeedConfig(Config):
    """What is computed otherwise than in TRL, with the same loss and gradients; off: exactly as TRL does it.

    ``trim``: each micro-batch is cut to its own longest prompt and completion. ``sort``: completions of like length
    share a micro-batch. ``skip_flat``: a micro-batch whose completions all have the advantage 0 needs no backward pass
    (at beta 0, where nothing else could move the weights)."""

    trim: bool = True
    sort: bool = True
    skip_flat: bool = True


class GroupConfig(TrainConfig):
    """What GRPO and RLOO share.

    ``data``: a file of prompts, as `rlaif generate` takes it; ``reference``, ``tests`` and all other columns are what
    the ``reward`` is told of the task. ``prompts_per_step`` x ``group_size``: completions in one optimizer step
    (``batch_size`` is their product, and ``micro_batch_size`` a divisor of it). ``steps`` or ``epochs``: how long.
    ``num_iterations``: optimizer steps on the same completions. ``beta``: weight of the KL divergence from the model
    before training; it is measured whatever its weight. ``max_failed``: the largest share of completions that may lose
    their reward because the judge or the verifier failed; ``max_flat``: so many steps in a row in which no group had
    two different rewards. Beyond either, the training ends with exit code 3, saved. ``watch``: rules that look for a
    hacked reward. ``max_cost``: USD for judges.
    """

    reward: RewardConfig
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    prompts_per_step: int = Field(8, ge=1)
    group_size: int = Field(8, ge=2)
    max_prompt: int = Field(1024, ge=1)  # tokens; a longer prompt is left out
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    num_iterations: int = Field(1, ge=1)
    epsilon: float = Field(0.2, gt=0)
    epsilon_high: float | None = Field(None, gt=0)  # None: as epsilon
    beta: float = Field(0.0, ge=0)
    max_failed: float = Field(0.05, ge=0, le=1)
    max_flat: int | None = Field(20, ge=1)
    max_cost: Decimal | None = Field(None, ge=0)
    speed: SpeedConfig = SpeedConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="before")
    @classmethod
    def _batch_is_a_product(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sizes = [values.get(key, cls.model_fields[key].default) for key in ("prompts_per_step", "group_size")]
        if not all(isinstance(size, int) for size in sizes):
            return values  # told by the fields themselves
        product = sizes[0] * sizes[1]
        if values.get("batch_size", product) != product:
            raise ValueError(
                f"batch_size is prompts_per_step x group_size = {product} (found {values['batch_size']}); remove it"
            )
        return {**values, "batch_size": product}

    @model_validator(mode="after")
    def _whole_rounds(self) -> "GroupConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs")
        for key in ("steps", "save_steps"):
            value = getattr(self, key)
            if value is not None and value % self.num_iterations:
                raise ValueError(
                    f"{key} {value} is no multiple of num_iterations {self.num_iterations}: the completions of a round"
                    " are used for that many steps"
                )
        return self


class TrainGRPOConfig(GroupConfig):
    """Group Relative Policy Optimization (Shao et al., arXiv 2402.03300).

    ``loss``: how token losses are averaged: over all tokens of the step ("dapo", Yu et al., arXiv 2503.14476), over
    the tokens of each completion first ("grpo"), or by a constant ("dr_grpo", Liu et al., arXiv 2503.20783).
    ``scale_rewards``: what advantages are divided by: the standard deviation of the group, of the batch, or nothing.
    """

    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"


class TrainRLOOConfig(GroupConfig):
    """REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740): the baseline of a completion is the mean reward of
    the others of its group, and ``beta`` x KL is taken off the reward of the whole completion."""

    beta: float = Field(0.05, ge=0)
    normalize_advantages: bool = False
