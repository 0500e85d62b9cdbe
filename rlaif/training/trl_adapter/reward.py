"""RewardTrainer of TRL 1.16, fed with pairs that are tokenized and checked already.

What it does otherwise than a plain ``RewardTrainer``, each for a reason:

* the score is read at the end token, found by length (TRL: at the last token that is not padding, which is one token
  early where pad and eos are the same);
* a pair is one row in which the prompt stands once (on a CPU, where the model gives the same for it as for two rows),
  or two rows of one batch; pairs of like length are computed together inside one optimizer step;
* soft labels: the cross-entropy with ``prob_chosen`` of each pair;
* the head begins at zero, so every pair begins at even odds and the loss at ln 2;
* a loss that is no number ends the training before it reaches the weights.

Not covered: several machines, DeepSpeed and FSDP.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback

from rlaif.config.train import TrainRewardConfig
from rlaif.errors import InputError
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.losses import preference_losses, share_prompts
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.reward_model import end_states, quiet, scored_model
from rlaif.training.tokens import TokenPair
from rlaif.training.trl_adapter.shared import Leaves, like_lengths, row_arguments

_SAME_STATES = 1e-3  # of the largest component: two ways to the same states differ by rounding only


def make_trainer(
    config: TrainRewardConfig,
    plan: Plan,
    train: Sequence[TokenPair],
    tokenizer: Any,
    model_path: str,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> "ScoreTrainer":
    """A trainer ready for ``train()``. Raises InputError when the model cannot be loaded."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    trainer = ScoreTrainer(
        plan=plan,
        soft=config.labels == "soft",
        margins=config.margins,
        model=_load(model_path, plan),
        args=_arguments(config, plan, checkpoints),
        train_dataset=_data_set(train),
        processing_class=tokenizer,
        data_collator=PaddedCollator(),
        peft_config=adapter_config(config.lora, "score") if config.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    if plan.share_prompts:
        trainer.try_shared_prompts(min(train, key=lambda pair: pair.length))
    return trainer


def _load(model_path: str, plan: Plan) -> Any:
    loader: Any = AutoModelForSequenceClassification
    try:
        with quiet():
            model, loading = loader.from_pretrained(
                model_path, num_labels=1, dtype=getattr(torch, plan.dtype), output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise InputError(f"{model_path}: the model cannot be loaded ({str(error).splitlines()[0]}).") from None
    if any(key.startswith("score") for key in loading["missing_keys"]):
        torch.nn.init.zeros_(model.score.weight)
    return model


def _arguments(config: TrainRewardConfig, plan: Plan, checkpoints: Path) -> Any:
    return row_arguments(
        trl.RewardConfig,
        config,
        plan,
        checkpoints,
        eval_strategy="no",
    )


_COLUMNS = ("prompt", "chosen", "rejected", "prob_chosen", "margin")


def _data_set(pairs: Sequence[TokenPair]) -> Any:
    return Dataset.from_dict({column: [getattr(pair, column) for pair in pairs] for column in _COLUMNS})


class ScoreTrainer(Leaves, trl.RewardTrainer):  # type: ignore[misc]
    """RewardTrainer on token ids. ``train_dataset`` has the fields of `TokenPair`."""

    def __init__(self, *, plan: Plan, soft: bool, margins: bool, **kwargs: Any) -> None:
        self.plan, self.soft, self.margins = plan, soft, margins
        self.shares_prompts = False  # until it has been shown to give the same states
        super().__init__(**kwargs)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.reward, with the render() of use

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(_COLUMNS)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        return like_lengths(self, [len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in data])

    def try_shared_prompts(self, example: TokenPair) -> None:
        """Compute pairs as one row with the prompt once, if that gives the same for ``example``."""
        row = {column: getattr(example, column) for column in _COLUMNS}
        self.model.eval()
        with torch.no_grad():
            expected = end_states(self.model, self._prepare_inputs(PaddedCollator()([row])))
            try:
                found = end_states(self.model, self._prepare_inputs(SharedCollator()([row])))
                near = _SAME_STATES * float(expected.abs().max())
                self.shares_prompts = bool(torch.allclose(found, expected, atol=near))
            except (TypeError, ValueError, RuntimeError):  # a model that takes no positions or no such mask
                self.shares_prompts = False
        if self.shares_prompts:
            self.data_collator = SharedCollator()

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        with self.accelerator.autocast():
            states = end_states(self.accelerator.unwrap_model(model), inputs)
            scores_B2 = scored_model(self.accelerator.unwrap_model(model)).score(states).float().view(-1, 2)
        difference_B = scores_B2[:, 0] - scores_B2[:, 1]
        apart_B = difference_B - inputs["margin"] if self.margins else difference_B
        loss = preference_losses(apart_B, inputs["prob_chosen"] if self.soft else None).mean()
        stop_if_diverged(self, loss, inputs)
        metrics = self._metrics["train"]
        metrics["accuracy"].append((difference_B.detach() > 0).float().mean().item())
        metrics["margin"].append(difference_B.detach().mean().item())
        return loss


class PaddedCollator:
    """Pairs as two rows each, chosen and rejected, padded on the right. ``ends``: (row, position) of chosen, rejected
    of the first pair, then of the next."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [[*row["prompt"], *row[side]] for row in rows for side in ("chosen", "rejected")]
        longest = max(map(len, texts))
        return {
            "input_ids": torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts]),
            "ends": torch.tensor([[i, len(ids) - 1] for i, ids in enumerate(texts)]),
            **_labels(rows),
        }


class SharedCollator:
    """Pairs in one row, each with its prompt once (see `SharedPromptRow`)."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        row = share_prompts(
            [TokenPair(tuple(r["prompt"]), tuple(r["chosen"]), tuple(r["rejected"])) for r in rows], whole=True
        )
        ends_N = row.ends_B2.flatten()
        return {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            # Added to the attention scores: unlike a boolean mask it means the same to every implementation.
            "attention_mask": torch.zeros(row.mask.shape).masked_fill(~row.mask, torch.finfo(torch.float32).min),
            "ends": torch.stack([torch.zeros_like(ends_N), ends_N], dim=1),
            **_labels(rows),
        }


def _labels(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {column: torch.tensor([float(row[column]) for row in rows]) for column in ("prob_chosen", "margin")}


__all__ = ["PaddedCollator", "ScoreTrainer", "SharedCollator", "make_trainer"]
