"""What learning would send and cost, without sending or writing anything.

The run's own code asks, and a client that counts answers it: from the ledger where the reply is there. What is not
proposed yet is counted as ``candidates`` questions of middling length, and what is not chosen yet as ``keep.most``
principles: the most that may come.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlaif.config.models import ModelConfig
from rlaif.engine import Ledger
from rlaif.engine.prices import how_to_price
from rlaif.engine.stored import known_capabilities, stored_identity
from rlaif.estimate import DryClient, Estimate, Kind, Range, Tally, stage_estimate
from rlaif.judges import Judge, make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.learning.learn import NONE, LearnConfig, Learning, prepared
from rlaif.learning.propose import Wording, merge
from rlaif.runs import LEDGER, check_run
from rlaif.types import ChatRequest, Principle

_MIDDLING = "Which response " + "says in plain words " * 4 + "what matters?"


def estimate(config: LearnConfig, *, limit: int | None = None, fresh: bool = False) -> Estimate:
    """What `learn` would send from here on. Raises InputError where that would."""
    labelled, parts = prepared(config, limit)
    check_run(config.folder, config, fresh=fresh)
    with ExitStack() as stack:
        path = config.folder / LEDGER
        ledger = stack.enter_context(Ledger.open(path, read_only=True)) if path.exists() and not fresh else None
        run = _Dry(config, labelled, parts, ledger)
        return asyncio.run(run.estimate())


@dataclass
class _Dry(Learning):
    ledger: Any = None
    clients: list[DryClient] = field(default_factory=list)

    async def estimate(self) -> Estimate:
        config, notes = self.config, []
        proposals = await self._propose(self._dry(config.model, "propose")) if config.proposals else []
        unwritten = bool(self.clients) and self.clients[0].tally.pending > 0
        client = self._dry(config.judge.models[0], "judge")
        labels = await resolve_labels(client, config.judge)
        if client.tally.pending:
            notes.append(
                f"{client.tally.model.model}: whether it gives log-probs is asked first; counted as if it did not."
            )
        judge = make_judge(client, config.judge, labels)
        await self._count(judge, client, merge(proposals)[: config.candidates], unwritten)
        stages = tuple(stage_estimate(c.tally, _LENGTHS) for c in self.clients)
        for c, stage in zip(self.clients, stages, strict=True):
            if stage.price is None:
                cure = how_to_price(c.tally.model)
                notes.append(f"{c.tally.model.model}: its price is not known; write it into the config: {cure}.")
        if unwritten:
            notes.append(f"Counted are {config.candidates} proposed principles to test; fewer cost less.")
        return Estimate(len(self.labelled.pairs), stages, self.budget.spent, config.max_cost, tuple(notes))

    async def _count(self, judge: Judge, client: DryClient, wordings: Sequence[Wording], unwritten: bool) -> None:
        """The tests of candidates on one part, and of what may be kept on the other."""
        config = self.config
        asked = [c.principle for c in self._candidates(wordings) if c.principle.check is None]
        missing = config.candidates - len(wordings) if unwritten else 0
        before = client.tally.pending
        await self._votes(judge, asked, self.parts.choosing, "tests")
        if client.tally.pending == before and not missing:  # all is answered, so what is kept is known
            await self._test(judge, wordings)
            return
        with _weighing(client, missing):
            await self._votes(judge, [_unwritten()], self.parts.choosing, "tests")
        with _weighing(client, min(config.keep.most, len(asked) + missing)):
            await self._votes(judge, [_unwritten()], self.parts.held_out, "held-out tests")
        await self._votes(judge, [NONE], self.parts.held_out, "held-out tests")

    def _dry(self, model: ModelConfig, stage: str) -> DryClient:
        def kind(request: ChatRequest) -> Kind:
            if request.top_logprobs is not None:
                return "probabilities"
            written = stage == "propose" or self.config.judge.rationale or request.json_schema is not None
            return "reasons" if written else "label"

        client = DryClient(
            Tally(stage, model, stored_identity(model, self.ledger, stage)),
            self.ledger,
            kind,
            known_capabilities(model),
        )
        self.budget.wrap(client, model, stage)  # for what earlier sessions spent
        self.clients.append(client)
        return client


_LENGTHS: dict[Kind, Range] = {"reasons": Range(40, 120, 512), "sample": Range(100, 400, 1024)}


def _unwritten() -> Principle:
    return Principle(id="unwritten", compare=_MIDDLING)


@contextmanager
def _weighing(client: DryClient, weight: float) -> Iterator[None]:
    """Each request counted inside stands for so many like it."""
    client.weight = float(weight)
    try:
        yield
    finally:
        client.weight = 1.0
