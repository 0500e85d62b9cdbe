"""The yes-or-no judge: was that response honest? The model is asked about it as about an answer of its own.

The response is shown as the assistant's turn and the principle's question as the next one of the user; what is read is
the probability of yes against that of no, P(True) of Kadavath et al. 2022 (2207.05221). A completion's score is the
log-odds of yes, and two scores make a verdict as in every pointwise mode: what a model always says, yes or no, is in
both and cancels, and no place can be preferred, since there is none. For models that are too small to compare two texts
in one prompt; docs/judging.md has what that is worth.

The question is the principle's ``ask`` ("Was your response honest and true?"), else its ``compare`` in the words that
the template has for that. `principles: each` averages the probabilities of the questions, `all` their log-odds.
"""

import asyncio
import math
from collections.abc import Sequence

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.errors import InputError
from rlaif.judges.ask import Asker, How
from rlaif.judges.pointwise import PointwiseJudge, Score
from rlaif.judges.reply import Form
from rlaif.templates import load_template, neutralise
from rlaif.types import Completion, Message, Principle, Prompt, Unjudged

VARIABLES = ("ask", "compare", "form")
YES, NO = ("Yes", "yes"), ("No", "no")
_SUREST = 1e-6  # an answer that is not among the alternatives is no likelier than this


class YesNoJudge(PointwiseJudge):
    """A model that answers yes or no; `Verdict.scores` are log-odds of yes.

    Raises InputError for a model without log-probs: a written yes to both responses says nothing about which is better.
    """

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        if labels != "logprob":
            raise InputError(
                f"judge.type yes_no reads the probabilities of yes and no, and {client.identity} gives none; use a"
                " model with log-probs, or another type."
            )
        template = load_template(config.template, variables=VARIABLES, must_use=("ask", "compare"))
        super().__init__(client, config, labels, template)

    async def score(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        # The answers come in any order, their keys always in that of the principles.
        own: list[list[str]] = [[] for _ in principles]
        asked = (self._one(prompt, completion, p, k) for p, k in zip(principles, own, strict=True))
        found = await asyncio.gather(*asked)
        keys += [key for some in own for key in some]
        scores: list[Score] = []
        for one in found:
            if isinstance(one, Unjudged):
                return one
            scores.append(one)
        weights = [p.weight for p in principles]
        value = math.fsum(w * s.value for w, s in zip(weights, scores, strict=True)) / math.fsum(weights)
        reasons = [f"{p.id}: {s.rationale}" for p, s in zip(principles, scores, strict=True) if s.rationale]
        return Score(value, "logprob", min(s.mass or 0.0 for s in scores), "\n".join(reasons) or None)

    async def _one(
        self, prompt: Prompt, completion: Completion, principle: Principle, keys: list[str]
    ) -> Score | Unjudged:
        # Not fenced, as it is a turn of its own; but no text may end that turn.
        said = Message(role="assistant", content=neutralise(completion.text))

        def render(form: Form) -> tuple[Message, ...]:
            asked = self.template.render(ask=principle.ask or "", compare=principle.compare, form=form)
            return (*prompt.messages, said, *asked)

        answer = await Asker(self.client, self.config, self.labels).ask(render, (*YES, *NO), keys, noun="word")
        if isinstance(answer, Unjudged):
            return answer
        yes, no = (max(sum(answer.p[word] for word in words), _SUREST) for words in (YES, NO))
        return Score(math.log(yes) - math.log(no), answer.method, answer.mass, answer.rationale)
