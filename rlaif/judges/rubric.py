"""The rubric judge: does one completion do what each principle asks for, yes, partly or no?

A completion's score is 10 times the weighted share of what it satisfies (yes 1, partly 1/2, no 0), as in rule-based
rewards (2411.01111). `principles: each` asks one question a principle, and reads its probabilities where the model
gives them; `principles: all` asks all in one call, with a line for an answer to each:

    reply = [reasons], then as the last lines, one for each criterion and no other: name ":" "yes" | "partly" | "no"

The names ("K1") are words that no text under judgement contains. Or one JSON object: each name with its answer, and
perhaps "rationale". `rubric: generated` first has the model write the criteria for the prompt (2507.17746): once, and
the same for all its completions.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.errors import RequestError, TransientError
from rlaif.judges.ask import Asker, How
from rlaif.judges.pointwise import PointwiseJudge, Score
from rlaif.judges.reply import Form, Labels, refused, unclaimed, unclaimed_numbers, unfinished
from rlaif.templates import load_template
from rlaif.types import ChatReply, Completion, Message, Principle, Prompt, Unjudged

VARIABLES = ("criteria", "conversation", "response", "labels", "names", "form")
WRITE = ("principles", "conversation")
MOST_CRITERIA = 10

_VALUE = {"yes": 1.0, "partly": 0.5, "no": 0.0}
# ASCII, for without it "yeſ" would be a yes.
_LINE = re.compile(r"[\s*_`]*(\w+)[\s*_`]*:[\s*_`]*((?ai:yes|partly|no))[\s*_`]*\.?[\s*_`]*")
_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s*")


class RubricJudge(PointwiseJudge):
    """A model that answers for each criterion; `Verdict.scores` are on the scale 0 to 10."""

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        template = load_template(config.template, variables=VARIABLES, must_use=VARIABLES[:-1])
        super().__init__(client, config, labels, template)
        self.writer = load_template("write_rubric", variables=WRITE, must_use=WRITE)
        self.asker = Asker(client, config, labels)

    async def score(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        if self.config.principles == "each":
            return await self._one_by_one(prompt, completion, principles, keys, texts)
        try:
            criteria = await self._criteria(prompt, principles, keys)
            if isinstance(criteria, Unjudged):
                return criteria
            return await self._at_once(prompt, completion, criteria, keys, texts)
        except (RequestError, TransientError) as error:
            return Unjudged(reason="provider_error", detail=str(error))

    # ----------------------------------------------------------------------------------------- one question each

    async def _one_by_one(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        # The answers come in any order, their keys always in that of the principles.
        own: list[list[str]] = [[] for _ in principles]
        found = await asyncio.gather(
            *(self._one(prompt, completion, p, k, texts) for p, k in zip(principles, own, strict=True))
        )
        keys += [key for some in own for key in some]
        scores: list[Score] = []
        for score in found:
            if isinstance(score, Unjudged):
                return score
            scores.append(score)
        share = _weighted([(p.weight, s.value) for p, s in zip(principles, scores, strict=True)])
        masses = [s.mass for s in scores if s.mass is not None]
        reasons = [f"{p.id}: {s.rationale}" for p, s in zip(principles, scores, strict=True) if s.rationale]
        return Score(10 * share, scores[0].method, min(masses) if masses else None, "\n".join(reasons) or None)

    async def _one(
        self, prompt: Prompt, completion: Completion, principle: Principle, keys: list[str], texts: Sequence[str]
    ) -> Score | Unjudged:
        labels = unclaimed(Labels(tie="Z"), texts, one_token=self.labels == "logprob")
        answer = await self.asker.ask(
            lambda form: self._messages(prompt, completion, [str(principle.compare)], form, labels=labels),
            tuple(labels.offered()),
            keys,
        )
        if isinstance(answer, Unjudged):
            return answer
        value = answer.p[labels.first] + answer.p[str(labels.tie)] / 2
        return Score(value, answer.method, answer.mass, answer.rationale)

    # ------------------------------------------------------------------------------------------- all in one call

    async def _criteria(
        self, prompt: Prompt, principles: Sequence[Principle], keys: list[str]
    ) -> list[tuple[float, str]] | Unjudged:
        """(weight, text) of each."""
        if self.config.rubric == "principles":
            return [(p.weight, str(p.compare)) for p in principles]
        messages = self.writer.render(principles=[p.compare for p in principles], conversation=prompt.messages)
        reply = await self.asker.send(messages, keys)
        if (failed := unfinished(reply) or refused(reply.text)) is not None:
            return failed
        lines = [_BULLET.sub("", line, count=1).strip() for line in reply.text.split("\n")]
        found = [line for line in lines if line]
        if not 1 <= len(found) <= MOST_CRITERIA:
            return Unjudged(reason="unparseable", detail=f"{len(found)} criteria, 1 to {MOST_CRITERIA} were asked for")
        return [(1.0, text) for text in found]

    async def _at_once(
        self,
        prompt: Prompt,
        completion: Completion,
        criteria: Sequence[tuple[float, str]],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        names = unclaimed_numbers(range(1, len(criteria) + 1), (*texts, *(text for _, text in criteria)))
        form: Form = "json" if self.labels == "json" else "rationale" if self.config.rationale else "label"
        messages = self._messages(prompt, completion, [text for _, text in criteria], form, names=names)
        reply = await self.asker.send(messages, keys, schema=_schema(names) if form == "json" else None)
        found = read_answers(reply, names, form)
        if isinstance(found, Unjudged):
            return found
        answers, rationale = found
        method: Literal["json", "text"] = "json" if form == "json" else "text"
        share = _weighted([(weight, answers[name]) for (weight, _), name in zip(criteria, names, strict=True)])
        return Score(10 * share, method, rationale=rationale)

    def _messages(
        self,
        prompt: Prompt,
        completion: Completion,
        criteria: Sequence[str],
        form: Form,
        *,
        labels: Labels | None = None,
        names: tuple[str, ...] = (),
    ) -> tuple[Message, ...]:
        return self.template.render(
            criteria=criteria,
            conversation=prompt.messages,
            response=completion.text,
            labels=labels,
            names=names,
            form=form,
        )


def read_answers(reply: ChatReply, names: Sequence[str], form: Form) -> tuple[dict[str, float], str | None] | Unjudged:
    """The answer to each of ``names`` (1, 0.5 or 0) and the reasons, by the grammar above."""
    if (failed := unfinished(reply)) is not None:
        return failed
    if form == "json":
        return _read_json(reply.text, names)
    lines = [line for line in reply.text.split("\n") if line.strip()]
    said = [m for line in lines if len(line) <= 100 and (m := _LINE.fullmatch(line)) and m[1] in names]
    last = [_LINE.fullmatch(line) if len(line) <= 100 else None for line in lines[-len(names) :]]
    before = lines[: -len(names)]
    whole = sorted(m[1] for m in said) == sorted(names) and all(m and m[1] in names for m in last)
    if not whole or (form == "label" and before):
        return Unjudged(reason="unparseable", detail=f"not one answer to each of {', '.join(names)}")
    return {m[1]: _VALUE[m[2].lower()] for m in said}, "\n".join(before).strip() or None


def _read_json(text: str, names: Sequence[str]) -> tuple[dict[str, float], str | None] | Unjudged:
    pairs: list[tuple[str, Any]] = []

    def noted(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend(items)
        return dict(items)

    try:
        found = json.loads(text, object_pairs_hook=noted)
    except (ValueError, RecursionError):
        found = None
    rationale = found.get("rationale") if isinstance(found, dict) else None
    if (
        not isinstance(found, dict)
        or len(pairs) != len(found)  # a key given twice, or an object within
        or found.keys() - {"rationale"} != set(names)
        or not isinstance(rationale, str | None)
        or not all(isinstance(found[name], str) and found[name] in _VALUE for name in names)
    ):
        return Unjudged(reason="unparseable", detail=f"not an object with one answer to each of {', '.join(names)}")
    return {name: _VALUE[found[name]] for name in names}, rationale


def _weighted(values: Sequence[tuple[float, float]]) -> float:
    return sum(weight * value for weight, value in values) / sum(weight for weight, _ in values)


def _schema(names: Sequence[str]) -> dict[str, object]:
    answer = {"type": "string", "enum": list(_VALUE)}
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, **dict.fromkeys(names, answer)},
        "required": ["rationale", *names],
        "additionalProperties": False,
    }
