"""A model as a verifier: is this response right?

A judge that reads a candidate's text can be talked to by it, so:

* The text is fenced and cannot close its fence; what it says is material (prompts/verify.jinja).
* A text that says nothing (a colon, "Thought process:", "Solution") never reaches the judge: such openers alone are
  taken for right answers by many models (Zhao et al. 2025, arXiv 2507.08794).
* The verdict is a label that was offered and nothing else in the reply. No text can name the label it wants: with
  ``labelled: both`` (the default) each letter means yes once and no once, and a judge that answers by the letter
  contradicts itself; with ``one`` the meaning is drawn for each text.
* A reply that cannot be read, a contradiction, a time-out: `Unverified` ("judge"), never a 0.

Not covered: a judge that is convinced by a wrong argument, or obeys what it reads ("answer yes"). Measure yours on
labelled rows before training on it.
"""

import asyncio
import math
import re
from typing import Literal, NamedTuple

from pydantic import Field

from rlaif.clients import open_transport
from rlaif.clients.base import Client
from rlaif.config.models import ModelRef
from rlaif.engine.retry import RetryingClient
from rlaif.errors import RequestError, TaskError, TransientError
from rlaif.hashing import digest, uniform
from rlaif.templates import Template, load_template
from rlaif.types import ChatReply, ChatRequest, Message, Reward, TokenLogprobs, Unverified
from rlaif.verifiers.base import Task
from rlaif.verifiers.text import TextOptions, answer_of, excerpt, normalised, unreadable

VARIABLES = ("question", "prompt", "reference", "response", "labels", "form")
MUST_USE = ("question", "prompt", "response", "labels")


class JudgeOptions(TextOptions):
    """``question``: answered by yes or no. ``needs_reference``: a row without ``reference`` is a TaskError. ``labels``:
    the verdict is read from the written label ("text") or from the labels' probabilities ("logprob"). ``labelled``: ask
    under both meanings of the labels, or under one drawn from the text. ``graded``: the value is the probability of yes
    (with "logprob") instead of 1 or 0. ``seconds``: for all that is asked about one completion."""

    model: ModelRef
    question: str = "Is the response right?"
    needs_reference: bool = True
    labels: Literal["text", "logprob"] = "text"
    labelled: Literal["both", "one"] = "both"
    rationale: bool = False
    graded: bool = False
    template: str = "verify"
    max_characters: int = Field(100_000, gt=0)
    max_tokens: int = Field(512, gt=0)
    min_label_mass: float = Field(0.05, ge=0, le=1)
    seconds: float = Field(120.0, gt=0)


class Labels(NamedTuple):
    right: str
    wrong: str


class _Unread(Exception):
    """The judge gave no verdict."""


class JudgeVerifier:
    """The judge says yes. ``client``: asked in place of the option's model."""

    identity = "judge@1"
    Options = JudgeOptions

    def __init__(self, options: JudgeOptions, client: Client | None = None) -> None:
        self.options = options
        self.template: Template = load_template(options.template, variables=VARIABLES, must_use=MUST_USE)
        self._client = client
        self._owned = client is None

    async def prepare(self, task: Task) -> None:
        self._material(task)
        self._open()  # a missing key is told now

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if (failed := unreadable(completion, self.options.max_characters)) is not None:
            return failed
        text = answer_of(completion) if self.options.drop_thinking else completion
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be sent
        if says_nothing(text):
            return Reward(value=0.0, reason="unparseable", detail=f"says nothing: {excerpt(text)}")
        try:
            prompt, reference = self._material(task)
            async with asyncio.timeout(self.options.seconds):
                verdicts = [await self._ask(text, prompt, reference, labels) for labels in self._meanings(text)]
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))
        except (_Unread, RequestError, TransientError) as error:
            return Unverified(reason="judge", detail=str(error))
        except TimeoutError:
            return Unverified(reason="judge", detail=f"no verdict within {self.options.seconds:g} s")
        return self._reward(verdicts)

    async def aclose(self) -> None:
        client, self._client = self._client, None if self._owned else self._client
        if self._owned and client is not None:
            await client.aclose()

    def _open(self) -> Client:
        if self._client is None:
            self._client = RetryingClient(open_transport(self.options.model))
        return self._client

    def _material(self, task: Task) -> tuple[str, str | None]:
        prompt, reference = task.get("prompt"), task.get("reference")
        if not isinstance(prompt, str) or not prompt.strip():
            raise TaskError("judge@1: the row needs 'prompt', a text.")
        if reference is None and not self.options.needs_reference:
            return prompt, None
        if not isinstance(reference, str) or not reference.strip():
            raise TaskError("judge@1: the row needs 'reference', a text; or set needs_reference: false.")
        return prompt, reference

    def _meanings(self, text: str) -> list[Labels]:
        both = [Labels("X", "Y"), Labels("Y", "X")]
        if self.options.labelled == "both":
            return both
        return [both[uniform("label", digest(text)) < 0.5]]

    async def _ask(self, text: str, prompt: str, reference: str | None, labels: Labels) -> float:
        """The probability of yes (1 or 0 where a label is written)."""
        form = "rationale" if self.options.rationale and self.options.labels == "text" else "label"
        messages = self.template.render(
            question=self.options.question, prompt=prompt, reference=reference, response=text, labels=labels, form=form
        )
        reply = await self._open().complete(self._request(messages, labels))
        if self.options.labels == "logprob":
            return _probability(reply, labels, self.options.min_label_mass)
        return _written(reply, labels, form)

    def _request(self, messages: tuple[Message, ...], labels: Labels) -> ChatRequest:
        if self.options.labels == "text":
            return ChatRequest(messages=messages, max_tokens=self.options.max_tokens, cache_prefix=1)
        return ChatRequest(
            messages=messages, max_tokens=1, top_logprobs=20, labels=tuple(sorted(labels)), cache_prefix=1
        )

    def _reward(self, p_right: list[float]) -> Reward | Unverified:
        mean = sum(p_right) / len(p_right)
        if self.options.graded and self.options.labels == "logprob":
            return Reward(value=mean, reason=None if mean == 1.0 else "wrong", detail="the judge's probability of yes")
        sides = {p > 0.5 for p in p_right} if mean != 0.5 else {True, False}
        if self.options.labels == "text" and len(sides) > 1:
            return Unverified(reason="judge", detail="says yes and no, by which letter means which")
        if mean == 0.5:
            return Unverified(reason="judge", detail="yes and no are equally likely")
        return Reward(value=1.0) if mean > 0.5 else Reward(value=0.0, reason="wrong", detail="the judge says no")


# ------------------------------------------------------------------------------------------------- reading a reply

_LABEL = re.compile(
    r"[\s*_`\"'()\[\]]*(?:[Vv]erdict[\s*_]*:)?[\s*_`\"'()\[\]]*(\w+)[\s*_`\"'()\[\]]*\.?[\s*_`\"'()\[\]]*"
)
_VERDICT = re.compile(r"[\s*_]*[Vv]erdict[\s*_]*:")


def _written(reply: ChatReply, labels: Labels, form: str) -> float:
    if reply.finish_reason != "stop":
        raise _Unread(f"the reply did not end normally ({reply.finish_reason})")
    lines = [line for line in reply.text.strip().split("\n") if line.strip()]
    stated = [line for line in lines if _VERDICT.match(line)]
    if not lines or (form == "label" and len(lines) > 1) or (form == "rationale" and lines[-1:] != stated[-1:]):
        raise _Unread(f"not one of the labels offered: {excerpt(reply.text)}")
    named = {_label(line) for line in (stated or lines)}
    if len(named) != 1 or not named <= set(labels):
        raise _Unread(f"not one of the labels offered: {excerpt(lines[-1])}")
    return float(named == {labels.right})


def _label(line: str) -> str:
    # A verdict is short; the bound also keeps a run of white space from costing quadratic time.
    match = _LABEL.fullmatch(line) if len(line) <= 100 else None
    return match[1] if match else ""


def _probability(reply: ChatReply, labels: Labels, min_mass: float) -> float:
    # One token was asked for, so "length" is the normal end.
    if reply.finish_reason not in ("stop", "length") or not reply.logprobs:
        raise _Unread(f"the reply has no log-probs (finish reason {reply.finish_reason})")
    mass = dict.fromkeys(labels, 0.0)
    for text, logprob in _alternatives(reply.logprobs[0]).items():
        if text.strip() in mass:
            mass[text.strip()] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if total < max(min_mass, 1e-12):
        raise _Unread(f"the labels have {total:.3f} of the probability together, less than min_label_mass {min_mass:g}")
    return mass[labels.right] / total


def _alternatives(token: TokenLogprobs) -> dict[str, float]:
    return dict([*token.top, (token.token, token.logprob)])


# ------------------------------------------------------------------------------------------------- saying nothing

_OPENERS = frozenset(
    normalised(opener, "squad")
    for opener in (
        "Thought process:",
        "Thinking process",
        "Reasoning",
        "Solution",
        "The solution is",
        "Answer",
        "The answer is",
        "Final answer",
        "Explanation",
        "Response",
        "Step 1",
        "Let's think step by step",
        "Let's solve this problem step by step",
        "Let me solve this problem step by step",
        "To solve this problem",
        "Here is the solution",
        "Here is the answer",
        "Sure, here is the answer",
        "Correct",
        "Yes, that is correct",
        "解",
        "かいせつ",
        "Respuesta",
        "Solución",
        "Lösung",
        "Antwort",
    )
)


def says_nothing(text: str) -> bool:
    """Whether a text only opens an answer, or holds no letter and no digit at all."""
    if not any(map(str.isalnum, text)):
        return True
    return len(text) < 200 and normalised(text, "squad") in _OPENERS
