"""The config of `rlaif train kto`."""

from pydantic import Field, model_validator

from rlaif.config.train.base import TrainConfig


class TrainKTOConfig(TrainConfig):
    """Kahneman-Tversky Optimization (Ethayarajh et al., arXiv 2402.01306) of ``model`` on single answers that are good
    or bad.

    ``data``: rows ``prompt``, ``completion``, ``label`` (true: good), or preference pairs, each taken as one good and
    one bad answer. ``batch_size``: answers in one optimizer step. ``max_length``: tokens of prompt + completion; what
    is longer is cut off at the end. ``micro_batch_size``: at least 2, for the KL divergence is estimated within it.
    ``desirable_weight``, ``undesirable_weight``: of their losses; None: 1 for the more frequent kind, and as much more
    for the other as it is rarer (the paper's eq. 8 with equality).
    """

    beta: float = Field(0.1, gt=0)  # how strongly the model is held near where it began
    epochs: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=16)
    desirable_weight: float | None = Field(None, gt=0)
    undesirable_weight: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _room_for_a_mismatch(self) -> "TrainKTOConfig":
        if self.micro_batch_size == 1 or self.batch_size == 1:
            raise ValueError(
                "kto estimates the KL divergence from the answers of other rows of a micro-batch: give at least 2"
            )
        return self
