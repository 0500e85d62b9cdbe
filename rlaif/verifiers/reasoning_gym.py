"""Tasks of the package reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), scored by its own code.

A row has ``entry``: what a reasoning-gym data set yields (``question``, ``answer``, ``metadata`` with
``source_dataset``), as a mapping or JSON text. The value is the package's score in [0, 1].

Some of the package's scorers evaluate the answer as Python (``eval``, sympy's ``parse_expr``), in this process. For
those an answer must be words, a literal or plain arithmetic, which runs nothing; anything else is a 0, unscored.

Not covered: a scorer that takes very long on an honest-looking answer. It cannot be killed.
"""

import ast
import asyncio
import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.base import Task
from rlaif.verifiers.text import TextOptions, answer_of, excerpt, unreadable

_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify|S)\(")
_NUMBER = r"\d{1,15}(?:\.\d{1,15})?"
_NAME = r"(?:sin|cos|tan|exp|log|ln|sqrt|pi|[A-Za-z])(?![A-Za-z_])"
# A power has a letter below it and a small number above it: nothing here can grow.
_ARITHMETIC = re.compile(
    rf"(?:{_NAME}(?:\s*(?:\*\*|\^)\s*\d{{1,2}}(?!\d))?|{_NUMBER}(?![A-Za-z_.\d])|[-+/()=,\s]|\*(?!\s*\*))*"
)
_ROOT = re.compile(r"\)\s*\*\*\s*\(\d/\d\)")  # (2*x + 1)**(3/2); a few of them cannot grow either
_PLAIN = re.compile(r"[\w\s,;|+-]*")  # words and numbers: no call, no attribute, no power
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymOptions(TextOptions):
    """``tagged``: the answer is what stands in the last ``<answer>`` tag; otherwise it is the whole completion."""

    max_characters: int = Field(100_000, gt=0)
    tagged: bool = True


class _ScorerFailed(Exception):
    """A scorer gave no number."""


class ReasoningGymVerifier:
    """The score that the row's own data set gives the completion's answer."""

    identity = "reasoning_gym@1"
    Options = ReasoningGymOptions

    def __init__(self, options: ReasoningGymOptions) -> None:
        self.options = options

    async def prepare(self, task: Task) -> None:
        """Raises TaskError unless the data set exists and scores the row's own answer, if it has one, with 1."""
        entry = _entry(task)
        _scorer(entry)
        if entry.get("answer") is None:  # a puzzle with many solutions
            return
        try:
            score = await asyncio.to_thread(_score, str(entry["answer"]), entry)
        except _ScorerFailed as error:
            raise TaskError(f"reasoning_gym@1: {error}.") from None
        if score < 1.0:
            raise TaskError(f"reasoning_gym@1: the entry's own answer scores {score:g} of 1.")

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if (failed := unreadable(completion, self.options.max_characters)) is not None:
            return failed
        text = answer_of(completion) if self.options.drop_thinking else completion
        answer = _last_tagged(text) if self.options.tagged else text.strip()
        if not answer:
            return Reward(value=0.0, reason="unparseable", detail="no <answer> tag with an answer in it")
        try:
            score = await asyncio.to_thread(_score, answer, _entry(task))
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))
        except _ScorerFailed as error:  # the row's own answer did not make it fail
            return Reward(value=0.0, reason="unparseable", detail=str(error))
        if score >= 1.0:
            return Reward(value=1.0)
        return Reward(value=max(score, 0.0), reason="wrong", detail=f"the data set's score of {excerpt(answer)}")

    async def aclose(self) -> None:
        return None


def _last_tagged(text: str) -> str:
    found = _ANSWER.findall(text) if "</answer>" in text else []
    return found[-1].strip() if found else ""


def _entry(task: Task) -> dict[str, Any]:
    entry = task.get("entry")
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except ValueError as error:
            raise TaskError(f"reasoning_gym@1: the column 'entry' is not JSON: {error}.") from None
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(metadata, dict) or not metadata.get("source_dataset"):
        raise TaskError(
            "reasoning_gym@1: the row needs 'entry' with metadata.source_dataset, as reasoning-gym yields it."
        )
    return entry


def runs_nothing(answer: str) -> bool:
    """Whether evaluating ``answer`` as Python can do nothing but give a value: a literal, or plain arithmetic."""
    if len(answer) > 2_000:
        return False
    roots = _ROOT.subn(")", answer)
    if _PLAIN.fullmatch(answer) or (roots[1] <= 3 and _ARITHMETIC.fullmatch(roots[0])):
        return True
    try:
        ast.literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _scorer(entry: dict[str, Any]) -> Callable[..., Any]:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError:
        raise InputError(
            "The reasoning_gym verifier needs the package reasoning-gym: pip install reasoning-gym."
        ) from None
    name = entry["metadata"]["source_dataset"]
    try:
        scorer: Callable[..., Any] = get_score_answer_fn(name)
    except (ValueError, KeyError) as error:
        raise TaskError(f"reasoning_gym@1: there is no data set {name!r} ({error}).") from None
    return scorer


def _score(answer: str, entry: dict[str, Any]) -> float:
    scorer, name = _scorer(entry), entry["metadata"]["source_dataset"]
    if _EVALUATES.search(_source(scorer)) and not runs_nothing(answer):
        return 0.0
    try:
        score = float(scorer(answer=answer, entry=entry))
    except Exception as error:  # noqa: BLE001  # somebody else's code, and the answer is checked by its own parser
        raise _ScorerFailed(f"the scorer of {name!r} failed on {excerpt(answer)} ({excerpt(repr(error))})") from None
    if not math.isfinite(score):
        raise _ScorerFailed(f"the scorer of {name!r} gave {score} for {excerpt(answer)}")
    return score


def _source(scorer: Any) -> str:
    """The source of the module that a scorer comes from; without one, whatever it does counts as evaluating."""
    try:
        return inspect.getsource(inspect.getmodule(scorer) or type(scorer.__self__))
    except (OSError, TypeError, AttributeError):
        return "eval("
