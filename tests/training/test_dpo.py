import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config.train import TrainDPOConfig
from rlaif.errors import InputError, QualityError
from rlaif.training import check_dpo, train_dpo
from tests.training.tiny import contract_rows, write_jsonl


@pytest.fixture
def config(tiny_model: Path, pairs_file: Path, tmp_path: Path) -> Callable[..., TrainDPOConfig]:
    def make(**changes: Any) -> TrainDPOConfig:
        values = {
            "data": str(pairs_file),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "batch_size": 4,
            "device": "cpu",
        }
        return TrainDPOConfig.model_validate(values | changes)

    return make


Make = Callable[..., TrainDPOConfig]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    import torch

    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("lora", [{"r": 2}, None])
def test_training_lowers_the_loss_and_leaves_a_model_that_generates(config: Make, lora: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train_dpo(config(lora=lora, epochs=4, learning_rate=0.01))
    losses = [point["loss"] for point in result.manifest["curve"]]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # before any step policy and reference are the same
    assert losses[-1] < 0.6
    tokenizer: Any = AutoTokenizer.from_pretrained(result.model)
    model: Any = AutoModelForCausalLM.from_pretrained(result.model)
    turns = [{"role": "user", "content": "Hi"}]
    batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        assert model.generate(**batch, max_new_tokens=3).shape[1] > batch["input_ids"].shape[1]
    assert (result.adapter is not None) == (lora is not None)
    assert not (result.out / "checkpoints").exists()
    assert sorted(p.name for p in result.out.iterdir() if p.name.startswith(".")) == []


def test_the_adapter_on_the_first_model_is_the_merged_model(config: Make, tiny_model: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    result = train_dpo(config(lora={"r": 2}, epochs=2, learning_rate=0.01))
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = peft.PeftModel.from_pretrained(base, str(result.adapter))
    merged: Any = AutoModelForCausalLM.from_pretrained(result.model)
    ids = torch.tensor([[3, 5, 8, 13, 21]])
    with torch.inference_mode():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-5)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-3)


def test_the_manifest_says_what_was_done_with_what_and_why(config: Make, pairs_file: Path) -> None:
    rows = [*contract_rows(9), {**contract_rows(1)[0], "rejected": contract_rows(1)[0]["chosen"]}]
    write_jsonl(pairs_file, rows)
    result = train_dpo(config(epochs=2))
    manifest = json.loads((result.out / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(result.manifest))
    assert manifest["finished"] is True
    data = manifest["data"]
    assert (data["rows"], data["pairs"], data["dropped"]) == (10, 9, {"identical": 1})
    assert [point["step"] for point in manifest["curve"]] == [1, 2, 3, 4, 5, 6]
    assert all(setting["reason"] for setting in manifest["settings"])
    assert {"torch", "trl", "transformers", "peft", "rlaif"} <= manifest["versions"].keys()
    assert TrainDPOConfig.model_validate(yaml.safe_load((result.out / "config.yaml").read_text())) == config(epochs=2)


def test_the_same_config_gives_the_same_weights_and_another_seed_does_not(config: Make, tmp_path: Path) -> None:
    one, two, other = (
        train_dpo(config(out=str(tmp_path / name), seed=seed, learning_rate=0.01)).model
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same(one, two)
    assert not same(one, other)


def test_held_out_pairs_are_measured_and_not_trained_on(config: Make) -> None:
    result = train_dpo(config(eval_fraction=0.4, epochs=2))
    cost = result.manifest["cost"]
    assert cost["train_rows"] + cost["eval_rows"] == 12
    assert 1 <= cost["eval_rows"] <= 9
    assert len([p for p in result.manifest["curve"] if "eval_loss" in p]) == 2


# ------------------------------------------------------------------------------------------------ folder and resume


def stop_after(step: int) -> Callable[[int, int, str], None]:
    """As Ctrl-C during that step."""
    import signal

    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return progress


@pytest.mark.parametrize(("lora", "stopped_at"), [({"r": 2, "dropout": 0.1}, 2), ({"r": 2}, 3), (None, 4)])
def test_a_training_interrupted_and_resumed_gives_the_very_same_weights(
    config: Make, tmp_path: Path, lora: Any, stopped_at: int
) -> None:
    settings = {"lora": lora, "epochs": 2, "learning_rate": 0.01}  # 3 steps an epoch
    whole = train_dpo(config(**settings, out=str(tmp_path / "whole")))
    parts = config(**settings, out=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        train_dpo(parts, progress=stop_after(stopped_at))
    assert not (parts.out / "model").exists()
    with pytest.raises(InputError, match=r"unfinished training .*--resume"):
        train_dpo(parts)
    result = train_dpo(parts, resume=True)
    assert same(result.model, whole.model)
    assert result.manifest["resumed_from"]
    assert result.manifest["curve"] == whole.manifest["curve"]


def test_a_finished_training_is_not_done_again(config: Make) -> None:
    first = train_dpo(config())
    before = (first.model / "model.safetensors").stat().st_mtime_ns
    again = train_dpo(config())
    assert again.manifest == first.manifest
    assert (again.model / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_another_config_is_refused_with_the_keys_that_differ(config: Make) -> None:
    train_dpo(config())
    with pytest.raises(InputError, match=r"different: beta, lora\.r\)"):
        train_dpo(config(beta=0.2, lora={"r": 3}))


def test_a_folder_trained_on_other_data_is_refused(config: Make, pairs_file: Path) -> None:
    train_dpo(config())
    write_jsonl(pairs_file, contract_rows(11))
    with pytest.raises(InputError, match="has changed since"):
        train_dpo(config())


def test_a_folder_that_holds_something_else_is_left_alone(config: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no training"):
        train_dpo(config())
    with pytest.raises(InputError, match="is a file"):
        train_dpo(config(out=str(tmp_path / "out" / "thesis.txt")))


def test_a_loss_that_is_no_number_ends_the_training(config: Make, tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"diverged at step [23]: .*; lower learning_rate .*diverged.json"):
        train_dpo(config(learning_rate=1e30, lora=None, epochs=4, warmup=0))
    assert not (tmp_path / "out" / "model").exists()


def test_progress_counts_the_steps(config: Make) -> None:
    seen: list[tuple[int, int, str]] = []
    train_dpo(config(epochs=2), progress=lambda *now: seen.append(now))
    assert [done for done, _, note in seen if note.startswith("loss")] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    assert seen[0][2].startswith("reference log-probs")
    assert seen[-7][2] == "reference log-probs 12/12"


# ----------------------------------------------------------------------------------- the same as TRL, only cheaper


def tokenized(model: Path, rows: list[dict[str, Any]], max_length: int, folder: Path) -> Any:
    from rlaif.preferences import read_preferences
    from rlaif.training.model import load_tokenizer
    from rlaif.training.tokens import tokenize_pairs

    tokenizer = load_tokenizer(str(model))
    data = read_preferences(str(write_jsonl(folder / "rows.jsonl", rows)))
    return tokenize_pairs(data.pairs, tokenizer, max_length, (tokenizer.eos_token_id,)), tokenizer


def as_rows(pairs: Any) -> list[dict[str, list[int]]]:
    return [{"prompt_ids": [*p.prompt], "chosen_ids": [*p.chosen], "rejected_ids": [*p.rejected]} for p in pairs]


def plain_trl(model: Path, rows: list[dict[str, Any]], folder: Path, **arguments: Any) -> Any:
    """TRL's own trainer on the same rows, untouched."""
    import trl
    from datasets import Dataset

    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False}
    return trl.DPOTrainer(
        model=str(model),
        args=trl.DPOConfig(output_dir=str(folder), **(settings | arguments)),
        train_dataset=Dataset.from_list(rows),
    )


PLAIN_ROWS = [{"prompt": f"{i}:", "chosen": f" {i}", "rejected": f" {i} or {i + 1}"} for i in range(5)]


@pytest.mark.parametrize("rows", [contract_rows(6), PLAIN_ROWS], ids=["conversational", "plain"])
def test_the_token_ids_are_trls(tiny_model: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    trl_data = plain_trl(tiny_model, rows, tmp_path).train_dataset
    ours, _ = tokenized(tiny_model, rows, 1024, tmp_path)
    assert len(trl_data) == len(ours.pairs) == len(rows)
    for theirs, pair in zip(trl_data, ours.pairs, strict=True):
        assert tuple(theirs["prompt_ids"]) == pair.prompt
        assert tuple(theirs["chosen_ids"]) == pair.chosen
        assert tuple(theirs["rejected_ids"]) == pair.rejected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [{"r": 2}, None])
def test_the_shared_prompt_gives_trls_loss_and_gradients(
    tiny_model: Path, tmp_path: Path, lora: Any, attention: str
) -> None:
    """Away from the start, where policy and reference differ."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from rlaif.config.train import LoraConfig
    from rlaif.training.losses import dpo_losses
    from rlaif.training.model import adapter_config
    from rlaif.training.trl_adapter.dpo import SharedPromptCollator, _row_logps

    pairs = tokenized(tiny_model, contract_rows(4), 40, tmp_path)[0].pairs
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    if lora:
        model = peft.get_peft_model(model, adapter_config(LoraConfig(**lora, target_modules=["q_proj", "up_proj"])))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    reference = torch.tensor([[-80.0, -150.0]] * 4)

    def ordinary() -> torch.Tensor:
        totals = []
        for pair in pairs:
            for completion in (pair.chosen, pair.rejected):
                ids = torch.tensor([pair.prompt + completion])
                logits = model(ids).logits[0, len(pair.prompt) - 1 : -1]
                totals.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).sum())
        return torch.stack(totals).view(-1, 2)

    def shared() -> torch.Tensor:
        return _row_logps(model, SharedPromptCollator()(as_rows(pairs)))

    found = []
    for logps in (ordinary(), shared()):
        loss = dpo_losses(logps, reference, 0.1).mean()
        found.append((logps.detach(), loss.detach(), torch.autograd.grad(loss, trained)))
    (logps, loss, gradients), (logps_shared, loss_shared, gradients_shared) = found
    assert torch.allclose(logps, logps_shared, atol=1e-4)
    assert torch.allclose(loss, loss_shared, atol=1e-6)
    for one, other in zip(gradients, gradients_shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_whole_training_follows_trls_own(config: Make, tiny_model: Path, tmp_path: Path) -> None:
    """Full batches of one size, so that the order inside a step cannot matter."""
    rows = contract_rows(8)
    write_jsonl(tmp_path / "eight.jsonl", rows)
    ours = train_dpo(config(data=str(tmp_path / "eight.jsonl"), lora=None, batch_size=8, epochs=3, learning_rate=1e-3))
    assert ours.manifest["shared_prompts"] is True
    theirs = plain_trl(
        tiny_model,
        rows,
        tmp_path / "trl",
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        logging_steps=1,
    )
    theirs.train()
    expected = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert [p["loss"] for p in ours.manifest["curve"]] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_does_not_take_shared_prompts_is_trained_as_trl_does(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.training.losses import share_prompts
    from rlaif.training.trl_adapter import dpo as trl_adapter

    expected = train_dpo(config(learning_rate=0.01)).manifest["curve"]

    def blind(pairs: Any) -> Any:  # as a model that ignores positions would see it
        row = share_prompts(pairs)
        row.position_ids.zero_()
        return row

    monkeypatch.setattr(trl_adapter, "share_prompts", blind)
    result = train_dpo(config(learning_rate=0.01, out=str(config().out) + "-trl"))
    assert result.manifest["shared_prompts"] is False
    assert [p["loss"] for p in result.manifest["curve"]] == pytest.approx([p["loss"] for p in expected], rel=1e-4)


def test_certain_soft_labels_train_the_very_same_weights_as_hard_ones(
    config: Make, pairs_file: Path, tmp_path: Path
) -> None:
    write_jsonl(pairs_file, [row | {"prob_chosen": 1} for row in contract_rows(8)])
    hard, soft = (
        train_dpo(config(labels=labels, learning_rate=0.01, out=str(tmp_path / labels))) for labels in ("hard", "soft")
    )
    assert same(hard.model, soft.model)
    assert hard.manifest["data"]["digest"] != soft.manifest["data"]["digest"]


def test_uncertain_labels_hold_the_margin_back_on_both_ways_to_the_loss(
    config: Make, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.training.trl_adapter import dpo as trl_adapter

    write_jsonl(pairs_file, [row | {"prob_chosen": 0.6} for row in contract_rows(8)])
    settings = {"learning_rate": 0.001, "epochs": 8, "lora": None}
    hard = train_dpo(config(**settings, out=str(tmp_path / "hard"))).manifest["curve"]
    soft = train_dpo(config(**settings, labels="soft", out=str(tmp_path / "soft"))).manifest["curve"]
    assert hard[-1]["margin"] > 2 * soft[-1]["margin"]
    assert soft[-1]["loss"] < soft[0]["loss"]

    def refused(*_: Any) -> None:
        raise ValueError("this model takes no such mask")

    monkeypatch.setattr(trl_adapter, "_row_logps", refused)
    padded = train_dpo(config(**settings, labels="soft", out=str(tmp_path / "padded")))
    assert padded.manifest["shared_prompts"] is False
    assert [p["loss"] for p in padded.manifest["curve"]] == pytest.approx([p["loss"] for p in soft], rel=1e-4)


def test_soft_labels_that_are_missing_are_asked_for(config: Make, pairs_file: Path) -> None:
    rows = contract_rows(4)
    del rows[2]["prob_chosen"]
    write_jsonl(pairs_file, rows)
    with pytest.raises(InputError, match=r"line 3 has no prob_chosen \(1 of 4 pairs have none\)"):
        check_dpo(config(labels="soft"))
    write_jsonl(pairs_file, [contract_rows(1)[0] | {"prob_chosen": 1.5}])
    with pytest.raises(InputError, match=r"pairs.jsonl:1: prob_chosen is 1.5; expected a probability"):
        check_dpo(config())


def test_changed_labels_are_other_data_only_where_they_are_used(config: Make, pairs_file: Path, tmp_path: Path) -> None:
    hard, soft = config(), config(labels="soft", out=str(tmp_path / "soft"))
    for settings in (hard, soft):
        train_dpo(settings)
    write_jsonl(pairs_file, [row | {"prob_chosen": 0.7} for row in contract_rows(12)])
    train_dpo(hard)
    with pytest.raises(InputError, match="has changed since"):
        train_dpo(soft)


def test_the_end_of_an_answer_is_learned_although_pad_is_eos(config: Make, tiny_model: Path, tmp_path: Path) -> None:
    """Both collators keep the end token in the loss."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from rlaif.training.losses import share_prompts

    found, tokenizer = tokenized(tiny_model, contract_rows(3), 1024, tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ends = 2 * len(found.pairs)
    assert (share_prompts(found.pairs).labels_N == tokenizer.eos_token_id).sum() == ends
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(as_rows(found.pairs))
    learned = batch["completion_mask"].bool() & (batch["input_ids"] == tokenizer.eos_token_id)
    assert learned.sum() == ends
    report = check_dpo(config())
    assert report.model.ends_in_eos == 1.0
    assert any("end of an answer is learned" in finding.text for finding in report.findings)


# --------------------------------------------------------------------------- what others make of the contract's rows


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("trainer", ["DPO", "Reward"])
def test_trls_trainers_take_the_files_of_a_run(tiny_model: Path, tmp_path: Path, form: str, trainer: str) -> None:
    import trl
    from datasets import load_dataset

    from rlaif.dataset import write_parquet

    rows = contract_rows(4)
    if form == "jsonl":
        data = load_dataset("json", data_files=str(write_jsonl(tmp_path / "pairs.jsonl", rows)), split="train")
    else:
        write_parquet(rows, tmp_path / "train.parquet")
        data = load_dataset(str(tmp_path), split="train")
    make, arguments = (trl.DPOTrainer, trl.DPOConfig) if trainer == "DPO" else (trl.RewardTrainer, trl.RewardConfig)
    settings = arguments(
        output_dir=str(tmp_path / "o"), use_cpu=True, bf16=False, report_to="none", max_steps=1,
        per_device_train_batch_size=2, activation_checkpointing=False, logging_steps=1,
    )  # fmt: skip
    made = make(model=str(tiny_model), args=settings, train_dataset=data)
    assert made.train().global_step == 1
    assert made.state.log_history[0]["loss"] > 0


# ------------------------------------------------------------------------------------------------ the embedded model


@pytest.mark.slow
def test_the_embedded_model_learns_to_be_brief(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", contract_rows(4))
    config = TrainDPOConfig(data=str(data), out=tmp_path / "out", batch_size=4, epochs=3, learning_rate=3e-4, warmup=0)
    report = check_dpo(config)
    assert report.model.parameters == 134_515_008
    assert report.model.ends_in_eos == 1.0
    result = train_dpo(config)
    losses = [point["loss"] for point in result.manifest["curve"]]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0] - 0.05
    assert result.manifest["shared_prompts"] is True


def test_the_model_lies_beside_a_card_that_says_what_it_was_made_of(config: Make, pairs_file: Path) -> None:
    result = train_dpo(config(limit=4))
    card = (result.model / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["rlaif", "dpo"]
    assert result.manifest["data"]["digest"] in card
    assert str(pairs_file) in card
    assert "None by this training" in card
