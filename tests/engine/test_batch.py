"""Batches as a Client, against a local server that speaks both protocols."""

import asyncio
import json
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rlaif.clients import open_transport
from rlaif.clients.base import at_once
from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger, batch, open_client
from rlaif.engine.batch_table import BatchTable
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError, TransientError
from rlaif.hashing import uniform
from rlaif.types import ChatReply, ChatRequest, Message
from tests.servers.batch_server import BatchServer, Plan
from tests.servers.fault_server import FAULTS, Answer, Asked, error_json

PROVIDERS = ("openai", "anthropic")
KEY = "sk-canary-0123456789abcdef"
QUICK = {"quiet_seconds": 0.05, "poll_seconds": 0.02}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(batch, "FIRST_WAIT", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def ask(i: int, **other: Any) -> ChatRequest:
    text = f"question {i}\u2028 \x85 — \U0001f600"
    return ChatRequest(messages=(Message(role="user", content=text),), **{"max_tokens": 9, "temperature": 0.5, **other})


def config(server: BatchServer, provider: str, transport: str = "batch", **settings: Any) -> ModelConfig:
    url = server.openai_url if provider == "openai" else server.anthropic_url
    how = {"batch": {**QUICK, **settings}} if transport == "batch" else {}
    return ModelConfig.model_validate({"model": f"{provider}:fake", "base_url": url, "transport": transport, **how})


@asynccontextmanager
async def session(folder: Path, model: ModelConfig, stage: str = "s") -> AsyncIterator[Any]:
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        client = open_client(model, ledger, stage)
        try:
            yield client
        finally:
            await client.aclose()


async def answers(folder: Path, model: ModelConfig, requests: Sequence[ChatRequest]) -> list[ChatReply | RlaifError]:
    """What each request came to, in one session."""
    async with session(folder, model) as client:
        found = await asyncio.gather(*map(client.complete, requests), return_exceptions=True)
    known = [one for one in found if isinstance(one, ChatReply | RlaifError)]
    assert len(known) == len(found), found
    return known


def texts(found: Sequence[ChatReply | RlaifError]) -> list[str]:
    return [one.text if isinstance(one, ChatReply) else type(one).__name__ for one in found]


def echoes(numbers: Sequence[int]) -> list[str]:
    return [f"echo: {ask(i).messages[0].content}" for i in numbers]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def held(nth: int) -> Plan:
    """The first batch takes an hour, later ones nothing."""
    return Plan(seconds=3600.0 if nth == 0 else 0.0)


def go_on(server: BatchServer, share: float) -> None:
    """The first batch comes so much further."""
    server.batches[0].created -= 3600 * share


def by_times(counts: Mapping[str, int]) -> dict[int, int]:
    """How many things were counted once, twice, ..."""
    return dict(Counter(counts.values()))


# ---------------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_reply_from_a_batch_is_the_online_reply_but_for_saying_so(tmp_path: Path, provider: str) -> None:
    requests = [ask(i, stop=("x",)) for i in range(7)]
    with BatchServer() as server:
        online = await answers(tmp_path / "a", config(server, provider, "online"), requests)
        batched = await answers(tmp_path / "b", config(server, provider), requests)
        assert len(server.batches) == 1
    for one, other in zip(online, batched, strict=True):
        assert isinstance(one, ChatReply)
        assert isinstance(other, ChatReply)
        assert (one.batch, other.batch) == (False, True)
        # The server numbers the replies to equal requests.
        raw = json.loads(json.dumps(other.raw).replace(other.raw["id"], one.raw["id"]))
        assert other.model_copy(update={"batch": False, "raw": raw}) == one


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_is_split_by_count_and_by_bytes(tmp_path: Path, provider: str) -> None:
    with BatchServer() as server:
        found = await answers(tmp_path / "a", config(server, provider, max_requests=10), [ask(i) for i in range(25)])
        assert texts(found) == echoes(range(25))
        assert sorted(len(b.items) for b in server.batches) == [5, 10, 10]
    with BatchServer() as server:
        model = config(server, provider, max_bytes=2000)
        found = await answers(tmp_path / "b", model, [ask(i) for i in range(25)])
        assert texts(found) == echoes(range(25))
        assert len(server.batches) > 2
        for made in server.batches:
            size = sum(len(json.dumps(body, ensure_ascii=False).encode()) for _, body in made.items)
            assert size < 2000
        (too_long,) = await answers(tmp_path / "b", model, [ask(1, stop=("x" * 2000,))])
    assert isinstance(too_long, RequestError)
    assert too_long.kind == "context_length"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("fault", ["500", "529", "bad-request", "context", "auth", "no-choices", "refusal"])
async def test_an_item_that_fails_raises_what_the_same_request_raises_online(
    tmp_path: Path, provider: str, fault: str
) -> None:
    said = {
        "bad-request": (400, "This request is malformed.", "invalid_request_error"),
        "context": (400, "prompt is too long: 9 tokens > 8 maximum", "invalid_request_error"),
        "auth": (403, "Your key may not use this model.", "permission_error"),
    }

    def script(asked: Asked) -> Answer:
        if fault not in said:
            return FAULTS[fault](asked)
        status, message, kind = said[fault]
        return Answer(status=status, body=error_json(asked.api, message, type=kind))

    with BatchServer(script) as server:
        transport = open_transport(config(server, provider, "online"))
        (online,) = await asyncio.gather(transport.complete(ask(1)), return_exceptions=True)
        await transport.aclose()
        (batched,) = await answers(tmp_path, config(server, provider, max_attempts=1), [ask(1)])
    assert type(online) is type(batched)
    if isinstance(online, ChatReply) and isinstance(batched, ChatReply):
        assert (online.text, online.finish_reason) == (batched.text, batched.finish_reason)
    else:
        assert getattr(online, "kind", None) == getattr(batched, "kind", None)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_expired_or_met_a_server_error_goes_into_the_next_batch_and_nothing_else_does(
    tmp_path: Path, provider: str
) -> None:
    def script(asked: Asked) -> Answer:
        if asked.last_message.startswith("question 3") and asked.nth == 0:
            return FAULTS["500"](asked)
        return Answer(f"echo: {asked.last_message}")

    with BatchServer(script, plan=lambda nth: Plan(expired=lambda i: nth == 0 and i % 4 == 1)) as server:
        found = await answers(tmp_path, config(server, provider), [ask(i) for i in range(12)])
        assert texts(found) == echoes(range(12))
        assert [len(b.items) for b in server.batches] == [12, 4]
        assert set(server.items.values()) == {1}
        assert by_times(server.submitted) == {1: 8, 2: 4}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_request_that_every_batch_expires_on_is_given_up_and_asked_again_by_a_later_run(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=lambda nth: Plan(expired=lambda i: nth < 2)) as server:
        (lost,) = await answers(tmp_path, config(server, provider, max_attempts=2), [ask(1)])
        assert isinstance(lost, TransientError)
        assert "before it came to this request" in str(lost)
        assert len(server.batches) == 2
        assert texts(await answers(tmp_path, config(server, provider), [ask(1)])) == echoes([1])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_results_that_break_off_are_fetched_again_and_results_nobody_asked_for_are_nothing(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=lambda nth: Plan(cut=2, extra=3)) as server:
        found = await answers(tmp_path, config(server, provider), [ask(i) for i in range(9)])
        assert texts(found) == echoes(range(9))
        assert set(server.items.values()) == {1}
        assert server.batches[0].cuts == 2


async def test_a_batch_that_validation_refuses_ends_the_run_with_one_sentence_and_is_sent_again_by_the_next(
    tmp_path: Path,
) -> None:
    problem = ("mismatched_model", "The provided model does not match.", 3)
    with BatchServer(plan=lambda nth: Plan(failure=problem if nth == 0 else None)) as server:
        found = await answers(tmp_path, config(server, "openai"), [ask(i) for i in range(4)])
        assert all(isinstance(error, ProviderError) for error in found)
        assert str(found[0]).endswith(
            "the batch batch_000000 of 4 requests was refused, and nothing of it ran: line 3: The provided model does"
            " not match."
        )
        assert not server.items
        assert texts(await answers(tmp_path, config(server, "openai"), [ask(i) for i in range(4)])) == echoes(range(4))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_that_is_refused_at_once_ends_the_run_and_leaves_nothing_under_way(
    tmp_path: Path, provider: str
) -> None:
    body = json.dumps({"error": {"type": "invalid_request_error", "message": "too many batches today"}}).encode()
    with BatchServer(plan=lambda nth: Plan(refused=Answer(status=400, body=body) if nth == 0 else None)) as server:
        found = await answers(tmp_path, config(server, provider), [ask(i) for i in range(4)])
        assert all(isinstance(error, ProviderError) for error in found)
        assert "too many batches today" in str(found[0])
        assert texts(await answers(tmp_path, config(server, provider), [ask(1)])) == echoes([1])
        assert [len(b.items) for b in server.batches] == [1]


async def test_when_too_much_is_waiting_at_the_provider_smaller_batches_go_later(tmp_path: Path) -> None:
    full = ("token_limit_exceeded", "Enqueued token limit reached.", None)
    with BatchServer(plan=lambda nth: Plan(failure=full if nth < 2 else None)) as server:
        found = await answers(tmp_path, config(server, "openai"), [ask(i) for i in range(16)])
        assert texts(found) == echoes(range(16))
        sizes = [len(b.items) for b in server.batches]
        assert sizes[0] == 16
        assert max(sizes[2:]) <= 8
        assert set(server.items.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_default_that_the_model_refuses_is_left_out_of_the_next_batch(tmp_path: Path, provider: str) -> None:
    def script(asked: Asked) -> Answer:
        if "temperature" in asked.body:
            message = "Unsupported parameter: 'temperature' is not supported with this model."
            return Answer(status=400, body=error_json(asked.api, message, type="invalid_request_error"))
        return Answer("fine")

    with BatchServer(script) as server:
        model = config(server, provider)
        default, other = await answers(tmp_path, model, [ask(1, temperature=1.0), ask(2, temperature=0.7)])
        assert len(server.batches) == 2
        # Nothing of it is asked again, although the second reply came to a request with another key.
        again = await answers(tmp_path, model, [ask(1, temperature=1.0), ask(2, temperature=0.7)])
        assert len(server.batches) == 2
    assert texts([default, other]) == ["fine", "fine"]
    assert isinstance(default, ChatReply)
    assert isinstance(other, ChatReply)
    assert (default.downgrades, other.downgrades) == ((), ("temperature",))
    assert again == [default, other]


# ------------------------------------------------------------------------------------------------- when a batch is cut


async def test_a_batch_waits_for_what_else_is_under_way_in_the_run(tmp_path: Path) -> None:
    """Samples come one by one from an online model; their judge's requests still make one batch."""
    with BatchServer() as server, Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        policy = open_client(config(server, "openai", "online"), ledger, "sample")
        judge = open_client(config(server, "anthropic"), ledger, "judge")

        async def slow(i: int) -> str:
            await asyncio.sleep(0.1 * i)
            return str((await policy.complete(ask(i))).text)

        async def both(i: int) -> str:
            # The sampling of all begins at once, as in a run, and ends one after another.
            first = asyncio.create_task(policy.complete(ask(i)))
            text = (await first).text
            return str((await judge.complete(ask(100 + i))).text) + text

        server.script = _latency_by_number(server.script)
        await asyncio.gather(*map(both, range(6)))
        assert [len(b.items) for b in server.batches] == [6]
        await policy.aclose()
        await judge.aclose()


def _latency_by_number(script: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    from dataclasses import replace

    return lambda asked: replace(script(asked), delay=0.12 * int(asked.last_message.split()[1].split("\u2028")[0]))


async def test_two_stages_of_one_model_share_its_batches(tmp_path: Path) -> None:
    with BatchServer() as server, Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        clients = [open_client(config(server, "openai"), ledger, stage) for stage in ("sample", "judge")]
        await asyncio.gather(*(client.complete(ask(i)) for i in range(4) for client in clients[:1]))
        await asyncio.gather(
            *(client.complete(ask(10 + i + 10 * k)) for i in range(4) for k, client in enumerate(clients))
        )
        assert [len(b.items) for b in server.batches] == [4, 8]
        await clients[0].aclose()
        await clients[1].complete(ask(99))
        await clients[1].aclose()
        open_client(config(server, "openai"), ledger)
        with pytest.raises(InputError, match="different settings"):
            open_client(config(server, "openai", max_requests=3), ledger)


async def test_what_the_run_cannot_begin_without_is_asked_online(tmp_path: Path) -> None:
    with BatchServer(plan=lambda nth: Plan(seconds=60)) as server:
        async with session(tmp_path, config(server, "openai")) as client:
            with at_once():
                reply = await client.complete(ask(1))
        assert reply.batch is False
        assert not server.batches


async def test_a_batch_needs_a_ledger() -> None:
    with BatchServer() as server, pytest.raises(InputError, match="needs a run folder"):
        open_client(config(server, "openai"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "local:smollm2", "transport": "batch"}, "transport: batch is for openai: and anthropic:"),
        ({"model": "openai:x", "batch": {"max_requests": 3}}, "need transport: batch"),
        ({"model": "openai:x", "transport": "batch", "batch": {"max_requests": 0}}, "greater than 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate(values)


# ----------------------------------------------------------------------------------------------------- never paid twice


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_later_run_attaches_to_the_batches_of_an_earlier_one(tmp_path: Path, provider: str) -> None:
    with BatchServer(plan=lambda nth: Plan(seconds=0.6)) as server:
        model = config(server, provider)
        async with session(tmp_path, model) as client:
            waiting = [asyncio.create_task(client.complete(ask(i))) for i in range(8)]
            await until(lambda: bool(server.batches))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        # The second run asks for half of it and for something new; the third asks for everything.
        assert texts(await answers(tmp_path, model, [ask(i) for i in (0, 2, 4, 6, 8)])) == echoes([0, 2, 4, 6, 8])
        assert texts(await answers(tmp_path, model, [ask(i) for i in range(9)])) == echoes(range(9))
        assert [len(b.items) for b in server.batches] == [8, 1]
        assert set(server.items.values()) == {1}
        assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_whose_making_was_never_confirmed_is_found_and_not_made_twice(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=lambda nth: Plan(lost=nth % 2 == 0, seconds=0.1)) as server:
        for wave in range(3):
            numbers = range(10 * wave, 10 * wave + 5)
            found = await answers(tmp_path, config(server, provider), [ask(i) for i in numbers])
            assert texts(found) == echoes(numbers)
        assert [len(b.items) for b in server.batches] == [5, 5, 5]
        assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_that_comes_to_be_after_the_run_was_gone_is_found_by_the_next(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=lambda nth: Plan(made_after=0.15)) as server:
        model = config(server, provider)
        async with session(tmp_path, model) as client:
            task = asyncio.create_task(client.complete(ask(1)))
            with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as ledger:
                await until(lambda: bool(BatchTable(ledger).records()))
            await asyncio.sleep(0.05)  # it is on its way
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not server.batches
        assert texts(await answers(tmp_path, model, [ask(1)])) == echoes([1])
        assert len(server.batches) == 1


async def test_a_batch_of_another_run_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Anthropic's batches carry no marker: one of the same size, made in the same moment, may be another's."""
    with BatchServer(plan=lambda nth: Plan(lost=nth == 0, made_after=0.1 * (nth == 0), seconds=0.2)) as server:
        ours, others = [ask(i) for i in range(5)], [ask(100 + i) for i in range(5)]

        async def later() -> list[ChatReply | RlaifError]:
            await asyncio.sleep(0.12)
            return await answers(tmp_path / "other", config(server, "anthropic"), others)

        first, second = await asyncio.gather(answers(tmp_path / "own", config(server, "anthropic"), ours), later())
        assert texts(first) == echoes(range(5))
        assert texts(second) == echoes(range(100, 105))
        assert len(server.batches) == 2
        assert set(server.submitted.values()) == {1}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_another_transport_is_the_same_model_and_pays_nothing_again(tmp_path: Path, provider: str) -> None:
    requests = [ask(i) for i in range(6)]
    with BatchServer() as server:
        online = await answers(tmp_path, config(server, provider, "online"), requests[:3])
        batched = await answers(tmp_path, config(server, provider), requests)
        again = await answers(tmp_path, config(server, provider, "online"), requests)
        assert batched[:3] == online
        assert again == batched
        assert set(server.paid.values()) == {1}
        assert [len(b.items) for b in server.batches] == [3]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_cancelled_by_somebody_ends_the_run_and_the_next_sends_only_the_rest(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=held) as server:
        model = config(server, provider)

        async def cancel() -> None:
            await until(lambda: bool(server.polls))
            go_on(server, 0.5)
            server.batches[0].cancelled_at = time.time()

        found, _ = await asyncio.gather(answers(tmp_path, model, [ask(i) for i in range(10)]), cancel())
        ended = [one for one in found if isinstance(one, ProviderError)]
        assert len(ended) == 5
        assert "was cancelled, not by this run" in str(ended[0])
        assert texts(await answers(tmp_path, model, [ask(i) for i in range(10)])) == echoes(range(10))
        assert [len(b.items) for b in server.batches] == [10, 5]
        assert set(server.items.values()) == {1}


# ------------------------------------------------------------------------------------------------------ the tail online


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_what_is_unanswered_after_so_long_is_cancelled_and_asked_online_and_paid_once(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=lambda nth: Plan(seconds=3600.0, cancelling=0.1)) as server:
        model = config(server, provider, finish_online_after=0.5)

        async def half() -> None:
            await until(lambda: bool(server.batches))
            go_on(server, 0.5)

        found, _ = await asyncio.gather(answers(tmp_path, model, [ask(i) for i in range(20)]), half())
        assert texts(found) == echoes(range(20))
        assert sum(one.batch for one in found if isinstance(one, ChatReply)) == 10
        assert set(server.paid.values()) == {1}
        assert len(server.batches) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_run_asked_to_finish_online_takes_what_the_batches_of_before_have(
    tmp_path: Path, provider: str
) -> None:
    with BatchServer(plan=held) as server:
        async with session(tmp_path, config(server, provider)) as client:
            waiting = [asyncio.create_task(client.complete(ask(i))) for i in range(10)]
            await until(lambda: bool(server.polls))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        go_on(server, 0.5)
        found = await answers(tmp_path, config(server, provider, finish_online_after=0), [ask(i) for i in range(12)])
        assert texts(found) == echoes(range(12))
        assert sum(one.batch for one in found if isinstance(one, ChatReply)) == 5
        assert set(server.paid.values()) == {1}
        assert len(server.batches) == 1


async def test_a_run_killed_while_it_finished_online_does_not_go_back_to_batches(tmp_path: Path) -> None:
    with BatchServer(plan=lambda nth: Plan(seconds=30.0)) as server:
        server.latency = 0.5
        model = config(server, "openai", finish_online_after=0.2)
        async with session(tmp_path, model) as client:
            waiting = [asyncio.create_task(client.complete(ask(i))) for i in range(4)]
            await until(lambda: bool(server.counts))  # the first is asked online
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        server.latency = 0.0
        assert texts(await answers(tmp_path, model, [ask(i) for i in range(4)])) == echoes(range(4))
        assert len(server.batches) == 1


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_endpoint_in_trouble_costs_time_and_nothing_else(tmp_path: Path, provider: str) -> None:
    def trouble(call: int) -> Answer | None:
        """Three calls in ten fail."""
        draw = int(10 * uniform("trouble", call))
        kinds = (
            Answer(status=503, body=b"<html>busy</html>"),
            Answer(status=429, headers={"retry-after-ms": "20"}, body=b"{}"),
            Answer(body=b"no JSON"),
        )
        return kinds[draw] if draw < len(kinds) else None

    with BatchServer(plan=lambda nth: Plan(lost=nth == 0, cut=nth % 2)) as server:
        server.trouble = trouble
        for wave in range(3):
            numbers = range(5 * wave, 5 * wave + 5)
            assert texts(await answers(tmp_path, config(server, provider), [ask(i) for i in numbers])) == echoes(
                numbers
            )
        assert set(server.submitted.values()) == {1}
        assert set(server.items.values()) == {1}


async def test_a_server_that_is_not_there_ends_the_run_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "UNREACHABLE_SECONDS", 0.1)
    with BatchServer() as server:
        model = config(server, "openai")
    (error,) = await answers(tmp_path, model, [ask(1)])
    assert isinstance(error, ProviderError)
    assert "is the server running there" in str(error)


# ------------------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_the_key_is_in_no_file_log_or_error(
    tmp_path: Path, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    def script(asked: Asked) -> Answer:
        if asked.last_message.startswith("question 1"):
            message = f"Incorrect API key provided: {KEY}"
            return Answer(status=400, body=error_json(asked.api, message, type="invalid_request_error"))
        return Answer(f"your key is {KEY}")

    caplog.set_level(logging.DEBUG, "rlaif")
    with BatchServer(script) as server:
        found = await answers(tmp_path, config(server, provider), [ask(i) for i in range(3)])
        problem = ("x", f"key {KEY} is bad", 1)
        server.plan = lambda nth: Plan(failure=problem)
        found += await answers(tmp_path, config(server, provider), [ask(7)])
    assert KEY not in repr(found)
    assert KEY not in " ".join(map(str, found))
    assert KEY not in caplog.text
    for file in list(tmp_path.rglob("*")):  # noqa: ASYNC240
        assert KEY.encode() not in file.read_bytes()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        assert KEY not in "\n".join(db.iterdump())
