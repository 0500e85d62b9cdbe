"""The Anthropic transport: what it sends, what it reads, and (marker vllm) a real server that nobody here wrote."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from rlaif.clients.anthropic import AnthropicClient
from rlaif.clients.base import Client, request_key
from rlaif.config.models import ModelConfig
from rlaif.errors import ProviderError, RequestError
from rlaif.types import ChatReply, ChatRequest, Message, Usage
from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer
from tests.servers.vllm_server import VLLMServer

HELLO = ChatRequest(messages=(Message(role="user", content="Hello"),), max_tokens=5)
CONVERSATION = (
    Message(role="system", content="The constitution."),
    Message(role="system", content="Be brief."),
    Message(role="user", content="Example question"),
    Message(role="assistant", content="Example answer"),
    Message(role="user", content="The row"),
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest_asyncio.fixture
async def client(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AnthropicClient]:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    client = AnthropicClient(ModelConfig(model="anthropic:fake", base_url=server.anthropic_url))
    yield client
    await client.aclose()


async def sent(client: AnthropicClient, server: FaultServer, request: ChatRequest) -> dict[str, Any]:
    await client.complete(request)
    return server.asked[-1].body


def block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


# ------------------------------------------------------------------------------------------------- what it sends


def test_it_is_a_client() -> None:
    client = AnthropicClient(ModelConfig(model="anthropic:x", base_url="http://localhost:1"))
    assert isinstance(client, Client)
    assert client.capabilities.logprobs is False


async def test_system_messages_go_into_system_and_the_rest_stays_in_order(
    client: AnthropicClient, server: FaultServer
) -> None:
    assert await sent(client, server, HELLO.model_copy(update={"messages": CONVERSATION})) == {
        "model": "fake",
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 1.0,
        "system": [block("The constitution.\n\n"), block("Be brief.")],
        "messages": [
            {"role": "user", "content": [block("Example question")]},
            {"role": "assistant", "content": [block("Example answer")]},
            {"role": "user", "content": [block("The row")]},
        ],
    }


def marked(body: dict[str, Any]) -> list[str]:
    blocks = [*body.get("system", []), *(block for turn in body["messages"] for block in turn["content"])]
    return [block["text"].strip() for block in blocks if block.get("cache_control") == {"type": "ephemeral"}]


@pytest.mark.parametrize(
    ("prefix", "where"), [(0, []), (1, ["The constitution."]), (2, ["Be brief."]), (4, ["Example answer"]), (9, [])]
)
async def test_the_cached_prefix_ends_in_one_breakpoint_and_changes_nothing_else(
    client: AnthropicClient, server: FaultServer, prefix: int, where: list[str]
) -> None:
    plain = await sent(client, server, HELLO.model_copy(update={"messages": CONVERSATION}))
    body = await sent(client, server, HELLO.model_copy(update={"messages": CONVERSATION, "cache_prefix": prefix}))
    assert marked(body) == where
    stripped = json.loads(json.dumps(body).replace(', "cache_control": {"type": "ephemeral"}', ""))
    assert stripped == plain


async def test_every_parameter_of_the_request_is_sent_but_the_seed(
    client: AnthropicClient, server: FaultServer
) -> None:
    body = await sent(
        client, server, HELLO.model_copy(update={"temperature": 0.7, "top_p": 0.9, "stop": ("###",), "seed": 11})
    )
    assert (body["temperature"], body["top_p"], body["stop_sequences"]) == (0.7, 0.9, ["###"])
    assert "seed" not in body


async def test_what_needs_sampling_parameters_goes_out_as_the_last_version_that_takes_them(
    client: AnthropicClient, server: FaultServer
) -> None:
    await client.complete(HELLO)
    assert server.asked[-1].headers["anthropic-version"] == "2023-06-01"
    client._unsent |= {"temperature", "top_p"}  # as for the API itself
    await client.complete(HELLO.model_copy(update={"temperature": 1.0}))
    assert server.asked[-1].headers["anthropic-version"] > "2023-06-01"
    assert not {"temperature", "top_p"} & server.asked[-1].body.keys()


def test_anthropic_itself_is_not_sent_its_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-mine-123")
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    client = AnthropicClient(ModelConfig(model="anthropic:claude"))
    assert not {"temperature", "top_p"} & client._body(HELLO.model_copy(update={"temperature": 1.0})).keys()
    assert client._body(HELLO)["temperature"] == 0


async def test_a_schema_goes_out_in_the_form_the_api_enforces(client: AnthropicClient, server: FaultServer) -> None:
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["score"],
    }
    body = await sent(client, server, HELLO.model_copy(update={"json_schema": schema}))
    form = body["output_config"]["format"]
    assert form["type"] == "json_schema"
    assert form["schema"]["additionalProperties"] is False
    score = form["schema"]["properties"]["score"]
    assert score["type"] == "integer"
    assert "minimum: 1" in score["description"]  # a bound that the API cannot enforce is told to the model


async def test_a_schema_the_api_cannot_take_at_all_is_refused_before_sending(
    client: AnthropicClient, server: FaultServer
) -> None:
    with pytest.raises(RequestError) as caught:
        await client.complete(HELLO.model_copy(update={"json_schema": {"properties": {}}}))
    assert (caught.value.kind, caught.value.parameter) == ("unsupported", "json_schema")
    assert server.asked == []


async def test_a_request_for_logprobs_is_refused_before_sending(client: AnthropicClient, server: FaultServer) -> None:
    with pytest.raises(RequestError) as caught:
        await client.complete(HELLO.model_copy(update={"top_logprobs": 5}))
    assert (caught.value.kind, caught.value.parameter) == ("unsupported", "logprobs")
    assert server.asked == []


async def test_the_key_goes_out_and_no_other_credential(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-of-mine-123")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-another-456")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-789-abc")
    client = AnthropicClient(
        ModelConfig(model="anthropic:fake", base_url=server.anthropic_url, api_key_env="MY_KEY")
    )  # fmt: skip
    await client.complete(HELLO)
    await client.aclose()
    headers = str(server.asked[-1].headers)
    assert "sk-of-mine-123" in headers
    assert "sk-another-456" not in headers
    assert "token-789-abc" not in headers


def test_the_cached_prefix_is_not_part_of_the_requests_key() -> None:
    identity = AnthropicClient(ModelConfig(model="anthropic:x", base_url="http://localhost:1")).identity
    assert request_key(identity, HELLO) == request_key(identity, HELLO.model_copy(update={"cache_prefix": 1}))


# ------------------------------------------------------------------------------------------------- what it reads


def edited(**fields: Any) -> Callable[[Asked], Answer]:
    return lambda asked: Answer(edit=lambda reply: {**reply, **fields})


async def test_a_reply_is_text_reason_usage_and_the_raw_json(client: AnthropicClient, server: FaultServer) -> None:
    server.script = lambda asked: Answer("four little words here")
    reply = await client.complete(HELLO)
    assert (reply.text, reply.finish_reason, reply.model) == ("four little words here", "stop", "fake")
    assert reply.usage.output_tokens == 4
    assert reply.logprobs is None
    assert reply.raw["type"] == "message"
    assert ChatReply.model_validate_json(reply.model_dump_json()) == reply


async def test_only_text_blocks_are_the_text(client: AnthropicClient, server: FaultServer) -> None:
    content = [{"type": "thinking", "thinking": "hm", "signature": "x"}, block("one "), block("two")]
    server.script = edited(content=content)
    assert (await client.complete(HELLO)).text == "one two"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "unknown"),
        ("something_new", "unknown"),
        (None, "unknown"),
    ],
)
async def test_how_a_reply_ended_is_kept(client: AnthropicClient, server: FaultServer, said: Any, reason: str) -> None:
    server.script = edited(stop_reason=said)
    assert (await client.complete(HELLO)).finish_reason == reason


@pytest.mark.parametrize(("name", "reason"), [("length", "length"), ("refusal", "refusal"), ("no-finish", "unknown")])
async def test_the_servers_faults_are_never_a_normal_end(
    client: AnthropicClient, server: FaultServer, name: str, reason: str
) -> None:
    server.script = FAULTS[name]
    assert (await client.complete(HELLO)).finish_reason == reason


async def test_input_tokens_are_the_whole_input(client: AnthropicClient, server: FaultServer) -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 30,
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 20},
    }
    server.script = edited(usage=usage)
    assert (await client.complete(HELLO)).usage == Usage(
        input_tokens=240, output_tokens=50, cached_input_tokens=200, cache_write_tokens=30, reasoning_tokens=20
    )


# --------------------------------------------------------------------------------------------- a real vLLM server

ASK = Message(role="user", content="What is the capital of France?")


@pytest_asyncio.fixture
async def real(vllm_server: VLLMServer) -> AsyncIterator[AnthropicClient]:
    client = AnthropicClient(ModelConfig(model=f"anthropic:{vllm_server.model}", base_url=vllm_server.url))
    yield client
    await client.aclose()


@pytest.mark.vllm
async def test_vllm_chats(real: AnthropicClient) -> None:
    system = Message(role="system", content="You answer in one sentence.")
    reply = await real.complete(ChatRequest(messages=(system, ASK), max_tokens=40, cache_prefix=1))
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.usage.input_tokens > 10
    assert 1 < reply.usage.output_tokens <= 40
    assert reply.raw["type"] == "message"


@pytest.mark.vllm
async def test_vllm_says_when_it_was_cut_off(real: AnthropicClient) -> None:
    assert (await real.complete(ChatRequest(messages=(ASK,), max_tokens=2))).finish_reason == "length"


@pytest.mark.vllm
async def test_vllm_keeps_to_a_json_schema(real: AnthropicClient) -> None:
    schema = {
        "type": "object",
        "properties": {"winner": {"type": "string", "enum": ["A", "B"]}},
        "required": ["winner"],
        "additionalProperties": False,
    }
    question = Message(role="user", content="Which city is bigger: A) Paris or B) Lyon? Answer as JSON.")
    reply = await real.complete(ChatRequest(messages=(question,), max_tokens=60, json_schema=schema))
    assert json.loads(reply.text)["winner"] in ("A", "B")


@pytest.mark.vllm
async def test_vllm_without_that_model_ends_the_run(vllm_server: VLLMServer) -> None:
    client = AnthropicClient(ModelConfig(model="anthropic:no-such-model", base_url=vllm_server.url))
    with pytest.raises(ProviderError, match=r"anthropic:no-such-model at .*404"):
        await client.complete(HELLO)
    await client.aclose()


@pytest.mark.vllm
async def test_vllm_says_what_is_too_long(real: AnthropicClient) -> None:
    with pytest.raises(RequestError) as caught:
        await real.complete(ChatRequest(messages=(Message(role="user", content="word " * 5000),), max_tokens=5))
    assert (caught.value.kind, caught.value.status) == ("context_length", 400)
