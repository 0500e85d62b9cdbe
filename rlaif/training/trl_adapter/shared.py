"""What the adapters of TRL's trainers share: loading, the settings that are the same for all, what is left behind."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM

from rlaif.errors import InputError
from rlaif.hashing import uniform
from rlaif.training.plan import Plan


class RowsConfig(Protocol):
    """What the config of a method says that learns from rows known before it begins."""

    @property
    def seed(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def save_steps(self) -> int | None: ...


def load_model(model_path: str, plan: Plan) -> Any:
    """Raises InputError when the model cannot be loaded."""
    # TRL asks transformers for a name that is going away; nobody here can do anything about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    try:
        return AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, plan.dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"{model_path}: the model cannot be loaded ({str(error).splitlines()[0]}).") from None


def row_arguments(made: Any, config: RowsConfig, plan: Plan, checkpoints: Path, **own: Any) -> Any:
    """The arguments of a trainer of rows: an instance of ``made``, one of TRL's config classes."""
    return made(
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
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses instead
        disable_tqdm=True,
        report_to="none",
        **{checkpointing(made): plan.gradient_checkpointing},
        **own,
    )


def checkpointing(made: Any) -> str:
    """What the installed transformers calls gradient checkpointing (another name since 5.20)."""
    name = "activation_checkpointing"
    return name if name in made.__dataclass_fields__ else "gradient_checkpointing"


class Leaves:
    """What a trainer leaves behind, beside one of TRL's trainers."""

    accelerator: Any
    model: Any

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


class LikeLengths(Sampler[int]):  # type: ignore[misc]
    """Every row once an epoch, in an order drawn from (seed, epoch, row); inside each optimizer step of ``step`` rows
    sorted by length, longest first, so that micro-batches hold rows of like length and memory peaks at once."""

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = sorted(range(len(self.lengths)), key=lambda row: uniform(self.seed, self.epoch, row))
        for start in range(0, len(order), self.step):
            yield from sorted(order[start : start + self.step], key=lambda row: -self.lengths[row])


def like_lengths(trainer: Any, lengths: Sequence[int]) -> LikeLengths:
    """The sampler of a trainer whose rows have these lengths."""
    return LikeLengths(
        lengths, trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps, trainer.args.seed
    )
