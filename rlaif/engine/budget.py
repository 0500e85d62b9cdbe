"""What a run may spend: no request is sent whose worst case would pass the cap.

Before each send the worst case of that request is reserved: every byte of the text a token, ``max_tokens`` of output,
all of it at the dearest price. The reply settles it at what was really used. What does not fit waits for the requests
under way to settle, since they mostly cost less than they reserved; when nothing is under way and nothing fits, the
budget is reached (ProviderError, exit 4) and closed.

The wrapper stands directly around a transport, below the ledger (a reply that is reused costs nothing) and below the
retries (each send is reserved anew). What an earlier session spent on the same run folder counts, from the ledger.

**A request that failed** costs nothing where providers charge nothing: an error status, a refused connection. Where
the provider may have worked for us all the same, its worst case stays counted, now and in later sessions: no reply in
time, a connection that broke after sending, a reply that cannot be read, a gateway's 502 or 504, an interrupted
request, a kill -9 while it was under way, and a reply that does not tell its tokens.

A batch is paid for whether or not anybody waits for it: what an interrupted run has under way in batches stays reserved
until its replies are fetched.

The cap rests on the server keeping to ``max_tokens`` and charging the tokens it reports. The tokens of a text are never
more than its UTF-8 bytes for byte-level tokenizers, which all of today's are; what chat formats add is allowed for.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rlaif.clients.base import Client, Identity, Wrapper, asked_at_once, request_key
from rlaif.config.models import BACKENDS, ModelConfig
from rlaif.engine.batch_table import BatchTable
from rlaif.engine.ledger import BATCH, Ledger, StageStats
from rlaif.engine.prices import PACKAGE, Price, dollars, how_to_price, number, price_list, price_of, total
from rlaif.engine.store import add
from rlaif.errors import InputError, ProviderError, RequestError, TransientError
from rlaif.hashing import canonical_json
from rlaif.types import ChatReply, ChatRequest, Usage

# What a chat format, a schema's instructions and the like may add to the bytes of the text.
_PER_MESSAGE, _PER_REQUEST, _PER_SCHEMA = 16, 64, 1024
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_GATEWAY_GAVE_UP = (502, 504, 520, 522, 524)  # what stood behind it may have answered, and charged


def token_bounds(request: ChatRequest, options: Mapping[str, Any]) -> tuple[int, int]:
    """(input, output): tokens that ``request`` cannot exceed, unless ``options`` lift the limit of its output."""
    text = sum(len(m.content.encode("utf-8", "surrogatepass")) + _PER_MESSAGE for m in request.messages)
    text += len((request.continuation or "").encode("utf-8", "surrogatepass"))
    extra = len(canonical_json(dict(options)).encode()) if options else 0
    if request.json_schema is not None:
        extra += 2 * len(canonical_json(request.json_schema).encode()) + _PER_SCHEMA
    longest = max(request.max_tokens, *_limits(options), 0)
    samples = options.get("n")
    return text + extra + _PER_REQUEST, longest * (samples if isinstance(samples, int) and samples > 1 else 1)


def _limits(options: Mapping[str, Any]) -> list[int]:
    return [options[name] for name in _LENGTHS if isinstance(options.get(name), int)]


def _lifts_the_limit(options: Mapping[str, Any]) -> bool:
    """Whether ``options`` take max_tokens out of the request (a null does)."""
    return not _limits(options) and any(name in options for name in _LENGTHS)


def may_have_charged(error: TransientError) -> bool:
    """Whether the provider may charge for a request that ended in ``error`` (see the top of this module)."""
    if error.kind == "connection":
        return error.sent
    return error.kind in ("timeout", "bad_reply") or error.status in _GATEWAY_GAVE_UP


@dataclass
class _Meter:
    """The money of one model in one stage: what earlier sessions and what this one spent on it, in USD."""

    stage: str
    identity: Identity
    price: Price | None  # None: unknown, and nothing is counted
    earlier: Decimal = Decimal(0)
    now: Decimal = Decimal(0)
    unanswered: Decimal = Decimal(0)  # of both: worst cases that stay counted


class Budget:
    """What the clients of one run may spend together. One for each run; see `wrap`.

    ``cap``: USD, over all sessions of the run folder that ``ledger`` belongs to. None: only count.
    """

    def __init__(self, cap: Decimal | None = None, ledger: Ledger | None = None) -> None:
        self.cap = cap
        self._ledger = ledger
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._others: list[_Meter] | None = None
        self._earlier: Decimal | None = None
        self._now = self._reserved = Decimal(0)
        self._under_way = 0
        self._waiting: list[tuple[Decimal, asyncio.Future[None]]] = []
        self._closed_by: Decimal | None = None  # the request that no longer fitted
        self._in_batches: dict[str, Decimal] = {}  # reserved for requests in batches that nobody waits for now

    def wrap(self, client: Client, model: ModelConfig, stage: str) -> "BudgetedClient":
        """``client``, which answers for ``model`` in ``stage``, counted by this budget. Raises InputError when there is
        a cap and nobody knows the price."""
        key = stage, client.identity.model_dump_json()
        if key not in self._meters:
            self._meters[key] = self._meter(stage, client.identity, model)
            self._others = self._earlier = None
        return BudgetedClient(self, client, self._meters[key], model)

    def check(self) -> None:
        """Once all clients are wrapped, before anything is sent: raises InputError when there is a cap and an earlier
        session in the run folder used a model whose price nobody knows."""
        self._all()

    @property
    def spent(self) -> Decimal:
        """USD of all sessions."""
        return total((self.spent_earlier, self._now))

    @property
    def spent_now(self) -> Decimal:
        """USD since this budget was made."""
        return self._now

    @property
    def spent_earlier(self) -> Decimal:
        """USD of earlier sessions on the same ledger."""
        if self._earlier is None:
            self._earlier = total(meter.earlier for meter in self._all())
        return self._earlier

    @property
    def complete(self) -> bool:
        """Whether the price of every model is known, so that the sums are all there is."""
        return all(meter.price is not None for meter in self._all())

    def note(self) -> str:
        """What was spent so far, for a reader; empty where nothing costs anything."""
        meters = self._all()
        if all(meter.price is not None and meter.price.free for meter in meters):
            return ""
        unknown = dict.fromkeys(str(meter.identity) for meter in meters if meter.price is None)
        if len(unknown) == len({str(meter.identity) for meter in meters}):
            return "cost unknown"
        more = [f"{dollars(self.spent)} with earlier sessions"] if self.spent_earlier else []
        more += [f"budget {dollars(self.cap)}"] if self.cap is not None else []
        more += [f"without {', '.join(unknown)}"] if unknown else []
        return f"{dollars(self._now)} spent" + (f" ({'; '.join(more)})" if more else "")

    def report(self) -> dict[str, Any]:
        """For the manifest: USD of this session and of all, by stage and model, and which prices they are.

        ``usd_unanswered`` is the part counted for requests whose reply never came; ``complete`` is false where a price
        is unknown, so that the sums miss something.
        """
        meters = self._all()
        stats = self._stats()
        listed = any(m.price is not None and m.price.source.startswith(PACKAGE) for m in meters)
        return {
            "usd": number(self.spent),
            "usd_this_session": number(self._now),
            "usd_unanswered": number(total(meter.unanswered for meter in meters)),
            "complete": self.complete,
            "max_cost": None if self.cap is None else number(self.cap),
            "models": [
                {
                    "stage": meter.stage,
                    "model": str(meter.identity),
                    **_counts([s for s in stats if _is_of(s, meter)]),
                    "usd": None if meter.price is None else number(total((meter.earlier, meter.now))),
                    "usd_this_session": None if meter.price is None else number(meter.now),
                    "price": None if meter.price is None else meter.price.describe(),
                }
                for meter in meters
            ],
            "price_list": price_list() if listed else None,
        }

    # ------------------------------------------------------------------------------------------ earlier sessions

    def _meter(self, stage: str, identity: Identity, model: ModelConfig) -> _Meter:
        price = price_of(model)
        if self.cap is not None and (price is None or (not price.free and _lifts_the_limit(model.options))):
            where = f"{model.model}{f' at {model.base_url}' if model.base_url else ''}"
            if price is not None:
                raise InputError(f"{where}: its options take the limit of a reply's length out, so no budget can hold.")
            raise InputError(
                f"{where}: its price is not known, so the budget cannot hold; write it into the config:"
                f" {how_to_price(model)}, zeros where it costs nothing."
            )
        meter = _Meter(stage, identity, price)
        for stats in self._stats():
            if (stats.stage.removesuffix(BATCH), stats.identity) == (stage, identity):
                _count_earlier(meter, stats)
        self._count_open(meter, model)
        return meter

    def _stats(self) -> tuple[StageStats, ...]:
        return self._ledger.stats().stages if self._ledger else ()

    def _count_open(self, meter: _Meter, model: ModelConfig) -> None:
        """Requests without a reply that may cost something all the same: those in a batch, whose replies are still to
        be fetched, and those that were on their way when a session was killed."""
        if self._ledger is None or meter.price is None or meter.price.free:
            return
        batches = BatchTable(self._ledger)
        any_batch = bool(batches.records())
        for failure in list(self._ledger.failures()):
            request = self._ledger.request(failure.key)
            if request is None or (failure.stage, failure.identity) != (meter.stage, meter.identity):
                continue
            bounds = token_bounds(request, model.options)
            worst = meter.price.at_most(*bounds)
            if any_batch and _is_in_a_batch(batches, failure.key):
                self._in_batches[failure.key] = worst
                self._reserved = total((self._reserved, worst))
            elif failure.error is None:
                self._ledger.lose(meter.stage, meter.identity, *bounds, key=failure.key)
                meter.earlier = total((meter.earlier, worst))
                meter.unanswered = total((meter.unanswered, worst))

    def _all(self) -> list[_Meter]:
        """The meters of this session's models, and of others the ledger knows (a base URL that was another)."""
        if self._others is None:
            self._others = []
            for stats in self._stats():
                used = stats.paid or stats.lost_input
                stage = stats.stage.removesuffix(BATCH)
                if used and (stage, stats.identity.model_dump_json()) not in self._meters:
                    meter = _Meter(stats.stage, stats.identity, _price_of_identity(stats.identity))
                    if meter.price is None and self.cap is not None:
                        raise InputError(
                            f"an earlier session in this run folder used {stats.model} at {stats.identity.base_url},"
                            " whose price is not known, so the budget cannot hold; start in another folder with --out."
                        )
                    _count_earlier(meter, stats)
                    self._others.append(meter)
        return [*self._meters.values(), *self._others]

    # ------------------------------------------------------------------------------------------------- one request

    async def _reserve(self, amount: Decimal, key: str | None = None) -> None:
        """Put ``amount`` aside, waiting for others to settle where it does not fit. Raises ProviderError. ``key``: of a
        request that may be in a batch, for which something is put aside already."""
        kept = self._in_batches.pop(key, None) if key is not None else None
        if self.cap is None:
            return
        if kept is not None:
            self._reserved = total((self._reserved, -kept))
            self._take(amount)
            return
        if self._fits(amount):
            self._take(amount)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, granted))
        self._serve()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._settle(amount, Decimal(0))  # granted and cancelled in the same moment: nothing was sent
            self._waiting = [waiter for waiter in self._waiting if waiter[1] is not granted]
            raise

    def _settle(self, reserved: Decimal, cost: Decimal) -> None:
        self._now = total((self._now, cost))
        if self.cap is not None:
            self._reserved = total((self._reserved, -reserved))
            self._under_way -= 1
            self._serve()

    def _keep(self, key: str, amount: Decimal) -> None:
        """Put ``amount`` aside for a request in a batch that nobody waits for any more."""
        self._in_batches[key] = amount
        self._reserved = total((self._reserved, amount))

    def _fits(self, amount: Decimal) -> bool:
        assert self.cap is not None
        return self._closed_by is None and total((self.spent, self._reserved, amount)) <= self.cap

    def _take(self, amount: Decimal) -> None:
        self._reserved = total((self._reserved, amount))
        self._under_way += 1

    def _serve(self) -> None:
        """Let go whoever fits now; when nothing is under way and somebody still waits, the budget is reached."""
        left = []
        for amount, granted in self._waiting:
            if granted.done():
                continue
            if self._fits(amount):
                self._take(amount)
                granted.set_result(None)
            else:
                left.append((amount, granted))
        self._waiting = left
        if left and (self._under_way == 0 or self._closed_by is not None):
            # Closed for good: the run ends, and a smaller request sent meanwhile would be paid for and thrown away.
            self._closed_by = min(amount for amount, _ in left) if self._closed_by is None else self._closed_by
            self._waiting = []
            for _, granted in left:
                granted.set_exception(self._reached())

    def _reached(self) -> ProviderError:
        assert self.cap is not None
        assert self._closed_by is not None
        earlier = f" ({dollars(self.spent_earlier)} of it in earlier sessions)" if self.spent_earlier else ""
        earlier += f", {dollars(self._reserved)} set aside for batches under way" if self._reserved else ""
        return ProviderError(
            f"the budget of {dollars(self.cap)} is reached: {dollars(self.spent)} spent{earlier}, and the next request"
            f" could cost up to {dollars(self._closed_by)}; what was paid for is kept, and running again with a higher"
            " --max-cost goes on."
        )


class BudgetedClient(Wrapper):
    """A Client whose every send is reserved before and settled after. ``complete`` raises what ``client`` raises, and
    ProviderError when the budget is reached."""

    def __init__(self, budget: Budget, client: Client, meter: _Meter, model: ModelConfig) -> None:
        super().__init__(client)
        self._budget, self._meter, self._options = budget, meter, model.options
        # Whether nothing is asked online, at twice the price.
        finishes_online = model.batch is not None and model.batch.finish_online_after is not None
        self._only_batches = model.transport == "batch" and not finishes_online

    async def complete(self, request: ChatRequest) -> ChatReply:
        price = self._meter.price
        if price is not None and price.free:
            return await self._client.complete(request)
        bounds = token_bounds(request, self._options)
        in_batch = self._only_batches and not asked_at_once()
        worst = Decimal(0) if price is None else price.at_most(*bounds, batch=in_batch)
        await self._budget._reserve(worst, self._of_batch(request))
        cost, charged = worst, True  # unless we learn otherwise
        try:
            reply = await self._client.complete(request)
            usage = _plausible(reply.usage)
            if charged := not _is_told(usage, reply):
                return reply
            if price is not None:
                cost = price.cost(usage, batch=reply.batch)
            return reply if usage is reply.usage else reply.model_copy(update={"usage": usage})
        except (RequestError, ProviderError):
            cost, charged = Decimal(0), False
            raise
        except TransientError as error:
            # What a batch did not come to was not charged.
            if not may_have_charged(error) or (in_batch and error.kind != "bad_reply"):
                cost, charged = Decimal(0), False
            raise
        except asyncio.CancelledError:
            if in_batch:  # it goes on without us, and its reply is fetched by whoever asks next
                cost, charged = Decimal(0), False
                self._budget._keep(request_key(self.identity, request), worst)
            raise
        finally:
            self._meter.now = total((self._meter.now, cost))
            if charged:
                self._lose(bounds, worst)
            self._budget._settle(worst, cost)

    def _of_batch(self, request: ChatRequest) -> str | None:
        """The request's key, should it be in a batch already."""
        return request_key(self.identity, request) if self._budget._in_batches else None

    def _lose(self, bounds: tuple[int, int], worst: Decimal) -> None:
        self._meter.unanswered = total((self._meter.unanswered, worst))
        if self._budget._ledger is not None:
            self._budget._ledger.lose(self._meter.stage, self._meter.identity, *bounds)


def _plausible(usage: Usage) -> Usage:
    """``usage`` without counts below zero, which would hide what other requests cost."""
    if min(usage.model_dump().values()) >= 0:
        return usage
    return Usage(**{name: max(0, value) for name, value in usage.model_dump().items()})


def _is_told(usage: Usage, reply: ChatReply) -> bool:
    return usage.input_tokens > 0 and (usage.output_tokens > 0 or not reply.text)


def _count_earlier(meter: _Meter, stats: StageStats) -> None:
    if meter.price is not None:
        unanswered = meter.price.at_most(stats.lost_input, stats.lost_output)
        batch = stats.stage.endswith(BATCH)
        spent = meter.price.cost(stats.usage, input_of_one=stats.largest_input, batch=batch)
        meter.earlier = total((meter.earlier, spent, unanswered))
        meter.unanswered = total((meter.unanswered, unanswered))


def _is_of(stats: StageStats, meter: _Meter) -> bool:
    return stats.identity == meter.identity and meter.stage in (stats.stage, stats.stage.removesuffix(BATCH))


def _counts(stats: Sequence[StageStats]) -> dict[str, int]:
    usage = add(*(s.usage for s in stats)).model_dump()
    return {
        "sent": sum(s.sent for s in stats),
        "reused": sum(s.reused for s in stats),
        **{name: count for name, count in usage.items() if count or "cache" not in name},
    }


def _is_in_a_batch(table: BatchTable, key: str) -> bool:
    item = table.item(key)
    return item is not None and (item.reply is not None or item.status in ("submitting", "live"))


def _price_of_identity(identity: Identity) -> Price | None:
    if identity.backend not in BACKENDS:
        return None
    return price_of(
        ModelConfig(model=str(identity), base_url=identity.base_url, options=dict(identity.extra))
        if identity.backend in ("openai", "anthropic")
        else ModelConfig(model=str(identity))
    )
