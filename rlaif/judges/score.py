"""The score judge: how good is one completion, from 1 to 10 (direct scoring, d-RLAIF: 2309.00267, section 3.3)?

With log-probs the score is the expectation over the ten grades, sum of i * P(i) for i in 1..10; from text it is the
grade that was named. The model is shown the grades 0 to 9 and one is added: a single digit is one token in every
tokenizer, and "10" would often share its first token with "1". Where the grade is read from text, its name ("K7") is
one that no text under judgement contains.
"""

from collections.abc import Sequence

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.judges.ask import Asker, How
from rlaif.judges.pointwise import PointwiseJudge, Score
from rlaif.judges.reply import Form, unclaimed_numbers
from rlaif.templates import load_template
from rlaif.types import Completion, Message, Principle, Prompt, Unjudged

VARIABLES = ("principles", "conversation", "response", "labels", "form")
GRADES = range(10)


class ScoreJudge(PointwiseJudge):
    """A model as a grader of single completions; `Verdict.scores` are on the scale 1 to 10."""

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        template = load_template(config.template, variables=VARIABLES, must_use=VARIABLES[:-1])
        super().__init__(client, config, labels, template)

    async def score(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        grades = tuple(map(str, GRADES)) if self.labels == "logprob" else unclaimed_numbers(GRADES, texts)

        def render(form: Form) -> tuple[Message, ...]:
            return self.template.render(
                principles=[p.compare for p in principles],
                conversation=prompt.messages,
                response=completion.text,
                labels=grades,
                form=form,
            )

        answer = await Asker(self.client, self.config, self.labels).ask(render, grades, keys, noun="grade")
        if isinstance(answer, Unjudged):
            return answer
        value = 1 + sum(i * answer.p[grade] for i, grade in zip(GRADES, grades, strict=True))
        return Score(value, answer.method, answer.mass, answer.rationale)
