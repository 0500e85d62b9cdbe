"""What a generate run would send and cost, without sending or writing anything.

The run's own code asks, in the run's own words: prompts are read, templates filled in and comparisons planned as ever,
but behind the stages stands a `DryClient`. It counts a request, answers it from the run folder's ledger where the reply
is there (that costs nothing), and else with a placeholder for a text nobody has written yet. The placeholder counts as
many tokens as such a text is expected to have.

**Tokens** are estimated from the text (rlaif.engine.tokens): no tokenizer of a provider is called. Where the ledger
holds ten replies of a kind, others are expected to be as long, and the input is counted as the provider counted theirs:
the estimate after a small run (``--limit 20``) is far better than the one before.

**low, expected, high**: high takes every reply as long as ``max_tokens``. Not counted: requests repeated after a
failure; the discount of prompt caching.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from rlaif.clients.base import Capabilities, Identity, request_key
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import ModelConfig
from rlaif.constitution import load_constitution
from rlaif.engine import Budget, Ledger
from rlaif.engine.prices import Price, how_to_price, number, price_of, total
from rlaif.engine.stored import known_capabilities, server_url, stored_identity
from rlaif.engine.tokens import estimate_tokens
from rlaif.errors import RequestError
from rlaif.judges import Judge, judge_comparisons, make_judge
from rlaif.judges.ask import How, resolve_labels
from rlaif.judges.stats import JudgingStats
from rlaif.judging.gold import read_gold
from rlaif.pairing import plan_comparisons, with_revisions
from rlaif.prompts import check_prompts, read_prompts, read_samples
from rlaif.revision import Reviser
from rlaif.rewards import open_run_reward
from rlaif.runs import LEDGER, check_run
from rlaif.sampling import given, is_usable, sample, with_system
from rlaif.types import ChatReply, ChatRequest, Comparison, Completion, Constitution, Prompt, Usage, Verdict

METHOD = (
    "Tokens are estimated from the text, not counted by a tokenizer; high: every reply as long as max_tokens."
    " Requests repeated after a failure and the discount of prompt caching are not in it."
)


_PER_MESSAGE, _PER_REQUEST = 4, 3  # tokens that the chat format adds


class Range(NamedTuple):
    """low, expected, high."""

    low: float
    expected: float
    high: float

    def __add__(self, other: object) -> "Range":
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> "Range":
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def rounded(self) -> dict[str, int]:
        return {"low": round(self.low), "expected": round(self.expected), "high": round(self.high)}


def tokenizer_range(model: ModelConfig) -> Range:
    """How many tokens of this model's go on one of `estimate_tokens`."""
    if model.backend == "anthropic":
        return Range(0.9, 1.25, 1.6)
    return Range(0.92, 1.0, 1.15) if model.backend == "openai" and not server_url(model) else Range(0.9, 1.1, 1.5)


# ------------------------------------------------------------------------------------------------ replies nobody wrote

Kind = Literal["sample", "reasons", "label", "probabilities"]
_PLACEHOLDER: dict[Kind, str] = {
    "sample": "\ue000",
    "reasons": "\ue001",
}  # private-use characters: no real text holds them
_UNSEEN: dict[Kind, tuple[int, int]] = {  # low, expected tokens of a reply where the ledger holds none to learn from
    "sample": (100, 400),
    "reasons": (40, 120),
    "label": (1, 5),
    "probabilities": (1, 1),
}
_ENOUGH = 10  # replies of a kind to learn from
# Where no verdict is known yet: shares of first looks that are not sure, and of comparisons for the next judge.
UNSURE = 0.5
ESCALATED = 0.3
_FEW_LABELLED = 100  # pairs: with fewer, a kappa of 0.5 is known to no better than plus or minus 0.17


@dataclass
class _Seen:
    """Lengths of real replies of one kind."""

    n: int = 0
    tokens: int = 0
    squares: int = 0
    visible: int = 0  # without reasoning: what a judge is shown

    def add(self, tokens: int, reasoning: int) -> None:
        self.n += 1
        self.tokens += tokens
        self.squares += tokens * tokens
        self.visible += max(0, tokens - reasoning)

    def length(self, kind: Kind, limit: float) -> Range:
        """Of a reply not yet there, at most ``limit`` tokens."""
        if self.n < _ENOUGH:
            low, expected = _UNSEEN[kind]
            part = 8 if kind == "sample" else 1  # whoever sets a limit for samples leaves room above the usual
            return Range(min(low, limit / part), min(expected, limit / min(part, 2)), limit)
        mean = self.tokens / self.n
        spread = math.sqrt(max(0.0, self.squares / self.n - mean * mean) / self.n)
        around = max(3 * spread, 0.1 * mean)
        return Range(max(0.0, mean - around), mean, min(limit, mean + around))

    def shown(self, kind: Kind, limit: float) -> Range:
        """As `length`, of the part that is text."""
        whole = self.length(kind, limit)
        return whole.times(self.visible / self.tokens) if self.n >= _ENOUGH and self.tokens else whole


@dataclass
class Tally:
    """The requests of one stage and model. Weights: one request may stand for several that are like it."""

    stage: str
    model: ModelConfig
    identity: Identity
    answered: int = 0
    pending: float = 0.0
    text: float = 0.0  # estimated tokens of the pending requests' texts, placeholders left out
    slots: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))  # placeholders in them
    kinds: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))  # pending requests by kind of reply
    limits: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))  # the sum of their max_tokens
    answered_text: float = 0.0  # estimated tokens of the answered requests' texts, and what the provider counted
    answered_input: int = 0
    seen: dict[Kind, _Seen] = field(default_factory=dict)

    def note(self, request: ChatRequest, kind: Kind, reply: ChatReply | None, weight: float) -> None:
        texts = [m.content for m in request.messages] + ([request.continuation] if request.continuation else [])
        tokens = sum(map(estimate_tokens, texts)) + _PER_MESSAGE * len(texts) + _PER_REQUEST
        if request.json_schema is not None:
            tokens += estimate_tokens(str(request.json_schema))
        if reply is not None:
            self.answered += 1
            self.answered_text += tokens
            self.answered_input += reply.usage.input_tokens
            self.seen.setdefault(kind, _Seen()).add(reply.usage.output_tokens, reply.usage.reasoning_tokens)
            return
        self.pending += weight
        self.kinds[kind] += weight
        self.limits[kind] += weight * request.max_tokens
        for name, mark in _PLACEHOLDER.items():
            found = sum(text.count(mark) for text in texts)
            self.slots[name] += weight * found
            tokens -= found * estimate_tokens(mark)
        self.text += weight * tokens


# -------------------------------------------------------------------------------------------------------- the client


class DryClient:
    """A Client that sends nothing. ``weight``: how many like it each request stands for. ``asked``: the keys of the
    requests counted; the same once more costs nothing, as in a run."""

    def __init__(
        self, tally: Tally, ledger: Ledger | None, kind: Callable[[ChatRequest], Kind], capabilities: Capabilities
    ) -> None:
        self.identity, self.capabilities = tally.identity, capabilities
        self.tally, self.weight = tally, 1.0
        self.asked: set[str] = set()
        self._ledger, self._kind = ledger, kind

    async def complete(self, request: ChatRequest) -> ChatReply:
        kind, reply, key = self._kind(request), None, request_key(self.identity, request)
        if self._ledger is not None:
            reply = self._ledger.reply(key)
            if reply is not None and reply.finish_reason == "unknown":  # no answer: the run would ask again
                reply = None
        if key not in self.asked:
            self.asked.add(key)
            self.tally.note(request, kind, reply, self.weight)
        if reply is not None:
            return reply
        return ChatReply(text=_PLACEHOLDER.get(kind, "") + str(request.sample_index), finish_reason="stop")

    async def aclose(self) -> None:
        return None


class RecordedClient(DryClient):
    """A DryClient of which nothing is asked: what the ledger does not hold, nobody has said."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        if self._ledger is None or self._ledger.reply(request_key(self.identity, request)) is None:
            raise RequestError("not in the ledger", kind="invalid")
        return await super().complete(request)


# ------------------------------------------------------------------------------------------------------ the estimate


@dataclass(frozen=True)
class StageEstimate:
    """One stage and model. ``calls`` are all of the run's; ``answered`` of them are in the ledger and cost nothing;
    tokens and USD are of the others, in all. ``online`` and ``batch`` are None where the price is unknown."""

    stage: str
    model: str
    calls: int
    answered: int
    input_tokens: Range
    output_tokens: Range
    price: Price | None
    online: tuple[Decimal, Decimal, Decimal] | None
    batch: tuple[Decimal, Decimal, Decimal] | None


@dataclass(frozen=True)
class Estimate:
    """What a run would send. ``spent``: USD that earlier sessions on the run folder spent already; ``notes``: sentences
    about what could not be known."""

    prompts: int
    stages: tuple[StageEstimate, ...]
    spent: Decimal
    max_cost: Decimal | None
    notes: tuple[str, ...]
    orders: dict[str, dict[str, Any]] | None = None  # by `judge.orders`: what judging the same would take

    def usd(self, *, batch: bool = False) -> tuple[Decimal, Decimal, Decimal] | None:
        """low, expected, high USD still to spend; None where a price is unknown."""
        prices = [stage.batch if batch else stage.online for stage in self.stages]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        low, expected, high = (total(price[i] for price in known) for i in range(3))
        return low, expected, high

    def report(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "prompts": self.prompts,
            "stages": [
                {
                    "stage": s.stage,
                    "model": s.model,
                    "calls": s.calls,
                    "answered": s.answered,
                    "to_send": s.calls - s.answered,
                    "input_tokens": s.input_tokens.rounded(),
                    "output_tokens": s.output_tokens.rounded(),
                    "usd": _usd(s.online),
                    "usd_batch": _usd(s.batch),
                    "price": s.price.describe() if s.price else None,
                }
                for s in self.stages
            ],
            "orders": self.orders,
            "calls": sum(s.calls for s in self.stages),
            "answered": sum(s.answered for s in self.stages),
            "usd": _usd(self.usd()),
            "usd_batch": _usd(self.usd(batch=True)),
            "usd_spent": number(self.spent),
            "max_cost": None if self.max_cost is None else number(self.max_cost),
            "method": METHOD,
            "notes": list(self.notes),
        }


def _usd(costs: tuple[Decimal, Decimal, Decimal] | None) -> dict[str, float] | None:
    return None if costs is None else dict(zip(Range._fields, map(number, costs), strict=True))


Progress = Callable[[int, int], None]  # called with the prompts done and their number


def estimate(
    config: GenerateConfig, *, limit: int | None = None, fresh: bool = False, progress: Progress | None = None
) -> Estimate:
    """What running ``config`` would send from here on. Needs no key, loads no model, sends nothing, writes nothing.

    ``limit`` and ``fresh`` as for `generate`; raises InputError where that would.
    """
    constitution = load_constitution(config.constitution)
    samples = config.policy.completions
    found = check_prompts(str(samples or config.prompts), samples=samples is not None)
    check_run(config.out, config, fresh=fresh)
    if config.reward is not None:
        asyncio.run(open_run_reward(config.reward).aclose())  # unknown names and wrong options are told now
    with ExitStack() as stack:
        path = config.out / LEDGER
        ledger = stack.enter_context(Ledger.open(path, read_only=True)) if path.exists() and not fresh else None
        prompts = min(found.prompts, limit or found.prompts)
        run = _Dry(config, constitution, ledger, prompts)
        return asyncio.run(run.main(progress))


def estimate_beside(
    config: GenerateConfig, ledger: Ledger, *, limit: int | None = None, progress: Progress | None = None
) -> Estimate:
    """As `estimate`, of what `rlaif.generation.generate_beside` would send."""
    constitution = load_constitution(config.constitution)
    samples = config.policy.completions
    found = check_prompts(str(samples or config.prompts), samples=samples is not None)
    run = _Dry(config, constitution, ledger, min(found.prompts, limit or found.prompts), sampled=True)
    return asyncio.run(run.main(progress))


class _Dry:
    # Above so many comparisons one stands for all of a prompt's: they differ only in the principle drawn.
    EVERY = 5000

    def __init__(
        self,
        config: GenerateConfig,
        constitution: Constitution,
        ledger: Ledger | None,
        prompts: int,
        sampled: bool = False,
    ) -> None:
        self.config, self.constitution, self.ledger, self.prompts = config, constitution, ledger, prompts
        self.notes: list[str] = []
        self.budget = Budget(None, ledger)
        self.policy: DryClient | None = None
        self.judges: list[Judge] = []
        self.stats = JudgingStats(config.judge, config.seed)
        self.clients: list[DryClient] = []
        if config.policy.model is not None:
            sampling = RecordedClient if sampled else DryClient
            self.policy = self._open(config.policy.model, "sample", lambda request: "sample", sampling)
        self.reviser: Reviser | None = None
        if config.revision is not None and (model := config.revision.model or config.policy.model):
            client = self._open(model, "revise", lambda request: "sample")
            self.reviser = Reviser(client, config.revision, constitution)

    def _open(
        self, model: ModelConfig, stage: str, kind: Callable[[ChatRequest], Kind], of: type[DryClient] = DryClient
    ) -> DryClient:
        tally = Tally(stage, model, stored_identity(model, self.ledger, stage))
        client = of(tally, self.ledger, kind, known_capabilities(model))
        self.budget.wrap(client, model, stage)  # for what earlier sessions spent
        self.clients.append(client)
        return client

    async def main(self, progress: Progress | None) -> Estimate:
        measured = await self._measure_judges()
        for i, model in enumerate(self.config.judge.models):
            client = self._open(model, "judge", self._kind_of_question)
            labels = measured[i] if measured else await self._labels(client)
            self.judges.append(make_judge(client, self.config.judge, labels))
        for number_, (prompt, texts) in enumerate(self._work(), 1):
            await self._one_prompt(prompt, texts)
            if progress:
                progress(number_, self.prompts)
        return self._estimate()

    async def _measure_judges(self) -> list[How]:
        """Count what measuring the judges on the labelled pairs sends. Where each one's verdicts are read from; empty
        where nothing is measured."""
        judge = self.config.judge
        pairs = read_gold(judge.gold) if judge.gold is not None else []
        if judge.min_kappa is not None and len(pairs) < _FEW_LABELLED:
            self.notes.append(
                f"{judge.gold}: {len(pairs)} labelled pairs are few; min_kappa decides by the value measured on them,"
                " whose interval will be wide."
            )
        found: list[How] = []
        for model in judge.models if pairs else ():
            client = self._open(model, "gold", self._kind_of_question)
            found.append(await self._labels(client))
            alone = make_judge(client, judge.model_copy(update={"models": [model], "panel": "mean"}), found[-1])
            for pair in pairs:
                await judge_comparisons([pair.comparison], pair.asked(self.constitution), [alone], self.config.seed)
        return found

    async def _labels(self, client: DryClient) -> How:
        labels = await resolve_labels(client, self.config.judge)
        if client.tally.pending:  # only a request can tell, and it was not sent yet
            self.notes.append(
                f"{client.tally.model.model}: whether it gives log-probs is asked when the run begins; counted as if it"
                " did not (say `logprobs: true` or `false` for the model to settle it)."
            )
        return labels

    def _kind_of_question(self, request: ChatRequest) -> Kind:
        if request.continuation is not None or (request.top_logprobs is not None and request.max_tokens == 1):
            return "probabilities"
        return "reasons" if request.json_schema is not None or self.config.judge.rationale else "label"

    def _work(self) -> Iterator[tuple[Prompt, tuple[str, ...] | None]]:
        policy = self.config.policy
        if policy.completions is not None:
            source: Iterator[tuple[Prompt, tuple[str, ...] | None]] = iter(read_samples(str(policy.completions)))
        else:
            source = ((with_system(p, policy.system), None) for p in read_prompts(str(self.config.prompts)))
        for number_, item in enumerate(source):
            if number_ >= self.prompts:
                return
            yield item

    async def _one_prompt(self, prompt: Prompt, texts: tuple[str, ...] | None) -> None:
        judge = self.config.judge
        if texts is not None:
            completions, _ = given(prompt, texts, "file")
        else:
            completions = await self._sample(prompt)
        usable = [c for c in completions if is_usable(c)]
        comparisons, _ = plan_comparisons(prompt, usable, disjoint=judge.comparisons == "disjoint")
        if self.reviser is not None:
            revised = await self.reviser.revise_all(prompt, usable, self.config.seed)
            finals = [(r.draft, r.final) for r in revised if r.final]
            comparisons, _ = with_revisions(prompt, (comparisons, []), finals)
        asked: Sequence[Comparison] = comparisons
        weight = 1.0
        unwritten = texts is None and all(_is_placeholder(c) for c in completions)
        if comparisons and unwritten and self.prompts * len(comparisons) * len(self.judges) > self.EVERY:
            # Nothing of it can be in the ledger, and all have the same length: one is rendered for all.
            asked, weight = self._one_for_all(comparisons)
        for dry in self.clients:
            dry.weight = weight
            dry.asked.clear()
        await self._judge(asked, weight)
        for dry in self.clients:
            dry.weight = 1.0

    async def _judge(self, comparisons: Sequence[Comparison], weight: float) -> None:
        """Ask about them. What depends on a verdict that nobody has given yet counts with the share of them expected:
        a second order with `orders: auto`, a stronger judge with `panel: escalate`."""
        judge, seed = self.config.judge, self.config.seed
        if judge.panel == "escalate":
            for group in [[c] for c in comparisons] if judge.shows_pairs else [comparisons]:
                before = self.clients[-len(self.judges)].tally.pending
                await judge_comparisons(group, self.constitution, self.judges[:1], seed)
                unknown = self.clients[-len(self.judges)].tally.pending > before
                for i, dry in enumerate(self.clients[-len(self.judges) :]):
                    dry.weight = weight * (ESCALATED**i if unknown else 1) * self._looks(i)
                await judge_comparisons(group, self.constitution, self.judges, seed)
            return
        for i, dry in enumerate(self.clients[-len(self.judges) :]):
            dry.weight = weight * self._looks(i)
        found = await judge_comparisons(comparisons, self.constitution, self.judges, seed)
        self.stats.add([j for j in found if isinstance(j.outcome, Verdict)])

    def _looks(self, judge: int) -> float:
        """What each request of judge number ``judge`` stands for: of a second order only the first tells."""
        return self._looks_with("auto", judge) if self.config.judge.orders == "auto" else 1.0

    def _looks_with(self, orders: str, judge: int) -> float:
        """Orders in which a pair is shown, on average."""
        config = self.config.judge
        if orders != "auto" or self.judges[judge].labels != "logprob":
            return 1.0 if orders == "one" else 2.0
        seen = self.stats.orders
        if seen.questions >= _ENOUGH and seen.share_twice is not None:
            return 1 + seen.share_twice
        return 1 + config.audit + (1 - config.audit) * UNSURE

    def _one_for_all(self, comparisons: Sequence[Comparison]) -> tuple[Sequence[Comparison], float]:
        """The comparisons to render, and how many each of their requests stands for."""
        if self.config.judge.shows_pairs:
            return comparisons[:1], float(len(comparisons))
        if self.config.judge.pointwise:  # one comparison asks about two completions
            return comparisons[:1], len({i for c in comparisons for i in (c.a.id, c.b.id)}) / 2
        return comparisons, 1.0

    async def _sample(self, prompt: Prompt) -> list[Completion]:
        assert self.policy is not None
        config = self.config.policy
        if self.ledger is not None:
            return (await sample(prompt, self.policy, config, self.config.seed))[0]
        # All samples of a prompt are asked for with the same text.
        self.policy.weight = float(config.n)
        (one,), _ = await sample(prompt, self.policy, config.model_copy(update={"n": 1}), self.config.seed)
        self.policy.weight = 1.0
        return [
            one.model_copy(update={"id": f"{one.id}-{i}", "index": i, "text": one.text + str(i)})
            for i in range(config.n)
        ]

    # ------------------------------------------------------------------------------------------------- adding up

    def _estimate(self) -> Estimate:
        lengths = self._lengths()
        stages = tuple(stage_estimate(client.tally, lengths) for client in self.clients)
        unknown = [c.tally.model for c, s in zip(self.clients, stages, strict=True) if s.price is None]
        for model in {m.model: m for m in unknown}.values():
            self.notes.append(
                f"{model.model}{f' at {model.base_url}' if model.base_url else ''}: its price is not known; write it"
                f" into the config: {how_to_price(model)}. With --max-cost this run is refused until then."
            )
        if self.config.reward is not None:
            self.notes.append(
                "The judge is counted for every comparison; it is asked only about those whose rewards are equal."
            )
        return Estimate(
            self.prompts, stages, self.budget.spent, self.config.max_cost, tuple(self.notes), self._orders(stages)
        )

    def _orders(self, stages: Sequence[StageEstimate]) -> dict[str, dict[str, Any]] | None:
        """Calls and expected USD of judging with each setting of `judge.orders`; None where pairs are not shown, or
        where replies are there already (they are of one setting only)."""
        judges = stages[-len(self.judges) :]
        if not self.config.judge.shows_pairs or any(s.answered for s in judges):
            return None
        found = {}
        for orders in ("one", "auto", "both"):
            shares = [
                self._looks_with(orders, i) / self._looks_with(self.config.judge.orders, i) for i in range(len(judges))
            ]
            usd = [s.online and s.online[1] * Decimal(share) for s, share in zip(judges, shares, strict=True)]
            found[orders] = {
                "calls": round(sum(s.calls * share for s, share in zip(judges, shares, strict=True))),
                "usd": None if None in usd else number(total(u for u in usd if u is not None)),
            }
        return found

    def _lengths(self) -> dict[Kind, Range]:
        """Tokens of the texts that placeholders stand for."""
        policy = self.policy.tally.seen.get("sample") if self.policy else None
        reasons = [c.tally.seen["reasons"] for c in self.clients if "reasons" in c.tally.seen]
        return {
            "sample": (policy or _Seen()).shown("sample", self.config.policy.max_tokens),
            "reasons": (reasons[0] if reasons else _Seen()).shown("reasons", self.config.judge.max_tokens),
        }


def stage_estimate(tally: Tally, lengths: Mapping[Kind, Range]) -> StageEstimate:
    """What the requests of ``tally`` come to. ``lengths``: tokens of the texts that placeholders stand for."""
    ratio = tokenizer_range(tally.model)
    if tally.answered >= _ENOUGH and tally.answered_text and tally.answered_input:
        found = tally.answered_input / tally.answered_text
        ratio = Range(0.95 * found, found, 1.05 * found)
    tokens_in = Range(*(tally.text * r for r in ratio))
    for kind, count in tally.slots.items():
        tokens_in += lengths[kind].times(count)
    tokens_out = Range(0, 0, 0)
    for kind, count in tally.kinds.items():
        seen = tally.seen.get(kind, _Seen())
        tokens_out += seen.length(kind, tally.limits[kind] / count).times(count)
    price = price_of(tally.model)
    calls = round(tally.pending)
    return StageEstimate(
        tally.stage,
        str(tally.identity),
        calls + tally.answered,
        tally.answered,
        tokens_in,
        tokens_out,
        price,
        _costs(price, tokens_in, tokens_out, calls, batch=False),
        _costs(price, tokens_in, tokens_out, calls, batch=True),
    )


def _is_placeholder(completion: Completion) -> bool:
    return completion.text.startswith(_PLACEHOLDER["sample"])


def _costs(
    price: Price | None, tokens_in: Range, tokens_out: Range, calls: int, *, batch: bool
) -> tuple[Decimal, Decimal, Decimal] | None:
    if price is None:
        return None
    low, expected, high = (
        price.cost(
            Usage(input_tokens=round(i), output_tokens=round(o)),
            batch=batch,
            input_of_one=round(i / calls) if calls else 0,
        )
        for i, o in zip(tokens_in, tokens_out, strict=True)
    )
    return low, expected, high
