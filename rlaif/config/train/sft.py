"""The config of `rlaif train sft`."""

from pydantic import Field

from rlaif.config.train.base import TrainConfig


class TrainSFTConfig(TrainConfig):
    """Supervised fine-tuning of ``model`` on answers that are good as they are; only their tokens are learned.

    ``data``: JSONL, parquet, .. of ``messages`` (every answer of the assistant is learned) or of ``prompt`` and
    ``completion``; preferences, whose chosen answers are learned; or a run folder of `rlaif generate`: its best.jsonl,
    else the chosen answers (revisions among them). ``batch_size``: conversations in one optimizer step, the loss being
    the mean over all learned tokens in it. ``max_length``: tokens of a conversation; what is longer is cut off at the
    end. ``save_steps``: None for a checkpoint at the end of each epoch.
    """

    epochs: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=16)
    eval_fraction: float = Field(0.0, ge=0, le=0.5)  # share of rows held out and measured at the end of each epoch
