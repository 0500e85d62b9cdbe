"""Labelled pairs in every format that is read, and how they are divided."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError
from rlaif.learning.labelled import Labelled, other, parts, preferred, read_labelled
from tests import running

DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[3] / "shared" / "data"))


def read(tmp_path: Path, *rows: dict[str, Any], limit: int | None = None) -> Labelled:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_labelled(str(path), limit)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


SPOKEN = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "a": "No.", "b": "Because.", "label": "b"},
        {"question": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "a": "No.", "b": "Because.", "labels": ["b", "b", "a"]},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": turns("Why?"), "chosen": turns("", "Because.")[1:], "rejected": turns("", "No.")[1:]},
        {"chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No.")},
    ],
)
def test_a_row_of_each_format_is_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, row).pairs
    assert (preferred(pair), other(pair)) == ("Because.", "No.")
    assert [m.content for m in pair.comparison.prompt.messages] == ["Why?"]
    assert (
        pair.comparison.prompt.id
        == read(tmp_path, {"prompt": "Why?", "a": "x", "b": "y", "label": "a"}).pairs[0].comparison.prompt.id
    )


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{SPOKEN} Because it is.", "rejected": f"{SPOKEN} Because I say so."},
        {"prompt": SPOKEN, "chosen": " Because it is.", "rejected": " Because I say so."},
    ],
)
def test_a_transcript_becomes_a_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, row).pairs
    assert [(m.role, m.content) for m in pair.comparison.prompt.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Why?"),
    ]
    assert preferred(pair).strip() == "Because it is."  # no word of it was taken for the prompt
    assert other(pair).strip() == "Because I say so."


def test_an_answer_that_begins_like_the_other_is_no_empty_one(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, {"chosen": f"{SPOKEN} Because", "rejected": f"{SPOKEN} Because I say so."}).pairs
    assert (preferred(pair), other(pair)) == ("Because", "Because I say so.")


def test_an_answer_that_is_missing_is_an_empty_one(tmp_path: Path) -> None:
    good = {"chosen": f"{SPOKEN} Yes.", "rejected": f"{SPOKEN} No."}
    found = read(tmp_path, good, {"chosen": f"{SPOKEN} Because.", "rejected": SPOKEN})
    assert len(found.pairs) == found.left_out["empty_answer"] == 1


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    running.run(tmp_path, ["One?", "Two?"])
    found = read_labelled(str(tmp_path / "run"))
    assert {preferred(p) for p in found.pairs} == {r["chosen"][0]["content"] for r in running.rows(tmp_path, "pairs")}


def test_what_prefers_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "Q", "a": "x", "b": "y", "label": "a"}
    found = read(
        tmp_path,
        good,
        {**good, "label": "tie"},
        {**good, "b": " x "},
        {**good, "b": ""},
        good,
        {"prompt": "Q2", "a": "x", "b": "y", "label": "b"},
    )
    assert [p.label for p in found.pairs] == ["a", "b"]
    assert found.left_out == {"tie": 1, "identical": 1, "empty_answer": 1, "repeated": 1}
    found = read(tmp_path, {"chosen": "a b", "rejected": "c d"}, {"prompt": "Q", "chosen": "x", "rejected": "y"})
    assert found.left_out == {"no_prompt": 1}


def test_a_file_that_prefers_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to learn"):
        read(tmp_path, {"prompt": "Q", "a": "x", "b": "y", "label": "tie"})
    with pytest.raises(InputError, match="no such file"):
        read_labelled(str(tmp_path / "none.jsonl"))


def test_which_text_is_a_says_nothing_about_the_label(tmp_path: Path) -> None:
    data = [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    labels = [p.label for p in read(tmp_path, *data).pairs]
    assert 70 < labels.count("a") < 130


def many(tmp_path: Path, n: int) -> Labelled:
    return read(tmp_path, *({"prompt": f"Q{i // 2}", "a": f"x{i}", "b": f"y{i}", "label": "a"} for i in range(n)))


def test_the_parts_are_disjoint_share_no_prompt_and_hold_every_pair(tmp_path: Path) -> None:
    found = parts(many(tmp_path, 400), 0)
    assert sum(map(len, found)) == 400
    of = [{p.comparison.prompt.id for p in part} for part in found]
    assert not of[0] & of[1]
    assert not of[1] & of[2]
    assert not of[0] & of[2]
    assert [round(len(part) / 400, 1) for part in found] == [pytest.approx(x, abs=0.1) for x in (0.15, 0.35, 0.5)]


def test_more_pairs_move_none_and_another_seed_moves_many(tmp_path: Path) -> None:
    few, more, drawn = parts(many(tmp_path, 200), 0), parts(many(tmp_path, 400), 0), parts(many(tmp_path, 200), 1)
    for part, whole in zip(few, more, strict=True):
        assert {p.id for p in part} <= {p.id for p in whole}
    assert {p.id for p in few.held_out} != {p.id for p in drawn.held_out}


def test_too_few_pairs_are_told_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few to learn from"):
        parts(many(tmp_path, 30), 0)


@pytest.mark.parametrize("name", ["hh_helpful_test", "hh_harmless_test"])
def test_published_preferences_are_read_as_conversations(name: str) -> None:
    file = DATA / "preferences" / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"no {file}; set RLAIF_DATA")
    found = read_labelled(str(file))
    with gzip.open(file) as lines:
        assert len(found.pairs) + found.left_out.total() == sum(1 for _ in lines)
    for pair in found.pairs:
        assert pair.comparison.prompt.messages[-1].role == "user"
        assert "\n\nHuman:" not in pair.comparison.prompt.messages[-1].content
