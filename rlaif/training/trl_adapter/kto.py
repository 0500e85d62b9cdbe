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
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from rlaif.config.train.kto import TrainKTOConfig
from rlaif.errors import InputError
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.kto import TokenAnswer
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.trl_adapter.dpo import LikeLengths


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
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # TRL's own
    try:
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, plan.dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"{model_path}: the model cannot be loaded ({str(error).splitlines()[0]}).") from None
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
    checkpointing = "activation_checkpointing"  # its name since transformers 5.20
    if checkpointing not in trl.KTOConfig.__dataclass_fields__:
        checkpointing = "gradient_checkpointing"
    return trl.KTOConfig(
        output_dir=str(checkpoints),
        seed=config.seed,
        beta=config.beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        learning_rate=plan.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=plan.warmup_steps,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // plan.micro_batch_size,
        max_length=config.max_length,
        use_cpu=plan.device == "cpu",
        bf16=plan.autocast,
        dataloader_pin_memory=plan.device != "cpu",
        save_strategy="steps" if config.save_steps else "epoch",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses instead
        disable_tqdm=True,
        report_to="none",
        **{checkpointing: plan.gradient_checkpointing},
    )


def _data_set(rows: Sequence[TokenAnswer]) -> Any:
    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in rows],
            "completion_ids": [list(row.completion) for row in rows],
            "label": [row.good for row in rows],
        }
    )


class AnswerTrainer(trl.KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on token ids."""

    def __init__(self, **kwargs: Any) -> None:
        self.data_collator: Any = None
        super().__init__(**kwargs)
        self.data_collator = Mismatched(self.data_collator)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.tokens, as TRL would

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in data]
        return LikeLengths(
            lengths, self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps, self.args.seed
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        stop_if_diverged(self, loss, inputs)
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


class Mismatched:
    """TRL's collator, with each row's prompt also before the answer of the row before it."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        answers = [row["completion_ids"] for row in rows]
        others = [answers[-1], *answers[:-1]]
        return self.collator([{**row, "KL_completion_ids": other} for row, other in zip(rows, others, strict=True)])
