"""A request on its way through a batch. How it becomes tokens is `rlaif.clients._chat`, which vLLM uses too."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from rlaif.clients._chat import Chat
from rlaif.errors import RlaifError
from rlaif.types import ChatReply, ChatRequest, FinishReason, TokenLogprobs

__all__ = ["Chat", "Job"]


@dataclass(eq=False)
class Job:
    """One request on its way: its prompt's tokens, what was generated so far, and the future its caller waits on.

    ``given``: the tokens of the request's continuation. ``unshared``: of a scored row, how many tokens it does not
    share with the row before it in the order they are read in. ``failure``: why this row alone has no reply."""

    request: ChatRequest
    reply: Future[ChatReply] = field(default_factory=Future)
    prompt: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    unshared: int = 0
    failure: RlaifError | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason = "length"
    wanted: bool = True  # set to False (from any thread) when nobody waits for it any more

    @property
    def scoring(self) -> bool:
        """Whether one pass answers it: the probabilities of a given text, or of the next token, are asked for."""
        r = self.request
        return r.continuation is not None or (r.max_tokens == 1 and r.top_logprobs is not None and r.temperature == 0)

    @property
    def read(self) -> list[int]:
        """The tokens to read for a score: all but a given text's last one, after which nothing is asked."""
        return self.prompt + self.given[:-1]

    @property
    def kept(self) -> int:
        """How many of the last places of `read` say something that is asked for."""
        return max(1, len(self.given))

    def reset(self) -> None:
        """Forget what a batch that failed half-way left."""
        self.tokens.clear()
        self.logprobs.clear()
        self.failure = None
