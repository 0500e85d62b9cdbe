"""The config of `rlaif train dpo`."""

from typing import Literal

from pydantic import Field

from rlaif.config.train.base import TrainConfig


class TrainDPOConfig(TrainConfig):
    """Direct Preference Optimization (Rafailov et al., arXiv 2305.18290) of ``model`` on preference pairs.

    ``data``: a run folder of `rlaif generate`, a preference file in one of TRL's formats, or a data set folder.
    ``batch_size``: pairs in one optimizer step. ``max_length``: tokens of prompt + completion; what is longer is cut
    off at the end. ``save_steps``: None for a checkpoint at the end of each epoch. ``labels``: "hard" takes the chosen
    answer as better for certain; "soft" takes ``prob_chosen`` of each pair as the probability that it is.
    """

    labels: Literal["hard", "soft"] = "hard"
    beta: float = Field(0.1, gt=0)  # how strongly the model is held near where it began
    epochs: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=16)
    eval_fraction: float = Field(0.0, ge=0, le=0.5)  # share of pairs held out and measured at the end of each epoch
