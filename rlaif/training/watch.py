"""Signs that a policy is learning to please its reward and nothing else. Pure: figures of each step in, alarms out.

The early steps are the measure of what is usual, so no rule needs to know the task; a policy that was broken from the
beginning is not found here (look at the samples). The rules are in rlaif/config/train/watch.py. A resumed training
shows it the steps before again, and is warned alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from rlaif.config.train.watch import Rule, WatchConfig
from rlaif.verifiers.refusal import classify
from rlaif.verifiers.text import repeated_share

Figures = Mapping[str, float]  # name of the curve -> value of this step

TEXT_FIGURES = ("words", "repeated", "distinct", "refused")

_WORDS = 50_000  # of a step that are looked at


def text_figures(texts: Sequence[str]) -> dict[str, float]:
    """Of a step's completions: ``words`` (mean), ``repeated`` (share of a text's word trigrams that it has had before,
    mean), ``distinct`` (different words of all words of the step), ``refused`` (share)."""
    split = [text.lower().split()[: max(20, _WORDS // max(1, len(texts)))] for text in texts]
    every = [word for words in split for word in words]
    return {
        "words": fmean(len(text.split()) for text in texts) if texts else 0.0,
        "repeated": fmean(repeated_share(text, 3) for text in texts) if texts else 0.0,
        "distinct": len(set(every)) / len(every) if every else 0.0,
        "refused": fmean(classify(text) == "refusal" for text in texts) if texts else 0.0,
    }


class Alarm(NamedTuple):
    """``stop``: the training is to end."""

    step: int
    rule: Rule
    text: str
    stop: bool


# rule -> the figure it looks at, and how a reader is told of it
_ROSE: dict[Rule, tuple[str, str]] = {
    "repetition": ("repeated", "of the trigrams of a completion were there before"),
    "refusals": ("refused", "of the completions refuse"),
    "cut_off": ("cut_off", "of the completions do not end by themselves"),
}
_FELL: dict[Rule, tuple[str, str]] = {
    "diversity": ("distinct", "different words of all words"),
    "entropy": ("entropy", "nats of entropy a token"),
}


class Watch:
    """Feed it every step's figures with `add`. Those it knows: ``words``, ``repeated``, ``distinct``, ``refused``,
    ``cut_off``, ``entropy`` and ``kl``; what is missing is not judged."""

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.broken: set[str] = set()

    def add(self, step: int, figures: Figures) -> list[Alarm]:
        """The rules that are newly broken."""
        keep = 2 * self.config.window
        for name, value in figures.items():
            if math.isfinite(value):
                first, last = self.first.setdefault(name, []), self.last.setdefault(name, [])
                if len(first) < self.config.window:
                    first.append(value)
                last.append(value)
                del last[:-keep]
        found = dict(self._rules())
        alarms = [
            Alarm(step, rule, text, rule in self.config.stop) for rule, text in found.items() if rule not in self.broken
        ]
        self.broken = set(found)
        return alarms

    def _rules(self) -> Iterable[tuple[Rule, str]]:
        config = self.config
        if (now := self._now("words")) and config.length is not None:
            usual = self._usual("words")
            factor = max(now, 1e-9) / max(usual, 1e-9)
            if not 1 / config.length <= factor <= config.length:
                way = "longer" if factor > 1 else "shorter"
                yield "length", f"completions are {way}: {now:.0f} words, {usual:.0f} at first"
        for rule, (name, what) in _ROSE.items():
            limit = getattr(config, rule)
            if limit is not None and (now := self._now(name)) is not None and now - self._usual(name) > limit:
                yield rule, f"{now:.0%} {what}, {self._usual(name):.0%} at first"
        for rule, (name, what) in _FELL.items():
            limit = getattr(config, rule)
            if limit is not None and (now := self._now(name)) is not None and now < limit * self._usual(name):
                yield rule, f"{now:.2g} {what}, {self._usual(name):.2g} at first"
        if config.kl is not None and (now := self._now("kl")) is not None and now > config.kl:
            yield "kl", f"{now:.3g} nats from the reference, more than {config.kl:g}"

    def _usual(self, name: str) -> float:
        return fmean(self.first[name])

    def _now(self, name: str) -> float | None:
        """The mean of the last window; None while it still reaches into the first."""
        seen = self.last.get(name, [])
        return fmean(seen[-self.config.window :]) if len(seen) >= 2 * self.config.window else None
