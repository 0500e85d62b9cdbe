"""The one protocol every model is behind, and how a model is named.

A transport (openai, anthropic, vllm, local, scripted) is a `Client`; whatever wraps one (ledger, limits, retries,
budget) is a `Client` too, so they compose and each can be tested alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from rlaif.errors import RequestError
from rlaif.hashing import digest
from rlaif.types import ChatReply, ChatRequest, Row


class Capabilities(Row):
    """What is known of a model before asking it. None: only a request can tell."""

    logprobs: bool | None = None
    json_schema: bool | None = None
    scores_text: bool = False  # answers a request with a ``continuation``


class Identity(Row):
    """Who answers: the part of a request's key that is not in the request."""

    backend: str
    model: str
    base_url: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # settings of the transport that change answers

    def __str__(self) -> str:
        return f"{self.backend}:{self.model}"


@runtime_checkable
class Client(Protocol):
    """A model that answers.

    ``complete`` raises TransientError (may work later), RequestError (this request never will) or ProviderError (none
    will); it never invents a reply. It may be called many times at once.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def complete(self, request: ChatRequest) -> ChatReply: ...

    async def aclose(self) -> None: ...


class Wrapper:
    """Base of a Client around ``client``: everything but ``complete``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def identity(self) -> Identity:
        return self._client.identity

    @property
    def capabilities(self) -> Capabilities:
        return self._client.capabilities

    async def aclose(self) -> None:
        await self._client.aclose()


def request_key(identity: Identity, request: ChatRequest) -> str:
    """The content key of a request: the same for two requests exactly when the same answer would serve both."""
    content = request.model_dump(mode="json", exclude={"cache_prefix"})
    if request.continuation is None:
        del content["continuation"]  # so that the keys of older ledgers stay as they are
    return digest(identity.model_dump(mode="json"), content, length=40)


def scores_no_text(name: str) -> RequestError:
    """What a transport raises for a request with a ``continuation`` that it cannot answer."""
    return RequestError(
        f"{name}: gives no log-probs of a given text; local:, vllm: and scripted: models do.",
        kind="unsupported",
        parameter="continuation",
    )


_at_once: ContextVar[bool] = ContextVar("rlaif_at_once", default=False)


@contextmanager
def at_once() -> Iterator[None]:
    """What is asked inside does not wait for a batch, whatever the model's transport: a run cannot go on without it."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


def asked_at_once() -> bool:
    return _at_once.get()
