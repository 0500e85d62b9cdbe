"""Votes as labelled pairs, for `rlaif judge check --data` and `judge.gold`."""

from pathlib import Path
from typing import Any

from rlaif.dataset import json_line
from rlaif.engine.ledger import Ledger
from rlaif.engine.store import load
from rlaif.engine.votes import Texts, VoteBook, read_votes
from rlaif.errors import InputError
from rlaif.runs import LEDGER, on_disk, write_text

_LABEL = {"first": "a", "second": "b", "tie": "tie", "both_bad": "tie"}


def export_votes(run: Path, to: Path) -> int:
    """Write every comparison of ``run`` with a blind vote to the file ``to``, and how many those are.

    A row has ``id``, ``prompt`` (messages), ``a``, ``b`` and ``labels``, one for each reviewer who voted blind, by
    name; which text is a follows from a hash, whoever chose it. ``both_bad``: how many of the ties are that.
    ``principles``: those whose question was put. Then who wrote the texts, and the metadata of the prompt. Raises
    InputError where ``run`` has no ledger or no such vote.
    """
    if not (run / LEDGER).is_file():
        raise InputError(f"{run}: is no run folder (there is no {LEDGER} in it); give one that was reviewed.")
    with Ledger.open(run / LEDGER, read_only=True) as ledger:
        book = read_votes(ledger)
        rows = [row for subject in book.subjects if (row := _row(ledger, book, subject)) is not None]
    if not rows:
        raise InputError(f"{run}: nobody has voted blind there yet; vote with `rlaif review {run}`, then export.")
    with on_disk(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, "".join(map(json_line, rows)))
    return len(rows)


def _row(ledger: Ledger, book: VoteBook, subject: str) -> dict[str, Any] | None:
    votes = [vote for vote in book.votes(subject) if vote.blind]
    if not votes:
        return None
    ((body,),) = ledger.read("SELECT body FROM voted WHERE subject = ?", subject)
    texts = load(Texts, body)
    both_bad = sum(vote.action == "both_bad" for vote in votes)
    return {
        **texts.metadata,  # principles that apply to some prompts only go by it
        "id": subject,
        "prompt": [m.model_dump() for m in texts.messages],
        "a": texts.first,
        "b": texts.second,
        "labels": [_LABEL[vote.action] for vote in votes],
        **({"both_bad": both_bad} if both_bad else {}),
        **({"principles": list(texts.principles)} if texts.principles else {}),
        "model_a": texts.models[0],
        "model_b": texts.models[1],
    }
