"""The fast first try: its passes are CPython's, whatever it cannot do is done by CPython, and no answer gains."""

import asyncio
import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward
from rlaif.verifiers import open_verifier
from rlaif.verifiers.code import CodeVerifier
from rlaif.verifiers.code.first_try import pure_calls
from rlaif.verifiers.code.tasks import read_task
from rlaif.verifiers.sandbox.base import Launcher
from rlaif.verifiers.sandbox.probe import open_sandbox

pytest.importorskip("pydantic_monty")

ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = {"tests": ["assert add(1, 2) == 3", "assert add([5], [2]) == [5, 2]"]}
CALLS = {"tests": [{"args": [1, 2], "output": 3}, {"args": [[5], [2]], "output": [5, 2]}], "entry_point": "add"}
CHECK = {
    "tests": "METADATA = {'a': 1}\n\ndef check(candidate):\n    'doc'\n    assert True, 'a joke'\n"
    "    assert candidate(1, 2) == 3, 'first'\n    assert candidate([5], [2]) == [5, 2]\n",
    "entry_point": "add",
}
FIRST = Reward(value=1.0, flags=("interp",))


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    try:
        yield open_sandbox(workers=4)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def verifier(launcher: Launcher) -> Iterator[CodeVerifier]:
    made = CodeVerifier(CodeVerifier.Options(interp=True, workers=2, max_seconds=1.5), launcher)
    yield made
    if made._interpreter is not None:
        asyncio.run(made._interpreter.aclose())


@pytest.mark.parametrize("row", [ASSERTS, CALLS, CHECK])
async def test_a_pass_is_taken_from_it_and_said(verifier: CodeVerifier, row: dict[str, Any]) -> None:
    assert await verifier.verify(ADD, row) == FIRST
    assert await verifier.verify(f"So:\n```python\n{ADD}```", {**row, "reference": ADD}) == FIRST
    assert verifier.tier == "interp"


@pytest.mark.parametrize("row", [ASSERTS, CALLS, CHECK])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        # what this interpreter does not know is for CPython, which says what it always does
        ("import operator\nclass A(int): pass\ndef add(a, b):\n    return operator.add(a, b)", None),
        ("def add(a, b):\n    return 3", "wrong"),
        ("def add(a, b):\n    raise ValueError", "crashed"),
        ("def add(a, b):\n    return a +", "unparseable"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        # attacks
        ("class E:\n    def __eq__(self, o): return True\ndef add(a, b): return E()", "wrong"),
        ("class json:\n    def dumps(x): return '[3]'\ndef add(a, b): return 0", "wrong"),
        ("class json:\n    def dumps(x): return '[null, null]'\ndef add(a, b): return 0", "wrong"),
        ("_rlaif_encoded = lambda x: x\ndef add(a, b): return [x for x in _rlaif_given]", "crashed"),
        ("def _rlaif_encoded(x): return {'dict': []}\ndef add(a, b): return 0", "wrong"),
        ("import os\nos._exit(0)\ndef add(a, b): return 3", "crashed"),
        ("raise SystemExit(0)", "crashed"),
        ("def add(a, b):\n    return open('/etc/passwd').read()", "crashed"),
        ("add = print", "wrong"),
    ],
)  # fmt: skip
async def test_anything_else_is_decided_by_cpython(
    verifier: CodeVerifier, row: dict[str, Any], answer: str, reason: str | None
) -> None:
    verdict = await verifier.verify(answer, row)
    assert isinstance(verdict, Reward)
    assert "interp" not in verdict.flags
    if reason == "crashed" and "/etc/passwd" in answer:
        assert verdict.reason in ("crashed", "wrong")  # a sandbox may have a file of that name, and it is no sum
    else:
        assert (verdict.reason, verdict.value) == (reason, float(reason is None))


async def test_an_answer_by_chance_is_run_twice_by_cpython(verifier: CodeVerifier) -> None:
    verdict = await verifier.verify("import random\n" + ADD, CALLS)
    assert verdict == Reward(value=1.0, flags=("chance",))


async def test_as_many_asserts_count_as_in_cpython(verifier: CodeVerifier) -> None:
    """With a reference the number of asserts must agree, so a wrong count would show as a run of CPython's."""
    assert await verifier.verify(ADD, {**CHECK, "reference": ADD}) == FIRST


@pytest.mark.parametrize(
    "tests",
    [
        "def check(candidate):\n    assert abs(candidate(1, 2) - 3) < 1e-6",
        "def check(candidate):\n    for i in range(3): assert candidate(i, 1) == i + 1",
        "def check(candidate, n=3):\n    assert candidate(1, 2) == 3",
        "def check(candidate):\n    x = candidate(1, 2)\n    assert x == 3",
        "assert add(1, 2) == 3\nassert add(1, 2) != 4",
        "assert add(1, 2) == 1 + 3",
        "assert 3 == add(1, 2)",
        "assert add(a=1, b=2) == 3",
        "assert add(add(1, 2), 3) == 6",
        "assert add(1, 2) == 3 == 3",
        "import math\nassert add(1, 2) == 3",
        "def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)",
    ],
)
def test_tests_that_are_more_than_calls_with_literals_are_not_tried(tests: str) -> None:
    assert pure_calls(read_task({"tests": tests, "entry_point": "add"})) is None


def test_streams_setups_and_methods_are_not_tried() -> None:
    assert pure_calls(read_task({"tests": [{"input": "1", "output": "2"}]})) is None
    assert pure_calls(read_task({**ASSERTS, "test_setup_code": "x = 3"})) is None
    assert pure_calls(read_task({"tests": [{"args": [1], "output": 1}], "entry_point": "Solution().f"})) is None
    assert (
        pure_calls(read_task({"tests": [{"args": [1], "kwargs": {"b": 2}, "output": 1}], "entry_point": "f"})) is None
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"min_tier": "lsm"}, "promises that no answer runs in anything less"),
        ({"min_tier": "ns"}, "promises that no answer runs in anything less"),
        ({"mode": "io"}, "not for whole programs"),
        ({"tier": "remote", "remote_url": "http://a"}, "not for whole programs"),
    ],
)
def test_it_is_refused_where_it_would_break_a_promise(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        open_verifier("code", {"interp": True, **options})
    open_verifier("code", {"interp": True, "min_tier": "interp"})


def test_where_it_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"rlaif\[interp\]"):
        open_verifier("code", {"interp": True})


def _humaneval() -> list[dict[str, Any]]:
    folder = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = folder / "code" / "humaneval_164.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is not here (RLAIF_DATA)")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.slow
async def test_humanevals_references_pass_most_of_the_pure_ones_at_the_first_try(launcher: Launcher) -> None:
    verifier = CodeVerifier(CodeVerifier.Options(interp=True, self_check=False, workers=2), launcher)
    rows = _humaneval()
    verdicts = await asyncio.gather(*(verifier.verify(row["canonical_solution"], row) for row in rows))
    assert [v.value for v in verdicts if isinstance(v, Reward)] == [1.0] * 164
    pure = sum(pure_calls(read_task(row)) is not None for row in rows)
    first = sum(v == FIRST for v in verdicts)
    assert 80 <= first <= pure
    assert verifier._interpreter is not None
    await verifier._interpreter.aclose()


# ------------------------------------------------------------------------------------- alone, where no sandbox holds


@pytest.fixture
def alone() -> Iterator[CodeVerifier]:
    made = CodeVerifier(CodeVerifier.Options(tier="interp", workers=1, max_seconds=0.3))
    yield made
    asyncio.run(made.aclose())


@pytest.mark.parametrize("row", [ASSERTS, CALLS, CHECK])
async def test_alone_it_decides_by_values(alone: CodeVerifier, row: dict[str, Any]) -> None:
    row = {**row, "reference": ADD}
    assert await alone.verify(ADD, row) == FIRST
    wrong = await alone.verify("def add(a, b):\n    return a", row)
    assert (wrong.kind, wrong.reason) == ("reward", "wrong")
    assert isinstance(wrong, Reward)
    assert wrong.value == 0
    assert alone.tier == "interp"


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        ("def add(a, b):\n    while True: pass", "reward", "timeout"),
        ("def add(a, b):\n    return [0] * 10**12", "reward", "resource"),
        ("class C(int): pass\ndef add(a, b):\n    return C(a + b)", "unverified", "infrastructure"),
        ("import random\ndef add(a, b):\n    return a + b", "unverified", "infrastructure"),
        ("def add(a, b): return open('/etc/passwd')", "unverified", "infrastructure"),
        ("no program at all", "unverified", "infrastructure"),
    ],
)
async def test_alone_what_it_cannot_run_is_undecided_and_what_never_ends_has_failed(
    alone: CodeVerifier, source: str, kind: str, reason: str
) -> None:
    verdict = await alone.verify(source, ASSERTS)
    assert (verdict.kind, verdict.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"tests": ["assert add(1, 2) == 3\nassert abs(add(0.1, 0.2) - 0.3) < 1e-6"]}, "only tests that are calls"),
        ({**ASSERTS, "reference": "def add(a, b):\n    return a"}, "the reference fails"),
        ({**ASSERTS, "reference": "class C(int): pass\n" + ADD}, "cannot be run in tier interp"),
        ({"tests": ["assert add(1, 2) == 0"]}, "always returns 0"),
    ],
)
async def test_alone_a_task_it_cannot_prove_is_wrong(alone: CodeVerifier, row: dict[str, Any], why: str) -> None:
    with pytest.raises(TaskError, match=why):
        await alone.prepare(row)
    verdict = await alone.verify(ADD, row)
    assert (verdict.kind, verdict.reason) == ("unverified", "task_error")


@pytest.mark.parametrize("options", [{"min_tier": "lsm"}, {"mode": "io"}])
def test_alone_it_promises_no_more_than_it_can(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tier: interp"):
        CodeVerifier.Options(tier="interp", **options)
