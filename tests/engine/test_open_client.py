"""The whole stack, as a stage gets it, against a server that lies."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.clients.base import Client
from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger, open_client
from rlaif.engine.limits import LimitedClient, Limiter
from rlaif.errors import InputError, ProviderError, RlaifError
from rlaif.types import ChatReply, ChatRequest
from tests.engine.virtual import ask
from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer, drawn, echo, error_json, fault

CANARY = "sk-canary-4f1d8a7b6c5e"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)


def model_of(server: FaultServer, backend: str = "openai", **more: Any) -> ModelConfig:
    url = server.openai_url if backend == "openai" else server.anthropic_url
    return ModelConfig(model=f"{backend}:fake", base_url=url, **{"timeout": 5.0, **more})


def limiter_of(client: Any) -> Limiter:
    while not isinstance(client, LimitedClient):
        client = client._client
    return client.limiter


async def ask_all(client: Client, numbers: range) -> list[ChatReply | RlaifError]:
    async def one(i: int) -> ChatReply | RlaifError:
        try:
            return await client.complete(ask(i))
        except RlaifError as error:
            return error

    return await asyncio.gather(*(one(i) for i in numbers))


@pytest.mark.parametrize("backend", ["openai", "anthropic"])
async def test_a_second_run_sends_nothing(tmp_path: Path, backend: str) -> None:
    with FaultServer() as server:
        seen = []
        for _ in range(2):
            with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
                client = open_client(model_of(server, backend), ledger, "sample")
                seen.append(await ask_all(client, range(20)))
                await client.aclose()
        assert seen[0] == seen[1]
        assert set(server.counts.values()) == {1}
        assert len(server.counts) == 20


def test_two_configs_of_one_model_at_one_url_share_its_limits() -> None:
    with FaultServer() as server:
        first, second = open_client(model_of(server)), open_client(model_of(server, rpm=30, max_concurrency=3))
        assert limiter_of(first) is limiter_of(second)
        assert (limiter_of(first).rpm, limiter_of(first).limit) == (30, 3)  # the stricter holds for both
        other = open_client(ModelConfig(model="openai:other", base_url=server.openai_url))
        assert limiter_of(other) is not limiter_of(first)


def test_local_models_are_not_limited_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fakes_here.py").write_text("def judge(request):\n    return 'A'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    one, two = (open_client(ModelConfig(model="scripted:fakes_here:judge", max_concurrency=n)) for n in (1, 2))
    assert (limiter_of(one).limit, limiter_of(two).limit) == (1, 2)
    assert asyncio.run(one.complete(ask())).text == "A"


@pytest.mark.parametrize("backend", ["openai", "anthropic"])
async def test_429s_are_waited_out_and_rate_limit_headers_heard(backend: str) -> None:
    def script(asked: Asked) -> Answer:
        if asked.order == 3:
            return fault("429-ms", asked)
        prefix = "x-ratelimit-{}-requests" if backend == "openai" else "anthropic-ratelimit-requests-{}"
        headers = {prefix.format("limit"): "6000", prefix.format("remaining"): "5999"}
        return Answer(headers=headers)

    with FaultServer(script) as server:
        client = open_client(model_of(server, backend))
        replies = await ask_all(client, range(30))
        assert all(isinstance(reply, ChatReply) for reply in replies)
        assert limiter_of(client).throttled == 1
        assert limiter_of(client)._told["requests"].capacity == 6000


@pytest.mark.parametrize("backend", ["openai", "anthropic"])
async def test_a_refused_parameter_costs_one_refusal_and_is_recorded(tmp_path: Path, backend: str) -> None:
    def script(asked: Asked) -> Answer:
        if "temperature" in asked.body:
            message = "Unsupported parameter: 'temperature' is not supported with this model."
            if backend == "anthropic":
                message = "temperature: this parameter is not supported by this model"
            body = error_json(
                asked.api, message, type="invalid_request_error", code="unsupported_parameter", param="temperature"
            )
            return Answer(status=400, body=body)
        return echo(asked)

    with FaultServer(script) as server, Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        client = open_client(model_of(server, backend), ledger, "sample")
        for i in range(5):
            reply = await client.complete(ask(i))
            assert reply.downgrades == ("temperature",)
        assert sum(server.counts.values()) == 6
        stored = await client.complete(ask(0))
        assert stored.downgrades == ("temperature",)
        assert sum(server.counts.values()) == 6


async def test_a_request_that_is_too_long_fails_alone() -> None:
    def script(asked: Asked) -> Answer:
        if asked.last_message == "question 3":
            message = "This model's maximum context length is 16 tokens. However, your messages resulted in 99 tokens."
            return Answer(status=400, body=error_json("openai", message, code="context_length_exceeded"))
        return echo(asked)

    with FaultServer(script) as server:
        replies = await ask_all(open_client(model_of(server)), range(8))
        assert [getattr(reply, "kind", "ok") for reply in replies] == ["ok"] * 3 + ["context_length"] + ["ok"] * 4
        assert sum(server.counts.values()) == 8


async def test_a_wrong_key_is_asked_with_once() -> None:
    with FaultServer(lambda asked: Answer(status=401, body=error_json("openai", "no", type="auth"))) as server:
        replies = await ask_all(open_client(model_of(server, max_concurrency=1)), range(50))
        assert all(isinstance(reply, ProviderError) for reply in replies)
        assert sum(server.counts.values()) == 1


def test_a_model_that_cannot_be_opened_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        open_client(ModelConfig(model="openai:gpt-4.1-mini"))


def leaks(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if CANARY.encode() in file.read_bytes()]


SLOW = ("stall", "drip", "503", "429", "429-ms", "429-wrong", "429-bare")  # their waits are measured in seconds
RECOVERABLE = [name for name in FAULTS if name.startswith(("4", "5", "dr", "half", "trunc", "garb", "noth", "no-obj"))]


@pytest.mark.parametrize("name", [name for name in RECOVERABLE if name not in SLOW])
async def test_a_fault_in_a_tenth_of_the_replies_loses_no_row_and_no_key_leaks(tmp_path: Path, name: str) -> None:
    seen: list[Asked] = []

    def noting(asked: Asked) -> Answer:
        seen.append(asked)
        return drawn(echo, {name: 0.1})(asked)

    with FaultServer(noting) as server, Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        replies = await ask_all(open_client(model_of(server), ledger, "sample"), range(100))
        texts = [reply.text if isinstance(reply, ChatReply) else reply for reply in replies]
        assert texts == [f"echo: question {i}" for i in range(100)]
        assert ledger.stats().total("stored") == 100
    assert any(CANARY in value for value in seen[0].headers.values())  # it was sent, so it could have leaked
    assert not leaks(tmp_path)


@pytest.mark.parametrize("answer", [lambda asked: fault("500", asked), lambda asked: fault("429-wrong", asked)])
async def test_no_error_says_the_key(tmp_path: Path, answer: Callable[[Asked], Answer]) -> None:
    def repeating(asked: Asked) -> Answer:
        if asked.order > 1:
            return Answer(status=400, body=error_json("openai", f"bad key {asked.headers['authorization']}"))
        return answer(asked)

    with FaultServer(repeating) as server, Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        (error,) = await ask_all(open_client(model_of(server), ledger, "judge"), range(1))
        await ledger.write(lambda db: None)
        recorded = [failure.error for failure in ledger.failures()]
    assert isinstance(error, RlaifError)
    assert CANARY not in f"{error} {error!r} {json.dumps(recorded)}"


def request_with(**fields: Any) -> ChatRequest:
    return ask().model_copy(update=fields)


async def test_log_probs_that_a_model_does_not_give_are_simply_missing() -> None:
    def script(asked: Asked) -> Answer:
        if asked.body.get("logprobs"):
            body = error_json("openai", "'logprobs' is not supported", code="unsupported_parameter", param="logprobs")
            return Answer(status=400, body=body)
        return echo(asked)

    with FaultServer(script) as server:
        reply = await open_client(model_of(server)).complete(request_with(top_logprobs=5))
    assert reply.logprobs is None
    assert reply.downgrades == ("logprobs",)
