"""A model that is asked nothing: it must be taken for the same model that answered, or nothing it said is found."""

from pathlib import Path
from typing import Any

import pytest

from rlaif.clients import open_transport
from rlaif.clients.base import Identity
from rlaif.clients.scripted import ScriptedClient
from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger
from rlaif.engine.stored import known_capabilities, open_stored, stored_identity
from rlaif.errors import RequestError
from rlaif.types import ChatReply, ChatRequest, Message


def request(text: str = "Hello") -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), max_tokens=5)


@pytest.mark.parametrize(
    "model",
    [
        {"model": "openai:m"},
        {"model": "openai:m", "logprobs": False},
        {"model": "openai:m", "base_url": "http://user:secret@127.0.0.1:1/v1/?key=x"},
        {"model": "openai:m", "options": {"reasoning_effort": "low", "user": "me", "service_tier": "flex"}},
        {"model": "anthropic:m", "options": {"thinking": {"type": "adaptive"}}, "timeout": 3.0},
        {"model": "anthropic:m", "base_url": "http://127.0.0.1:1"},
        {"model": "scripted:tests.fakes:judge"},
        {"model": "scripted:tests.fakes:judge", "logprobs": True},
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_it_is_who_the_real_client_says_it_is(
    model: dict[str, Any], from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-0123456789")
        if from_environment:
            monkeypatch.setenv(f"{name}_BASE_URL", "http://127.0.0.1:2/v1")
        else:
            monkeypatch.delenv(f"{name}_BASE_URL", raising=False)
    config = ModelConfig.model_validate(model)
    real = open_transport(config)
    assert stored_identity(config, None, "judge") == real.identity
    assert known_capabilities(config).logprobs == real.capabilities.logprobs


async def test_what_is_stored_is_answered_and_counted_and_nothing_else_is(tmp_path: Path) -> None:
    model = ModelConfig(model="scripted:tests.fakes:judge")
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        client = ScriptedClient(lambda asked: "yes", "tests.fakes:judge")
        await ledger.wrap(client, "judge").complete(request())
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        stored = open_stored(model, ledger, "judge")
        assert (await stored.complete(request())).text == "yes"
        with pytest.raises(RequestError, match="not in the ledger"):
            await stored.complete(request("Something else"))
        assert [(s.reused, s.sent, s.failed) for s in ledger.stats().stages] == [(1, 0, 0)]
        assert list(ledger.failures()) == []  # nothing was sent, so nothing failed


async def test_a_folder_of_weights_is_the_one_that_answered_last(tmp_path: Path) -> None:
    async def answered_by(ledger: Ledger, name: str) -> Identity:
        client = ScriptedClient(lambda asked: ChatReply(text="yes", finish_reason="stop"))
        client.identity = Identity(backend="local", model=name, extra={"dtype": "float32", "weights": name})
        await ledger.wrap(client, "sample").complete(request())
        return client.identity

    folder = tmp_path / "tuned"
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        await answered_by(ledger, "tuned@00000001")
        latest = await answered_by(ledger, "tuned@00000002")
        await answered_by(ledger, "other@00000003")
        embedded = await answered_by(ledger, "smollm2")
        config = ModelConfig(model=f"local:{folder}")
        assert stored_identity(config, ledger, "sample") == latest
        assert (await open_stored(config, ledger, "sample").complete(request())).text == "yes"
        assert stored_identity(ModelConfig(model="local:smollm2"), ledger, "sample") == embedded
        assert stored_identity(config, ledger, "judge") == Identity(backend="local", model=str(folder))
