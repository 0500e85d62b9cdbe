"""No answer reaches its own verdict: every attack gets 0.0 for a reason that is about it, an honest answer beside it
gets 1.0, in each way of testing and in each tier that this machine has."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.code import CodeVerifier
from rlaif.verifiers.sandbox.base import Launcher
from rlaif.verifiers.sandbox.probe import open_sandbox
from tests.verifiers.code_attacks import ATTACKS, CALLS, HONEST, TESTS, UNITTEST, Attack
from tests.verifiers.sandbox.users import NOBODY, open_to_all, python_for_nobody

ROWS: dict[str, dict[str, Any]] = {
    "check": {"tests": TESTS, "entry_point": "add"},
    "call": {"tests": CALLS, "entry_point": "add"},
    "unittest": {"tests": UNITTEST, "entry_point": "add"},
}


@pytest.fixture(scope="module", params=["ns", "lsm"])
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    try:
        yield open_sandbox(tier=request.param, workers=4)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def verifier(launcher: Launcher) -> CodeVerifier:
    return _verifier(launcher)


def _verifier(launcher: Launcher, **options: Any) -> CodeVerifier:
    # Without the self-check a verifier knows least: no reference to have counted the asserts.
    settings = {"workers": 2, "self_check": False, "max_seconds": 3.0, **options}
    return CodeVerifier(CodeVerifier.Options.model_validate(settings), launcher)


def _fenced(code: str) -> str:
    return f"Here you are:\n\n```python\n{code}\n```\nThis adds two numbers."


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
async def test_an_attack_fails_and_an_honest_answer_beside_it_passes(launcher: Launcher, attack: Attack) -> None:
    # Half of them against test code, half against calls in each tier; all against both in the slow suite.
    ways = ("check", "call")
    await _attacked(launcher, attack, ways[(ATTACKS.index(attack) + (launcher.tier == "ns")) % 2])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["check", "call"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
async def test_an_attack_fails_in_each_way_of_testing(launcher: Launcher, attack: Attack, way: str) -> None:
    await _attacked(launcher, attack, way)


async def _attacked(launcher: Launcher, attack: Attack, way: str) -> None:
    verifier = _verifier(launcher, max_seconds=attack.seconds, min_seconds=min(1.0, attack.seconds))
    verdict = await verifier.verify(_fenced(attack.code), ROWS[way])
    assert isinstance(verdict, Reward), verdict
    assert verdict.value == 0.0
    assert verdict.reason in attack.reasons, verdict.detail
    assert await _verifier(launcher).verify(_fenced(HONEST), ROWS[way]) == Reward(value=1.0)


@pytest.mark.parametrize("way", ["check", "call", "unittest"])
async def test_an_honest_answer_passes_and_a_wrong_one_is_wrong_in_every_way_of_testing(
    verifier: CodeVerifier, way: str
) -> None:
    assert await verifier.verify(HONEST, ROWS[way]) == Reward(value=1.0)
    verdict = await verifier.verify(HONEST.replace("+", "-"), ROWS[way])
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.reason) == (0.0, "wrong")


@pytest.mark.parametrize(
    "code",
    [
        "import unittest\ndef add(a, b): raise unittest.SkipTest('x')",
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef add(a, b): return 0",
        "class TestAdd:\n    pass\ndef add(a, b): return 0",
        "import sys\ndef add(a, b): sys.exit(0)",
        "import os\nos._exit(0)",
        "def add(a, b): raise StopIteration",
    ],
)
async def test_unittest_classes_run_where_the_answer_cannot_skip_patch_or_end_them(
    verifier: CodeVerifier, code: str
) -> None:
    verdict = await verifier.verify(code, ROWS["unittest"])
    assert isinstance(verdict, Reward)
    assert verdict.value == 0.0
    assert verdict.reason in ("wrong", "crashed")


async def test_a_skipped_test_method_is_no_passed_one(verifier: CodeVerifier) -> None:
    skipping = "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('')\n    def test_a(self): add(1, 2)\n"
    verdict = await verifier.verify(HONEST, {"tests": skipping, "entry_point": "add"})
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"


# ------------------------------------------------------------------------- tests that are easier to cheat than add's


def _case(tests: str, honest: str, attack: str, entry: str = "f", **row: Any) -> tuple[dict[str, Any], str, str]:
    return {"tests": tests, "entry_point": entry, **row}, honest, attack


ITERATES = "assert all(map(lambda c: f(c[0]) == c[1], [(1, 2), (2, 3), (3, 4)]))\nassert f(7) in (8,) or f(8) == 9"
SPECIAL = {
    "a StopIteration that ends the tests' own loop": _case(
        ITERATES, "def f(x): return x + 1", "def f(x): raise StopIteration"
    ),
    "arguments changed into what is expected": _case(
        "def check(f):\n for v in ([3, 1], [4, 9, 2]):\n  assert f(v) == sum(v)\nassert f([1]) == 1",
        "def f(v): return sum(v)",
        "def f(v):\n    v.clear()\n    return 0 if True else sum(v)",
        reference="def f(v): return sum(v)",
    ),
    "a helper of the prompt, replaced": _case(
        "def check(candidate):\n    assert abs(poly([1, 2], candidate([1, 2]))) < 1e-4\n"
        "    assert candidate([4, 2]) < 0",
        "    return -xs[0] / xs[1]",
        "    return -1e9\ndef poly(xs, x): return 0.0",
        prompt="def poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef f(xs):\n    '''A zero of poly.'''\n",
    ),
    "a number that is near to everything": _case(
        "assert abs(f(2) - 1.41421) < 1e-4\nassert abs(f(9) - 3) < 1e-6",
        "def f(x): return x ** 0.5",
        "class N(float):\n def __sub__(s, o): return s\n __abs__ = lambda s: s\n __lt__ = lambda s, o: True\n"
        "def f(x): return N(0)",
    ),
    "an object that has every length and holds everything": _case(
        "r = f(3)\nassert len(r) == 3\nassert r[0] == 0 and 2 in r\nassert sorted(r) == [0, 1, 2]",
        "def f(n): return list(range(n))",
        "class L:\n __len__ = lambda s: 3\n __contains__ = lambda s, x: True\n __iter__ = lambda s: iter([0])\n"
        " __getitem__ = lambda s, i: s\n __eq__ = lambda s, o: True\ndef f(n): return L()",
    ),
    "an empty answer to tests that loop over it": _case(
        "for n, x in enumerate(f(3)):\n    assert x == n\nassert f(0) == []",
        "def f(n): return list(range(n))",
        "def f(n): return []",
        reference="def f(n): return list(range(n))",
    ),
    "an iterator without end, where one is read to its end": _case(
        "assert list(f(3)) == [0, 1, 2]\nassert list(f(1)) == [0]",
        "def f(n): yield from range(n)",
        "import itertools\ndef f(n): return itertools.count()",
    ),
    "values that keep the tests busy": _case(
        "assert len(set(f(3))) == 3\nassert set(f(1)) == {0}",
        "def f(n): return list(range(n))",
        "def f(n): return [i * (2**61 - 1) for i in range(60_000)]",
    ),
    "memory of the tests' process": _case(
        "assert 'x' * f(3) == 'xxx'\nassert 'x' * f(1) == 'x'", "def f(n): return n", "def f(n): return 1 << 40"
    ),
    "an exception where one is wanted, but always": _case(
        "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass\nassert f(4) == 2",
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return int(x ** 0.5)",
        "def f(x): raise ValueError",
    ),
    "a method of a class of its own": _case(
        "s = Stack()\ns.push(3)\ns.push(4)\nassert s.pop() == 4\nassert len(s) == 1",
        "class Stack:\n def __init__(s): s.v = []\n def push(s, x): s.v.append(x)\n def pop(s): return s.v.pop()\n"
        " def __len__(s): return len(s.v)",
        "class Any(int):\n __eq__ = lambda s, o: True\n"
        "class Stack:\n push = lambda s, x: None\n pop = lambda s: Any()\n __len__ = lambda s: 1",
        entry="Stack",
    ),
}


@pytest.mark.parametrize("what", SPECIAL)
async def test_tests_that_are_easy_to_cheat_in_their_own_process_are_not_from_outside(
    launcher: Launcher, what: str
) -> None:
    row, honest, attack = SPECIAL[what]
    verifier = _verifier(launcher, self_check=True, max_seconds=1.0)
    assert await verifier.verify(honest, row) == Reward(value=1.0)
    verdict = await verifier.verify(attack, row)
    assert isinstance(verdict, Reward), verdict
    assert verdict.value == 0.0, what


SQUARES = [{"input": "3\n", "output": "9\n16\n"}, {"input": "0\n", "output": "0\n1\n"}]
SQUARES_HONEST = "n = int(input())\nprint(n * n)\nprint((n + 1) ** 2)"
PRINTED = {
    "the first line only": "print(int(input()) ** 2)",
    "more lines after the right ones": SQUARES_HONEST + "\nprint('PASSED')",
    "both lines on one": SQUARES_HONEST.replace("print(n * n)", "print(n * n, end=' ')"),
    "everything that might be right": "print('9\\n16\\n0\\n1')",
    "digits of another alphabet": "n = int(input())\nprint('\\u0669', (n + 1) ** 2, sep='\\n')",
    "an invisible character": SQUARES_HONEST.replace("print(n * n)", "print(str(n * n) + '\\u200b')"),
    "nothing, and exit code 0": "import os\nos._exit(0)",
    "the right output, then an error": SQUARES_HONEST + "\nraise ValueError",
    "bytes that are no text": "import os\nos.write(1, b'\\xff\\xfe9')",
    "the input again": "print(input())",
    "its verdict on the channel": SQUARES_HONEST.replace("n * n", "0")
    + "\nimport os\nfor fd in range(3, 9):\n try: os.write(fd, b'{\"held\": 2}\\n')\n except OSError: pass",
}


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("compare", ["exact", "tokens", "floats"])
async def test_printed_output_is_compared_whole(launcher: Launcher, what: str, compare: str) -> None:
    verifier = _verifier(launcher, compare=compare)
    verdict = await verifier.verify(PRINTED[what], {"tests": SQUARES})
    assert isinstance(verdict, Reward)
    assert verdict.value == 0.0
    assert await verifier.verify(SQUARES_HONEST, {"tests": SQUARES}) == Reward(value=1.0)


async def test_a_checker_of_the_task_runs_where_the_output_cannot_reach_it(verifier: CodeVerifier) -> None:
    checker = "def check(input, output, expected):\n    n = int(output.split()[0])\n    return n > int(input)"
    row = {"tests": [{"input": "3", "output": ""}, {"input": "50", "output": ""}], "checker": checker}
    assert await verifier.verify("print(int(input()) + 1)", row) == Reward(value=1.0)
    for attack in ("print(4)", "print('True')", "print()", "print('9' * 10_000)"):
        verdict = await verifier.verify(attack, row)
        assert isinstance(verdict, Reward)
        assert (verdict.value, verdict.reason) == (0.0, "wrong"), attack


async def test_a_checker_must_say_true_itself(verifier: CodeVerifier) -> None:
    row = {"tests": [{"input": "3", "output": ""}], "checker": "def check(i, o, e): return 'yes'"}
    verdict = await verifier.verify("print(1)", row)
    assert isinstance(verdict, Reward)
    assert verdict.value == 0.0


VALUES = {
    "True for 1": (1, "True"),
    "1 for True": (True, "1"),
    "1.0 for 1": (1, "1.0"),
    "NaN for 1": (1.0, "float('nan')"),
    "infinity for a large number": (1e308, "float('inf')"),
    "-0.0 for 0.0": (0.0, "-0.0"),
    "'3' for 3": (3, "'3'"),
    "a tuple for a list": ([1, 2], "(1, 2)"),
    "a list for a tuple": ((1, 2), "[1, 2]"),
    "bytes for a text": ("a", "b'a'"),
    "None for an empty list": ([], "None"),
    "a set for a list": ([1], "{1}"),
    "1 and True in a set": ({1}, "{True}"),
    "a frozenset for a set": ({1}, "frozenset({1})"),
    "a dict in a dict": ({"a": {"b": 1}}, "{'a': {'b': True}}"),
    "keys that only look alike": ({"1": 2}, "{1: 2}"),
    "a forged tag": ([{"tuple": 1}], "({'tuple': 1},)"),
}


@pytest.mark.parametrize("what", VALUES)
async def test_a_value_of_another_type_is_another_value(verifier: CodeVerifier, what: str) -> None:
    expected, returned = VALUES[what]
    row = {"tests": [{"args": [], "output": expected}], "entry_point": "f"}
    assert await verifier.verify(f"def f(): return {expected!r}", row) == Reward(value=1.0)
    verdict = await verifier.verify(f"def f(): return {returned}", row)
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.reason) == (0.0, "wrong")


async def test_nan_is_the_nan_that_is_expected(verifier: CodeVerifier) -> None:
    row = {"tests": [{"args": [], "output": float("nan")}], "entry_point": "f"}
    assert await verifier.verify("def f(): return float('nan')", row) == Reward(value=1.0)


# --------------------------------------------------------------------------------------------------- wrong tasks

NO_TASKS: dict[str, dict[str, Any]] = {
    "no tests": {},
    "an empty text": {"tests": ""},
    "blank text": {"tests": " \n"},
    "an empty list": {"tests": []},
    "a list of empty texts": {"tests": ["", " "]},
    "a list as JSON text, empty": {"tests": "[]"},
    "an empty object": {"tests": {}},
    "inputs without outputs": {"tests": {"inputs": ["1"], "outputs": []}},
    "not Python": {"tests": "assert add(1, 2 == 3", "entry_point": "add"},
    "base64 of a pickle": {"tests": "gASVEgAAAAAAAABdlCh9lCiMBWlucHV0lGgBdWUu", "entry_point": "add"},
    "a number": {"tests": 3},
    "a list of numbers": {"tests": [1, 2]},
    "no expected value": {"tests": [{"args": [1, 2]}], "entry_point": "add"},
    "a value of no plain type": {"tests": [{"args": [object()], "output": 1}], "entry_point": "add"},
    "no name to call": {"tests": [{"args": [1, 2], "output": 3}]},
    "a name that is code": {"tests": "assert add(1, 2) == 3", "entry_point": "__import__('os').system('id')"},
    "nothing of the answer's is used": {"tests": "assert 1 + 1 == 2"},
    "a constant passes": {"tests": "assert add(1, 2)\nassert add(2, 3)", "entry_point": "add"},
    "an answer that raises passes": {"tests": "try:\n    add(1, 2)\nexcept Exception:\n    pass\nassert True or add"},
    "nothing printed passes": {"tests": [{"input": "1", "output": ""}, {"input": "2", "output": "\n"}]},
    "always the same is printed": {"tests": [{"input": "1", "output": "yes"}, {"input": "2", "output": "yes"}]},
    "a library that is not here": {"tests": "import no_such\nassert add(1, 2) == 3", "entry_point": "add"},
    "the tests end before they begin": {"tests": "raise SystemExit(0)\nassert add(1, 2) == 3", "entry_point": "add"},
    "the reference fails": {"tests": TESTS, "entry_point": "add", "reference": "def add(a, b): return a - b"},
    "the reference is none": {"tests": TESTS, "entry_point": "add", "reference": "I would add them up."},
    "the reference passes by chance": {
        "tests": "assert add(1, 2) < 3",
        "entry_point": "add",
        "reference": "import random\ndef add(a, b): raise ValueError",
    },
}


@pytest.mark.parametrize("what", NO_TASKS)
async def test_a_task_that_proves_nothing_is_masked_and_never_passed(launcher: Launcher, what: str) -> None:
    verifier = _verifier(launcher, self_check=True)
    verdict = await verifier.verify(HONEST, NO_TASKS[what])
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"
    with pytest.raises(TaskError):
        await verifier.prepare(NO_TASKS[what])


# ------------------------------------------------------------------------------------------------------ telemetry


@pytest.mark.parametrize(
    ("code", "flag"),
    [
        (HONEST + "class A:\n    def __eq__(self, other): return True", "defines_eq"),
        (HONEST + "import sys\ndef g(): return sys._getframe()", "uses_frames"),
        (HONEST + "def g():\n    import gc", "uses_gc"),
        (HONEST + "def g():\n    from ctypes import string_at", "uses_ctypes"),
        (HONEST + "def g(): exit()", "exits"),
        (HONEST + "import random", "chance"),
    ],
)
async def test_odd_code_that_solves_the_task_passes_with_a_flag(verifier: CodeVerifier, code: str, flag: str) -> None:
    verdict = await verifier.verify(code, ROWS["check"])
    assert verdict == Reward(value=1.0, flags=(flag,))


async def test_an_answer_that_knows_the_public_tests_is_flagged_and_fails_hidden_ones(verifier: CodeVerifier) -> None:
    public = [f"assert f({n}) == {n**3}" for n in range(11, 17)]
    known = ", ".join(f"{n}: {n**3}" for n in range(11, 17))
    by_heart = f"def f(x): return {{{known}}}[x]"
    verdict = await verifier.verify(by_heart, {"tests": public})
    assert isinstance(verdict, Reward)
    assert verdict.flags == ("special_cases",)  # with nothing hidden, it does what was asked
    hidden = await verifier.verify(by_heart, {"tests": [*public, "assert f(99) == 970299"]})
    assert isinstance(hidden, Reward)
    assert (hidden.value, hidden.reason) == (0.0, "crashed")
    assert await verifier.verify("def f(x): return x ** 3", {"tests": public}) == Reward(value=1.0)


async def test_partial_credit_is_a_share_below_one_and_none_for_a_cheat(launcher: Launcher) -> None:
    verifier = _verifier(launcher, partial=True)
    row = {"tests": [f"assert f({n}) == {n * n}" for n in range(4)]}
    half = await verifier.verify("def f(x): return x * x if x < 2 else 0", row)
    assert isinstance(half, Reward)
    assert (half.value, half.reason) == (0.5, "wrong")
    for attack in (
        "import os\ndef f(x): return x * x if x < 2 else os._exit(0)",
        "import os\ndef f(x):\n    if x > 1: os.write(4, b'{}\\n')\n    return x * x",
        "import os\nos._exit(0)",
    ):
        verdict = await verifier.verify(attack, row)
        assert isinstance(verdict, Reward)
        assert verdict.value <= 0.5
        assert verdict.reason in ("crashed", "cheat")
        assert verdict.reason != "cheat" or verdict.value == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["ns", "lsm"])
def test_the_attacks_fail_as_well_where_the_verifier_has_no_rights(tier: str) -> None:
    """The tests above run as this user; these as one without rights, where this one is root."""
    if os.getuid() != 0:
        pytest.skip("this user is without rights already")
    root = Path(__file__).parents[2]
    libraries = Path(pydantic.__file__).parents[1]
    if not (open_to_all(root) and open_to_all(libraries)):
        pytest.skip("this checkout may not be read by a user without rights")
    done = subprocess.run(
        [python_for_nobody(), str(Path(__file__).with_name("code_attack_run.py")), tier],
        capture_output=True,
        text=True,
        timeout=120,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": f"{root}:{libraries}", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = json.loads(done.stdout)
    if "skip" in verdicts:
        pytest.skip(verdicts["skip"])
    assert verdicts.pop("honest") == [1.0, None]
    assert len(verdicts) == len(ATTACKS)
    expected = {attack.name: (*attack.reasons, "timeout") for attack in ATTACKS}  # all at once: it may be late
    assert {name: v for name, v in verdicts.items() if v[0] != 0.0 or v[1] not in expected[name]} == {}


@pytest.mark.parametrize(
    "tests", ["import no_such\nassert add(1, 2)", "assert 1 == 1", "assert 1 == 2", "raise SystemExit\nassert 0"]
)
async def test_tests_that_ask_an_answer_nothing_never_give_it_a_reward(verifier: CodeVerifier, tests: str) -> None:
    verdict = await verifier.verify(HONEST, {"tests": tests, "entry_point": "add"})
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"
