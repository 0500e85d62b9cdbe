import csv
import gzip
import itertools
import json
import os
import random
import time
import tracemalloc
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.cli import rlaif
from rlaif.data_doctor import Report, examine, sensitive
from rlaif.data_doctor.balance import Lean
from rlaif.data_doctor.checks import is_cut
from rlaif.data_doctor.report import KINDS, wilson
from rlaif.data_doctor.similar import Sketches, words
from rlaif.errors import InputError

DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
shared_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data (RLAIF_DATA)")

NOUNS = words(
    "river teacher garden window engine letter market doctor bridge summer kitchen mountain paper student island clock"
    " village candle forest harbour painter station orchard library farmer shadow valley bottle soldier blanket"
)
VERBS = words("finds carries follows remembers paints repairs watches visits describes protects measures collects")
ADJECTIVES = words("quiet green broken early golden narrow distant patient heavy simple ancient careful bright")


def sentences(key: str, n: int) -> str:
    """English of a kind: n sentences of nine words that no other key gives."""
    draw = random.Random(key)
    return " ".join(
        f"The {draw.choice(ADJECTIVES)} {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(ADJECTIVES)}"
        f" {draw.choice(NOUNS)} near the {draw.choice(NOUNS)}."
        for _ in range(n)
    )


def clean(i: int) -> dict[str, Any]:
    """A row with nothing wrong; the answers are of 3 to 6 sentences, the longer one chosen in every second row."""
    longer, shorter = sentences(f"longer {i}", 5 + i % 2), sentences(f"shorter {i}", 3 + i % 2)
    chosen, rejected = (longer, shorter) if i % 2 else (shorter, longer)
    return {"prompt": f"{sentences(f'prompt {i}', 2)} Why?", "chosen": chosen, "rejected": rejected}


def write(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def found(report: Report) -> dict[str, list[int]]:
    return {finding.kind: finding.rows for finding in report.findings}


CLEAN = [clean(i) for i in range(40)]
GERMAN = (
    "Der alte Garten liegt hinter dem Haus und im Sommer sitzen wir dort jeden Abend zusammen unter den Bäumen. Die"
    " Kinder spielen am Bach, während die Großeltern von früher erzählen."
)
KEY = "sk-proj-" + "a8Kq2Lm9Zx7Wv5Tr3Bn1"  # not in one piece, so that scanners of this repository stay quiet


def golden() -> tuple[list[Any], dict[str, list[int]]]:
    """Rows with one of each problem after 40 clean ones, and the lines where each must be found."""
    rows: list[Any] = [{**row, "prob_chosen": 0.9} for row in CLEAN]
    expected: dict[str, list[int]] = {}
    unused = itertools.count(100)

    def bad(kind: str, row: Any, *others: Any) -> None:
        rows.extend([row, *others])
        expected[kind] = [len(rows)]

    def new(**changed: Any) -> dict[str, Any]:
        return {**clean(next(unused)), **changed}

    bad("schema", '{"prompt": "cut off')
    bad("mixed_format", {k: [{"role": "user", "content": v}] for k, v in new().items()})
    bad("identical", new(chosen="The same words.", rejected="The same words."))
    expected["identical"] += [len(rows) + 1]
    rows.append(new(chosen="The same words.", rejected=" The same words.\n"))
    bad("empty_answer", new(chosen=" \n"))
    bad("no_prompt", new(prompt=""))
    bad("duplicate", rows[4])
    one = new()
    bad("contradiction", one, {**one, "chosen": one["rejected"], "rejected": one["chosen"]})
    expected["contradiction"] = [len(rows) - 1, len(rows)]
    near = new()
    answers = {key: near[key].replace(near[key].split()[-1], "sea.") for key in ("chosen", "rejected")}
    bad("near_duplicate", near, new(**answers))
    prompt = sentences("a long prompt", 6)
    bad("near_prompt", new(prompt=prompt), new(prompt=f"{prompt} Why?"))
    first = new()
    bad("both_roles", first, new(prompt=first["prompt"], rejected=first["chosen"]))
    expected["both_roles"] = [len(rows) - 1, len(rows)]
    first = new()
    a, b, c = first["chosen"], first["rejected"], sentences("third", 4)
    bad("circle", first, {**first, "chosen": b, "rejected": c}, {**first, "chosen": c, "rejected": a})
    expected["circle"] = [len(rows) - 2, len(rows) - 1, len(rows)]
    bad("repeated_prompt", new(prompt=CLEAN[7]["prompt"]))
    bad("secret", new(chosen=f"{sentences('secret', 4)} Use {KEY} there."))
    bad("personal", new(rejected=f"{sentences('mail', 4)} Write to jane.doe@gmail.com today."))
    bad("language", new(chosen=GERMAN))
    bad("truncated", new(chosen=sentences("cut", 5).rsplit(" ", 3)[0]))
    bad("long", new(prompt=sentences("long", 200)))
    bad("label_range", new(prob_chosen=1.5))
    bad("label_side", new(prob_chosen=0.2))
    bad("tie", new(prob_chosen=0.5))
    bad("benchmark", new(prompt=f"{sentences('around', 1)} {sentences('benchmark', 2)}"))
    return rows, expected


@pytest.fixture
def benchmark_file(tmp_path: Path) -> Path:
    return write(tmp_path / "benchmark.jsonl.gz", [{"question": sentences("benchmark", 3), "meta": {"answer": "7"}}])


# ------------------------------------------------------------------------------------------------- what is found


def test_each_problem_is_found_where_it_is_and_nothing_else(tmp_path: Path, benchmark_file: Path) -> None:
    pytest.importorskip("langdetect")
    rows, expected = golden()
    report = examine(write(tmp_path / "bad.jsonl", rows), against=[benchmark_file])
    assert found(report) == expected
    assert set(KINDS) - set(expected) == {"length_bias", "style_bias", "refusal_bias"}  # these are of a whole file
    assert {f.kind: f.severity for f in report.findings} == {kind: KINDS[kind].severity for kind in expected}
    order = [f.severity for f in report.findings]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert report.rows == len(rows)
    assert report.pairs == len(rows) - 5  # no JSON, identical twice, empty, no prompt
    assert not report.ok()


def test_a_clean_file_has_nothing_flagged(tmp_path: Path, benchmark_file: Path) -> None:
    report = examine(write(tmp_path / "clean.jsonl", CLEAN), against=[benchmark_file])
    assert report.findings == []
    assert report.ok(strict=True)
    assert report.figures["distinct_prompts"] == len(CLEAN)


def test_what_decides_a_whole_file_is_told(tmp_path: Path) -> None:
    listed = [
        {**row, "chosen": "\n".join(f"- {part}" for part in row["chosen"].split(". "))} for row in map(clean, range(60))
    ]
    refusing = [{**clean(i), "rejected": "I'm sorry, but I cannot help with that."} for i in range(0, 120, 2)]
    assert set(found(examine(write(tmp_path / "lists.jsonl", listed)))) == {"style_bias"}
    report = examine(write(tmp_path / "refusals.jsonl", refusing))
    assert set(found(report)) == {"refusal_bias", "length_bias"}
    assert report.figures["refusals"]["rejected_share"] == 1.0
    longer = [clean(i) for i in range(1, 120, 2)]
    (finding,) = examine(write(tmp_path / "longer.jsonl", longer)).findings
    assert (finding.kind, finding.count) == ("length_bias", 60)
    assert "longer" in finding.text


def test_the_interval_is_wilsons() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Brown, Cai & DasGupta 2001
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    lean = Lean()
    for chosen, rejected in ((3, 1), (2, 2), (0, 4), (5, 1)):
        lean.add(chosen, rejected)
    assert lean.baseline()["accuracy"] == 2.5 / 4
    assert lean.decided()["chosen_has_more"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"key = {KEY}", "api_key"),
        ("AKIA" + "Q7RZ2WX9LM4N8PTV", "aws_key"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "private_key"),
        ("token ghp" + "_16C7e42F292c6912E7710c838347Ae178B4a", "github_token"),
        ("postgres://admin:s3cr3tPw@db.local/x", "url_password"),
        ("pay with 4539 1488 0343 6467 now", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00, please", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("call +49 30 901820 or so", "phone"),
        ("call (212) 736-5000.", "phone"),
        ("378282246310005", "card"),
        ("2a00:1450:4001:0829:0000:0000:0000:200e", "ip"),
        ("ping 93.184.216.34", "ip"),
        ("write to jane@gmail.com.", "email"),
    ],
)
def test_sensitive_data_is_found(text: str, name: str) -> None:
    assert {hit.name for hit in sensitive.find(text)} == {name}


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
        "the ski-resort sk-is-a-prefix",
        "pay with 4539 1488 0343 6468 now",  # Luhn fails
        "DE89 3704 0044 0532 0130 01",  # mod 97 fails
        "see section 1.2.3.4 and 10.0.0.1, 127.0.0.1, 300.1.1.1",
        "user@example.com",
        "someone@example.co.uk",
        "it is 1.4539148803436467 or 0.6363636363636365",
        "1:9:36:84:126:126:84:36",
        "1200+21000-6300",
        "call 212-555-0142",
        "in 1914-1918 and 2020-2021, 3.14159265358979, 1700000000000",
        "299 792 458 metres, 6 283 185 307",
        "https://example.org/a:b@c",
    ],
)
def test_what_only_looks_sensitive_is_not(text: str) -> None:
    assert sensitive.find(text) == set()


def test_no_secret_is_repeated_in_the_report(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{**clean(1), "chosen": f"It is {KEY}."}])
    assert KEY not in examine(path).model_dump_json()


@pytest.mark.parametrize("unit", ["a", "1", "1 ", "a@", "4-", "A1", "eyJ", "1.", "://", "+1 ", "- "])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    begun = time.process_time()
    sensitive.find(unit * (200_000 // len(unit)))
    assert time.process_time() - begun < 5  # a pattern that backtracks takes hours


def test_a_text_that_stops_in_mid_sentence_is_told_from_one_that_ends() -> None:
    text = sentences("any", 3)
    assert not is_cut(text)
    assert is_cut(text[:-1])
    assert is_cut("```python\nx = 1\n")
    assert not is_cut(text + "\n\nSincerely yours")
    assert not is_cut(text + "\n" + "one two three four five six seven\neight nine ten eleven twelve thirteen")
    assert not is_cut("no")
    assert not is_cut("")


# --------------------------------------------------------------------------------------------------------- laws


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_count(tmp_path: Path, draw: random.Random) -> None:
    rows, _ = golden()
    one = examine(write(tmp_path / "rows.jsonl", rows))
    draw.shuffle(rows)
    other = examine(write(tmp_path / "rows.jsonl", rows))
    assert [(f.kind, f.count, f.share, f.text) for f in one.findings] == [
        (f.kind, f.count, f.share, f.text) for f in other.findings
    ]
    assert _rounded(one.figures) == _rounded(other.figures)


def _rounded(value: Any) -> Any:
    """Sums of numbers depend on their order in the last digit."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 9) if isinstance(value, float) else value


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 39), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_repeated_row_is_found_wherever_it_stands(tmp_path: Path, again: list[int], draw: random.Random) -> None:
    rows = CLEAN + [CLEAN[i] for i in again]
    draw.shuffle(rows)
    (finding,) = examine(write(tmp_path / "rows.jsonl", rows)).findings
    assert (finding.kind, finding.count) == ("duplicate", len(again))


@given(st.lists(st.sampled_from(NOUNS), min_size=40, max_size=80), st.integers(0, 10**6))
def test_resemblance_is_told_as_by_the_sets_themselves(tokens: list[str], place: int) -> None:
    other = list(tokens)
    other[place % len(other)] = "elsewhere"
    grams = [{tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in (tokens, other)]
    resemblance = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    sketches = Sketches()
    sketches.add(tokens)
    sketches.add(other)
    if min(map(len, grams)) >= 10 and len(grams[0] | grams[1]) <= 64:  # where a sketch holds the whole set
        assert bool(sketches.groups([0, 1])) == (resemblance >= 0.8)


@given(st.text())
def test_words_are_found_in_any_text(text: str) -> None:
    tokens = words(text)
    assert all(token and not any(map(str.isspace, token)) for token in tokens)
    assert bool(tokens) or not any(c.isalpha() and unicodedata.category(c) != "Lm" for c in text)


# ------------------------------------------------------------------------------------------------ files and exits


def test_every_format_and_file_says_the_same(tmp_path: Path) -> None:
    rows = [*CLEAN, CLEAN[3]]
    chat = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
        }
        for row in rows
    ]
    whole = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in chat]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(chat), tmp_path / "a.parquet")
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "pairs.jsonl", chat)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    write(tmp_path / "a.jsonl.gz", rows)
    for name in ("a.csv", "a.parquet", "run", "a.json", "a.jsonl.gz"):
        report = examine(tmp_path / name)
        assert found(report) == {"duplicate": [41]}, name
        assert report.pairs == 41


def test_a_dialogue_as_one_text_is_judged_by_its_last_turn(tmp_path: Path) -> None:
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: I cannot help with that, sorry.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: I cannot help with that, but here is a list of others.",
    }
    report = examine(write(tmp_path / "a.jsonl", [row]))
    assert report.figures["refusals"]["chosen_share"] == 1.0


def test_only_rows_that_are_part_of_a_circle_are_told(tmp_path: Path) -> None:
    texts = {name: sentences(f"answer {name}", 4) for name in "abcdef"}
    prefers = ["ab", "bc", "ca", "cd", "de", "df", "ef"]  # a circle, and a ranking that hangs on it
    rows = [{"prompt": "Why?", "chosen": texts[xy[0]], "rejected": texts[xy[1]]} for xy in prefers]
    assert found(examine(write(tmp_path / "a.jsonl", rows))) == {
        "circle": [1, 2, 3],
        "both_roles": [4, 5, 6, 7],
    }


def test_the_card_holds_the_summary_once(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    (run_folder / "data").mkdir(parents=True)
    card = run_folder / "data" / "README.md"
    card.write_text("# Pairs\n")
    write(run_folder / "pairs.jsonl", [*CLEAN, CLEAN[0]])
    assert run(str(run_folder), "--card").exit_code == 0
    once = card.read_text()
    assert once.startswith("# Pairs\n\n")
    assert "| warning | 1 | 2.4% | repeat an earlier row |" in once
    assert run(str(run_folder), "--card").exit_code == 0
    assert card.read_text() == once
    with pytest.raises(InputError, match="no card"):
        rlaif.main(["data", "doctor", str(run_folder / "pairs.jsonl"), "--card"], standalone_mode=False)


def test_memory_holds_hashes_and_not_the_texts(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(noun * 40 for noun in draw.choices(NOUNS, k=30)) for _ in range(1000)]  # few words, long ones
    rows = ({"prompt": f"{i} {text}", "chosen": f"{i}", "rejected": text} for i, text in enumerate(texts))
    path = write(tmp_path / "a.jsonl", list(rows))
    examine(path, limit=1)  # patterns and profiles, once
    tracemalloc.start()
    examine(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 12e6
    assert peak < 1000 * len(texts) + 1e6


def test_labels_of_csv_are_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,chosen,rejected,prob_chosen\nWhy?,A.,B.,0.5\nHow?,C.,D.,high\nWho?,E.,F.,0.8\nWhen?,G.,H.,\n"
    )
    report = examine(path)
    assert found(report) == {"label_range": [2], "tie": [1]}
    assert report.figures["prob_chosen"] == {"min": 0.5, "max": 0.8, "mean": 0.65, "rows": 2}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(rlaif, ["data", "doctor", *arguments])


def test_the_exit_code_is_the_gates(tmp_path: Path) -> None:
    clean_file = str(write(tmp_path / "clean.jsonl", CLEAN))
    warned = str(write(tmp_path / "warned.jsonl", [*CLEAN, CLEAN[0]]))
    bad = str(write(tmp_path / "bad.jsonl", [*CLEAN, {**CLEAN[0], "chosen": ""}]))
    assert run(clean_file).exit_code == 0
    assert run(clean_file, "--strict").exit_code == 0
    assert run(warned).exit_code == 0
    assert run(warned, "--strict").exit_code == 3
    assert run(warned, "--strict", "--limit", "40").exit_code == 0
    told = run(bad)
    assert told.exit_code == 3
    assert "have an empty answer" in told.output
    assert "41" in told.output


def test_json_holds_everything(tmp_path: Path) -> None:
    report = json.loads(run(str(write(tmp_path / "a.jsonl", [*CLEAN, CLEAN[0]])), "--json").output)
    assert report["ok"] is True
    assert report["findings"][0]["rows"] == [41]
    assert {"accuracy", "low", "high"} <= set(report["figures"]["longer_wins_characters"])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a", "completion": "b"}, "supervised fine-tuning"),
        ({"prompt": "a", "completion": "b", "label": True}, "for `rlaif train kto`"),
        ({"prompt": "a", "response_a": "b", "response_b": "c"}, "name the better answer chosen"),
        ({"question": "a"}, "rlaif generate"),
    ],
)
def test_data_of_another_kind_is_named(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    with pytest.raises(InputError, match=kind):
        examine(write(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[1]\n", b"\x1f\x8b\x08"])
def test_a_file_without_rows_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl"):
        examine(path)


# --------------------------------------------------------------------------------------------------- real data


@shared_data
@pytest.mark.parametrize(
    ("name", "pairs", "longer", "errors"),
    [
        ("hh_helpful_test", 398, 0.646, {"empty_answer": 2}),
        ("hh_harmless_test", 399, 0.451, {"empty_answer": 1}),
        ("hh_train_heads_4x100", 393, 0.510, {"empty_answer": 1, "identical": 6}),
        ("hhh_alignment_221", 221, 0.633, {}),
    ],
)
def test_known_data_sets_are_told_as_they_are(name: str, pairs: int, longer: float, errors: dict[str, int]) -> None:
    report = examine(DATA / "preferences" / f"{name}.jsonl.gz")
    assert report.pairs == pairs
    assert {f.kind: f.count for f in report.findings if f.severity == "error"} == errors
    baseline = report.figures["longer_wins_characters"]
    assert baseline["accuracy"] == pytest.approx(longer, abs=5e-4)
    assert baseline["low"] < longer < baseline["high"]


@shared_data
def test_a_benchmark_finds_itself_and_not_the_other_half(tmp_path: Path) -> None:
    questions = DATA / "math" / "gsm8k_test.jsonl.gz"
    with gzip.open(questions) as lines:
        rows = [json.loads(line) for line in lines]
    taken = [{"prompt": row["question"], "chosen": f"It is {i}.", "rejected": "No."} for i, row in enumerate(rows[:99])]
    itself = examine(write(tmp_path / "a.jsonl", taken), against=[questions])
    assert [(f.kind, f.count) for f in itself.findings if f.severity == "error"] == [("benchmark", 99)]
    other = examine(write(tmp_path / "a.jsonl", taken), against=[DATA / "preferences" / "hh_helpful_test.jsonl.gz"])
    assert "benchmark" not in found(other)
