"""The judge card as one self-contained HTML page: no script, nothing loaded from outside, every text escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.pages import page


class Rate(NamedTuple):
    """A line of a plot. ``neutral``: where a judge without the property stands, None where there is no such place."""

    title: str
    note: str
    value: float | None
    low: float | None
    high: float | None
    neutral: float | None = None


# name in card.json -> what a reader is told, and the neutral place
_AGREEMENT: Mapping[str, tuple[str, str, float | None]] = {
    "accuracy": ("Accuracy", "verdicts that are the label, both orders averaged", 0.5),
    "accuracy_ab": ("Accuracy, a first", "in that order alone", 0.5),
    "accuracy_ba": ("Accuracy, b first", "in that order alone", 0.5),
    "accuracy_averaged": ("Accuracy of both orders together", "by their mean probability; a tie counts one half", 0.5),
    "both_right": ("Right in both orders", "pairs", 0.25),
    "kappa": ("Cohen's kappa", "with the label; 0 is chance", 0.0),
    "alpha": ("Krippendorff's alpha", "with the label; 0 is chance", 0.0),
}
_CONSISTENCY: Mapping[str, tuple[str, str, float | None]] = {
    "swap_consistency": ("Swap consistency", "pairs judged alike in both orders", None),
    "kappa_orders": ("Kappa of the orders", "of one order with the other", 0.0),
    "first_position_rate": ("First position preferred", "0.5 is no preference", 0.5),
    "tie_rate": ("Ties", "of all looks", None),
    "invalid_rate": ("No verdict", "of all looks", None),
}
_BIAS: Mapping[str, tuple[str, str]] = {
    "longer_bias": ("Length", "prefers the longer response, beyond what the labels do"),
    "list_bias": ("Lists", "prefers the response with a list, beyond what the labels do"),
    "self_bias": ("Itself", "prefers what its own model wrote, beyond what the labels do"),
    "verbosity_bias": ("Verbosity", "accuracy where people prefer the longer, minus where they prefer the shorter"),
}


def render(card: Mapping[str, Any]) -> str:
    """The page of a card.json. It depends on nothing but the card."""
    return page(Path(__file__).with_name("card.html.jinja")).render(
        card=card,
        agreement=[_rate(card, name, *words) for name, words in _AGREEMENT.items()],
        consistency=[_rate(card, name, *words) for name, words in _CONSISTENCY.items()],
        biases=[Rate(*words, **card["bias"][name], neutral=0.0) for name, words in _BIAS.items()],
        modes=(card["robustness"] or {}).get("modes", {}),
    )


def _rate(card: Mapping[str, Any], name: str, title: str, note: str, neutral: float | None) -> Rate:
    return Rate(title, note, card[name], card[f"{name}_low"], card[f"{name}_high"], neutral)
