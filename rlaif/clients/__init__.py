"""The transports: one file each, imported only when a model of that kind is opened."""

from collections.abc import Callable
from importlib import import_module

from rlaif.clients.base import Client
from rlaif.config.models import ModelConfig

_TRANSPORTS = {
    "openai": "rlaif.clients.openai:OpenAIClient",
    "anthropic": "rlaif.clients.anthropic:AnthropicClient",
    "vllm": "rlaif.clients.vllm:VLLMClient",
    "local": "rlaif.clients.local:LocalClient",
    "scripted": "rlaif.clients.scripted:open_scripted",
}


def open_transport(model: ModelConfig) -> Client:
    """The bare client of a model, with nothing wrapped around it. Raises InputError (no key, no such model, extra not
    installed) before anything is sent."""
    module, _, name = _TRANSPORTS[model.backend].partition(":")
    factory: Callable[[ModelConfig], Client] = getattr(import_module(module), name)
    return factory(model)
