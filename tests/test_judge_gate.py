"""A run whose judge must first agree with people: `judge.gold` and `judge.min_kappa`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError, ProviderError, QualityError
from rlaif.estimate import estimate
from rlaif.judging import card
from tests import fakes, running
from tests.running import GenerateConfig, generate, rows

PROMPTS = [f"Question {i}?" for i in range(4)]
JUDGING = {"ties": True}


def labelled(folder: Path, pairs: int = 20, *, wrong: int = 0) -> Path:
    """Pairs whose chosen response is the better one, but for the first ``wrong``."""
    rows = []
    for i in range(pairs):
        texts = [f"quality {i + 1}\nz", "quality 0\nz"]
        chosen, rejected = texts[::-1] if i < wrong else texts
        rows.append({"prompt": f"Labelled {i}?", "chosen": chosen, "rejected": rejected})
    path = folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(folder: Path, *, judge: str = "judge", min_kappa: float | None = 0.5, **other: Any) -> GenerateConfig:
    running.write_prompts(folder, PROMPTS)
    settings = {"gold": str(folder / "gold.jsonl"), "min_kappa": min_kappa} | other.pop("judge_settings", {})
    return running.config(folder, judge=judge, judge_settings=settings, **other)


@pytest.fixture(autouse=True)
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.SENT.clear()
    for name in ("verdict_figures", "bias_figures"):  # intervals cost more than all the rest, and few need them
        monkeypatch.setattr(card, name, partial(getattr(card, name), resamples=100))


def test_a_judge_that_agrees_with_people_passes_and_its_card_is_in_the_run_folder(tmp_path: Path) -> None:
    labelled(tmp_path, wrong=2)
    result = generate(config(tmp_path))
    (measured,) = result.manifest["gold"]
    assert measured["pairs"] == 20
    assert measured["kappa"] == pytest.approx(0.8, abs=0.05)  # 90 % agreement; a or b by hash
    assert measured["kappa_low"] < measured["kappa"] < measured["kappa_high"]
    assert json.loads((result.out / measured["card"]).read_bytes())["kappa"] == measured["kappa"]
    assert (result.out / "judge-0" / "card.html").exists()
    assert len(rows(tmp_path, "pairs")) == 4


def test_below_the_bound_nothing_but_the_labelled_pairs_was_asked_about(tmp_path: Path) -> None:
    labelled(tmp_path)
    with pytest.raises(
        QualityError, match=r"the kappa of scripted:\S+ is 0\.000 \(95 % .* 20 pairs\), less than the 0"
    ):
        generate(config(tmp_path, judge="judge_always_first"))
    assert len(fakes.SENT) == 40  # both orders, and no sample
    assert (tmp_path / "run" / "judge-0" / "card.json").exists()
    assert not (tmp_path / "run" / "pairs.jsonl").exists()
    fakes.SENT.clear()
    with pytest.raises(QualityError):
        generate(config(tmp_path, judge="judge_always_first"))
    assert fakes.SENT == []


def test_the_bound_may_be_changed_in_the_same_folder_and_is_measured_on_the_value_itself(tmp_path: Path) -> None:
    labelled(tmp_path, wrong=2)
    with pytest.raises(QualityError, match=r"less than the 0\.95"):
        generate(config(tmp_path, min_kappa=0.95))
    fakes.SENT.clear()
    kappa = json.loads((tmp_path / "run" / "judge-0" / "card.json").read_bytes())["kappa"]
    result = generate(config(tmp_path, min_kappa=kappa))  # the lower end of its interval is below
    assert len(fakes.SENT) == 4 * 4 + 4 * 6 * 2
    assert result.manifest["gold"][0]["kappa_low"] < kappa


def test_running_again_pays_for_neither_the_labelled_pairs_nor_the_run(tmp_path: Path) -> None:
    labelled(tmp_path)
    first = generate(config(tmp_path)).manifest["gold"]
    fakes.SENT.clear()
    assert generate(config(tmp_path)).manifest["gold"] == first
    assert fakes.SENT == []


def test_without_a_bound_the_judge_is_measured_and_the_run_goes_on(tmp_path: Path) -> None:
    labelled(tmp_path)
    with pytest.raises(QualityError, match="no preference pair"):  # a judge that always says the first
        generate(config(tmp_path, judge="judge_always_first", min_kappa=None))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["gold"][0]["kappa"] == pytest.approx(0, abs=1e-9)


def test_each_judge_of_a_panel_is_measured_by_itself(tmp_path: Path) -> None:
    labelled(tmp_path)
    models = ["scripted:tests.fakes:judge", "scripted:tests.fakes:judge_always_first"]
    with pytest.raises(QualityError, match="judge_always_first is 0"):
        generate(config(tmp_path, judge_settings={"models": models, "panel": "veto"}))
    assert len(fakes.SENT) == 80
    result = generate(config(tmp_path, min_kappa=-1, judge_settings={"models": models, "panel": "veto"}))
    assert [round(m["kappa"], 9) for m in result.manifest["gold"]] == [1.0, 0.0]


def test_too_few_pairs_for_a_kappa_are_no_pass(tmp_path: Path) -> None:
    labelled(tmp_path, pairs=1)
    with pytest.raises(QualityError, match=r"is undefined \(no variation\) \(1 pairs\), less than the -1"):
        generate(config(tmp_path, min_kappa=-1))


def test_labels_that_are_none_are_told_before_fresh_forgets_anything(tmp_path: Path) -> None:
    labelled(tmp_path)
    generate(config(tmp_path))
    (tmp_path / "gold.jsonl").write_text('{"prompt": "Q", "a": "x", "b": "y"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"gold\.jsonl:1: a labelled pair needs"):
        generate(config(tmp_path), fresh=True)
    assert len(rows(tmp_path, "pairs")) == 4


def test_a_bound_without_labelled_pairs_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_kappa needs 'gold'"):
        config(tmp_path, judge_settings={"gold": None})


def test_measuring_counts_towards_the_budget(tmp_path: Path) -> None:
    labelled(tmp_path)
    priced = {"models": [{"model": "scripted:tests.fakes:judge", "price": {"input": 1e6, "output": 0}}]}  # 1 USD each
    with pytest.raises(ProviderError, match="budget"):
        generate(config(tmp_path, judge_settings=priced, max_cost=2000))
    assert 0 < len(fakes.SENT) < 40
    assert all("quality 0" in r.messages[-1].content for r in fakes.SENT)


def test_a_dry_run_counts_the_labelled_pairs_and_then_that_they_are_answered(tmp_path: Path) -> None:
    labelled(tmp_path)
    found = estimate(config(tmp_path))
    (gold,) = [stage for stage in found.stages if stage.stage == "gold"]
    assert (gold.calls, gold.answered) == (40, 0)
    assert gold.input_tokens.expected > 40 * 20
    assert any("20 labelled pairs are few" in note for note in found.notes)
    assert fakes.SENT == []
    generate(config(tmp_path))
    asked = len(fakes.SENT)
    again = estimate(config(tmp_path))
    assert sum(stage.answered for stage in again.stages) == asked
    assert sum(stage.calls for stage in again.stages) == asked


def test_reading_the_replies_again_measures_nothing(tmp_path: Path) -> None:
    labelled(tmp_path)
    generate(config(tmp_path))
    (tmp_path / "gold.jsonl").unlink()
    fakes.SENT.clear()
    settings = config(tmp_path, judge_settings={"gold": None, "min_kappa": None})
    assert "gold" not in generate(settings, reparse=True).manifest
    assert fakes.SENT == []
