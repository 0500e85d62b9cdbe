"""The rules by which RL training looks for a reward that is being hacked."""

from typing import Literal

from pydantic import Field

from rlaif.config.base import Config

Rule = Literal["length", "repetition", "diversity", "refusals", "cut_off", "entropy", "kl"]


class WatchConfig(Config):
    """After every step, the mean of the last ``window`` steps is held against that of the first ``window``; null
    switches a rule off. A rule that is broken is told once until it holds again.

    ``length``: completions longer, or shorter, by this factor. ``repetition``: this much more of their trigrams were
    there before. ``diversity``: different words as a share of all, over the step's completions, down to this share.
    ``refusals``: this much more of them refuse (English). ``cut_off``: this much more of them do not end by themselves.
    ``entropy``: nats a token, down to this share. ``kl``: nats a completion from the reference, above this.

    ``stop``: rules that end the training, saved, with exit code 3; the others warn.
    """

    window: int = Field(8, ge=2)
    length: float | None = Field(2.5, gt=1)
    repetition: float | None = Field(0.25, gt=0, lt=1)
    diversity: float | None = Field(0.4, gt=0, lt=1)
    refusals: float | None = Field(0.25, gt=0, lt=1)
    cut_off: float | None = Field(0.3, gt=0, lt=1)
    entropy: float | None = Field(0.2, gt=0, lt=1)
    kl: float | None = Field(None, gt=0)
    stop: list[Rule] = []
