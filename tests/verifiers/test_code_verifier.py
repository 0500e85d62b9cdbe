"""What surrounds a code verdict: tasks are proven once, failures of the sandbox are not the answer's, and recorded
verdicts are met."""

import asyncio
import gzip
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified, Verified
from rlaif.verifiers import open_verifier
from rlaif.verifiers.code import CodeVerifier
from rlaif.verifiers.sandbox.base import Launcher, Limits, Process, SandboxError, Tier
from rlaif.verifiers.sandbox.probe import open_sandbox
from rlaif.verifiers.sandbox.session import Ended, open_guest, open_session
from rlaif.verifiers.sandbox.unsafe import UnsafeLauncher

ADD = "def add(a, b):\n    return a + b\n"
ROW = {"tests": ["assert add(1, 2) == 3", "assert add(5, 2) == 7"], "reference": ADD}


@pytest.fixture(scope="module", params=["ns", "lsm"])
def launcher(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    try:
        yield open_sandbox(tier=request.param, workers=4)
    except InputError as error:
        pytest.skip(str(error))


def verifier_of(launcher: Launcher, **options: Any) -> CodeVerifier:
    return CodeVerifier(CodeVerifier.Options.model_validate({"workers": 2, **options}), launcher)


class Counting:
    """A launcher that counts, and fails when told to."""

    tier: Tier = "unsafe"

    def __init__(self, inner: Launcher, failures: int = 0) -> None:
        self.inner, self.failures = inner, failures
        self.launched = self.running = self.most = 0

    async def launch(self, limits: Limits) -> Process:
        self.launched += 1
        if self.failures:
            self.failures -= 1
            raise SandboxError("no place left")
        return await self.inner.launch(limits)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_task_is_proven_once_for_equal_rows(launcher: Launcher) -> None:
    counting = Counting(launcher)
    verifier = verifier_of(counting)
    await asyncio.gather(*(verifier.prepare(dict(ROW)) for _ in range(5)))
    proven = counting.launched
    await verifier.verify(ADD, {**ROW, "id": 3})
    assert counting.launched == proven + 2  # the answer's process and the tests'


async def test_a_failing_sandbox_is_tried_again(launcher: Launcher) -> None:
    verifier = verifier_of(Counting(launcher, failures=2))
    assert await verifier.verify(ADD, ROW) == Reward(value=1.0)


async def test_a_sandbox_that_keeps_failing_masks_the_row_and_a_later_one_is_judged(launcher: Launcher) -> None:
    counting = Counting(launcher, failures=10_000)
    verifier = verifier_of(counting)
    verdict = await verifier.verify(ADD, ROW)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "infrastructure"
    counting.failures = 0
    assert await verifier.verify(ADD, ROW) == Reward(value=1.0)


async def test_many_answers_at_once_do_not_wait_for_each_other_for_ever(launcher: Launcher) -> None:
    verifier = verifier_of(launcher, self_check=False)
    answers = [ADD, "def add(a, b): return 0", "import os\nos._exit(0)", "nonsense ("] * 10
    async with asyncio.timeout(60):
        verdicts = await asyncio.gather(*(verifier.verify(a, ROW) for a in answers))
    reasons = [v.reason for v in verdicts if isinstance(v, Reward)]
    assert reasons == [None, "wrong", "crashed", "unparseable"] * 10


def test_one_verifier_serves_several_loops_and_threads(launcher: Launcher) -> None:
    verifier = verifier_of(launcher)
    answers = [ADD, "def add(a, b): return 0"] * 4

    async def step() -> list[float]:
        verdicts = await asyncio.gather(*(verifier.verify(answer, ROW) for answer in answers))
        return [v.value for v in verdicts if isinstance(v, Reward)]

    assert asyncio.run(step()) == [1.0, 0.0] * 4
    assert asyncio.run(step()) == [1.0, 0.0] * 4
    verifier = verifier_of(launcher, workers=1)  # the launcher's four places are enough for two loops
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: asyncio.run(step()), range(2))) == [[1.0, 0.0] * 4] * 2


async def test_a_verdict_that_is_no_longer_wanted_leaves_its_place_free(launcher: Launcher) -> None:
    verifier = verifier_of(launcher, self_check=False, max_seconds=30.0)
    endless = asyncio.gather(*(verifier.verify("def add(a, b):\n while True: pass", ROW) for _ in range(6)))
    await asyncio.sleep(0.3)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    async with asyncio.timeout(10):
        assert await verifier.verify(ADD, ROW) == Reward(value=1.0)


async def test_an_answer_may_take_four_times_as_long_as_the_reference(launcher: Launcher) -> None:
    slow = "import time\ndef add(a, b):\n    time.sleep({})\n    return a + b\n"
    verifier = verifier_of(launcher, min_seconds=0.2, max_seconds=3.0)
    row = {**ROW, "reference": slow.format(0.15)}
    assert isinstance(verdict := await verifier.verify(slow.format(0.3), row), Reward)
    assert verdict.value == 1.0
    assert isinstance(verdict := await verifier.verify(slow.format(2), row), Reward)
    assert verdict.reason == "timeout"


async def test_tests_that_never_end_do_not_hold_up_their_own_check(launcher: Launcher) -> None:
    verifier = verifier_of(launcher, min_seconds=0.1, max_seconds=0.5)
    async with asyncio.timeout(10):
        await verifier.prepare({"tests": "while add(1, 2) != 3: pass\nassert add(2, 2) == 4"})
        with pytest.raises(TaskError):
            await verifier.prepare({"tests": "while True: pass\nassert add(2, 2) == 4", "reference": ADD})


async def test_tests_see_the_arguments_that_a_call_changes_if_the_reference_changes_them(launcher: Launcher) -> None:
    tests = "v = [[3, 1], 2]\ninner = v[0]\nf(v)\nassert v == [[1, 3], 2]\nassert inner == [1, 3]\nd = {1: 2}\ng(d)\n"
    tests += "assert d == {}\nfrom collections import deque\nq = deque([1])\nh(q)\nassert q == deque([1, 2])"
    honest = "def f(v): v[0].sort()\ndef g(d): d.clear()\ndef h(q): q.append(2)\n"  # all in place
    verifier = verifier_of(launcher)
    assert await verifier.verify(honest, {"tests": tests, "reference": honest}) == Reward(value=1.0)


CLASSES = """
s = Stack(3)
for x in (1, 2): s.push(x)
assert len(s) == 2 and list(s) == [1, 2]
assert str(s) == 'Stack of 2' and repr(s) == '<2>'
assert s.limit == 3 and isinstance(s, Stack)
s.limit = 2
try:
    s.push(9)
    assert False, 'no room'
except OverflowError as error:
    assert 'full' in str(error)
assert s[0] == 1 and s.top() is None
assert merge(s, Stack(1)) == [1, 2]
if s:
    assert not Stack(1)
node = s.first
while node is not None:
    last, node = node, node.next
assert last.value == 2
"""
STACK = """
class Node:
    def __init__(self, value, next): self.value, self.next = value, next
class Stack:
    def __init__(self, limit): self.limit, self.v = limit, []
    def push(self, x):
        if len(self.v) >= self.limit: raise OverflowError('full')
        self.v.append(x)
    def top(self): return None
    def __len__(self): return len(self.v)
    def __iter__(self): return iter(self.v)
    def __getitem__(self, i): return self.v[i]
    def __str__(self): return f'Stack of {len(self.v)}'
    def __repr__(self): return f'<{len(self.v)}>'
    @property
    def first(self):
        node = None
        for x in reversed(self.v): node = Node(x, node)
        return node
def merge(a, b): return a.v + b.v
"""


async def test_tests_may_use_classes_of_the_answers(launcher: Launcher) -> None:
    verifier = verifier_of(launcher)
    row = {"tests": CLASSES, "reference": STACK}
    assert await verifier.verify(STACK, row) == Reward(value=1.0)
    wrong = await verifier.verify(STACK.replace("self.v.append(x)", "self.v.insert(0, x)"), row)
    assert isinstance(wrong, Reward)
    assert (wrong.value, wrong.reason) == (0.0, "wrong")


@pytest.mark.parametrize(
    ("tests", "reference", "why"),
    [
        ("assert V(1) == V(1)\nassert f(2) == 3", "class V:\n def __init__(s, x): pass\n", "compare an object"),
        ("assert f(lambda x: x) == 1", "def f(g): return g(1)", "cannot be given to a function"),
        ("assert eval(f(1)) == 24", "def f(x): return '24'", "eval()"),
    ],
)
async def test_tests_that_cannot_run_outside_are_refused_with_the_reason(
    launcher: Launcher, tests: str, reference: str, why: str
) -> None:
    with pytest.raises(TaskError, match=why.replace("(", r"\(").replace(")", r"\)")):
        await verifier_of(launcher).prepare({"tests": tests, "reference": reference})


@pytest.mark.parametrize(
    "tests",
    [
        "from solution import add\ndef test_small():\n    assert add(1, 2) == 3\n"
        "def test_large():\n    assert add(50, 2) == 52",
        "import solution\ndef test_add():\n    assert solution.add(1, 2) == 3\nassert solution.add(5, 2) == 7",
        "import unittest\nfrom solution import add as plus\nclass T(unittest.TestCase):\n"
        "    def setUp(self): self.two = 2\n    def test_a(self): self.assertEqual(plus(1, self.two), 3)",
    ],
)
async def test_tests_may_import_the_answer_as_a_module(launcher: Launcher, tests: str) -> None:
    verifier = verifier_of(launcher)
    assert await verifier.verify(ADD, {"tests": tests, "reference": ADD}) == Reward(value=1.0)
    verdict = await verifier.verify("def add(a, b): return 0", {"tests": tests})
    assert isinstance(verdict, Reward)
    assert verdict.value == 0.0


@pytest.mark.parametrize("name", ["sum", "gcd"])
async def test_a_function_under_test_may_have_the_name_of_a_known_one(name: str, launcher: Launcher) -> None:
    verifier = verifier_of(launcher)
    row = {"tests": [f"assert {name}(10, 15) == 6", f"assert {name}(4, 6) == 3"]}
    right = f"def {name}(a, b):\n    return {{10: 6, 4: 3}}[a]"
    assert await verifier.verify(right, row) == Reward(value=1.0)
    other = await verifier.verify("def other(a, b):\n    return 6", row)
    assert isinstance(other, Reward)
    assert other.value == 0.0


async def test_tests_may_ask_that_an_argument_is_left_alone(launcher: Launcher) -> None:
    tests = "a = [3, 1, 2]\nassert ordered(a) == [1, 2, 3]\nassert a == [3, 1, 2]\nassert ordered([2, 1]) == [1, 2]"
    row = {"tests": tests, "reference": "def ordered(a): return sorted(a)"}
    verifier = verifier_of(launcher)
    assert await verifier.verify("def ordered(a): return sorted(a)[:]", row) == Reward(value=1.0)
    changed = await verifier.verify("def ordered(a):\n    a.sort()\n    return a", row)
    assert isinstance(changed, Reward)
    assert (changed.value, changed.reason) == (0.0, "wrong")


async def test_half_a_character_as_input_is_a_wrong_task(launcher: Launcher) -> None:
    with pytest.raises(TaskError, match="half of a character"):
        await verifier_of(launcher).prepare({"tests": [{"input": "\ud800", "output": "x"}]})


async def test_entry_points_may_be_methods(launcher: Launcher) -> None:
    verifier = verifier_of(launcher)
    answer = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    check = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(a=5, b=2) == 7"
    calls = [{"args": [1, 2], "output": 3}, {"args": [5], "kwargs": {"b": 2}, "output": 7}]
    for row in (
        {"tests": check, "entry_point": "Solution().add"},
        {"tests": calls, "entry_point": "Solution().add"},
        {"tests": calls, "entry_point": "Solution.add"},
    ):
        assert await verifier.verify(answer, row) == Reward(value=1.0)


async def test_an_argument_may_have_any_name(launcher: Launcher) -> None:
    answer = "def f(target, question, self, op): return target + question + self + op"
    check = "def check(candidate):\n    assert candidate(target=1, question=2, self=3, op=4) == 10"
    check += "\n    assert candidate(1, 1, op=1, self=1) == 4"
    calls = [{"kwargs": {"target": n, "question": 2, "self": 3, "op": 4}, "output": 9 + n} for n in (1, 2)]
    for tests in (check, calls):
        assert await verifier_of(launcher).verify(answer, {"tests": tests, "entry_point": "f"}) == Reward(value=1.0)


@pytest.mark.parametrize("end", ["exit()", "quit(0)", "exit(0) if True else None"])
async def test_a_program_may_end_by_the_names_that_an_interpreter_has(end: str, launcher: Launcher) -> None:
    row = {"tests": [{"input": "3 4", "output": "7"}, {"input": "1 2", "output": "3"}]}
    verdict = await verifier_of(launcher).verify(f"print(sum(map(int, input().split())))\n{end}", row)
    assert isinstance(verdict, Reward)
    assert verdict.value == 1.0


async def test_a_program_ends_with_its_last_thread(launcher: Launcher) -> None:
    row = {"tests": [{"input": "3 4", "output": "7"}, {"input": "1 2", "output": "3"}]}
    answer = "import threading, time\ndef main():\n    time.sleep(0.05)\n    print(sum(map(int, input().split())))\n"
    answer += "threading.Thread(target=main).start()"
    verdict = await verifier_of(launcher, threads=True).verify(answer, row)
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.detail) == (1.0, "")


async def test_floats_of_calls_are_exact_unless_a_tolerance_is_given(launcher: Launcher) -> None:
    row = {"tests": [{"args": [3], "output": 0.3}, {"args": [1], "output": 0.1}], "entry_point": "f"}
    answer = "def f(n): return sum([0.1] * n)"
    verdict = await verifier_of(launcher).verify(answer, row)
    assert isinstance(verdict, Reward)
    assert verdict.value == 0.0
    assert await verifier_of(launcher, call_tolerance=1e-9).verify(answer, row) == Reward(value=1.0)


async def test_a_tuple_is_a_list_only_where_that_is_asked_for(launcher: Launcher) -> None:
    row = {"tests": [{"args": [1], "output": [1, {"a": [2]}]}, {"args": [5], "output": [5, {"a": [6]}]}]}
    row["entry_point"] = "f"  # type: ignore[assignment]
    answer = "def f(n): return (n, {'a': (n + 1,)})"
    verdict = await verifier_of(launcher).verify(answer, row)
    assert isinstance(verdict, Reward)
    assert verdict.reason == "wrong"
    assert await verifier_of(launcher, tuple_is_list=True).verify(answer, row) == Reward(value=1.0)


async def test_a_program_reads_its_input_and_its_exit_counts(launcher: Launcher) -> None:
    verifier = verifier_of(launcher)
    row = {"tests": [{"input": "3\n4\n", "output": "7"}, {"input": "1 2", "output": "3"}]}
    honest = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
    assert await verifier.verify(honest, row) == Reward(value=1.0)
    main = "import sys\ndef main():\n    print(sum(int(x) for l in sys.stdin for x in l.split()))\n"
    main += "if __name__ == '__main__':\n    main()\n    sys.exit(0)"
    assert await verifier.verify(main, row) == Reward(value=1.0, flags=("exits",))
    raising = await verifier.verify("raise ValueError('no')", row)
    assert raising == Reward(value=0.0, reason="crashed", detail="test 0: exit code 1: ValueError: no")
    endless = await verifier_of(launcher, min_seconds=0.2, max_seconds=0.3).verify("while True: pass", row)
    assert isinstance(endless, Reward)
    assert endless.reason == "timeout"


@pytest.mark.parametrize(
    "answer",
    ["x" * 10_000_000, "\ud800" * 100, "\0\1\2\xff", "```python\n" + "(" * 100_000, "é\u202e", "```" * 1000, "<think>"],
    ids=["10 MB", "halves of characters", "binary", "nesting", "text", "fences", "thought"],
)
async def test_any_text_gets_a_verdict_that_can_be_written(launcher: Launcher, answer: str) -> None:
    verdict = await verifier_of(launcher, self_check=False).verify(answer, ROW)
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.reason) == (0.0, "unparseable")
    adapter: TypeAdapter[Verified] = TypeAdapter(Verified)
    assert adapter.validate_json(adapter.dump_json(verdict)) == verdict


async def test_an_error_that_quotes_half_a_character_can_be_written(launcher: Launcher) -> None:
    verdict = await verifier_of(launcher).verify("def add(a, b): raise ValueError('\\ud800')", ROW)
    assert isinstance(verdict, Reward)
    assert verdict.reason == "crashed"
    verdict.model_dump_json()


async def test_what_runs_no_answer_never_sees_one_and_the_other_way_round(launcher: Launcher) -> None:
    """The rule of all this, looked at: what the tests' job holds is in no message to the answer's process."""
    sent: list[bytes] = []

    class Tapped(Counting):
        async def launch(self, limits: Limits) -> Process:
            process = await super().launch(limits)
            log = bytearray()
            sent.append(log)  # type: ignore[arg-type]
            real = process.send

            async def send(data: bytes) -> None:
                log.extend(data)
                await real(data)

            process.send = send  # type: ignore[method-assign]
            return process

    verifier = verifier_of(Tapped(launcher), self_check=False)
    await verifier.verify(ADD, {"tests": "assert add(1, 2) == 3  # marked"})
    tests, answer = sorted(sent, key=lambda data: b"return a + b" in data)
    assert b"marked" in tests
    assert b"return a + b" not in tests
    assert b"marked" not in answer
    assert b"assert" not in answer


# ---------------------------------------------------------------------------------------------------- tier unsafe


async def test_the_unsafe_tier_is_taken_only_when_it_is_said() -> None:
    with pytest.raises(InputError):
        await CodeVerifier(CodeVerifier.Options(tier="unsafe")).prepare(ROW)
    verifier = CodeVerifier(CodeVerifier.Options(tier="unsafe", allow_unsafe=True, self_check=False, workers=1))
    assert verifier.tier is None
    assert await verifier.verify(ADD, ROW) == Reward(value=1.0)
    assert verifier.tier == "unsafe"
    await verifier.aclose()
    await verifier.aclose()


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("pass", "exited"),
        ("raise SystemExit(3)", "exited"),
        ("while True: pass", "timeout"),
        ("while True: print('x' * 1000)", "resource"),
        ("import os\nos.kill(os.getpid(), 9)", "killed"),
    ],
)
async def test_the_unsafe_tier_bounds_time_and_output(program: str, how: str) -> None:
    launcher = UnsafeLauncher(1)
    limits = Limits(seconds=0.7, output_bytes=100_000)
    for _ in range(2):  # its one place is given back
        async with open_guest(launcher, limits, {"do": "script", "sources": [program]}) as guest:
            await guest.process.write_stdin(b"")
            ending = await guest.process.wait()
            assert ending.how == how, ending
            assert len(guest.process.stdout) <= 100_000


async def test_a_session_says_how_a_program_ended() -> None:
    launcher = UnsafeLauncher(2)
    cases = {
        "1 +": "unparseable",
        "import os\nos._exit(3)": "crashed",
        "1 / 0": "crashed",
        "while True: pass": "timeout",
    }
    for program, reason in cases.items():
        with pytest.raises(Ended) as end:
            async with open_session(launcher, Limits(seconds=0.5), [program]):
                pass
        assert end.value.reason == reason


# ----------------------------------------------------------------------------------------------------- the registry


def test_the_verifier_is_found_by_name_and_wrong_options_are_told() -> None:
    assert isinstance(open_verifier("code", {"partial": True}), CodeVerifier)
    with pytest.raises(InputError, match="compare"):
        open_verifier("code", {"compare": "loosely"})


# ------------------------------------------------------------------------------------------------ recorded verdicts


def recorded(name: str) -> list[dict[str, Any]]:
    folder = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[3] / "shared" / "data")) / "code"
    path = folder / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here (RLAIF_DATA names the folder of shared data)")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]


async def verdicts(verifier: CodeVerifier, pairs: list[tuple[str, dict[str, Any]]]) -> list[bool]:
    found = await asyncio.gather(*(verifier.verify(answer, row) for answer, row in pairs))
    return [isinstance(v, Reward) and v.value == 1.0 for v in found]


@pytest.mark.parametrize(
    ("name", "column", "known_bad"),
    [
        ("humaneval_164", "canonical_solution", set()),
        ("mbpp_sanitized_427", "canonical_solution", set()),
        ("mbpp_974", "code", {899}),  # all three of its asserts are of something true
    ],
)
@pytest.mark.slow
async def test_every_reference_passes(launcher: Launcher, name: str, column: str, known_bad: set[Any]) -> None:
    rows = recorded(name)[:: 1 if name == "humaneval_164" else 4] + [
        r for r in recorded(name) if r["task_id"] in known_bad
    ]
    passed = await verdicts(verifier_of(launcher), [(row[column], row) for row in rows])
    assert {row["task_id"] for row, ok in zip(rows, passed, strict=True) if not ok} == known_bad


@pytest.mark.slow
async def test_wizardcoders_164_chat_answers_get_their_recorded_verdicts(launcher: Launcher) -> None:
    tasks = {row["task_id"]: row for row in recorded("humaneval_164")}
    rows = recorded("humaneval_wizardcoder15b")
    answers = [(row["all_code"].partition("### Response:")[2], tasks[row["task_id"]]) for row in rows]
    passed = await verdicts(verifier_of(launcher, min_seconds=3.0), answers)
    assert passed == [bool(row["passed"]) for row in rows]
    assert sum(passed) == 98
