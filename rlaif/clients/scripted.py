"""The fake that ships: a model played by a Python function, for testing constitutions and judges.

``scripted:MODULE:OBJECT`` names the function. It takes a ChatRequest and returns the reply's text, a ChatReply, or
an awaitable of either; it may raise TransientError, RequestError or ProviderError as a real provider would. A function
that gives log-probs (of a given ``continuation`` too) is named in the config's long form, with ``logprobs: true``.
"""

import inspect
from collections.abc import Awaitable, Callable
from importlib import import_module

from rlaif.clients.base import Capabilities, Client, Identity
from rlaif.config.models import ModelConfig
from rlaif.errors import InputError, ProviderError, RlaifError
from rlaif.types import ChatReply, ChatRequest, Usage

Script = Callable[[ChatRequest], str | ChatReply | Awaitable[str | ChatReply]]


class ScriptedClient:
    """A Client that asks ``script`` and keeps every request in ``requests`` (unless told not to ``keep`` them)."""

    def __init__(
        self, script: Script, name: str = "scripted", capabilities: Capabilities | None = None, *, keep: bool = True
    ) -> None:
        self.identity = Identity(backend="scripted", model=name)
        self.capabilities = capabilities or Capabilities()
        self.requests: list[ChatRequest] = []
        self._script, self._keep = script, keep

    async def complete(self, request: ChatRequest) -> ChatReply:
        if self._keep:
            self.requests.append(request)
        answer = self._script(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, ChatReply):
            return answer
        words = sum(len(m.content.split()) for m in request.messages)
        usage = Usage(input_tokens=words, output_tokens=len(answer.split()))
        return ChatReply(
            text=answer, finish_reason="stop", usage=usage, model=self.identity.model, raw={"text": answer}
        )

    async def aclose(self) -> None:
        return None


def open_scripted(model: ModelConfig) -> Client:
    """The function named by ``scripted:MODULE:OBJECT`` as a Client. Raises InputError when there is none."""
    module_name, _, attribute = model.name.rpartition(":")
    try:
        script = getattr(import_module(module_name), attribute)
    except ImportError as error:
        raise InputError(f"{model.model}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from None
    except AttributeError:
        raise InputError(f"{model.model}: the module {module_name} has no {attribute}.") from None
    if not callable(script):
        raise InputError(f"{model.model}: {attribute} is not a function that takes a ChatRequest.")

    async def guarded(request: ChatRequest) -> str | ChatReply:
        try:
            answer = script(request)
            answer = await answer if inspect.isawaitable(answer) else answer
        except RlaifError:
            raise
        except Exception as error:  # the user's own code: every request of this run would meet the same mistake
            raise ProviderError(f"{model.model}: the function raised {type(error).__name__}: {error}.") from error
        if not isinstance(answer, str | ChatReply):
            found = type(answer).__name__
            raise ProviderError(f"{model.model}: the function must return a text or a ChatReply (found {found}).")
        return answer

    # A run may ask a million times, and nobody could read what is kept here.
    gives = bool(model.logprobs)
    return ScriptedClient(guarded, model.name, Capabilities(logprobs=gives, scores_text=gives), keep=False)
