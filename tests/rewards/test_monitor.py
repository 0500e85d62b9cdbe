import json
import random
from typing import Any

import pytest

from rlaif.errors import QualityError
from rlaif.rewards import PartsMonitor, Scored
from rlaif.types import Reward, Unverified
from tests.rewards.scripts import ABSTAINED, BROKEN, says


def row(value: float | None, penalties: dict[str, float] | None = None, **parts: Reward | Unverified) -> Scored:
    masked = next((v.reason for v in parts.values() if isinstance(v, Unverified)), "judge") if value is None else None
    return Scored(value=value, parts=parts, penalties=penalties or {}, masked=masked)


def watched(rows: list[Scored]) -> PartsMonitor:
    monitor = PartsMonitor()
    monitor.add_all(rows)
    return monitor


def noisy(n: int = 400) -> list[tuple[float, float]]:
    draw = random.Random(0)
    return [(float(draw.random() < 0.5), float(draw.random() < 0.5)) for _ in range(n)]


def test_a_healthy_reward_raises_no_alarm_and_its_figures_are_right() -> None:
    rows = [row((a + b) / 2, a=says(a), b=says(b)) for a, b in noisy()]
    report = watched([*rows, row(None, a=says(1.0), b=ABSTAINED)]).report()
    assert report["alarms"] == {}
    assert (report["rows"], report["masked"]) == (401, {"abstained": 1})
    a = report["parts"]["a"]
    decided = [x for x, _ in noisy()] + [1.0]
    mean = sum(decided) / len(decided)
    assert a["mean"] == pytest.approx(mean)
    assert a["std"] == pytest.approx((mean * (1 - mean)) ** 0.5)
    assert a["share_zero"] == pytest.approx(1 - mean)
    assert a["correlation"] == pytest.approx(0.5**0.5, abs=0.06)
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    ("rows", "about", "sentence"),
    [
        ([row(0.99 * a + 0.01 * b, a=says(a), b=says(b)) for a, b in noisy()], "a: dominates", "alone decides"),
        ([row(0.5, a=says(a), b=says(1 - a)) for a, _ in noisy()], "constant", "every reward is 0.5"),
        ([row(b / 2, a=says(0.0), b=says(b)) for _, b in noisy()], "a: zeros", "0 on 100% of the rows"),
        ([row(b, a=says(1.0), b=says(b)) for _, b in noisy()], "a: constant", "teaches nothing"),
        ([row(b, a=ABSTAINED, b=says(b)) for _, b in noisy()], "a: abstains", "abstained on every row"),
        (
            [row(b if a else None, a=says(1.0) if a else Unverified(reason="judge", detail="?")) for a, b in noisy()],
            "a: fails",
            "judge)",
        ),
        ([row(b, b=says(b)) for _, b in noisy()] + [row(None, b=BROKEN)] * 5, "infrastructure", "no sandbox"),
        ([row(b, code=says(b, "cheat" if not b else None)) for _, b in noisy()], "code: cheats", "tried to reach"),
        (
            [row(a - 0.1, {"shaping.length": 1.0}, a=says(a)) for a, _ in noisy()],
            "shaping.length: constant",
            "-1 on every row",
        ),
    ],
)
def test_each_thing_that_looks_wrong_has_its_sentence(rows: list[Scored], about: str, sentence: str) -> None:
    alarms = watched(rows).alarms()
    assert sentence in alarms[about]
    assert all(text.endswith(".") and "\n" not in text for text in alarms.values())


def test_a_penalty_that_is_never_due_is_no_alarm() -> None:
    rows = [row(a, {"shaping.length": 0.0}, a=says(a)) for a, _ in noisy()]
    assert watched(rows).alarms() == {}


def test_the_parts_of_first_decided_are_not_rivals() -> None:
    rows: list[Scored] = [row(a, math=says(a)) if b else row(a, math=ABSTAINED, judge=says(a)) for a, b in noisy()]
    assert watched(rows).alarms() == {}


def test_few_rows_say_nothing() -> None:
    monitor = watched([row(0.0, a=says(0.0))] * 99)
    assert monitor.alarms() == {}
    monitor.add(row(0.0, a=says(0.0)))
    assert monitor.alarms()


def infrastructure(failed: int, of: int) -> PartsMonitor:
    return watched([row(1.0, a=says(1.0))] * (of - failed) + [row(None, a=BROKEN)] * failed)


def test_infrastructure_failures_above_one_percent_end_the_run_with_exit_code_3() -> None:
    infrastructure(10, 1000).check(final=True)
    with pytest.raises(QualityError, match=r"11 of 1,000 rows \(1\.1%.*no sandbox") as caught:
        infrastructure(11, 1000).check()
    assert caught.value.exit_code == 3


def test_in_the_middle_of_a_run_one_failure_among_few_rows_does_not_end_it() -> None:
    monitor = infrastructure(1, 50)
    monitor.check()
    with pytest.raises(QualityError):
        monitor.check(final=True)


@pytest.mark.parametrize("reason", ["abstained", "judge", "task_error"])
def test_other_failures_are_not_the_machines(reason: Any) -> None:
    rows = [row(None, a=Unverified(reason=reason, detail="?"))] * 200
    watched(rows).check(final=True)


def test_an_optional_part_that_breaks_counts_even_where_the_row_has_a_value() -> None:
    with pytest.raises(QualityError):
        watched([row(1.0, a=says(1.0), b=BROKEN)] * 200).check()
