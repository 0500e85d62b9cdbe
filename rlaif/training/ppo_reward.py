"""The reward of PPO: by text, so that policy, judge and reward model may each have tokens of their own.

A completion's reward is that of the composite (`rlaif.training.reward_functions`), plus the reward model's score by its
weight; None where either has failed. What is None goes no further than this: not into a mean, nor into any statistic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlaif.config.train.ppo import RewardModelConfig
from rlaif.errors import QualityError
from rlaif.rewards.normalise import RunningNorm
from rlaif.training.reward_functions import RewardFunction
from rlaif.types import Prompt

_ENOUGH = 64  # completions before a share of them means anything


class Scorer(Protocol):
    """A reward model: a number for each completion, the higher the better."""

    def score(self, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]: ...


@dataclass(frozen=True)
class Answers:
    """Completions as a reward sees them: the prompt, the text, and the token ids it was decoded from."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]

    def columns(self) -> dict[str, Any]:
        """What a reward function is called with."""
        return {
            "prompts": [[m.model_dump() for m in p.messages] for p in self.prompts],
            "completions": list(self.texts),
            "completion_ids": list(self.ids),
            **{key: [getattr(p, key) for p in self.prompts] for key in ("reference", "tests", "verifier", "metadata")},
        }


class TextReward:
    """``function``, ``model``: at least one of them. ``settings``: of the model."""

    def __init__(
        self, function: RewardFunction | None, model: Scorer | None, settings: RewardModelConfig | None
    ) -> None:
        self.function, self.model, self.settings = function, model, settings
        self.norm = RunningNorm()
        self.parts: dict[str, float] = {}  # means of the last batch, where both are asked

    def submit(self, answers: Answers) -> None:
        """Let judges and verifiers begin."""
        if self.function is not None:
            self.function.submit(**answers.columns())

    def score(self, answers: Answers) -> list[float | None]:
        """A reward for each completion. Running statistics learn the batch as a whole, before it is scored."""
        self.parts = {}
        rewards: list[float | None] = [0.0] * len(answers.texts)
        if self.function is not None:
            scored = self.function.score(**answers.columns())
            rewards = [row.value for row in scored]
            if self.model is not None:
                self._note("reward", rewards)
        if self.model is not None and self.settings is not None:
            raw = self.model.score([list(p.messages) for p in answers.prompts], list(answers.texts))
            scores = [value if math.isfinite(value) else None for value in raw]
            self._note("reward_model", scores)
            rewards = [_plus(reward, score) for reward, score in zip(rewards, self._scaled(scores), strict=True)]
        return rewards

    def _scaled(self, scores: Sequence[float | None]) -> list[float | None]:
        assert self.settings is not None
        weight = self.settings.weight
        if not self.settings.normalise:
            return [None if score is None else weight * score for score in scores]
        self.norm.update([score for score in scores if score is not None])
        return [None if score is None else weight * self.norm(score, self.settings.clip) for score in scores]

    def _note(self, name: str, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        if known:
            self.parts[name] = math.fsum(known) / len(known)

    def parts_means(self) -> dict[str, float]:
        """The mean of each part of the last batch, by the name a curve has for it."""
        return {f"{name}_mean": value for name, value in self.parts.items()}

    def state(self) -> dict[str, Any]:
        """All running statistics, as JSON."""
        return {
            "norm": self.norm.state(),
            "function": self.function.state() if self.function is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.norm = RunningNorm.from_state(state["norm"])
        if self.function is not None:
            self.function.load_state(state["function"])

    def close(self) -> None:
        if self.function is not None:
            self.function.close()


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


class FailureLimit:
    """How many of the last completions had no reward: of as many steps as make 64 completions, or one step if that has
    more. ``recent``: (failed, all) of those steps; part of a checkpoint."""

    def __init__(self, at_most: float) -> None:
        self.at_most = at_most
        self.recent: list[tuple[int, int]] = []

    def add(self, rewards: Sequence[float | None]) -> None:
        """Raises QualityError when too many have failed."""
        recent = [*self.recent, (sum(reward is None for reward in rewards), len(rewards))]
        while sum(rows for _, rows in recent[1:]) >= _ENOUGH:
            recent.pop(0)
        failed, rows = (sum(column) for column in zip(*recent, strict=True))
        if rows >= _ENOUGH and failed > self.at_most * rows:
            raise QualityError(
                f"{failed} of the last {rows} completions got no reward (max_failed is {self.at_most:g}): what would be"
                " learned leans towards those that did; repair the reward, then go on with --resume."
            )
        self.recent = recent
