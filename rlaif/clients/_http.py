"""What the HTTP transports share: the key, the sending of one request, and one mapping from failures to our errors.

======================================================  ==========================================================
what came back                                          raised
======================================================  ==========================================================
401, 402, 403, 404, 405, 410, no money left             ProviderError: no other request will fare better
400, 403, 413, 422, 501 about one parameter             RequestError(kind="unsupported", parameter=...)
400, 413, 422 (and 429) about too many tokens           RequestError(kind="context_length")
any other 4xx                                           RequestError(kind="invalid")
429                                                     TransientError(kind="rate_limit", retry_after=...)
408, 409, 425, 5xx                                      TransientError(kind="server", retry_after=...)
no connection, or it broke                              TransientError(kind="connection")
no reply in time                                        TransientError(kind="timeout")
a reply that is no JSON object                          TransientError(kind="bad_reply")
======================================================  ==========================================================

The SDKs' own retries are off: the one retry layer wraps a client. Messages quote the provider, never a key.
"""

import asyncio
import ipaddress
import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from rlaif.clients._refusals import classify, read_problem, shorten
from rlaif.config.models import ModelConfig
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError, TransientError
from rlaif.types import ChatRequest

CONNECT_SECONDS = 20.0  # a host that takes longer to accept a connection is not there
_SCRUBBED_KEY = 8  # shorter "keys" are placeholders ("none", "EMPTY") that occur in ordinary text

# Parts of `options` that decide who pays or how long it takes, not what is answered.
_NO_EFFECT = frozenset(
    {"metadata", "priority", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store"}
    | {"user"}
)


# ------------------------------------------------------------------------------------------------ whom we talk to


@dataclass(frozen=True)
class Endpoint:
    """Whom requests go to, as messages name it. It holds the key only to keep it out of them."""

    spec: str  # "openai:gpt-4.1-mini"
    url: str
    key_env: str
    key: str | None = field(repr=False)  # None: a local server that wants none

    def clean(self, text: str) -> str:
        """``text``, a body as it came, without the key, should the provider have repeated it."""
        if not self.key or len(self.key) < _SCRUBBED_KEY:
            return text
        if "\\" in text and self.key in (spelt_out := _ESCAPE.sub(_spelt_out, text)):
            text = spelt_out  # JSON may write a letter as \u0073, and a slash as \/
        return text.replace(self.key, "[key]")

    def __str__(self) -> str:
        return f"{self.spec} at {self.url}"


_ESCAPE = re.compile(r"\\(?:\\|/|u00[2-7][0-9a-fA-F])")


def _spelt_out(escape: re.Match[str]) -> str:
    """The character that an escape of JSON stands for, where it may stand there without one."""
    character = "\\" if escape[0] == "\\\\" else "/" if escape[0] == "\\/" else chr(int(escape[0][2:], 16))
    return escape[0] if character in '"\\\x7f' else character


def endpoint(model: ModelConfig, default_env: str, base_url: str) -> Endpoint:
    """The endpoint of ``model``. Raises InputError for a URL that is none, and when the key is not in the environment
    (a server on this machine needs none)."""
    try:
        usable = urlsplit(base_url).hostname and (urlsplit(base_url).port or 1)
    except ValueError:
        usable = None
    if not usable:
        shown = re.sub(r"//[^/]*@", "//", base_url)  # without a password
        raise InputError(f"{model.model}: base_url {shown!r} is no URL; write http://HOST:PORT/v1 or the like.")
    env = model.api_key_env or default_env
    key = os.environ.get(env, "").strip()
    if key and (not (key.isascii() and key.isprintable()) or set(key) & set(' "\\')):
        raise InputError(f"{model.model}: {env} holds no key: it contains spaces or characters that no key has.")
    if not key and not (model.api_key_env is None and _on_this_machine(base_url)):
        raise InputError(f"{model.model}: {env} is not set; export it, or name another variable with api_key_env.")
    return Endpoint(model.model, public_url(base_url), env, key or None)


def public_url(url: str) -> str:
    """``url`` without user, password and query: what may be shown and stored."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def effective_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``options`` that can change answers: it belongs to the identity of the model."""
    return {name: value for name, value in options.items() if name not in _NO_EFFECT}


# ---------------------------------------------------------------------------------------------- one request, one reply


class OnHeaders(Protocol):
    """Called with the headers of every response, also of errors (rate limits are told there)."""

    def __call__(self, headers: Mapping[str, str], /) -> None: ...


class HttpTransport:
    """The half of a client that does not depend on the protocol.

    ``on_headers``: set it to be told the headers of every response. ``unsent``: parameters with the API's default value
    that are left out, because the API's own default is the same or because this server refused to hear them.
    """

    on_headers: OnHeaders | None = None

    def __init__(self, model: ModelConfig, at: Endpoint, sdk: Any, client: Any, response_type: type) -> None:
        self._at = at
        self._options = model.options
        self._timeout = model.timeout
        self._client = client
        self._sdk = sdk  # its APIStatusError, APITimeoutError, APIConnectionError
        self._response_type = response_type
        self._unsent: set[str] = set()

    async def aclose(self) -> None:
        await self._client.close()

    async def _exchange(self, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        """The JSON that ``path`` answers to ``body``. Raises as the table above says."""
        # The SDK's typed methods validate and copy what we built ourselves a line ago and would parse the reply into
        # models only to be dumped again: a third of the time of a short call.
        send = self._client.post(path, cast_to=self._response_type, body=body, options={"headers": dict(headers)})
        try:
            # The SDK's own limit is for each read: a reply that drips would never meet it.
            async with asyncio.timeout(self._timeout):
                response = await send
        except (self._sdk.APIConnectionError, self._sdk.APIStatusError, TimeoutError, TypeError, ValueError) as error:
            raise self._failure(error) from None
        self._tell(response.headers)
        return read_reply(response.content, self._at)

    def _failure(self, error: Exception) -> RlaifError:
        """What an exception of the SDK means. Headers of an error response are told, too."""
        if isinstance(error, TimeoutError | self._sdk.APITimeoutError):
            return _too_late(self._at, self._timeout, error)
        if isinstance(error, self._sdk.APIConnectionError):
            return no_connection(self._at, error)
        if isinstance(error, self._sdk.APIStatusError):
            response = error.response
            self._tell(response.headers)
            return failure(response.status_code, response.headers, response.content, self._at)
        # a lone surrogate in a message, a NaN in options
        return RequestError(f"{self._at}: the request is no valid JSON ({error}).", kind="invalid")

    def _tell(self, headers: Mapping[str, str]) -> None:
        if self.on_headers is not None:
            self.on_headers(headers)

    def _with_options(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` with ``options`` laid over it; an option that is null takes a parameter out."""
        return {name: value for name, value in (body | self._options).items() if value is not None}

    def _sampling(self, request: ChatRequest) -> dict[str, float]:
        values = {"temperature": request.temperature, "top_p": request.top_p}
        return {name: value for name, value in values.items() if value != 1.0 or name not in self._unsent}

    def _learn(self, error: RequestError) -> None:
        """Note what this server does not want to hear: 1.0 is every API's default for both."""
        if error.kind == "unsupported" and error.parameter in ("temperature", "top_p"):
            self._unsent.add(error.parameter)


def read_reply(content: bytes, at: Endpoint) -> dict[str, Any]:
    """A reply's body as a JSON object without key, NaN and lone surrogates. Raises TransientError (bad_reply)."""
    reply = read_object(content, at)
    if reply.get("error") and not (reply.get("choices") or reply.get("content")):
        raise bad_reply(at, f"an error: {read_problem(at.clean(content.decode())).message}")
    return reply


def read_object(content: bytes, at: Endpoint) -> dict[str, Any]:
    """As `read_reply`, for any JSON object, one that tells of an error among them."""
    try:
        text = at.clean(content.decode("utf-8"))
        reply = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        start = shorten(at.clean(content.decode("utf-8", "replace")), 80)
        raise bad_reply(at, f"no valid JSON ({shorten(str(error), 80)}): {start!r}") from None
    if not isinstance(reply, dict):
        raise bad_reply(at, "no JSON object")
    if _SURROGATE.search(text):
        reply = _without_surrogates(reply)
    return reply  # type: ignore[no-any-return]


def bad_reply(at: Endpoint, what: str) -> TransientError:
    return TransientError(f"{at}: the server answered with {what}.", kind="bad_reply")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


# --------------------------------------------------------------------------------------------------- what went wrong


_NO_MONEY = re.compile(
    r"insufficient_quota|billing_(hard_)?(error|limit)|spend_limit_reached|billing_unavailable|organization_on_hold"
    r"|credit balance is too low|reached your specified (workspace )?API usage limits|insufficient credits",
    re.IGNORECASE,
)


def failure(status: int, headers: Mapping[str, str], body: bytes, at: Endpoint) -> RlaifError:
    """The error that a response of ``status`` means; see the table at the top of this module."""
    problem = read_problem(at.clean(body.decode("utf-8", "replace")))  # cleaned first: no half of a key is quoted
    said = problem.message
    if _NO_MONEY.search(f"{problem.code} {problem.message}"):
        return ProviderError(f"{at}: the account has no money or quota left ({status}): {said}")
    if status == 401:
        # Not quoted: some providers repeat a part of the key.
        return ProviderError(f"{at} refused the key in {at.key_env} (401)." if at.key else _wants_key(at))
    kind, parameter = classify(problem)
    if status == 429:
        if kind == "context_length":
            return RequestError(f"{at}: {said}", kind="context_length", status=status)
        return TransientError(
            f"{at}: too many requests (429): {said}", kind="rate_limit", status=429, retry_after=retry_after(headers)
        )
    if status in (408, 409, 425) or (status >= 500 and status != 501):
        return TransientError(
            f"{at} failed ({status}): {said}", kind="server", status=status, retry_after=retry_after(headers)
        )
    if status == 413:
        kind, parameter = "context_length", None
    if status == 403 and kind != "unsupported":
        return ProviderError(f"{at}: the key in {at.key_env} may not use this model (403): {said}")
    if status == 404:
        return ProviderError(f"{at}: not found (404); check the model's name and base_url: {said}")
    if status in (402, 405, 410) or status < 400:
        return ProviderError(f"{at}: refused ({status}); check the model's name, base_url and account: {said}")
    return RequestError(f"{at} refused the request ({status}): {said}", kind=kind, parameter=parameter, status=status)


def _wants_key(at: Endpoint) -> str:
    return f"{at} wants a key (401); export {at.key_env}, or name another variable with api_key_env."


def _too_late(at: Endpoint, seconds: float, error: Exception) -> TransientError:
    if type(error.__cause__).__name__ == "ConnectTimeout":
        said = f"{at}: no connection within {min(seconds, CONNECT_SECONDS):g} s."
        return TransientError(said, kind="connection", sent=False)
    return TransientError(f"{at}: no reply within {seconds:g} s.", kind="timeout")


def no_connection(at: Endpoint, error: Exception) -> TransientError:
    cause = error.__cause__ or error
    # The cause never holds a request header: the key was checked to be a legal one when the client was made.
    return TransientError(
        f"{at}: no connection, or it broke ({shorten(str(cause) or type(cause).__name__, 100)}); is the server running"
        " there, and is base_url right?",
        kind="connection",
        sent=type(cause).__name__ != "ConnectError",
    )


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait, from ``retry-after-ms``, or ``retry-after`` in seconds or as an HTTP date (RFC 9110, 10.2.3).

    None where there is none or it makes no sense; a date in the past is 0. ``now``: seconds since 1970.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, then - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
