"""Labelled pairs: where a response stands says nothing about its label, and people are counted as they voted."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import load_constitution
from rlaif.judging.agreement import Label
from rlaif.judging.flow import in_flight
from rlaif.judging.gold import data_digest, plurality, read_gold

LABELS: list[Label] = ["a", "b", "tie"]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (["a"], "a"),
        (["a", "a", "b"], "a"),
        (["b", "tie", "b"], "b"),
        (["a", "b"], "tie"),
        (["a", "b", "tie"], "tie"),
        (["a", "a", "b", "b", "tie"], "tie"),
        (["tie", "tie", "a"], "tie"),
    ],
)
def test_the_label_of_several_annotators_is_what_more_of_them_say_than_anything_else(
    votes: list[Label], expected: Label
) -> None:
    assert plurality(votes) == expected


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=9))
def test_exchanging_a_and_b_exchanges_the_plurality(votes: list[Label]) -> None:
    mirror: dict[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}
    assert plurality([mirror[v] for v in votes]) == mirror[plurality(votes)]
    assert plurality(list(reversed(votes))) == plurality(votes)


def test_the_place_of_a_response_does_not_depend_on_which_one_people_chose(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "chosen": f"one {i}", "rejected": f"two {i}"} for i in range(60)]
    other = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    first = read_gold(write(tmp_path / "1.jsonl", *rows))
    second = read_gold(write(tmp_path / "2.jsonl", *other))
    assert [p.comparison.a.text for p in first] == [p.comparison.a.text for p in second]
    assert all(x.label != y.label for x, y in zip(first, second, strict=True))
    assert 15 < sum(p.label == "a" for p in first) < 45
    assert data_digest(first) != data_digest(second)


def test_what_a_row_says_is_kept(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "instruction": "Do", "input": "this", "a": "x", "b": "", "labels": ["a", "a", "tie"], "topic": "t"},
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "a": "x", "b": "y"}
        | {"label": "tie", "model_a": "m1", "model_b": "m2"},
    ]
    one, two = read_gold(write(tmp_path / "d.jsonl", *rows))
    assert (one.id, one.label, one.labels) == ("7", "a", ("a", "a", "tie"))
    assert one.comparison.prompt.messages[-1].content == "Do\n\nthis"
    assert one.comparison.prompt.metadata == {"topic": "t"}
    assert one.comparison.b.text == ""
    assert (two.id, two.label, two.models) == ("1", "tie", ("m1", "m2"))
    assert len(two.comparison.prompt.messages) == 2


async def test_no_more_than_so_many_are_under_way_and_results_keep_their_order() -> None:
    under_way, most = 0, 0

    async def work(n: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (n % 3))
        under_way -= 1
        return n * n

    assert await in_flight(range(20), work, 4) == [n * n for n in range(20)]
    assert most == 4


async def test_the_first_failure_cancels_what_is_under_way() -> None:
    ended = []

    async def work(n: int) -> None:
        if n == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(n)

    with pytest.raises(ValueError, match="one"):
        await in_flight(range(3), work, 3)
    assert sorted(ended) == [0, 2]


def test_the_judge_is_asked_about_the_principles_of_the_label_where_the_constitution_has_them(tmp_path: Path) -> None:
    constitution = load_constitution("honest")
    first = constitution.principles[0].id
    file = tmp_path / "gold.jsonl"
    about: list[Any] = [[first], [first, "gone"], ["gone"], [], "text", None]
    lines = (json.dumps({"prompt": "Q", "a": "x", "b": "y", "label": "a", "principles": value}) for value in about)
    file.write_text("\n".join(lines), encoding="utf-8")
    pairs = read_gold(str(file))
    asked = [[p.id for p in pair.asked(constitution).principles] for pair in pairs]
    whole = [p.id for p in constitution.principles]
    assert len(whole) > 1
    assert asked == [[first], [first], whole, whole, whole, whole]
    assert all("principles" not in pair.comparison.prompt.metadata for pair in pairs)
