import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.train import TrainRewardConfig
from rlaif.errors import InputError, QualityError
from rlaif.training import RewardModel, check_reward, train_reward
from rlaif.training.reward_model import RewardEnsemble, RewardModelVerifier, render
from rlaif.types import Reward, Unverified
from tests.training.test_dpo import same, stop_after
from tests.training.tiny import contract_rows, write_jsonl

Make = Callable[..., TrainRewardConfig]


@pytest.fixture
def config(tiny_model: Path, pairs_file: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> TrainRewardConfig:
        values = {
            "data": str(pairs_file),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "batch_size": 4,
            "device": "cpu",
            "eval_fraction": 0,
        }
        return TrainRewardConfig.model_validate(values | changes)

    return make


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    data = write_jsonl(folder / "pairs.jsonl", contract_rows(30))
    settings = {"data": str(data), "model": str(tiny_model), "device": "cpu", "learning_rate": 0.01, "epochs": 3}
    result = train_reward(
        TrainRewardConfig.model_validate(settings | {"out": folder / "out", "lora": {"r": 2}, "eval_fraction": 0.3})
    )
    return result.out


PROMPTS = ["What is 2 plus 2?", "What is 30 plus 30?", "Why?", "What is 1 plus 1?"]
ANSWERS = ["4.", "That is a good question; it may be 60 or so or so", "Because.", "That is a good question; it may"]

# ------------------------------------------------------------------------------------------------------- in use


def test_the_brief_answers_it_was_trained_to_prefer_score_higher(trained: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["shared_prompts"] is True
    report = manifest["reward"]
    assert report["accuracy"]["value"] == 1.0
    assert report["accuracy"]["low"] < 1.0
    assert report["longer_wins"]["value"] == 0.0
    assert report["length_correlation"] < -0.5
    assert report["loss"] < math.log(2)
    assert "held-out pairs: 100.0% in the right order" in manifest["summary"]
    scores = RewardModel.load(trained).score(["What is 5 plus 5?"] * 2, ["10.", "That is a good question; it may be"])
    assert scores[0] > scores[1]


def test_a_score_does_not_depend_on_its_batch(trained: Path) -> None:
    scorer = RewardModel.load(trained)
    assert isinstance(scorer, RewardModel)
    together = scorer.score(PROMPTS, ANSWERS)
    alone = [scorer.score([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    scorer.batch_tokens = 1
    assert scorer.score(PROMPTS, ANSWERS) == pytest.approx(alone, abs=1e-5)
    assert scorer.score(PROMPTS[::-1], ANSWERS[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_a_text_ends_at_its_end_token_however_it_is_given(trained: Path) -> None:
    scorer = RewardModel.load(trained)
    assert isinstance(scorer, RewardModel)
    ids = render(scorer.tokenizer, scorer.policy, "Why?", "Because.")
    assert scorer.tokenizer.decode(ids) == "<|begin|>user\nWhy?<|end|>\n<|begin|>assistant\nBecause.<|end|>"
    turns = [{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "Because."}]
    assert render(scorer.tokenizer, scorer.policy, *turns) == ids
    plain = scorer.policy.model_copy(update={"form": "plain"})
    assert scorer.tokenizer.decode(render(scorer.tokenizer, plain, "Q:", " A")) == "Q: A<|end|>"
    assert render(scorer.tokenizer, plain, "Q:", " A<|end|>") == render(scorer.tokenizer, plain, "Q:", " A")
    with pytest.raises(InputError, match="was trained on plain text"):
        render(scorer.tokenizer, plain, *turns)


def test_a_text_that_is_too_long_has_no_score(trained: Path) -> None:
    scorer = RewardModel.load(trained)
    long = ["short", "x" * 2000]
    found = scorer.score_where_it_fits(["Why?"] * 2, long)
    assert found[0] is not None
    assert found[1] is None
    with pytest.raises(InputError, match=r"completion 1 .* longer than the reward model's 1024 tokens \(1 of 2 are\)"):
        scorer.score(["Why?"] * 2, long)


def test_an_ensemble_is_on_one_scale_and_the_worst_is_never_above_the_mean(trained: Path) -> None:
    one = RewardModel.load(trained)
    assert isinstance(one, RewardModel)
    other = RewardModel(one.model, one.tokenizer, one.policy.model_copy(update={"mean": 3.0, "std": 2.0}))
    raw = one.score(PROMPTS, ANSWERS)
    a, b = ([(s - m.policy.mean) / m.policy.std for s in raw] for m in (one, other))
    mean, worst, careful = (
        RewardEnsemble([one, other], combine).score(PROMPTS, ANSWERS) for combine in ("mean", "worst", "uncertainty")
    )
    assert mean == pytest.approx([(x + y) / 2 for x, y in zip(a, b, strict=True)])
    assert worst == pytest.approx([min(x, y) for x, y in zip(a, b, strict=True)])
    assert careful == pytest.approx([m - ((x - y) / 2) ** 2 for m, x, y in zip(mean, a, b, strict=True)])
    loaded = RewardModel.load([trained, trained], combine="worst")
    assert loaded.score(PROMPTS, ANSWERS) == pytest.approx(a)


def test_no_reward_model_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    for folder in (tmp_path, tiny_model):
        with pytest.raises(InputError, match="holds no reward model of `rlaif train reward`"):
            RewardModel.load(folder)


def test_it_is_a_part_of_a_reward(trained: Path) -> None:
    from rlaif.config.rewards import Node
    from rlaif.rewards import open_reward

    reward = open_reward(Node.model_validate({"verifier": "reward_model", "options": {"model": str(trained)}}))

    async def score() -> Any:
        tasks = [{"prompt": prompt} for prompt in PROMPTS]
        scored = await reward.score_many([*ANSWERS, "x" * 2000], [*tasks, {"prompt": "Why?"}])
        nothing = await reward.score("a", {})
        await reward.aclose()
        return scored, nothing

    scored, nothing = asyncio.run(score())
    scorer = RewardModel.load(trained)
    assert isinstance(scorer, RewardModel)
    scaled = [(s - scorer.policy.mean) / scorer.policy.std for s in scorer.score(PROMPTS, ANSWERS)]
    assert [s.value for s in scored[:4]] == pytest.approx([1 / (1 + math.exp(-s)) for s in scaled], abs=1e-5)
    assert (scored[4].value, scored[4].masked) == (None, "abstained")
    assert (nothing.value, nothing.masked) == (None, "task_error")


def test_completions_asked_about_together_are_scored_together(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = RewardModelVerifier(RewardModelVerifier.Options(model=str(trained), scale="raw"))
    calls: list[int] = []
    plain = verifier._score

    def counted(prompts: Any, completions: Any) -> Any:
        calls.append(len(prompts))
        return plain(prompts, completions)

    monkeypatch.setattr(verifier, "_score", counted)

    async def ask() -> list[Reward | Unverified]:
        return await asyncio.gather(*(verifier.verify("4.", {"prompt": p}) for p in PROMPTS * 4))

    verdicts = asyncio.run(ask())
    assert all(isinstance(v, Reward) for v in verdicts)
    assert sum(calls) == 16
    assert len(calls) <= 2


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("lora", "stopped_at"), [({"r": 2, "dropout": 0.1}, 2), (None, 4)])
def test_a_training_interrupted_and_resumed_gives_the_very_same_weights(
    config: Make, tmp_path: Path, lora: Any, stopped_at: int
) -> None:
    settings = {"lora": lora, "epochs": 2, "learning_rate": 0.01}  # 3 steps an epoch
    whole = train_reward(config(**settings, out=str(tmp_path / "whole")))
    parts = config(**settings, out=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        train_reward(parts, progress=stop_after(stopped_at))
    assert not (parts.out / "model").exists()
    result = train_reward(parts, resume=True)
    assert same(result.model, whole.model)
    assert result.manifest["curve"] == whole.manifest["curve"]
    assert result.manifest["reward"] == whole.manifest["reward"]
    with pytest.raises(InputError, match=r"different: lora|different: labels"):
        train_reward(config(**settings, labels="soft", out=str(tmp_path / "parts")))


def test_lora_trains_and_saves_its_head(trained: Path) -> None:
    from safetensors.torch import load_file

    adapter = load_file(trained / "adapter" / "adapter_model.safetensors")
    (head,) = [weight for name, weight in adapter.items() if "score" in name]
    assert float(head.abs().max()) > 0  # it begins at zero
    assert (load_file(trained / "model" / "model.safetensors")["score.weight"] == head).all()


def test_a_model_that_was_written_wrong_is_no_success(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.training.trl_adapter import reward as adapter

    plain = adapter.ScoreTrainer.trained_model

    def damaged(self: Any) -> Any:
        model = plain(self)
        model.score.weight.data += 1.0
        return model

    monkeypatch.setattr(adapter.ScoreTrainer, "trained_model", damaged)
    with pytest.raises(QualityError, match="scores otherwise than the one that was trained"):
        train_reward(config())
    assert not (config().out / "model").exists()


def test_the_loss_and_gradients_are_trls_where_both_read_the_same_token(tiny_model: Path, tmp_path: Path) -> None:
    """A pad token that stands nowhere: then TRL reads the score at the end, too."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlaif.training.losses import preference_losses
    from rlaif.training.reward_model import end_states
    from rlaif.training.tokens import TokenPair
    from rlaif.training.trl_adapter.reward import PaddedCollator, SharedCollator

    loader: Any = AutoModelForSequenceClassification
    model = loader.from_pretrained(tiny_model, num_labels=1)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = "~"
    pairs = [TokenPair((5, 6, 7), (8, 9, 1), (10, 1)), TokenPair((5, 7), (9, 1), (11, 12, 13, 14, 1))]
    rows = [
        {"chosen_ids": [*p.prompt, *p.chosen], "rejected_ids": [*p.prompt, *p.rejected], "margin": m}
        for p, m in zip(pairs, (0.5, 0.1), strict=True)
    ]
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = trainer.data_collator(rows)
    margins = torch.tensor([0.5, 0.1])
    weights = [w for name, w in model.named_parameters() if "embed" not in name]
    expected = trainer.compute_loss(model, dict(inputs))
    gradients = torch.autograd.grad(expected, weights)
    ours = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "prob_chosen": 1.0, "margin": 0.0}
        for p in pairs
    ]
    for collator in (PaddedCollator(), SharedCollator()):
        scores = model.score(end_states(model, collator(ours))).view(-1, 2)
        loss = preference_losses(scores[:, 0] - scores[:, 1] - margins).mean()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        for one, other in zip(torch.autograd.grad(loss, weights), gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_certain_soft_labels_are_hard_ones_and_uncertain_ones_bound_the_difference(
    config: Make, pairs_file: Path, tmp_path: Path
) -> None:
    def run(prob: float, labels: str) -> Any:
        write_jsonl(pairs_file, [row | {"prob_chosen": prob} for row in contract_rows(8)])
        out = str(tmp_path / f"{labels}{prob}")
        return train_reward(config(labels=labels, learning_rate=0.01, lora=None, epochs=6, out=out))

    hard, certain, doubtful = run(1.0, "hard"), run(1.0, "soft"), run(0.6, "soft")
    assert same(hard.model, certain.model)
    assert hard.manifest["curve"][-1]["margin"] > 2 * doubtful.manifest["curve"][-1]["margin"]


def test_margins_ask_for_a_difference(config: Make, pairs_file: Path) -> None:
    first = train_reward(config(margins=True)).manifest["curve"][0]["loss"]
    assert first == pytest.approx(math.log(1 + math.exp(0.8)), abs=1e-5)  # scores begin at zero; the margin is 0.8
    write_jsonl(pairs_file, [{k: v for k, v in row.items() if k != "margin"} for row in contract_rows(3)])
    with pytest.raises(InputError, match=r"line 1 has no margin \(3 of 3 pairs have none\)"):
        check_reward(config(margins=True))


# ------------------------------------------------------------------------------------------------------ bad input


def test_pairs_over_max_length_are_dropped_and_counted(config: Make) -> None:
    report = check_reward(config(max_length=80))
    assert 0 < report.data.dropped["too_long"] < 12
    assert report.data.pairs + report.data.dropped["too_long"] == 12
    with pytest.raises(InputError, match=r"no pair is left at max_length 16 \(12 too_long\)"):
        check_reward(config(max_length=16))


def test_ties_alone_are_nothing_to_learn(config: Make, pairs_file: Path) -> None:
    write_jsonl(pairs_file, [row | {"prob_chosen": 0.5} for row in contract_rows(3)])
    with pytest.raises(InputError, match="every pair is a tie"):
        check_reward(config(labels="soft"))


def test_one_pair_can_be_learned(config: Make, pairs_file: Path) -> None:
    write_jsonl(pairs_file, contract_rows(1))
    assert train_reward(config()).manifest["reward"]["pairs"] == 1


def test_a_separate_file_is_measured_and_prompts_in_both_are_counted(config: Make, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "held_out.jsonl", contract_rows(15)[9:])
    report = check_reward(config(eval_data=str(other)))
    assert (report.cost.train_rows, report.cost.eval_rows) == (12, 6)
    assert "3 prompts also in training" in dict(report.lines)["held out"]


def test_a_weight_that_is_no_number_is_never_saved(config: Make, tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="diverged at step"):
        train_reward(config(learning_rate=1e38, lora=None, epochs=4, warmup=0, save_steps=1))
    assert not (tmp_path / "out" / "model").exists()


# ---------------------------------------------------------------------------------------------------- the floors


def test_a_bag_of_words_finds_the_word_that_decides() -> None:
    from rlaif.preferences import Pair
    from rlaif.training.reward_report import bag_of_words

    def pair(i: int) -> Pair:
        return Pair("Q", f"the answer {i} is good", f"the answer {i} is bad", "row")

    found = bag_of_words([pair(i) for i in range(20)], [pair(99), Pair("Q", "bad", "good", "row")])
    assert found[0] > 0 > found[1]
