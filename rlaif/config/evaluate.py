"""The config of `rlaif eval`: two models, or one and several candidates, and the tasks that compare them."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlaif.config.base import Config
from rlaif.config.generate import JudgeConfig
from rlaif.config.models import ModelRef

Aim = Literal["up", "down"]


class SamplingConfig(Config):
    """How both models answer: the same prompts, the same seeds. ``n``: answers to each prompt."""

    n: int = Field(1, ge=1, le=64)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, gt=0)
    system: str | None = None


class EvalTask(Config):
    """What every task has. ``aim``: the direction that is better (None: the task's own). ``tolerance``: how much worse
    may be real without failing the evaluation, in the task's own unit. ``gate``: whether being worse fails it at all.
    ``limit``: only the first that many rows."""

    aim: Aim | None = None
    tolerance: float = Field(0.0, ge=0)
    gate: bool = True
    limit: int | None = Field(None, ge=1)


class VerifyTask(EvalTask):
    """The mean reward of a verifier over answers to ``prompts`` (columns as for `rlaif verify`): math, code, IFEval's
    instructions, refusal (over-refusal with ``options: {want: comply}``), ... A prompt of which an answer could not be
    verified is left out for both models, and counted."""

    type: Literal["verify"]
    prompts: str
    verifier: str
    options: dict[str, Any] = Field(default_factory=dict)


class WinRateTask(EvalTask):
    """How often a judge prefers the tuned model's answer, each pair in both orders; 0.5 is no difference. Beside it the
    rate at equal length (a GLM on the length difference). ``constitution``: whose principles are asked about."""

    type: Literal["win_rate"]
    prompts: str
    constitution: str = "helpful-harmless"
    judge: JudgeConfig


class ChoiceTask(EvalTask):
    """Which of given answers the model finds likeliest; nothing is sampled. Rows: ``question`` with ``choices`` and
    ``answer`` (its number from 0, or a list of numbers), TruthfulQA's columns, or ``answer_matching_behavior`` and
    ``answer_not_matching_behavior`` (the share of the behaviour: aim down). ``group``: a column; rows of one group are
    one question under different opinions, and how often the choice flips with them is measured too."""

    type: Literal["choice"]
    data: str
    group: str | None = None


class PerplexityTask(EvalTask):
    """How well given answers are predicted: nats a token, less is better. Rows: ``messages`` that end in an answer,
    ``prompt`` with ``completion``, or preference pairs (their chosen side)."""

    type: Literal["perplexity"]
    data: str


class ChecksTask(EvalTask):
    """How nearly answers to ``prompts`` satisfy the principles of a constitution that a program decides."""

    type: Literal["checks"]
    prompts: str
    constitution: str


Task = Annotated[
    VerifyTask | WinRateTask | ChoiceTask | PerplexityTask | ChecksTask,
    Field(discriminator="type"),
]


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class EvalConfig(Config):
    """``before`` and ``after`` answer the same prompts with the same seeds. With several models in ``after`` (the
    checkpoints of a training, say) the one that is best by the task ``choose_by`` is named, and the verdict is its.

    The length, the share that was cut off, repetition and refusals of all sampled answers are measured beside the
    tasks; they fail nothing."""

    before: ModelRef
    after: Annotated[list[ModelRef], BeforeValidator(_several)] = Field(min_length=1)
    tasks: dict[str, Task] = Field(min_length=1)
    choose_by: str | None = None
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    out: Path
    max_cost: Decimal | None = Field(None, ge=0)
    in_flight: int = Field(64, gt=0)

    @model_validator(mode="after")
    def _chosen_by_a_task(self) -> "EvalConfig":
        if len(self.after) > 1 and self.choose_by is None:
            raise ValueError("several models in 'after' need choose_by: the task whose figure names the best of them")
        if self.choose_by is not None and self.choose_by not in self.tasks:
            raise ValueError(f"choose_by: there is no task {self.choose_by!r}; there are: {', '.join(self.tasks)}")
        return self
