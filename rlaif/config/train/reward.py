"""The config of `rlaif train reward`."""

from typing import Literal

from pydantic import Field, model_validator

from rlaif.config.train.base import TrainConfig


class TrainRewardConfig(TrainConfig):
    """A reward model: ``model`` with a head that gives one score, trained so that sigmoid(score of chosen - score of
    rejected) is the probability that chosen is better (Bradley and Terry; Ouyang et al., arXiv 2203.02155, eq. 1).

    ``data``: a run folder of `rlaif generate`, a preference file in one of TRL's formats, or a data set folder.
    ``batch_size``: pairs in one optimizer step. ``max_length``: tokens of prompt + completion; a pair with a longer
    side is dropped and counted, for a text without its end is another text. ``labels``: "hard" takes the chosen answer
    as better for certain; "soft" takes ``prob_chosen`` of each pair as the probability that it is. ``margins``: the
    scores must differ by the pair's ``margin`` more (Touvron et al., arXiv 2307.09288, eq. 2). Held-out pairs are
    measured at the end: those of ``eval_data``, else ``eval_fraction`` of ``data``.
    """

    labels: Literal["hard", "soft"] = "hard"
    margins: bool = False
    epochs: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=16)
    eval_fraction: float = Field(0.1, ge=0, le=0.5)
    eval_data: str | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> "TrainRewardConfig":
        if self.margins and self.labels == "soft":
            raise ValueError("margins and soft labels say the same in two ways; take one of them")
        return self
