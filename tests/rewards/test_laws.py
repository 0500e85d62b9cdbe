"""What holds for every reward, whatever its parts say."""

import asyncio
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config.rewards import Shaping
from rlaif.rewards import Scored
from rlaif.rewards.shaping import penalties, shaped
from rlaif.types import Reward, Unverified
from tests.rewards.scripts import ABSTAINED, BROKEN, UNPARSEABLE, asked, reward_of, says, scripted

UNIT = st.floats(0, 1)
FAILED = st.sampled_from([ABSTAINED, BROKEN, Unverified(reason="judge", detail="unreadable")])
VERDICTS = st.one_of(UNIT.map(says), st.just(UNPARSEABLE), FAILED)
WEIGHTS = st.floats(1e-3, 1e3)
RANGES = st.tuples(st.floats(-100, 100), st.floats(0.01, 100)).map(lambda r: (r[0], r[0] + r[1]))


def score(written: Any, task: dict[str, Any], text: str = "text") -> Scored:
    return asyncio.run(scripted(written, attempts=1).score(text, task))


def parts(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"verifier": f"p{i}", **more} for i in range(n)]


def said(verdicts: list[Any]) -> dict[str, Any]:
    return {f"p{i}": verdict for i, verdict in enumerate(verdicts)}


# --------------------------------------------------------------------------------------------------------- composition


@given(st.lists(st.tuples(RANGES, WEIGHTS, UNIT), min_size=1, max_size=5))
def test_a_weighted_sum_lies_in_the_hull_of_its_parts_and_in_its_own_range(drawn: list[Any]) -> None:
    values = [max(low, min(high, low + at * (high - low))) for (low, high), _, at in drawn]
    written = [{"verifier": f"p{i}", "range": r, "weight": w} for i, (r, w, _) in enumerate(drawn)]
    value = score({"weighted_sum": written}, said([says(v) for v in values])).value
    assert value is not None
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= value <= max(values) + slack
    low, high = reward_of({"weighted_sum": written}).bounds
    assert low <= value <= high
    assert (value == high) == all(v == r[1] for v, (r, _, _) in zip(values, drawn, strict=True))


@given(st.lists(st.tuples(VERDICTS, WEIGHTS, st.booleans()), min_size=1, max_size=5))
def test_a_failed_required_part_masks_and_an_optional_one_leaves_its_weight_to_the_others(drawn: list[Any]) -> None:
    written = [{"verifier": f"p{i}", "weight": w, "required": must} for i, (_, w, must) in enumerate(drawn)]
    scored = score({"weighted_sum": written}, said([verdict for verdict, _, _ in drawn]))
    kept = [(v.value, w) for v, w, _ in drawn if isinstance(v, Reward)]
    if not kept or any(must and isinstance(v, Unverified) for v, _, must in drawn):
        assert scored.value is None
        assert scored.masked in ("abstained", "infrastructure", "judge")
        assert scored.why
    else:
        assert scored.value is not None
        assert math.isclose(scored.value, sum(v * w for v, w in kept) / sum(w for _, w in kept), abs_tol=1e-12)


@given(st.lists(VERDICTS, min_size=1, max_size=4))
def test_a_product_and_a_min_have_a_value_exactly_when_every_part_has(verdicts: list[Any]) -> None:
    values = [v.value for v in verdicts if isinstance(v, Reward)]
    product, least = (score({kind: parts(len(verdicts))}, said(verdicts)).value for kind in ("product", "min"))
    if len(values) < len(verdicts):
        assert product is None
        assert least is None
    else:
        assert product == math.prod(values)
        assert least == min(values)


@given(VERDICTS, VERDICTS, st.floats(0.01, 1))
def test_behind_a_closed_gate_nothing_is_asked_and_an_open_one_changes_nothing(
    condition: Any, then: Any, at_least: float
) -> None:
    reward = scripted({"gate": {"condition": "p0", "then": "p1", "at_least": at_least}}, attempts=1)
    value = asyncio.run(reward.score("text", said([condition, then]))).value
    opened = isinstance(condition, Reward) and condition.value >= at_least
    assert asked(reward) == {"p0": 1, "p1": int(opened)}
    if isinstance(condition, Unverified):
        assert value is None
    elif opened:
        assert value == (then.value if isinstance(then, Reward) else None)
    else:
        assert value == 0.0


@given(st.lists(VERDICTS, min_size=1, max_size=4))
def test_the_first_that_decides_counts_and_nobody_after_it_is_asked(verdicts: list[Any]) -> None:
    reward = scripted({"first_decided": parts(len(verdicts))}, attempts=1)
    value = asyncio.run(reward.score("text", said(verdicts))).value
    passing = [v in (ABSTAINED, UNPARSEABLE) for v in verdicts]
    last = passing.index(False) if False in passing else len(verdicts) - 1
    assert list(asked(reward).values()) == [int(i <= last) for i in range(len(verdicts))]
    deciding = verdicts[last]
    if all(passing):  # nobody decided: "no readable answer" is a value, to abstain is none
        assert value == (0.0 if UNPARSEABLE in verdicts else None)
    else:
        assert value == (deciding.value if isinstance(deciding, Reward) else None)


# ------------------------------------------------------------------------------------------------------------- shaping

TEXTS = st.one_of(
    st.text(max_size=200),
    st.builds(lambda word, n: f"{word} " * n, st.text(min_size=1, max_size=5), st.integers(0, 2000)),
)
SHAPINGS = st.fixed_dictionaries(
    {
        "length": st.builds(lambda a, b: {"free": a, "full": a + b}, st.integers(0, 100), st.integers(1, 100)),
        "overlong": st.builds(lambda a, b: {"limit": a + b, "buffer": b}, st.integers(0, 100), st.integers(1, 100)),
        "repetition": st.builds(lambda n, f: {"n": n, "free": f}, st.integers(1, 5), st.floats(0, 0.9)),
        "at_most": st.floats(0.001, 0.4),
        "among": st.sampled_from(["correct", "all"]),
    }
)
COMPLETIONS = st.tuples(TEXTS, st.integers(0, 10_000))  # text, tokens


@given(SHAPINGS, RANGES, COMPLETIONS, COMPLETIONS, st.floats(0, 1, exclude_max=True))
@settings(max_examples=300)
def test_any_fully_correct_completion_ranks_above_any_other_by_the_budget(
    written: Any, bounds: Any, right: Any, wrong: Any, at: float
) -> None:
    low, high = bounds
    below = min(math.nextafter(high, low), low + at * (high - low))
    config = reward_of({"shaping": {"of": {"verifier": "p0", "range": bounds}, **written}}).shaping
    assert config is not None

    def reward(value: float, completion: Any) -> float:
        return shaped(value, config, min(1.0, sum(penalties(config, *completion).values())))

    best, other = reward(high, right), reward(below, wrong)
    assert best > other
    assert best - other >= config.budget * (1 - 1e-9) - 1e-9
    low, high = reward_of({"shaping": {"of": {"verifier": "p0", "range": bounds}, **written}}).bounds
    assert low <= other <= best <= high


@given(SHAPINGS, COMPLETIONS)
def test_every_penalty_is_a_share_and_no_text_makes_it_fail(written: Any, completion: Any) -> None:
    config = Shaping.model_validate({"of": "p0", **written})
    found = penalties(config, *completion)
    assert found.keys() == {"length", "overlong", "repetition"}
    assert all(0.0 <= share <= 1.0 for share in found.values())


@given(SHAPINGS, COMPLETIONS, st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_of_the_same_text_a_better_verdict_never_gets_less(written: Any, completion: Any, values: list[float]) -> None:
    config = Shaping.model_validate({"of": "p0", **written})
    penalty = min(1.0, sum(penalties(config, *completion).values()))
    low, high = (shaped(value, config, penalty) for value in sorted(values))
    assert low <= high


# ------------------------------------------------------------------------------------------------------------- batches

TREE = {
    "normalise": {
        "of": {
            "weighted_sum": [
                {"verifier": "p0", "weight": 2},
                {"first_decided": ["p1", "p2"], "required": False},
            ]
        }
    }
}


@given(st.lists(st.tuples(VERDICTS, VERDICTS, VERDICTS), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_to_permute_the_rows_of_a_batch_permutes_the_rewards_and_nothing_else(drawn: list[Any], random: Any) -> None:
    rows = [(f"text {i}", said(list(verdicts))) for i, verdicts in enumerate(drawn)]
    order = random.sample(range(len(rows)), len(rows))

    async def batch(rows: list[Any]) -> tuple[list[Scored], dict[str, Any]]:
        reward = scripted(TREE, attempts=1)
        return await reward.score_many([t for t, _ in rows], [task for _, task in rows], learn=True), reward.state()

    first, state = asyncio.run(batch(rows))
    second, permuted = asyncio.run(batch([rows[i] for i in order]))
    assert second == [first[i] for i in order]
    assert state == permuted
