"""The rows: what flows through a run, from a prompt to a preference pair.

Every row is frozen and forbids unknown fields. A failure has a row type of its own (`Unjudged`, `Dropped`), so that a
reader must handle it: no zero, NaN or default winner ever stands for "the judge failed". The only behaviour here is
``swap()``, and ``x.swap().swap() == x``.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


def _on_grid(p: float) -> float:
    # Multiples of 2**-40: there 1 - p is exact, so swapping twice gives back the very same number.
    return round(p * 2**40) / 2**40


Probability = Annotated[float, Field(ge=0, le=1), AfterValidator(_on_grid)]


class Row(BaseModel):
    """Base of all rows: immutable, unknown fields are an error, floats must be finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- chat with a model


class Message(Row):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(Row):
    """One question to a model: everything that can change its answer.

    ``top_logprobs``: how many alternatives to return for each token (None: no log-probs). ``max_tokens=1`` with
    ``top_logprobs`` asks only for the probabilities of the next token, which a local model answers without sampling.
    ``labels``: strings whose log-probs must be among them where the backend can name tokens.
    ``sample_index`` tells apart repeated requests that should give different samples.
    ``cache_prefix``: the first that many messages are the same for many requests (a hint for prompt caching;
    it changes no answer and is not part of the request's key).
    ``continuation``: a given answer; nothing is sampled, and the reply holds the log-prob of each of its tokens.
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(gt=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = Field(None, ge=1, le=20)
    labels: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    sample_index: int = 0
    cache_prefix: int = Field(0, ge=0)
    continuation: str | None = None


class Usage(Row):
    """Tokens, as the provider counted them. ``input_tokens`` is the whole input, cached parts included;
    ``output_tokens`` includes ``reasoning_tokens``."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class TokenLogprobs(Row):
    """One generated token, its log-prob (natural log) and the most likely alternatives (token text, log-prob)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


FinishReason = Literal["stop", "length", "content_filter", "refusal", "tool_calls", "unknown"]


class ChatReply(Row):
    """What the model answered. Only ``finish_reason == "stop"`` may become data.

    ``logprobs`` is None where the model gives none; of a request with a ``continuation`` they are of its tokens,
    without alternatives, and ``text`` is empty. ``raw`` is the provider's reply as JSON. ``downgrades`` names the
    request's parameters that the model refused and that were left out ("temperature", "logprobs", ...). ``batch``: it
    came from a batch API, at that API's price.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    model: str = ""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    downgrades: tuple[str, ...] = ()
    batch: bool = False
    raw: dict[str, Any] = {}


# -------------------------------------------------------------------------------------------- prompts and samples


class Prompt(Row):
    """``id`` is a hash of the messages and of what decides their right answer; ``metadata`` is carried along unread."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    reference: str | None = None
    tests: Any = None
    verifier: str | None = None
    metadata: dict[str, Any] = {}


class Completion(Row):
    """One sample of the policy. ``request_key`` finds its request and raw reply in the ledger (None: made elsewhere).

    A completion whose ``finish_reason`` is not "stop" is kept as a record and used for nothing.
    """

    id: str
    prompt_id: str
    index: int
    text: str
    model: str
    finish_reason: FinishReason
    revised_from: str | None = None
    request_key: str | None = None


# ------------------------------------------------------------------------------------------------- constitution


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty; write one or remove the key")
    return text.strip()


def _identifier(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        return text
    near = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    example = f"; such as {near!r}" if near else ""
    raise ValueError(f"{text!r} is no id: use letters, digits, '-', '_' and '.', a letter or digit first{example}")


Text = Annotated[str, AfterValidator(_filled)]  # never blank; white space around it does not count
Identifier = Annotated[str, AfterValidator(_identifier)]


class Bounds(Row):
    """An inclusive range of a count; at least one end is set."""

    min: int | None = Field(None, ge=0, strict=True)
    max: int | None = Field(None, ge=0, strict=True)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; nothing can satisfy both")
        return self


class Check(Row):
    """A property of one text that a program decides: exactly one of the fields is set (see rlaif.checks)."""

    words: Bounds | None = None
    sentences: Bounds | None = None
    regex: str | None = Field(None, min_length=1)
    contains: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(None, min_length=1)
    excludes: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(None, min_length=1)
    json_valid: Literal[True] | None = Field(None, alias="json")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [key for key, value in self.model_dump().items() if value is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}; write a principle for each" if given else "found none"
            raise ValueError(f"a check has exactly one of words, sentences, regex, contains, excludes, json ({found})")
        return self


class Principle(Row):
    """One rule of a constitution. ``compare`` asks which of two responses follows it better; ``critique`` and
    ``revise`` are instructions about one response; ``check`` lets a program decide instead of a model.
    ``opposite``: the question that the opposite of ``compare`` would ask (for judging by likelihood). ``ask``: the same
    of one response, to be answered by yes or no (for `type: yes_no`).
    ``applies_to``: metadata keys of a prompt and the value, or list of values, that each must have."""

    id: Identifier
    compare: Text | None = None
    critique: Text | None = None
    revise: Text | None = None
    opposite: Text | None = None
    ask: Text | None = None
    check: Check | None = None
    weight: float = Field(1.0, gt=0, strict=True)
    applies_to: dict[str, Any] = {}

    @field_validator("applies_to")
    @classmethod
    def _plain_values(cls, wanted: dict[str, Any]) -> dict[str, Any]:
        for key, value in wanted.items():
            values = value if isinstance(value, list | tuple) else [value]
            if not values or not all(_is_scalar(v) for v in values):
                raise ValueError(f"{key!r} needs a text, a number, true, false or a list of these (found {value!r})")
        return wanted

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.compare or self.critique or self.revise or self.check):
            raise ValueError("a principle needs at least one of compare, check, critique, revise")
        if self.opposite and not self.compare:
            raise ValueError("opposite is the opposite of compare, which is missing; write compare as well")
        if self.ask and not self.compare:
            raise ValueError("ask puts compare to one response, and compare is missing; write it as well")
        return self


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


class Constitution(Row):
    """``digest``: content hash of the principles (see rlaif.constitution). Ids are unique."""

    name: Text
    version: Text
    principles: tuple[Principle, ...] = Field(min_length=1)
    description: str = ""
    digest: str

    @field_validator("principles")
    @classmethod
    def _unique_ids(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        ids = [p.id for p in principles]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"the id {twice[0]!r} is given to more than one principle")
        return principles


# -------------------------------------------------------------------------------------------------- judgements

Order = Literal["ab", "ba"]
Method = Literal["logprob", "text", "json", "vote", "likelihood", "check", "human"]
UnjudgedReason = Literal["unparseable", "refused", "truncated", "provider_error"]


class Verdict(Row):
    """The judge's answer about completions a and b, whatever order they were shown in.

    ``p_a`` is the probability that a is better (1, 0 or 0.5 where the method gives only a choice). ``label_mass`` is
    the probability the judge gave to all labels together before they were renormalised (method "logprob" only).
    ``scores``: of a and of b, where each was judged by itself (`p_a` then follows from their difference).
    ``both_bad``: a tie of two responses of which neither should be learned from.
    """

    kind: Literal["verdict"] = "verdict"
    choice: Literal["a", "b", "tie"]
    p_a: Probability
    method: Method
    label_mass: float | None = Field(None, ge=0, le=1)
    rationale: str | None = None
    scores: tuple[float, float] | None = None
    both_bad: bool = False

    @model_validator(mode="after")
    def _both_bad_is_a_tie(self) -> Self:
        if self.both_bad and self.choice != "tie":
            raise ValueError("both_bad is a kind of tie")
        return self

    def swap(self) -> "Verdict":
        """The same verdict with a and b exchanged."""
        other: dict[str, Literal["a", "b", "tie"]] = {"a": "b", "b": "a", "tie": "tie"}
        scores = self.scores and self.scores[::-1]
        return self.model_copy(update={"choice": other[self.choice], "p_a": 1.0 - self.p_a, "scores": scores})


class Unjudged(Row):
    """The judge gave no verdict. Never a tie, never a number."""

    kind: Literal["unjudged"] = "unjudged"
    reason: UnjudgedReason
    detail: str

    def swap(self) -> "Unjudged":
        return self


Outcome = Annotated[Verdict | Unjudged, Field(discriminator="kind")]


class Comparison(Row):
    """Two completions of one prompt, to be compared."""

    prompt: Prompt
    a: Completion
    b: Completion

    def swap(self) -> "Comparison":
        return Comparison(prompt=self.prompt, a=self.b, b=self.a)


class Judgement(Row):
    """One judge's look at one comparison in one order. ``order`` is what was shown first: "ab" or "ba" (None: a program
    looked at both at once). ``outcome`` is about a and b themselves: it is un-swapped already.
    ``request_keys`` find the requests and raw replies in the ledger."""

    prompt_id: str
    a: str
    b: str
    principles: tuple[str, ...] = Field(min_length=1)
    judge: str
    template: str
    order: Order | None
    outcome: Outcome
    request_keys: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------ verification

RewardReason = Literal[
    "wrong",  # an answer, but not the right one
    "unparseable",  # no answer where one belongs
    "timeout",  # the candidate's own program or expression used up its time
    "resource",  # it asked for more memory, output, files or processes than it may have
    "crashed",  # its program ended with an error
    "cheat",  # it tried to reach the verdict itself
]
UnverifiedReason = Literal[
    "task_error",  # the task is wrong: no tests, a reference that fails, arguments that are none
    "infrastructure",  # the sandbox or a service failed, after retries
    "abstained",  # the verifier does not decide such rows
    "judge",  # a judge was asked and gave no verdict
]


class Reward(Row):
    """What a verifier decided about one completion. ``value``: 1.0 is a full pass. ``reason`` says why it is less, and
    is about the candidate, never about the checker; ``detail`` is for a reader. ``flags``: what was noticed but did
    not decide (telemetry)."""

    kind: Literal["reward"] = "reward"
    value: float
    reason: RewardReason | None = None
    detail: str = ""
    flags: tuple[str, ...] = ()


class Unverified(Row):
    """The verifier could not decide. Never a zero: the row is masked."""

    kind: Literal["unverified"] = "unverified"
    reason: UnverifiedReason
    detail: str


Verified = Annotated[Reward | Unverified, Field(discriminator="kind")]


class RewardRow(Row):
    """The reward of one completion, and the verdicts behind it by part. ``value`` None: the row is masked, and
    ``masked`` and ``why`` say why."""

    prompt_id: str
    completion_id: str
    value: float | None
    parts: dict[str, Verified]
    masked: UnverifiedReason | None = None
    why: str = ""


# --------------------------------------------------------------------------------------------------------- pairs

Source = Literal["judge", "verifier", "revision", "human"]
DropReason = Literal[
    "tie",  # the judge holds them equal
    "both_bad",  # the judge holds them equally bad
    "vetoed",  # a judge of a panel prefers the other one
    "order_disagreement",  # the judge prefers whichever is shown first (or second)
    "unjudged",  # at least one verdict is missing
    "unverified",  # at least one of the two has no reward, because its verifier failed
    "identical",  # the two texts are the same: nothing was asked
    "low_margin",  # decided, but by less than pairing.min_margin
    "not_selected",  # judged, but the strategy takes another pair of this prompt
    "duplicate",  # a pair, but one with the same texts stays (this and the next five: see config.dataset)
    "near_duplicate",  # a pair, but one with nearly the same answers stays
    "contradiction",  # a pair whose very texts are chosen and rejected the other way round, too
    "overlap",  # a pair that shares a long passage with a benchmark
    "secret",  # a pair that holds a key or token
    "personal",  # a pair that holds personal data
    "bad_finish",  # a sample that was cut off, filtered or refused
    "provider_error",  # a sample that the provider never gave
    "too_few_samples",  # a prompt with fewer than two usable samples
    "task_error",  # a prompt whose tests or reference are wrong: nothing was asked
]


class PreferencePair(Row):
    """``prob_chosen``: probability that chosen is better, over orders, principles and judges; ``margin`` is
    2 * prob_chosen - 1. ``evidence``: keys of the ledger's requests behind it. ``judge``: who decided, or which
    verifier."""

    prompt_id: str
    chosen: str
    rejected: str
    prob_chosen: float = Field(ge=0.5, le=1)
    margin: float = Field(ge=0, le=1)
    source: Source
    principles: tuple[str, ...]
    judge: str
    evidence: tuple[str, ...] = ()


class Dropped(Row):
    """What did not become a pair, and why. ``a`` and ``b`` are completion ids: both for a comparison, only ``a`` for a
    sample, neither for a sample that was never given ("provider_error") or a whole prompt ("too_few_samples")."""

    prompt_id: str
    a: str | None = None
    b: str | None = None
    reason: DropReason
    detail: str = ""
