"""Files of recorded verdicts: what is read, and that every mistake is named with its line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.judge import judge
from rlaif.errors import InputError
from rlaif.judging.agreement import Look, Pair
from rlaif.judging.bias import recorded_win_rate
from rlaif.judging.verdicts import read_lengths, read_pairs
from tests.test_architecture import HEAVY, loaded_after

ROW = {"id": "p1", "order": "ab", "verdict": "a", "label": "a"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_the_two_orders_of_a_pair_come_together_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        {**ROW, "p_a": 0.75, "words": 12},
        {"id": 2, "order": "ba", "verdict": "invalid", "label": "tie", "p_a": None},
        "",
        {**ROW, "order": "ba", "verdict": "tie"},
    ]
    assert read_pairs(write(tmp_path / "v.jsonl", *rows)) == [
        Pair("p1", "a", Look("a", 0.75), Look("tie")),
        Pair("2", "tie", None, Look("invalid")),
    ]


def test_compressed_files_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(ROW).encode()))
    assert len(read_pairs(path)) == 1


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", json.dumps({**ROW, "id": "a\u2028b\x85"}, ensure_ascii=False))
    assert read_pairs(path)[0].id == "a\u2028b\x85"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"v\.jsonl:1: not a line of JSON"),
        ([ROW, "[1]"], r"v\.jsonl:2: expected an object"),
        (["[" * 100_000], r"v\.jsonl:1: not a line of JSON"),
        ([{**ROW, "label": None}], r"v\.jsonl:1: the column 'label' is missing; columns found: id, order"),
        ([{"id": "x", "order": "ab"}], r"the columns 'verdict', 'label' are missing"),
        ([{}], r"columns found: none"),
        ([{**ROW, "verdict": "A"}], r"'verdict' must be one of a, b, tie, invalid \(found \"A\"\)"),
        ([{**ROW, "verdict": "N/A"}], r"'verdict' must be one of"),
        ([{**ROW, "verdict": -1}], r"'verdict' must be one of"),
        ([{**ROW, "verdict": ["a"]}], r"'verdict' must be one of"),
        ([{**ROW, "order": "both"}], r"'order' must be one of ab, ba"),
        ([{**ROW, "label": "invalid"}], r"'label' must be one of a, b, tie"),
        ([{**ROW, "label": 1}], r"'label' must be one of a, b, tie"),
        ([{**ROW, "id": True}], r"'id' must be text"),
        ([{**ROW, "id": [1]}], r"'id' must be text"),
        ([{**ROW, "p_a": 1.5}], r"'p_a' must be a probability"),
        ([{**ROW, "p_a": "0.5"}], r"'p_a' must be a probability"),
        (['{"id": 1, "order": "ab", "verdict": "a", "label": "a", "p_a": NaN}'], r"'p_a' must be a probability"),
        ([{**ROW, "verdict": "invalid", "p_a": 0.5}], r"an invalid verdict has no 'p_a'"),
        ([ROW, ROW], r"v\.jsonl:2: a verdict on 'p1' in order 'ab' was there before"),
        ([ROW, {**ROW, "order": "ba", "label": "b"}], r"v\.jsonl:2: the label of 'p1' is 'b' here and was 'a' before"),
        ([], r"v\.jsonl: no verdicts in it"),
        ([""], r"v\.jsonl: no verdicts in it"),
    ],
)
def test_each_mistake_is_one_sentence_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(write(tmp_path / "v.jsonl", *rows))


def test_what_is_no_file_of_verdicts_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        read_pairs(tmp_path)
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "broken.gz")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(InputError, match=r"latin\.jsonl:1: not a line of JSON"):
        read_pairs(tmp_path / "latin.jsonl")


def test_the_command_prints_json_or_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", ROW, {**ROW, "order": "ba", "verdict": "b"})
    printed = CliRunner().invoke(judge, ["stats", str(path), "--json"])
    assert printed.exit_code == 0
    report = json.loads(printed.stdout)
    assert (report["pairs"], report["accuracy_ab"], report["accuracy_ba"], report["accuracy"]) == (1, 1.0, 0.0, 0.5)
    assert report["first_position_rate"] == 1.0
    assert report["kappa_orders"] is None or report["kappa_orders"] == 0.0
    table = CliRunner().invoke(judge, ["stats", str(path)])
    assert "1 pairs, 2 verdicts" in table.stdout
    assert "Cohen's kappa with the label" in table.stdout


def test_probabilities_that_contradict_their_verdicts_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", {**ROW, "p_a": 0.9}, {**ROW, "order": "ba", "p_a": 0.2})
    told = CliRunner().invoke(judge, ["stats", str(path), "--json"])
    assert "1 verdicts contradict their p_a" in told.stderr
    assert json.loads(told.stdout)["pairs"] == 1


def test_figures_of_recorded_verdicts_need_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", ROW)
    assert not loaded_after(f"from rlaif.cli import main; main(['judge', 'stats', {str(path)!r}])") & set(HEAVY)


def test_lengths_give_the_win_rate_and_what_it_would_be_at_equal_length(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    rows = []
    for i in range(40):  # the longer one wins, whichever it is; a is longer three times in four
        a_is_longer = i % 4 != 0
        lengths = {"length_a": 200, "length_b": 100} if a_is_longer else {"length_a": 100, "length_b": 200}
        rows.append({"id": i, "order": "ab", "verdict": "a" if a_is_longer else "b", "label": "a", **lengths})
    rows.append({"id": "broken", "order": "ab", "verdict": "invalid", "label": "a", "length_a": 1, "length_b": 9})
    rows.append({"id": "short", "order": "ab", "verdict": "a", "label": "a"})
    path.write_text("\n".join(map(json.dumps, rows)))
    found = recorded_win_rate(read_pairs(path), read_lengths(path))
    assert found is not None
    rate, of = found
    assert (rate.raw, of) == (0.75, 40)
    assert abs(rate.controlled - 0.5) < abs(rate.raw - 0.5)


def test_without_lengths_there_is_no_win_rate_and_half_of_them_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps(ROW))
    assert recorded_win_rate(read_pairs(path), read_lengths(path)) is None
    path.write_text(json.dumps({**ROW, "length_a": 3}))
    with pytest.raises(InputError, match="'length_b' must be a number of characters"):
        read_lengths(path)
