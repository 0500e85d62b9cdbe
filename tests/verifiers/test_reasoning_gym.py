"""The adapter to reasoning-gym: its scores, and what its scorers never get to evaluate."""

import importlib.util
import sys

import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.reasoning_gym import ReasoningGymOptions, ReasoningGymVerifier, runs_nothing

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the package reasoning-gym is not installed"
)
VERIFIER = ReasoningGymVerifier(ReasoningGymOptions())


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "x**2 + 3*x - 1/2",
        "[['_', 'Q'], ['Q', '_']]",
        "(95 - 5) * 3",
        "sin(x)*exp(2*x) + C",
        "'abc'",
        "-7",
        "_ Q _\nQ _ _",
    ],
)
def test_literals_and_arithmetic_run_nothing(answer: str) -> None:
    assert runs_nothing(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "().__class__.__base__.__subclasses__()",
        "exit()",
        "open('/etc/passwd').read()",
        "9**9**9",
        "9 ** 9 ** 9",
        "2**99999",
        "((((9)**(9/1))**(9/1))**(9/1))**(9/1)",
        "x**9**9",
        "lambda: 0",
        "[x for x in y]",
        "getattr(x, 'y')",
        "f'{x}'",
        "x.y",
        "eval('1')",
        "1" * 3_000,
    ],
)
def test_anything_that_could_run_or_grow_is_not_evaluated(answer: str) -> None:
    assert not runs_nothing(answer)


async def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match="pip install reasoning-gym"):
        await VERIFIER.prepare({"entry": {"answer": "1", "metadata": {"source_dataset": "leg_counting"}}})


@pytest.mark.parametrize("entry", [None, "{", {}, {"answer": "1"}, {"metadata": {}}, '{"metadata": {"x": 1}}'])
async def test_a_row_without_an_entry_is_a_task_error(entry: object) -> None:
    with pytest.raises(TaskError, match="entry"):
        await VERIFIER.prepare({"entry": entry})
    assert isinstance(await VERIFIER.verify("<answer>1</answer>", {"entry": entry}), Unverified)


async def test_a_completion_without_an_answer_is_not_scored() -> None:
    verdict = await VERIFIER.verify("It is 4.", {"entry": {"answer": "4", "metadata": {"source_dataset": "x"}}})
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.reason) == (0.0, "unparseable")


@installed
@pytest.mark.parametrize(
    "name", ["leg_counting", "countdown", "n_queens", "polynomial_multiplication", "simple_integration"]
)
async def test_the_own_answer_of_a_row_passes_and_code_fails(name: str) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")

    for entry in reasoning_gym.create_dataset(name, size=3, seed=1):
        await VERIFIER.prepare({"entry": entry})
        right = await VERIFIER.verify(f"So <answer>{entry['answer']}</answer>.", {"entry": entry})
        assert right == Reward(value=1.0)
        attack = await VERIFIER.verify("<answer>__import__('os')._exit(3)</answer>", {"entry": entry})
        assert isinstance(attack, Reward)
        assert attack.value < 0.5


@installed
async def test_a_data_set_that_does_not_exist_is_a_task_error() -> None:
    with pytest.raises(TaskError, match="no data set"):
        await VERIFIER.prepare({"entry": {"answer": "1", "metadata": {"source_dataset": "no_such"}}})
