"""The pairwise judge: which of two completions follows a principle better?

Asked in both orders, because a judge prefers a position about as often as it prefers a response; a verdict is about
completions a and b themselves, and un-swapped in one place (`judge`).
"""

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rlaif.clients.base import Client, at_once, request_key
from rlaif.config.generate import JudgeConfig
from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.hashing import uniform
from rlaif.judges.reply import Form, Labels, Shown, read_probabilities, read_reply, unclaimed, unfinished
from rlaif.templates import Template, load_template
from rlaif.types import (
    ChatReply,
    ChatRequest,
    Comparison,
    Judgement,
    Message,
    Order,
    Outcome,
    Principle,
    TokenLogprobs,
    Unjudged,
    Verdict,
)

VARIABLES = ("principles", "conversation", "first", "second", "labels", "form")
MUST_USE = ("principles", "conversation", "first", "second", "labels")

_ASK_LABEL = "Now answer with one letter and nothing else: {first} or {second}{tie}."
_CHOICE: dict[Shown, Literal["a", "b", "tie"]] = {"first": "a", "second": "b", "tie": "tie"}

# Asks for nothing but log-probs. It is the same for every run, so the answer is in the ledger when a run resumes, and
# all rows of a run are judged by one method.
_PROBE = ChatRequest(
    messages=(Message(role="user", content="Answer with one letter and nothing else: X or Y."),),
    max_tokens=1,
    top_logprobs=20,
    labels=("X", "Y"),
)


class Answer(NamedTuple):
    """What was found out about one order, in terms of what was shown: a is the first, b the second."""

    outcome: Outcome
    keys: tuple[str, ...]


class PairwiseJudge:
    """A model as a judge of pairs.

    ``labels``: where the verdict is read from: "logprob", "text" or "json" (see `resolve_labels` for "auto").
    """

    def __init__(self, client: Client, config: JudgeConfig, labels: Literal["logprob", "text", "json"]) -> None:
        self.client = client
        self.config = config
        self.labels = labels
        self.offered = Labels(tie="Z") if config.ties else Labels()  # or others, where a text contains these
        self.template: Template = load_template(config.template, variables=VARIABLES, must_use=MUST_USE)

    async def judge(self, comparison: Comparison, principles: Sequence[Principle], seed: int) -> list[Judgement]:
        """One judgement for each order asked, outcomes un-swapped. ``seed`` draws the order where only one is asked."""
        orders: tuple[Order, ...] = ("ab", "ba")
        if self.config.orders == "one":
            orders = (orders[uniform("order", seed, comparison.a.id, comparison.b.id) < 0.5],)
        answers = await asyncio.gather(
            *(self._ask(comparison if order == "ab" else comparison.swap(), principles) for order in orders)
        )
        return [
            Judgement(
                prompt_id=comparison.prompt.id,
                a=comparison.a.id,
                b=comparison.b.id,
                principles=tuple(p.id for p in principles),
                judge=str(self.client.identity),
                template=self.template.version,
                order=order,
                outcome=answer.outcome if order == "ab" else answer.outcome.swap(),
                request_keys=answer.keys,
            )
            for order, answer in zip(orders, answers, strict=True)
        ]

    async def _ask(self, shown: Comparison, principles: Sequence[Principle]) -> Answer:
        keys: list[str] = []
        offered = self.labels_for(shown)
        try:
            if self.labels != "logprob":
                outcome = await self._written(shown, principles, offered, keys)
            else:
                outcome = await self._label_probabilities(shown, principles, offered, keys)
        except (RequestError, TransientError) as error:
            outcome = Unjudged(reason="provider_error", detail=str(error))
        return Answer(outcome, tuple(keys))

    def labels_for(self, shown: Comparison) -> Labels:
        """Labels that nothing under judgement contains. The same for both orders: their texts are the same."""
        texts = (*(message.content for message in shown.prompt.messages), shown.a.text, shown.b.text)
        return unclaimed(self.offered, texts, one_token=self.labels == "logprob")

    async def _written(
        self, shown: Comparison, principles: Sequence[Principle], offered: Labels, keys: list[str]
    ) -> Outcome:
        form: Form = "json" if self.labels == "json" else "rationale" if self.config.rationale else "label"
        reply = await self._send(self._messages(shown, principles, offered, form), offered, keys, form=form)
        reading = read_reply(reply, offered, form)
        if isinstance(reading, Unjudged):
            return reading
        p_a = {"first": 1.0, "second": 0.0, "tie": 0.5}[reading.choice]
        method: Literal["text", "json"] = "json" if form == "json" else "text"
        return Verdict(choice=_CHOICE[reading.choice], p_a=p_a, method=method, rationale=reading.rationale)

    async def _label_probabilities(
        self, shown: Comparison, principles: Sequence[Principle], offered: Labels, keys: list[str]
    ) -> Outcome:
        messages, rationale = self._messages(shown, principles, offered, "label"), None
        if self.config.rationale:
            # The reasons are asked for first and the label after them, in a turn of its own: the probabilities of a
            # label are then read the same way from every model, wherever its reasons end.
            asked = self._messages(shown, principles, offered, "rationale")
            reply = await self._send(asked, offered, keys, form="rationale")
            if (failed := unfinished(reply)) is not None:
                return failed
            rationale = reply.text.strip()
            tie = f" or {offered.tie}" if offered.tie else ""
            ask = _ASK_LABEL.format(first=offered.first, second=offered.second, tie=tie)
            messages = (
                *asked,
                Message(role="assistant", content=rationale or "(no reasons)"),
                Message(role="user", content=ask),
            )
        reply = await self._send(messages, offered, keys, form="label", logprobs=True)
        # One token was asked for, so most servers call the reply cut off ("length"): here that is the normal end.
        if reply.finish_reason != "length" and (failed := unfinished(reply)) is not None:
            return failed
        if not reply.logprobs:
            return Unjudged(reason="unparseable", detail="the reply has no log-probs")
        return self._verdict(reply.logprobs[0], offered, rationale)

    def _verdict(self, token: TokenLogprobs, offered: Labels, rationale: str | None) -> Outcome:
        p = read_probabilities(token, offered)
        if p is None or p.mass < self.config.min_label_mass:
            return Unjudged(
                reason="unparseable",
                detail=f"the labels have {0.0 if p is None else p.mass:.3f} of the probability together,"
                f" less than judge.min_label_mass {self.config.min_label_mass:g}",
            )
        p_a = p.first + p.tie / 2
        ranked = sorted([(p.first, "a"), (p.second, "b"), (p.tie, "tie")], reverse=True)
        choice = "tie" if ranked[0][0] == ranked[1][0] else ranked[0][1]
        return Verdict.model_validate(
            {"choice": choice, "p_a": p_a, "method": "logprob", "label_mass": p.mass, "rationale": rationale}
        )

    def _messages(
        self, shown: Comparison, principles: Sequence[Principle], offered: Labels, form: Form
    ) -> tuple[Message, ...]:
        return self.template.render(
            principles=[p.compare for p in principles],
            conversation=shown.prompt.messages,
            first=shown.a.text,
            second=shown.b.text,
            labels=offered,
            form=form,
        )

    async def _send(
        self,
        messages: tuple[Message, ...],
        offered: Labels,
        keys: list[str],
        *,
        form: Form,
        logprobs: bool = False,
    ) -> ChatReply:
        request = ChatRequest(
            messages=messages,
            max_tokens=1 if logprobs else self.config.max_tokens,
            temperature=self.config.temperature,
            top_logprobs=20 if logprobs else None,
            labels=tuple(offered.offered()) if logprobs else (),
            json_schema=_schema(offered) if form == "json" else None,
            cache_prefix=1 if messages[0].role == "system" else 0,
        )
        keys.append(request_key(self.client.identity, request))
        return await self.client.complete(request)


def _schema(offered: Labels) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "verdict": {"type": "string", "enum": list(offered.offered())},
        },
        "required": ["rationale", "verdict"],
        "additionalProperties": False,
    }


async def resolve_labels(client: Client, config: JudgeConfig) -> Literal["logprob", "text", "json"]:
    """What ``labels: auto`` means for this model: asks it once where nothing else can tell."""
    if config.labels != "auto":
        return config.labels
    if client.capabilities.logprobs is not None:
        return "logprob" if client.capabilities.logprobs else "text"
    try:
        with at_once():  # the run cannot begin without the answer
            reply = await client.complete(_PROBE)
    except RequestError:
        return "text"
    except TransientError as error:
        raise ProviderError(f"the judge {client.identity} does not answer: {error}") from error
    return "logprob" if reply.logprobs else "text"
