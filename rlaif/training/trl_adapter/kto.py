"""KTOTrainer of TRL 1.16, fed with answers that are tokenized and checked already.

What it does otherwise than a plain ``KTOTrainer``, each for a reason:

* the mismatched answers that the KL divergence is estimated from are those of the same micro-batch, moved on by one, as
  the paper has it; TRL fixes them once, in the order of the file, so after shuffling they are of other rows;
* answers of like length are computed together inside one optimizer step (the same rows, less padding);
* a loss that is no number ends the training before it reaches the weights.

The estimate is of a micro-batch: another ``micro_batch_size`` is a slightly different training. Not covered: several
machines, DeepSpeed and FSDP.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from rlaif.config.train.kto import TrainKTOConfig
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.kto import TokenAnswer
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.trl_adapter.shared import Leaves, like_lengths, load_model, row_arguments


def make_trainer(
    config: TrainKTOConfig,
    plan: Plan,
    train: Sequence[TokenAnswer],
    weights: tuple[float, float],
    tokenizer: Any,
    model_path: str,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> "AnswerTrainer":
    """A trainer ready for ``train()``. Raises InputError when the model cannot be loaded."""
    model = load_model(model_path, plan)
    trainer = AnswerTrainer(
        model=model,
        ref_model=None if config.lora else copy.deepcopy(model),
        args=_arguments(config, plan, weights, checkpoints),
        train_dataset=_data_set(train),
        processing_class=tokenizer,
        peft_config=adapter_config(config.lora) if config.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: TrainKTOConfig, plan: Plan, weights: tuple[float, float], checkpoints: Path) -> Any:
    return row_arguments(
        trl.KTOConfig,
        config,
        plan,
        checkpoints,
        beta=config.beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )


def _data_set(rows: Sequence[TokenAnswer]) -> Any:
    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in rows],
            "completion_ids": [list(row.completion) for row in rows],
            "label": [row.good for row in rows],
        }
    )


class AnswerTrainer(Leaves, trl.KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on token ids."""

    def __init__(self, **kwargs: Any) -> None:
        self.data_collator: Any = None
        super().__init__(**kwargs)
        self.data_collator = Mismatched(self.data_collator)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.tokens, as TRL would

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        return like_lengths(self, [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in data])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        stop_if_diverged(self, loss, inputs)
        return loss


class Mismatched:
    """TRL's collator, with each row's prompt also before the answer of the row before it."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        answers = [row["completion_ids"] for row in rows]
        others = [answers[-1], *answers[:-1]]
        return self.collator([{**row, "KL_completion_ids": other} for row, other in zip(rows, others, strict=True)])
