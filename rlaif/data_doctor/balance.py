"""What the chosen side has more of than the rejected one, and how far that alone tells which is chosen."""

import re
from collections.abc import Callable
from typing import Any

from rlaif.data_doctor.report import Finding, finding, wilson

MIN_PAIRS = 30  # below, an interval says nothing
FAIR = (0.4, 0.6)  # a lean counts where its whole interval lies outside

_LIST = re.compile(r"(?m)^[ \t]{0,8}(?:\d{1,3}[.)]|[-*•])[ \t]+\S")
_MARKDOWN = re.compile(r"(?m)^#{1,6} \S|\*\*\S|^\|.*\|[ \t]*$|^> \S")

STYLE: dict[str, Callable[[str], float]] = {
    "lists": lambda text: len(_LIST.findall(text)),
    "markdown": lambda text: len(_MARKDOWN.findall(text)),
    "code_fences": lambda text: text.count("```"),
}


class Lean:
    """A number of each answer, and how often the chosen one has more of it."""

    def __init__(self) -> None:
        self.n = self.more = self.fewer = 0
        self._sums = [0.0, 0.0]
        self._some = [0, 0]

    def add(self, chosen: float, rejected: float) -> None:
        self.n += 1
        self.more += chosen > rejected
        self.fewer += chosen < rejected
        for i, value in enumerate((chosen, rejected)):
            self._sums[i] += value
            self._some[i] += value > 0

    def baseline(self) -> dict[str, Any]:
        """ "Prefer the one with more": its accuracy over all pairs, ties counting a half."""
        right = self.more + (self.n - self.more - self.fewer) / 2
        low, high = wilson(right, self.n)
        chosen, rejected = (total / self.n for total in self._sums)
        return {
            "chosen_mean": chosen,
            "rejected_mean": rejected,
            "accuracy": right / self.n,
            "low": low,
            "high": high,
            "ties": self.n - self.more - self.fewer,
        }

    def decided(self) -> dict[str, Any]:
        """The share of answers that have any of it, on both sides; over the pairs that differ, how often the chosen one
        has more."""
        chosen, rejected = (some / self.n for some in self._some)
        differ = self.more + self.fewer
        low, high = wilson(self.more, differ) if differ else (0.0, 1.0)
        return {
            "chosen_share": chosen,
            "rejected_share": rejected,
            "differ": differ,
            "chosen_has_more": self.more / differ if differ else None,
            "low": low,
            "high": high,
        }

    def length_bias(self) -> list[Finding]:
        if self.n < MIN_PAIRS:
            return []
        told = self.baseline()
        if FAIR[0] <= told["high"] and told["low"] <= FAIR[1]:
            return []
        way, right = ("longer", self.more) if told["accuracy"] > 0.5 else ("shorter", self.fewer)
        accuracy = max(told["accuracy"], 1 - told["accuracy"])
        return [finding("length_bias", right, self.n, [], detail=f'"take the {way} answer" is right in {accuracy:.1%}')]

    def bias(self, kind: str, name: str) -> list[Finding]:
        """Where enough pairs differ, and the chosen side of them leans one way."""
        told = self.decided()
        if told["differ"] < MIN_PAIRS or (FAIR[0] <= told["high"] and told["low"] <= FAIR[1]):
            return []
        side, count = ("chosen", self.more) if self.more > self.fewer else ("rejected", self.fewer)
        detail = f"{name}: more on the {side} side in {count / told['differ']:.0%} of the {told['differ']} that differ"
        return [finding(kind, count, self.n, [], detail=detail)]
