"""Judges: an AI, or a program, says which of two completions follows the constitution better.

One file a mode, all with the same rows:

    pairwise    two are shown, which is better?            in both orders, in one, or in a second where it is unsure
    score       one is shown, how good is it, 1 to 10?     the expectation over the grades' probabilities
    ranking     several are shown, in which order?         in opposite orders; a tournament where they are many
    rubric      one is shown, does it do each thing?       yes, partly or no, weighted
    yes_no      one is shown, does it do each thing?       the log-odds of yes, as about an answer of the model's own
    likelihood  nothing is asked: how likely is it         under the principle, against under its opposite
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.constitution import applies, draw_principle
from rlaif.judges.ask import How
from rlaif.judges.likelihood import LikelihoodJudge
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.program import judge_by_check
from rlaif.judges.ranking import RankingJudge
from rlaif.judges.rubric import RubricJudge
from rlaif.judges.score import ScoreJudge
from rlaif.judges.yes_no import YesNoJudge
from rlaif.panel import PROGRAM, is_clear
from rlaif.templates import Template
from rlaif.types import Comparison, Constitution, Judgement, Principle


class Judge(Protocol):
    """A model as a judge. ``labels``: where its verdicts are read from."""

    client: Client
    config: JudgeConfig
    labels: How
    template: Template

    async def judge_all(
        self, comparisons: Sequence[Comparison], principles: Sequence[Principle], seed: int
    ) -> list[Judgement]:
        """What this judge says about comparisons of one prompt, all ``principles`` in one question: at least one
        judgement of each comparison, its outcome about a and b themselves."""
        ...


MODES: dict[str, Callable[[Client, JudgeConfig, How], Judge]] = {
    "pairwise": PairwiseJudge,
    "score": ScoreJudge,
    "rubric": RubricJudge,
    "ranking": RankingJudge,
    "likelihood": LikelihoodJudge,
    "yes_no": YesNoJudge,
}


def make_judge(client: Client, config: JudgeConfig, labels: How) -> Judge:
    """The judge of ``config.type``. Raises InputError for a template that does not fit it."""
    return MODES[config.type](client, config, labels)


async def judge_comparison(
    comparison: Comparison, constitution: Constitution, judges: Sequence[Judge], seed: int
) -> list[Judgement]:
    """`judge_comparisons` of one."""
    return await judge_comparisons([comparison], constitution, judges, seed)


async def judge_comparisons(
    comparisons: Sequence[Comparison], constitution: Constitution, judges: Sequence[Judge], seed: int
) -> list[Judgement]:
    """All judgements of a prompt's comparisons: by every judge (with `panel: escalate` by one after another, while it
    is not clear), about the principles the config asks for.

    Principles with a check are decided by program, once; the others by each model. Empty when no principle of the
    constitution applies to the prompt.
    """
    if not comparisons:
        return []
    config, prompt = judges[0].config, comparisons[0].prompt
    relevant = [p for p in constitution.principles if (p.compare or p.check) and applies(p, prompt)]
    if not relevant:
        return []
    if config.principles != "sample":
        return await _judge(comparisons, relevant, judges, seed)
    if not config.shows_pairs:  # what is said about a completion serves all its comparisons
        return await _judge(comparisons, [draw_principle(relevant, seed, prompt.id)], judges, seed)
    drawn = [draw_principle(relevant, seed, prompt.id, c.a.id, c.b.id) for c in comparisons]
    answers = await asyncio.gather(*(_judge([c], [p], judges, seed) for c, p in zip(comparisons, drawn, strict=True)))
    return [j for answer in answers for j in answer]


async def _judge(
    comparisons: Sequence[Comparison], principles: Sequence[Principle], judges: Sequence[Judge], seed: int
) -> list[Judgement]:
    config = judges[0].config
    checked = [p for p in principles if p.check]
    asked = [p for p in principles if not p.check]
    apart = config.principles == "each" and config.type != "rubric"  # a rubric adds the answers up itself
    questions: list[list[Principle]] = [[p] for p in asked] if apart else [asked] if asked else []
    found = [judge_by_check(comparison, p) for comparison in comparisons for p in checked]
    weights = {p.id: p.weight for p in principles}
    in_turn = [[judge] for judge in judges] if config.panel == "escalate" else [judges]
    unclear = list(comparisons)
    for some in in_turn if questions else []:
        answers = await asyncio.gather(*(judge.judge_all(unclear, q, seed) for q in questions for judge in some))
        new = [j for answer in answers for j in answer]
        by_program = [j for j in found if j.judge == PROGRAM]
        found += new
        unclear = [c for c in unclear if not is_clear(_about(c, [*by_program, *new]), weights, config.escalate_below)]
        if not unclear:
            break
    return found


def _about(comparison: Comparison, judgements: Sequence[Judgement]) -> list[Judgement]:
    return [j for j in judgements if (j.a, j.b) == (comparison.a.id, comparison.b.id)]
