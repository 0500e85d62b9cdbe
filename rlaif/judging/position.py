"""A judge's preference for a position in labelled pairs, and what the figures are without it.

How it is measured and taken out: rlaif.judges.position. A card does that to the judgements, as a run does; recorded
verdicts with a ``p_a`` in both orders are taken as they are.
"""

from collections.abc import Sequence
from typing import Any

from rlaif.judges.position import Prior, prior_of_pairs, without
from rlaif.judging.agreement import Look, Pair, verdict_figures
from rlaif.types import Order

FIGURES = ("swap_consistency", "first_position_rate", "accuracy", "accuracy_averaged", "kappa")


def recorded_prior(pairs: Sequence[Pair]) -> Prior:
    """The prior of recorded verdicts: from the pairs with a ``p_a`` in both orders."""
    stated = ((p.ab and p.ab.p_a, p.ba and p.ba.p_a) for p in pairs)
    return prior_of_pairs((ab, ba) for ab, ba in stated if ab is not None and ba is not None)


def without_prior(pairs: Sequence[Pair], prior: Prior) -> list[Pair]:
    """``pairs`` without ``prior``; unchanged where it is none to correct by."""
    odds = prior.log_odds
    if odds is None or prior.why_not:
        return list(pairs)
    return [Pair(p.id, p.label, _look(p.ab, odds, "ab"), _look(p.ba, odds, "ba")) for p in pairs]


def position_report(prior: Prior, before: Sequence[Pair], after: Sequence[Pair]) -> dict[str, Any]:
    """The prior, and the `FIGURES` with it and without it, each with its interval."""
    return {
        "prior": prior.report(),
        "why_not": prior.why_not,
        "before": _figures(before),
        "after": None if prior.why_not else _figures(after),
    }


def _figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    estimates = verdict_figures(pairs).estimates
    return {name: estimates[name]._asdict() for name in FIGURES}


def _look(look: Look | None, prior: float, order: Order) -> Look | None:
    if look is None or look.p_a is None or (look.verdict == "tie" and look.p_a != 0.5):
        return look
    p_a = without(prior, look.p_a, order)
    return Look("tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b", p_a)
