"""The config of a generate run. Every default is a setting to start from; comments say what the choice costs."""

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlaif.config.base import Config
from rlaif.config.dataset import DatasetConfig
from rlaif.config.models import ModelRef
from rlaif.config.revision import RevisionConfig
from rlaif.config.rewards import RewardConfig


class PolicyConfig(Config):
    """Who writes the completions: ``model`` samples ``n`` of each prompt, or ``completions`` names a file of samples
    made elsewhere (rows ``prompt``, ``completions: [..]``)."""

    model: ModelRef | None = None
    completions: Path | None = None
    n: int = Field(4, ge=1, le=64)
    temperature: float = Field(0.8, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, gt=0)  # a sample that is cut off here is never used
    system: str | None = None  # a system message before every prompt that has none

    @model_validator(mode="after")
    def _one_source(self) -> "PolicyConfig":
        if (self.model is None) == (self.completions is None):
            raise ValueError("give either 'model' (who samples) or 'completions' (a file of samples), not both or none")
        if self.model is not None and self.temperature == 0:
            raise ValueError("temperature 0 gives n equal samples and no pairs; use 0.7 to 1.0")
        return self


class JudgeConfig(Config):
    """How completions are compared.

    ``type``: "pairwise" shows two and asks which is better; "score" grades each by itself, 1 to 10; "rubric" asks of
    each by itself, for every principle, whether it does that: yes, partly or no. ``rubric``: its criteria are the
    "principles", or "generated" from them by the judge for each prompt. "ranking" puts up to ``group`` into order at
    once, each group shown in two opposite orders, ``rounds`` times. "likelihood" asks nothing: it compares how likely a
    response is under the principle and under its opposite (local, vllm and scripted models only); ``length``: the
    "mean" of a response's token log-probs, or their "sum"; ``scale``: what a difference of two is divided by.
    "yes_no" shows each by itself as an answer of the judge's own and asks whether it was good: the log-odds of yes.

    ``orders``: "both" shows each pair twice, exchanged, and averages (a position preference cancels); "one" shows it
    once in an order drawn by hash, at half the price; "auto" shows it a second time only where the first verdict's
    probability is below ``sure``, and on a share ``audit`` of the pairs, which measures what that loses. ``labels``:
    "logprob" reads the probabilities of the labels, "text" reads a written label, "json" a JSON object; "auto" takes
    "logprob" where the model gives log-probs, else "text". ``rationale``: reasons before the verdict; ``clamp`` then
    keeps probabilities between 0.4 and 0.6, since after reasons a model is surer than it is right. ``calibrate``:
    "position" measures how much each judge prefers the first place, whatever stands there, and takes that out of its
    label probabilities before pairing (rlaif/judges/position.py); the judgements keep the raw ones. ``principles``: one
    drawn for each comparison ("sample"; for each prompt, where a completion is judged by itself), all in one question
    ("all"), or one question for each ("each"). ``comparisons``: every pair of a prompt's completions ("all"), or each
    completion in one pair ("disjoint": n/2 comparisons).

    ``panel``: how several models decide together: "mean" of their probabilities, "majority" of their votes, "veto" (the
    mean, unless one prefers the other side: dropped), or "escalate": the first model, the cheap one, is asked first,
    and the next one only where no verdict came, its two orders disagree or its margin is below ``escalate_below``; the
    last one asked decides.

    ``gold``: a file of labelled pairs (see rlaif.judging.gold) that every model of the list is measured on by itself,
    before anything else is spent; ``min_kappa``: the run ends with exit code 3 where Cohen's kappa of one of them with
    the labels is less.
    """

    type: Literal["pairwise", "score", "rubric", "ranking", "likelihood", "yes_no"] = "pairwise"
    rubric: Literal["principles", "generated"] = "principles"
    group: int = Field(8, ge=2, le=26)
    rounds: int = Field(1, ge=1, le=16)  # of a tournament, where there are more completions than a group: better 3
    length: Literal["mean", "sum"] = "mean"
    scale: float = Field(0.2, gt=0)  # nats; with length: sum the default is 20
    models: list[ModelRef] = Field(min_length=1)
    panel: Literal["mean", "majority", "veto", "escalate"] = "mean"
    escalate_below: float = Field(0.5, ge=0, le=1)
    orders: Literal["both", "one", "auto"] = "both"
    sure: float = Field(0.9, gt=0.5, le=1)
    audit: float = Field(0.05, ge=0, le=1)
    labels: Literal["auto", "logprob", "text", "json"] = "auto"
    rationale: bool = False
    clamp: bool = False
    calibrate: Literal["none", "position"] = "none"
    principles: Literal["sample", "all", "each"] = "sample"
    comparisons: Literal["all", "disjoint"] = "all"
    ties: bool = False  # offer "neither is better" as an answer
    both_bad: bool = False  # and "both are bad": such a pair is dropped
    template: str = ""  # a shipped one or a .jinja file (default: the one named like the type)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, gt=0)  # of a written answer; reasoning models need more
    min_label_mass: float = Field(0.05, ge=0, le=1)  # labels less likely than this together: Unjudged
    gold: str | None = None
    min_kappa: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_type(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        rubric = {"principles": "all" if values.get("rubric") == "generated" else "each"}
        by_type: dict[str, dict[str, Any]] = {"rubric": rubric}
        if values.get("length") == "sum":
            by_type["likelihood"] = {"scale": 20.0}
        mode = values.get("type", "pairwise")
        return {"template": mode, **(by_type.get(mode, {}) if isinstance(mode, str) else {}), **values}

    @model_validator(mode="after")
    def _settings_that_do_something(self) -> "JudgeConfig":
        if self.clamp and not self.rationale:
            raise ValueError("clamp holds back probabilities given after reasons; set rationale: true or remove clamp")
        if self.clamp and self.labels in ("text", "json"):
            raise ValueError(f"clamp is for probabilities of labels, and labels: {self.labels} gives none; remove one")
        if self.min_kappa is not None and self.gold is None:
            raise ValueError("min_kappa needs 'gold', a file of labelled pairs that the judge is measured on")
        if self.calibrate != "none" and (self.clamp or self.labels in ("text", "json")):
            key = "clamp cuts them off" if self.clamp else f"labels: {self.labels} gives none"
            raise ValueError(f"calibrate corrects the probabilities of labels, and {key}; remove one")
        if self.both_bad and not self.ties:
            raise ValueError("both_bad is a kind of tie; set ties: true as well")
        least = {"mean": 1, "majority": 3, "veto": 2, "escalate": 2}[self.panel]
        if (found := len({model.model for model in self.models})) < least:
            raise ValueError(f"panel: {self.panel} needs at least {least} different models (found {found})")
        if self.type != "pairwise":
            self._not_pairwise()
        if self.type == "likelihood" and (self.rationale or self.labels not in ("auto", "logprob")):
            key = "rationale" if self.rationale else "labels"
            raise ValueError(f"with type: likelihood nothing is asked, so there is nothing for {key}; remove it")
        if self.type == "yes_no" and self.labels not in ("auto", "logprob"):
            raise ValueError(f"type: yes_no reads the probabilities of yes and no; labels: {self.labels} gives none")
        if self.type != "likelihood" and (self.length, self.scale) != ("mean", 0.2):
            raise ValueError("length and scale are for type: likelihood; remove them or set the type")
        if self.many_answers and self.labels == "logprob":
            raise ValueError(f"a reply of type: {self.type} holds many answers and is text or JSON; set labels: auto")
        if self.type == "rubric" and self.principles == "sample":
            raise ValueError("type: rubric answers for every principle; set principles: each, or all (in one call)")
        if self.rubric == "generated" and (self.type, self.principles) != ("rubric", "all"):
            raise ValueError("rubric: generated is for type: rubric with principles: all (the criteria in one call)")
        return self

    def _not_pairwise(self) -> None:
        given = [key for key, default in _PAIRWISE.items() if getattr(self, key) != default]
        if given:
            raise ValueError(f"{given[0]} is for type: pairwise; with type: {self.type} there are no pairs shown")

    @property
    def shows_pairs(self) -> bool:
        """Whether each comparison is asked about by itself."""
        return self.type == "pairwise"

    @property
    def many_answers(self) -> bool:
        """Whether a reply holds more than one label, which the probabilities of one token cannot tell."""
        return self.type == "ranking" or (self.type == "rubric" and self.principles == "all")

    @property
    def pointwise(self) -> bool:
        """Whether each completion is judged by itself."""
        return self.type in ("score", "rubric", "likelihood", "yes_no")


_PAIRWISE: dict[str, Any] = {"orders": "both", "calibrate": "none", "clamp": False, "ties": False, "both_bad": False}


class PairingConfig(Config):
    """Which judged comparisons become preference pairs.

    "best_worst": for each prompt the comparison whose completions are furthest apart; "all": every decided comparison;
    "margin": for each prompt the comparison whose margin is nearest to ``margin``. A comparison decided by less than
    ``min_margin`` (margin = 2 * probability - 1) is dropped. ``require_agreement``: drop a comparison when a judge's
    two orders choose differently, even if the mean of their probabilities decides.
    """

    strategy: Literal["best_worst", "all", "margin"] = "best_worst"
    min_margin: float = Field(0.0, ge=0, lt=1)
    margin: float = Field(0.5, gt=0, le=1)
    require_agreement: bool = False


class RejectionConfig(Config):
    """Which completions become data for supervised fine-tuning (best.jsonl): of each prompt the ``keep`` best whose
    reward is at least ``threshold`` (default: the highest there is, a full pass)."""

    threshold: float | None = None
    keep: int = Field(1, ge=1)


class GenerateConfig(Config):
    """A generate run: prompts and a constitution in, preference data in the run folder ``out``.

    ``reward``: verifiers decide first, at no cost; the judge is asked only about completions with equal rewards. A
    prompt that has neither reference, tests nor verifier, and no task for the reward, is left to the judge."""

    prompts: str | None = None  # a file, or hf:owner/name; not needed with policy.completions
    constitution: str
    policy: PolicyConfig
    judge: JudgeConfig
    revision: RevisionConfig | None = None
    pairing: PairingConfig = PairingConfig()
    dataset: DatasetConfig = DatasetConfig()
    reward: RewardConfig | None = None
    rejection: RejectionConfig = RejectionConfig()
    seed: int = 0
    out: Path
    max_cost: Decimal | None = Field(None, ge=0)  # USD over all sessions of the run folder; no request passes it
    max_unjudged: float = Field(0.1, ge=0, le=1)  # a larger share of missing verdicts ends the run with exit code 3
    prompts_in_flight: int = Field(64, gt=0)  # prompts worked on at once; memory grows with this, not with the file
    # (a model with transport: batch raises it to what fills a batch; more lets several batches run side by side)

    @model_validator(mode="after")
    def _fits_together(self) -> "GenerateConfig":
        if (self.prompts is None) == (self.policy.completions is None):
            raise ValueError(
                "give either 'prompts' (to sample from) or 'policy.completions' (samples with their prompts)"
            )
        if self.revision is not None:
            self._fits_revision(self.revision)
        elif self.policy.model is not None and self.policy.n < 2:
            raise ValueError("policy.n must be at least 2: a comparison needs two samples of a prompt")
        if self.pairing.strategy == "best_worst" and self.judge.comparisons == "disjoint":
            raise ValueError(
                "pairing.strategy best_worst needs judge.comparisons: all; with disjoint comparisons use strategy: all"
            )
        return self

    def _fits_revision(self, revision: RevisionConfig) -> None:
        if self.policy.model is None and revision.model is None:
            raise ValueError("revision.model is missing: with policy.completions there is no policy to revise them")
        if self.judge.type == "pairwise" and self.judge.orders != "both":
            raise ValueError("a revision counts only if it beats its draft in both orders; set judge.orders: both")

    @property
    def window(self) -> int:
        """How many prompts are worked on at once: ``prompts_in_flight``, or as many as fill a batch of each model with
        ``transport: batch``. Requests of a batch wait together, so fewer prompts would make small batches."""
        samples = self.policy.n
        comparisons = samples // 2 if self.judge.comparisons == "disjoint" else samples * (samples - 1) // 2
        comparisons += min(self.revision.drafts, samples) if self.revision else 0
        looks = (comparisons if self.policy.model else 1) * (2 if self.judge.orders == "both" else 1)
        looks = samples if self.judge.pointwise else looks
        looks = 2 * -(-samples // self.judge.group) if self.judge.type == "ranking" else looks
        fill = [-(-self.policy.model.requests_at_once // samples)] if self.policy.model else []
        fill += [-(-model.requests_at_once // looks) for model in self.judge.models]
        return max(self.prompts_in_flight, *fill)
