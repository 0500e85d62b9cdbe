"""What every method of `rlaif train` can be told. Every default is a vetted setting; ``auto`` values are chosen from
the data, the model and the machine when the training is planned, and reported with their reasons."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.base import Config
from rlaif.config.models import BACKENDS

Auto = Literal["auto"]


class LoraConfig(Config):
    """A low-rank adapter (Hu et al., arXiv 2106.09685) instead of training all weights.

    ``target_modules``: "all-linear" (every linear layer but the LM head) or the names of the layers to adapt.
    ``from_layer``: only from this layer of the model on (0 is the first): what lies below needs no backward pass.
    """

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # the adapter's output is scaled by alpha / r
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    from_layer: int = Field(0, ge=0)

    @field_validator("target_modules")
    @classmethod
    def _trainable(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("name at least one layer, or write all-linear")
        if isinstance(value, list) and "lm_head" in value:
            # The log-probs are computed from lm_head.weight itself: an adapter there would never be trained.
            raise ValueError("lm_head cannot carry an adapter here; name other layers, or write all-linear")
        return value


class TrainConfig(Config):
    """The keys that all methods share.

    ``data``: what is learned from; each method says of what kind. ``model``: what is tuned, ``local:PATH_OR_ID``.
    ``batch_size``: rows in one optimizer step (the method says of what); ``micro_batch_size``: how many of them are
    computed at once. ``warmup``: a share of all steps (below 1, rounded down) or a number of steps.
    ``save_steps``: a checkpoint every so many optimizer steps. ``limit``: only so many rows of ``data``.
    """

    data: str
    model: str = "local:smollm2"
    out: Path
    seed: int = Field(0, ge=0, le=2**31 - 1)
    learning_rate: float | Auto = "auto"  # auto: 10 times higher for LoRA than for all weights
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | Auto = "auto"
    lora: LoraConfig | None = LoraConfig()
    warmup: float = Field(0.05, ge=0)
    gradient_checkpointing: bool | Auto = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_steps: int | None = Field(None, ge=1)
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
    def _fits_together(self) -> "TrainConfig":
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
