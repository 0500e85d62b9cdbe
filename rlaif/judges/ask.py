"""One question with labels for answers, put to a model: by log-probs, by text or as JSON, with reasons or without.

Every mode of judging asks through here, so that there is one place where a reply becomes data.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rlaif.clients.base import Client, at_once, request_key
from rlaif.config.generate import JudgeConfig
from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.judges.reply import Form, label_probabilities, read_label, unfinished
from rlaif.types import ChatReply, ChatRequest, Message, TokenLogprobs, Unjudged

How = Literal["logprob", "text", "json"]
Render = Callable[[Form], tuple[Message, ...]]

_ASK_LABEL = "Now answer with one {noun} and nothing else: {labels}."

# Asks for nothing but log-probs. It is the same for every run, so the answer is in the ledger when a run resumes, and
# all rows of a run are judged by one method.
_PROBE = ChatRequest(
    messages=(Message(role="user", content="Answer with one letter and nothing else: X or Y."),),
    max_tokens=1,
    top_logprobs=20,
    labels=("X", "Y"),
)


class Answer(NamedTuple):
    """The probability of each label offered, in all 1 (of the one label said, where the method gives only that).
    ``mass``: what they had together before they were renormalised (method "logprob" only)."""

    p: dict[str, float]
    method: How
    mass: float | None = None
    rationale: str | None = None

    @property
    def best(self) -> str | None:
        """The most probable label; None where several are."""
        top = max(self.p.values())
        best = [label for label, p in self.p.items() if p == top]
        return best[0] if len(best) == 1 else None


class Asker:
    """A model that is asked. ``how``: where the answer is read from (see `resolve_labels` for "auto")."""

    def __init__(self, client: Client, config: JudgeConfig, how: How) -> None:
        self.client, self.config, self.how = client, config, how

    async def ask(
        self, render: Render, offered: Sequence[str], keys: list[str], noun: str = "letter"
    ) -> Answer | Unjudged:
        """Which of the labels ``offered`` is the answer to the chat that ``render`` makes for a form of reply.

        ``keys`` takes the keys of the requests. ``noun``: what the labels are, in the model's words."""
        try:
            if self.how == "logprob":
                return await self._probabilities(render, offered, keys, noun)
            form: Form = "json" if self.how == "json" else "rationale" if self.config.rationale else "label"
            schema = _schema(offered) if form == "json" else None
            said = read_label(await self.send(render(form), keys, schema=schema), offered, form)
        except (RequestError, TransientError) as error:
            return Unjudged(reason="provider_error", detail=str(error))
        if isinstance(said, Unjudged):
            return said
        return Answer({label: float(label == said.label) for label in offered}, self.how, rationale=said.rationale)

    async def _probabilities(
        self, render: Render, offered: Sequence[str], keys: list[str], noun: str
    ) -> Answer | Unjudged:
        messages, rationale = render("label"), None
        if self.config.rationale:
            # The reasons are asked for first and the label after them, in a turn of its own: the probabilities of a
            # label are then read the same way from every model, wherever its reasons end.
            asked = render("rationale")
            reply = await self.send(asked, keys)
            if (failed := unfinished(reply)) is not None:
                return failed
            rationale = reply.text.strip()
            ask = _ASK_LABEL.format(noun=noun, labels=" or ".join(offered))
            messages = (
                *asked,
                Message(role="assistant", content=rationale or "(no reasons)"),
                Message(role="user", content=ask),
            )
        reply = await self.send(messages, keys, labels=tuple(offered))
        # One token was asked for, so most servers call the reply cut off ("length"): here that is the normal end.
        if reply.finish_reason != "length" and (failed := unfinished(reply)) is not None:
            return failed
        if not reply.logprobs:
            return Unjudged(reason="unparseable", detail="the reply has no log-probs")
        return self._read(reply.logprobs[0], offered, rationale)

    def _read(self, token: TokenLogprobs, offered: Sequence[str], rationale: str | None) -> Answer | Unjudged:
        p, mass = label_probabilities(token, offered) or ({}, 0.0)
        if not p or mass < self.config.min_label_mass:
            return Unjudged(
                reason="unparseable",
                detail=f"the labels have {mass:.3f} of the probability together,"
                f" less than judge.min_label_mass {self.config.min_label_mass:g}",
            )
        return Answer(p, "logprob", mass, rationale)

    async def send(
        self,
        messages: tuple[Message, ...],
        keys: list[str],
        *,
        labels: tuple[str, ...] = (),
        schema: dict[str, object] | None = None,
    ) -> ChatReply:
        """One request; its key is added to ``keys``. ``labels``: ask for the probabilities of these and no text."""
        request = ChatRequest(
            messages=messages,
            max_tokens=1 if labels else self.config.max_tokens,
            temperature=self.config.temperature,
            top_logprobs=20 if labels else None,
            labels=labels,
            json_schema=schema,
            cache_prefix=1 if messages[0].role == "system" else 0,
        )
        keys.append(request_key(self.client.identity, request))
        return await self.client.complete(request)


def _schema(offered: Sequence[str]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "verdict": {"type": "string", "enum": list(offered)},
        },
        "required": ["rationale", "verdict"],
        "additionalProperties": False,
    }


async def resolve_labels(client: Client, config: JudgeConfig) -> How:
    """What ``labels: auto`` means for this model: asks it once where nothing else can tell."""
    if config.labels != "auto":
        return config.labels
    if config.many_answers:
        return "text"
    if config.type == "likelihood":  # nothing is asked; what the model cannot do is told when the judge is made
        return "logprob"
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
