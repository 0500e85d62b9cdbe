"""Math answers: is what a completion answers equal to the reference?

=============== =======================================================================================
extract.py      which part of a completion is its answer
fold.py         spelling: Unicode, Markdown and LaTeX variants
parse.py        text -> a type of answers.py; exact.py does the arithmetic, exactly and bounded
compare.py      how two answers are compared: a table from types to functions
units.py        units and what they are worth
pool.py         the host's side of the workers; forkserver.py and algebra.py are the workers' side
=============== =======================================================================================

Most answers are decided here, exactly, in tens of microseconds. What needs computer algebra goes to a worker process
that is killed at a deadline, never to this process: nothing that a completion says can hang or crash its caller, and
nothing of it is evaluated as Python anywhere.

Not covered: proofs and explanations (only the final answer counts); answers that hold only under assumptions the
reference does not state; interval arithmetic of answers with an error ("3.1 \\pm 0.2" is two numbers).
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal

from pydantic import Field

from rlaif.config.base import Config
from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, RewardReason, Unverified
from rlaif.verifiers.base import Task
from rlaif.verifiers.math.answers import Answer, Expr, Number, Quantity, Text, leaves_of
from rlaif.verifiers.math.compare import Exactly, Undecided, equal
from rlaif.verifiers.math.extract import FORMS, Extracted, Form, extract, reference_answer
from rlaif.verifiers.math.fold import clean, fold
from rlaif.verifiers.math.parse import INFINITE, TooComplex, Unreadable, parse
from rlaif.verifiers.math.pool import Decided, Pool, PoolError, Undecidable

__all__ = ["MathVerifier"]

_REMEMBERED = 4096  # verdicts of the workers
_LIBRARIES = ("math-verify", "latex2sympy2_extended", "sympy", "antlr4-python3-runtime")


class MathVerifier:
    """1.0 where the completion's final answer equals ``reference``, else 0.0 with the reason.

    A task has ``reference`` (a bare answer, a boxed one, LaTeX, or a GSM8K solution that ends in "#### 20") and may
    have ``prompt``: the question, which tells a restated question from an answer. ``versions``: of the libraries a
    verdict may depend on.
    """

    identity = "math@1"

    class Options(Config):
        """answer_forms: where an answer is looked for, first come first served (see extract.py).
        several_boxes: with different boxed answers, the "last" counts, or the completion is "reject"ed.
        restated: whether a copy of a formula of the question that still has to be worked out is an answer.
        unevaluated: the same for any sum, integral or product where the reference is a plain number.
        seconds: for one comparison by computer algebra. workers: how many at once (default: the processors)."""

        answer_forms: tuple[Form, ...] = Field(FORMS, min_length=1)
        several_boxes: Literal["last", "reject"] = "last"
        restated: Literal["accept", "reject"] = "reject"
        unevaluated: Literal["accept", "reject"] = "accept"
        seconds: float = Field(2.0, gt=0, le=600)
        workers: int | None = Field(None, ge=1, le=256)

    def __init__(self, options: Options) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("the math verifier needs math-verify: pip install 'math-verify[antlr4_13_2]'.")
        self.options = options
        self.versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        self._pool = Pool(options.seconds)
        self._workers = options.workers or len(os.sched_getaffinity(0))
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._decided: dict[tuple[str, str | None], Decided | Undecidable] = {}

    async def prepare(self, task: Task) -> None:
        """Raises TaskError where no completion can be compared with the reference: it is missing, cannot be read, or
        takes too long to read."""
        gold = _reference(task)
        if any(leaf not in INFINITE for leaf in leaves_of(_gold(gold))):
            try:
                outcome: object = await self._ask(gold, None)
            except PoolError:
                return  # not the task's fault; `verify` says so of every row that needs the pool
            if isinstance(outcome, Undecidable):
                raise TaskError(_no_use(gold, f"{outcome.reason}: {outcome.detail}"))

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        try:
            gold = _reference(task)
            gold_answer = _gold(gold)
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))
        question = task.get("prompt") if isinstance(task.get("prompt"), str) else None
        found = extract(completion, self.options.answer_forms, question or "")
        if found is None:
            return Reward(value=0.0, reason="unparseable", detail="no answer found")
        flags: tuple[str, ...] = ("several_boxes",) if found.rivals else ()
        if found.rivals and self.options.several_boxes == "reject":
            return _zero("wrong", f"several boxed answers: {found.rivals[0]!r} and {found.text!r}", flags)
        try:
            answer = parse(found.text)
        except Unreadable as error:
            return _zero("unparseable", str(error), flags)
        except TooComplex as error:
            return _zero("resource", str(error), flags)
        if work := _work_left(found, answer, gold, gold_answer, question):
            flags += (work,)
            if getattr(self.options, work) == "reject":
                return _zero("wrong", f"{work}: {found.text[:80]!r}", flags)
        try:
            decided: Decided | Undecidable = Decided(equal(gold_answer, answer, Exactly()))
        except Undecided:
            try:
                decided = await self._ask(gold, found.text)
            except PoolError as error:
                return Unverified(reason="infrastructure", detail=str(error))
        if isinstance(decided, Undecidable):
            if decided.party == "gold":
                return Unverified(reason="task_error", detail=_no_use(gold, f"{decided.reason}: {decided.detail}"))
            return _zero(decided.reason, decided.detail, flags)
        if decided.equal:
            return Reward(value=1.0, flags=flags)
        return _zero("wrong", f"{found.text[:80]!r} is not {gold[:80]!r}", flags)

    async def aclose(self) -> None:
        if self._threads is not None and self._process == os.getpid():
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = None
        await asyncio.to_thread(self._pool.close)

    async def _ask(self, gold: str, pred: str | None) -> Decided | Undecidable:
        # Our own threads: as many as workers, so that the deadline of a question begins when a worker takes it up.
        if self._threads is None or self._process != os.getpid():
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="rlaif-math")
            self._process = os.getpid()
        if (known := self._decided.get((gold, pred))) is not None:  # a policy repeats itself, in a group and over time
            return known
        loop = asyncio.get_running_loop()
        decided = await loop.run_in_executor(self._threads, self._pool.ask, gold, pred)
        if len(self._decided) >= _REMEMBERED:
            self._decided.clear()
        self._decided[gold, pred] = decided
        return decided


def _reference(task: Task) -> str:
    reference = task.get("reference")
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        reference = repr(reference)
    if not isinstance(reference, str) or not reference.strip():
        raise TaskError("the task has no `reference`; give the right answer as text.")
    return reference_answer(reference)


@lru_cache(maxsize=4096)
def _gold(gold: str) -> Answer:
    try:
        answer = parse(gold)
    except (Unreadable, TooComplex) as error:
        raise TaskError(_no_use(gold, str(error))) from None
    if isinstance(answer, Text) and "\n" in gold.strip():
        raise TaskError(_no_use(gold, "it is a text of several lines, not an answer"))
    return answer


def _no_use(gold: str, why: str) -> str:
    return (
        f"the reference {gold[:80]!r} cannot be compared with ({why}); write the answer as a formula, number or text."
    )


def _zero(reason: RewardReason, detail: str, flags: tuple[str, ...]) -> Reward:
    return Reward(value=0.0, reason=reason, detail=detail, flags=flags)


# --------------------------------------------------------------------------------------------------- work left to do

_OPERATOR = re.compile(r"\\(?:int|sum|prod|lim|binom|sqrt|cdot|times)(?![A-Za-z])|[+*^!]|(?<=[\w)}])\s*-")
_UNEVALUATED = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")


def _work_left(
    found: Extracted, answer: Answer, gold: str, gold_answer: Answer, question: str | None
) -> Literal["restated", "unevaluated"] | None:
    """Whether the answer only repeats what was asked, or leaves a sum or integral standing for a plain number."""
    if not isinstance(answer, Number | Expr | Quantity):
        return None
    text = _spaceless(found.text)
    if not _OPERATOR.search(text) or text == _spaceless(gold):
        return None
    if question and text in _spaceless(question, whole=False):
        return "restated"
    if isinstance(gold_answer, Number | Quantity) and _UNEVALUATED.search(text):
        return "unevaluated"
    return None


def _spaceless(text: str, whole: bool = True) -> str:
    folded = fold(text[:20_000])
    return re.sub(r"\s|\\[,;: ]", "", clean(folded) if whole else re.sub(r"\\[dt]frac", r"\\frac", folded))
