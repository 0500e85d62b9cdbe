"""Data for supervised fine-tuning: rows of several kinds to conversations with the answers that are learned, and those
to token ids.

The learned tokens are found by rendering the conversation up to before an answer and up to after it, so any chat
template will do: none needs marks for what the assistant says.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlaif.errors import InputError
from rlaif.preferences import Turn, counted, place, read_pair, read_rows, read_turns
from rlaif.training.tokens import chat_ids, common

Kind = Literal["messages", "prompt and completion", "chosen answers of preferences"]
Drop = Literal["no_answer", "empty_answer", "answer_beyond_max_length", "no_prompt"]

ACCEPTED = "messages; prompt and completion; or preferences (chosen and rejected)"
BEST = "best.jsonl"


@dataclass(frozen=True)
class Demonstration:
    """A conversation whose answers from message ``first`` on are learned, or a plain text that goes on from a plain
    prompt. ``row``: where it stood."""

    turns: tuple[Turn, ...]
    first: int
    text: tuple[str, str] | None  # (prompt, completion)
    row: str


@dataclass(frozen=True)
class Demonstrations:
    """``rows`` = ``usable`` + ``dropped``."""

    source: str
    kind: Kind
    plain: bool
    rows: int
    usable: tuple[Demonstration, ...]
    dropped: Counter[Drop]
    digest: str


def read_demonstrations(source: str, limit: int | None = None) -> Demonstrations:
    """At most ``limit`` rows to learn from. Raises InputError: no such file, a broken line, data of another kind
    (which, and the method for it), rows of several kinds, or none that can be learned from."""
    path = Path(source).expanduser()
    best = path / BEST
    name, rows = read_rows(best if best.is_file() and best.stat().st_size else path)
    usable: list[Demonstration] = []
    dropped: Counter[Drop] = Counter()
    found: tuple[Kind, bool] | None = None
    seen = 0
    for at, row in rows:
        if isinstance(row, InputError):
            raise row
        kind, one = _demonstration(row, name, at)
        shape = (kind, one.text is not None)
        if found is not None and shape != found:
            raise InputError(
                f"{place(name, at)}: this row is {_described(shape)}, the rows before it are {_described(found)};"
                " a file must hold one kind."
            )
        found, seen = shape, seen + 1
        reason = _useless(one)
        if reason:
            dropped[reason] += 1
        else:
            usable.append(one)
        if limit is not None and len(usable) >= limit:
            break
    if found is None:
        raise InputError(f"{name}: no rows; supervised fine-tuning learns from {ACCEPTED}.")
    if not usable:
        raise InputError(f"{name}: none of its {seen} rows has an answer to learn ({counted(dropped)}).")
    content = [[one.turns, one.first, one.text] for one in usable]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Demonstrations(name, found[0], found[1], seen, tuple(usable), dropped, digest)


def _demonstration(row: Any, name: str, at: int | str) -> tuple[Kind, Demonstration]:
    where, stood = place(name, at), f"line {at}" if isinstance(at, int) else at
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a row with {ACCEPTED}.")
    if row.get("chosen") is not None:
        pair, _ = read_pair(row, name, at)
        return "chosen answers of preferences", _answered(pair.prompt, pair.chosen, stood)
    if row.get("messages") is not None:
        turns = tuple(read_turns(row["messages"], "messages", where))
        return "messages", Demonstration(turns, 0, None, stood)
    if row.get("prompt") is not None and row.get("completion") is not None:
        if "label" in row:
            raise InputError(
                f"{where}: these are answers with a label, good ones and bad ones; `rlaif train kto` learns from both"
                " (leave the column out to learn all of them as good)."
            )
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) != isinstance(completion, str):
            raise InputError(f"{where}: of prompt and completion one is text and one is messages; use one form.")
        if isinstance(prompt, str):
            return "prompt and completion", _answered(prompt, completion, stood)
        before, after = (read_turns(row[key], key, where) for key in ("prompt", "completion"))
        return "prompt and completion", _answered(before, after, stood)
    raise InputError(f"{where}: {_other_kind(row)} (columns found: {', '.join(row) or 'none'}; accepted: {ACCEPTED}).")


def _answered(prompt: list[Turn] | str, answer: list[Turn] | str, stood: str) -> Demonstration:
    if isinstance(prompt, str):
        return Demonstration((), 0, (prompt, str(answer)), stood)
    assert not isinstance(answer, str)
    return Demonstration((*prompt, *answer), len(prompt), None, stood)


def _other_kind(row: dict[str, Any]) -> str:
    if "conversations" in row:
        return "conversations in ShareGPT's form; name the column messages, its keys role and content"
    if row.get("prompt") is not None:
        return "prompts without an answer; `rlaif train rejection` or grpo learn from those"
    if "text" in row:
        return "text, for language modelling; what is the prompt and what the completion?"
    return "nothing to learn from"


def _described(shape: tuple[Kind, bool]) -> str:
    return f"{shape[0]}{', as plain text' if shape[1] else ''}"


def _useless(one: Demonstration) -> Drop | None:
    if one.text is not None:
        return None if one.text[1].strip() else "empty_answer"
    answers = [turn for turn in one.turns[one.first :] if turn["role"] == "assistant"]
    if not answers:
        return "no_answer"
    if one.turns[0]["role"] == "assistant":
        return "no_prompt"
    # An empty answer is what a failure leaves behind: it would teach the model to say nothing.
    return None if all(turn["content"].strip() for turn in answers) else "empty_answer"


# --------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class TokenRow:
    """Token ids of a conversation, at most ``max_length``; ``learned``: [begin, end) of each answer in it."""

    ids: tuple[int, ...]
    learned: tuple[tuple[int, int], ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the first learned token."""
        return self.ids[: self.learned[0][0]]

    @property
    def labels(self) -> list[int]:
        """The ids where they are learned, -100 elsewhere."""
        labels = [-100] * len(self.ids)
        for begin, end in self.learned:
            labels[begin:end] = self.ids[begin:end]
        return labels

    @property
    def answers(self) -> int:
        """Learned tokens."""
        return sum(end - begin for begin, end in self.learned)


@dataclass(frozen=True)
class TokenRows:
    """``rows`` + ``dropped`` = what was given. ``cut``: rows that lost their end. ``longest``: tokens of the longest
    before cutting. ``end_learned``: rows whose last learned tokens hold one that stops generation. ``rewritten``:
    answers that the chat template renders otherwise once the conversation goes on, and that are not learned."""

    rows: tuple[TokenRow, ...]
    dropped: Counter[Drop]
    cut: int
    longest: int
    end_learned: int
    rewritten: int


def tokenize(rows: Iterable[Demonstration], tokenizer: Any, max_length: int, end_ids: Sequence[int]) -> TokenRows:
    """Token ids of ``rows``. Raises InputError where the chat template refuses."""
    kept: list[TokenRow] = []
    dropped: Counter[Drop] = Counter()
    cut = longest = end_learned = rewritten = 0
    for row in rows:
        ids, learned, lost = _plain(row.text, tokenizer) if row.text else _conversation(row, tokenizer)
        longest, rewritten = max(longest, len(ids)), rewritten + lost
        spans = tuple((begin, min(end, max_length)) for begin, end in learned if begin < max_length)
        if not spans:
            dropped["answer_beyond_max_length"] += 1
            continue
        if spans[0][0] == 0:  # nothing stands before it: its first token cannot be predicted
            dropped["no_prompt"] += 1
            continue
        cut += len(ids) > max_length
        end_learned += not set(end_ids).isdisjoint(ids[max(0, spans[-1][1] - 3) : spans[-1][1]])
        kept.append(TokenRow(tuple(ids[: min(len(ids), max_length)]), spans))
    return TokenRows(tuple(kept), dropped, cut, longest, end_learned, rewritten)


Spans = list[tuple[int, int]]


def _plain(text: tuple[str, str], tokenizer: Any) -> tuple[list[int], Spans, int]:
    prompt, completion = text
    end = tokenizer.eos_token  # plain text has no end of its own; without one the model would never learn to stop
    whole = prompt + (completion if completion.endswith(end) else completion + end)
    before, ids = (list(tokenizer(text=t)["input_ids"]) for t in (prompt, whole))
    return ids, [(common(before, ids), len(ids))], 0


def _conversation(row: Demonstration, tokenizer: Any) -> tuple[list[int], Spans, int]:
    turns, spans, rewritten = list(row.turns), Spans(), 0
    try:
        ids = chat_ids(tokenizer, turns)
        for i in range(row.first, len(turns)):
            if turns[i]["role"] != "assistant":
                continue
            before = chat_ids(tokenizer, turns[:i], add_generation_prompt=True)
            after = chat_ids(tokenizer, turns[: i + 1])
            if common(after, ids) < len(after):
                rewritten += 1
            else:
                spans.append((common(before, after), len(after)))
    except Exception as error:  # noqa: BLE001  a template is somebody else's program: it may raise anything
        raise InputError(f"{row.row}: the model's chat template refuses this conversation ({error}).") from None
    return ids, spans, rewritten
