import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.dataset import write_parquet
from rlaif.errors import InputError
from rlaif.preferences import Pair, read_preferences
from tests.training.tiny import contract_rows, write_jsonl

USER = {"role": "user", "content": "Name a colour."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


EXPLICIT = {"prompt": [USER], "chosen": [said("Red.")], "rejected": [said("I do not know.")]}
IMPLICIT = {"chosen": [USER, said("Red.")], "rejected": [USER, said("I do not know.")]}
PLAIN = {"prompt": "Name a colour:", "chosen": " red", "rejected": " unknown"}
PLAIN_IMPLICIT = {"chosen": "Name a colour: red", "rejected": "Name a colour: unknown"}


def read_rows(folder: Path, *rows: Any) -> list[Pair]:
    return list(read_preferences(str(write_jsonl(folder / "data.jsonl", rows))).pairs)


def error_of(folder: Path, *rows: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_rows(folder, *rows)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the four formats


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (EXPLICIT, ("conversational", False)),
        (IMPLICIT, ("conversational", True)),
        (PLAIN, ("plain", False)),
        (PLAIN_IMPLICIT, ("plain", True)),
    ],
)
def test_each_of_the_formats_gives_the_same_pair(tmp_path: Path, row: dict[str, Any], shape: tuple[str, bool]) -> None:
    found = read_preferences(str(write_jsonl(tmp_path / "data.jsonl", [row])))
    assert (found.format, found.implicit_prompt) == shape
    (pair,) = found.pairs
    if shape[0] == "conversational":
        assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [said("Red.")], [said("I do not know.")])
    else:
        assert (pair.prompt, pair.chosen, pair.rejected) == ("Name a colour:", " red", " unknown")


def test_the_prompt_of_conversations_is_all_they_begin_with_in_common(tmp_path: Path) -> None:
    begun = [{"role": "system", "content": "Be brief."}, USER, said("Red."), {"role": "user", "content": "Another."}]
    row = {"chosen": [*begun, said("Blue.")], "rejected": [*begun, said("Blue, I think."), USER, said("Red.")]}
    (pair,) = read_rows(tmp_path, row)
    assert pair.prompt == begun
    assert pair.chosen == [said("Blue.")]
    assert pair.rejected == [said("Blue, I think."), USER, said("Red.")]


@given(words=st.lists(st.sampled_from(["red", "reddish", "blue", "I", "think"]), min_size=1, max_size=6))
def test_an_implicit_plain_prompt_ends_at_a_whole_word_and_nothing_is_lost(words: list[str]) -> None:
    from rlaif.preferences import _split_text

    chosen, rejected = "Q: colour? A: " + " ".join(words), "Q: colour? A: " + " ".join([*words[:-1], "rain"])
    prompt, one, other = _split_text(chosen, rejected)
    assert (prompt + one, prompt + other) == (chosen, rejected)
    assert prompt.startswith("Q: colour? A:")
    assert one[:1] == " "


def test_a_single_message_needs_no_list(tmp_path: Path) -> None:
    (pair,) = read_rows(tmp_path, {"prompt": [USER], "chosen": said("Red."), "rejected": said("No.")})
    assert pair.chosen == [said("Red.")]


# ------------------------------------------------------------------------------------------------------ the files


def test_a_run_folder_its_jsonl_and_its_parquet_hold_the_same_pairs(tmp_path: Path) -> None:
    rows = contract_rows(7)
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "data").mkdir()
    write_parquet(rows, tmp_path / "data" / "train.parquet")
    sources = [tmp_path, tmp_path / "pairs.jsonl", tmp_path / "data" / "train.parquet", tmp_path / "data"]
    digests = {read_preferences(str(source)).digest for source in sources}
    assert len(digests) == 1


def test_gzip_and_json_and_parquet_read_as_jsonl_does(tmp_path: Path) -> None:
    rows = contract_rows(3)
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = read_preferences(str(write_jsonl(tmp_path / "a.jsonl", rows))).digest
    for name in ("a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"):
        assert read_preferences(str(tmp_path / name)).digest == expected, name


def test_a_folder_of_load_dataset_and_one_of_save_to_disk_are_read(tmp_path: Path) -> None:
    import datasets

    rows = contract_rows(4)
    expected = read_preferences(str(write_jsonl(tmp_path / "pairs.jsonl", rows))).digest
    loadable, saved = tmp_path / "loadable", tmp_path / "saved"
    loadable.mkdir()
    write_jsonl(loadable / "train.jsonl", rows)
    datasets.Dataset.from_list(rows).save_to_disk(str(saved))
    assert read_preferences(str(loadable)).digest == expected
    assert read_preferences(str(saved)).digest == expected


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\x85four\x0bfive"
    row = {"prompt": [USER], "chosen": [said(odd)], "rejected": [said("No.")]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8", newline="")
    (pair,) = read_preferences(str(tmp_path / "d.jsonl")).pairs
    assert pair.chosen_text == odd


def test_limit_takes_the_first_usable_pairs_and_reads_no_further(tmp_path: Path) -> None:
    same = {**EXPLICIT, "rejected": EXPLICIT["chosen"]}
    found = read_preferences(str(write_jsonl(tmp_path / "d.jsonl", [same, EXPLICIT, EXPLICIT, "{broken"])), limit=2)
    assert (len(found.pairs), found.rows) == (2, 3)


# ---------------------------------------------------------------------------------------- rows that teach nothing


def test_rows_that_prefer_nothing_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        EXPLICIT,
        {**EXPLICIT, "rejected": EXPLICIT["chosen"]},
        {**EXPLICIT, "chosen": [said("  \n")]},
        {**EXPLICIT, "prompt": []},
        {**EXPLICIT, "rejected": EXPLICIT["chosen"]},
    ]
    found = read_preferences(str(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert found.dropped == {"identical": 2, "empty_answer": 1, "no_prompt": 1}
    assert found.rows == len(found.pairs) + found.dropped.total() == 5


def test_conversations_that_share_no_prompt_are_dropped(tmp_path: Path) -> None:
    row = {"chosen": [said("Red.")], "rejected": [said("Blue.")]}
    found = read_preferences(str(write_jsonl(tmp_path / "d.jsonl", [IMPLICIT, row])))
    assert found.dropped == {"no_prompt": 1}


def test_data_without_a_single_preference_is_refused(tmp_path: Path) -> None:
    message = error_of(tmp_path, *[{**EXPLICIT, "rejected": EXPLICIT["chosen"]}] * 3)
    assert "none of its 3 rows prefers anything (3 identical)" in message


# --------------------------------------------------------------------------------------------------------- errors


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    assert error_of(tmp_path, EXPLICIT, '{"prompt": [').startswith(f"{tmp_path / 'data.jsonl'}:2: not valid JSON")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "Hi"}, "prompts only; `rlaif generate` makes preferences"),
        ({"messages": [USER]}, "conversations, for supervised fine-tuning"),
        ({"prompt": "Hi", "completion": "Ho"}, "prompt-completion pairs, for supervised fine-tuning"),
        ({"prompt": "Hi", "completion": "Ho", "label": True}, "unpaired preferences"),
        ({"prompt": "Hi", "completions": ["a"], "labels": [True]}, "stepwise supervision"),
        ({"prompt": "Hi", "completions": ["a", "b"]}, "samples without a judgement"),
        ({"text": "Hi"}, "language modelling"),
        ({"prompt": "Hi", "a": "x", "b": "y", "label": "a"}, "rlaif judge check"),
        ({"instruction": "Hi", "input": "", "output": "x"}, "supervised fine-tuning"),
    ],
)
def test_another_kind_of_data_set_is_called_by_its_name(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    message = error_of(tmp_path, row)
    assert kind in message
    assert f"columns found: {', '.join(row)}" in message
    assert "accepted: chosen and rejected" in message
    parquet = tmp_path / "other.parquet"
    pq.write_table(pa.Table.from_pylist([row]), parquet)
    with pytest.raises(InputError) as caught:
        read_preferences(str(parquet))
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Hi", "chosen": "x"}, "rejected is missing (columns found: prompt, chosen"),
        ({"prompt": "Hi", "chosen": "x", "rejected": None}, "rejected is empty"),
        ({"colour": "x"}, "no preference data (columns found: colour"),
        ({"prompt": [USER], "chosen": "x", "rejected": "y"}, "prompt is a list but chosen and rejected are text"),
        ({"prompt": "Hi", "chosen": [said("x")], "rejected": [said("y")]}, "prompt is text; expected messages"),
        ({**EXPLICIT, "chosen": [{"from": "gpt", "value": "x"}]}, "ShareGPT's form"),
        ({**EXPLICIT, "chosen": [{"role": "assistant", "content": None}]}, "found role: text, content: nothing"),
        ({**EXPLICIT, "chosen": [{"role": "robot", "content": "x"}]}, "the role 'robot'; known are system"),
        ({**EXPLICIT, "chosen": [{**said("x"), "tool_calls": [{"name": "f"}]}]}, "tool calls"),
        ({**EXPLICIT, "chosen": ["x"]}, "chosen holds text; expected messages"),
        ([1, 2], "expected a row"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_place(tmp_path: Path, row: Any, complaint: str) -> None:
    message = error_of(tmp_path, json.dumps(row))
    assert message.startswith(f"{tmp_path / 'data.jsonl'}:1: ")
    assert complaint in message


def test_a_file_holds_one_format(tmp_path: Path) -> None:
    message = error_of(tmp_path, EXPLICIT, PLAIN)
    assert "data.jsonl:2: this row is plain with a prompt, the rows before it are conversational" in message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", b"\n\n", "no rows"),
        ("a.xlsx", b"prompt,chosen\n", "not a preference file"),
        ("a.json", b'{"prompt": 1}', "expected a list of rows, found an object"),
        ("b.json", b'{"a": 1}\n{"a": 2}', "name it .jsonl"),
        ("a.jsonl", b'\xff\xfe{"a": 1}', "a.jsonl:1: not valid JSON (not UTF-8)"),
        ("a.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("b.jsonl.gz", gzip.compress(b"{}" * 9999, mtime=0)[:20], "not a whole gzip file"),
        ("a.parquet", b"PAR1 nothing", "not a readable parquet file"),
        (
            "half.jsonl",
            b'{"prompt": "a", "chosen": "b", "rejected": "\\udc00"}\n',
            "half.jsonl:1: holds half a surrogate pair",
        ),
        (
            "half.json",
            b'[{"prompt": "a", "chosen": "b", "rejected": "\\uD83d"}]',
            "half.json, row 1: holds half a surrogate",
        ),
        ("deep.jsonl", b'{"prompt": ' + b"[" * 100_000, "deep.jsonl:1: not valid JSON (nested too deeply)"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_preferences(str(tmp_path / name))
    assert complaint in str(caught.value)


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a", "chosen": "\\ud83d\\ude00", "rejected": "b"}\n')
    (pair,) = read_preferences(str(tmp_path / "a.jsonl")).pairs
    assert pair.chosen == "\U0001f600"


def test_an_unfinished_run_and_an_empty_folder_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run folder"):
        read_preferences(str(tmp_path))
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(InputError, match="not finished"):
        read_preferences(str(tmp_path))
