"""SFTTrainer of TRL 1.16, fed with conversations that are tokenized and checked already.

What it does otherwise than a plain ``SFTTrainer``, each for a reason:

* conversations of like length are computed together inside one optimizer step (the same step, less padding);
* a conversation that is a batch of its own gets logits for its learned tokens only, and no entropy of each (TRL
  computes both for its logs);
* a loss that is no number ends the training before it reaches the weights.

Not covered: several machines, DeepSpeed and FSDP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from rlaif.config.train.sft import TrainSFTConfig
from rlaif.training.demonstrations import TokenRow
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.trl_adapter.shared import Leaves, like_lengths, load_model, row_arguments


def make_trainer(
    config: TrainSFTConfig,
    plan: Plan,
    train: Sequence[TokenRow],
    evaluate: Sequence[TokenRow],
    tokenizer: Any,
    model_path: str,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> "AnswerTrainer":
    """A trainer ready for ``train()``. Raises InputError when the model cannot be loaded."""
    model = load_model(model_path, plan)
    trainer = AnswerTrainer(
        model=model,
        args=_arguments(config, plan, checkpoints, bool(evaluate)),
        train_dataset=_data_set(train),
        eval_dataset=_data_set(evaluate) if evaluate else None,
        processing_class=tokenizer,
        peft_config=adapter_config(config.lora) if config.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: TrainSFTConfig, plan: Plan, checkpoints: Path, evaluate: bool) -> Any:
    return row_arguments(
        trl.SFTConfig,
        config,
        plan,
        checkpoints,
        eval_strategy="epoch" if evaluate else "no",
        prediction_loss_only=True,
    )


def _data_set(rows: Sequence[TokenRow]) -> Any:
    return Dataset.from_dict({"input_ids": [list(row.ids) for row in rows], "labels": [row.labels for row in rows]})


class AnswerTrainer(Leaves, trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on token ids. ``train_dataset`` has input_ids, and labels that are -100 where nothing is learned."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.demonstrations

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        return like_lengths(self, [len(row["input_ids"]) for row in data])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if len(inputs["input_ids"]) == 1 and not return_outputs:
            loss = answer_loss(model, inputs, num_items_in_batch)
        else:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = loss[0] if return_outputs else loss
        stop_if_diverged(self, value, inputs)
        return loss


def answer_loss(model: Any, inputs: dict[str, Any], tokens_in_step: Any = None) -> torch.Tensor:
    """Sum of -log p over the learned tokens of one row, divided by the learned tokens of the whole optimizer step
    (None: of the row). TRL's loss, with logits where they are needed alone."""
    labels_T = inputs["labels"][0, 1:]
    predict_N = (labels_T != -100).nonzero().squeeze(-1)
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        logits_to_keep=predict_N,
        use_cache=False,
    )
    total = F.cross_entropy(output.logits[0].float(), labels_T[predict_N], reduction="sum")
    return total / (len(predict_N) if tokens_in_step is None else tokens_in_step)


__all__ = ["AnswerTrainer", "answer_loss", "make_trainer"]
