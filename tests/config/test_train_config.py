import textwrap
from pathlib import Path

import pytest

from rlaif.config.base import apply_overrides, parse_yaml, validate
from rlaif.config.train import TrainDPOConfig, replaced_key
from rlaif.errors import InputError


def load(text: str, *overrides: str) -> TrainDPOConfig:
    document = parse_yaml(textwrap.dedent(text), "train.yaml")
    apply_overrides(document, overrides)
    return validate(TrainDPOConfig, document, replaced_key)


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


MINIMAL = "data: runs/first\nout: runs/tuned\n"


def test_data_and_out_are_enough() -> None:
    config = load(MINIMAL)
    assert config.model == "local:smollm2"
    assert config.out == Path("runs/tuned")
    assert config.lora is not None
    assert config.learning_rate == config.micro_batch_size == config.gradient_checkpointing == "auto"


@pytest.mark.parametrize("written", ["smollm2", "local:smollm2"])
def test_a_model_may_be_written_with_or_without_local(written: str) -> None:
    config = load(MINIMAL + f"model: {written}\n")
    assert (config.model, config.model_name) == ("local:smollm2", "smollm2")


def test_a_windows_path_or_another_colon_is_a_path() -> None:
    assert load(MINIMAL + "model: 'C:/models/mine'\n").model_name == "C:/models/mine"


@pytest.mark.parametrize("written", ["openai:gpt-4.1-mini", "anthropic:claude", "vllm:some/model", "scripted:a:b"])
def test_a_model_without_weights_here_cannot_be_trained(written: str) -> None:
    assert "train.yaml:3: model: " in (message := error_of(MINIMAL + f"model: {written}\n"))
    assert "local:PATH_OR_ID" in message


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("max_prompt_length", "max_length"),
        ("rpo_alpha", "gone from TRL"),
        ("reference_free", "reference"),
        ("generate_during_eval", "rlaif eval"),
        ("evaluation_strategy", "eval_fraction"),
        ("overwrite_output_dir", "--resume"),
        ("torch_dtype", "dtype"),
        ("warmup_ratio", "'warmup'"),
        ("group_by_length", "like length"),
        ("per_device_train_batch_size", "'batch_size'"),
        ("gradient_accumulation_steps", "'batch_size'"),
        ("num_train_epochs", "'epochs'"),
        ("output_dir", "'out'"),
        ("use_peft", "lora: {r: 16}"),
        ("padding_free", "ignored by TRL"),
    ],
)
def test_a_key_of_another_trainer_is_answered_with_what_replaces_it(key: str, cure: str) -> None:
    message = error_of(MINIMAL + f"{key}: 1\n")
    assert message.startswith(f"train.yaml:3: unknown key '{key}'; ")
    assert cure in message


def test_no_hint_names_a_key_of_this_config() -> None:
    assert [key for key in TrainDPOConfig.model_fields if replaced_key(key)] == []


def test_a_misspelt_key_is_answered_with_the_nearest() -> None:
    assert "did you mean 'epochs'?" in error_of(MINIMAL + "epoch: 2\n")


def test_a_key_inside_lora_is_checked_too() -> None:
    message = error_of(MINIMAL + "lora:\n  rank: 8\n")
    assert message == "train.yaml:4: unknown key 'lora.rank'; write 'r'."


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("beta: 0", "beta"),
        ("learning_rate: -1.0e-5", "learning_rate"),
        ("learning_rate: fast", "learning_rate"),
        ("epochs: 0", "epochs"),
        ("max_length: 1", "max_length"),
        ("eval_fraction: 0.9", "eval_fraction"),
        ("micro_batch_size: 0", "micro_batch_size"),
        ("lora: {target_modules: []}", "lora"),
        ("lora: {target_modules: [lm_head]}", "lora"),
        ("batch_size: 8\nmicro_batch_size: 3", "no multiple"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_line(line: str, complaint: str) -> None:
    message = error_of(MINIMAL + line + "\n")
    assert message.startswith("train.yaml")
    assert complaint in message


def test_a_number_in_scientific_notation_without_a_point_is_understood() -> None:
    assert load(MINIMAL + "learning_rate: 1e-5\n").learning_rate == 1e-5  # YAML reads 1e-5 as text


def test_lora_is_switched_off_by_null_and_changed_by_set() -> None:
    assert load(MINIMAL + "lora: null\n").lora is None
    config = load(MINIMAL, "lora.r=4", "epochs=3")
    assert config.lora is not None
    assert (config.lora.r, config.epochs) == (4, 3)
