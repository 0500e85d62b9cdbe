"""A model that refuses a parameter is asked once without it, and from then on never with it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rlaif.clients.scripted import ScriptedClient
from rlaif.engine.downgrade import DowngradingClient
from rlaif.errors import RequestError, TransientError
from rlaif.types import ChatReply, ChatRequest, Message

FULL = ChatRequest(
    messages=(Message(role="user", content="A or B?"),),
    max_tokens=9,
    temperature=0.7,
    top_p=0.9,
    stop=("END",),
    seed=4,
    top_logprobs=5,
    labels=("A", "B"),
    json_schema={"type": "object"},
)
HAS: dict[str, Callable[[ChatRequest], bool]] = {
    "temperature": lambda r: r.temperature != 1.0,
    "top_p": lambda r: r.top_p != 1.0,
    "seed": lambda r: r.seed is not None,
    "stop": lambda r: bool(r.stop),
    "logprobs": lambda r: r.top_logprobs is not None,
    "json_schema": lambda r: r.json_schema is not None,
}


class Model:
    """Refuses ``refused``, one at a time, in their order."""

    def __init__(self, *refused: str, delay: float = 0.0, text: str = "fine") -> None:
        self.refused, self.delay, self.text = refused, delay, text

    async def __call__(self, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(self.delay)
        for name in self.refused:
            if HAS[name](request):
                raise RequestError(f"no {name}", kind="unsupported", parameter=name)
        return ChatReply(text=self.text, finish_reason="stop")


def client_of(model: Any) -> tuple[DowngradingClient, ScriptedClient]:
    inner = ScriptedClient(model)
    return DowngradingClient(inner), inner


@pytest.mark.parametrize("parameter", sorted(HAS))
async def test_a_refused_parameter_is_left_out_at_once_and_from_then_on(parameter: str) -> None:
    client, inner = client_of(Model(parameter))
    first = await client.complete(FULL)
    second = await client.complete(FULL)
    assert first.downgrades == second.downgrades == (parameter,)
    assert [HAS[parameter](request) for request in inner.requests] == [True, False, False]
    others = [name for name in HAS if name != parameter]
    assert all(HAS[name](request) for name in others for request in inner.requests)  # nothing else is touched


async def test_all_refused_parameters_are_found_with_one_more_request_each() -> None:
    client, inner = client_of(Model(*HAS))
    reply = await client.complete(FULL)
    assert reply.downgrades == tuple(HAS)
    assert len(inner.requests) == 1 + len(HAS)


async def test_a_request_without_the_parameter_is_not_called_downgraded() -> None:
    client, inner = client_of(Model("seed", "json_schema"))
    await client.complete(FULL)
    plain = FULL.model_copy(update={"seed": None})
    assert (await client.complete(plain)).downgrades == ("json_schema",)
    bare = plain.model_copy(update={"json_schema": None})
    assert (await client.complete(bare)).downgrades == ()
    assert inner.requests[-1] is bare


async def test_a_burst_of_first_requests_is_repeated_once_each_however_much_is_refused() -> None:
    n = 50
    client, inner = client_of(Model("temperature", "seed", "logprobs", "json_schema", delay=0.001))
    replies = await asyncio.gather(*(client.complete(FULL.model_copy(update={"sample_index": i})) for i in range(n)))
    assert {reply.downgrades for reply in replies} == {("temperature", "seed", "logprobs", "json_schema")}
    # n in flight, one that finds the other three parameters and is answered, the n - 1 others once more
    assert len(inner.requests) == n + 4 + (n - 1)


async def test_requests_that_come_while_it_is_found_out_are_not_sent_in_vain() -> None:
    client, inner = client_of(Model("temperature", "seed", delay=0.01))
    first = asyncio.create_task(client.complete(FULL))
    await asyncio.sleep(0.015)  # refused once, and now asked again
    late = [asyncio.create_task(client.complete(FULL)) for _ in range(20)]
    await asyncio.gather(first, *late)
    assert len(inner.requests) == 3 + 20


@pytest.mark.parametrize(
    "error",
    [
        RequestError("max_tokens?", kind="unsupported", parameter="max_tokens"),
        RequestError("logit_bias?", kind="unsupported", parameter="logit_bias"),
        RequestError("what?", kind="unsupported", parameter=None),
        RequestError("too long", kind="context_length"),
        RequestError("bad temperature", kind="invalid", parameter="temperature"),
    ],
)
async def test_what_cannot_be_left_out_is_raised_after_one_send(error: RequestError) -> None:
    def refuse(request: ChatRequest) -> str:
        raise error

    client, inner = client_of(refuse)
    with pytest.raises(RequestError) as raised:
        await client.complete(FULL)
    assert raised.value is error
    assert len(inner.requests) == 1
    assert client.refused == ()


async def test_a_model_that_goes_on_refusing_what_is_left_out_is_not_asked_for_ever() -> None:
    def refuse(request: ChatRequest) -> str:
        raise RequestError("no seed", kind="unsupported", parameter="seed")

    client, inner = client_of(refuse)
    for _ in range(3):
        with pytest.raises(RequestError):
            await client.complete(FULL)
    assert len(inner.requests) == 2 + 1 + 1


async def test_a_failure_while_it_is_found_out_leaves_the_way_free_for_the_next() -> None:
    answers: list[Any] = [
        RequestError("no seed", kind="unsupported", parameter="seed"),
        TransientError("later", kind="server"),
    ]

    def script(request: ChatRequest) -> str:
        if answers:
            raise answers.pop(0)
        return "fine"

    client, inner = client_of(script)
    with pytest.raises(TransientError):
        await client.complete(FULL)
    assert (await client.complete(FULL)).downgrades == ("seed",)
    assert [request.seed for request in inner.requests] == [4, None, None]


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("yes END no END", "stop", ("yes ", "stop")),
        ("yes END and cut", "length", ("yes ", "stop")),
        ("no end", "length", ("no end", "length")),
        ("refused END", "refusal", ("refused END", "refusal")),
    ],
)
async def test_a_model_without_stop_is_cut_where_it_should_have_stopped(
    text: str, finish: Any, expected: tuple[str, str]
) -> None:
    def script(request: ChatRequest) -> ChatReply:
        if request.stop:
            raise RequestError("no stop", kind="unsupported", parameter="stop")
        return ChatReply(text=text, finish_reason=finish)

    client, _ = client_of(script)
    reply = await client.complete(FULL)
    assert (reply.text, reply.finish_reason) == expected
    assert reply.downgrades == ("stop",)
