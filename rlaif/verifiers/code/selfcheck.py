"""A task checks itself before it judges anybody: its reference passes, twice, and answers that know nothing fail."""

import asyncio
from dataclasses import dataclass
from typing import Any

from rlaif.errors import TaskError
from rlaif.verifiers.code.compare import difference
from rlaif.verifiers.code.extract import programs
from rlaif.verifiers.code.tasks import Calls, CodeTask, Streams
from rlaif.verifiers.code.verdicts import (
    Outcome,
    Rules,
    judge_calls,
    run,
    run_program_against,
    run_streams,
)
from rlaif.verifiers.sandbox.base import Launcher, Limits
from rlaif.verifiers.sandbox.session import Message


@dataclass(frozen=True)
class Learnt:
    """What a task's reference tells. ``total``: how many tests (or asserts) ran, if it was the same number each time;
    ``seconds``: its slower run; ``write_back``: whether it changes its arguments, or there is none to know it from."""

    total: int | None = None
    seconds: float | None = None
    write_back: bool = True

    def agrees(self, outcome: Outcome) -> bool:
        """Whether it passed, and as many tests ran as with the reference: tests may loop over what an answer gives,
        and an empty answer must not pass for want of anything to check."""
        return outcome.passed and self.total in (None, outcome.total)


async def learn(launcher: Launcher, limits: Limits, task: CodeTask, rules: Rules) -> Learnt:
    """Run the reference twice. Raises TaskError where it fails, and SandboxError."""
    if task.reference is None:
        return Learnt()
    sources = programs(task.reference, task.names, task.prompt)
    totals, seconds, changes = set(), 0.0, False
    for _ in range(2):
        begun = asyncio.get_running_loop().time()
        outcome = await run(launcher, limits, task, sources, rules)
        if not outcome.passed:
            raise TaskError(_complaint(outcome))
        seconds = max(seconds, asyncio.get_running_loop().time() - begun)
        totals.add(outcome.total)
        changes = changes or outcome.changes_arguments
    return Learnt(totals.pop() if len(totals) == 1 else None, seconds, changes)


def _complaint(outcome: Outcome) -> str:
    if outcome.refused:
        return (
            f"the tests cannot be run outside of the reference's own process: {outcome.refused}; compare plain values "
            "(numbers, texts, lists) instead."
        )
    return f"the reference fails its own tests: {outcome.detail} ({outcome.reason})."


# ------------------------------------------------------------------------------------- answers that know nothing


def _raises(name: str) -> Message:
    return {"raised": [name, "Exception"], "with": [], "text": name}


_KNOW_NOTHING: dict[str, Message] = {
    "defines nothing": _raises("NameError"),
    "always raises ValueError": _raises("ValueError"),
    "returns an object that equals everything": {"value": {"object": [0, "AlwaysEqual"]}},
    "always returns None": {"value": None},
    "always returns True": {"value": True},
    "always returns False": {"value": False},
    "always returns 0": {"value": 0},
    "always returns ''": {"value": ""},
    "always returns []": {"value": []},
}


class StandIn:
    """Answers every call with one reply."""

    def __init__(self, reply: Message) -> None:
        self.reply = reply

    async def ask(self, question: Message) -> Message:
        return dict(self.reply) if question["op"] == "call" else _raises("AttributeError")


async def passing_without_knowledge(
    launcher: Launcher, limits: Limits, task: CodeTask, rules: Rules, learnt: Learnt
) -> str | None:
    """What an answer may do to pass without solving anything; None if the tests let none of it through."""
    if isinstance(task.tests, Streams):
        return await _passing_output(launcher, limits, task.tests, rules)
    if isinstance(task.tests, Calls):
        return await passing_calls_without_knowledge(task.tests, rules)
    outcomes = await run_program_against(launcher, limits, task.tests, _stand_ins())
    return next((doing for doing, o in zip(_KNOW_NOTHING, outcomes, strict=True) if learnt.agrees(o)), None)


async def passing_calls_without_knowledge(tests: Calls, rules: Rules) -> str | None:
    """As `passing_without_knowledge`, for calls alone: nothing has to be run."""
    for doing, stand_in in zip(_KNOW_NOTHING, _stand_ins(), strict=True):
        outcome = Outcome(total=len(tests.cases))
        await judge_calls(stand_in, tests, rules, outcome)
        if outcome.passed:
            return doing
    return None


def _stand_ins() -> list[StandIn]:
    return [StandIn(reply) for reply in _KNOW_NOTHING.values()]


async def _passing_output(launcher: Launcher, limits: Limits, task: Streams, rules: Rules) -> str | None:
    """A program that ignores its input: it prints nothing, or what is right for the first one."""
    guesses: dict[str, Any] = {"prints nothing": "", "always prints the same": task.cases[0][1]}
    for doing, printed in guesses.items():
        if task.checker is not None:
            program = f"print({printed!r}, end='')"
            if (await run_streams(launcher, limits, task, [program], rules)).passed:
                return doing
        elif all(
            difference(expected, printed.encode(), rules.compare, rules.tolerance) is None for _, expected in task.cases
        ):
            return doing
    return None
