"""Pairs that people labelled: what a judge is measured against.

A row has a prompt (as in a file of prompts) and either ``chosen`` and ``rejected``, or ``a``, ``b`` and ``label`` ("a",
"b" or "tie"), or ``a``, ``b`` and ``labels``, one for each annotator. ``id`` is kept. ``model_a`` and ``model_b``, or
``model_chosen`` and ``model_rejected``, name who wrote the responses. ``principles``: ids of those that the label is
about (as in pairs.jsonl, and in votes that were exported); the judge is then asked about them, where the constitution
has them. Responses are texts, or lists of one assistant message as in pairs.jsonl.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rlaif.errors import InputError
from rlaif.hashing import digest, uniform
from rlaif.judging.agreement import Label
from rlaif.judging.verdicts import LABELS
from rlaif.prompts import read_rows
from rlaif.sampling import given
from rlaif.types import Comparison, Constitution

COLUMNS = "'chosen' and 'rejected', or 'a', 'b' and 'label' (or 'labels')"


@dataclass(frozen=True, slots=True)
class GoldPair:
    """A labelled pair. ``labels``: each annotator's, empty where only one label was given. ``models``: who wrote a and
    b, where the data says so. ``principles``: ids of those that the label is about; empty where that is not said."""

    id: str
    comparison: Comparison
    label: Label
    labels: tuple[Label, ...] = ()
    models: tuple[str | None, str | None] = (None, None)
    principles: tuple[str, ...] = ()

    def asked(self, constitution: Constitution) -> Constitution:
        """``constitution`` with the principles that the label is about; whole where it has none of them."""
        about = tuple(p for p in constitution.principles if p.id in self.principles)
        return constitution.model_copy(update={"principles": about}) if about else constitution


def read_gold(source: str) -> list[GoldPair]:
    """The pairs of a file, in its order.

    Which of ``chosen`` and ``rejected`` becomes a is drawn by a hash of the pair: were it always the same, a label
    would be no information. Raises InputError with file and line for a row that is no labelled pair, an id given twice,
    or a file without rows.
    """
    pairs = list(_pairs(source))
    if not pairs:
        raise InputError(f"{source}: no labelled pairs in it; a row has a prompt and {COLUMNS}.")
    return pairs


def data_digest(pairs: Sequence[GoldPair]) -> str:
    """A hash of what is judged and of the labels."""
    return digest([[p.id, p.comparison.prompt.id, p.comparison.a.id, p.comparison.b.id, p.label] for p in pairs])


def plurality(labels: Sequence[Label]) -> Label:
    """What most annotators say: the label that more of them gave than any other; a tie where there is none."""
    ranked = Counter(labels).most_common(2)
    return "tie" if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _pairs(source: str) -> Iterator[GoldPair]:
    seen: dict[str, str] = {}
    for number, (where, prompt) in enumerate(read_rows(source)):
        row = prompt.metadata
        id_ = str(row["id"]) if isinstance(row.get("id"), str | int) else str(number)
        if id_ in seen:
            raise InputError(f"{where}: the id {id_!r} was there before ({seen[id_]}); an id names one pair.")
        seen[id_] = where
        a, b, label, labels, models = _labelled(where, row, prompt.id)
        bare = prompt.model_copy(update={"metadata": {k: v for k, v in row.items() if k not in _OURS}})
        (first, second), _ = given(bare, (a, b), "data")
        comparison = Comparison(prompt=bare, a=first, b=second)
        yield GoldPair(id_, comparison, label, labels, models, _principles(row.get("principles")))


_OURS = {"id", "a", "b", "label", "labels", "chosen", "rejected", "principles"}
_Labelled = tuple[str, str, Label, tuple[Label, ...], tuple[str | None, str | None]]


def _labelled(where: str, row: Mapping[str, Any], prompt_id: str) -> _Labelled:
    if "chosen" in row and "rejected" in row:
        chosen, rejected = (_text(where, name, row[name]) for name in ("chosen", "rejected"))
        models = (_name(row.get("model_chosen")), _name(row.get("model_rejected")))
        # Drawn from the two texts, whichever is chosen: the place says nothing about the label.
        first = sorted((chosen, rejected))[uniform("gold", prompt_id, *sorted((chosen, rejected))) < 0.5]
        if first == chosen:
            return chosen, rejected, "a", (), models
        return rejected, chosen, "b", (), models[::-1]
    if "a" not in row or "b" not in row or ("label" not in row and "labels" not in row):
        found = ", ".join(row) or "none"
        raise InputError(f"{where}: a labelled pair needs {COLUMNS}; columns found beside the prompt: {found}.")
    a, b = (_text(where, name, row[name]) for name in ("a", "b"))
    labels = _labels(where, row["labels"]) if row.get("labels") is not None else ()
    label = plurality(labels) if row.get("label") is None and labels else _label(where, "label", row.get("label"))
    return a, b, label, labels, (_name(row.get("model_a")), _name(row.get("model_b")))


def _text(where: str, name: str, value: Any) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' must be a text, or a list of one assistant message.")
    return value


def _labels(where: str, value: Any) -> tuple[Label, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: 'labels' must be a list of labels, one for each annotator.")
    return tuple(_label(where, "labels", label) for label in value)


def _label(where: str, name: str, value: Any) -> Label:
    if not isinstance(value, str) or value not in LABELS:
        raise InputError(f"{where}: '{name}' must be one of {', '.join(LABELS)} (found {value!r}).")
    return cast(Label, value)


def _principles(value: Any) -> tuple[str, ...]:
    return tuple(id_ for id_ in value if isinstance(id_, str)) if isinstance(value, list) else ()


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
