"""The transports: one file each, imported only when a model of that kind is opened."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from rlaif.clients.base import Client
from rlaif.config.models import ModelConfig

if TYPE_CHECKING:
    from rlaif.clients.batch import BatchTransport

_TRANSPORTS = {
    "openai": "rlaif.clients.openai:OpenAIClient",
    "anthropic": "rlaif.clients.anthropic:AnthropicClient",
    "vllm": "rlaif.clients.vllm:VLLMClient",
    "local": "rlaif.clients.local:LocalClient",
    "scripted": "rlaif.clients.scripted:open_scripted",
}
_BATCH_TRANSPORTS = {
    "openai": "rlaif.clients.openai_batch:OpenAIBatch",
    "anthropic": "rlaif.clients.anthropic_batch:AnthropicBatch",
}


def open_transport(model: ModelConfig) -> Client:
    """The bare client of a model, with nothing wrapped around it. Raises InputError (no key, no such model, extra not
    installed) before anything is sent."""
    module, _, name = _TRANSPORTS[model.backend].partition(":")
    factory: Callable[[ModelConfig], Client] = getattr(import_module(module), name)
    return factory(model)


def open_batch_transport(model: ModelConfig) -> "BatchTransport":
    """As `open_transport`, for a model with ``transport: batch``: a client that can also hand over whole batches."""
    module, _, name = _BATCH_TRANSPORTS[model.backend].partition(":")
    factory: Callable[[ModelConfig], BatchTransport] = getattr(import_module(module), name)
    return factory(model)
