"""A request on its way through a batch. How it becomes tokens is `rlaif.clients._chat`, which vLLM uses too."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from rlaif.clients._chat import Chat
from rlaif.types import ChatReply, ChatRequest, FinishReason, TokenLogprobs

__all__ = ["Chat", "Job"]


@dataclass(eq=False)
class Job:
    """One request on its way: its prompt's tokens, what was generated so far, and the future its caller waits on."""

    request: ChatRequest
    reply: Future[ChatReply] = field(default_factory=Future)
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason = "length"
    wanted: bool = True  # set to False (from any thread) when nobody waits for it any more

    @property
    def scoring(self) -> bool:
        """Whether only the probabilities of the next token are asked for."""
        r = self.request
        return r.max_tokens == 1 and r.top_logprobs is not None and r.temperature == 0

    def reset(self) -> None:
        """Forget what a batch that failed half-way left."""
        self.tokens.clear()
        self.logprobs.clear()
