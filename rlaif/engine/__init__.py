"""What stands between a stage and a model. Each wrapper is itself a Client; they are stacked here and nowhere else."""

from rlaif.clients import open_transport
from rlaif.clients.base import Client
from rlaif.config.models import ModelConfig
from rlaif.engine.ledger import Ledger, LedgerStats

__all__ = ["Ledger", "LedgerStats", "open_client"]


def open_client(model: ModelConfig, ledger: Ledger | None = None, stage: str = "") -> Client:
    """The model as a Client that stores what it is answered in ``ledger`` under ``stage``.

    Without a ledger nothing is stored and every request is sent. Raises InputError before anything is sent (no key, no
    such model, extra not installed).
    """
    client = open_transport(model)
    if ledger is not None:
        client = ledger.wrap(client, stage)
    return client
