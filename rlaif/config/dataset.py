"""What is left out of a data set before it is written."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlaif.config.base import Config

Drop = Literal["duplicates", "near_duplicates", "contradictions", "overlap", "secrets", "personal", "unusable"]

GRAM = 13  # words of a passage shared with a benchmark


class DatasetConfig(Config):
    """Which pairs of a run are left out of its data, into dropped.jsonl.

    ``drop``: "duplicates" (the same prompt, chosen and rejected text as a pair before it), "near_duplicates" (nearly
    its answers), "contradictions" (both of two pairs with the same texts and opposite labels), "overlap" (``ngram``
    words in a row with one of the files ``against``), "secrets", "personal" (data).

    By default duplicates alone, and overlap where ``against`` is given. Two samples of one text make the same pair
    twice: the judge was asked the same question and the second row says nothing that the first does not. Everything
    else is a choice about what to train on, so it is the user's.
    """

    drop: tuple[Drop, ...] | None = None
    against: tuple[Path, ...] = ()
    ngram: int = Field(GRAM, ge=2)

    @model_validator(mode="after")
    def _fits_together(self) -> "DatasetConfig":
        if "overlap" in self.dropped and not self.against:
            raise ValueError("drop: overlap needs files to compare with; name them in against")
        if "unusable" in self.dropped:
            raise ValueError("drop: unusable is for files made elsewhere; the pairs of a run are all usable")
        return self

    @property
    def dropped(self) -> tuple[Drop, ...]:
        """``drop``, or its default."""
        if self.drop is not None:
            return self.drop
        return ("duplicates", "overlap") if self.against else ("duplicates",)
