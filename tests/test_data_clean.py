"""What `rlaif data clean` takes out, and that everything else stays as it was."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.cleaning import clean as run_clean
from rlaif.cli import rlaif
from rlaif.config.dataset import Drop
from rlaif.data_doctor import examine, find_removals
from rlaif.data_doctor.similar import Sketches, words
from rlaif.errors import InputError, QualityError
from rlaif.preferences import read_preferences
from tests import running
from tests.test_data_doctor import CLEAN, KEY, clean, sentences, write

ALL: tuple[Drop, ...] = get_args(Drop)


def lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().split("\n") if line]


def near(row: dict[str, Any]) -> dict[str, Any]:
    """The same answers but for their last word, to another prompt."""
    changed = {key: f"{row[key].rsplit(' ', 1)[0]} sea." for key in ("chosen", "rejected")}
    return {**row, **changed, "prompt": f"Again: {row['prompt']}"}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.fixture
def benchmark_file(tmp_path: Path) -> Path:
    return write(tmp_path / "benchmark.jsonl", [{"question": sentences("benchmark", 3)}])


def golden() -> tuple[list[Any], dict[int, tuple[str, int | None]]]:
    """Rows of every kind, and of those that must go the reason and the row named with it."""
    rows: list[Any] = [
        clean(0),
        clean(1),
        clean(0),  # 3: again
        near(clean(1)),  # 4
        clean(2),
        swapped(clean(2)),  # 5 and 6 contradict each other
        clean(2),  # 7 is as 5
        '{"prompt": "cut off',  # 8
        {**clean(3), "chosen": " "},  # 9
        {**clean(4), "chosen": f"Use {KEY} there. {clean(4)['chosen']}"},  # 10
        {**clean(5), "rejected": f"Write to jane.doe@gmail.com. {clean(5)['rejected']}"},  # 11
        {**clean(6), "prompt": f"Say: {sentences('benchmark', 2)}"},  # 12
        {**clean(7), "score": 1.50, "note": "a line\u2028separator"},
        near(near(clean(1))),  # 14
        near(clean(1)),  # 15 is as 4, which is nearly 2
    ]
    expected: dict[int, tuple[str, int | None]] = {
        3: ("duplicate", 1),
        4: ("near_duplicate", 2),
        5: ("contradiction", 6),
        6: ("contradiction", 7),
        7: ("contradiction", 6),
        8: ("unusable", None),
        9: ("unusable", None),
        10: ("secret", None),
        11: ("personal", None),
        12: ("overlap", None),
        14: ("near_duplicate", 2),
        15: ("near_duplicate", 2),
    }
    return rows, expected


def test_each_row_goes_for_its_reason_and_names_the_row_it_repeats(tmp_path: Path, benchmark_file: Path) -> None:
    rows, expected = golden()
    found = find_removals(write(tmp_path / "rows.jsonl", rows), ALL, against=[benchmark_file])
    assert {number: (r.reason, r.other) for number, r in found.removed.items()} == expected
    assert found.rows == len(rows)


@pytest.mark.parametrize("drop", [d for d in ALL if d != "overlap"])
def test_only_what_is_asked_for_goes(tmp_path: Path, drop: Drop) -> None:
    rows, _ = golden()
    found = find_removals(write(tmp_path / "rows.jsonl", rows), (drop,))
    assert {r.reason + "s" for r in found.removed.values()} <= {drop, f"{drop}s"}
    assert found.removed


def test_what_stays_is_copied_byte_for_byte_and_what_goes_is_told(tmp_path: Path, benchmark_file: Path) -> None:
    rows, expected = golden()
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "clean.jsonl"
    done = run_clean(source, out, drop=ALL, against=[benchmark_file])
    before = source.read_bytes().split(b"\n")
    stay = [number for number in range(1, len(rows) + 1) if number not in expected]
    assert out.read_bytes() == b"".join(before[number - 1] + b"\n" for number in stay)
    removed = lines(Path(done.removed_file))
    assert [(r["line"], r["reason"]) for r in removed] == [(n, reason) for n, (reason, _) in expected.items()]
    for row in removed:
        other = row.get("repeats", row.get("contradicts"))
        assert other == expected[row["line"]][1]
        if "repeats" in row:
            assert row["repeats"] in stay
        if row["reason"] not in ("secret", "personal"):
            assert row["content"] == rows[row["line"] - 1]
    assert done.kept + sum(done.removed.values()) == done.rows == len(rows)
    assert done.removed == Counter(reason for reason, _ in expected.values())


def test_a_secret_is_not_written_down_again(tmp_path: Path) -> None:
    rows, _ = golden()
    run_clean(write(tmp_path / "rows.jsonl", rows), tmp_path / "clean.jsonl", drop=("secrets", "personal"))
    written = (tmp_path / "clean.jsonl").read_text() + (tmp_path / "clean.removed.jsonl").read_text()
    assert KEY not in written
    assert "jane.doe" not in written


def test_after_cleaning_the_doctor_finds_nothing_of_it(tmp_path: Path, benchmark_file: Path) -> None:
    rows, _ = golden()
    run_clean(write(tmp_path / "rows.jsonl", rows), tmp_path / "clean.jsonl", drop=ALL, against=[benchmark_file])
    report = examine(tmp_path / "clean.jsonl", against=[benchmark_file])
    assert report.findings == []


def test_of_a_chain_where_only_neighbours_are_alike_the_ends_stay() -> None:
    text = words(sentences("chain", 12))
    sketches = Sketches()
    for start in (0, 5, 10, 15):
        sketches.add(text[start : start + 60])
    assert sketches.repeats([0, 1, 2, 3]) == {1: 0, 3: 2}
    assert sketches.groups([0, 1, 2, 3]) == [[0, 1, 2, 3]]


def test_pairs_of_a_ranking_with_a_long_answer_in_common_are_not_nearly_the_same(tmp_path: Path) -> None:
    best, prompt = sentences("best", 12), "Why?"
    others = [sentences("worse", 1), sentences("worst", 1), "No."]
    rows = [{"prompt": prompt, "chosen": best, "rejected": other} for other in others]
    rows.append({"prompt": prompt, "chosen": f"{best} Really.", "rejected": "No."})
    found = find_removals(write(tmp_path / "rows.jsonl", rows), ["near_duplicates"])
    assert {number: r.other for number, r in found.removed.items()} == {4: 3}


def test_a_dialogue_that_ends_in_a_question_has_all_of_its_answer(tmp_path: Path) -> None:
    prompt = f"Hello.\n\nAssistant: {sentences('said', 12)}\n\nHuman: Why?"
    rows = [{"prompt": prompt, "chosen": sentences(f"c{i}", 2), "rejected": sentences(f"r{i}", 2)} for i in range(2)]
    assert not find_removals(write(tmp_path / "rows.jsonl", rows), ["near_duplicates"]).removed


pieces = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["as is", "near", "swapped", "short", "empty", "broken"])), min_size=1
)


def made(number: int, kind: str) -> Any:
    row = clean(number)
    if kind == "broken":
        return "{"
    if kind == "empty":
        return {**row, "rejected": ""}
    if kind == "short":
        return {**row, "chosen": "Yes.", "rejected": "No."}
    return {"as is": row, "near": near(row), "swapped": swapped(row)}[kind]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces, st.sets(st.sampled_from([d for d in ALL if d != "overlap"])))
def test_kept_and_removed_are_all_rows_and_a_second_time_takes_out_nothing(
    tmp_path: Path, of: list[tuple[int, str]], drop: set[Drop]
) -> None:
    source = write(tmp_path / "rows.jsonl", [clean(99), *(made(*piece) for piece in of)])
    out = tmp_path / "clean.jsonl"
    for old in (out, tmp_path / "clean.removed.jsonl"):
        old.unlink(missing_ok=True)
    done = run_clean(source, out, drop=drop)
    kept, removed = out.read_text().split("\n")[:-1], lines(tmp_path / "clean.removed.jsonl")
    assert (len(kept), len(removed)) == (done.kept, sum(done.removed.values()))
    assert done.kept + len(removed) == len(of) + 1
    gone = {row["line"] for row in removed}
    assert kept == [line for n, line in enumerate(source.read_text().split("\n")[:-1], start=1) if n not in gone]
    assert not find_removals(out, drop).removed
    still = {finding.kind for finding in examine(out).findings}
    for name, kinds in {
        "unusable": {"schema", "empty_answer"},
        "duplicates": {"duplicate"},
        "contradictions": {"contradiction"},
        "near_duplicates": {"near_duplicate"},
    }.items():
        assert name not in drop or not still & kinds


# -------------------------------------------------------------------------------------------------------- formats

ROWS = [{**row, "score": i / 4} for i, row in enumerate([*CLEAN[:6], CLEAN[2], swapped(CLEAN[4]), *CLEAN[6:8]])]
GONE = {5: "contradiction", 7: "duplicate", 8: "contradiction"}


def in_format(path: Path) -> Path:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return write(path, ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif path.suffix == ".csv":
        path.write_text("".join(",".join(f'"{cell}"' for cell in row.values()) + "\r\n" for row in [HEADER, *ROWS]))
    else:
        table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"made by": "somebody"})
        pq.write_table(table, path, row_group_size=4)
    return path


HEADER = {key: key for key in ROWS[0]}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_every_format_loses_the_same_rows_and_keeps_every_column(tmp_path: Path, ending: str) -> None:
    source, out = in_format(tmp_path / f"rows{ending}"), tmp_path / f"clean{ending}"
    done = run_clean(source, out, drop=("duplicates", "contradictions"))
    unit = "line" if "jsonl" in ending else "row"
    assert {r[unit]: r["reason"] for r in lines(tmp_path / "clean.removed.jsonl")} == GONE
    assert done.kept == len(ROWS) - 3
    stay = [row for n, row in enumerate(ROWS, start=1) if n not in GONE]
    if ending == ".parquet":
        table = pq.read_table(out)
        assert table.to_pylist() == stay
        assert table.schema.equals(pq.read_schema(source), check_metadata=True)
    elif ending == ".csv":
        assert out.read_text().splitlines()[0] == ",".join(HEADER)
        assert [pair.chosen for pair in read_preferences(str(out)).pairs] == [row["chosen"] for row in stay]
    else:
        assert (json.loads(out.read_text()) if ending == ".json" else lines(out)) == stay


def test_a_data_set_folder_becomes_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    run_clean(tmp_path / "saved", tmp_path / "clean", drop=("duplicates", "contradictions"))
    stay = [row for n, row in enumerate(ROWS, start=1) if n not in GONE]
    assert datasets.load_from_disk(str(tmp_path / "clean")).to_list() == stay
    (tmp_path / "folder").mkdir()
    in_format(tmp_path / "folder" / "train.parquet")
    run_clean(tmp_path / "folder", tmp_path / "other", drop=("duplicates", "contradictions"))
    assert pq.read_table(tmp_path / "other" / "train.parquet").to_pylist() == stay


def test_a_run_folder_becomes_a_folder_with_its_data_and_card(tmp_path: Path) -> None:
    running.run(tmp_path, [f"Question {i}?" for i in range(8)], pairing={"strategy": "all"})
    source, out = tmp_path / "run", tmp_path / "clean"
    pairs = (source / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    (source / "pairs.jsonl").write_bytes(b"".join([*pairs, *pairs[:5]]))
    done = run_clean(source, out)
    assert done.removed == {"duplicate": 5}
    assert (out / "pairs.jsonl").read_bytes() == b"".join(pairs)
    assert pq.read_table(out / "data" / "train.parquet").num_rows == len(pairs)
    assert "| duplicate, taken out afterwards | 5 |" in (out / "data" / "README.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["cleaned"] == [{"removed": {"duplicate": 5}, "against": []}]
    assert examine(out).pairs == len(pairs)
    run_clean(out, tmp_path / "again")
    assert (tmp_path / "again" / "pairs.jsonl").read_bytes() == b"".join(pairs)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("there", ["clean.jsonl", "clean.removed.jsonl"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, there: str) -> None:
    source = write(tmp_path / "rows.jsonl", CLEAN)
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        run_clean(source, tmp_path / "clean.jsonl")
    assert (tmp_path / there).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("clean.csv", r"ends in \.jsonl"),
        ("clean", r"ends in \.jsonl"),
        ("no/such/clean.jsonl", "no such folder"),
    ],
)
def test_another_format_or_place_is_refused(tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_clean(write(tmp_path / "rows.jsonl", CLEAN), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_of_no_known_format_is_named_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows: not a preference file"):
        run_clean(write(tmp_path / "rows", CLEAN), tmp_path / "clean.jsonl")


def test_overlap_needs_a_benchmark_and_a_benchmark_is_for_overlap(tmp_path: Path, benchmark_file: Path) -> None:
    source = write(tmp_path / "rows.jsonl", CLEAN)
    cases: list[tuple[Drop, list[Path]]] = [("overlap", []), ("duplicates", [benchmark_file])]
    for drop, against in cases:
        with pytest.raises(InputError, match="--against"):
            run_clean(source, tmp_path / "clean.jsonl", drop=(drop,), against=against)


def test_where_no_row_stays_all_is_written_and_the_gate_fails(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [clean(0), swapped(clean(0))])
    with pytest.raises(QualityError, match="none of the 2 rows stays"):
        run_clean(source, tmp_path / "clean.jsonl", drop=["contradictions"])
    assert len(lines(tmp_path / "clean.removed.jsonl")) == 2


def test_the_command_tells_the_counts_and_refuses_an_unknown_reason(tmp_path: Path, benchmark_file: Path) -> None:
    rows, _ = golden()
    source = write(tmp_path / "rows.jsonl", rows)
    command = ["data", "clean", str(source), "--out", str(tmp_path / "clean.jsonl"), "--against", str(benchmark_file)]
    result = CliRunner().invoke(rlaif, [*command, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["removed"] == {"duplicate": 2, "near_duplicate": 3, "overlap": 1, "unusable": 2}
    assert told["kept"] + sum(told["removed"].values()) == told["rows"] == len(rows)
    result = CliRunner().invoke(rlaif, [*command, "--drop", "duplicates,dupes"])
    assert result.exit_code == 2
    assert "'dupes' is none of duplicates, near_duplicates" in result.output
