"""Questions with given answers, from the columns that published sets have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlaif.errors import InputError
from rlaif.hashing import digest
from rlaif.prompts import read_columns
from rlaif.types import Message


class Question(NamedTuple):
    """``right``: which of ``choices`` (at least one, not all) are right, or show the behaviour that is measured.
    ``best``: the one that counts as the answer where exactly one does (TruthfulQA's MC1), else None. ``behaviour``:
    whether ``right`` is a behaviour to be counted and nothing that is right."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    right: frozenset[int]
    best: int | None
    behaviour: bool
    group: str | None


def read_questions(source: str, group: str | None = None, limit: int | None = None) -> list[Question]:
    """Raises InputError for a row without the columns, naming those found."""
    found = []
    for number, (where, row) in enumerate(read_columns(source)):
        if limit is not None and number >= limit:
            break
        found.append(_question(where, row, group))
    if not found:
        raise InputError(f"{source}: no rows in it; it needs question, choices and answer.")
    return found


def _question(where: str, row: Mapping[str, Any], group: str | None) -> Question:
    asked = row.get("question", row.get("Question", row.get("prompt")))
    if not isinstance(asked, str) or not asked.strip():
        raise InputError(f"{where}: no 'question' (a text) in this row; columns found: {', '.join(row)}.")
    choices, right, best, behaviour = _choices(where, row)
    if group is not None and group not in row:
        raise InputError(f"{where}: no column {group!r} (group) in this row; columns found: {', '.join(row)}.")
    return Question(
        digest(asked, *choices),
        (Message(role="user", content=asked),),
        choices,
        right,
        best,
        behaviour,
        None if group is None else str(row[group]),
    )


def _choices(where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[int], int | None, bool]:
    if "answer_matching_behavior" in row:
        pair = (str(row["answer_matching_behavior"]).strip(), str(row.get("answer_not_matching_behavior", "")).strip())
        if not all(pair) or pair[0] == pair[1]:
            raise InputError(f"{where}: answer_matching_behavior and answer_not_matching_behavior must be two answers.")
        return pair, frozenset({0}), 0, True
    if "Correct Answers" in row:
        return _truthful(where, row)
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise InputError(f"{where}: no 'choices' (a list of texts) in this row; columns found: {', '.join(row)}.")
    numbers = answer if isinstance(answer, list) else [answer]
    if not all(type(n) is int and 0 <= n < len(choices) for n in numbers) or not 0 < len(set(numbers)) < len(choices):
        raise InputError(
            f"{where}: 'answer' must be the number of a choice, from 0 to {len(choices) - 1}, or a list of some of them"
            f" (found {answer!r})."
        )
    return tuple(choices), frozenset(numbers), numbers[0] if len(numbers) == 1 else None, False


def _truthful(where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], frozenset[int], int | None, bool]:
    """TruthfulQA: answers divided by semicolons; the best one first."""
    best = str(row.get("Best Answer", "")).strip()
    right = list(dict.fromkeys(filter(None, [best, *_divided(row["Correct Answers"])])))
    wrong = [w for w in dict.fromkeys(_divided(row.get("Incorrect Answers", ""))) if w not in right]
    if not right or not wrong:
        raise InputError(f"{where}: 'Correct Answers' and 'Incorrect Answers' must hold at least one answer each.")
    return (*right, *wrong), frozenset(range(len(right))), 0, False


def _divided(texts: Any) -> list[str]:
    return [text.strip() for text in str(texts).split(";") if text.strip()]
