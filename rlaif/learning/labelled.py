"""Labelled pairs to learn from: in whatever format they are, and divided into parts once and for all.

Read are the formats of `rlaif.judging.gold` (a prompt with ``a``, ``b`` and ``label``) and of `rlaif.preferences`
(``chosen`` and ``rejected``; run folders and data set folders too). Texts in the form of Anthropic's HH data, "Human:"
and "Assistant:" in turns, become conversations.

Which part a pair belongs to is decided by a hash of its prompt, so that all pairs of a prompt are in one part, and a
pair that is added or dropped moves no other.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlaif.errors import InputError
from rlaif.hashing import digest, uniform
from rlaif.judging.gold import GoldPair, read_gold
from rlaif.preferences import Pair, Turn, read_pair, read_rows
from rlaif.sampling import given
from rlaif.types import Comparison, Message, Prompt

READ, CHOOSING = 0.15, 0.35  # shares of the prompts; the other half is held out
FEWEST = 10  # pairs to choose on, and pairs held out


@dataclass(frozen=True)
class Labelled:
    """``pairs``: each prefers one of two different texts. ``left_out``: the others, by reason."""

    source: str
    pairs: tuple[GoldPair, ...]
    left_out: Counter[str]


class Parts(NamedTuple):
    """``read``: shown to the model that proposes; ``choosing``: proposals are tested and chosen on these;
    ``held_out``: what is kept is measured on these, and they decide nothing."""

    read: tuple[GoldPair, ...]
    choosing: tuple[GoldPair, ...]
    held_out: tuple[GoldPair, ...]


def read_labelled(source: str, limit: int | None = None) -> Labelled:
    """The pairs of ``source`` (the first ``limit`` that can be used). Raises InputError as the readers do, and where no
    pair prefers anything."""
    path = Path(source).expanduser()
    if (path / "pairs.jsonl").is_file():
        path = path / "pairs.jsonl"
    left_out: Counter[str] = Counter()
    if source.startswith("hf:") or _is_gold(path):
        found: Iterator[GoldPair] = iter(read_gold(source if source.startswith("hf:") else str(path)))
    else:
        found = _preferences(path)
    pairs: dict[tuple[str, str, str], GoldPair] = {}
    for pair in found:
        if limit is not None and len(pairs) >= limit:
            break
        key = (pair.comparison.prompt.id, preferred(pair), other(pair))
        if reason := "repeated" if key in pairs else _useless(pair):
            left_out[reason] += 1
        else:
            pairs[key] = pair
    if not pairs:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items())) or "no rows"
        raise InputError(f"{source}: no pair in it prefers one of two texts ({why}); nothing to learn.")
    return Labelled(source, tuple(pairs.values()), left_out)


def parts(labelled: Labelled, seed: int) -> Parts:
    """The three parts. Raises InputError where one is too small to say anything."""
    found = Parts(*(tuple(p for p in labelled.pairs if _part(p, seed) == i) for i in range(3)))
    if not found.read or min(len(found.choosing), len(found.held_out)) < FEWEST:
        raise InputError(
            f"{labelled.source}: {len(labelled.pairs)} pairs are too few to learn from: {len(found.read)} to read,"
            f" {len(found.choosing)} to choose on and {len(found.held_out)} held out, at least 1, {FEWEST} and {FEWEST}"
            " are needed; give a hundred pairs or more, of different prompts."
        )
    return found


def preferred(pair: GoldPair) -> str:
    """The text that the label prefers."""
    return pair.comparison.a.text if pair.label == "a" else pair.comparison.b.text


def other(pair: GoldPair) -> str:
    """The text that the label does not prefer."""
    return pair.comparison.b.text if pair.label == "a" else pair.comparison.a.text


def _part(pair: GoldPair, seed: int) -> int:
    place = uniform("learn", seed, pair.comparison.prompt.id)
    return 0 if place < READ else 1 if place < READ + CHOOSING else 2


def _useless(pair: GoldPair) -> str | None:
    if pair.label == "tie":
        return "tie"
    a, b = pair.comparison.a.text, pair.comparison.b.text
    if a.strip() == b.strip():
        return "identical"
    if not (a.strip() and b.strip()):
        return "empty_answer"
    return None if any(m.content.strip() for m in pair.comparison.prompt.messages) else "no_prompt"


def _is_gold(path: Path) -> bool:
    """Whether the first row is one that `rlaif.judging.gold` reads and `rlaif.preferences` does not."""
    _, rows = read_rows(path)
    row = next((row for _, row in rows), None)
    if not isinstance(row, dict):
        return False
    if "chosen" not in row:
        return "a" in row and "b" in row
    return "prompt" not in row and any(column in row for column in ("messages", "question", "instruction"))


# ------------------------------------------------------------------------------------------------- from preferences

_TURN = re.compile(r"\n\n(Human|Assistant):")


def _preferences(path: Path) -> Iterator[GoldPair]:
    """Row by row: what is left out is known when a transcript has been cut into its turns."""
    name, rows = read_rows(path)
    for at, row in rows:
        if isinstance(row, InputError):
            raise row
        pair, (_, implicit) = read_pair(row, name, at)
        yield _gold(pair, implicit)


def _gold(pair: Pair, implicit: bool) -> GoldPair:
    conversation, chosen, rejected = _told(pair, implicit)
    id_ = "p-" + digest([m.model_dump() for m in conversation], None, None, None)
    prompt = Prompt(id=id_, messages=conversation)
    # Which of the two is a is drawn from the texts, as in gold: the place says nothing about the label.
    first, second = sorted((chosen, rejected))
    if uniform("gold", id_, first, second) < 0.5:
        first, second = second, first
    (a, b), _ = given(prompt, (first, second), "data")
    return GoldPair(pair.row, Comparison(prompt=prompt, a=a, b=b), "a" if first == chosen else "b")


def _told(pair: Pair, implicit: bool) -> tuple[tuple[Message, ...], str, str]:
    """The conversation, and the two answers."""
    if isinstance(pair.prompt, str):
        if implicit:  # where the texts begin to differ is no place to cut a conversation
            one, two = (_turns(pair.prompt + text) for text in (pair.chosen_text, pair.rejected_text))
            if one and two:
                shared = next((i for i, (x, y) in enumerate(zip(one[:-1], two[:-1], strict=False)) if x != y), None)
                cut = min(len(one), len(two)) - 1 if shared is None else shared
                return _messages(one[:cut]), _said(one[cut:]), _said(two[cut:])
        turns = _turns(pair.prompt) or [{"role": "user", "content": pair.prompt}]
        if turns[-1] == {"role": "assistant", "content": ""}:  # "Assistant:", to go on from
            turns = turns[:-1]
        return _messages(turns), pair.chosen_text, pair.rejected_text
    return _messages(pair.prompt), pair.chosen_text, pair.rejected_text


def _turns(text: str) -> list[Turn]:
    """The turns of a transcript; none where the text is no transcript."""
    found = list(_TURN.finditer("\n\n" + text.lstrip()))
    if not found or found[0].start() != 0:
        return []
    whole = "\n\n" + text.lstrip()
    ends = [match.start() for match in found[1:]] + [len(whole)]
    turns = [
        {"role": "user" if match[1] == "Human" else "assistant", "content": whole[match.end() : end].strip()}
        for match, end in zip(found, ends, strict=True)
    ]
    return turns


def _said(turns: Sequence[Turn]) -> str:
    return "\n".join(turn["content"] for turn in turns)


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """As a judge is shown them: what a tool returned belongs to the assistant's side."""
    roles = {"developer": "system", "tool": "assistant"}
    made = [{"role": roles.get(t["role"], t["role"]), "content": t["content"]} for t in turns]
    return tuple(Message.model_validate(turn) for turn in made) or (Message(role="user", content=""),)
