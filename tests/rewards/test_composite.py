import asyncio
import math
import time
from typing import Any

import pytest

from rlaif.config.base import Config, apply_overrides, parse_yaml, validate
from rlaif.config.rewards import RewardConfig
from rlaif.errors import InputError, ProviderError, TaskError, TransientError
from rlaif.rewards import CompositeReward, open_reward
from rlaif.types import ChatRequest, Reward, Unverified
from tests.rewards.scripts import ABSTAINED, BROKEN, UNPARSEABLE, Scripted, asked, reward_of, says, scripted


class Holder(Config):
    reward: RewardConfig


# ------------------------------------------------------------------------------------------------- the real verifiers


async def test_math_and_format_are_composed_into_one_number() -> None:
    reward = open_reward(
        reward_of(
            {
                "weighted_sum": [
                    {"shaping": {"of": "math", "length": {"free": 3, "full": 13}, "at_most": 0.2}, "weight": 3},
                    {"verifier": "regex", "options": {"pattern": "^So "}},
                ]
            }
        )
    )
    task = {"reference": "20"}
    await reward.prepare(task)
    short, long, wrong, masked = await reward.score_many(
        ["So \\boxed{20}", "So \\boxed{20}" + " as said" * 50, "So \\boxed{21}", "So \\boxed{20}"],
        [task, task, task, {}],
    )
    assert (short.value, wrong.value) == (1.0, 0.25)
    assert long.value == pytest.approx((3 * 0.8 + 1) / 4)
    assert (short.penalties, long.penalties) == ({"shaping.length": 0.0}, {"shaping.length": 1.0})
    assert (masked.value, masked.masked) == (None, "task_error")
    assert "reference" in masked.why
    assert reward.identities == {"math": "math@1", "regex": "regex@1"}
    await reward.aclose()
    await reward.aclose()


def letters(request: ChatRequest) -> str:
    """A judge that says yes, whichever letter means it."""
    asked_by_judge.append(request.messages[-1].content)
    return "X" if "X if yes" in request.messages[0].content else "Y"


asked_by_judge: list[str] = []


async def test_the_judge_is_asked_only_where_math_finds_no_answer_to_read() -> None:
    judge = {
        "verifier": "judge",
        "options": {"model": "scripted:tests.rewards.test_composite:letters", "labelled": "one"},
    }
    reward = open_reward(reward_of({"first_decided": ["math", judge]}))
    asked_by_judge.clear()
    task = {"prompt": "12 + 8?", "reference": "20"}
    await reward.prepare(task)
    scored = await reward.score_many(["\\boxed{20}", "\\boxed{21}", "Nobody can say."], [task] * 3)
    assert [s.value for s in scored] == [1.0, 0.0, 1.0]
    assert [sorted(s.parts) for s in scored] == [["math"], ["math"], ["judge", "math"]]
    assert len(asked_by_judge) == 1
    assert "Nobody can say." in asked_by_judge[0]
    await reward.aclose()


async def test_code_that_runs_is_gated_by_its_form() -> None:
    reward = open_reward(
        reward_of({"gate": {"condition": {"verifier": "regex", "options": {"pattern": "```python"}}, "then": "code"}})
    )
    task = {"prompt": "", "entry_point": "add", "tests": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]}
    try:
        await reward.prepare(task)
    except InputError as error:
        pytest.skip(f"no sandbox here: {error}")
    right, wrong = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 3\n"
    fenced = [f"```python\n{program}```" for program in (right, wrong)]
    scored = await reward.score_many([*fenced, right], [task] * 3)
    assert [s.value for s in scored] == [1.0, 0.0, 0.0]
    assert [sorted(s.parts) for s in scored] == [["code", "regex"], ["code", "regex"], ["regex"]]
    await reward.aclose()


def open_error(text: str, *overrides: str) -> str:
    document = parse_yaml(text, "run.yaml")
    apply_overrides(document, overrides)
    with pytest.raises(InputError) as caught:
        open_reward(validate(Holder, document).reward, document)
    return str(caught.value)


def test_an_unknown_verifier_or_option_is_told_with_file_line_and_the_nearest() -> None:
    tree = (
        "reward:\n  first_decided:\n    - verifier: math\n    - verifier: regex\n      options:\n        pattern: x\n"
    )
    assert open_error(tree.replace("math", "mth")) == (
        "run.yaml:3: verifier 'mth': there is none of that name; did you mean 'math'?"
    )
    assert open_error(tree.replace("pattern", "patern")) == (
        "run.yaml:6: unknown key 'patern'; did you mean 'pattern'?"
    )
    assert open_error(tree.replace("regex", "json_schema")).startswith("run.yaml:6: ")
    assert open_error(tree, "reward.first_decided.1.options.pattern=(").startswith(
        "--set reward.first_decided.1.options.pattern=("
    )
    assert open_error("reward: no.such:Class").startswith("run.yaml:1: ")


# ------------------------------------------------------------------------------------------------- failures and masks


async def test_an_infrastructure_failure_is_retried_and_then_forgotten() -> None:
    reward = scripted("math", attempts=3)
    scored = await reward.score("text", {"math": [BROKEN, RuntimeError("lost"), says(1.0)]})
    assert (scored.value, scored.retries) == (1.0, 2)


async def test_retries_are_bounded_and_then_the_row_is_masked_never_zero() -> None:
    reward = scripted("math", attempts=3)
    scored = await reward.score("text", {"math": BROKEN})
    assert (scored.value, scored.masked, scored.retries) == (None, "infrastructure", 2)
    assert asked(reward) == {"math": 3}
    assert scored.why == "math: no sandbox"


@pytest.mark.parametrize("verdict", [ABSTAINED, UNPARSEABLE, Unverified(reason="judge", detail="?"), TaskError("no")])
async def test_what_is_no_infrastructure_failure_is_asked_once(verdict: Any) -> None:
    reward = scripted("math")
    await reward.score("text", {"math": verdict})
    assert asked(reward) == {"math": 1}


NAN = Reward.model_construct(kind="reward", value=math.nan, reason=None, detail="", flags=())
INF = Reward.model_construct(kind="reward", value=math.inf, reason=None, detail="", flags=())


@pytest.mark.parametrize("verdict", [NAN, INF, says(1.5), says(-0.1), 1.0 + 2j, None, True, ValueError("mine")])
async def test_what_is_no_value_of_the_range_masks_the_row(verdict: Any) -> None:
    scored = await scripted("math").score("text", {"math": verdict})
    assert (scored.value, scored.masked) == (None, "infrastructure")
    assert isinstance(scored.parts["math"], Unverified)


async def test_a_declared_range_is_what_counts() -> None:
    reward = scripted({"verifier": "model", "range": [-4, 4]})
    assert (await reward.score("a", {"model": says(-3.5)})).value == -3.5
    beyond = await reward.score("b", {"model": says(5.0)})
    assert "outside of its range -4 to 4; set 'range'" in beyond.why


async def test_a_broken_verifier_does_not_hand_its_rows_to_the_judge() -> None:
    reward = scripted({"first_decided": ["math", "judge"]})
    scored = await reward.score("text", {"math": BROKEN, "judge": says(1.0)})
    assert scored.value is None
    assert asked(reward)["judge"] == 0


async def test_a_verifier_that_hangs_is_given_up_after_its_seconds() -> None:
    began = time.monotonic()
    scored = await scripted({"verifier": "math", "seconds": 0.1}).score("text", {"math": 30.0})
    assert time.monotonic() - began < 5
    assert (scored.value, scored.masked) == (None, "infrastructure")
    assert "within 0.1 s" in scored.why


async def test_a_provider_that_refuses_everything_ends_the_batch_and_a_passing_trouble_does_not() -> None:
    reward = scripted("judge")
    with pytest.raises(ProviderError, match="key"):
        await reward.score_many(["a", "b"], [{"judge": ProviderError("the key is refused")}, {"judge": 30.0}])
    trouble = TransientError("busy", kind="server")
    assert (await reward.score("text", {"judge": [trouble, says(1.0)]})).value == 1.0


async def test_parts_of_a_sum_are_asked_at_once_and_rows_side_by_side_but_bounded() -> None:
    reward = scripted({"weighted_sum": ["a", "b"]}, in_flight=4)
    began = time.monotonic()
    await reward.score_many([str(i) for i in range(8)], [{"a": 0.2, "b": 0.2}] * 8)
    assert 0.4 <= time.monotonic() - began < 1.6  # two rounds of four, not sixteen waits


# -------------------------------------------------------------------------------------------------- rows, order, tasks


async def test_there_is_one_result_a_completion_in_the_same_order_and_lengths_must_agree() -> None:
    reward = scripted("a")
    delays = [0.05, 0.0, 0.02]
    scored = await reward.score_many(["x", "y", "z"], [{"a": d} for d in delays[:2]] + [{"a": says(0.5)}])
    assert [s.value for s in scored] == [1.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="2 completions, 1 tasks"):
        await reward.score_many(["x", "y"], [{}])
    assert await reward.score_many([], []) == []


ROUTED = {"route": {"by": "meta.kind", "cases": {"m": "math", "true": "flag"}, "default": "rest"}}


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ({"meta": {"kind": "m"}}, "math"),
        ({"meta.kind": "m"}, "math"),
        ({"meta": {"kind": True}}, "flag"),
        ({"meta": {"kind": "other"}}, "rest"),
        ({"meta": 3}, "rest"),
        ({}, "rest"),
    ],
)
async def test_a_row_goes_where_its_column_says_and_only_there(task: dict[str, Any], part: str) -> None:
    reward = scripted(ROUTED)
    task = {**task, part: says(1.0)}
    await reward.prepare(task)
    scored = await reward.score("text", task)
    assert list(scored.parts) == [part]


async def test_rounding_makes_no_completion_fully_correct() -> None:
    almost = math.nextafter(1.0, 0.0)
    reward = scripted({"weighted_sum": [{"verifier": "a", "weight": 1e6}, "b"]})
    assert (await reward.score("x", {"a": says(1.0), "b": says(1.0)})).value == 1.0
    assert (await reward.score("y", {"a": says(1.0), "b": says(almost)})).value == almost


async def test_a_row_without_a_case_is_a_wrong_task_told_when_it_is_loaded() -> None:
    reward = scripted({"route": {"by": "kind", "cases": {"m": "math"}}})
    with pytest.raises(TaskError, match="'kind' is 'x'; cases are m"):
        await reward.prepare({"kind": "x"})
    scored = await reward.score("text", {"kind": "x"})
    assert (scored.value, scored.masked) == (None, "task_error")


async def test_a_task_is_checked_by_every_required_part_and_the_error_names_it() -> None:
    reward = scripted({"weighted_sum": ["a", {"verifier": "b", "required": False}]})
    await reward.prepare({"a": says(1.0)})
    with pytest.raises(TaskError, match=r"^a: the row has no 'a'"):
        await reward.prepare({"b": says(1.0)})


async def test_closing_closes_every_verifier_even_if_one_of_them_fails_at_it() -> None:
    class Stuck(Scripted):
        async def aclose(self) -> None:
            raise OSError("stuck")

    good, bad = Scripted("b"), Stuck("a")
    with pytest.raises(OSError, match="stuck"):
        await CompositeReward(reward_of({"min": ["a", "b"]}), {"a": bad, "b": good}).aclose()
    assert good.closed == 1


# ------------------------------------------------------------------------------------------------------------- shaping


@pytest.mark.parametrize(("tokens", "penalty"), [(768, 0.0), (896, 0.5), (1024, 1.0), (5000, 1.0)])
async def test_the_overlong_penalty_is_that_of_dapo(tokens: int, penalty: float) -> None:
    reward = scripted({"shaping": {"of": "a", "overlong": {"limit": 1024, "buffer": 256}}})
    scored = await reward.score("text", {"a": says(1.0)}, tokens=tokens)
    assert scored.penalties == {"shaping.overlong": penalty}
    assert scored.value == pytest.approx(1.0 - 0.1 * penalty)


async def test_a_penalty_in_tokens_that_nobody_counted_is_a_mistake_not_a_guess() -> None:
    reward = scripted({"shaping": {"of": "a", "overlong": {"limit": 10, "buffer": 5}}})
    with pytest.raises(InputError, match=r"shaping\.overlong: nobody counted the tokens"):
        await reward.score("text", {"a": says(1.0)})


async def test_among_correct_a_wrong_answer_is_not_told_to_be_short() -> None:
    long = "word " * 100
    for among, wrong in (("correct", 0.0), ("all", -0.1)):
        reward = scripted({"shaping": {"of": "a", "length": {"free": 1, "full": 9}, "among": among}})
        values = [(await reward.score(long, {"a": says(v)})).value for v in (1.0, 0.0)]
        assert values == [0.9, wrong]


async def test_ten_megabytes_have_every_penalty_at_no_cost() -> None:
    reward = scripted({"shaping": {"of": "a", "length": {"free": 1, "full": 9}, "repetition": {}}})
    began = time.process_time()
    scored = await reward.score("\ud800 x" * 3_000_000, {"a": says(1.0)})
    assert scored.penalties == {"shaping.length": 1.0, "shaping.repetition": 1.0}
    assert time.process_time() - began < 1


HOSTILE = {
    "nothing": "",
    "binary": bytes(range(256)).decode("latin-1") * 50,
    "lone surrogates": "\ud800\udfff" * 1000,
    "deeply nested": "\\boxed{" * 20_000 + "1" + "}" * 20_000,
    "one word of 10 MB": "x" * 10_000_000,
    "10 MB of lines": "\\boxed{1}\n" * 1_000_000,
    "a tower": "\\boxed{9^{9^{9^{9}}}}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_no_completion_makes_a_row_anything_but_a_number_that_can_be_written(text: str) -> None:
    tree = {"weighted_sum": [{"shaping": {"of": "math", "length": {"free": 9, "full": 99}, "repetition": {}}}, "f1"]}
    reward = open_reward(reward_of(tree))
    scored = await reward.score(text, {"reference": "20"})
    assert scored.value is not None
    assert 0.0 <= scored.value < 1.0
    scored.model_dump_json()
    await reward.aclose()


async def test_an_error_that_is_no_text_can_still_be_written() -> None:
    scored = await scripted("a", attempts=1).score("text", {"a": ValueError("\ud800")})
    assert "ud800" in scored.model_dump_json()


# ----------------------------------------------------------------------------------------------------- normalisation


async def test_running_statistics_learn_by_batches_are_saved_and_go_on() -> None:
    tree = {"normalise": {"of": {"verifier": "a", "range": [0, 10]}, "clip": 3}}
    first, second = scripted(tree), scripted(tree)
    batches = [[1.0, 2.0, 3.0], [10.0, 4.0], [2.0, 2.0, 9.0]]

    async def run(reward: CompositeReward, values: list[float]) -> list[float | None]:
        tasks = [{"a": says(v)} for v in values]
        return [s.value for s in await reward.score_many([str(v) for v in values], tasks, learn=True)]

    assert await run(first, batches[0]) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    await run(first, batches[1])
    second.load_state(first.state())
    assert await run(first, batches[2]) == await run(second, batches[2])
    state = first.state()["normalise"]
    every = [v for batch in batches for v in batch]
    mean = sum(every) / len(every)
    assert state["count"] == len(every)
    assert state["mean"] == pytest.approx(mean)
    assert state["m2"] == pytest.approx(sum((v - mean) ** 2 for v in every))


async def test_scoring_alone_learns_nothing_and_a_constant_is_zero() -> None:
    reward = scripted({"normalise": {"of": "a"}})
    assert (await reward.score("text", {"a": says(0.7)})).value == 0.7
    assert reward.state()["normalise"]["count"] == 0
    scored = await reward.score_many(["x", "y"], [{"a": says(0.7)}] * 2, learn=True)
    assert [s.value for s in scored] == [0.0, 0.0]


@pytest.mark.parametrize(
    "state", [{}, {"other": {}}, {"normalise": {"count": 1}}, {"normalise": {"count": -1, "mean": 0, "m2": 0}}]
)
def test_a_saved_state_that_is_none_of_ours_is_told(state: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="saved reward statistics"):
        scripted({"normalise": {"of": "a"}}).load_state(state)


async def test_cancelling_a_score_leaves_no_task_behind() -> None:
    reward = scripted({"weighted_sum": ["a", "b"]})
    work = asyncio.create_task(reward.score("text", {"a": 30.0, "b": 30.0}))
    await asyncio.sleep(0.05)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert asyncio.all_tasks() == {asyncio.current_task()}
