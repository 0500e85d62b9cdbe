"""What a generate run leaves out of its data, that the sums hold, and what the card of the data says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from rlaif.config.dataset import DatasetConfig
from rlaif.data_doctor import examine
from rlaif.errors import InputError
from rlaif.hashing import uniform
from rlaif.types import ChatRequest
from tests import fakes, running
from tests.running import dropped, judgements, rows, run
from tests.test_data_doctor import KEY, sentences, write

PROMPTS = [f"Question {i}?" for i in range(8)]
EVERYTHING = ["duplicates", "near_duplicates", "contradictions", "overlap", "secrets", "personal"]


def policy(request: ChatRequest) -> str:
    """One of five texts for each prompt, so that samples repeat: of these one holds a key, one a mail address, one a
    passage of the benchmark, and two are nearly the same."""
    fakes.SENT.append(request)
    question = request.messages[-1].content
    which = int(uniform("which", request.seed) * 5)
    body = sentences(f"{question} {3 if which == 4 else which}", 1)
    extra = {0: f"Use {KEY}.", 1: "Write to jane.doe@gmail.com.", 2: sentences("benchmark", 2), 3: "", 4: "Yes."}
    return f"quality {100 + 100 * which}\n{body} {extra[which]}"


@pytest.fixture
def benchmark_file(tmp_path: Path) -> Path:
    return write(tmp_path / "benchmark.jsonl", [{"question": sentences("benchmark", 3)}])


def go(folder: Path, **dataset: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"policy_settings": {"model": "scripted:tests.test_data_of_runs:policy", "n": 6}}
    settings = {"dataset": dataset} if dataset else {}
    return run(folder, PROMPTS, pairing={"strategy": "all"}, **values, **settings).manifest


def test_by_default_a_pair_with_the_same_texts_is_left_out_once_and_the_sums_hold(tmp_path: Path) -> None:
    made = go(tmp_path)["counts"]["comparisons"]
    pairs = rows(tmp_path, "pairs")
    texts = [json.dumps([p["prompt"], p["chosen"], p["rejected"]]) for p in pairs]
    assert len(set(texts)) == len(texts) == made["pairs"]
    reasons = Counter(d.reason for d in dropped(tmp_path))
    assert reasons["duplicate"] > 20
    assert made["dropped"] == {key: n for key, n in sorted(reasons.items()) if key in made["dropped"]}
    assert made["planned"] == made["pairs"] + sum(made["dropped"].values()) == 8 * 15
    assert pq.read_table(tmp_path / "run" / "data" / "train.parquet").num_rows == made["pairs"]
    judged = {(j.a, j.b) for j in judgements(tmp_path)}
    known = {(p["chosen_id"], p["rejected_id"]) for p in pairs}
    for d in dropped(tmp_path):
        if d.reason == "duplicate":
            assert {(d.a, d.b), (d.b, d.a)} & judged
            staying = d.detail.partition("duplicate of ")[2].split(" over ")
            assert tuple(staying) in known


def test_nothing_is_left_out_where_nothing_is_to_be(tmp_path: Path) -> None:
    counts = go(tmp_path, drop=[])["counts"]["comparisons"]
    assert set(counts["dropped"]) == {"identical"}
    assert examine(tmp_path / "run").figures["distinct_prompts"] == 8


def test_all_that_is_asked_for_is_left_out_and_a_second_run_sends_nothing_and_writes_the_same(
    tmp_path: Path, benchmark_file: Path
) -> None:
    settings: dict[str, Any] = {"drop": EVERYTHING, "against": [str(benchmark_file)]}
    counts = go(tmp_path, **settings)["counts"]["comparisons"]
    assert {"duplicate", "overlap", "secret", "personal"} <= set(counts["dropped"])
    assert counts["planned"] == counts["pairs"] + sum(counts["dropped"].values())
    report = examine(tmp_path / "run", against=[benchmark_file])
    kinds = {"duplicate", "near_duplicate", "contradiction", "benchmark", "secret", "personal"}
    assert not kinds & {f.kind for f in report.findings}
    assert KEY not in (tmp_path / "run" / "dropped.jsonl").read_text()
    first = {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix in (".jsonl", ".parquet", ".md")}
    go(tmp_path, **settings)
    assert fakes.SENT == []
    assert first == {
        p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix in (".jsonl", ".parquet", ".md")
    }


def test_what_is_left_out_may_change_later_and_sends_nothing(tmp_path: Path) -> None:
    go(tmp_path)
    few = len(rows(tmp_path, "pairs"))
    go(tmp_path, drop=[])
    assert fakes.SENT == []
    assert len(rows(tmp_path, "pairs")) > few
    go(tmp_path, drop=["secrets"])
    assert fakes.SENT == []


def test_a_judge_that_contradicts_itself_leaves_no_pair_both_ways(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "policy_settings": {"model": "scripted:tests.test_data_of_runs:policy", "n": 6},
        "judge_settings": {"models": ["scripted:tests.fakes:judge_always_first"], "orders": "one"},
        "pairing": {"strategy": "all"},
    }
    run(tmp_path, PROMPTS, **values, dataset={"drop": ["duplicates", "contradictions"]})
    texts = {
        (json.dumps(p["prompt"]), *(p[k][0]["content"] for k in ("chosen", "rejected")))
        for p in rows(tmp_path, "pairs")
    }
    assert not texts & {(prompt, b, a) for prompt, a, b in texts}
    assert Counter(d.reason for d in dropped(tmp_path))["contradiction"] > 0


def test_a_benchmark_that_is_none_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        go(tmp_path, against=[str(tmp_path / "missing.jsonl")])
    assert fakes.SENT == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drop": ["overlap"]}, "needs files to compare with"),
        ({"drop": ["unusable"]}, "made elsewhere"),
        ({"drop": ["dupes"]}, "near_duplicates"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetConfig.model_validate(values)


def test_a_benchmark_is_left_out_by_default_where_one_is_named(tmp_path: Path) -> None:
    assert DatasetConfig().dropped == ("duplicates",)
    assert DatasetConfig(against=(tmp_path,)).dropped == ("duplicates", "overlap")
    assert DatasetConfig(against=(tmp_path,), drop=("secrets",)).dropped == ("secrets",)


def test_the_card_says_all_there_is_to_say(tmp_path: Path, benchmark_file: Path) -> None:
    manifest = go(tmp_path, drop=["duplicates"], against=[str(benchmark_file)])
    card = (tmp_path / "run" / "data" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "license" not in front
    assert "# license:" in card
    assert front["size_categories"] == ["n<1K"]
    counts, report = manifest["counts"]["comparisons"], examine(tmp_path / "run", against=[benchmark_file])
    found = {f.kind: f for f in report.findings}
    longer = report.figures["longer_wins_characters"]
    for piece in (
        f"# {counts['pairs']} preference pairs",
        f"| duplicate | {counts['dropped']['duplicate']} |",
        f"| together | {counts['planned']} |",
        manifest["constitution"]["digest"],
        "| judged by | scripted:tests.fakes:judge |",
        "| seed | 0 |",
        "| cost | $0.0000 |",
        f"right in {longer['accuracy']:.1%} of the pairs",
        "Repeats: 0 duplicates, 0 near-duplicates, 0 contradictions.",
        f"{found['secret'].count} rows with a key or token, {found['personal'].count} rows with personal data",
        f"| {', '.join(map(str, found['secret'].rows))} |",
        "| with refusals | 0.0% | 0.0% |",
        f"Overlap with {benchmark_file.name}: share a long passage",
        "load_dataset(",
    ):
        assert piece in card, piece
    assert KEY not in card
    assert str(tmp_path) not in card
    assert manifest["data"]["figures"]["longer_wins_characters"] == longer


def test_the_card_of_a_run_can_be_read_by_the_library_it_is_for(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    go(tmp_path)
    loaded = datasets.load_dataset(str(tmp_path / "run" / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == len(rows(tmp_path, "pairs"))


# ------------------------------------------------------------------------------------- run folders of other versions


def stored(folder: Path, without: list[str]) -> None:
    """Take keys out of the config that the run folder keeps, as if it was made before there were such."""
    path = folder / "run" / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for key in without:
        place, *rest = key.split(".")
        values.pop(place) if not rest else values[place].pop(rest[0])
    path.write_text(yaml.safe_dump(values))


NEWER = ["dataset", "judge.panel", "judge.group", "judge.sure", "judge.audit", "judge.rubric", "judge.both_bad"]


def test_a_key_that_came_after_a_run_is_its_default_there(tmp_path: Path) -> None:
    running.run(tmp_path, PROMPTS)
    stored(tmp_path, NEWER)
    running.run(tmp_path)
    assert fakes.SENT == []
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["judge"]["panel"] == "mean"


def test_such_a_key_at_another_value_is_another_config(tmp_path: Path) -> None:
    running.run(tmp_path, PROMPTS[:2])
    stored(tmp_path, [*NEWER, "judge.orders"])
    with pytest.raises(InputError, match=r"different: judge\.orders\)"):
        running.run(tmp_path, judge_settings={"orders": "one"})


def test_a_stored_key_that_is_none_any_more_is_named(tmp_path: Path) -> None:
    running.run(tmp_path, PROMPTS[:2])
    path = tmp_path / "run" / "config.yaml"
    path.write_text(f"{path.read_text()}old_switch: true\n")
    with pytest.raises(InputError, match=r"different: old_switch\)"):
        running.run(tmp_path)


def test_a_run_made_by_an_early_version_goes_on(tmp_path: Path) -> None:
    running.run(tmp_path, PROMPTS[:2], judge_settings={"ties": False})
    (tmp_path / "run" / "config.yaml").write_text(EARLY.replace("FOLDER", str(tmp_path)))
    running.run(tmp_path, judge_settings={"ties": False})
    assert fakes.SENT == []


# A config.yaml as version 0.1.0 wrote it before there were panels, rubrics, rewards and revisions.
EARLY = """
prompts: FOLDER/prompts.jsonl
constitution: FOLDER/constitution.yaml
policy:
  model: {model: "scripted:tests.fakes:policy", base_url: null, api_key_env: null, rpm: null, tpm: null,
    max_concurrency: null, timeout: 600.0, logprobs: null, options: {}, price: null, transport: online, batch: null}
  completions: null
  n: 4
  temperature: 0.8
  top_p: 1.0
  max_tokens: 1024
  system: null
judge:
  type: pairwise
  models:
  - {model: "scripted:tests.fakes:judge", base_url: null, api_key_env: null, rpm: null, tpm: null,
    max_concurrency: null, timeout: 600.0, logprobs: false, options: {}, price: null, transport: online, batch: null}
  orders: both
  labels: auto
  rationale: false
  principles: sample
  comparisons: all
  ties: false
  template: pairwise
  temperature: 0.0
  max_tokens: 512
  min_label_mass: 0.05
pairing: {strategy: best_worst, min_margin: 0.0, margin: 0.5, require_agreement: false}
seed: 0
out: FOLDER/run
max_cost: null
max_unjudged: 0.1
prompts_in_flight: 64
"""
