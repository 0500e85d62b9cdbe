"""``openai:NAME``: OpenAI's Chat Completions, and with ``base_url`` every server that speaks it.

(vLLM, SGLang, llama.cpp, OpenRouter, LiteLLM, ...)

``options`` are laid over the JSON of each request (``{reasoning_effort: low}``, ``{top_k: -1}``); a null takes a
parameter out. ``temperature`` and ``top_p`` of 1.0 are not sent to api.openai.com, whose defaults they are; they are
sent to other servers, whose defaults may differ (vLLM takes them from the model's generation_config.json).

Not covered: the Responses API, tools, streaming, several choices in one reply.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

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
from rlaif.types import ChatReply, ChatRequest, FinishReason, TokenLogprobs, Usage

_URL = "https://api.openai.com/v1"
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class OpenAIClient(HttpTransport):
    """A Client of a Chat Completions endpoint. Raises InputError when the key is missing or base_url is no URL."""

    def __init__(self, model: ModelConfig) -> None:
        base_url = model.base_url or os.environ.get("OPENAI_BASE_URL") or None  # as the SDK itself does
        at = endpoint(model, "OPENAI_API_KEY", base_url or _URL)
        super().__init__(model, at, openai, _connect(model, base_url, at), httpx2.Response)
        self.identity = Identity(
            backend="openai",
            model=model.name,
            base_url=public_url(base_url) if base_url else None,
            extra=effective_options(model.options),
        )
        self.capabilities = Capabilities(logprobs=model.logprobs)
        official = (urlsplit(at.url).hostname or "").endswith("api.openai.com")
        self._max_tokens = "max_completion_tokens" if official else "max_tokens"
        if official:
            self._unsent |= {"temperature", "top_p"}

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Ask once. Raises TransientError, RequestError or ProviderError."""
        while True:
            body = self._body(request)
            try:
                return parse_reply(await self._exchange("/chat/completions", body, {}), self._at)
            except RequestError as error:
                self._learn(error)
                if self._body(request) == body:
                    raise
                # The same request, spelled as this server wants it.

    def _learn(self, error: RequestError) -> None:
        super()._learn(error)
        if error.kind == "unsupported" and error.parameter == "max_tokens":
            self._max_tokens = "max_completion_tokens"

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        if request.continuation is not None:
            raise scores_no_text(str(self._at))
        if request.top_logprobs is not None and self.capabilities.logprobs is False:
            raise RequestError(f"{self._at}: no log-probs, says its config.", kind="unsupported", parameter="logprobs")
        body: dict[str, Any] = {
            "model": self.identity.model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            self._max_tokens: request.max_tokens,
            **self._sampling(request),
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        if request.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.json_schema is not None:
            body["response_format"] = _response_format(request.json_schema)
        return self._with_options(body)


def _connect(model: ModelConfig, base_url: str | None, at: Endpoint) -> openai.AsyncOpenAI:
    timeout = httpx2.Timeout(model.timeout, connect=min(model.timeout, CONNECT_SECONDS))
    try:
        return openai.AsyncOpenAI(api_key=at.key or "none", base_url=base_url, timeout=timeout, max_retries=0)
    except (httpx2.InvalidURL, openai.OpenAIError) as error:
        raise InputError(f"{model.model}: base_url {at.url!r} cannot be used: {error}.") from None


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in str(schema.get("title", "reply")))
    spec = {"name": name[:64] or "reply", "schema": schema, "strict": _is_strict(schema)}
    return {"type": "json_schema", "json_schema": spec}


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, all of its properties required."""
    if isinstance(schema, list):
        return all(_is_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties")
        closed = schema.get("additionalProperties") is False
        if not isinstance(properties, dict) or not closed or set(schema.get("required", ())) != set(properties):
            return False
    return all(_is_strict(part) for part in schema.values())


def parse_reply(raw: dict[str, Any], at: Endpoint) -> ChatReply:
    """What a Chat Completions object says. Raises TransientError (bad_reply)."""
    choices = raw.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise bad_reply(at, "a reply that holds no message")
    content, refusal = message.get("content"), message.get("refusal")
    try:
        return ChatReply(
            text=content if content is not None else refusal or "",
            finish_reason=_finish_reason(choice.get("finish_reason"), content, refusal),
            usage=_usage(raw.get("usage") or {}),
            model=raw.get("model") or "",
            logprobs=_logprobs(choice.get("logprobs")),
            raw=raw,
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a field of another type than the API's
        raise bad_reply(at, f"a reply that cannot be read ({type(error).__name__})") from None


def _finish_reason(reason: Any, content: Any, refusal: Any) -> FinishReason:
    if refusal:
        return "refusal"
    finish = _FINISH.get(reason, "unknown") if isinstance(reason, str) else "unknown"
    # "stop" without any content is no answer (a model that only reasoned, say).
    return "unknown" if finish == "stop" and content is None else finish


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt, completion = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        cached_input_tokens=prompt.get("cached_tokens") or 0,
        cache_write_tokens=prompt.get("cache_write_tokens") or 0,
        reasoning_tokens=completion.get("reasoning_tokens") or 0,
    )


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprobs, ...] | None:
    content = (logprobs or {}).get("content")
    if content is None:
        return None
    return tuple(
        TokenLogprobs(
            token=entry["token"],
            logprob=entry["logprob"],
            top=tuple((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ()),
        )
        for entry in content
    )
