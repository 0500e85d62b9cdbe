"""What tokens cost: exact, in USD as decimals, never negative.

Prices come from the package genai-prices (its bundled list: nothing is fetched), or from the ``price`` of a model in
the config. Models that run on this machine cost nothing. A server that is not the provider's own has no known price:
what it charges is between the user and it.

Not covered: pictures, audio, tools, and what is charged by the hour. Where a provider's price changes at a date, the
price of the moment the run began is taken.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.config.models import ModelConfig, PriceConfig
from rlaif.types import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

PACKAGE = "genai-prices"

_EXACT = Context(prec=60)  # products of a price and a token count never round
_MILLION = Decimal(1_000_000)
_OWN_HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
_BASE_URL_VARIABLES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}

# Routers charge what the provider they pick charges: one price for a model is not true there.
_ROUTERS = ("openrouter", "huggingface", "github-copilot", "cursor")
# Options of a request that make it cost something else than the list says.
_PRICED_OTHERWISE = ("audio", "inference_geo", "modalities", "tools", "web_search_options")
_PRICE_CONTEXT = ("service_tier", "speed")  # options that pick another column of the list


@dataclass(frozen=True)
class Rates:
    """USD per million tokens."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """USD, exactly. Counts below zero, or parts above their whole, as only a broken server reports them, are read
        so that they make nothing cheaper."""
        cached, written = max(0, usage.cached_input_tokens), max(0, usage.cache_write_tokens)
        plain = max(0, usage.input_tokens - cached - written)
        with localcontext(_EXACT):
            return (
                plain * self.input
                + cached * self.cached_input
                + written * self.cache_write
                + max(0, usage.output_tokens) * self.output
            ) / _MILLION

    def scaled(self, factor: Decimal) -> "Rates":
        with localcontext(_EXACT):
            return Rates(
                self.input * factor, self.cached_input * factor, self.cache_write * factor, self.output * factor
            )

    @property
    def dearest_input(self) -> Decimal:
        return max(self.input, self.cached_input, self.cache_write)


Tiers = tuple[tuple[int, Rates], ...]  # (above how many input tokens of one request, rates), ascending from -1


@dataclass(frozen=True)
class Price:
    """What one model charges.

    ``source``: where it is from ("config", "free", or the entry of the price list). ``batch``: prices in the batch API;
    the same as online where the provider gives no discount.
    """

    source: str
    online: Tiers
    batch: Tiers

    @property
    def free(self) -> bool:
        return all(rate == 0 for _, r in self.online for rate in (r.dearest_input, r.output))

    @property
    def base(self) -> Rates:
        return self.online[0][1]

    @property
    def first_step(self) -> int | None:
        """Above how many input tokens a request costs more a token; None: never."""
        return self.online[1][0] if len(self.online) > 1 else None

    def cost(self, usage: Usage, *, batch: bool = False, input_of_one: int | None = None) -> Decimal:
        """USD of the tokens of one request, exactly; or of many together whose largest input is ``input_of_one``.

        ``usage.input_tokens`` counts the whole input, cached parts and cache writes included; ``output_tokens``
        includes reasoning. Many requests are all priced as the largest of them, so this is an upper bound for them.
        """
        tiers = self.batch if batch else self.online
        return _at(tiers, usage.input_tokens if input_of_one is None else input_of_one).cost(usage)

    def at_most(self, input_tokens: int, output_tokens: int, *, batch: bool = False) -> Decimal:
        """The most that one request with up to so many tokens can cost: all input dearest, in the dearest tier."""
        with localcontext(_EXACT):
            return max(
                (input_tokens * rates.dearest_input + output_tokens * rates.output) / _MILLION
                for above, rates in (self.batch if batch else self.online)
                if input_tokens > above
            )

    def describe(self) -> dict[str, Any]:
        """For the manifest: USD per million tokens, and where it is from."""
        shown: dict[str, Any] = {"source": self.source, "usd_per_million_tokens": _shown(self.base)}
        if len(self.online) > 1:
            shown["above"] = {str(above): _shown(rates) for above, rates in self.online[1:]}
        return shown


def price_of(model: ModelConfig, *, now: datetime | None = None) -> Price | None:
    """The price of ``model``; None where nobody told. ``now``: which day's prices (default: today's)."""
    if model.price is not None:
        return _from_config(model.price)
    if model.backend not in _OWN_HOSTS:
        return _same("free", ((-1, Rates(Decimal(0), Decimal(0), Decimal(0), Decimal(0))),))
    if any(option in model.options for option in _PRICED_OTHERWISE):
        return None
    provider = _provider(model)
    found = _entry(provider, model.name) if provider else None
    if provider is None or found is None:
        return None
    moment = now or datetime.now(UTC)
    context = {o: v for o in _PRICE_CONTEXT if isinstance(v := model.options.get(o), str)}
    online = _tiers(found.get_prices(moment, context), model)
    batch = _tiers(found.get_prices(moment, {"processing": "batch"}), model)
    if online is None or batch is None:
        return None
    return Price(f"{PACKAGE} {version(PACKAGE)}: {provider}/{found.id}", online, batch)


def how_to_price(model: ModelConfig) -> str:
    """What to write into the config for a model whose price nobody knows."""
    return f"{{model: '{model.model}', price: {{input: USD, output: USD}}}} (USD per million tokens)"


def price_list() -> dict[str, str]:
    """Which price list this is, for the manifest: its version, the day of the prices taken from it, and the latest day
    from which any price in it holds (older than the day taken, the list may be out of date)."""
    return {
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "prices_of": datetime.now(UTC).date().isoformat(),
        "latest_change": _latest_change(datetime.now(UTC).date().isoformat()),
    }


def dollars(amount: Decimal) -> str:
    """``amount`` for a reader: cents, or as many digits as it takes to be more than nothing; rounded up."""
    with localcontext(_EXACT):
        places = "0.01" if amount >= 1 or amount == 0 else "0.0001" if amount >= Decimal("0.01") else "0.000001"
        whole, _, part = str(amount.quantize(Decimal(places), rounding=ROUND_CEILING)).partition(".")
        return f"${whole}.{part.rstrip('0'):0<2}"


def number(amount: Decimal) -> float:
    """``amount`` as a JSON number: USD to a millionth of a cent."""
    return float(round(amount, 8))


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    with localcontext(_EXACT):
        return sum(amounts, Decimal(0))


# ------------------------------------------------------------------------------------------------------- the details


def _at(tiers: Tiers, input_tokens: int) -> Rates:
    return next(rates for above, rates in reversed(tiers) if above < 0 or input_tokens > above)


def _same(source: str, tiers: Tiers) -> Price:
    return Price(source, tiers, tiers)


def _from_config(price: PriceConfig) -> Price:
    rates = Rates(
        price.input,
        price.input if price.cached_input is None else price.cached_input,
        price.input if price.cache_write is None else price.cache_write,
        price.output,
    )
    return Price("config", ((-1, rates),), ((-1, rates.scaled(1 - price.batch_discount)),))


def _provider(model: ModelConfig) -> str | None:
    """Whose price list holds: of the provider whose own host the requests go to."""
    url = model.base_url or os.environ.get(_BASE_URL_VARIABLES[model.backend])
    if not url or urlsplit(url).hostname == _OWN_HOSTS[model.backend]:
        return model.backend
    host = urlsplit(url).hostname or ""
    if "." not in host or host.replace(".", "").isdigit() or host == "localhost":
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        # Only the host, and with an end: the list's patterns would also match api.openai.com.example.org.
        provider = get_snapshot().find_provider(None, None, f"https://{host}/").id
    except LookupError:
        return None
    own = provider in _OWN_HOSTS or provider.startswith(_ROUTERS)
    return None if own else provider


@cache
def _entry(provider: str, name: str) -> "ModelInfo | None":
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import TimeOfDateConstraint

    try:
        found_at, found = get_snapshot().find_provider_model(name, None, provider, None)
    except LookupError:
        return None
    varies = isinstance(found.prices, list) and any(
        isinstance(price.constraint, TimeOfDateConstraint) for price in found.prices
    )
    return None if varies or found_at.id != provider else found


def _tiers(price: "ModelPrice", model: ModelConfig) -> Tiers | None:
    from genai_prices.types import TieredPrices

    caching = model.options.get("cache_control")
    hour = isinstance(caching, Mapping) and caching.get("ttl") == "1h"
    written = price.cache_write_1h_mtok if hour and price.cache_write_1h_mtok is not None else price.cache_write_mtok
    if price.input_mtok is None or price.output_mtok is None or price.requests_kcount is not None:
        return None
    columns = [price.input_mtok, price.cache_read_mtok, written, price.output_mtok]
    starts = {tier.start for c in columns if isinstance(c, TieredPrices) for tier in c.tiers}

    def at(column: Decimal | TieredPrices | None, start: int) -> Decimal:
        if column is None:
            column = price.input_mtok  # what has no price of its own is charged as any input
        if isinstance(column, TieredPrices):
            return next((tier.price for tier in reversed(column.tiers) if tier.start <= start), column.base)
        assert column is not None
        return column

    return tuple((start, Rates(*(at(column, start) for column in columns))) for start in (-1, *sorted(starts)))


@cache
def _latest_change(today: str) -> str:
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import StartDateConstraint

    days = [
        price.constraint.start_date.isoformat()
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for price in model.prices
        if isinstance(price.constraint, StartDateConstraint)
    ]
    return max((day for day in days if day <= today), default="unknown")


def _shown(rates: Rates) -> dict[str, float]:
    return {
        "input": float(rates.input),
        "cached_input": float(rates.cached_input),
        "cache_write": float(rates.cache_write),
        "output": float(rates.output),
    }
