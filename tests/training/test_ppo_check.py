import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import rlaif
from rlaif.config.base import parse_yaml, validate
from rlaif.config.train import TrainPPOConfig, replaced_key
from rlaif.errors import InputError
from rlaif.training.ppo_check import check_ppo
from tests.training.tiny import save_tiny_model, write_jsonl

Make = Callable[..., TrainPPOConfig]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Make:
    rows = [{"prompt": f"What is {i} + 1?", "reference": str(i + 1)} for i in range(10)]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)

    def make(**changes: Any) -> TrainPPOConfig:
        values = {
            "data": str(prompts),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "steps": 20,
            "reward": "exact",
            "device": "cpu",
        }
        return TrainPPOConfig.model_validate(values | changes)

    return make


def settings(report: Any) -> dict[str, Any]:
    return {s.name: s.value for s in report.settings}


# ------------------------------------------------------------------------------------------------------ the config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reward": None}, "give a reward .* a reward_model"),
        ({"batch_size": 65}, "batch_size 65 is more than the 64 completions of a step"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout must be 0"),
        ({"value": "shared", "value_model": "local:smollm2"}, "a shared one begins from the policy"),
        ({"kl": {"coefficient": 0, "target": 3}}, "cannot be steered"),
        ({"temperature": 0}, "greater than 0"),
        ({"gamma": 1.5}, "less than or equal to 1"),
        ({"value_learning_rate": 0}, "value_learning_rate must be greater than 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(config: Make, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**changes)


def test_a_config_reads_back_as_it_was_written(config: Make) -> None:
    made = config(
        reward={"weighted_sum": [{"verifier": "exact", "weight": 2.0}, {"verifier": "length", "required": False}]},
        reward_model="runs/reward",
        max_cost="1.5",
    )
    assert TrainPPOConfig.model_validate(yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("num_ppo_epochs", "ppo_epochs"),
        ("init_kl_coef", "kl: {coefficient"),
        ("kl_coef", "kl: {coefficient"),
        ("cliprange", "clip"),
        ("cliprange_value", "value_clip"),
        ("vf_coef", "value_coefficient"),
        ("total_episodes", "steps"),
        ("response_length", "max_new_tokens"),
        ("num_mini_batches", "batch_size"),
        ("reward_model_path", "reward_model"),
    ],
)
def test_the_keys_of_trls_old_ppo_are_answered_with_ours(key: str, instead: str) -> None:
    document = parse_yaml(f"data: p.jsonl\nout: o\nreward: exact\n{key}: 1\n", "ppo.yaml")
    with pytest.raises(InputError, match=rf"ppo\.yaml:4: unknown key '{key}'; .*'{instead}"):
        validate(TrainPPOConfig, document, replaced_key)


# ------------------------------------------------------------------------------------------------------- the report


def test_the_batch_arithmetic_is_told(config: Make) -> None:
    report = check_ppo(config(prompts_per_step=5, samples_per_prompt=3, batch_size=4, ppo_epochs=2))
    cost = report.cost
    assert (cost.completions_per_step, cost.minibatches, cost.updates, cost.passes) == (15, 4, 20 * 2 * 4, 10.0)
    assert any("4 minibatches of nearly equal size" in f.text for f in report.findings)
    assert settings(report)["micro batch"] <= 4
    assert cost.memory_gb > 0
    assert cost.seconds > 0
    lines = dict(report.lines)
    assert "5 prompts x 3 samples = 15 completions" in lines["a step"]
    assert json.loads(report.model_dump_json())["data"]["prompts"] == 10


def test_prompts_that_are_too_long_are_counted_and_left_out(config: Make, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n, "reference": "1"} for n in (5, 300)]
    data = str(write_jsonl(tmp_path / "two.jsonl", rows))
    report = check_ppo(config(data=data, max_prompt=100))
    assert (report.data.rows, report.data.prompts, report.data.too_long) == (2, 1, 1)
    assert any("longer than max_prompt 100" in f.text for f in report.findings)
    with pytest.raises(InputError, match="every prompt is longer than max_prompt 10"):
        check_ppo(config(data=data, max_prompt=10))


def test_a_task_that_the_reward_cannot_decide_is_told_with_its_prompt(config: Make, tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "One?", "reference": "1"}, {"prompt": "And this?"}]))
    with pytest.raises(InputError, match=r"prompt 2 \('And this\?'\) has no task for it: exact: .*reference"):
        check_ppo(config(data=data))


def test_a_reward_model_that_is_none_is_told(config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no reward model"):
        check_ppo(config(reward_model=str(tmp_path)))


def test_a_value_model_with_other_tokens_is_refused(config: Make, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<|end|>", "<|END|>"), encoding="utf-8")
    with pytest.raises(InputError, match="has other tokens"):
        check_ppo(config(value_model=str(other)))


def test_a_model_without_a_chat_template_continues_text_and_takes_no_conversation(config: Make, tmp_path: Path) -> None:
    plain = save_tiny_model(tmp_path / "plain", chat_template=False)
    report = check_ppo(config(model=str(plain)))
    assert any("no chat template" in f.text for f in report.findings)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    data = str(write_jsonl(tmp_path / "turns.jsonl", [{"prompt": turns, "reference": "1"}]))
    with pytest.raises(InputError, match="has no chat template, and the prompts are conversations"):
        check_ppo(config(model=str(plain), data=data))


def test_what_a_judge_may_cost_is_told(config: Make) -> None:
    judge = {"verifier": "judge", "options": {"model": "scripted:tests.fakes:judge"}}
    report = check_ppo(config(reward={"first_decided": ["exact", judge]}, max_cost=2))
    assert report.cost.judged == 20 * 64
    assert any("1,280 completions: at most 2 USD" in f.text for f in report.findings)


def test_without_a_penalty_a_warning(config: Make) -> None:
    report = check_ppo(config(kl={"coefficient": 0}))
    assert any(f.level == "warning" and "kl.coefficient is 0" in f.text for f in report.findings)


def test_more_memory_than_there_is_is_refused_with_the_keys_to_change(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.training import ppo_check
    from rlaif.training.plan import Machine

    small = Machine("cpu", "CPU", 1, 10**9, False)
    monkeypatch.setattr(ppo_check, "this_machine", lambda wanted: small)
    with pytest.raises(InputError, match=r"needs about .* GB on the cpu .* lower prompts_per_step or max_new_tokens"):
        check_ppo(config(max_new_tokens=100_000))


def test_the_command_checks_and_spends_nothing(config: Make, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump(config().model_dump(mode="json")), encoding="utf-8")
    result = CliRunner().invoke(rlaif, ["train", "ppo", str(file), "--check", "--set", "steps=7"])
    assert result.exit_code == 0, result.output
    assert "16 prompts x 4 samples = 64 completions" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    told = CliRunner().invoke(rlaif, ["train", "ppo", str(file), "--check", "--json"])
    assert json.loads(told.output)["cost"]["steps"] == 20


def test_the_command_trains_and_leaves_a_report(config: Make, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    small = config(reward="tests.training.ppo_rewards:Letters", steps=2, prompts_per_step=2, batch_size=8)
    file.write_text(yaml.safe_dump(small.model_dump(mode="json")), encoding="utf-8")
    result = CliRunner().invoke(rlaif, ["train", "ppo", str(file), "--set", "max_new_tokens=4"])
    assert result.exit_code == 0, result.output
    assert "reward 0." in result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Samples" in page
    assert "kl_k3" in page or "KL" in page
