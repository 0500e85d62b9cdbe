"""A model that refuses a parameter is asked without it, from then on, and every reply says so.

What is left out, and what happens then: ``temperature`` and ``top_p`` (1.0, every API's default, which the transports
do not send where they are not wanted), ``seed`` (samples differ from run to run), ``logprobs`` (the reply
has none: whoever asked decides what to do), ``json_schema`` (the text may be anything), ``stop`` (the text is cut here
instead). ``max_tokens`` is never left out: without it a single answer could cost anything.

A burst of first requests all come back refused. Only one of them is then repeated until the model takes it, which finds
every refused parameter; the others wait for that and are repeated once.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from rlaif.clients.base import Client, Wrapper
from rlaif.errors import RequestError
from rlaif.types import ChatReply, ChatRequest

# What a request looks like without the parameter.
_WITHOUT: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "top_p": {"top_p": 1.0},
    "seed": {"seed": None},
    "stop": {"stop": ()},
    "logprobs": {"top_logprobs": None, "labels": ()},
    "json_schema": {"json_schema": None},
}


def without(request: ChatRequest, parameters: Iterable[str]) -> tuple[ChatRequest, tuple[str, ...]]:
    """(the request without these parameters, those of them that it had)."""
    dropped = tuple(name for name in parameters if _has(request, name))
    update = {field: value for name in dropped for field, value in _WITHOUT[name].items()}
    return (request.model_copy(update=update) if dropped else request), dropped


def _has(request: ChatRequest, parameter: str) -> bool:
    field, default = next(iter(_WITHOUT[parameter].items()))
    return bool(getattr(request, field) != default)


class DowngradingClient(Wrapper):
    """A Client that asks ``client`` without what it refuses. ``refused``: the parameters learned so far, in order."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.refused: tuple[str, ...] = ()
        self._answered_without: tuple[str, ...] = ()  # a search has ended well with this much left out
        self._searching = asyncio.Lock()

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises RequestError(kind="unsupported") for a parameter that cannot be left out."""
        while True:
            if self._searching.locked():
                async with self._searching:
                    pass  # somebody is finding out what is refused
            known = self.refused
            try:
                return await self._ask(request, known)
            except RequestError as error:
                self._learn(error, request, known)
            async with self._searching:
                if self._answered_without != self.refused:
                    return await self._search(request)

    async def _search(self, request: ChatRequest) -> ChatReply:
        while True:
            known = self.refused
            try:
                reply = await self._ask(request, known)
            except RequestError as error:
                self._learn(error, request, known)
            else:
                self._answered_without = known
                return reply

    def _learn(self, error: RequestError, request: ChatRequest, known: tuple[str, ...]) -> None:
        """Note the refused parameter. Raises ``error`` again when leaving something out is no answer to it."""
        name = error.parameter
        if error.kind != "unsupported" or name not in _WITHOUT or name in known or not _has(request, name):
            raise error
        if name not in self.refused:
            self.refused = (*self.refused, name)

    async def _ask(self, request: ChatRequest, refused: tuple[str, ...]) -> ChatReply:
        if not refused:
            return await self._client.complete(request)
        asked, dropped = without(request, refused)
        reply = await self._client.complete(asked)
        if "stop" in dropped:
            reply = _cut(reply, request.stop)
        return reply.model_copy(update={"downgrades": (*reply.downgrades, *dropped)}) if dropped else reply


def _cut(reply: ChatReply, stop: tuple[str, ...]) -> ChatReply:
    """The reply as if the model had stopped at the first of ``stop``; its log-probs remain those of the whole text."""
    at = min((i for i in (reply.text.find(s) for s in stop if s) if i >= 0), default=None)
    if at is None or reply.finish_reason not in ("stop", "length"):
        return reply
    return reply.model_copy(update={"text": reply.text[:at], "finish_reason": "stop"})
