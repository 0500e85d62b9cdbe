"""SFTTrainer of TRL 1.16, fed with conversations that are tokenized and checked already.

What it does otherwise than a plain ``SFTTrainer``, each for a reason:

* conversations of like length are computed together inside one optimizer step (the same step, less padding);
* a conversation that is a batch of its own gets logits for its learned tokens only, and no entropy of each (TRL
  computes both for its logs);
* a loss that is no number ends the training before it reaches the weights.

Not covered: several machines, DeepSpeed and FSDP.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from rlaif.config.train.sft import TrainSFTConfig
from rlaif.errors import InputError
from rlaif.training.demonstrations import TokenRow
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.trl_adapter.dpo import LikeLengths


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
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    try:
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, plan.dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"{model_path}: the model cannot be loaded ({str(error).splitlines()[0]}).") from None
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
    checkpointing = "activation_checkpointing"  # its name since transformers 5.20
    if checkpointing not in trl.SFTConfig.__dataclass_fields__:
        checkpointing = "gradient_checkpointing"
    return trl.SFTConfig(
        output_dir=str(checkpoints),
        seed=config.seed,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=plan.warmup_steps,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // plan.micro_batch_size,
        max_length=config.max_length,
        use_cpu=plan.device == "cpu",
        bf16=plan.autocast,
        dataloader_pin_memory=plan.device != "cpu",
        save_strategy="steps" if config.save_steps else "epoch",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        eval_strategy="epoch" if evaluate else "no",
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses instead
        disable_tqdm=True,
        report_to="none",
        **{checkpointing: plan.gradient_checkpointing},
    )


def _data_set(rows: Sequence[TokenRow]) -> Any:
    return Dataset.from_dict({"input_ids": [list(row.ids) for row in rows], "labels": [row.labels for row in rows]})


class AnswerTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on token ids. ``train_dataset`` has input_ids, and labels that are -100 where nothing is learned."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.demonstrations

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return LikeLengths([len(row["input_ids"]) for row in data], step, self.args.seed)

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

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint here is no model to publish."""

    def trained_model(self) -> Any:
        """The model with any adapter merged into its weights, and with the forward pass it came with."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model.__dict__.pop("forward", None)  # TRL's fused LM head
        return model

    def save_adapter(self, folder: Path) -> None:
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)


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
