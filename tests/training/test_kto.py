import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.train.kto import TrainKTOConfig
from rlaif.errors import InputError
from rlaif.training.kto import check_kto, read_answers, train_kto
from tests.training.tiny import contract_rows, write_jsonl

Make = Callable[..., TrainKTOConfig]


def unpaired(n: int) -> list[dict[str, Any]]:
    rows = []
    for i, row in enumerate(contract_rows(n)):
        good = i % 3 != 0
        rows.append({"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good})
    return rows


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    data = write_jsonl(tmp_path / "answers.jsonl", unpaired(12))

    def made(**changes: Any) -> TrainKTOConfig:
        values = {
            "data": str(data),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "device": "cpu",
            "batch_size": 4,
            "learning_rate": 0.01,
            "lora": {"r": 2},
        }
        return TrainKTOConfig.model_validate(values | changes)

    return made


def test_answers_come_with_a_label_or_as_pairs(tmp_path: Path) -> None:
    found = read_answers(str(write_jsonl(tmp_path / "a.jsonl", unpaired(6))))
    assert [answer.good for answer in found.answers] == [False, True, True, False, True, True]
    pairs = read_answers(str(write_jsonl(tmp_path / "b.jsonl", contract_rows(3))))
    assert (pairs.rows, pairs.pairs, len(pairs.answers)) == (3, 3, 6)
    assert [answer.good for answer in pairs.answers] == [True, False] * 3
    assert pairs.answers[1].pair.chosen_text.startswith("That is a good question")
    plain = [{"prompt": "a", "completion": " b", "label": 1}, {"prompt": "a", "completion": "", "label": 0}]
    with pytest.raises(InputError, match="every answer is good, and kto learns the difference"):
        read_answers(str(write_jsonl(tmp_path / "c.jsonl", plain)))
    rest = read_answers(
        str(write_jsonl(tmp_path / "d.jsonl", [*plain, {"prompt": "a", "completion": "c", "label": False}]))
    )
    assert dict(rest.dropped) == {"empty_answer": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b"}, "answers without a label, which `rlaif train sft` learns from"),
        ({"prompt": "a"}, "prompts only; `rlaif train grpo`"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label must be true or false"),
    ],
)
def test_another_kind_of_data_is_named_with_the_method_it_fits(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_answers(str(write_jsonl(tmp_path / "other.jsonl", [row])))


def test_the_check_counts_answers_and_balances_the_two_kinds(make: Make) -> None:
    report = check_kto(make())
    assert (report.data.answers, report.data.good) == (12, 8)
    assert {s.name: s.value for s in report.settings}["weights"] == "good 1.00, bad 2.00"
    assert report.cost.micro_batch_size == 4
    with pytest.raises(ValueError, match="give at least 2"):
        make(micro_batch_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"r": 2}, None])
def test_training_tells_good_from_bad(make: Make, lora: Any) -> None:
    result = train_kto(make(lora=lora, epochs=6))
    curve = result.manifest["curve"]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.05
    assert curve[-1]["reward_good"] > curve[-1]["reward_bad"]
    assert (result.model / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_mismatched_answers_are_of_the_same_micro_batch(make: Make) -> None:
    from rlaif.training.kto import prepare
    from rlaif.training.trl_adapter.kto import make_trainer

    config = make()
    ready = prepare(config)
    trainer = make_trainer(
        config, ready.plan, ready.train, ready.weights, ready.tokenizer, ready.model_path, config.out, []
    )
    batch = next(iter(trainer.get_train_dataloader()))

    def answers(prefix: str) -> list[list[int]]:
        rows = zip(batch[f"{prefix}input_ids"].tolist(), batch[f"{prefix}completion_mask"].tolist(), strict=True)
        return [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in rows]

    own = answers("")
    assert answers("KL_") == [own[-1], *own[:-1]]


@pytest.mark.slow
def test_a_training_stopped_and_resumed_gives_the_very_same_weights(make: Make, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def stop(done: int, total: int, note: str) -> None:
        if done == 4:
            signal.raise_signal(signal.SIGTERM)

    whole = train_kto(make(epochs=2, out=str(tmp_path / "whole")))
    parts = make(epochs=2, out=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        train_kto(parts, progress=stop)
    result = train_kto(parts, resume=True)
    one, other = (load_file(r.model / "model.safetensors") for r in (whole, result))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert result.manifest["curve"] == whole.manifest["curve"]
    assert json.loads((result.out / "manifest.json").read_text())["finished"] is True
