"""Without CPython: tests that are only calls with literals, in a fast interpreter (sandbox/interp.py).

As a first try, what that interpreter computes is worth a pass where every value is right; anything else says nothing
about the answer, and CPython decides. In tier ``interp`` there is no CPython: a wrong value is wrong, and what the
interpreter cannot run is undecided. Expected values stay here. An answer that speaks of chance or time is left to
CPython, which runs it twice.
"""

import ast
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.errors import TaskError
from rlaif.verifiers.code.extract import programs
from rlaif.verifiers.code.selfcheck import passing_calls_without_knowledge
from rlaif.verifiers.code.tasks import Calls, CodeTask, Program
from rlaif.verifiers.code.verdicts import Outcome, Rules
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.interp import Interpreter, Untold

_CHANCE = re.compile(r"\b(?:random|secrets|urandom|time|perf_counter|time_ns|datetime|asyncio)\b")


@dataclass(frozen=True)
class PureCalls:
    """``entry(*arguments) == expected`` for each of ``cases``; ``expected`` is encoded. ``total``: asserts that hold
    when all of them do (more, where some are about nothing)."""

    entry: str
    cases: tuple[tuple[list[Any], Any], ...]
    total: int

    def encoded(self) -> Calls:
        """The same as a task's tests."""
        return Calls(self.entry, tuple(([values.encode(a) for a in given], {}, e) for given, e in self.cases))


def pure_calls(task: CodeTask) -> PureCalls | None:
    """The task's tests as calls of one function with plain values; None where they are more than that."""
    if isinstance(task.tests, Calls):
        return _of_calls(task.tests)
    if isinstance(task.tests, Program):
        return _of_program(task.tests)
    return None


async def passes(interpreter: Interpreter, calls: PureCalls, sources: Sequence[str], rules: Rules) -> Outcome | None:
    """The outcome of an answer whose every value is right; None for all others."""
    try:
        outcome = await outcome_of(interpreter, calls, sources, rules)
    except Untold:
        return None
    return outcome if outcome.passed else None


async def outcome_of(interpreter: Interpreter, calls: PureCalls, sources: Sequence[str], rules: Rules) -> Outcome:
    """What an answer comes to by its values alone. Raises Untold where the interpreter cannot tell."""
    source = sources[0]  # CPython takes it too if it is Python, and this interpreter knows no other
    if _CHANCE.search(unicodedata.normalize("NFKC", source)):
        raise Untold("it speaks of chance or time, and one run shows nothing")
    got = await interpreter.calls(source, calls.entry, [arguments for arguments, _ in calls.cases])
    outcome = Outcome(total=calls.total)
    for number, ((_, expected), value) in enumerate(zip(calls.cases, got, strict=True)):
        if values.same(expected, rules.read(value), rules.call_tolerance):
            outcome.held += 1
        else:
            outcome.failed("wrong", f"test {number}: the value is not the expected one")
    if outcome.reason is None:
        outcome.held = calls.total
    return outcome


async def prove(interpreter: Interpreter, task: CodeTask, calls: PureCalls, rules: Rules) -> None:
    """The task's self-check where there is no CPython. Raises TaskError: the reference fails or cannot be run, or an
    answer that knows nothing passes."""
    if task.reference is not None:
        try:
            outcome = await outcome_of(interpreter, calls, programs(task.reference, task.names, task.prompt), rules)
        except Untold as why:
            raise TaskError(f"the reference cannot be run in tier interp: {why}.") from None
        if not outcome.passed:
            raise TaskError(f"the reference fails its own tests: {outcome.detail} ({outcome.reason}).")
    doing = await passing_calls_without_knowledge(calls.encoded(), rules)
    if doing is not None:
        raise TaskError(f"the tests prove nothing: an answer that {doing} passes them; add some that it fails.")


def _of_calls(tests: Calls) -> PureCalls | None:
    if not tests.entry.isidentifier() or any(named for _, named, _ in tests.cases):
        return None
    cases = [([values.decode(a) for a in args], expected) for args, _, expected in tests.cases]
    return PureCalls(tests.entry, tuple(cases), len(cases))


def _of_program(tests: Program) -> PureCalls | None:
    if tests.setup or len(tests.remote) != 1 or (tests.check and tests.entry != tests.remote[0]):
        return None
    cases: list[tuple[list[Any], Any]] = []
    total = 0
    try:
        for name, assertion in _asserts(tests):
            total += 1
            if not _is_true(assertion.test):
                cases.append(_case(name, assertion.test))
    except (_NotPure, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return PureCalls(tests.remote[0], tuple(cases), total) if cases else None


class _NotPure(Exception):
    """The tests do more than call one function with literals."""


def _asserts(tests: Program) -> Iterator[tuple[str, ast.Assert]]:
    """Every assert, with the name that the function under test has there. Raises _NotPure where there is more."""
    checks = 0
    for node in (node for source in tests.tests for node in ast.parse(source).body):
        if isinstance(node, ast.Assert):
            yield tests.remote[0], node
        elif tests.check and isinstance(node, ast.FunctionDef) and node.name == "check" and not checks:
            checks += 1
            yield from ((_only_parameter(node), inner) for inner in _body(node))
        elif isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets):
            ast.literal_eval(node.value)  # data about the tests
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise _NotPure


def _only_parameter(check: ast.FunctionDef) -> str:
    names = [a.arg for a in check.args.args]
    if len(names) != 1 or ast.unparse(check.args) != names[0] or check.decorator_list:
        raise _NotPure
    return names[0]


def _body(check: ast.FunctionDef) -> Iterator[ast.Assert]:
    for node in check.body:
        if isinstance(node, ast.Assert):
            yield node
        elif not (isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))):
            raise _NotPure


def _is_true(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and test.value is True


def _case(name: str, test: ast.expr) -> tuple[list[Any], Any]:
    """``name(literals) == literal``. Equality here is of exact types, so it holds in Python too."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        raise _NotPure
    call = test.left
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name) or call.keywords:
        raise _NotPure
    return [ast.literal_eval(a) for a in call.args], values.encode(ast.literal_eval(test.comparators[0]))
