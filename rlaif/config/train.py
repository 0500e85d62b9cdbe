"""The configs of `rlaif train`: one model for each method. Every default is a vetted setting; ``auto`` values are
chosen from the data, the model and the machine when the training is planned, and reported with their reasons."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.base import Config
from rlaif.config.models import BACKENDS

Auto = Literal["auto"]


class LoraConfig(Config):
    """A low-rank adapter (Hu et al., arXiv 2106.09685) instead of training all weights.

    ``target_modules``: "all-linear" (every linear layer but the LM head) or the names of the layers to adapt.
    """

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # the adapter's output is scaled by alpha / r
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _trainable(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("name at least one layer, or write all-linear")
        if isinstance(value, list) and "lm_head" in value:
            # The log-probs are computed from lm_head.weight itself: an adapter there would never be trained.
            raise ValueError("lm_head cannot carry an adapter here; name other layers, or write all-linear")
        return value


class TrainDPOConfig(Config):
    """Direct Preference Optimization (Rafailov et al., arXiv 2305.18290) of ``model`` on preference pairs.

    ``data``: a run folder of `rlaif generate`, a preference file in one of TRL's formats, or a data set folder.
    ``batch_size``: pairs in one optimizer step; ``micro_batch_size``: how many of them are computed at once.
    ``max_length``: tokens of prompt + completion; what is longer is cut off at the end.
    ``warmup``: a share of all steps (below 1, rounded down) or a number of steps. ``limit``: only so many pairs.
    """

    data: str
    model: str = "local:smollm2"
    out: Path
    seed: int = Field(0, ge=0, le=2**31 - 1)
    beta: float = Field(0.1, gt=0)  # how strongly the model is held near where it began
    learning_rate: float | Auto = "auto"  # auto: 10 times higher for LoRA than for all weights
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | Auto = "auto"
    max_length: int = Field(1024, ge=16)
    lora: LoraConfig | None = LoraConfig()
    warmup: float = Field(0.05, ge=0)
    gradient_checkpointing: bool | Auto = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_steps: int | None = Field(None, ge=1)  # a checkpoint every so many steps (default: at the end of each epoch)
    eval_fraction: float = Field(0.0, ge=0, le=0.5)  # share of pairs held out and measured at the end of each epoch
    limit: int | None = Field(None, ge=1)

    @field_validator("model")
    @classmethod
    def _weights_on_this_machine(cls, value: str) -> str:
        backend, sep, name = value.partition(":")
        if not value or (sep and not name):
            raise ValueError(f"'{value}' names no model; write local:PATH_OR_ID, such as local:smollm2.")
        if sep and backend in BACKENDS and backend != "local":
            raise ValueError(
                f"'{value}' cannot be trained here, only models whose weights are on this machine or the hub:"
                " write local:PATH_OR_ID."
            )
        return value if sep and backend == "local" else f"local:{value}"

    @field_validator("learning_rate", "micro_batch_size")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if not isinstance(value, str) and value <= 0:
            raise ValueError(f"must be greater than 0, or auto (found {value})")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainDPOConfig":
        if isinstance(self.micro_batch_size, int) and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size};"
                " an optimizer step is a whole number of micro-batches"
            )
        return self

    @property
    def model_name(self) -> str:
        """The model without ``local:``: what `rlaif.clients.local.resolve_model` takes."""
        return self.model.removeprefix("local:")


# Keys of TRL, transformers and other trainers that users still write -> what to write here.
_ELSEWHERE = {
    "max_prompt_length": "gone from TRL; max_length bounds prompt + completion together.",
    "max_completion_length": "max_length bounds prompt + completion together.",
    "rpo_alpha": "gone from TRL; there is no NLL term here.",
    "reference_free": "gone from TRL; the reference is always the model before training.",
    "ref_model": "the reference is always the model before training.",
    "generate_during_eval": "gone from TRL; compare before and after with `rlaif eval`.",
    "evaluation_strategy": "gone from transformers; set eval_fraction, and it is measured at the end of each epoch.",
    "eval_strategy": "set eval_fraction, and it is measured at the end of each epoch.",
    "overwrite_output_dir": "gone from transformers; name another folder with out, or continue with --resume.",
    "output_dir": "write 'out'.",
    "model_name_or_path": "write 'model'.",
    "dataset_name": "write 'data'.",
    "torch_dtype": "gone from transformers; the dtype follows the device and is reported by --check.",
    "dtype": "the dtype follows the device and is reported by --check.",
    "bf16": "the dtype follows the device and is reported by --check.",
    "fp16": "the dtype follows the device and is reported by --check.",
    "use_cpu": "write 'device: cpu'.",
    "no_cuda": "gone from transformers; write 'device: cpu'.",
    "warmup_ratio": "gone from transformers; write 'warmup' (below 1 it is a share of all steps).",
    "warmup_steps": "write 'warmup' (1 or more is a number of steps).",
    "per_device_train_batch_size": "write 'batch_size' (pairs in a step) and, if needed, 'micro_batch_size'.",
    "train_batch_size": "write 'batch_size' (pairs in a step) and, if needed, 'micro_batch_size'.",
    "gradient_accumulation_steps": "write 'batch_size' (pairs in an optimizer step); the rest follows from it.",
    "num_train_epochs": "write 'epochs'.",
    "num_epochs": "write 'epochs'.",
    "max_steps": "write 'epochs', or take fewer pairs with 'limit'.",
    "max_samples": "write 'limit'.",
    "lr": "write 'learning_rate'.",
    "group_by_length": "gone from transformers; pairs of like length are always computed together here.",
    "train_sampling_strategy": "pairs of like length are always computed together here.",
    "activation_checkpointing": "write 'gradient_checkpointing'.",
    "precompute_ref_log_probs": "the reference log-probs are always computed once, before training.",
    "padding_free": "ignored by TRL 1.16; prompts are shared within a pair here and little is padded.",
    "use_liger_kernel": "deprecated in TRL; logits are computed for completion tokens only, always.",
    "truncation_mode": "deprecated in TRL; what exceeds max_length is cut off at the end.",
    "use_peft": "write 'lora: {r: 16}', or 'lora: null' to train all weights.",
    "peft_config": "write 'lora: {r: 16}'.",
    "lora_r": "write 'lora: {r: ...}'.",
    "lora_rank": "write 'lora: {r: ...}'.",
    "lora_alpha": "write 'lora: {alpha: ...}'.",
    "lora_dropout": "write 'lora: {dropout: ...}'.",
    "lora_target_modules": "write 'lora: {target_modules: ...}'.",
    "lora_target": "write 'lora: {target_modules: ...}'.",
    "rank": "write 'r'.",
}


def replaced_key(key: str) -> str | None:
    """What to write instead of a key of another trainer, for `rlaif.config.base.validate`."""
    return _ELSEWHERE.get(key)
