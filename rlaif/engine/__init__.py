"""What stands between a stage and a model. Each wrapper is itself a Client; they are stacked here and nowhere else."""

from weakref import WeakValueDictionary

from rlaif.clients import open_transport
from rlaif.clients.base import Client, Identity
from rlaif.config.models import ModelConfig
from rlaif.engine.budget import Budget
from rlaif.engine.downgrade import DowngradingClient
from rlaif.engine.ledger import Ledger, LedgerStats
from rlaif.engine.limits import LimitedClient, Limiter
from rlaif.engine.retry import FIRST_WAIT, RetryingClient
from rlaif.errors import InputError

__all__ = ["Budget", "Ledger", "LedgerStats", "open_client"]

# A provider's limit is for a model, whatever of this process uses it. A limiter goes with its last client.
_limiters: WeakValueDictionary[tuple[str, str | None, str], Limiter] = WeakValueDictionary()


def open_client(
    model: ModelConfig, ledger: Ledger | None = None, stage: str = "", budget: Budget | None = None
) -> Client:
    """The model as a Client that keeps to its provider's limits, asks again what may pass, leaves out what the model
    refuses, spends no more than ``budget`` has, and stores what it is answered in ``ledger`` under ``stage``.

    Without a ledger nothing is stored and every request is sent. Raises InputError before anything is sent (no key, no
    such model, extra not installed, a budget with a cap and a model without a price, batches without a ledger).
    """
    if model.transport == "batch":
        return _open_batch_client(model, ledger, stage, budget)
    transport = open_transport(model)
    limiter = _listening_limiter(model, transport)
    # From the wire upwards: every send passes the budget and the limiter, repeated or not; what is stored is what the
    # caller gets. The budget is next to the wire: what waits for the limiter has nothing reserved.
    client = transport if budget is None else budget.wrap(transport, model, stage)
    client = LimitedClient(client, limiter)
    client = DowngradingClient(client)
    client = RetryingClient(client, first_wait=FIRST_WAIT if _remote(model) else 0.0)
    if ledger is not None:
        client = ledger.wrap(client, stage)
    return client


def _open_batch_client(model: ModelConfig, ledger: Ledger | None, stage: str, budget: Budget | None) -> Client:
    if ledger is None:
        raise InputError(
            f"{model.model}: transport: batch needs a run folder to remember its batches in; ask it online."
        )
    from rlaif.engine.batch import Batches

    def online(transport: Client) -> Client:
        return RetryingClient(LimitedClient(transport, _listening_limiter(model, transport)), first_wait=FIRST_WAIT)

    # No limiter and no retries around batches: these hold many requests at once and repeat them by themselves.
    client: Client = Batches.of(ledger).client(model, online)
    if budget is not None:
        client = budget.wrap(client, model, stage)
    return ledger.wrap(DowngradingClient(client), stage)


def _listening_limiter(model: ModelConfig, transport: Client) -> Limiter:
    limiter = _limiter(model, transport.identity)
    if hasattr(transport, "on_headers"):
        transport.on_headers = limiter.on_headers
    return limiter


def _remote(model: ModelConfig) -> bool:
    return model.backend in ("openai", "anthropic")


def _limiter(model: ModelConfig, identity: Identity) -> Limiter:
    key = (identity.backend, identity.base_url, identity.model)
    limiter = _limiters.get(key)
    if limiter is None or not _remote(model):
        limiter = Limiter(rpm=model.rpm, tpm=model.tpm, max_concurrency=model.max_concurrency, adaptive=_remote(model))
        _limiters[key] = limiter
    else:
        limiter.tighten(model.rpm, model.tpm, model.max_concurrency)
    return limiter
