"""GRPO and RLOO: the same steps as TRL's, masked rows left out, KL measured, resumed exactly."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.base import Config
from rlaif.config.train.grpo import GroupConfig, SpeedConfig, TrainGRPOConfig, TrainRLOOConfig
from rlaif.errors import InputError, QualityError
from rlaif.rewards import Scored
from rlaif.training.grpo import check_grpo, train_grpo
from rlaif.training.rloo import train_rloo
from rlaif.types import ChatRequest, Reward, Unverified
from rlaif.verifiers import Task
from tests.training.tiny import write_jsonl

HERE = "tests.training.test_groups"
Make = Callable[..., Any]


class Letters:
    """The share of letters before n; what holds a "z" breaks it, where the task says so."""

    identity = "letters@1"

    class Options(Config):
        breaks: bool = False
        constant: bool = False

    def __init__(self, options: Options) -> None:
        self.options = options

    async def prepare(self, task: Task) -> None:
        pass

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if self.options.breaks and any(letter in completion for letter in "abcdefgh"):
            return Unverified(reason="judge", detail="the judge said nothing")
        if self.options.constant:
            return Reward(value=0.5)
        return Reward(value=sum(ord(letter) % 2 for letter in completion) / max(1, len(completion)))

    async def aclose(self) -> None:
        pass


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Say {'so ' * i}{i}"} for i in range(5)])


@pytest.fixture
def make(tiny_model: Path, prompts: Path, tmp_path: Path) -> Make:
    def made(method: str = "grpo", **changes: Any) -> GroupConfig:
        values: dict[str, Any] = {
            "data": str(prompts),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "device": "cpu",
            "reward": f"{HERE}:Letters",
            "steps": 4,
            "prompts_per_step": 2,
            "group_size": 4,
            "micro_batch_size": 2,
            "max_new_tokens": 6,
            "learning_rate": 0.01,
            "lora": {"r": 2},
        }
        kind: type[GroupConfig] = TrainGRPOConfig if method == "grpo" else TrainRLOOConfig
        return kind.model_validate(values | changes)

    return made


def train(config: Any, **options: Any) -> Any:
    return (train_grpo if isinstance(config, TrainGRPOConfig) else train_rloo)(config, **options)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    import torch

    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_time(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in point.items() if key != "seconds"} for point in curve]


# ------------------------------------------------------------------------------------------------ the config and check


def test_the_batch_is_prompts_times_group_and_nothing_else(make: Make) -> None:
    assert make(prompts_per_step=3, group_size=5, micro_batch_size="auto").batch_size == 15
    with pytest.raises(ValueError, match="batch_size is prompts_per_step x group_size = 8"):
        make(batch_size=16)
    with pytest.raises(ValueError, match="no multiple of micro_batch_size"):
        make(micro_batch_size=3)
    with pytest.raises(ValueError, match="steps 5 is no multiple of num_iterations 2"):
        make(steps=5, num_iterations=2)
    config = make(reward={"weighted_sum": ["math", {"verifier": "exact", "weight": 2}]})
    assert type(config).model_validate(config.model_dump(mode="json")).model_dump() == config.model_dump()


def test_the_check_says_what_will_happen_and_computes_nothing(make: Make, tmp_path: Path) -> None:
    report = check_grpo(make(micro_batch_size="auto", steps=None, epochs=2.0))
    assert (report.data.prompts, report.data.too_long, report.data.chat) == (5, 0, True)
    assert report.cost.steps == 5
    assert report.completions == 40
    assert 8 % report.cost.micro_batch_size == 0
    assert {s.name for s in report.settings} >= {"reference", "steps", "micro batch", "learning rate"}
    assert not (tmp_path / "out").exists()
    assert check_grpo(make(max_prompt=30)).data.too_long == 2


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "rlaif train dpo"),
        ({"prompt": "a", "completion": "b", "label": True}, "rlaif train kto"),
        ({"prompt": "a", "completion": "b"}, "rlaif train sft"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "rlaif train sft"),
    ],
)
def test_another_kind_of_data_is_named_with_the_method_it_fits(
    make: Make, tmp_path: Path, row: dict[str, Any], fits: str
) -> None:
    with pytest.raises(InputError, match=fits):
        check_grpo(make(data=str(write_jsonl(tmp_path / "other.jsonl", [row]))))


def test_a_reward_that_cannot_decide_a_prompt_is_told_before_training(make: Make) -> None:
    with pytest.raises(InputError, match=r"5 of 5 prompts have no task for the reward; the first is prompt 1"):
        check_grpo(make(reward="math"))


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("method", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_training_leaves_a_model_a_curve_and_samples(make: Make, method: str) -> None:
    result = train(make(method, beta=0.0))
    curve = result.manifest["curve"]
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-9)  # before any step policy and reference are the same
    assert curve[-1]["kl"] > 0.01  # measured, although beta is 0
    assert curve[-1]["kl_sequence"] == pytest.approx(curve[-1]["kl_k1"] * curve[-1]["length"], rel=1e-6)
    samples = [json.loads(line) for line in (result.out / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [step for step in (1, 2, 3, 4) for _ in range(4)]
    assert all(row.keys() == {"step", "prompt", "completion", "reward"} for row in samples)
    assert (result.model / "model.safetensors").is_file()
    assert (result.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"r": 2}, None])
def test_the_kl_that_is_measured_at_beta_0_is_the_one_that_trl_has_with_beta(make: Make, lora: Any) -> None:
    """TRL's own k3 (GRPO) and k1 (RLOO) of the same completions; a beta so small moves no weight visibly."""
    from rlaif.training.trl_adapter import grpo

    logged: dict[str, list[float]] = {}

    class Told(grpo.GRPOTrainer):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            logged.setdefault("kl", []).extend(
                [sum(v) / len(v) for v in [self._metrics["train"]["kl"]] if v]  # TRL's, before ours takes its place
            )
            super().log(logs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        trainers: dict[Any, Any] = grpo._OF
        patch.setitem(trainers, TrainGRPOConfig, (Told, grpo._grpo_arguments))
        theirs = train(make(beta=1e-12, lora=lora, micro_batch_size=8)).manifest["curve"]
    ours = train(make(beta=0.0, lora=lora, micro_batch_size=8, out=str(make().out) + "2")).manifest["curve"]
    assert logged["kl"] == pytest.approx([point["kl"] for point in theirs], rel=1e-4, abs=1e-7)
    assert [p["kl"] for p in ours] == pytest.approx([p["kl"] for p in theirs], rel=1e-3, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- exact resume


def stop_after(step: int) -> Callable[[int, int, str], None]:
    """As SIGTERM during that step."""

    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            signal.raise_signal(signal.SIGTERM)

    return progress


RESUMED: list[tuple[str, dict[str, Any], int]] = [
    ("grpo", {"lora": {"r": 2, "dropout": 0.1}}, 2),
    ("grpo", {"num_iterations": 2, "steps": 6, "lora": None}, 3),
    ("rloo", {"reward": {"normalise": {"of": f"{HERE}:Letters"}}}, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes", "stopped_at"), RESUMED)
def test_a_training_stopped_and_resumed_gives_the_very_same_weights(
    make: Make, tmp_path: Path, method: str, changes: dict[str, Any], stopped_at: int
) -> None:
    whole = train(make(method, **changes, out=str(tmp_path / "whole")))
    parts = make(method, **changes, out=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=stop_after(stopped_at))
    with pytest.raises(InputError, match=r"unfinished training .*--resume"):
        train(parts)
    result = train(parts, resume=True)
    assert same(result.model, whole.model)
    assert without_time(result.manifest["curve"]) == without_time(whole.manifest["curve"])
    assert (result.out / "samples.jsonl").read_text() == (whole.out / "samples.jsonl").read_text()
    rounds = make(method, **changes).num_iterations
    assert int(result.manifest["resumed_from"].rpartition("-")[2]) % rounds == 0


@pytest.mark.slow
def test_a_changed_config_is_refused_and_named(make: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make(), progress=stop_after(1))
    changed = {"verifier": f"{HERE}:Letters", "options": {"constant": True}}
    with pytest.raises(InputError, match=r"another config \(different: beta, reward.options\)"):
        train(make(beta=0.5, reward=changed), resume=True)


# ----------------------------------------------------------------------------------------- limits and what breaks it


@pytest.mark.slow
def test_a_constant_reward_ends_the_training_saved(make: Make) -> None:
    config = make(reward={"verifier": f"{HERE}:Letters", "options": {"constant": True}}, max_flat=2)
    with pytest.raises(QualityError, match=r"after step 2: 2 steps in a row gave no signal: every reward is 0.5"):
        train(config)
    assert (config.out / "checkpoints" / "checkpoint-2" / "trainer_state.json").is_file()


@pytest.mark.slow
def test_too_many_failures_of_a_judge_end_the_training_saved(make: Make) -> None:
    broken = {"verifier": f"{HERE}:Letters", "options": {"breaks": True}}
    config = make(reward=broken, max_failed=0.01, group_size=12, micro_batch_size=12)
    with pytest.raises(QualityError, match=r"after step 1: .* max_failed is 1%\): Letters: the judge said"):
        train(config)
    assert (config.out / "checkpoints" / "checkpoint-1" / "trainer_state.json").is_file()
    assert len(train(make(reward=broken, max_failed=1.0, out=str(config.out) + "2")).manifest["curve"]) == 4


@pytest.mark.slow
def test_a_rule_of_the_watch_ends_the_training_saved_and_is_told_once_in_its_life(make: Make) -> None:
    config = make(steps=8, watch={"window": 2, "kl": 1e-12, "stop": ["kl"]})
    with pytest.raises(QualityError, match=r"after step 5: .* nats from the reference, .* \(watch\.kl\)"):
        train(config)
    manifest = train(config, resume=True).manifest
    assert [(alarm["step"], alarm["rule"]) for alarm in manifest["alarms"] if alarm["rule"] == "kl"] == [(4, "kl")]
    assert all({"words", "repeated", "distinct", "refused"} <= point.keys() for point in manifest["curve"])


@pytest.mark.slow
def test_one_prompt_is_enough_and_is_asked_again_in_the_same_step(make: Make, tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Say it"}])
    assert len(train(make(data=str(one), steps=2)).manifest["curve"]) == 2


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_it_with_the_completions_that_did_it(make: Make) -> None:
    config = make(learning_rate=1e20, lora=None, steps=6)
    with pytest.raises(QualityError, match="diverged at step"):
        train(config)
    rows = [json.loads(line) for line in (config.out / "diverged.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert rows[0].keys() == {"prompt", "completion", "reward"}


# -------------------------------------------------------------------------------- the same loss and gradients as TRL's


def trainer_of(make: Make, rewards: list[float | None], method: str = "grpo", **changes: Any) -> tuple[Any, Any]:
    """A trainer before its first step, and the data loader's first batch. Rewards are given, not computed."""
    from rlaif.training.group_reward import GroupReward
    from rlaif.training.groups import prepare_groups
    from rlaif.training.trl_adapter.grpo import make_trainer

    class Given(GroupReward):
        def submit(self, *_: Any) -> None:
            pass

        def __call__(self, *_: Any, **__: Any) -> list[float | None]:
            self.scored = [Scored(value=value, masked=None if value is not None else "judge") for value in rewards]
            return rewards

    config = make(method, **changes)
    prepared = prepare_groups(config, method)  # type: ignore[arg-type]
    reward = Given(config.reward, prepared.tasks, group_size=config.group_size, max_failed=1.0, max_flat=None)
    out = config.out / "checkpoints"
    trainer = make_trainer(
        config, prepared.plan, prepared.prompts, reward, prepared.tokenizer, prepared.model_path, out, []
    )
    trainer.current_gradient_accumulation_steps = config.batch_size // prepared.plan.micro_batch_size
    trainer.model.train()
    letters = [[2 + (7 * i + j) % 200 for j in range(length - 1)] + [1] for i, length in enumerate(LENGTHS)]
    trainer._generate_single_turn = lambda *_: (letters, None) if method == "grpo" else letters
    return trainer, next(iter(trainer.get_train_dataloader()))


def gradients(trainer: Any, inputs: Any) -> tuple[float, dict[str, Any]]:
    """The loss and gradients of a whole optimizer step, from the completions of the global generator."""
    import torch

    torch.manual_seed(3)
    trainer._step = 0
    trainer.model.zero_grad(set_to_none=True)
    total = 0.0
    for _ in range(trainer.args.gradient_accumulation_steps):
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs))
        if not trainer.loss_is_scaled_for_ga:
            loss = loss / trainer.args.gradient_accumulation_steps
        loss.backward()
        trainer._step += 1
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Up to rounding: other padding, another order of the same sums."""
    scale = max(float(gradient.abs().max()) for gradient in other.values())
    return one.keys() == other.keys() and all(float((one[k] - other[k]).abs().max()) < 2e-5 * scale for k in one)


SIGNAL: list[float | None] = [1.0, 0.0, 0.5, 0.0, 0.25, 0.25, 0.25, 0.25]
LENGTHS = [3, 9, 5, 12, 2, 7, 4, 8]
PLAIN = {"trim": False, "sort": False, "skip_flat": False}
LEVERS = [{"trim": True}, {"trim": True, "sort": True}, {"skip_flat": True}, dict.fromkeys(PLAIN, True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [("grpo", {}), ("grpo", {"loss": "grpo"}), ("grpo", {"loss": "dr_grpo", "beta": 0.1}), ("rloo", {"beta": 0.0})],
)
def test_every_lever_of_speed_leaves_loss_and_gradients_as_they_are(
    make: Make, method: str, changes: dict[str, Any]
) -> None:
    trainer, inputs = trainer_of(make, SIGNAL, method, lora=None, speed=PLAIN, **changes)
    loss, expected = gradients(trainer, inputs)
    kl = trainer.divergence.means()
    for on in LEVERS:
        trainer.speed, trainer.divergence = SpeedConfig.model_validate(PLAIN | on), type(trainer.divergence)()
        found, gradient = gradients(trainer, inputs)
        assert found == pytest.approx(loss, abs=1e-6)
        assert alike(gradient, expected)
        assert trainer.divergence.means() == pytest.approx(kl, abs=1e-6)
        micro = trainer._buffered_inputs
        assert (len({m["completion_ids"].shape[1] for m in micro}) > 1) == on.get("trim", False)
        if on.get("sort"):
            assert sum(m["completion_mask"].shape[1] for m in micro) <= 12 + 9 + 12 + 9
        skipped = 2 if on.get("skip_flat") and not trainer.config.beta else 0  # the second group, in two micro-batches
        assert sum(bool(m.get("flat")) for m in micro) == skipped


@pytest.mark.slow
def test_with_all_levers_off_it_is_trl(make: Make) -> None:
    """TRL's trainer itself, with its own `_prepare_inputs` and loss."""
    import trl

    trainer, inputs = trainer_of(make, SIGNAL, lora=None, speed=PLAIN)
    loss, expected = gradients(trainer, inputs)
    with pytest.MonkeyPatch.context() as patch:
        trainer, inputs = trainer_of(make, SIGNAL, lora=None, speed=PLAIN)
        for name in ("_prepare_inputs", "_compute_loss"):
            patch.setattr(type(trainer), name, getattr(trl.GRPOTrainer, name), raising=False)
        found, gradient = gradients(trainer, inputs)
    assert found == loss
    assert alike(gradient, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [("grpo", {"loss": "dapo", "beta": 0.1}), ("grpo", {"loss": "grpo"}), ("grpo", {"loss": "dr_grpo"}), ("rloo", {})],
)
def test_a_masked_completion_is_in_no_part_of_the_loss(make: Make, method: str, changes: dict[str, Any]) -> None:
    """Two of eight have no reward. The loss of the step is that of the other six alone: hand-worked from TRL's own
    log-probs, in one micro-batch of them."""
    import torch

    rewards: list[float | None] = [1.0, None, 0.5, 0.0, 0.0, None, 1.0, 1.0]
    trainer, inputs = trainer_of(make, rewards, method, lora=None, micro_batch_size=8, speed=PLAIN, **changes)
    torch.manual_seed(3)
    trainer._step = 0
    batch = trainer._prepare_inputs(inputs)
    kept = batch["tool_mask"].any(1)
    assert int(kept.sum()) == 6
    # mean 0.5 and standard deviation 0.5 of {1, 0.5, 0}; of {0, 1, 1} mean 2/3 and deviation 0.57735
    hand = (
        {0.5 / 0.5001, 0.0, -0.5 / 0.5001, -0.66667 / 0.57745, 0.33333 / 0.57745}
        if method == "grpo"
        else {1.0 - 0.25, 0.5 - 0.5, 0.0 - 0.75, 0.0 - 1.0, 1.0 - 0.5}
    )
    if method == "grpo":
        found = sorted({round(value, 3) for value in batch["advantages"].tolist()})
        assert found == sorted({round(value, 3) for value in hand})
    assert not batch["advantages"][~kept].any()
    alone = {k: v[kept] if v.ndim else v for k, v in batch.items() if k not in ("tool_mask", "loss_scale")}
    both = []
    for inputs in (batch, alone):
        trainer.model.zero_grad(set_to_none=True)
        trainer.compute_loss(trainer.model, inputs).backward()
        both.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    assert any(gradient.abs().max() > 1e-3 for gradient in both[0].values())
    assert alike(*both)


def test_rounds_ask_every_prompt_once_an_epoch_and_each_round_for_all_of_its_steps() -> None:
    from rlaif.training.trl_adapter.grpo import Rounds

    rounds = Rounds(prompts=5, rounds=5, prompts_per_step=2, group_size=3, repeats=2, seed=1)
    rows = list(rounds)
    assert len(rows) == len(rounds) == 60
    each = [rows[i : i + 12] for i in range(0, 60, 12)]
    assert all(block[:6] == block[6:] for block in each)
    asked = [row for block in each for row in block[:6:3]]
    assert sorted(asked[:5]) == sorted(asked[5:]) == [0, 1, 2, 3, 4]
    assert asked[:5] != asked[5:]
    assert list(Rounds(prompts=5, rounds=5, prompts_per_step=2, group_size=3, repeats=2, seed=1)) == rows


# ------------------------------------------------------------------------------------------------ judges in the reward

JUDGED: list[str] = []


def says(request: ChatRequest) -> str:
    """Yes where the response holds an "a" or an "o", under either meaning of the labels."""
    text = request.messages[-1].content
    JUDGED.append(text)
    response = re.findall(r"<response>\n(.*?)\n</response>", text, re.DOTALL)[-1]
    yes, no = re.findall(r"\b([XY])\b", request.messages[-1].content.rpartition("</response>")[2])[:2]
    return str(yes if {"a", "o"} & set(response) else no)


@pytest.mark.slow
def test_a_judge_is_asked_once_for_each_completion_however_often_a_training_is_begun(make: Make) -> None:
    judge = {"model": "scripted:tests.training.test_groups:says", "needs_reference": False}
    config = make(reward={"verifier": "judge", "options": judge}, steps=2, max_failed=1.0)
    first = train(config)
    asked = len(JUDGED)
    assert asked > 8
    assert (config.out / "ledger.sqlite").is_file()
    assert first.manifest["budget"]["usd"] == 0
    before = weights(first.model)
    shutil.rmtree(first.model)  # as if it had been killed before anything was saved
    again = train(config)
    assert len(JUDGED) == asked
    assert all((weights(again.model)[key] == value).all() for key, value in before.items())
