"""The cap holds, whatever the server does: money is counted on the server's side and compared."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlaif.clients.base import Capabilities, Identity
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import ModelConfig
from rlaif.engine import open_client
from rlaif.engine.budget import Budget, token_bounds
from rlaif.engine.ledger import Ledger, StageStats
from rlaif.engine.prices import total
from rlaif.errors import InputError, ProviderError, RequestError, RlaifError, TransientError
from rlaif.generation import generate
from rlaif.types import ChatReply, ChatRequest, Message, Usage
from tests.engine.batch_runs import answer, config, processes, start
from tests.engine.virtual import run_virtual
from tests.servers.batch_server import BatchServer, Plan

# A dollar for a thousand tokens in, two for a thousand out: amounts one can work out by hand.
PRICE = {"input": 1000, "output": 2000}
MODEL = ModelConfig.model_validate(
    {"model": "openai:fake", "base_url": "http://127.0.0.1:1/v1", "price": PRICE, "options": {}}
)
FREE_HEADROOM = 16 + 64  # of `token_bounds`, for one message


def ask(text: str = "x", max_tokens: int = 10, index: int = 0) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens, sample_index=index)


def usd(tokens_in: int, tokens_out: int) -> Decimal:
    return Decimal(tokens_in) / 1000 + Decimal(2 * tokens_out) / 1000


def worst(request: ChatRequest) -> Decimal:
    return usd(*token_bounds(request, {}))


class Server:
    """A Client that charges: ``answer`` gets the request and a function to charge with, and replies or raises."""

    def __init__(self, answer: Callable[["Server", ChatRequest], Any], cap: Decimal | None = None) -> None:
        self.identity = Identity(backend="openai", model="fake", base_url="http://127.0.0.1:1/v1")
        self.capabilities = Capabilities()
        self.spent = Decimal(0)
        self.sends = self.under_way = self.most_under_way = 0
        self._answer, self._cap = answer, cap

    def charge(self, tokens_in: int, tokens_out: int) -> Usage:
        self.spent = total((self.spent, usd(tokens_in, tokens_out)))
        assert self._cap is None or self.spent <= self._cap, f"{self.spent} charged, the cap is {self._cap}"
        return Usage(input_tokens=tokens_in, output_tokens=tokens_out)

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.sends += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            answer = self._answer(self, request)
            reply = await answer if asyncio.iscoroutine(answer) else answer
            assert isinstance(reply, ChatReply)
            return reply
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        return None


def reply(usage: Usage, text: str = "yes") -> ChatReply:
    return ChatReply(text=text, finish_reason="stop", usage=usage)


def exact(server: Server, request: ChatRequest) -> ChatReply:
    """10 tokens in, 5 out: two cents."""
    return reply(server.charge(10, 5))


# ------------------------------------------------------------------------------------------------------- the law

FAILURES: dict[str, Callable[[], RlaifError]] = {
    "429": lambda: TransientError("too many", kind="rate_limit", status=429),
    "500": lambda: TransientError("broken", kind="server", status=500),
    "529": lambda: TransientError("overloaded", kind="server", status=529),
    "504": lambda: TransientError("gateway", kind="server", status=504),
    "refused": lambda: TransientError("no connection", kind="connection", sent=False),
    "broken off": lambda: TransientError("it broke", kind="connection"),
    "timeout": lambda: TransientError("too late", kind="timeout"),
    "rubbish": lambda: TransientError("no JSON", kind="bad_reply", status=200),
    "400": lambda: RequestError("not this one", kind="invalid", status=400),
}
CHARGED_PERHAPS = ("504", "broken off", "timeout", "rubbish")

calls = st.fixed_dictionaries(
    {
        "bytes": st.integers(1, 200),
        "max_tokens": st.integers(1, 60),
        "share_in": st.floats(0, 1),  # of the bounds, what is really used
        "share_out": st.floats(0, 1),
        "seconds": st.floats(0, 5),
        "begins": st.floats(0, 5),
        "fails": st.sampled_from([None, None, None, *FAILURES]),
        "charged": st.booleans(),  # where the provider may charge for a failure
        "silent": st.booleans(),  # no usage in the reply
        "cancelled_after": st.none() | st.floats(0, 5),
    }
)


@settings(max_examples=200, deadline=None)
@given(plan=st.lists(calls, min_size=1, max_size=25), cap=st.decimals(0, 8, places=2), earlier=st.integers(0, 3000))
@example(
    plan=[
        {
            "bytes": 1,
            "max_tokens": 1,
            "share_in": 1.0,
            "share_out": 1.0,
            "seconds": 1.0,
            "begins": 0.0,
            "fails": None,
            "charged": True,
            "silent": True,
            "cancelled_after": 0.5,
        }
    ]
    * 25,
    cap=Decimal(1),
    earlier=0,
)
def test_what_the_server_charges_never_passes_the_cap(plan: list[dict[str, Any]], cap: Decimal, earlier: int) -> None:
    async def answer(server: Server, request: ChatRequest) -> ChatReply:
        call = plan[request.sample_index]
        most_in, most_out = token_bounds(request, {})
        used = 1 + int((most_in - 1) * call["share_in"]), int(most_out * call["share_out"])
        may_charge = call["fails"] is None or (call["fails"] in CHARGED_PERHAPS and call["charged"])
        # Charged when the work begins: even a request that is cancelled at once has been paid for.
        usage = server.charge(*used) if may_charge else Usage()
        await asyncio.sleep(call["seconds"])
        if call["fails"] is not None:
            raise FAILURES[call["fails"]]()
        return reply(Usage() if call["silent"] else usage, text="yes" if used[1] else "")

    async def one(client: Any, number: int, call: dict[str, Any]) -> None:
        await asyncio.sleep(call["begins"])
        request = ask("x" * call["bytes"], call["max_tokens"], number)
        with suppress(RlaifError, TimeoutError):
            async with asyncio.timeout(call["cancelled_after"]):
                await client.complete(request)

    async def main() -> None:
        server = Server(answer, cap)
        budget = Budget(cap)
        client = budget.wrap(server, MODEL, "judge")
        await asyncio.gather(*(one(client, i, call) for i, call in enumerate(plan)))
        assert server.spent <= budget.spent <= cap
        assert budget._reserved == 0
        assert budget._under_way == 0
        assert budget._waiting == []
        if all(c["fails"] is None and not c["silent"] and c["cancelled_after"] is None for c in plan):
            assert budget.spent == server.spent

    run_virtual(main)


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=5, max_size=40),
    length=st.integers(1, 300),
    cap=st.decimals(Decimal("0.5"), 10, places=2),
)
def test_a_budget_is_used_until_the_next_request_might_not_fit(shares: list[float], length: int, cap: Decimal) -> None:
    async def answer(server: Server, request: ChatRequest) -> ChatReply:
        most_in, most_out = token_bounds(request, {})
        share = shares[request.sample_index]
        await asyncio.sleep(1 + request.sample_index % 3)
        return reply(server.charge(1 + int((most_in - 1) * share), int(most_out * share)), text="")

    async def main() -> None:
        server = Server(answer, cap)
        client = Budget(cap).wrap(server, MODEL, "sample")
        requests = [ask("x" * length, length, i) for i in range(len(shares))]
        answered = await asyncio.gather(*(client.complete(r) for r in requests), return_exceptions=True)
        refused = sum(isinstance(a, ProviderError) for a in answered)
        assert sum(isinstance(a, ChatReply) for a in answered) == server.sends == len(requests) - refused
        # Whoever was refused might not have fitted, although nothing else was under way any more.
        assert refused == 0 or server.spent + worst(requests[0]) > cap

    run_virtual(main)


# ------------------------------------------------------------------------------------------------- by hand


async def test_the_budget_ends_the_run_with_one_sentence_that_says_how_to_go_on() -> None:
    server = Server(exact)
    client = Budget(Decimal("0.20")).wrap(server, MODEL, "judge")
    request = ask("x", max_tokens=10)  # at worst 81 + 20 thousandths: 0.101
    for _ in range(5):
        await client.complete(request)
    with pytest.raises(ProviderError) as caught:
        await client.complete(request)
    assert str(caught.value) == (
        "the budget of $0.20 is reached: $0.10 spent, and the next request could cost up to $0.101; what was paid"
        " for is kept, and running again with a higher --max-cost goes on."
    )
    assert caught.value.exit_code == 4
    assert server.sends == 5
    with pytest.raises(ProviderError, match="is reached"):
        await client.complete(ask("", max_tokens=1))  # this one would fit, but the run is over
    assert server.sends == 5


async def test_requests_wait_for_others_to_settle_instead_of_being_refused() -> None:
    async def slow(server: Server, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(0.001)
        return exact(server, request)

    server = Server(slow)
    budget = Budget(Decimal("0.42"))
    client = budget.wrap(server, MODEL, "judge")
    requests = [ask(max_tokens=10, index=i) for i in range(16)]
    await asyncio.gather(*(client.complete(r) for r in requests))  # two cents each, though only four fit at worst
    assert budget.spent == server.spent == Decimal("0.32")
    assert 2 <= server.most_under_way <= 4


async def test_without_a_cap_nothing_waits_and_everything_is_counted() -> None:
    server = Server(exact)
    budget = Budget()
    client = budget.wrap(server, MODEL, "judge")
    await asyncio.gather(*(client.complete(ask(index=i)) for i in range(1000)))
    assert budget.spent == server.spent == 20
    assert budget.report()["usd"] == 20.0


@pytest.mark.parametrize(("failure", "stays"), [(name, name in CHARGED_PERHAPS) for name in FAILURES])
async def test_a_failed_request_stays_counted_only_where_it_may_have_been_charged(failure: str, stays: bool) -> None:
    def fails(server: Server, request: ChatRequest) -> ChatReply:
        raise FAILURES[failure]()

    budget = Budget(Decimal(10))
    client = budget.wrap(Server(fails), MODEL, "judge")
    with pytest.raises(RlaifError, match=str(FAILURES[failure]())):
        await client.complete(ask())
    assert budget.spent == (worst(ask()) if stays else 0)
    assert budget.report()["usd_unanswered"] == (float(worst(ask())) if stays else 0)


async def test_a_cancelled_request_stays_counted_and_one_that_waited_does_not() -> None:
    async def never(server: Server, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(3600)
        raise AssertionError

    budget = Budget(worst(ask()) * 3 / 2)
    server = Server(never)
    client = budget.wrap(server, MODEL, "judge")
    sent, waiting = (asyncio.create_task(client.complete(ask(index=i))) for i in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (server.sends, len(budget._waiting)) == (1, 1)
    for task in (waiting, sent):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert budget.spent == worst(ask())
    assert budget._under_way == 0


async def test_two_stages_share_one_cap() -> None:
    budget = Budget(Decimal("0.30"))
    policy = budget.wrap(Server(exact), MODEL, "sample")
    judge = budget.wrap(Server(exact), MODEL, "judge")
    for i in range(10):
        await (policy if i % 2 else judge).complete(ask(index=i))
    assert budget.spent == Decimal("0.20")
    for client in (policy, judge):
        with pytest.raises(ProviderError):  # might cost 0.101
            await client.complete(ask())


async def test_free_models_are_never_refused() -> None:
    budget = Budget(Decimal(0))
    client = budget.wrap(Server(exact), ModelConfig(model="local:smollm2"), "sample")
    assert (await client.complete(ask(max_tokens=100_000))).text == "yes"
    assert budget.spent == 0


def test_an_unknown_price_with_a_cap_is_refused_with_what_to_write() -> None:
    model = ModelConfig(model="openai:my-model", base_url="http://127.0.0.1:8000/v1")
    with pytest.raises(InputError) as caught:
        Budget(Decimal(1)).wrap(Server(exact), model, "judge")
    assert "openai:my-model at http://127.0.0.1:8000/v1: its price is not known" in str(caught.value)
    assert "price: {input: USD, output: USD}" in str(caught.value)
    unknown = Budget()
    unknown.wrap(Server(exact), model, "judge")
    assert not unknown.complete
    assert unknown.report()["models"][0]["usd"] is None


@pytest.mark.parametrize("options", [{"max_tokens": None}, {"max_completion_tokens": None}])
def test_a_cap_is_refused_where_the_options_lift_the_limit_of_a_reply(options: dict[str, Any]) -> None:
    model = MODEL.model_copy(update={"options": options})
    with pytest.raises(InputError, match="limit of a reply's length"):
        Budget(Decimal(1)).wrap(Server(exact), model, "judge")
    Budget().wrap(Server(exact), model, "judge")


def test_options_that_lengthen_a_reply_or_ask_for_several_count() -> None:
    assert token_bounds(ask(max_tokens=10), {"max_completion_tokens": 500})[1] == 500
    assert token_bounds(ask(max_tokens=10), {"n": 3})[1] == 30


@given(st.text(max_size=200), st.integers(1, 10))
def test_the_bound_of_the_input_covers_every_byte(text: str, max_tokens: int) -> None:
    request = ask(text, max_tokens)
    assert token_bounds(request, {}) == (len(text.encode()) + FREE_HEADROOM, max_tokens)
    schema = request.model_copy(update={"json_schema": {"type": "object"}})
    assert token_bounds(schema, {})[0] > token_bounds(request, {})[0] + 1000


async def test_a_reply_that_does_not_tell_its_tokens_counts_as_the_worst_case() -> None:
    budget = Budget(Decimal(10))
    client = budget.wrap(Server(lambda server, request: reply(Usage())), MODEL, "judge")
    await client.complete(ask())
    assert budget.spent == worst(ask())


async def test_negative_counts_hide_nothing(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        lying = Server(lambda s, r: reply(Usage(input_tokens=10, output_tokens=5, cached_input_tokens=-(10**9))))
        client = ledger.wrap(Budget(Decimal(10), ledger).wrap(lying, MODEL, "judge"), "judge")
        await client.complete(ask())
        assert ledger.stats().usage == Usage(input_tokens=10, output_tokens=5)


# -------------------------------------------------------------------------------------------- over several sessions


async def spend(path: Path, cap: str | None, first: int, count: int, server: Server) -> Budget:
    """One session: ``count`` requests of different content, numbered from ``first``."""
    with Ledger.open(path) as ledger:
        budget = Budget(None if cap is None else Decimal(cap), ledger)
        client = ledger.wrap(budget.wrap(server, MODEL, "judge"), "judge")
        for i in range(first, first + count):
            await client.complete(ask(index=i))
        assert json.loads(json.dumps(budget.report()))["usd"] == float(budget.spent)
        return budget


async def test_the_cap_holds_over_sessions_and_what_is_reused_costs_nothing(tmp_path: Path) -> None:
    path, server = tmp_path / "ledger.sqlite", Server(exact)
    await spend(path, None, 0, 5, server)
    budget = await spend(path, "0.30", 0, 5, server)
    assert budget.spent_now == 0
    assert budget.spent == Decimal("0.10")
    assert server.sends == 5
    with pytest.raises(ProviderError, match=r"\$0.20 spent \(\$0.10 of it in earlier sessions\)"):
        await spend(path, "0.30", 0, 100, server)
    assert server.spent == Decimal("0.20")
    budget = await spend(path, "1", 0, 11, server)  # a higher cap goes on
    assert budget.spent == server.spent == Decimal("0.22")


async def test_what_may_have_been_charged_without_a_reply_counts_in_later_sessions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    failing = Server(lambda server, request: (_ for _ in ()).throw(FAILURES["timeout"]()))
    for _ in range(3):
        with pytest.raises(TransientError):
            await spend(path, "10", 0, 1, failing)
    budget = await spend(path, "10", 0, 1, Server(exact))  # the same request, answered at last
    assert budget.spent == 3 * worst(ask()) + Decimal("0.02")
    assert sum(meter.unanswered for meter in budget._all()) == 3 * worst(ask())


async def test_money_spent_at_another_address_counts_where_its_price_is_known(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    elsewhere = Server(exact)
    elsewhere.identity = Identity(backend="openai", model="gpt-4.1-mini")
    await spend(path, None, 0, 1, elsewhere)
    budget = await spend(path, None, 0, 1, Server(exact))
    assert budget.spent == Decimal("0.02") + Decimal(10 * 4 + 5 * 16) / 10**7
    elsewhere.identity = Identity(backend="openai", model="mine", base_url="http://127.0.0.1:2/v1")
    await spend(path, None, 1, 1, elsewhere)
    with pytest.raises(InputError, match="an earlier session in this run folder used openai:mine"):
        await spend(path, "10", 2, 1, Server(exact))


@pytest.mark.parametrize("rounds", range(0, 12, 2))
def test_of_an_interrupted_run_only_what_was_sent_stays_counted(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "ledger.sqlite"

    async def never(server: Server, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(3600)
        raise AssertionError

    server = Server(never)

    async def interrupted(ledger: Ledger) -> None:
        client = ledger.wrap(Budget(None, ledger).wrap(server, MODEL, "judge"), "judge")
        tasks = [asyncio.create_task(client.complete(ask(index=i))) for i in range(30)]
        for _ in range(rounds):  # some are claimed, some are sent, some have not begun
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    with Ledger.open(path) as ledger:
        asyncio.run(interrupted(ledger))
    budget = asyncio.run(spend(path, "100", 0, 1, Server(exact)))
    assert budget.spent == server.sends * worst(ask()) + Decimal("0.02")


def test_requests_under_way_when_a_run_was_killed_count_once_and_for_good(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env=environment, check=False, capture_output=True
    )
    assert killed.returncode == 9, killed.stderr.decode()
    expected = Decimal("0.02") + 2 * worst(ask())
    budget = asyncio.run(spend(path, "10", 0, 1, Server(exact)))
    assert budget.spent == expected
    budget = asyncio.run(spend(path, "10", 1, 2, Server(exact)))  # both answered now
    assert budget.spent == expected + Decimal("0.04")
    budget = asyncio.run(spend(path, "10", 0, 3, Server(exact)))
    assert budget.spent == expected + Decimal("0.04")


# ------------------------------------------------------------------------------------------------------- batches


def priced(run: GenerateConfig, max_cost: str | None = None) -> GenerateConfig:
    values = run.model_dump(mode="json") | {"max_cost": max_cost}
    for model in (values["policy"]["model"], *values["judge"]["models"]):
        model["price"] = {"input": 10, "output": 20, "batch_discount": 0.5}
    return GenerateConfig.model_validate(values)


def stats(run: GenerateConfig) -> dict[str, StageStats]:
    with Ledger.open(run.out / "ledger.sqlite", read_only=True) as ledger:
        return {s.stage: s for s in ledger.stats().stages if s.paid}


def test_a_run_in_batches_costs_half_now_and_when_it_is_counted_again(tmp_path: Path) -> None:
    with BatchServer(answer, plan=lambda nth: Plan(expired=lambda i: nth == 0 and i % 5 == 1)) as server:
        online = generate(priced(config(tmp_path, server, prompts=5, transport="online", out="online"))).manifest[
            "cost"
        ]
        run = config(tmp_path, server, prompts=5, max_requests=30)
        first = generate(priced(run, "10")).manifest["cost"]
        again = generate(priced(run, "10")).manifest["cost"]
    assert first["usd"] == online["usd"] / 2 > 0
    assert (again["usd"], again["usd_this_session"], again["usd_unanswered"]) == (first["usd"], 0, 0)
    assert set(stats(priced(run))) == {"sample (batch)", "judge (batch)"}


def test_what_a_batch_left_over_costs_the_online_price(tmp_path: Path) -> None:
    half_way = Plan(expired=lambda i: i % 2 == 1)
    with BatchServer(answer, plan=lambda nth: half_way) as server:
        online = generate(priced(config(tmp_path, server, prompts=5, transport="online", out="online"))).manifest[
            "cost"
        ]
        run = priced(config(tmp_path, server, prompts=5, finish_online_after=0.0), "10")
        finished = generate(run).manifest["cost"]
    assert online["usd"] / 2 <= finished["usd"] <= online["usd"]
    usage = {stage: s.usage for stage, s in stats(run).items()}
    parts = [
        Decimal(10 * u.input_tokens + 20 * u.output_tokens) / 10**6 / (2 if stage.endswith("(batch)") else 1)
        for stage, u in usage.items()
    ]
    assert finished["usd"] == pytest.approx(float(total(parts)), abs=1e-8)


def test_a_batch_that_outlives_its_run_is_paid_once(tmp_path: Path) -> None:
    with BatchServer(answer, plan=lambda nth: Plan(seconds=0.0 if nth else 1.5)) as server:
        run = priced(config(tmp_path, server, prompts=3), "1")
        process = start(processes(), run)
        while not server.batches:
            process.join(0.01)
            assert process.exitcode is None
        process.kill()
        process.join()
        with Ledger.open(run.out / "ledger.sqlite") as ledger:
            budget = Budget(Decimal(1), ledger)
            assert run.policy.model is not None
            client = open_client(run.policy.model, ledger, "sample", budget)
            assert budget.spent == 0
            assert budget._reserved > 0  # of the batch under way
            asyncio.run(client.aclose())
        cost = generate(run).manifest["cost"]
        online = generate(priced(config(tmp_path, server, prompts=3, transport="online", out="online")))
    assert cost["usd_unanswered"] == 0
    assert cost["usd"] == online.manifest["cost"]["usd"] / 2


KILLED = """
import asyncio, os, sys
from decimal import Decimal
from pathlib import Path
from rlaif.engine.budget import Budget
from rlaif.engine.ledger import Ledger
from tests.engine.test_budget import MODEL, Server, ask, exact

async def dies(server, request):
    await asyncio.sleep(0.2)
    os._exit(9)

async def main():
    with Ledger.open(Path(sys.argv[1])) as ledger:
        budget = Budget(Decimal(10), ledger)
        good = ledger.wrap(budget.wrap(Server(exact), MODEL, "judge"), "judge")
        await good.complete(ask(index=0))
        bad = ledger.wrap(budget.wrap(Server(dies), MODEL, "judge"), "judge")
        await asyncio.gather(bad.complete(ask(index=1)), bad.complete(ask(index=2)))

asyncio.run(main())
"""
