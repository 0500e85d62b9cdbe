"""A model that is asked nothing: its replies are those of an earlier session, out of the ledger.

No key, SDK or weights are needed; what the ledger does not hold is an error of that row, as if the provider had refused
it.
"""

import os
from pathlib import Path

from rlaif.clients._http import effective_options, public_url
from rlaif.clients.base import Capabilities, Identity
from rlaif.config.models import ModelConfig
from rlaif.engine.ledger import Ledger
from rlaif.errors import RequestError
from rlaif.types import ChatReply, ChatRequest

_URL_VARIABLES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}


class StoredClient:
    """A Client that answers from the ledger, and raises RequestError for what is not there."""

    def __init__(self, ledger: Ledger, stage: str, identity: Identity, capabilities: Capabilities) -> None:
        self.identity, self.capabilities = identity, capabilities
        self._ledger, self._stage = ledger, stage

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = self._ledger.recall(self._stage, self.identity, request)
        if reply is None:
            raise RequestError("not in the ledger (and --reparse sends nothing)", kind="invalid")
        return reply

    async def aclose(self) -> None:
        return None


def open_stored(model: ModelConfig, ledger: Ledger, stage: str) -> StoredClient:
    """The model as it answered in ``stage`` of the run that ``ledger`` belongs to."""
    return StoredClient(ledger, stage, stored_identity(model, ledger, stage), known_capabilities(model))


def stored_identity(model: ModelConfig, ledger: Ledger | None, stage: str) -> Identity:
    """Who ``model`` was in the ledger, without a key, an SDK or the weights. The config says it all, except of weights
    on this machine: those go by a digest, and of several under one name the latest is meant."""
    if model.backend in ("local", "vllm"):
        folder = Path(model.name).expanduser().resolve().name
        known = [s.identity for s in ledger.stats().stages if s.stage.startswith(stage)] if ledger else []
        alike = [
            i
            for i in known
            if i.backend == model.backend and (i.model == model.name or i.model.rpartition("@")[0] == folder)
        ]
        return alike[-1] if alike else Identity(backend=model.backend, model=model.name)
    if model.backend == "scripted":
        return Identity(backend="scripted", model=model.name)
    url = server_url(model)
    return Identity(
        backend=model.backend,
        model=model.name,
        base_url=public_url(url) if url else None,
        extra=effective_options(model.options),
    )


def server_url(model: ModelConfig) -> str | None:
    """Where the model is, if not at the provider's own address."""
    return model.base_url or os.environ.get(_URL_VARIABLES.get(model.backend, "")) or None


def known_capabilities(model: ModelConfig) -> Capabilities:
    """What the model's client would say of itself before anything is asked."""
    if model.backend in ("local", "vllm"):
        gives = model.logprobs is not False
        return Capabilities(logprobs=gives, scores_text=gives)
    if model.backend == "openai":
        return Capabilities(logprobs=model.logprobs)
    gives = model.backend == "scripted" and bool(model.logprobs)
    return Capabilities(logprobs=gives, scores_text=gives)
