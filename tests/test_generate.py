"""A whole run, with models whose truth is known."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rlaif.errors import InputError, ProviderError, QualityError
from rlaif.judging.card import CheckConfig, check
from rlaif.types import Unjudged, Verdict
from tests import fakes, running
from tests.running import dropped, judgements, quality, rows, run

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(30)]


@pytest.mark.parametrize("judge", ["judge", "judge_with_rubbish", "judge_with_logprobs"])
@pytest.mark.parametrize("strategy", ["best_worst", "all"])
def test_every_label_of_a_judge_with_known_truth_comes_out_right(tmp_path: Path, judge: str, strategy: str) -> None:
    run(tmp_path, PROMPTS, judge=judge, pairing={"strategy": strategy})
    pairs = rows(tmp_path, "pairs")
    assert len(pairs) >= 25
    for pair in pairs:
        assert quality(pair["chosen"][0]["content"]) > quality(pair["rejected"][0]["content"])


@pytest.mark.parametrize("judge", ["judge", "judge_with_rubbish"])
def test_each_judgement_is_right_in_both_orders_and_rubbish_is_unjudged(tmp_path: Path, judge: str) -> None:
    run(tmp_path, PROMPTS, judge=judge)
    text = {c["id"]: c["text"] for c in rows(tmp_path, "completions")}
    seen: Counter[str] = Counter()
    for j in judgements(tmp_path):
        a, b = quality(text[j.a]), quality(text[j.b])
        if isinstance(j.outcome, Unjudged):
            seen["unjudged"] += 1
            continue
        assert j.outcome.choice == ("a" if a > b else "b" if b > a else "tie")
        seen[str(j.order)] += 1
    assert seen["ab"] + seen["ba"] + seen["unjudged"] == 2 * 6 * len(PROMPTS)
    assert (seen["unjudged"] > 0) == (judge == "judge_with_rubbish")


def test_counts_add_up(tmp_path: Path) -> None:
    result = run(tmp_path, PROMPTS, judge="judge_with_rubbish", policy="policy_fails_sometimes")
    counts = result.manifest["counts"]
    made = counts["comparisons"]
    assert made["planned"] == made["pairs"] + sum(made["dropped"].values()) == 3 * len(PROMPTS)
    assert counts["samples"]["made"] == counts["samples"]["usable"] + sum(counts["samples"]["dropped"].values()) == 120
    judged = counts["judgements"]
    assert judged["made"] == sum(judged["verdicts"].values()) + sum(judged["unjudged"].values()) == 2 * 3 * len(PROMPTS)
    assert len(rows(tmp_path, "pairs")) == made["pairs"]
    assert len(dropped(tmp_path)) == sum(made["dropped"].values()) + sum(counts["samples"]["dropped"].values())


def test_a_second_identical_run_sends_nothing_and_writes_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS)
    first = {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix in (".jsonl", ".parquet", ".md")}
    assert len(first) == 6
    run(tmp_path)
    assert fakes.SENT == []
    again = {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix in (".jsonl", ".parquet", ".md")}
    assert again == first


def test_the_order_of_the_prompt_file_and_what_is_in_flight_change_no_row(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    run(one, PROMPTS)
    run(two, PROMPTS[::-1], prompts_in_flight=3)
    for name in ("pairs", "completions", "judgements", "dropped"):
        assert sorted(map(json.dumps, rows(one, name))) == sorted(map(json.dumps, rows(two, name)))
    assert [r["prompt"] for r in rows(one, "pairs")] == [r["prompt"] for r in rows(two, "pairs")][::-1]


def test_a_new_prompt_sends_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS)
    everything = len(fakes.SENT)
    run(tmp_path, [*PROMPTS, "One more question?"])
    assert len(fakes.SENT) == everything // len(PROMPTS)
    assert len(rows(tmp_path, "pairs")) == len(PROMPTS) + 1


def test_a_change_of_pairing_sends_nothing(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS)
    run(tmp_path, pairing={"strategy": "all"})
    assert fakes.SENT == []
    assert len(rows(tmp_path, "pairs")) > len(PROMPTS)


def test_a_changed_principle_repays_only_its_own_judgements(tmp_path: Path) -> None:
    two = running.CONSTITUTION + "  - id: shorter\n    compare: Which is shorter?\n"
    run(tmp_path, PROMPTS, constitution=two)
    drawn = Counter(j.principles[0] for j in judgements(tmp_path))
    assert set(drawn) == {"better", "shorter"}
    run(tmp_path, constitution=two.replace("Which is shorter?", "Which response has fewer words?"))
    assert len(fakes.SENT) == drawn["shorter"]


@pytest.mark.parametrize("fresh", [False, True])
def test_the_folder_of_another_command_is_refused_and_never_started_over(tmp_path: Path, fresh: bool) -> None:
    run(tmp_path, ["p"])
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"prompt": "q", "chosen": "quality 2", "rejected": "quality 1"}\n')
    before = (tmp_path / "run" / "ledger.sqlite").read_bytes()
    card = CheckConfig.model_validate(
        {"data": str(gold), "judge": {"models": ["scripted:tests.fakes:judge"]}, "out": str(tmp_path / "run")}
    )
    with pytest.raises(InputError, match="belongs to a run of another command"):
        check(card, fresh=fresh)
    assert (tmp_path / "run" / "ledger.sqlite").read_bytes() == before


def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    run(tmp_path, ["p"])
    (tmp_path / "run" / "config.yaml").write_text("{broken")
    with pytest.raises(InputError, match="nobody can tell whose run this is"):
        run(tmp_path, ["p"])


def test_another_config_in_the_same_folder_is_refused_naming_the_keys(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS[:2])
    with pytest.raises(InputError, match=r"different: policy\.n, seed\)"):
        run(tmp_path, seed=1, policy_settings={"n": 2})
    run(tmp_path, max_unjudged=0.5)


def test_a_judge_that_answers_rubbish_ends_with_the_quality_gate_and_keeps_everything(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="unparseable"):
        run(tmp_path, PROMPTS, judge="judge_rubbish")
    assert rows(tmp_path, "pairs") == []
    assert len(rows(tmp_path, "completions")) == 4 * len(PROMPTS)
    assert {j.outcome.kind for j in judgements(tmp_path)} == {"unjudged"}
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_provider_that_refuses_ends_the_run_and_a_later_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="401"):
        run(tmp_path, PROMPTS, judge="judge_without_key")
    assert not (tmp_path / "run" / "pairs.jsonl").exists()
    sampled = sum("quality" not in r.messages[-1].content for r in fakes.SENT)
    assert sampled > 0


def test_labels_auto_takes_logprobs_where_the_model_gives_them_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, PROMPTS[:3], judge="judge_with_logprobs")
    assert set(result.manifest["labels"].values()) == {"logprob"}
    for j in judgements(tmp_path):
        assert isinstance(j.outcome, Verdict)
        assert j.outcome.method == "logprob"
        assert j.outcome.label_mass == pytest.approx(0.9)
    result = running.run(tmp_path, PROMPTS[:3], judge="judge", out=str(tmp_path / "other"))
    assert set(result.manifest["labels"].values()) == {"text"}


def test_samples_made_elsewhere_are_judged_without_a_policy(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    lines = [{"prompt": "Q?", "completions": ["quality 1\nno", "quality 9\nyes", "quality 5\nperhaps"]}]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "constitution.yaml").write_text(running.CONSTITUTION, encoding="utf-8")
    values = running.config(tmp_path).model_dump(mode="json", exclude={"prompts", "policy"})
    fakes.SENT.clear()
    running.generate(running.GenerateConfig.model_validate({**values, "policy": {"completions": str(samples)}}))
    assert len(fakes.SENT) == 2 * 3  # both orders of three comparisons
    (pair,) = rows(tmp_path, "pairs")
    assert pair["chosen"][0]["content"] == "quality 9\nyes"
    assert pair["rejected"][0]["content"] == "quality 1\nno"


def test_a_principle_with_a_check_is_decided_by_program_and_no_model_is_asked(tmp_path: Path) -> None:
    brief = 'name: brief\nversion: "1"\nprinciples:\n  - id: brief\n    check: {regex: "quality [5-9]\\\\d\\\\d"}\n'
    run(tmp_path, PROMPTS, constitution=brief, judge="judge_without_key")
    assert all("quality" not in r.messages[-1].content for r in fakes.SENT if r.seed is not None)
    for pair in rows(tmp_path, "pairs"):
        assert quality(pair["chosen"][0]["content"]) >= 500 > quality(pair["rejected"][0]["content"])


def test_the_system_message_of_the_policy_is_part_of_the_pair(tmp_path: Path) -> None:
    run(tmp_path, PROMPTS[:2], policy_settings={"system": "Be kind."})
    for pair in rows(tmp_path, "pairs"):
        assert pair["prompt"][0] == {"role": "system", "content": "Be kind."}
    sampled = [r for r in fakes.SENT if r.seed is not None]
    assert {r.messages[0].content for r in sampled} == {"Be kind."}
