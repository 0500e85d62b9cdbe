"""What modes share that judge each completion by itself: two scores make a verdict.

**The rule**: P(a is better) = 1 / (1 + exp(score_b - score_a)), the Bradley-Terry model with a score as a log-odds
strength: one point apart is 73 %, two are 88 %, equal scores are a tie. No position can be preferred, and n completions
take n questions instead of n(n-1)/2; the price is that a grade means less than a comparison.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.judges.ask import How
from rlaif.templates import Template
from rlaif.types import Comparison, Completion, Judgement, Method, Outcome, Principle, Prompt, Unjudged, Verdict


class Score(NamedTuple):
    """Of one completion: ``value`` on the mode's scale, and how it came about (as in `Verdict`)."""

    value: float
    method: Method
    mass: float | None = None
    rationale: str | None = None


class PointwiseJudge:
    """Base: a mode says what a completion's `score` is."""

    def __init__(self, client: Client, config: JudgeConfig, labels: How, template: Template) -> None:
        self.client, self.config, self.labels, self.template = client, config, labels, template

    async def score(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        """How good the completion is by these principles. ``keys`` takes the keys of the requests. ``texts``: all that
        is judged together, of which none may hold a label. Were the labels others for each completion, a response could
        change its score by naming one: a model does not say "X" and "P" equally often."""
        raise NotImplementedError

    async def judge_all(
        self, comparisons: Sequence[Comparison], principles: Sequence[Principle], seed: int
    ) -> list[Judgement]:
        """One judgement for each comparison (all of one prompt); each completion is scored once."""
        prompt = comparisons[0].prompt
        completions = {c.id: c for comparison in comparisons for c in (comparison.a, comparison.b)}
        keys: dict[str, list[str]] = {id_: [] for id_ in completions}
        texts = (*(m.content for m in prompt.messages), *(c.text for c in completions.values()))
        found = await asyncio.gather(
            *(self.score(prompt, c, principles, keys[c.id], texts) for c in completions.values())
        )
        scores = dict(zip(completions, found, strict=True))
        return [
            Judgement(
                prompt_id=prompt.id,
                a=c.a.id,
                b=c.b.id,
                principles=tuple(p.id for p in principles),
                judge=str(self.client.identity),
                template=self.template.version,
                order=None,
                outcome=compare_scores(scores[c.a.id], scores[c.b.id]),
                request_keys=tuple(keys[c.a.id] + keys[c.b.id]),
            )
            for c in comparisons
        ]


def compare_scores(a: Score | Unjudged, b: Score | Unjudged) -> Outcome:
    """The verdict that two scores make, by the rule above; Unjudged where one of them is missing."""
    for name, score in (("a", a), ("b", b)):
        if isinstance(score, Unjudged):
            return Unjudged(reason=score.reason, detail=f"{name}: {score.detail}")
    assert isinstance(a, Score)
    assert isinstance(b, Score)
    masses = [m for m in (a.mass, b.mass) if m is not None]
    # The better first, and not a first: the text stays true when the verdict is swapped.
    reasons = [
        f"{value:.3g}: {text}"
        for value, text in sorted(((s.value, s.rationale) for s in (a, b)), key=_downwards)
        if text
    ]
    return Verdict(
        choice="tie" if a.value == b.value else "a" if a.value > b.value else "b",
        p_a=bradley_terry(a.value - b.value),
        method=a.method,
        label_mass=min(masses) if masses else None,
        rationale="\n\n".join(reasons) or None,
        scores=(a.value, b.value),
    )


def _downwards(scored: tuple[float, str | None]) -> tuple[float, str]:
    return -scored[0], scored[1] or ""


def bradley_terry(difference: float) -> float:
    """1 / (1 + exp(-difference)); of the two signs of a difference the results add up to 1 exactly."""
    p = 1 / (1 + math.exp(-min(abs(difference), 700.0)))
    return p if difference >= 0 else 1 - p
