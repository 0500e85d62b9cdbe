"""The reward of PPO: by text, so that policy, judge and reward model may each have tokens of their own.

A completion's reward is that of the composite (`rlaif.training.reward_functions`), plus the reward model's score by its
weight; None where either does not decide. What is None goes no further than this: not into a mean, nor into any
statistic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.config.train.ppo import RewardModelConfig, TrainPPOConfig
from rlaif.engine import Budget, Ledger
from rlaif.errors import InputError, QualityError, TaskError
from rlaif.rewards import CompositeReward, PartsMonitor
from rlaif.rewards.normalise import RunningNorm
from rlaif.runs import LEDGER
from rlaif.training.group_reward import opener
from rlaif.training.reward_functions import RewardFunction
from rlaif.training.reward_model import RewardModel, Scorer, model_folder, read_policy
from rlaif.types import Prompt
from rlaif.verifiers import task_of

_ENOUGH = 64  # completions before a share of them means anything


@dataclass(frozen=True)
class Answers:
    """Completions as a reward sees them: the prompt, the text, and how many tokens it was decoded from."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    tokens: Sequence[int]


class TextReward:
    """``function``, ``model``: at least one of them. ``settings``: of the model. ``budget``: of the judges.

    ``failed``: how many completions of the last batch have no reward because a verifier, a judge or the reward model
    failed; one that abstained has not. ``example``: why, of one of them.
    """

    def __init__(
        self,
        function: RewardFunction | None,
        model: Scorer | None,
        settings: RewardModelConfig | None,
        budget: Budget | None = None,
    ) -> None:
        self.function, self.model, self.settings, self.budget = function, model, settings, budget
        self.norm = RunningNorm()
        self.failed, self.example = 0, ""
        self.parts: dict[str, float] = {}  # the mean of each part in the last batch

    def submit(self, answers: Answers) -> None:
        """Let judges and verifiers begin."""
        if self.function is not None:
            self.function.submit_tasks(*_asked(answers))

    def score(self, answers: Answers) -> list[float | None]:
        """A reward for each completion. Running statistics learn the batch as a whole, before it is scored."""
        self.parts, self.failed = {}, 0
        rewards: list[float | None] = [0.0] * len(answers.texts)
        if self.function is not None:
            rewards = self._composite(self.function, answers)
        if self.model is not None and self.settings is not None:
            scores = self._modelled(self.model, self.settings, answers)
            rewards = [None if r is None or s is None else r + s for r, s in zip(rewards, scores, strict=True)]
        return rewards

    def _composite(self, function: RewardFunction, answers: Answers) -> list[float | None]:
        scored = function.score_tasks(*_asked(answers))
        for row in scored:
            if row.value is None and row.masked != "abstained":
                self.failed, self.example = self.failed + 1, row.why
        for part in function.reward.identities:
            verdicts = [row.parts.get(part) for row in scored]
            self._note(part, [getattr(verdict, "value", None) for verdict in verdicts])
        return [row.value for row in scored]

    def _modelled(self, model: Scorer, settings: RewardModelConfig, answers: Answers) -> list[float | None]:
        raw = model.score_where_it_fits([_as_prompt(p) for p in answers.prompts], list(answers.texts))
        if broken := [score for score in raw if score is not None and not math.isfinite(score)]:
            self.failed, self.example = self.failed + len(broken), f"the reward model's score is {broken[0]}"
        scores = [score if score is not None and math.isfinite(score) else None for score in raw]
        self._note("reward_model", scores)
        if not settings.normalise:
            return [None if score is None else settings.weight * score for score in scores]
        self.norm.update([score for score in scores if score is not None])
        return [None if score is None else settings.weight * self.norm(score, settings.clip) for score in scores]

    def _note(self, name: str, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        if known:
            self.parts[f"parts/{name}"] = math.fsum(known) / len(known)

    def report(self) -> dict[str, Any]:
        """What the manifest says about it."""
        told: dict[str, Any] = {}
        if self.function is not None:
            told["reward"] = self.function.monitor.report()
        if self.model is not None:
            told["reward_model"] = {"scores": self.norm.count, "mean": self.norm.mean, "std": self.norm.std}
        if self.budget is not None:
            told["judge"] = self.budget.report()
        return told

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


def _asked(answers: Answers) -> tuple[list[str], list[Mapping[str, Any]], list[int]]:
    return list(answers.texts), [task_of(p) for p in answers.prompts], list(answers.tokens)


def _as_prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """As a reward model takes it: a single question is text, which a model of plain text reads as well."""
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return turns[0]["content"] if len(turns) == 1 else turns


# ----------------------------------------------------------------------------------------------------------- opening


def check_reward(config: TrainPPOConfig, prompts: Sequence[Prompt]) -> None:
    """Raises InputError for a reward that cannot run, naming the first prompt that has no task for it."""
    if config.reward_model is not None:
        read_policy(model_folder(Path(config.reward_model.path)))
    if config.reward is None:
        return
    function = RewardFunction(config.reward)
    try:
        for row, prompt in enumerate(prompts):
            try:
                function.prepare([task_of(prompt)])
            except TaskError as error:
                asked = prompt.messages[-1].content[:60]
                raise InputError(f"{config.data}: prompt {row + 1} ({asked!r}) has no task for it: {error}") from None
    finally:
        function.close()


def open_text_reward(config: TrainPPOConfig, stack: ExitStack) -> TextReward:
    """The reward of a training whose folder is there already; it is closed with ``stack``. Replies of judges are kept
    in the folder's ledger: a resumed training pays for none of them again."""
    function: RewardFunction | None = None
    model: Scorer | None = None
    budget: Budget | None = None
    if config.reward is not None:
        opened: Callable[[], CompositeReward]
        opened, budget = opener(
            config.reward, config.max_cost, lambda: stack.enter_context(Ledger.open(config.out / LEDGER))
        )
        function = RewardFunction(config.reward, monitor=PartsMonitor(max_infrastructure=1.0), opened=opened)
        stack.callback(function.close)
    if config.reward_model is not None:
        model = RewardModel.load(config.reward_model.path, device=config.device)
    return TextReward(function, model, config.reward_model, budget)


def value_scale(config: TrainPPOConfig, value_path: str) -> tuple[float, float]:
    """(a, b) so that a * score + b is about the reward that the reward model in ``value_path`` will give: its scores
    are normalised by statistics of what is sampled, which its own after training come near."""
    settings = config.reward_model
    if settings is None or Path(value_path) != model_folder(Path(settings.path)):
        return 1.0, 0.0
    if not settings.normalise:
        return settings.weight, 0.0
    policy = read_policy(Path(value_path))
    return settings.weight / policy.std, -settings.weight * policy.mean / policy.std


class FailureLimit:
    """Ends a training when more than ``at_most`` of the last completions failed: of as many steps as make 64
    completions, or of one step if that has more. ``recent``: (failed, all) of those steps; part of a checkpoint."""

    def __init__(self, at_most: float) -> None:
        self.at_most = at_most
        self.recent: list[tuple[int, int]] = []

    def add(self, failed: int, completions: int, example: str) -> None:
        """Raises QualityError when too many have failed; then nothing is added."""
        recent = [*self.recent, (failed, completions)]
        while sum(rows for _, rows in recent[1:]) >= _ENOUGH:
            recent.pop(0)
        lost, rows = (sum(column) for column in zip(*recent, strict=True))
        if rows >= _ENOUGH and lost > self.at_most * rows:
            raise QualityError(
                f"{lost} of the last {rows} completions got no reward (max_failed is {self.at_most:g}; such as:"
                f" {example}): what is learned would lean towards those that did; repair the reward, then go on with"
                " --resume."
            )
        self.recent = recent


__all__ = ["Answers", "FailureLimit", "TextReward", "check_reward", "open_text_reward", "value_scale"]
