"""What both HTTP transports must do, each against a server that answers as told."""

import asyncio
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.clients._http import retry_after
from rlaif.clients._refusals import Problem, classify, shorten
from rlaif.clients.anthropic import AnthropicClient
from rlaif.clients.base import Client
from rlaif.clients.openai import OpenAIClient
from rlaif.config.models import ModelConfig
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError, TransientError
from rlaif.types import ChatRequest, Message
from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer, error_json

Backend = Literal["openai", "anthropic"]
CANARY = "sk-canary-5f0c2b7e91d44a3d"
HELLO = ChatRequest(messages=(Message(role="user", content="Hello"),), max_tokens=5, temperature=0.5)


@pytest.fixture(params=["openai", "anthropic"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", CANARY)
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def connect(backend: Backend, server: FaultServer, **settings: Any) -> OpenAIClient | AnthropicClient:
    config = {"model": f"{backend}:fake", "base_url": getattr(server, f"{backend}_url"), **settings}
    return (OpenAIClient if backend == "openai" else AnthropicClient)(ModelConfig(**config))


async def failed(client: Client, request: ChatRequest = HELLO) -> RlaifError:
    """The error that asking ``client`` ends with."""
    try:
        with pytest.raises(RlaifError) as caught:
            await client.complete(request)
    finally:
        await client.aclose()
    return caught.value


def refuse(status: int, message: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Callable[..., Answer]:
    return lambda asked: Answer(status=status, headers=headers or {}, body=error_json(asked.api, message, **fields))


# ------------------------------------------------------------------------------------------- errors, row by row


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 410])
async def test_a_provider_that_refuses_us_ends_the_run(backend: Backend, server: FaultServer, status: int) -> None:
    server.script = refuse(status, "Sorry")
    error = await failed(connect(backend, server))
    assert isinstance(error, ProviderError)
    assert f"{backend}:fake at {server.url}" in str(error)
    assert str(status) in str(error)


async def test_a_refused_key_is_told_by_the_name_of_its_variable(backend: Backend, server: FaultServer) -> None:
    server.script = refuse(401, "Incorrect API key provided: sk-can**************4a3d.")
    error = await failed(connect(backend, server))
    assert f"{backend.upper()}_API_KEY" in str(error)
    assert "4a3d" not in str(error)


@pytest.mark.parametrize(
    ("status", "message", "fields"),
    [
        (429, "You exceeded your current quota", {"type": "insufficient_quota", "code": "insufficient_quota"}),
        (402, "Billing problem", {"type": "billing_error"}),
        (400, "Your credit balance is too low to access the Claude API.", {"type": "invalid_request_error"}),
        (400, "You have reached your specified API usage limits.", {"type": "invalid_request_error"}),
        (429, "Limit reached", {"type": "rate_limit_error", "code": "enforced_spend_limit_reached"}),
    ],
)
async def test_an_account_without_money_ends_the_run(
    backend: Backend, server: FaultServer, status: int, message: str, fields: dict[str, Any]
) -> None:
    server.script = refuse(status, message, **fields)
    error = await failed(connect(backend, server))
    assert isinstance(error, ProviderError)
    assert "money or quota" in str(error)


@pytest.mark.parametrize("name", ["408", "409", "500", "503", "529"])
async def test_a_server_error_may_be_tried_again(backend: Backend, server: FaultServer, name: str) -> None:
    server.script = FAULTS[name]
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert (error.kind, error.status) == ("server", int(name))
    assert error.retry_after == (1.0 if name == "503" else None)


@pytest.mark.parametrize(("name", "seconds"), [("429", 1.0), ("429-ms", 0.25), ("429-wrong", None), ("429-bare", None)])
async def test_a_rate_limit_says_how_long_to_wait(
    backend: Backend, server: FaultServer, name: str, seconds: float | None
) -> None:
    server.script = FAULTS[name]
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert (error.kind, error.status, error.retry_after) == ("rate_limit", 429, seconds)


@pytest.mark.parametrize(
    ("status", "message", "fields"),
    [
        (400, "This model's maximum context length is 128000 tokens.", {"code": "context_length_exceeded"}),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", {"type": "invalid_request_error"}),
        (413, "Request exceeds the maximum size", {"type": "request_too_large"}),
        (413, "Whatever", {}),
        (
            429,
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 37313.",
            {"type": "tokens", "code": "rate_limit_exceeded"},
        ),
    ],
)
async def test_a_request_that_is_too_long_is_never_sent_again(
    backend: Backend, server: FaultServer, status: int, message: str, fields: dict[str, Any]
) -> None:
    server.script = refuse(status, message, **fields)
    error = await failed(connect(backend, server))
    assert isinstance(error, RequestError)
    assert (error.kind, error.status) == ("context_length", status)


async def test_used_up_tokens_of_this_minute_are_a_rate_limit_whatever_they_are_called(
    backend: Backend, server: FaultServer
) -> None:
    server.script = refuse(429, "Request too large for organization org-x on TPM: Limit 250000, Requested 546.")
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert error.kind == "rate_limit"


@pytest.mark.parametrize("status", [400, 422, 431, 451])
async def test_a_refused_request_is_its_own_fault(backend: Backend, server: FaultServer, status: int) -> None:
    server.script = refuse(status, "messages: roles must alternate", type="invalid_request_error")
    error = await failed(connect(backend, server))
    assert isinstance(error, RequestError)
    assert (error.kind, error.parameter, error.status) == ("invalid", None, status)
    assert "roles must alternate" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        "max_completion_tokens=100000 cannot be greater than max_model_len=2048. Please request fewer output tokens.",
        "This model's maximum context length is 2048 tokens. However, you requested 5 output tokens and your prompt",
        "The decoder prompt (length 5000) is longer than the maximum model length of 2048.",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    ],
)
def test_too_long_is_recognised_in_the_words_of_each_server(message: str) -> None:
    assert classify(Problem(message)) == ("context_length", None)


# What OpenAI, Anthropic and vLLM really say.
@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        ("temperature", Problem("Unsupported value: 'temperature' does not support 0 with this model. Only the default"
                                " (1) value is supported.", "unsupported_value", "temperature")),
        ("temperature", Problem("`temperature` is deprecated for this model.", "invalid_request_error")),
        ("temperature", Problem("temperature: Extra inputs are not permitted", "invalid_request_error")),
        ("top_p", Problem("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")),
        ("max_tokens", Problem("Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                               " 'max_completion_tokens' instead.", "unsupported_parameter", "max_tokens")),
        ("logprobs", Problem("You are not allowed to request logprobs from this model", "invalid_request_error")),
        ("logprobs", Problem("Logprobs is not enabled for models/some", "INVALID_ARGUMENT")),
        ("logprobs", Problem("Requested sample logprobs of 25, which is greater than max allowed: 20", "400",
                             "logprobs")),
        ("logprobs", Problem("Unrecognized request argument supplied: logprobs", "invalid_request_error")),
        ("json_schema", Problem("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this"
                                " model.", "", "response_format")),
        ("json_schema", Problem("Invalid schema for response_format 'reply': 'required' is missing", "invalid_schema")),
        ("json_schema", Problem("output_config.format: this model does not support structured outputs")),
        ("json_schema", Problem("The provided JSON schema contains features not supported by xgrammar.")),
        ("json_schema", Problem("Grammar error: Invalid type: no-such-type")),
        ("seed", Problem("Unsupported parameter: 'seed'", "unsupported_parameter", "seed")),
        ("stop", Problem("Unsupported parameter: 'stop' is not supported with this model.", "", "stop")),
        ("stop", Problem("stop_sequences: Extra inputs are not permitted")),
        ("system", Problem("Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                           "unsupported_value", "messages[0].role")),
        ("system", Problem("System role not supported")),
    ],
)  # fmt: skip
def test_a_refused_parameter_is_named(parameter: str, problem: Problem) -> None:
    assert classify(problem) == ("unsupported", parameter)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens: 99999 > 8192, which is the maximum allowed number of output tokens for this model",
        "Invalid value for 'stop': expected a string",
        "temperature must be between 0 and 2",
        "messages: at least one message is required",
    ],
)
def test_a_wrong_value_is_no_unsupported_parameter(message: str) -> None:
    assert classify(Problem(message)) == ("invalid", None)


async def test_logprobs_forbidden_by_403_are_a_refused_parameter_not_a_refused_key(
    backend: Backend, server: FaultServer
) -> None:
    server.script = refuse(403, "You are not allowed to request logprobs from this model")
    error = await failed(connect(backend, server))
    assert isinstance(error, RequestError)
    assert (error.kind, error.parameter) == ("unsupported", "logprobs")


@pytest.mark.parametrize(
    "body",
    [b'{"detail": "no such thing"}', b'{"message": "no such thing"}', b'{"error": "no such thing"}', b"no such thing"],
)
async def test_the_providers_words_are_found_in_every_usual_shape(
    backend: Backend, server: FaultServer, body: bytes
) -> None:
    server.script = lambda asked: Answer(status=400, body=body)
    assert str(await failed(connect(backend, server))).endswith("(400): no such thing")


# ----------------------------------------------------------------------------------- connections, time, bad replies


async def test_nothing_listening_is_one_sentence_with_the_url(backend: Backend, server: FaultServer) -> None:
    with FaultServer() as gone:
        url = gone.url
    error = await failed(connect(backend, server, base_url=url))
    assert isinstance(error, TransientError)
    assert error.kind == "connection"
    assert not error.sent  # so it cost nothing
    assert url in str(error)
    assert "base_url" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["drop", "half"])
async def test_a_broken_connection_may_be_tried_again(backend: Backend, server: FaultServer, name: str) -> None:
    server.script = FAULTS[name]
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert error.kind == "connection"
    assert error.sent  # so it may have cost something


@pytest.mark.parametrize("name", ["stall", "drip"])
async def test_a_reply_that_does_not_come_in_time_is_a_timeout(
    backend: Backend, server: FaultServer, name: str
) -> None:
    server.script = FAULTS[name]
    started = time.monotonic()
    error = await failed(connect(backend, server, timeout=0.8))
    assert isinstance(error, TransientError)
    assert error.kind == "timeout"
    assert "0.8 s" in str(error)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "name", ["truncated-json", "garbage", "nothing", "no-object", "bad-utf8", "no-choices", "error-in-200"]
)
async def test_a_reply_that_is_none_may_be_tried_again(backend: Backend, server: FaultServer, name: str) -> None:
    server.script = FAULTS[name]
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert error.kind == "bad_reply"


def spoil(reply: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**reply, **fields}


@pytest.mark.parametrize(
    "edit",
    [
        lambda reply: spoil(reply, usage={"prompt_tokens": "many", "input_tokens": "many"}),
        lambda reply: spoil(reply, usage=["many"]),
        lambda reply: spoil(reply, model=7),
        lambda reply: spoil(reply, choices=[{"message": {"content": 7}}], content=[{"type": "text", "text": 7}]),
        lambda reply: spoil(reply, choices=["x"], content=["x"]),
        lambda reply: spoil(reply, note=float("nan")),
    ],
)
async def test_a_reply_with_fields_of_other_types_is_none(
    backend: Backend, server: FaultServer, edit: Callable[[dict[str, Any]], Any]
) -> None:
    server.script = lambda asked: Answer(edit=edit)
    error = await failed(connect(backend, server))
    assert isinstance(error, TransientError)
    assert error.kind == "bad_reply"


async def test_a_message_that_is_no_unicode_is_a_refused_request(backend: Backend, server: FaultServer) -> None:
    message = Message.model_construct(role="user", content="broken \ud800 text")
    error = await failed(connect(backend, server), HELLO.model_copy(update={"messages": (message,)}))
    assert isinstance(error, RequestError)
    assert error.kind == "invalid"


# ------------------------------------------------------------------------------------------------- what must not leak


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 408, 413, 418, 422, 429, 500, 529])
async def test_a_key_that_the_server_repeats_is_in_no_error_and_no_reply(
    backend: Backend, server: FaultServer, status: int
) -> None:
    def echo_headers(asked: Asked) -> Answer:
        text = f"{'You sent this: ' * 18} {asked.headers['authorization']}"  # the quoted part ends within the key
        return Answer(text=text) if status == 200 else Answer(status=status, body=error_json(asked.api, text))

    server.script = echo_headers
    client = connect(backend, server)
    if status == 200:
        reply = await client.complete(HELLO)
        await client.aclose()
        assert "[key]" in reply.text
        shown = repr(reply) + json.dumps(reply.raw)
    else:
        error = await failed(client)
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        assert CANARY[:9] not in shown
    assert CANARY in str(server.asked[-1].headers)
    assert CANARY not in shown


@pytest.mark.parametrize("name", sorted(FAULTS))
async def test_no_fault_shows_the_key(backend: Backend, server: FaultServer, name: str) -> None:
    server.script = FAULTS[name]
    client = connect(backend, server, timeout=0.5)
    try:
        shown = repr(await client.complete(HELLO))
    except RlaifError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error)
    finally:
        await client.aclose()
    assert CANARY not in shown + repr(client) + repr(client.identity) + client.identity.model_dump_json()


def test_a_password_in_base_url_is_not_shown(backend: Backend, server: FaultServer) -> None:
    client = connect(backend, server, base_url="https://user:hunter2@example.com/v1?token=hunter2")
    assert client.identity.base_url == "https://example.com/v1"
    assert "hunter2" not in repr(vars(client)["_at"])


# ------------------------------------------------------------------------------------------- keys, options, headers


def test_a_missing_key_is_told_before_anything_is_sent(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    env = f"{backend.upper()}_API_KEY"
    monkeypatch.delenv(env)
    with pytest.raises(InputError, match=rf"^{backend}:fake: {env} is not set; export it, or name another variable"):
        connect_plain(backend)


def connect_plain(backend: Backend, **settings: Any) -> OpenAIClient | AnthropicClient:
    return (OpenAIClient if backend == "openai" else AnthropicClient)(ModelConfig(model=f"{backend}:fake", **settings))


def test_the_variable_named_in_the_config_holds_the_key(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="MY_KEY is not set"):
        connect_plain(backend, api_key_env="MY_KEY", base_url="http://127.0.0.1:1")
    monkeypatch.setenv("MY_KEY", "abc-123456")
    connect_plain(backend, api_key_env="MY_KEY")


@pytest.mark.parametrize("bad", ["two words", "line\nbreak", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    env = f"{backend.upper()}_API_KEY"
    monkeypatch.setenv(env, bad)
    with pytest.raises(InputError, match=f"{env} holds no key") as caught:
        connect_plain(backend)
    assert bad not in str(caught.value)


async def test_a_server_on_this_machine_needs_no_key(
    backend: Backend, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"{backend.upper()}_API_KEY")
    server.script = lambda asked: Answer(text="none of them")
    client = connect(backend, server)
    assert (await client.complete(HELLO)).text == "none of them"
    await client.aclose()
    server.script = refuse(401, "Unauthorized")
    assert f"wants a key (401); export {backend.upper()}_API_KEY" in str(await failed(connect(backend, server)))


def test_a_server_elsewhere_needs_one(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"{backend.upper()}_API_KEY")
    with pytest.raises(InputError, match="is not set"):
        connect_plain(backend, base_url="http://gpu-box.example:8000/v1")


def test_a_base_url_that_is_none_is_an_input_error(backend: Backend) -> None:
    with pytest.raises(InputError, match="base_url"):
        connect_plain(backend, base_url="http://[oops")


def test_the_sdks_own_base_url_variable_is_part_of_the_identity(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect_plain(backend).identity.base_url is None
    monkeypatch.setenv(f"{backend.upper()}_BASE_URL", "https://gateway.example/v1/")
    assert connect_plain(backend).identity.base_url == "https://gateway.example/v1"


async def test_options_are_laid_over_the_request_and_null_takes_a_parameter_out(
    backend: Backend, server: FaultServer
) -> None:
    server.script = lambda asked: Answer()
    client = connect(backend, server, options={"top_k": 7, "temperature": None, "user": "me"})
    await client.complete(HELLO)
    await client.aclose()
    body = server.asked[-1].body
    assert body["top_k"] == 7
    assert "temperature" not in body
    # who pays is not what is answered
    assert client.identity.extra == {"top_k": 7, "temperature": None}


async def test_headers_of_every_response_are_told(backend: Backend, server: FaultServer) -> None:
    seen: list[Mapping[str, str]] = []
    client = connect(backend, server)
    client.on_headers = seen.append
    server.script = lambda asked: Answer(headers={"x-ratelimit-remaining-requests": "9"})
    await client.complete(HELLO)
    server.script = FAULTS["429-ms"]
    await failed(client)
    assert seen[0]["x-ratelimit-remaining-requests"] == "9"
    assert seen[1]["Retry-After-Ms"] == "250"


async def test_one_complete_is_one_request_whatever_happens(backend: Backend, server: FaultServer) -> None:
    for name in ("429", "500", "drop", "garbage", "408"):
        server.script = FAULTS[name]
        before = sum(server.counts.values())
        await failed(connect(backend, server))
        assert sum(server.counts.values()) == before + 1


async def test_defaults_that_a_server_refuses_to_hear_are_left_out_from_then_on(
    backend: Backend, server: FaultServer
) -> None:
    def no_top_p(asked: Asked) -> Answer:
        if "top_p" in asked.body:
            return refuse(400, "`temperature` and `top_p` cannot both be specified for this model.")(asked)
        return Answer("fine")

    server.script = no_top_p
    client = connect(backend, server)
    replies = await asyncio.gather(*(client.complete(HELLO) for _ in range(5)))
    assert {reply.text for reply in replies} == {"fine"}
    before = sum(server.counts.values())
    await client.complete(HELLO)
    assert sum(server.counts.values()) == before + 1
    error = await failed(client, HELLO.model_copy(update={"top_p": 0.9}))  # not the default: really refused
    assert isinstance(error, RequestError)
    assert error.parameter == "top_p"


async def test_lone_surrogates_become_replacement_characters_in_text_and_raw(
    backend: Backend, server: FaultServer
) -> None:
    server.script = lambda asked: Answer(text="a \ud800 b \U0001f600 c")
    client = connect(backend, server)
    reply = await client.complete(HELLO)
    await client.aclose()
    assert reply.text == "a \ufffd b \U0001f600 c"
    json.dumps(reply.raw, ensure_ascii=False).encode("utf-8")


async def test_many_at_once_each_get_their_own_answer(backend: Backend, server: FaultServer) -> None:
    server.script = lambda asked: Answer(text=asked.last_message)
    client = connect(backend, server)
    texts = [f"number {i}" for i in range(50)]
    requests = [HELLO.model_copy(update={"messages": (Message(role="user", content=t),)}) for t in texts]
    replies = await asyncio.gather(*map(client.complete, requests))
    await client.aclose()
    assert [reply.text for reply in replies] == texts


# ----------------------------------------------------------------------------------------------------------- laws


def test_retry_after_understands_a_date() -> None:
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after({"retry-after": later}, now.timestamp()) == 90
    assert retry_after({"retry-after": later}, now.timestamp() + 500) == 0
    assert retry_after({"retry-after": "Mon, 23 Nov"}, now.timestamp()) is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_retry_after_is_none_or_a_time_to_wait(ms: str, seconds: str) -> None:
    value = retry_after({"retry-after-ms": ms, "retry-after": seconds})
    assert value is None or 0 <= value < float("inf")


@given(st.text())
def test_quoted_text_is_one_short_line(text: str) -> None:
    assert len(shorten(text)) <= 300
    assert "\n" not in shorten(text)
