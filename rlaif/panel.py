"""What several judges say together about one comparison. Pure; pairing decides with it, and judging to ask further.

mean        the mean of their probabilities
majority    one vote each; the probability is the share of the votes
veto        the mean, unless one of them prefers the other side
escalate    asked in turn, the cheap one first, while it is not clear; the last one asked decides alone
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.types import Judgement, Unjudged, Verdict

Rule = Literal["mean", "majority", "veto", "escalate"]
PROGRAM = "check"  # the "judge" of principles that a program decides: it counts with every judge


class Opinion(NamedTuple):
    """The probability that a is better; whether some question's two orders chose differently (``opposed``), or judges
    (``split``: one prefers a and one prefers b); the share of verdicts that call both bad."""

    p_a: float
    opposed: bool = False
    split: bool = False
    both_bad: float = 0.0


def decisive(rule: Rule, judgements: Sequence[Judgement]) -> Sequence[Judgement]:
    """The judgements that count, in the order they were made: all, or those of the last judge asked."""
    models = [j.judge for j in judgements if j.judge != PROGRAM]
    if rule != "escalate" or not models:
        return judgements
    return [j for j in judgements if j.judge in (models[-1], PROGRAM)]


def together(rule: Rule, judgements: Sequence[Judgement], weights: Mapping[str, float]) -> Opinion | Unjudged:
    """What the judgements of one comparison say by ``rule`` (``weights`` by principle id; at least one judgement).

    One missing verdict leaves all undecided: a mean over what happened to succeed is a different measure for each row.
    """
    judgements = decisive(rule, judgements)
    for j in judgements:
        if isinstance(j.outcome, Unjudged):
            return j.outcome
    whole = _mean(judgements, weights)
    judges = list(dict.fromkeys(j.judge for j in judgements if j.judge != PROGRAM))
    each = [_mean([j for j in judgements if j.judge in (judge, PROGRAM)], weights).p_a for judge in judges]
    split = any(p > 0.5 for p in each) and any(p < 0.5 for p in each)
    if rule == "majority" and each:
        whole = whole._replace(p_a=sum(1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in each) / len(each))
    return whole._replace(split=split)


def is_clear(judgements: Sequence[Judgement], weights: Mapping[str, float], margin: float) -> bool:
    """Whether one judge's judgements decide a comparison without asking a stronger one: every verdict is there, both
    orders chose alike, and the margin (2 * probability - 1) is at least ``margin``."""
    found = together("mean", judgements, weights)
    return isinstance(found, Opinion) and not found.opposed and abs(2 * found.p_a - 1) >= margin


def _mean(judgements: Sequence[Judgement], weights: Mapping[str, float]) -> Opinion:
    """The weighted mean over questions and judges of the mean over orders.

    A question is the set of principles judged at once; its weight is the sum of theirs."""
    questions: dict[tuple[str, tuple[str, ...]], list[Verdict]] = {}
    for j in judgements:
        assert isinstance(j.outcome, Verdict)
        questions.setdefault((j.judge, j.principles), []).append(j.outcome)
    weight = {q: sum(weights[p] for p in q[1]) for q in questions}
    p_a = sum(weight[q] * sum(v.p_a for v in vs) / len(vs) for q, vs in questions.items()) / sum(weight.values())
    verdicts = [v for vs in questions.values() for v in vs]
    return Opinion(
        min(max(p_a, 0.0), 1.0),
        opposed=any({"a", "b"} <= {v.choice for v in vs} for vs in questions.values()),
        both_bad=sum(v.both_bad for v in verdicts) / len(verdicts),
    )
