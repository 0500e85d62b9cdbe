"""Prices: the list's own arithmetic, exactly; nothing guessed; nothing negative."""

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.config.models import ModelConfig, PriceConfig
from rlaif.engine.prices import Price, dollars, number, price_list, price_of, total
from rlaif.types import Usage

NOW = datetime(2026, 11, 20, tzinfo=UTC)
OWN_URL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


def priced(spec: str, **settings: object) -> Price:
    price = price_of(ModelConfig.model_validate({"model": spec, **settings}), now=NOW)
    assert price is not None
    return price


def chat_models() -> list[str]:
    """Every model of the two lists that has a price for text in and text out."""
    return [
        f"{provider.id}:{model.id}"
        for provider in get_snapshot().providers
        if provider.id in OWN_URL
        for model in provider.models
        if model.is_match(model.id)
        and model.get_prices(NOW).input_mtok is not None
        and model.get_prices(NOW).output_mtok is not None
    ]


tokens = st.integers(0, 400_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, written, plain, output = draw(tokens), draw(tokens), draw(tokens), draw(tokens)
    return Usage(
        input_tokens=cached + written + plain,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=draw(st.integers(0, output)),
    )


def check_against_the_list(spec: str, batch: bool, usage: Usage) -> None:
    provider, name = spec.split(":", 1)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
            output_reasoning_tokens=usage.reasoning_tokens,
        ),
        name,
        provider_id=provider,
        genai_request_timestamp=NOW,
        price_context={"processing": "batch"} if batch else None,
    )
    assert priced(spec).cost(usage, batch=batch) == theirs.total_price, (spec, batch)


@pytest.mark.parametrize("input_tokens", [30_003, 150_000, 272_001])
def test_the_cost_is_what_the_price_list_itself_computes_for_every_model(input_tokens: int) -> None:
    usage = Usage(
        input_tokens=input_tokens,
        cached_input_tokens=10_001,
        cache_write_tokens=10_001,
        output_tokens=777,
        reasoning_tokens=99,
    )
    for spec in chat_models():
        for batch in (False, True):
            check_against_the_list(spec, batch, usage)


@given(spec=st.sampled_from(chat_models()), batch=st.booleans(), usage=usages())
def test_the_cost_is_what_the_price_list_itself_computes_for_any_usage(spec: str, batch: bool, usage: Usage) -> None:
    check_against_the_list(spec, batch, usage)


def test_the_list_covers_many_models_with_tiers_and_batch_prices() -> None:
    prices = [priced(spec) for spec in chat_models()]
    assert len(prices) > 90
    assert sum(p.first_step is not None for p in prices) >= 10
    assert sum(p.batch != p.online for p in prices) >= 40


def test_hand_worked_costs() -> None:
    usage = Usage(input_tokens=1_000_000, cached_input_tokens=400_000, output_tokens=100_000, reasoning_tokens=60_000)
    # 600,000 at 0.40, 400,000 cached at 0.10, 100,000 out (reasoning is in it) at 1.60
    assert priced("openai:gpt-4.1-mini").cost(usage) == Decimal("0.24") + Decimal("0.04") + Decimal("0.16")
    written = Usage(input_tokens=3000, cached_input_tokens=1000, cache_write_tokens=1000, output_tokens=200)
    # 1000 at 5, 1000 read at 0.50, 1000 written at 6.25, 200 at 25, in millionths
    opus = priced("anthropic:claude-opus-4-5")
    assert opus.cost(written) == Decimal("0.005") + Decimal("0.0005") + Decimal("0.00625") + Decimal("0.005")
    assert opus.cost(written, batch=True) == opus.cost(written) / 2


def test_all_tokens_of_a_long_request_cost_the_price_of_its_tier() -> None:
    sol = priced("openai:gpt-6-sol")
    assert sol.first_step == 272_000
    assert sol.cost(Usage(input_tokens=272_000)) == Decimal("0.544")
    assert sol.cost(Usage(input_tokens=272_001)) == Decimal("1.088004")
    together = Usage(input_tokens=10_000_000)  # of many requests, the longest of which was short
    assert sol.cost(together, input_of_one=5000) == 20


@given(usage=usages(), more_in=tokens, more_out=tokens)
@pytest.mark.parametrize("spec", ["openai:gpt-6-sol", "anthropic:claude-haiku-5-5", "openai:gpt-4.1-mini"])
def test_no_reply_within_the_bound_costs_more_than_the_bound(
    spec: str, usage: Usage, more_in: int, more_out: int
) -> None:
    price = priced(spec)
    for batch in (False, True):
        most = price.at_most(usage.input_tokens + more_in, usage.output_tokens + more_out, batch=batch)
        assert price.cost(usage, batch=batch) <= most


any_count = st.integers(-(10**12), 10**12)


@given(counts=st.lists(any_count, min_size=5, max_size=5))
def test_no_count_makes_a_cost_negative(counts: list[int]) -> None:
    usage = Usage(**dict(zip(Usage.model_fields, counts, strict=True)))
    assert priced("anthropic:claude-haiku-5-5").cost(usage) >= 0


@given(st.lists(usages(), max_size=30))
def test_sums_are_exact(many: list[Usage]) -> None:
    price = priced("openai:gpt-4.1-mini")
    together = Usage(**{f: sum(getattr(u, f) for u in many) for f in Usage.model_fields})
    assert total(price.cost(u) for u in many) == price.cost(together)


@pytest.mark.parametrize(
    "model",
    [
        {"model": "openai:gpt-4.1-mini", "base_url": "http://127.0.0.1:8000/v1"},
        {"model": "openai:gpt-4.1-mini", "base_url": "http://localhost:8000/v1"},
        {"model": "openai:gpt-4.1-mini", "base_url": "https://api.openai.com.example.org/v1"},
        {"model": "openai:gpt-4.1-mini", "base_url": "https://api.anthropic.com/v1"},
        {"model": "openai:openai/gpt-4.1-mini", "base_url": "https://openrouter.ai/api/v1"},
        {"model": "openai:deepseek-chat", "base_url": "https://api.deepseek.com"},  # by the time of day
        {"model": "openai:gpt-99"},
        {"model": "openai:gpt-4.1-mini-of-mine"},
        {"model": "openai:text-embedding-3-small"},
        {"model": "openai:gpt-4.1-mini", "options": {"tools": [{"type": "web_search"}]}},
        {"model": "anthropic:gpt-4.1-mini"},
    ],
)
def test_a_price_that_nobody_told_is_unknown(model: dict[str, object]) -> None:
    assert price_of(ModelConfig.model_validate(model), now=NOW) is None


def test_a_base_url_from_the_environment_counts_as_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert price_of(ModelConfig(model="openai:gpt-4.1-mini")) is None


def test_the_providers_own_host_has_its_own_prices() -> None:
    assert priced("openai:gpt-4.1-mini", base_url="https://api.openai.com/v1") == priced("openai:gpt-4.1-mini")
    groq = priced("openai:llama-3.1-8b-instant", base_url="https://api.groq.com/openai/v1")
    assert "groq/" in groq.source
    assert not groq.free


@pytest.mark.parametrize("spec", ["local:smollm2", "vllm:Qwen/Qwen3-0.6B", "scripted:tests.fakes:judge"])
def test_a_model_on_this_machine_is_free(spec: str) -> None:
    assert priced(spec).free
    assert priced(spec).cost(Usage(input_tokens=10**9, output_tokens=10**9)) == 0


def test_the_configs_price_stands_before_the_list() -> None:
    price = priced("openai:gpt-4.1-mini", price={"input": 0.1, "output": "0.3", "batch_discount": 0.5})
    assert price.source == "config"
    usage = Usage(input_tokens=10, cached_input_tokens=4, cache_write_tokens=3, output_tokens=1)
    assert price.cost(usage) == Decimal("0.0000013")  # 0.1 is a tenth, not the nearest binary fraction
    assert price.cost(usage, batch=True) == Decimal("0.00000065")
    cached = priced("local:smollm2", price={"input": 1, "output": 2, "cached_input": 0, "cache_write": 5})
    assert cached.cost(usage) == Decimal("0.00002")


@pytest.mark.parametrize("bad", [{"input": -1, "output": 1}, {"input": 1}, {"input": "nan", "output": 1}])
def test_a_price_that_is_none_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PriceConfig.model_validate(bad)


def test_the_service_tier_and_the_lifetime_of_a_cache_pick_their_own_prices() -> None:
    tokens = Usage(input_tokens=1_000_000)
    plain = priced("openai:gpt-5.4").cost(tokens, input_of_one=1000)
    assert priced("openai:gpt-5.4", options={"service_tier": "flex"}).cost(tokens, input_of_one=1000) < plain
    assert priced("openai:gpt-5.4", options={"service_tier": "priority"}).cost(tokens, input_of_one=1000) > plain
    hour = priced("anthropic:claude-opus-4-5", options={"cache_control": {"type": "ephemeral", "ttl": "1h"}})
    assert hour.cost(Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000)) == 10


def test_what_the_manifest_gets_says_where_the_price_is_from_and_of_which_day() -> None:
    described = priced("anthropic:claude-haiku-5-5").describe()
    assert described["source"].startswith("genai-prices 0.2")
    assert described["usd_per_million_tokens"] == {
        "input": 0.1,
        "cached_input": 0.01,
        "cache_write": 0.125,
        "output": 0.5,
    }
    assert set(described["above"]) == {"100000"}
    found = price_list()
    assert found["package"] == f"genai-prices {genai_prices.__version__}"
    assert "2026-01-01" < found["latest_change"] <= found["prices_of"]


def test_dollars_for_a_reader_are_never_rounded_down() -> None:
    shown = [dollars(Decimal(x)) for x in ("0", "0.0000004", "0.01234", "1.001", "1234.5", "0.6")]
    assert shown == ["$0.00", "$0.000001", "$0.0124", "$1.01", "$1234.50", "$0.60"]
    assert number(Decimal("0.1") + Decimal("0.2")) == 0.3


def test_a_run_without_paid_models_never_loads_the_price_list() -> None:
    code = (
        "import sys; from rlaif.config.models import ModelConfig; from rlaif.engine.prices import price_of\n"
        "assert price_of(ModelConfig(model='local:smollm2')).free\n"
        "assert price_of(ModelConfig(model='openai:x', base_url='http://127.0.0.1:1')) is None\n"
        "assert not any(m.startswith('genai_prices') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
