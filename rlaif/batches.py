"""The batches of a run folder, from outside the run: what there are, how far they are, and how to be rid of them."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from rlaif.clients import open_batch_transport
from rlaif.clients.base import Identity
from rlaif.clients.batch import BatchState, BatchTransport
from rlaif.config.base import read_yaml, validate
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import BatchConfig, ModelConfig
from rlaif.engine.batch_table import BatchRecord, BatchTable
from rlaif.engine.ledger import Ledger
from rlaif.errors import InputError, RlaifError
from rlaif.runs import CONFIG, LEDGER
from rlaif.types import Row


class BatchInfo(Row):
    """One batch of a run. ``id``: the provider's (empty: not submitted, or never confirmed); ``status``: the provider's
    word for it, or what became of it here; ``age_seconds`` since it was submitted; ``open``: its results are not all in
    the ledger; ``problem``: why its state could not be asked for."""

    id: str
    model: str
    status: str
    requests: int
    succeeded: int
    errored: int
    expired: int
    cancelled: int
    age_seconds: float
    open: bool
    problem: str = ""


def run_config(run: Path) -> GenerateConfig:
    """The config of a run folder, to go on with it there. Raises InputError."""
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: is no run folder (it holds no {CONFIG}).")
    return validate(GenerateConfig, read_yaml(run / CONFIG)).model_copy(update={"out": run})


def finishing_online(config: GenerateConfig) -> GenerateConfig:
    """The same run, with what its batches have not answered asked online from now on."""

    def online(model: ModelConfig) -> ModelConfig:
        if model.transport != "batch":
            return model
        return model.model_copy(
            update={"batch": (model.batch or BatchConfig()).model_copy(update={"finish_online_after": 0.0})}
        )

    policy = config.policy
    if policy.model is not None:
        policy = policy.model_copy(update={"model": online(policy.model)})
    judge = config.judge.model_copy(update={"models": [online(model) for model in config.judge.models]})
    return config.model_copy(update={"policy": policy, "judge": judge})


def list_batches(run: Path, *, ask: bool = True) -> list[BatchInfo]:
    """All batches of the run, oldest first. ``ask`` the provider how far the open ones are; what cannot be asked is
    told as last heard. Works beside a running process."""
    with Ledger.open(run / LEDGER, read_only=True) as ledger:
        records = BatchTable(ledger).records()
    open_records = [record for record in records if record.is_open and record.name]
    states = asyncio.run(_ask(run, open_records)) if ask and open_records else {}
    return [_info(record, states.get(record.row)) for record in records]


def cancel_batches(run: Path, id: str | None = None) -> list[BatchInfo]:
    """Ask the provider to cancel the open batches, or the one named. What they have answered is kept by the next run,
    and paid for. Raises InputError when there is no such batch, and what the provider's refusal means."""
    with Ledger.open(run / LEDGER, read_only=True) as ledger:
        records = [record for record in BatchTable(ledger).records() if record.is_open]
    if id is not None:
        records = [_named(run, records, id)]
    states = asyncio.run(_cancel(run, records))
    return [_info(record, states.get(record.row)) for record in records]


def forget_batch(run: Path, id: str) -> None:
    """Take a batch whose results can never be had off the books: its requests may be sent, and paid for, again. Raises
    InputError when there is no such open batch, or a run is under way."""
    with Ledger.open(run / LEDGER) as ledger:
        table = BatchTable(ledger)
        record = _named(run, [record for record in table.records() if record.is_open], id)
        asyncio.run(table.end(record.row, "forgotten"))


def under_way(run: Path) -> tuple[int, int]:
    """(how many batches of the run are not over, how many requests they have), without asking anybody."""
    if not (run / LEDGER).is_file():
        return 0, 0
    with Ledger.open(run / LEDGER, read_only=True) as ledger:
        records = [record for record in BatchTable(ledger).records() if record.is_open]
    return len(records), sum(record.requests for record in records)


def _named(run: Path, records: Iterable[BatchRecord], id: str) -> BatchRecord:
    for record in records:
        if record.name == id:
            return record
    raise InputError(f"{run}: has no open batch {id!r}; see `rlaif batch ls {run}`.")


def _info(record: BatchRecord, asked: BatchState | RlaifError | None) -> BatchInfo:
    state = asked if isinstance(asked, BatchState) else record.state
    said = state.said if state else "submitting"
    return BatchInfo(
        id=record.name or "",
        model=str(record.identity),
        status=said if record.is_open or record.status == "ended" else record.status,
        requests=record.requests,
        succeeded=state.succeeded if state else 0,
        errored=state.errored if state else 0,
        expired=state.expired if state else 0,
        cancelled=state.cancelled_requests if state else 0,
        age_seconds=round(time.time() - record.created, 1),
        open=record.is_open,
        problem=str(asked) if isinstance(asked, RlaifError) else "",
    )


# ------------------------------------------------------------------------------------------------ at the provider


class _Providers:
    """The transports of a run's models, opened when they are needed."""

    def __init__(self, run: Path) -> None:
        config = run_config(run)
        self._run = run
        self._models = [*([config.policy.model] if config.policy.model else []), *config.judge.models]
        self._opened: list[BatchTransport] = []

    def of(self, identity: Identity) -> BatchTransport:
        for transport in self._opened:
            if transport.identity == identity:
                return transport
        for model in self._models:
            if (model.backend, model.name) == (identity.backend, identity.model):
                transport = open_batch_transport(model)
                self._opened.append(transport)
                if transport.identity == identity:
                    return transport
        raise InputError(f"{self._run / CONFIG}: names no model {identity} at {identity.base_url or 'its own URL'}.")

    async def aclose(self) -> None:
        for transport in self._opened:
            await transport.aclose()


async def _ask(run: Path, records: list[BatchRecord]) -> dict[int, BatchState | RlaifError]:
    providers = _Providers(run)

    async def one(record: BatchRecord) -> BatchState | RlaifError:
        try:
            return await providers.of(record.identity).state(str(record.name))
        except RlaifError as error:  # told beside the batch
            return error

    try:
        states = await asyncio.gather(*map(one, records))
    finally:
        await providers.aclose()
    return {record.row: state for record, state in zip(records, states, strict=True)}


async def _cancel(run: Path, records: list[BatchRecord]) -> dict[int, BatchState | RlaifError]:
    providers = _Providers(run)
    found: dict[int, BatchState | RlaifError] = {}
    try:
        for record in records:
            transport = providers.of(record.identity)
            name = record.name or await _traced(transport, record)
            if name:
                state = await transport.state(name)
                found[record.row] = state if state.status in ("ended", "failed") else await transport.cancel(name)
            else:
                found[record.row] = InputError(
                    "whether it was submitted is not known yet; `rlaif batch resume` finds out"
                )
    finally:
        await providers.aclose()
    return found


async def _traced(transport: BatchTransport, record: BatchRecord) -> str | None:
    """The name of a batch whose submission was never confirmed, where its marker tells."""
    if not transport.traceable:
        return None
    found = await transport.find(record.marker, record.since, record.requests)
    return found[0].id if found else None
