"""``anthropic:NAME``: Anthropic's Messages API, and with ``base_url`` every server that speaks it (vLLM, gateways).

``options`` are laid over the JSON of each request (``{thinking: {type: adaptive}}``); a null takes a parameter out.

* The API gives no log-probs: a request for them is refused before it is sent.
* It has no seed: ``seed`` is not sent. Samples differ anyway, except at temperature 0.
* ``temperature`` and ``top_p`` were dropped from API version 2026-10-21. A request that needs them goes out as
  2023-06-01, the last version to take them; models that refuse them even there raise
  RequestError(kind="unsupported"). Values of 1.0 are the API's default and are not sent to it.
* System messages are joined, in order, into ``system``, wherever they stand.
* ``cache_prefix`` becomes a cache breakpoint on the last block of that prefix, which changes no answer.
* ``json_schema`` becomes ``output_config.format``; what the API cannot enforce of a schema (bounds, patterns) the SDK
  moves into descriptions.

Not covered: tools, streaming, images.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2

from rlaif.clients._http import (
    CONNECT_SECONDS,
    Endpoint,
    HttpTransport,
    bad_reply,
    effective_options,
    endpoint,
    public_url,
)
from rlaif.clients.base import Capabilities, Identity, scores_no_text
from rlaif.config.models import ModelConfig
from rlaif.errors import InputError, RequestError
from rlaif.types import ChatReply, ChatRequest, FinishReason, Message, Usage

_URL = "https://api.anthropic.com"
_LAST_WITH_SAMPLING = "2023-06-01"
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
    "tool_use": "tool_calls",
}


class AnthropicClient(HttpTransport):
    """A Client of a Messages endpoint. Raises InputError when the key is missing or base_url is no URL."""

    def __init__(self, model: ModelConfig) -> None:
        base_url = model.base_url or os.environ.get("ANTHROPIC_BASE_URL") or None  # as the SDK itself does
        at = endpoint(model, "ANTHROPIC_API_KEY", base_url or _URL)
        super().__init__(model, at, anthropic, _connect(model, base_url, at), httpx2.Response)
        self.identity = Identity(
            backend="anthropic",
            model=model.name,
            base_url=public_url(base_url) if base_url else None,
            extra=effective_options(model.options),
        )
        self.capabilities = Capabilities(logprobs=False)
        if (urlsplit(at.url).hostname or "").endswith("api.anthropic.com"):
            self._unsent |= {"temperature", "top_p"}

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Ask once. Raises TransientError, RequestError or ProviderError."""
        while True:
            body = self._body(request)
            try:
                return parse_reply(await self._exchange("/v1/messages", body, version(body)), self._at)
            except RequestError as error:
                self._learn(error)
                if self._body(request) == body:
                    raise
                # The same request, without the defaults that this server refuses to hear.

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        if request.continuation is not None:
            raise scores_no_text(str(self._at))
        if request.top_logprobs is not None:
            raise RequestError(f"{self._at}: the API gives no log-probs.", kind="unsupported", parameter="logprobs")
        body: dict[str, Any] = {
            "model": self.identity.model,
            "max_tokens": request.max_tokens,
            **_messages(request.messages, request.cache_prefix),
            **self._sampling(request),
        }
        if request.stop:
            body["stop_sequences"] = list(request.stop)
        if request.json_schema is not None:
            body["output_config"] = {
                "format": {"type": "json_schema", "schema": _schema(request.json_schema, self._at)}
            }
        return self._with_options(body)


def version(body: Mapping[str, Any]) -> dict[str, str]:
    """The headers that ``body`` needs: the API version that takes it, where that is not the SDK's."""
    sampling = "temperature" in body or "top_p" in body
    return {"anthropic-version": _LAST_WITH_SAMPLING} if sampling else {}


def _connect(model: ModelConfig, base_url: str | None, at: Endpoint) -> anthropic.AsyncAnthropic:
    timeout = httpx2.Timeout(model.timeout, connect=min(model.timeout, CONNECT_SECONDS))
    try:
        return anthropic.AsyncAnthropic(api_key=at.key or "none", base_url=base_url, timeout=timeout, max_retries=0)
    except (httpx2.InvalidURL, anthropic.AnthropicError) as error:
        raise InputError(f"{model.model}: base_url {at.url!r} cannot be used: {error}.") from None


def _messages(messages: tuple[Message, ...], cache_prefix: int) -> dict[str, Any]:
    """``system`` and ``messages`` of the request, with a cache breakpoint on message number ``cache_prefix``."""
    last_rule = max((i for i, m in enumerate(messages) if m.role == "system"), default=-1)
    system, turns = [], []
    for i, message in enumerate(messages):
        block: dict[str, Any] = {"type": "text", "text": message.content}
        if i == cache_prefix - 1:
            block["cache_control"] = {"type": "ephemeral"}
        if message.role != "system":
            turns.append({"role": message.role, "content": [block]})
            continue
        if i != last_rule:
            block["text"] += "\n\n"  # the API puts nothing between blocks
        system.append(block)
    return {"system": system, "messages": turns} if system else {"messages": turns}


def _schema(schema: dict[str, Any], at: Endpoint) -> dict[str, Any]:
    try:
        return anthropic.transform_schema(schema)
    except (ValueError, TypeError, AssertionError) as error:  # a construct the API does not know at all
        message = f"{at}: this JSON schema cannot be sent to it: {error}"
        raise RequestError(message, kind="unsupported", parameter="json_schema") from None


def parse_reply(raw: dict[str, Any], at: Endpoint) -> ChatReply:
    """What a Message object says. Raises TransientError (bad_reply)."""
    content = raw.get("content")
    if not isinstance(content, list):
        raise bad_reply(at, "a reply that holds no content")
    try:
        return ChatReply(
            text="".join(block["text"] for block in content if block["type"] == "text"),
            finish_reason=_FINISH.get(raw.get("stop_reason") or "", "unknown"),
            usage=_usage(raw.get("usage") or {}),
            model=raw.get("model") or "",
            raw=raw,
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a field of another type than the API's
        raise bad_reply(at, f"a reply that cannot be read ({type(error).__name__})") from None


def _usage(usage: Mapping[str, Any]) -> Usage:
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    details = usage.get("output_tokens_details") or {}
    return Usage(
        input_tokens=(usage.get("input_tokens") or 0) + read + written,  # the API counts only the uncached part there
        output_tokens=usage.get("output_tokens") or 0,
        cached_input_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=details.get("thinking_tokens") or 0,
    )
