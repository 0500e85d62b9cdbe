"""One model under evaluation: what it answers, and how likely it finds a given answer."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rlaif.clients.base import Client
from rlaif.config.evaluate import SamplingConfig
from rlaif.config.generate import PolicyConfig
from rlaif.errors import InputError, RequestError, TransientError
from rlaif.judging.flow import in_flight
from rlaif.sampling import sample, with_system
from rlaif.types import ChatRequest, Completion, Message, Prompt


class Lost(NamedTuple):
    """No value for a row, and why. Never a number."""

    reason: str


T = TypeVar("T")


@dataclass
class Asked:
    """``client`` behind the ledger. The same seed and prompt give the same random numbers to every model."""

    client: Client
    sampling: SamplingConfig
    seed: int
    at_once: int
    tell: Callable[[], None]

    async def each(self, rows: Sequence[T], ask: Callable[[T], Awaitable["Answer"]]) -> list["Answer"]:
        """``ask`` of every row, in their order, at most ``at_once`` together."""

        async def one(row: T) -> Answer:
            answer = await ask(row)
            self.tell()
            return answer

        return await in_flight(rows, one, self.at_once)

    async def answers(self, prompt: Prompt) -> list[Completion] | Lost:
        """All ``n`` answers; one that was cut off is an answer, one that never came loses the prompt."""
        s = self.sampling
        policy = PolicyConfig.model_construct(
            n=s.n, temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens, system=None, model=None
        )
        completions, dropped = await sample(with_system(prompt, s.system), self.client, policy, self.seed)
        failed = [d for d in dropped if d.reason == "provider_error"]
        return Lost(f"provider_error: {failed[0].detail}"[:200]) if failed else completions

    async def log_probs(self, messages: tuple[Message, ...], text: str) -> list[float] | Lost:
        """The log-prob (natural) of each token of ``text`` as the answer to ``messages``."""
        if not self.client.capabilities.scores_text:
            raise InputError(
                f"{self.client.identity} does not tell how likely a given text is, which the tasks choice and"
                " perplexity need; use a local: or vllm: model, or leave these tasks out."
            )
        try:
            reply = await self.client.complete(ChatRequest(messages=messages, max_tokens=1, continuation=text))
        except (RequestError, TransientError) as error:
            return Lost(f"provider_error: {error}"[:200])
        if reply.finish_reason != "stop" or not reply.logprobs:
            return Lost(f"not scored to its end ({reply.finish_reason})")
        values = [token.logprob for token in reply.logprobs]
        return values if all(math.isfinite(v) for v in values) else Lost("a token without a finite log-prob")


Answer = list[Completion] | list[float] | list[list[float]] | Lost
