"""Prompt files: every column and format that is promised, and every broken row by its number."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.prompts import check_prompts, read_prompts, read_samples
from rlaif.types import Message


def file(folder: Path, text: str, name: str = "p.jsonl") -> str:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return str(path)


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"question": "Why?"}, "Why?"),
        ({"instruction": "Translate.", "input": "bonjour"}, "Translate.\n\nbonjour"),
        ({"instruction": "Translate.", "input": ""}, "Translate."),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]}, "Why?"),
        ({"prompt": [{"role": "user", "content": "Why?"}]}, "Why?"),
        ({"prompt": None, "question": "Why?"}, "Why?"),
    ],
)
def test_each_accepted_column_gives_the_prompt(tmp_path: Path, row: dict[str, object], content: str) -> None:
    (prompt,) = read_prompts(file(tmp_path, json.dumps(row)))
    assert prompt.messages[-1] == Message(role="user", content=content)


def test_csv_parquet_and_gzip_give_the_same_prompts_as_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": 'Say "a, b"\nand c', "reference": "x"}, {"prompt": "Why?", "reference": "y"}]
    jsonl = "".join(json.dumps(r) + "\n" for r in rows)
    sources = [file(tmp_path, jsonl)]
    sources.append(file(tmp_path, 'prompt,reference\n"Say ""a, b""\nand c",x\nWhy?,y\n', "p.csv"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    sources.append(str(tmp_path / "p.parquet"))
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(jsonl.encode()))
    sources.append(str(tmp_path / "p.jsonl.gz"))
    assert len({tuple(p.id for p in read_prompts(s)) for s in sources}) == 1
    assert len({check_prompts(s).digest for s in sources}) == 1


def test_reference_tests_and_verifier_are_kept_by_name_and_the_rest_as_metadata(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "reference": 4, "tests": ["assert f() == 4"], "verifier": "math", "topic": "sums", "id": 7}
    (prompt,) = read_prompts(file(tmp_path, json.dumps(row)))
    assert (prompt.reference, prompt.tests, prompt.verifier) == ("4", ["assert f() == 4"], "math")
    assert prompt.metadata == {"topic": "sums", "id": 7}


def test_a_line_ends_at_newline_only(tmp_path: Path) -> None:
    texts = ["one\u2028still one\u2029and\x85one", "two\rtwo"]
    source = file(tmp_path, "".join(json.dumps({"prompt": t}, ensure_ascii=False) + "\n" for t in texts))
    assert [p.messages[0].content for p in read_prompts(source)] == texts


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    source = file(tmp_path_factory.mktemp("p"), "".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    assert [p.messages[0].content for p in read_prompts(source)] == texts


def test_a_repeated_prompt_is_read_once_and_counted(tmp_path: Path) -> None:
    source = file(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "a"}\n')
    assert [p.messages[0].content for p in read_prompts(source)] == ["a", "b"]
    found = check_prompts(source)
    assert (found.prompts, found.repeats) == (2, 1)


def test_the_id_depends_on_the_content_alone(tmp_path: Path) -> None:
    (one,) = read_prompts(file(tmp_path, '{"prompt": "a", "topic": "x"}'))
    (same,) = read_prompts(file(tmp_path, '{"topic": "y", "question": "a"}'))
    (other,) = read_prompts(file(tmp_path, '{"prompt": "a", "reference": "1"}'))
    assert one.id == same.id != other.id


GOOD = '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "{broken\n", r"p\.jsonl:2: not a line of JSON"),
        (GOOD + '{"prompt": "cut off\n', r"p\.jsonl:2: not a line of JSON"),
        (GOOD + '["a"]\n', r"p\.jsonl:2: expected a JSON object"),
        (GOOD + '{"prompt": NaN}\n', r"p\.jsonl:2: not a line of JSON"),
        (
            GOOD + '{"text": "a", "topic": "b"}\n',
            r"p\.jsonl:2: .*columns found: text, topic; accepted: prompt, messages",
        ),
        (GOOD + '{"prompt": ""}\n', r"p\.jsonl:2: the prompt is empty"),
        (GOOD + '{"prompt": []}\n', r"p\.jsonl:2: the prompt is empty"),
        (GOOD + '{"prompt": 7}\n', r"p\.jsonl:2: 'prompt' must be text or a list of messages"),
        (GOOD + '{"messages": [{"role": "bot", "content": "a"}]}\n', r"p\.jsonl:2: 'messages' must be"),
        (GOOD + '{"messages": [{"role": "assistant", "content": "a"}]}\n', r"p\.jsonl:2: .*ends with the user's turn"),
        (GOOD + '{"prompt": "\\ud800"}\n', r"p\.jsonl:2: holds half a surrogate pair"),
        (GOOD + '{"prompt": "a", "verifier": 1}\n', r"p\.jsonl:2: 'verifier' must be"),
        ("", r"p\.jsonl: no prompts in it"),
        ("\n\n", r"p\.jsonl: no prompts in it"),
        (GOOD + "[" * 100_000 + "\n", r"p\.jsonl:2: not a line of JSON"),
    ],
)
def test_a_broken_row_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_prompts(file(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"prompt,topic\na,b\nc\n", r"p\.csv:3: this row has not as many columns"),
        ("p.csv", b"prompt\n\xff\xfe\n", r"p\.csv:\d+: not a row of CSV in UTF-8"),
        ("p.jsonl", b'{"prompt": "\xff"}', r"p\.jsonl:1: not a line of JSON"),
        ("p.jsonl.gz", b"not gzip", r"p\.jsonl\.gz: cannot be read to its end"),
        ("p.parquet", b"PAR1 not", r"p\.parquet: not a readable parquet file"),
        ("p.txt", b"a", r"p\.txt: not a format for prompts"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_prompts(str(tmp_path / name))


def test_a_missing_file_says_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; prompts are a \.jsonl"):
        check_prompts(str(tmp_path / "none.jsonl"))


def test_samples_need_a_list_of_texts_and_a_prompt_once(tmp_path: Path) -> None:
    row = '{"prompt": "a", "completions": ["x", "y"]}\n'
    assert [(p.messages[0].content, texts) for p, texts in read_samples(file(tmp_path, row))] == [("a", ("x", "y"))]
    with pytest.raises(
        InputError, match=r"p\.jsonl:1: 'completions' must be a list of texts; other columns found: prompt"
    ):
        check_prompts(file(tmp_path, GOOD), samples=True)
    with pytest.raises(InputError, match=r"p\.jsonl:2: this prompt was there before"):
        check_prompts(file(tmp_path, row + row), samples=True)
