import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")

from rlaif.config.train import TrainPPOConfig  # noqa: E402
from rlaif.errors import InputError, ProviderError, QualityError  # noqa: E402
from rlaif.training.ppo import PPOTrainer, Rollout, distinct_n, train_ppo  # noqa: E402
from rlaif.training.ppo_check import PreparedPPO, minibatches, order, prepare_ppo  # noqa: E402
from rlaif.training.ppo_losses import token_rewards  # noqa: E402
from rlaif.training.ppo_model import load_models, make_batch, same_tokens  # noqa: E402
from rlaif.training.ppo_reward import Answers, FailureLimit, TextReward, value_scale  # noqa: E402
from rlaif.training.reward_functions import RewardFunction  # noqa: E402
from rlaif.types import Message, Prompt  # noqa: E402
from tests.training.ppo_rewards import BROKEN  # noqa: E402
from tests.training.tiny import save_tiny_model, write_jsonl  # noqa: E402

LETTERS, MUTE = "tests.training.ppo_rewards:Letters", "tests.training.ppo_rewards:SometimesMute"
Make = Callable[..., TrainPPOConfig]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Make:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Say {i * 'very '}something."} for i in range(6)])

    def make(**changes: Any) -> TrainPPOConfig:
        values = {
            "data": str(prompts),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "steps": 3,
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "batch_size": 4,
            "max_new_tokens": 8,
            "learning_rate": 0.01,
            "lora": {"r": 2},
            "reward": LETTERS,
            "missing_eos_penalty": 0.1,
            "device": "cpu",
        }
        return TrainPPOConfig.model_validate(values | changes)

    return make


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with the policy's tokens, and what `rlaif train reward` leaves beside its weights."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "model"
    loader: Any = AutoModelForSequenceClassification
    torch.manual_seed(5)
    loader.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    policy = {"form": "conversational", "end_ids": [1], "max_length": 256, "mean": 0.5, "std": 2.0}
    (folder / "reward_model.json").write_text(json.dumps(policy), encoding="utf-8")
    return folder.parent


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def trainer_of(config: TrainPPOConfig) -> PPOTrainer:
    config.out.mkdir(exist_ok=True)
    prepared = prepare_ppo(config)
    torch.manual_seed(config.seed)
    return PPOTrainer(config, prepared, models_of(config, prepared), reward_of(config))


def models_of(config: TrainPPOConfig, prepared: PreparedPPO) -> Any:
    return load_models(
        prepared.model_path,
        config.lora,
        config.value,
        prepared.plan.value_path,
        device="cpu",
        dtype="float32",
        autocast=False,
        gradient_checkpointing=False,
    )


def reward_of(config: TrainPPOConfig) -> TextReward:
    assert config.reward is not None
    return TextReward(RewardFunction(config.reward), None, None)


def stopping(at: int) -> Callable[[int, int, str], None]:
    """Asks the process to end, as an operating system does, once ``at`` steps are done."""

    def progress(done: int, total: int, note: str) -> None:
        if done == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("lora", "value"), [({"r": 4}, "shared"), pytest.param(None, "separate", marks=pytest.mark.slow)]
)
def test_the_reward_rises_and_a_model_is_left(config: Make, lora: Any, value: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = train_ppo(
        config(
            lora=lora,
            value=value,
            steps=8,
            samples_per_prompt=8,
            batch_size=16,
            learning_rate=0.02,
            kl={"coefficient": 0.01},
        )
    )
    curve = result.manifest["curve"]
    first, last = (sum(point["reward"] for point in part) / 3 for part in (curve[:3], curve[-3:]))
    assert last > first + 0.05
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-4)  # before any step policy and reference are the same
    assert curve[-1]["kl"] > 0.1
    for point in curve:
        assert point["sampler_gap"] < 1e-3
        assert all(math.isfinite(value) for value in point.values())
    model: Any = AutoModelForCausalLM.from_pretrained(result.model)
    assert model.generate(torch.tensor([[3, 5, 8]]), max_new_tokens=3).shape[1] > 3
    assert (result.adapter is not None) == (lora is not None)
    assert not (result.out / "checkpoints").exists()
    assert sorted(p.name for p in result.out.iterdir() if p.name.startswith(".")) == []


def test_the_adapter_on_the_first_model_is_the_merged_model(config: Make, tiny_model: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    result = train_ppo(config())
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = peft.PeftModel.from_pretrained(base, str(result.adapter))
    merged: Any = AutoModelForCausalLM.from_pretrained(result.model)
    ids = torch.tensor([[3, 5, 8, 13, 21]])
    with torch.inference_mode():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("modelled", [False, True])
def test_stopped_and_resumed_is_the_same_training_bit_for_bit(
    config: Make, modelled: bool, reward_model: Path, tmp_path: Path
) -> None:
    """With LoRA and a reward of running statistics; with all weights and a reward model beside the verifier."""
    settings: dict[str, Any] = {
        "lora": None if modelled else {"r": 2},
        "steps": 4,
        "reward": MUTE if modelled else {"normalise": {"of": MUTE}},
        "reward_model": str(reward_model) if modelled else None,
        "kl": {"coefficient": 0.1, "target": 1.0, "horizon": 50},
    }
    whole = train_ppo(config(**settings, out=str(tmp_path / "whole")))
    halves = config(**settings, out=str(tmp_path / "halves"))
    with pytest.raises(KeyboardInterrupt):
        train_ppo(halves, progress=stopping(2))
    assert [p.name for p in (halves.out / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(InputError, match="--resume"):
        train_ppo(halves)
    resumed = train_ppo(halves, resume=True)
    assert resumed.manifest["resumed_from"] == "checkpoint-2"
    assert same(whole.model, resumed.model)
    assert whole.manifest["curve"] == resumed.manifest["curve"]  # KL coefficient, values and rewards, to the last bit
    assert whole.manifest["curve"][3]["kl_coefficient"] != 0.1
    assert any(point["masked"] for point in whole.manifest["curve"])
    samples = [(out / "samples.jsonl").read_text(encoding="utf-8") for out in (whole.out, resumed.out)]
    assert samples[0] == samples[1]
    assert [json.loads(line)["step"] for line in samples[0].split("\n")[:-1]] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_stopped_in_its_last_step_nothing_is_done_again(config: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config(), progress=stopping(3))
    told: list[int] = []
    result = train_ppo(config(), resume=True, progress=lambda done, total, note: told.append(done))
    assert told == [3]
    assert len(result.manifest["curve"]) == 3


def test_another_config_cannot_resume(config: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config(), progress=stopping(1))
    with pytest.raises(InputError, match=r"different: clip, kl\.coefficient"):
        train_ppo(config(clip=0.1, kl={"coefficient": 0.2}), resume=True)


def test_a_finished_training_is_returned_as_it_is(config: Make) -> None:
    first = train_ppo(config(steps=1))
    before = (first.model / "model.safetensors").stat().st_mtime_ns
    assert train_ppo(config(steps=1)).manifest == first.manifest
    assert (first.model / "model.safetensors").stat().st_mtime_ns == before


def test_a_full_disk_leaves_the_checkpoint_before(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write, full = torch.save, [False]

    def save(state: Any, path: Path) -> None:
        if full[0]:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(state, path)

    def progress(done: int, total: int, note: str) -> None:
        full[0] = done == 2

    monkeypatch.setattr(torch, "save", save)
    settings = config(save_steps=1)
    with pytest.raises(ProviderError, match=r"No space left.*--resume"):
        train_ppo(settings, progress=progress)
    assert [p.name for p in (settings.out / "checkpoints").iterdir() if p.is_dir()] == ["checkpoint-1"]
    monkeypatch.undo()
    assert len(train_ppo(settings, resume=True).manifest["curve"]) == 3


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_end(config: Make, tmp_path: Path) -> None:
    whole = train_ppo(config(steps=6, save_steps=1, out=str(tmp_path / "whole")))
    settings = config(steps=6, save_steps=1, out=str(tmp_path / "killed"))
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "rlaif", "train", "ppo", str(file), "--resume"]
    kills = 0
    for seconds in (0.4, 0.1, 0.7, 0.25):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        before = {p.name for p in (settings.out / "checkpoints").glob("checkpoint-*")}
        while process.poll() is None and time.monotonic() < deadline:
            now = {p.name for p in (settings.out / "checkpoints").glob("checkpoint-*")}
            if now - before:
                time.sleep(seconds * 0.1)
                break
            time.sleep(0.005)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert same(whole.model, settings.out / "model")
    manifest = json.loads((settings.out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["curve"] == whole.manifest["curve"]


# ------------------------------------------------------------------------------------------------- masked and failed


def test_a_completion_without_a_reward_contributes_to_nothing(config: Make) -> None:
    """The same step with the masked completions in the batch and with the others alone, put there by hand."""
    settings = config(reward=MUTE, samples_per_prompt=8, batch_size=4)
    one, other = trainer_of(settings), trainer_of(settings)
    rollout, metrics = one.collect()
    assert rollout is not None
    assert 0 < metrics["masked"] < 1
    everything, _ = trainer_of(config(reward=LETTERS, samples_per_prompt=8, batch_size=4)).collect()
    assert everything is not None
    by_hand = everything.where(rollout.rows)
    assert by_hand.rows == rollout.rows
    assert one.learn(rollout) == other.learn(by_hand)
    for (name, a), b in zip(one.models.trained().items(), other.models.trained().values(), strict=True):
        assert torch.equal(a, b), name
    assert metrics["reward"] == pytest.approx(float(rollout.rewards_B.mean()) + 0.1, abs=1e-6)  # of those that have one
    one.reward.function.close()  # type: ignore[union-attr]


def test_a_step_without_any_reward_changes_no_weight(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BROKEN, "1")
    trainer = trainer_of(config())
    rollout, metrics = trainer.collect()
    assert rollout is None
    assert metrics["masked"] == 1
    assert "reward" not in metrics


def test_a_training_that_never_had_a_reward_leaves_no_model(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BROKEN, "1")
    settings = config(steps=1)
    with pytest.raises(QualityError, match="no completion of 1 steps had a reward"):
        train_ppo(settings)
    assert not (settings.out / "model").exists()


def test_too_many_failures_end_the_training_and_it_can_go_on(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(prompts_per_step=6, samples_per_prompt=11, batch_size=66, steps=3, save_steps=3, max_new_tokens=2)

    def breaks(done: int, total: int, note: str) -> None:
        if done == 1:
            monkeypatch.setenv(BROKEN, "1")

    with pytest.raises(QualityError, match=r"66 of the last 66 .*broken on purpose.*--resume"):
        train_ppo(settings, progress=breaks)
    assert (settings.out / "checkpoints" / "checkpoint-1").is_dir()  # though no save was due
    monkeypatch.delenv(BROKEN)
    resumed = train_ppo(settings, resume=True)
    assert [point["masked"] for point in resumed.manifest["curve"]] == [0, 0, 0]


@pytest.mark.slow
def test_a_rule_of_the_watch_ends_the_training_saved_and_is_told_once(config: Make) -> None:
    made = config(steps=7, watch={"window": 2, "kl": 1e-12, "stop": ["kl"]})
    with pytest.raises(QualityError, match=r"after step 4: .* nats from the reference, .* \(watch\.kl\)"):
        train_ppo(made)
    manifest = train_ppo(made, resume=True).manifest
    assert [(alarm["step"], alarm["rule"]) for alarm in manifest["alarms"] if alarm["rule"] == "kl"] == [(4, "kl")]
    assert all({"words", "repeated", "distinct", "refused"} <= point.keys() for point in manifest["curve"])


def test_the_share_of_failures_is_taken_over_the_last_completions() -> None:
    limit = FailureLimit(0.25)
    limit.add(8, 8, "x")  # too few to say anything
    for _ in range(7):
        limit.add(0, 8, "")
    limit.add(16, 64, "x")
    assert limit.recent == [(16, 64)]
    with pytest.raises(QualityError, match=r"17 of the last 64 .*such as: why"):
        limit.add(17, 64, "why")
    assert limit.recent == [(16, 64)]  # the step is not done: it will be counted when it is


class Scores:
    """A reward model that gives what it is told."""

    def __init__(self, *scores: float | None) -> None:
        self.scores = list(scores)

    def score(self, prompts: Any, completions: Any) -> list[float]:
        raise NotImplementedError

    def score_where_it_fits(self, prompts: Any, completions: Any) -> list[float | None]:
        return self.scores


def answers(*texts: str) -> Answers:
    prompt = Prompt(id="p-1", messages=(Message(role="user", content="Hi"),))
    return Answers([prompt] * len(texts), texts, [len(text) for text in texts])


def test_rewards_are_added_and_none_is_contagious(config: Make) -> None:
    from rlaif.config.train.ppo import RewardModelConfig

    settings = RewardModelConfig(path="anywhere", weight=0.5, normalise=False)
    function = RewardFunction(config(reward=MUTE).reward)  # type: ignore[arg-type]
    reward = TextReward(function, Scores(2.0, 4.0, None, math.nan), settings)
    try:
        assert reward.score(answers("abc", "ab", "abc", "abÄ")) == [2.0, None, None, None]
    finally:
        function.close()
    assert reward.failed == 1  # the NaN; to abstain, or not to fit, is no failure
    assert reward.parts["parts/reward_model"] == 3.0


def test_scores_of_a_reward_model_are_brought_to_one_scale_by_those_that_count() -> None:
    from rlaif.config.train.ppo import RewardModelConfig

    reward = TextReward(None, Scores(10.0, 14.0, math.inf), RewardModelConfig(path="anywhere"))
    assert reward.score(answers("a", "b", "c")) == [-1.0, 1.0, None]
    again = TextReward(None, Scores(12.0), RewardModelConfig(path="anywhere"))
    again.load_state(reward.state())
    assert again.score(answers("a")) == [pytest.approx(0.0)]


# ------------------------------------------------------------------------------------------------------ going wrong


def test_a_loss_that_is_no_number_ends_the_training_with_the_rows_written_out(config: Make) -> None:
    settings = config(save_steps=1, learning_rate=1e20, kl={"coefficient": 0})
    with pytest.raises(QualityError, match=r"diverged in step \d+: .*failed_batch.jsonl; lower learning_rate"):
        train_ppo(settings)
    lines = (settings.out / "failed_batch.jsonl").read_text(encoding="utf-8").splitlines()
    assert all({"prompt", "completion", "reward", "logps"} <= json.loads(line).keys() for line in lines)
    assert not (settings.out / "model").exists()


def test_a_damaged_checkpoint_is_told(config: Make) -> None:
    settings = config()
    with pytest.raises(KeyboardInterrupt):
        train_ppo(settings, progress=stopping(1))
    (settings.out / "checkpoints" / "checkpoint-1" / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="checkpoint-1: this checkpoint is damaged"):
        train_ppo(settings, resume=True)


# ------------------------------------------------------------------------------------------------ where rewards stand


def test_the_reward_stands_at_the_end_token_though_it_is_the_pad_token_too(config: Make) -> None:
    """The model's pad and eos are one token. What ended by itself has its whole reward there; what did not pays."""
    settings = config(reward=MUTE, samples_per_prompt=16, max_new_tokens=40, missing_eos_penalty=0.5)
    trainer = trainer_of(settings)
    end = trainer.pad_id
    assert trainer.prepared.end_ids == (end,)
    rollout, metrics = trainer.collect()
    assert rollout is not None
    assert 0 < metrics["ended"] < 1
    placed = token_rewards(rollout.rewards_B, torch.zeros_like(rollout.logps_BT), rollout.mask_BT, 0.1)
    for row, ids in enumerate(rollout.completions):
        earned = sum(c.isascii() for c in rollout.texts[row]) / max(1, len(rollout.texts[row]))
        expected = earned if ids[-1] == end else earned - 0.5
        assert placed[row].nonzero().flatten().tolist() in ([len(ids) - 1], [])
        assert float(placed[row, len(ids) - 1]) == pytest.approx(expected, abs=1e-6)
        assert end not in ids[:-1]
        assert int(rollout.mask_BT[row].sum()) == len(ids)
    trainer.reward.function.close()  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------- models, batches


@pytest.mark.parametrize("lora", [{"r": 2}, None])
def test_the_reference_is_the_model_before_training(config: Make, tiny_model: Path, lora: Any) -> None:
    from transformers import AutoModelForCausalLM

    settings = config(lora=lora)
    models = models_of(settings, prepare_ppo(settings))
    with torch.no_grad():
        for parameter in models.trained().values():
            parameter.add_(0.1)
    prompts, completions = [(3, 5, 8), (13, 21)], [(34, 55), (89, 44, 33, 1)]
    batch = make_batch(prompts, completions, 1, "cpu")
    found = models.reference_logps(batch, 0.7)
    first: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        with torch.no_grad():
            logits = first(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        assert torch.allclose(found[row, : len(completion)], expected, atol=1e-5)
        assert (found[row, len(completion) :] == 0).all()
        assert not torch.allclose(models(batch, 0.7).logps_BT[row, : len(completion)], expected, atol=1e-2)


@pytest.mark.parametrize("value", ["separate", "shared"])
def test_micro_batches_change_nothing_but_rounding(config: Make, value: str) -> None:
    found = []
    for size in (1, 2, 4):
        trainer = trainer_of(config(value=value, micro_batch_size=size, lora=None))
        rollout, _ = trainer.collect()
        assert rollout is not None
        trainer.learn(rollout)
        found.append(torch.cat([p.detach().flatten() for p in trainer.models.trained().values()]))
        trainer.reward.function.close()  # type: ignore[union-attr]
    assert torch.allclose(found[0], found[2], atol=2e-3)  # Adam's first steps are the signs of tiny gradients
    assert torch.allclose(found[0], found[1], atol=2e-3)
    assert (found[0] - found[2]).abs().mean() < 1e-5


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory(config: Make) -> None:
    plain = train_ppo(config(steps=1))
    saving = train_ppo(config(steps=1, gradient_checkpointing=True, out=str(plain.out.parent / "saving")))
    a, b = weights(plain.model), weights(saving.model)
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


def test_a_value_model_of_lora_shares_the_frozen_weights_and_learns_on_its_own(config: Make) -> None:
    settings = config()
    models = models_of(settings, prepare_ppo(settings))
    frozen = {p.data_ptr() for p in models.policy.parameters() if not p.requires_grad}
    own = [p for p in models.value_model.parameters() if not p.requires_grad]
    assert all(p.data_ptr() in frozen for p in own)
    policy, value = models.groups()
    assert not {id(p) for p in policy} & {id(p) for p in value}


def test_a_value_model_begins_from_the_reward_model(config: Make, reward_model: Path) -> None:
    """At every token it foresees the score, on the scale that the reward will have."""
    from transformers import AutoModelForSequenceClassification

    settings = config(reward_model={"path": str(reward_model), "weight": 3.0})
    prepared = prepare_ppo(settings)
    scale = value_scale(settings, prepared.plan.value_path)
    assert scale == (1.5, -0.75)  # 3 * (score - 0.5) / 2
    models = load_models(
        prepared.model_path,
        settings.lora,
        "separate",
        prepared.plan.value_path,
        value_scale=scale,
        device="cpu",
        dtype="float32",
        autocast=False,
        gradient_checkpointing=False,
    )
    loader: Any = AutoModelForSequenceClassification
    scorer = loader.from_pretrained(reward_model / "model", num_labels=1)
    ids = (3, 5, 8, 13, 21, 34)
    with torch.no_grad():
        expected = 1.5 * scorer.score(scorer.model(torch.tensor([ids])).last_hidden_state[0]).squeeze(-1) - 0.75
        found = models(make_batch([ids[:3]], [ids[3:]], 1, "cpu"), 1.0).values_BT[0]
    assert torch.allclose(found, expected[2:5], atol=1e-5)


def test_a_reward_model_alone_is_a_reward(config: Make, reward_model: Path) -> None:
    result = train_ppo(config(reward=None, reward_model=str(reward_model), steps=2, kl={"coefficient": 0}))
    assert result.manifest["reward_model"]["scores"] == 16
    assert all(abs(point["reward"]) < 5 and point["reward_std"] > 0 for point in result.manifest["curve"])
    assert "parts/reward_model" in result.manifest["curve"][0]
    assert result.manifest["curve"][1]["kl"] != 0  # measured, though it costs nothing


def test_models_with_other_tokens_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other")
    assert same_tokens(str(tiny_model), str(other))
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<|end|>", "<|END|>"), encoding="utf-8")
    assert not same_tokens(str(tiny_model), str(other))


def test_a_batch_begins_every_completion_in_the_same_column() -> None:
    batch = make_batch([(1, 2, 3), (4,)], [(5,), (6, 7)], 0, "cpu")
    assert batch.input_ids.tolist() == [[1, 2, 3, 5], [0, 0, 4, 6]]  # the last token predicts nothing
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.labels_BT.tolist() == [[5, 0], [6, 7]]
    assert batch.mask_BT.tolist() == [[True, False], [True, True]]


# ------------------------------------------------------------------------------------------------- order, arithmetic


def test_each_pass_takes_every_prompt_once_in_an_order_of_its_own(config: Make) -> None:
    settings = config(prompts_per_step=4)
    tasks = prepare_ppo(settings).tasks
    taken = [task.prompt.id for step in range(6) for task in order(settings, tasks, step)]
    passes = [taken[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(one) == sorted(task.prompt.id for task in tasks) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert taken[:4] != [task.prompt.id for task in order(config(seed=1), tasks, 0)]
    many = order(config(prompts_per_step=14, batch_size=28), tasks, 1)  # more than there are prompts
    assert len(many) == 14


@pytest.mark.parametrize(("rows", "size"), [(8, 4), (9, 4), (1, 4), (11, 3)])
def test_minibatches_are_as_even_as_can_be_and_hold_every_row_once(config: Make, rows: int, size: int) -> None:
    trainer = trainer_of(config(batch_size=size, prompts_per_step=6))
    parts = list(trainer._minibatches(list(range(100, 100 + rows)), 0))
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert len(parts) == minibatches(rows, size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) <= size
    assert parts != list(trainer._minibatches(list(range(100, 100 + rows)), 1)) or rows == 1


def test_the_learning_rate_rises_and_falls_by_the_step_alone(config: Make) -> None:
    trainer = trainer_of(config(steps=5, warmup=2, learning_rate=1.0, value_learning_rate=0.5))
    rates = []
    for trainer.step in range(5):
        trainer._set_rates()
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert [rate for rate, _ in rates] == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    assert [value for _, value in rates] == pytest.approx([rate / 2 for rate, _ in rates])


def test_distinct_n_by_hand() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # ab ba ab | ab
    assert distinct_n(["one", ""], 2) == 1.0


def test_a_rollout_is_its_rows() -> None:
    rows = Rollout(
        rows=[4, 7],
        prompts=[(1,), (2,)],
        completions=[(3,), (4,)],
        texts=["a", "b"],
        mask_BT=torch.ones(2, 1, dtype=torch.bool),
        logps_BT=torch.tensor([[0.1], [0.2]]),
        reference_BT=torch.zeros(2, 1),
        values_BT=torch.zeros(2, 1),
        rewards_B=torch.tensor([1.0, 2.0]),
    ).where([1])
    assert (rows.rows, rows.texts, rows.rewards_B.tolist()) == ([7], ["b"], [2.0])
