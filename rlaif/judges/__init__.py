"""Judges: an AI, or a program, says which of two completions follows the constitution better."""

import asyncio
from collections.abc import Sequence

from rlaif.constitution import applies, draw_principle
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.program import judge_by_check
from rlaif.types import Comparison, Constitution, Judgement, Principle


async def judge_comparison(
    comparison: Comparison, constitution: Constitution, judges: Sequence[PairwiseJudge], seed: int
) -> list[Judgement]:
    """All judgements of one comparison: by every judge, about the principles the config asks for.

    Principles with a check are decided by program, once; the others by each model. Empty when no principle of the
    constitution applies to the prompt.
    """
    mode = judges[0].config.principles
    relevant = [p for p in constitution.principles if (p.compare or p.check) and applies(p, comparison.prompt)]
    if not relevant:
        return []
    if mode == "sample":
        relevant = [draw_principle(relevant, seed, comparison.prompt.id, comparison.a.id, comparison.b.id)]
    checked = [p for p in relevant if p.check]
    asked = [p for p in relevant if not p.check]
    questions: list[list[Principle]] = [[p] for p in asked] if mode == "each" else [asked] if asked else []
    answers = await asyncio.gather(
        *(judge.judge(comparison, question, seed) for question in questions for judge in judges)
    )
    return [judge_by_check(comparison, p) for p in checked] + [j for answer in answers for j in answer]
