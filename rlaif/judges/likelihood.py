"""The likelihood judge: how much likelier is a response under a principle than under the principle's opposite?

Nothing is asked and nothing is parsed, so no text can talk a verdict out of it and no position can be preferred. Each
response x is scored twice, as the given answer to the prompt; its *contrast* is

    c(x) = log P(x | principle, prompt) - log P(x | opposite, prompt)

and P(a is better) = 1 / (1 + exp(-(c(a) - c(b)) / scale)). With ``length: sum`` and ``scale: 1`` that is Bayes' rule:
if one of the two was written under the principle and the other one under its opposite, by this model, it is the
probability that a is the one under the principle. Nobody writes like that, so it is far too sure of itself, and the
longer a text, the more of its contrast is noise. ``length: mean``, log P per token, is therefore the default, and
``scale`` (nats per token, or nats) takes back what is too sure. docs/judging.md has the measurements.

The opposite is the principle's own ``opposite``, else its ``compare`` in the words that the template has for "the
reverse". log P is of the tokens of the response alone, without the end of the turn. The price: two scored texts a
response, shared by all its comparisons (`principles: each`: for each principle).
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from rlaif.clients.base import Client, request_key
from rlaif.config.generate import JudgeConfig
from rlaif.errors import InputError, RequestError, TransientError
from rlaif.judges.ask import How
from rlaif.judges.pointwise import PointwiseJudge, Score
from rlaif.templates import load_template
from rlaif.types import ChatReply, ChatRequest, Completion, Message, Principle, Prompt, Unjudged

VARIABLES = ("aims", "system", "message")


class LikelihoodJudge(PointwiseJudge):
    """A model whose own probabilities judge; `Verdict.scores` are contrasts divided by ``scale``.

    Raises InputError for a model that cannot tell how likely a given text is."""

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        if not client.capabilities.scores_text:
            raise InputError(
                f"judge.type likelihood needs the log-probs of a given text, and {client.identity} does not give them;"
                " use a local: or vllm: model (or a scripted: one with logprobs: true), or another type."
            )
        super().__init__(client, config, labels, load_template(config.template, variables=VARIABLES, must_use=["aims"]))

    async def score(
        self,
        prompt: Prompt,
        completion: Completion,
        principles: Sequence[Principle],
        keys: list[str],
        texts: Sequence[str],
    ) -> Score | Unjudged:
        requests = [self._request(prompt, completion, principles, reverse=side) for side in (False, True)]
        keys += [request_key(self.client.identity, request) for request in requests]
        try:
            under, against = await asyncio.gather(*map(self.client.complete, requests))
        except (RequestError, TransientError) as error:
            return Unjudged(reason="provider_error", detail=str(error))
        found = [_log_p(reply, mean=self.config.length == "mean") for reply in (under, against)]
        for log_p in found:
            if isinstance(log_p, Unjudged):
                return log_p
        contrast = (found[0] - found[1]) / self.config.scale  # type: ignore[operator]
        return Score(contrast, "likelihood")

    def _request(
        self, prompt: Prompt, completion: Completion, principles: Sequence[Principle], *, reverse: bool
    ) -> ChatRequest:
        return ChatRequest(
            messages=self._messages(prompt, [_aim(p, reverse) for p in principles]),
            max_tokens=1,  # of which none is sampled
            continuation=completion.text,
        )

    def _messages(self, prompt: Prompt, aims: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
        """The template's system message, the earlier turns, and the last one in the template's words."""
        turns = list(prompt.messages)
        system = turns.pop(0).content if turns[0].role == "system" and len(turns) > 1 else ""
        last = turns.pop()
        chat = self.template.render(aims=aims, system=system, message=last.content)
        return (*chat[:-1], *turns, chat[-1])


def _aim(principle: Principle, reverse: bool) -> dict[str, Any]:
    if reverse and principle.opposite:
        return {"text": principle.opposite, "reversed": False}
    return {"text": principle.compare, "reversed": reverse}


def _log_p(reply: ChatReply, *, mean: bool) -> float | Unjudged:
    """log P of the given text (natural log), or its mean per token; never a number where a token's is missing."""
    if reply.finish_reason != "stop":
        return Unjudged(reason="truncated", detail=f"the text was not scored to its end ({reply.finish_reason})")
    if not reply.logprobs:
        return Unjudged(reason="unparseable", detail="the reply has no log-probs of the given text")
    total = math.fsum(token.logprob for token in reply.logprobs)
    return total / len(reply.logprobs) if mean else total
