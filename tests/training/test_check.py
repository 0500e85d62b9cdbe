import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli.train import train
from rlaif.config.train import TrainDPOConfig
from rlaif.errors import InputError
from rlaif.preferences import Pair
from rlaif.training import check_dpo
from rlaif.training.check import PairsCheck, lengths
from rlaif.training.plan import Machine, held_out, make_plan
from rlaif.training.tokens import TokenPair, tokenize_pairs
from tests.training.tiny import contract_rows, save_tiny_model, write_jsonl


def config(data: Path, model: Path, **changes: Any) -> TrainDPOConfig:
    values = {"data": str(data), "model": str(model), "out": str(data.parent / "out"), "device": "cpu"}
    return TrainDPOConfig.model_validate(values | changes)


def report(data: Path, model: Path, **changes: Any) -> PairsCheck:
    return check_dpo(config(data, model, **changes))


def setting(found: PairsCheck, name: str) -> Any:
    return next(s.value for s in found.settings if s.name == name)


def warnings(found: PairsCheck) -> str:
    return "\n".join(f.text for f in found.findings if f.level == "warning")


# ------------------------------------------------------------------------------------------------------ the report


def test_a_check_reads_no_weights_and_leaves_nothing(tiny_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    import shutil

    unread = tmp_path / "unread"
    shutil.copytree(tiny_model, unread)
    (unread / "model.safetensors").write_bytes(b"no weights")
    found = report(pairs_file, unread)
    assert found.model.parameters > 1000
    assert not (tmp_path / "out").exists()


def test_the_batch_arithmetic_is_the_trainers(tiny_model: Path, pairs_file: Path) -> None:
    found = report(pairs_file, tiny_model, batch_size=5, epochs=3).cost
    assert (found.train_rows, found.steps_per_epoch, found.steps) == (12, 3, 9)


def test_token_statistics_count_the_templates_tokens(tiny_model: Path, pairs_file: Path) -> None:
    data = report(pairs_file, tiny_model).data
    # One token a byte: <|begin|>user\n ... <|end|>\n<|begin|>assistant\n, then the answer, <|end|> and a line break.
    assert data.prompt_tokens.max == len("What is 11 plus 11?") + 1 + len("user\n") + 2 + 1 + len("assistant\n")
    assert data.chosen_tokens.max == len("22.") + 2
    assert data.longer_chosen == 0.0


def test_every_setting_has_a_reason_and_the_configs_own_are_marked(tiny_model: Path, pairs_file: Path) -> None:
    found = report(pairs_file, tiny_model, learning_rate=1e-3, gradient_checkpointing=True, lora=None)
    assert all(s.reason for s in found.settings)
    assert setting(found, "learning rate") == 1e-3
    assert {s.name for s in found.settings if s.reason == "config"} >= {"learning rate", "gradient checkpointing"}
    assert found.model.trained == found.model.parameters


def test_the_learning_rate_of_lora_is_ten_times_that_of_all_weights(tiny_model: Path, pairs_file: Path) -> None:
    rates = [setting(report(pairs_file, tiny_model, lora=lora), "learning rate") for lora in ({"r": 2}, None)]
    assert rates[0] == pytest.approx(10 * rates[1])


def test_lora_parameters_are_counted_as_peft_makes_them(tiny_model: Path, pairs_file: Path) -> None:
    # q 16x16, k and v 16x8, o 16x16, gate, up and down 16x32, in 2 layers; r times (in + out) each.
    assert report(pairs_file, tiny_model, lora={"r": 2}).model.trained == 2 * 2 * (32 + 24 + 24 + 32 + 3 * 48)
    named = report(pairs_file, tiny_model, lora={"r": 2, "target_modules": ["q_proj"]})
    assert named.model.trained == 2 * 2 * 32


def test_lora_from_a_layer_on_leaves_those_below_alone(tiny_model: Path, pairs_file: Path) -> None:
    both = report(pairs_file, tiny_model, lora={"r": 2}).model.trained
    assert report(pairs_file, tiny_model, lora={"r": 2, "from_layer": 1}).model.trained == both // 2
    named = report(pairs_file, tiny_model, lora={"r": 2, "from_layer": 1, "target_modules": ["q_proj"]})
    assert named.model.trained == 2 * 32


def test_answers_that_lose_their_end_are_counted(tiny_model: Path, pairs_file: Path) -> None:
    whole, cut = report(pairs_file, tiny_model), report(pairs_file, tiny_model, max_length=80)
    assert (whole.data.cut_at_max_length, warnings(whole)) == (0, "")
    assert cut.data.cut_at_max_length > 0
    assert "lose the end of a completion at max_length 80" in warnings(cut)
    assert "may forget to stop" in warnings(cut)


def test_pairs_that_become_equal_when_cut_are_dropped_before_training(tiny_model: Path, tmp_path: Path) -> None:
    rows = contract_rows(4)
    rows[0]["rejected"][0]["content"] = rows[0]["chosen"][0]["content"] = "the same beginning, " * 20
    rows[0]["rejected"][0]["content"] += "and another end"
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    assert report(data, tiny_model).data.dropped == {}
    found = report(data, tiny_model, max_length=200)
    assert found.data.dropped == {"identical_when_cut": 1}
    assert found.data.pairs == 3


def test_prompts_that_leave_no_room_are_dropped_and_all_of_them_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    rows = contract_rows(3)
    rows[1]["prompt"][0]["content"] = "why? " * 50
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    assert report(data, tiny_model, max_length=100).data.dropped == {"prompt_too_long": 1}
    with pytest.raises(InputError, match=r"no pair is left at max_length 20 \(3 prompt_too_long\)"):
        report(data, tiny_model, max_length=20)


def test_plain_text_for_a_chat_model_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}:", "chosen": f" {i}", "rejected": " no"} for i in range(3)]
    assert "chat template is not used" in warnings(report(write_jsonl(tmp_path / "d.jsonl", rows), tiny_model))


def test_conversations_for_a_model_without_a_template_are_refused(tmp_path: Path, pairs_file: Path) -> None:
    bare = save_tiny_model(tmp_path / "bare", chat_template=False)
    with pytest.raises(InputError, match="has no chat template"):
        report(pairs_file, bare)


def test_a_template_that_refuses_a_conversation_is_one_sentence(tmp_path: Path, pairs_file: Path) -> None:
    strict = save_tiny_model(tmp_path / "strict")
    (strict / "chat_template.jinja").write_text("{{ raise_exception('only poems') }}")
    with pytest.raises(InputError, match=r"line 1: the model's chat template refuses .*only poems"):
        report(pairs_file, strict)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("/nowhere", "no such model folder"),
        ("{empty}", "tokenizer cannot be loaded"),
    ],
)
def test_a_model_that_is_none_is_one_sentence(pairs_file: Path, tmp_path: Path, model: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=complaint):
        check_dpo(
            TrainDPOConfig(data=str(pairs_file), model=model.format(empty=tmp_path / "empty"), out=tmp_path / "o")
        )


def test_a_layer_that_does_not_exist_is_answered_with_those_that_do(tiny_model: Path, pairs_file: Path) -> None:
    with pytest.raises(InputError, match=r"no linear layer query; it has down_proj, gate_proj, k_proj"):
        report(pairs_file, tiny_model, lora={"target_modules": ["query"]})


def test_a_gpu_that_is_not_there_is_refused(tiny_model: Path, pairs_file: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(InputError, match="device: cuda"):
        report(pairs_file, tiny_model, device="cuda")


# -------------------------------------------------------------------------------------------------------- the plan


def plan(tiny_model: Path, machine: Machine, **changes: Any) -> Any:
    from rlaif.training.model import model_facts

    made = config(Path("unused"), tiny_model, **changes)
    pairs = [TokenPair((1,) * 100, (2,) * 50, (3,) * 400)] * 16
    return make_plan(made, model_facts(str(tiny_model), made.lora), machine, pairs, [])


def gpu(memory: float) -> Machine:
    return Machine("cuda", "NVIDIA H200", 16, int(memory), True)


def test_a_gpu_gets_bf16_and_the_largest_micro_batch_that_fits(tiny_model: Path) -> None:
    roomy, tight = plan(tiny_model, gpu(100e9)), plan(tiny_model, gpu(1.2e9))
    assert (roomy.dtype, roomy.autocast, roomy.share_prompts) == ("bfloat16", True, False)
    assert (roomy.micro_batch_size, roomy.gradient_checkpointing) == (8, False)
    assert tight.micro_batch_size < 8
    assert tight.memory < 1.2e9 < roomy.memory + 1e9


def test_all_weights_on_a_gpu_are_kept_in_fp32(tiny_model: Path) -> None:
    made = plan(tiny_model, gpu(100e9), lora=None)
    assert (made.dtype, made.autocast) == ("float32", True)


def test_a_model_that_cannot_fit_is_refused_with_what_it_needs(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"needs about \d+\.\d GB on the cpu and 0\.5 GB are free"):
        plan(tiny_model, Machine("cpu", "CPU", 2, int(0.5e9), False))


def test_more_epochs_and_fewer_cores_take_longer(tiny_model: Path) -> None:
    cpu = [Machine("cpu", "CPU", cores, int(8e9), False) for cores in (1, 2)]
    assert plan(tiny_model, cpu[0]).seconds == pytest.approx(2 * plan(tiny_model, cpu[1]).seconds)
    assert plan(tiny_model, cpu[0], epochs=3).seconds > 2 * plan(tiny_model, cpu[0]).seconds


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.1, 0), (0.5, 1), (7, 1), (1, 1)])
def test_warm_up_never_takes_more_than_half_of_a_short_training(tiny_model: Path, warmup: float, steps: int) -> None:
    made = plan(tiny_model, Machine("cpu", "CPU", 2, int(8e9), False), warmup=warmup)
    assert (made.steps, made.warmup_steps) == (2, steps)


@given(fraction=st.floats(0, 0.5), seed=st.integers(0, 9), n=st.integers(1, 30))
def test_held_out_pairs_and_the_rest_are_all_pairs_and_no_prompt_is_on_both_sides(
    fraction: float, seed: int, n: int
) -> None:
    pairs = [TokenPair((i // 2,), (1, i), (2, i)) for i in range(n)]
    kept, out = held_out(pairs, fraction, seed)
    assert sorted([*kept, *out], key=lambda p: p.chosen) == pairs
    assert not {p.prompt for p in kept} & {p.prompt for p in out}
    grown, _ = held_out([*pairs, TokenPair((99,), (1,), (2,))], fraction, seed)
    assert kept == [p for p in grown if p.prompt != (99,)]  # a pair more moves no other


@given(values=st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_lengths_are_values_that_occur(values: list[int]) -> None:
    found = lengths(values)
    assert {found.median, found.p95, found.max} <= set(values)
    assert 2 * sum(v <= found.median for v in values) >= len(values)
    assert sum(v <= found.p95 for v in values) >= 0.95 * len(values)
    assert found.max == max(values)


# -------------------------------------------------------------------------------------------------------- tokens


def test_tokens_never_exceed_max_length_and_every_pair_is_accounted_for(tiny_model: Path) -> None:
    from rlaif.training.model import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model))
    texts = ["a", "ab" * 3, "abc" * 9, "x" * 40]
    pairs = [Pair(p, c, r, "row") for p in texts for c in texts for r in texts if c != r]
    for limit in (16, 20, 41, 90):
        found = tokenize_pairs(pairs, tokenizer, limit, (1,))
        assert len(found.pairs) + found.dropped.total() == len(pairs)
        for pair in found.pairs:
            assert len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= limit
            assert pair.chosen != pair.rejected
            assert min(len(pair.prompt), len(pair.chosen), len(pair.rejected)) >= 1


def test_plain_text_ends_in_the_end_token(tiny_model: Path) -> None:
    from rlaif.training.model import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model))
    (pair,) = tokenize_pairs([Pair("Q", " a", " b", "row")], tokenizer, 100, (1,)).pairs
    assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.eos_token_id


# --------------------------------------------------------------------------------------------------- command line


def test_the_command_prints_the_check_as_a_table_and_as_json(
    tiny_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"data: {pairs_file}\nmodel: {tiny_model}\nout: {tmp_path / 'out'}\n")
    as_json = CliRunner().invoke(train, ["dpo", str(file), "--check", "--json", "--set", "epochs=2"])
    assert as_json.exit_code == 0, as_json.output
    assert json.loads(as_json.output)["cost"]["steps"] == 4
    table = CliRunner().invoke(train, ["dpo", str(file), "--check"])
    assert table.exit_code == 0, table.output
    assert "12 usable" in table.output
    assert "gradient checkpointing" in table.output


def test_the_command_trains_and_says_where_the_model_is(tiny_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"data: {pairs_file}\nmodel: {tiny_model}\nout: elsewhere\nlora: {{r: 2}}\n")
    done = CliRunner().invoke(train, ["dpo", str(file), "--out", str(tmp_path / "here")])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"{tmp_path / 'here' / 'model'}\n")
    assert (tmp_path / "here" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("warmup_ratio: 0.1", "train.yaml:4: unknown key 'warmup_ratio'; gone from transformers"),
        ("epochs: many", "train.yaml:4: epochs: expected a whole number"),
        ("model: ./nowhere", "no such model folder"),
    ],
)
def test_the_commands_mistakes_are_input_errors(
    tiny_model: Path, pairs_file: Path, tmp_path: Path, line: str, complaint: str
) -> None:
    file = tmp_path / "train.yaml"
    model = "" if line.startswith("model") else f"model: {tiny_model}"
    file.write_text(f"data: {pairs_file}\nout: {tmp_path / 'out'}\n{model}\n{line}\n")
    failed = CliRunner().invoke(train, ["dpo", str(file)])
    assert isinstance(failed.exception, InputError)
    assert complaint in str(failed.exception)
