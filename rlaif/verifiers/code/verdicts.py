"""The verdict about one program: it runs in a sandbox, what it answers comes out, and is judged here (or, for tests
that are code, in another sandbox that it has no way into).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlaif.errors import TaskError
from rlaif.types import RewardReason
from rlaif.verifiers.code.compare import Compare, difference
from rlaif.verifiers.code.tasks import Calls, CodeTask, Program, Streams
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Launcher, Limits, Tier
from rlaif.verifiers.sandbox.session import Ended, Guest, Message, ended, open_guest, open_session, read_outline

WHOLE_RUNS: frozenset[Tier] = frozenset(("remote", "bwrap"))  # one request is a whole run, of a program with streams


@dataclass
class Outcome:
    """What came of running a program against tests: ``held`` of ``total`` tests (or asserts). It passed if all held."""

    held: int = 0
    total: int = 0
    reason: RewardReason | None = None
    detail: str = ""
    outline: Message | None = None
    changes_arguments: bool = False
    refused: str = ""  # what the tests wanted of a candidate's object and is not done from outside

    @property
    def passed(self) -> bool:
        return self.reason is None and 0 < self.total == self.held

    def failed(self, reason: RewardReason, detail: str) -> None:
        """The first failure is the one to tell."""
        if self.reason is None:
            self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Rules:
    """How to compare, and whether to go on after a failed test (for partial credit)."""

    compare: Compare = "tokens"
    tolerance: float = 1e-6  # of printed numbers, for compare="floats"
    call_tolerance: float = 0.0  # of returned floats
    tuple_is_list: bool = False  # a returned tuple is read as a list, for expected values that JSON has stored
    go_on: bool = False

    def read(self, encoded: Any) -> Any:
        return values.without_tuples(encoded) if self.tuple_is_list else encoded


class Solution(Protocol):
    """What answers questions about a program: a session, or a stand-in for one."""

    async def ask(self, question: Message) -> Message: ...


async def run(
    launcher: Launcher, limits: Limits, task: CodeTask, sources: Sequence[str], rules: Rules, write_back: bool = True
) -> Outcome:
    """One program against the task's tests. Raises SandboxError."""
    match task.tests:
        case Calls():
            return await run_calls(launcher, limits, task.tests, sources, rules)
        case Streams():
            return await run_streams(launcher, limits, task.tests, sources, rules)
        case Program():
            return await run_program(launcher, limits, task.tests, sources, rules, write_back)


# ------------------------------------------------------------------------------------------------------ arguments in


async def run_calls(launcher: Launcher, limits: Limits, task: Calls, sources: Sequence[str], rules: Rules) -> Outcome:
    """Call the function with each case's arguments; compare its values here. Raises SandboxError."""
    outcome = Outcome(total=len(task.cases))
    try:
        async with open_session(launcher, limits, sources) as session:
            outcome.outline = session.outline
            await judge_calls(session, task, rules, outcome)
    except Ended as end:
        outcome.failed(end.reason, end.detail)
    return outcome


async def judge_calls(solution: Solution, task: Calls, rules: Rules, outcome: Outcome) -> None:
    for number, (args, kwargs, expected) in enumerate(task.cases):
        call = {"op": "call", "on": {"name": task.entry}, "args": args, "kwargs": kwargs}
        reply = await solution.ask(call)
        if "raised" in reply:
            outcome.failed(*_raised(reply, f"test {number}: "))
        elif values.same(expected, rules.read(reply.get("value")), rules.call_tolerance):
            outcome.held += 1
        else:
            outcome.failed("wrong", f"test {number}: {_shown(reply.get('value'))}, expected {_shown(expected)}")
        if outcome.reason and not rules.go_on:
            return


def _raised(reply: Message, where: str = "") -> tuple[RewardReason, str]:
    reason: RewardReason = "resource" if "MemoryError" in reply["raised"] else "crashed"
    return reason, f"{where}it raised {str(reply['text'])[:200]}"


def _shown(encoded: Any) -> str:
    text = values.dumps(encoded).decode().strip()
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------- standard input, output


async def run_streams(
    launcher: Launcher, limits: Limits, task: Streams, sources: Sequence[str], rules: Rules
) -> Outcome:
    """Run the program once for each input; compare what it prints here. Raises SandboxError."""
    outcome = Outcome(total=len(task.cases))
    for number, (given, expected) in enumerate(task.cases):
        try:
            printed = await _run_script(launcher, limits, sources, given, outcome)
            wrong = await _difference(launcher, limits, task, given, printed, expected, rules)
        except Ended as end:
            outcome.failed(end.reason, f"test {number}: {end.detail}")
        else:
            if wrong is None:
                outcome.held += 1
            else:
                outcome.failed("wrong", f"test {number}: {wrong}")
        if outcome.reason and (not rules.go_on or outcome.reason == "unparseable"):
            break
    return outcome


async def _run_script(
    launcher: Launcher, limits: Limits, sources: Sequence[str], given: str, outcome: Outcome
) -> bytes:
    async with open_guest(launcher, limits, {"do": "script", "sources": list(sources)}) as guest:
        stdin = given.encode("utf-8", "surrogateescape")
        if launcher.tier in WHOLE_RUNS:
            await guest.process.write_stdin(stdin)
            guest.deadline = asyncio.get_running_loop().time() + limits.seconds  # it kept the time; the rest is reading
            outcome.outline = await read_outline(guest)
        else:  # a long outline and a long input, both unread, would wait for each other
            outcome.outline = await read_outline(guest)
            await guest.process.write_stdin(stdin)
        ending = await guest.process.wait()
        if ending.how != "exited":
            raise ended(ending, limits)
        if ending.code != 0:
            last = guest.process.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
            raise Ended("crashed", f"exit code {ending.code}: {last[:200]}")
        return guest.process.stdout


async def _difference(
    launcher: Launcher, limits: Limits, task: Streams, given: str, printed: bytes, expected: str, rules: Rules
) -> str | None:
    if task.checker is None:
        return difference(expected, printed, rules.compare, rules.tolerance)
    return await _checked(launcher, limits, task.checker, given, printed.decode("utf-8", "replace"), expected)


async def _checked(
    launcher: Launcher, limits: Limits, checker: str, given: str, printed: str, expected: str
) -> str | None:
    """The checker's word, from a sandbox of its own; only True is a yes."""
    question = {"op": "call", "on": {"name": "check"}, "args": [given, printed, expected], "kwargs": {}}
    try:
        async with open_session(launcher, limits, [checker]) as session:
            reply = await session.ask(question)
    except Ended as end:
        return f"the checker did not survive this output ({end.detail})"
    if "raised" in reply:
        return f"the checker raised {str(reply['text'])[:100]}"
    return None if reply.get("value") is True else "the checker says no"


# -------------------------------------------------------------------------------------------------- tests as code


async def run_program(
    launcher: Launcher, limits: Limits, task: Program, sources: Sequence[str], rules: Rules, write_back: bool = True
) -> Outcome:
    """Run the tests in one process and the candidate in another, and pass each question on. Raises SandboxError, and
    TaskError for tests that are none.

    ``write_back``: let the tests see what a call did to its arguments. Without it, an answer cannot change what the
    tests compare it with."""
    outcome = Outcome()
    try:
        async with (
            _open_tests(launcher, limits, task, rules) as tests,
            open_session(launcher, limits, sources) as session,
        ):
            outcome.outline = session.outline
            await judge_program(tests, session, outcome, write_back)
    except Ended as end:
        outcome.failed(end.reason, end.detail)
    return outcome


async def judge_program(tests: Guest, solution: Solution, outcome: Outcome, write_back: bool) -> None:
    """Answer the tests' questions until they report. Raises TaskError for tests that asked none: what an answer is
    has no part in how they ended."""
    asked = False
    raised: tuple[RewardReason, str] | None = None
    while "report" not in (message := await tests.read()):
        asked = True
        outcome.held = message.pop("held")
        reply = await solution.ask(message)
        if "args" in reply:
            outcome.changes_arguments = True
            if not write_back:
                del reply["args"]
        raised = _raised(reply) if "raised" in reply else raised
        await tests.send(reply)
    report = message["report"]
    if not asked:
        raise TaskError(f"the tests ask nothing of an answer{': ' + report['text'] if report['broken'] else ''}.")
    outcome.held, outcome.refused = report["held"], report["refused"]
    outcome.total = outcome.held + report["broken"]
    if report["broken"]:
        why, text = report["why"], report["text"]
        if why == "malformed":
            outcome.failed("cheat", f"it answered with something that is no value ({text})")
        elif why == "raised" and raised:
            outcome.failed(*raised)
        else:
            outcome.failed("wrong", text)
    elif not outcome.held:
        outcome.failed("wrong", "no test ran")


@asynccontextmanager
async def _open_tests(launcher: Launcher, limits: Limits, task: Program, rules: Rules) -> AsyncIterator[Guest]:
    job: Message = {
        "do": "tests",
        "given": list(task.given),
        "remote": list(task.remote),
        "setup": list(task.setup),
        "tests": list(task.tests),
        "entry": task.entry,
        "check": task.check,
        "go_on": rules.go_on,
    }
    async with open_guest(launcher, limits, job) as tests:
        await tests.process.write_stdin(b"")
        yield tests


async def run_program_against(
    launcher: Launcher, limits: Limits, task: Program, stand_ins: Sequence[Solution]
) -> list[Outcome]:
    """The same tests, answered by stand-ins, one after the other in one process: no answer's code is anywhere near.
    Each has ``limits.seconds``. Raises SandboxError, and TaskError for tests that are none."""
    outcomes: list[Outcome] = []
    for_all = replace(limits, seconds=limits.seconds * len(stand_ins))
    try:
        async with _open_tests(launcher, for_all, task, Rules()) as tests:
            for solution in stand_ins:
                if outcomes:
                    await tests.send({"again": True})
                outcomes.append(Outcome())
                async with asyncio.timeout(limits.seconds):
                    await judge_program(tests, solution, outcomes[-1], write_back=True)
    except TimeoutError:
        outcomes[-1].failed("timeout", f"not done in {limits.seconds:.3g} s")
    except Ended as end:
        outcomes = outcomes or [Outcome()]
        outcomes[-1].failed(end.reason, end.detail)
    if len(outcomes) < len(stand_ins):  # that one was the end of the process
        outcomes += await run_program_against(launcher, limits, task, stand_ins[len(outcomes) :])
    return outcomes
