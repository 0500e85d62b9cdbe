"""The OpenAI transport: what it sends, what it reads, and (marker vllm) a real server that nobody here wrote."""

import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from rlaif.clients.base import Client, request_key
from rlaif.clients.openai import OpenAIClient
from rlaif.config.models import ModelConfig
from rlaif.errors import ProviderError, RequestError
from rlaif.types import ChatReply, ChatRequest, Message, Usage
from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer, error_json
from tests.servers.vllm_server import VLLMServer

HELLO = ChatRequest(messages=(Message(role="user", content="Hello"),), max_tokens=5)
VERDICT = {
    "type": "object",
    "properties": {"winner": {"type": "string", "enum": ["A", "B"]}, "reason": {"type": "string", "maxLength": 40}},
    "required": ["winner", "reason"],
    "additionalProperties": False,
}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest_asyncio.fixture
async def client(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIClient]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = OpenAIClient(ModelConfig(model="openai:fake", base_url=server.openai_url))
    yield client
    await client.aclose()


async def sent(client: OpenAIClient, server: FaultServer, request: ChatRequest) -> dict[str, Any]:
    await client.complete(request)
    return server.asked[-1].body


# ------------------------------------------------------------------------------------------------- what it sends


def test_it_is_a_client() -> None:
    assert isinstance(OpenAIClient(ModelConfig(model="openai:x", base_url="http://localhost:1/v1")), Client)


async def test_a_plain_request_holds_nothing_more_than_it_must(client: OpenAIClient, server: FaultServer) -> None:
    request = ChatRequest(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi")), max_tokens=7
    )
    assert await sent(client, server, request) == {
        "model": "fake",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
    }


async def test_every_parameter_of_the_request_is_sent(client: OpenAIClient, server: FaultServer) -> None:
    request = HELLO.model_copy(
        update={"temperature": 0.7, "top_p": 0.9, "stop": ("\n", "###"), "seed": 11, "top_logprobs": 20}
    )
    body = await sent(client, server, request)
    assert {name: body[name] for name in ("temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["\n", "###"],
        "seed": 11,
        "logprobs": True,
        "top_logprobs": 20,
    }


async def test_the_key_goes_out_as_a_bearer_token(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-of-mine-123")
    client = OpenAIClient(ModelConfig(model="openai:fake", base_url=server.openai_url, api_key_env="MY_KEY"))
    await client.complete(HELLO)
    await client.aclose()
    assert server.asked[-1].headers["authorization"] == "Bearer sk-of-mine-123"


def test_openai_itself_gets_its_newer_name_of_max_tokens_and_no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-mine-123")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    client = OpenAIClient(ModelConfig(model="openai:gpt-4.1-mini"))
    body = client._body(HELLO.model_copy(update={"temperature": 1.0}))
    assert body["max_completion_tokens"] == 5
    assert not {"max_tokens", "temperature", "top_p"} & body.keys()


async def test_a_server_that_wants_max_completion_tokens_gets_them_from_then_on(
    client: OpenAIClient, server: FaultServer
) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def newer(asked: Asked) -> Answer:
        if "max_tokens" in asked.body:
            return Answer(
                status=400, body=error_json("openai", words, code="unsupported_parameter", param="max_tokens")
            )
        return Answer("fine")

    server.script = newer
    assert (await client.complete(HELLO)).text == "fine"
    assert server.asked[-1].body["max_completion_tokens"] == 5
    await client.complete(HELLO)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (VERDICT, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, False),
        ({**VERDICT, "required": ["winner"]}, False),
        ({"type": "array", "items": VERDICT}, True),
        ({**VERDICT, "properties": {"winner": {"type": "object"}}, "required": ["winner"]}, False),
    ],
)
async def test_a_schema_is_strict_where_openai_can_be(
    client: OpenAIClient, server: FaultServer, schema: dict[str, Any], strict: bool
) -> None:
    body = await sent(client, server, HELLO.model_copy(update={"json_schema": {"title": "A verdict!", **schema}}))
    assert body["response_format"]["type"] == "json_schema"
    spec = body["response_format"]["json_schema"]
    assert spec == {"name": "A_verdict_", "schema": {"title": "A verdict!", **schema}, "strict": strict}


async def test_a_model_declared_without_logprobs_is_never_asked_for_them(server: FaultServer) -> None:
    client = OpenAIClient(ModelConfig(model="openai:fake", base_url=server.openai_url, logprobs=False))
    with pytest.raises(RequestError) as caught:
        await client.complete(HELLO.model_copy(update={"top_logprobs": 5}))
    await client.aclose()
    assert (caught.value.kind, caught.value.parameter) == ("unsupported", "logprobs")
    assert server.asked == []


def test_options_that_change_answers_change_the_requests_key() -> None:
    def key(**options: Any) -> str:
        config = ModelConfig(model="openai:fake", base_url="http://localhost:1/v1", options=options)
        return request_key(OpenAIClient(config).identity, HELLO)

    assert key() == key(service_tier="flex", user="me")
    assert key() != key(reasoning_effort="low")


# ------------------------------------------------------------------------------------------------- what it reads


def edited(change: Callable[[dict[str, Any]], Any], text: str = "ok") -> Callable[[Asked], Answer]:
    def edit(reply: dict[str, Any]) -> dict[str, Any]:
        change(reply)
        return reply

    return lambda asked: Answer(text=text, edit=edit)


async def test_a_reply_is_text_reason_usage_and_the_raw_json(client: OpenAIClient, server: FaultServer) -> None:
    server.script = lambda asked: Answer("four little words here")
    reply = await client.complete(HELLO)
    assert (reply.text, reply.finish_reason, reply.model) == ("four little words here", "stop", "fake")
    assert reply.usage == Usage(input_tokens=1, output_tokens=4)
    assert reply.logprobs is None
    assert reply.downgrades == ()
    assert reply.raw["choices"][0]["message"]["content"] == "four little words here"
    assert ChatReply.model_validate_json(reply.model_dump_json()) == reply


async def test_the_default_server_repeats_the_message(client: OpenAIClient) -> None:
    assert (await client.complete(HELLO)).text == "echo: Hello"


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [
        ("length", "length", "cut off in the mid"),
        ("content-filter", "content_filter", ""),
        ("refusal", "refusal", "I cannot help with that."),
        ("no-finish", "unknown", "ok"),
        ("empty", "stop", ""),
    ],
)
async def test_how_a_reply_ended_is_kept(
    client: OpenAIClient, server: FaultServer, name: str, reason: str, text: str
) -> None:
    server.script = FAULTS[name]
    reply = await client.complete(HELLO)
    assert (reply.finish_reason, reply.text) == (reason, text)


@pytest.mark.parametrize(
    ("said", "reason"),
    [("tool_calls", "tool_calls"), ("function_call", "tool_calls"), ("abort", "unknown"), (None, "unknown")],
)
async def test_only_a_known_end_counts_as_one(
    client: OpenAIClient, server: FaultServer, said: Any, reason: str
) -> None:
    server.script = edited(lambda reply: reply["choices"][0].update(finish_reason=said))
    assert (await client.complete(HELLO)).finish_reason == reason


async def test_a_stop_without_content_is_no_normal_end(client: OpenAIClient, server: FaultServer) -> None:
    server.script = edited(lambda reply: reply["choices"][0]["message"].update(content=None))
    reply = await client.complete(HELLO)
    assert (reply.text, reply.finish_reason) == ("", "unknown")


async def test_cached_and_reasoning_tokens_are_counted(client: OpenAIClient, server: FaultServer) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 12, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    server.script = edited(lambda reply: reply.update(usage=usage))
    assert (await client.complete(HELLO)).usage == Usage(
        input_tokens=100, output_tokens=50, cached_input_tokens=64, cache_write_tokens=12, reasoning_tokens=40
    )


async def test_a_server_that_counts_nothing_is_read_too(client: OpenAIClient, server: FaultServer) -> None:
    server.script = edited(lambda reply: reply.update(usage=None))
    assert (await client.complete(HELLO)).usage == Usage()


async def test_logprobs_are_read_token_by_token(client: OpenAIClient, server: FaultServer) -> None:
    server.script = lambda asked: Answer("yes indeed")
    reply = await client.complete(HELLO.model_copy(update={"top_logprobs": 3}))
    assert reply.logprobs is not None
    assert [token.token for token in reply.logprobs] == ["yes", " indeed"]
    first = reply.logprobs[0]
    assert first.logprob == pytest.approx(math.log(1 / 2))
    assert [name for name, _ in first.top] == ["yes", "<1>", "<2>"]
    assert sum(math.exp(p) for _, p in first.top) == pytest.approx(7 / 8)


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}])
async def test_a_model_that_gives_no_logprobs_gives_none(
    client: OpenAIClient, server: FaultServer, logprobs: Any
) -> None:
    server.script = edited(lambda reply: reply["choices"][0].update(logprobs=logprobs))
    reply = await client.complete(HELLO.model_copy(update={"top_logprobs": 3}))
    assert not reply.logprobs


# --------------------------------------------------------------------------------------------- a real vLLM server

ASK = Message(role="user", content="What is the capital of France?")


@pytest_asyncio.fixture
async def real(vllm_server: VLLMServer) -> AsyncIterator[OpenAIClient]:
    client = OpenAIClient(ModelConfig(model=f"openai:{vllm_server.model}", base_url=f"{vllm_server.url}/v1"))
    yield client
    await client.aclose()


@pytest.mark.vllm
async def test_vllm_chats(real: OpenAIClient) -> None:
    reply = await real.complete(ChatRequest(messages=(ASK,), max_tokens=40))
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.usage.input_tokens > 10
    assert 1 < reply.usage.output_tokens <= 40
    assert reply.raw["object"] == "chat.completion"


@pytest.mark.vllm
async def test_vllm_says_when_it_was_cut_off(real: OpenAIClient) -> None:
    reply = await real.complete(ChatRequest(messages=(ASK,), max_tokens=2))
    assert reply.finish_reason == "length"
    assert reply.usage.output_tokens == 2


@pytest.mark.vllm
async def test_vllm_stops_at_a_stop_text(real: OpenAIClient) -> None:
    reply = await real.complete(ChatRequest(messages=(ASK,), max_tokens=40, stop=("Paris",)))
    assert reply.finish_reason == "stop"
    assert "Paris" not in reply.text


@pytest.mark.vllm
async def test_vllm_logprobs_are_probabilities_and_the_same_every_time(real: OpenAIClient) -> None:
    request = ChatRequest(messages=(ASK,), max_tokens=3, top_logprobs=20)
    first, second = await real.complete(request), await real.complete(request)
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert len(first.logprobs) == 3
    for one, two in zip(first.logprobs, second.logprobs, strict=True):
        assert len(one.top) == 20
        assert 0.2 < sum(math.exp(p) for _, p in one.top) <= 1 + 1e-6
        assert one.top[0] == (one.token, one.logprob)  # greedy: the sampled token leads
        assert [p for _, p in one.top] == sorted((p for _, p in one.top), reverse=True)
        assert two.token == one.token
        assert two.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert dict(two.top) == pytest.approx(dict(one.top), abs=1e-4)
    assert "".join(token.token for token in first.logprobs) == first.text


@pytest.mark.vllm
async def test_vllm_keeps_to_a_json_schema(real: OpenAIClient) -> None:
    question = Message(role="user", content="Which city is bigger: A) Paris or B) Lyon? Answer as JSON.")
    reply = await real.complete(ChatRequest(messages=(question,), max_tokens=80, json_schema=VERDICT))
    assert reply.finish_reason == "stop"
    answer = json.loads(reply.text)
    assert answer.keys() == {"winner", "reason"}
    assert answer["winner"] in ("A", "B")
    assert len(answer["reason"]) <= 40


@pytest.mark.vllm
async def test_vllm_samples_again_with_the_same_seed(real: OpenAIClient) -> None:
    def request(seed: int) -> ChatRequest:
        return ChatRequest(messages=(ASK,), max_tokens=20, temperature=1.5, seed=seed)

    texts = [(await real.complete(request(seed))).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.vllm
async def test_vllm_without_that_model_ends_the_run(vllm_server: VLLMServer) -> None:
    client = OpenAIClient(ModelConfig(model="openai:no-such-model", base_url=f"{vllm_server.url}/v1"))
    with pytest.raises(ProviderError, match=r"openai:no-such-model at .*404.*does not exist"):
        await client.complete(HELLO)
    await client.aclose()


@pytest.mark.vllm
async def test_vllm_under_another_path_ends_the_run(vllm_server: VLLMServer) -> None:
    client = OpenAIClient(ModelConfig(model=f"openai:{vllm_server.model}", base_url=f"{vllm_server.url}/v7"))
    with pytest.raises(ProviderError, match=r"404.*base_url"):
        await client.complete(HELLO)
    await client.aclose()


@pytest.mark.vllm
@pytest.mark.parametrize("request_", [
    ChatRequest(messages=(Message(role="user", content="word " * 5000),), max_tokens=5),
    ChatRequest(messages=(ASK,), max_tokens=100_000),
])  # fmt: skip
async def test_vllm_says_what_is_too_long(real: OpenAIClient, request_: ChatRequest) -> None:
    with pytest.raises(RequestError) as caught:
        await real.complete(request_)
    assert (caught.value.kind, caught.value.status) == ("context_length", 400)


@pytest.mark.vllm
async def test_vllm_names_a_schema_it_cannot_keep_to(real: OpenAIClient) -> None:
    schema = {"type": "no-such-type"}
    with pytest.raises(RequestError) as caught:
        await real.complete(HELLO.model_copy(update={"json_schema": schema}))
    assert (caught.value.kind, caught.value.parameter) == ("unsupported", "json_schema"), str(caught.value)
