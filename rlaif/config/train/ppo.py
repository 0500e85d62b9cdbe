"""The config of `rlaif train ppo`."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlaif.config.base import Config
from rlaif.config.rewards import RewardConfig
from rlaif.config.train.base import Auto, LoraConfig, TrainConfig
from rlaif.config.train.watch import WatchConfig


class KLConfig(Config):
    """The penalty for leaving the reference, for each token: ``coefficient`` * (log-prob - reference log-prob).

    ``target``: nats of a whole completion that the coefficient is steered to (Ziegler et al., arXiv 1909.08593,
    section 2.2); None keeps the coefficient. ``horizon``: completions in which it may change by a tenth or so.
    """

    coefficient: float = Field(0.05, ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(10_000, ge=1)

    @model_validator(mode="after")
    def _can_be_steered(self) -> "KLConfig":
        if self.target is not None and self.coefficient == 0:
            raise ValueError("a coefficient of 0 cannot be steered: it is multiplied; give both coefficient and target")
        return self


class RewardModelConfig(Config):
    """``path``: a folder of `rlaif train reward`. ``normalise``: its scores, which have no scale of their own, as
    standard deviations from the mean of all so far, cut off at ``clip``. ``weight``: beside ``reward``."""

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    normalise: bool = True
    clip: float = Field(5.0, gt=0)


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class TrainPPOConfig(TrainConfig):
    """Proximal Policy Optimization (Schulman et al., arXiv 1707.06347) of ``model`` against a reward.

    ``data``: prompts, as `rlaif generate` takes them; their other columns are the task that a verifier sees.
    A step samples ``prompts_per_step`` x ``samples_per_prompt`` completions of at most ``max_new_tokens`` and goes over
    them ``ppo_epochs`` times, in minibatches of ``batch_size`` completions, each an optimizer step.

    ``reward``: as in a generate config. ``reward_model``: a folder, beside it or instead of it. A completion without a
    reward is left out; where more than ``max_failed`` of them failed, the training ends with exit code 3, saved.
    ``missing_eos_penalty``: taken off the reward of a completion that has not ended by itself. ``max_cost``: USD for
    judges.

    ``value``: "separate" has weights of its own, begun from ``value_model`` (default: the reward model, where it has
    the policy's tokens; else ``model``); "shared" is a head on the policy, its loss weighed by ``value_coefficient``.
    """

    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    samples_per_prompt: int = Field(4, ge=1)
    batch_size: int = Field(32, ge=1)
    ppo_epochs: int = Field(2, ge=1)
    lora: LoraConfig | None = LoraConfig()

    reward: RewardConfig | None = None
    reward_model: Annotated[RewardModelConfig | None, BeforeValidator(_from_path)] = None
    missing_eos_penalty: float = Field(1.0, ge=0)
    max_failed: float = Field(0.05, ge=0, le=1)
    max_cost: Decimal | None = Field(None, ge=0)
    watch: WatchConfig = WatchConfig()  # rules that look for a hacked reward

    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(128, ge=1)
    max_prompt: int = Field(1024, ge=1)  # tokens; a longer prompt is left out

    kl: KLConfig = KLConfig()
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float | None = Field(0.2, gt=0)

    value: Literal["separate", "shared"] = "separate"
    value_model: str | None = None
    value_learning_rate: float | Auto = "auto"
    value_coefficient: float = Field(0.1, gt=0)

    schedule: Literal["linear", "constant"] = "linear"
    max_grad_norm: float = Field(1.0, gt=0)

    @property
    def completions_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @model_validator(mode="after")
    def _ppo_fits_together(self) -> "TrainPPOConfig":
        if self.reward is None and self.reward_model is None:
            raise ValueError("give a reward (such as 'reward: math'), a reward_model (a folder), or both")
        if self.batch_size > self.completions_per_step:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {self.completions_per_step} completions of a step"
                f" (prompts_per_step {self.prompts_per_step} x samples_per_prompt {self.samples_per_prompt})"
            )
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout must be 0: with dropout the policy would differ from the one that sampled")
        if self.value == "shared" and self.value_model is not None:
            raise ValueError("value_model is for 'value: separate'; a shared one begins from the policy")
        if isinstance(self.value_learning_rate, float | int) and self.value_learning_rate <= 0:
            raise ValueError(f"value_learning_rate must be greater than 0, or auto (found {self.value_learning_rate})")
        return self
