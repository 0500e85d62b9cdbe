"""What a judge said, read by one grammar: a label that was offered, or Unjudged with the reason.

    label form       reply = label
    rationale form   reply = reasoning, then as the last line that is not blank: "Verdict:" label
                     (every line of that shape in the reply must name the same label)
    json form        reply = one JSON object with "verdict": a label, and perhaps "rationale": text; no other key

    label            one of the offered labels, in its exact spelling; around it only white space, emphasis (* _ `),
                     quotes, round or square brackets, one full stop after it, "Response" or "Verdict:" before it

Nothing else is a verdict. There is no search for a label somewhere in the text: a reply that must be guessed at is a
wrong label waiting to be trained on. Only a reply that ended normally is read at all.

**No text under judgement is a verdict.** The labels offered are words that no such text contains (`unclaimed`), so a
judge that repeats a response, or a part of it, has said nothing: whatever verdict is written in there names a label
that was not offered.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import count
from typing import Any, Literal, NamedTuple

from rlaif.types import ChatReply, TokenLogprobs, Unjudged

Form = Literal["label", "rationale", "json"]
Shown = Literal["first", "second", "tie", "bad"]


class Labels(NamedTuple):
    """What the judge may answer. Letters that are no words in English (so never "A" or "I"), one token in the usual
    tokenizers. ``tie`` is None where the judge must choose, ``bad`` (both are) where it is not asked for."""

    first: str = "X"
    second: str = "Y"
    tie: str | None = None
    bad: str | None = None

    def offered(self) -> dict[str, Shown]:
        named: dict[str | None, Shown] = {self.first: "first", self.second: "second", self.tie: "tie", self.bad: "bad"}
        return {label: shown for label, shown in named.items() if label}

    def renamed(self, first: str, second: str, tie: str, bad: str) -> "Labels":
        """The same choices under other names."""
        return Labels(first, second, tie if self.tie else None, bad if self.bad else None)


# Tried in this order. Capitals that are no words in English, neighbours in the alphabet so that none stands out.
_LETTERS = ("PQRS", "KLMN", "FGHJ", "BCDE", "STUV", "VWNM")


def unclaimed(preferred: Labels, texts: Iterable[str], *, one_token: bool = False) -> Labels:
    """``preferred``, or the first other labels that occur in none of ``texts`` as a word.

    "X" is a word of "Verdict: X", "__X__" and "\\u0058" (which JSON reads as X), and none of "XY" or "response_X".
    ``one_token``: only single letters; where the texts contain all of them, ``preferred`` (its probabilities are read,
    and no text, so there is nothing to mistake for a verdict).
    """
    texts = list(texts)
    for labels in (preferred, *(preferred.renamed(*letters) for letters in _LETTERS)):
        if not claimed(tuple(labels.offered()), texts):
            return labels
    if one_token:
        return preferred
    numbered = (preferred.renamed(*(f"{label}{n}" for label in preferred)) for n in count(1))
    return next(labels for labels in numbered if not claimed(tuple(labels.offered()), texts))


def unclaimed_numbers(numbers: Sequence[int], texts: Iterable[str]) -> tuple[str, ...]:
    """As `unclaimed`, for many labels: a letter before each number ("K0", "K1", ...), the same for all of them."""
    texts = list(texts)
    prefixes = (letter * n for n in count(1) for letter in "KQXZVWJPRTMNLHGFDCBSY")
    return next(names for p in prefixes if not claimed(names := tuple(f"{p}{n}" for n in numbers), texts))


def claimed(names: tuple[str, ...], texts: Sequence[str]) -> bool:
    """Whether one of ``names`` is a word of one of ``texts``."""
    # Most texts hold none of the letters, and looking for these is far cheaper.
    suspects = [text for text in texts if "\\u" in text or any(name in text for name in names)]
    return any(_as_word(names).search(text) for text in suspects)


@cache
def _as_word(labels: tuple[str, ...]) -> re.Pattern[str]:
    spelt = "|".join("".join(rf"(?:{re.escape(c)}|\\u(?i:{ord(c):04x}))" for c in label) for label in labels)
    # Underscores are part of a word (response_X), except around a label alone (__X__): there they are emphasis.
    return re.compile(rf"(?<!\w)_*(?:{spelt})_*(?!\w)")


class Reading(NamedTuple):
    """A verdict on what was shown: the choice, and the reasons given before it."""

    choice: Shown
    rationale: str | None = None


class Said(NamedTuple):
    """The label a reply names, and the reasons given before it."""

    label: str
    rationale: str | None = None


class Probabilities(NamedTuple):
    """Label probabilities, renormalised to sum to 1, and the probability ``mass`` all labels had before that."""

    first: float
    second: float
    tie: float
    mass: float
    bad: float = 0.0


_EDGE = r"[\s*_`\"'“”‘’()\[\]]*"
_BOLD = r"[\s*_]*"
_NAMED = rf"{_EDGE}(?:[Rr]esponse\s+)?{_EDGE}(?P<label>\w+){_EDGE}\.?{_EDGE}"
_VERDICT_LINE = re.compile(rf"{_BOLD}[Vv]erdict{_BOLD}:{_NAMED}")
_LABEL = re.compile(rf"(?:{_BOLD}[Vv]erdict{_BOLD}:)?{_NAMED}")
_REFUSAL = re.compile(
    r"\W*(?:i['’]?m\s+(?:very\s+)?sorry|sorry|i\s+(?:can(?:no|['’])t|cannot|won['’]t|will\s+not|am\s+(?:not\s+able|unable))"
    r"|i['’]?m\s+(?:not\s+able|unable)|as\s+an\s+ai\b)",
    re.IGNORECASE,
)


def read_reply(reply: ChatReply, labels: Labels, form: Form) -> Reading | Unjudged:
    """The verdict in a judge's reply, by the grammar above."""
    said = read_label(reply, tuple(labels.offered()), form)
    return said if isinstance(said, Unjudged) else Reading(labels.offered()[said.label], said.rationale)


def read_label(reply: ChatReply, offered: Collection[str], form: Form) -> Said | Unjudged:
    """The label of those ``offered`` that a reply names, by the grammar above."""
    if (failed := unfinished(reply)) is not None:
        return failed
    text = reply.text.strip()
    if not text:
        return Unjudged(reason="unparseable", detail="the reply is empty")
    readers = {"label": _read_label, "rationale": _read_rationale, "json": _read_json}
    result = readers[form](text, offered)
    return (refused(text) or result) if isinstance(result, Unjudged) else result


def refused(text: str) -> Unjudged | None:
    """Unjudged if the text begins as refusals do."""
    return Unjudged(reason="refused", detail=_excerpt(text)) if _REFUSAL.match(text) else None


def unfinished(reply: ChatReply) -> Unjudged | None:
    """Unjudged unless the reply ended normally."""
    if reply.finish_reason == "stop":
        return None
    if reply.finish_reason == "length":
        return Unjudged(reason="truncated", detail="the reply was cut off at its token limit")
    if reply.finish_reason in ("refusal", "content_filter"):
        return Unjudged(reason="refused", detail=f"finish reason {reply.finish_reason}")
    return Unjudged(reason="unparseable", detail=f"finish reason {reply.finish_reason}")


def read_probabilities(token: TokenLogprobs, labels: Labels) -> Probabilities | None:
    """The probabilities of the labels as the next token, or None if no label is among the alternatives."""
    if (found := label_probabilities(token, tuple(labels.offered()))) is None:
        return None
    p, mass = found
    by_choice = {shown: p[label] for label, shown in labels.offered().items()}
    return Probabilities(
        by_choice["first"], by_choice["second"], by_choice.get("tie", 0.0), mass, by_choice.get("bad", 0.0)
    )


def label_probabilities(token: TokenLogprobs, offered: Collection[str]) -> tuple[dict[str, float], float] | None:
    """The probability of each label as the next token, renormalised to sum to 1, and the mass all had before that; or
    None if no label is among the alternatives.

    Surface variants of a label ("X", " X", "X\\n") are one label: their probabilities are added. Log-probs are taken
    before any mask of allowed tokens, so the labels are renormalised.
    """
    found = dict.fromkeys(offered, 0.0)
    for text, logprob in dict([*token.top, (token.token, token.logprob)]).items():
        if (label := text.strip()) in found:
            found[label] += math.exp(min(logprob, 0.0))
    mass = sum(found.values())
    return ({label: p / mass for label, p in found.items()}, min(mass, 1.0)) if mass > 0.0 else None


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    # A verdict is short; the bound also keeps a hostile run of white space from costing quadratic time.
    return pattern.fullmatch(text) if len(text) <= 100 else None


def _read_label(text: str, offered: Collection[str]) -> Said | Unjudged:
    match = _match(_LABEL, text)
    if match is None or match["label"] not in offered:
        return Unjudged(reason="unparseable", detail=f"not one of the labels offered: {_excerpt(text)}")
    return Said(match["label"])


def _read_rationale(text: str, offered: Collection[str]) -> Said | Unjudged:
    lines = text.split("\n")
    stated = [m["label"] for line in lines if (m := _match(_VERDICT_LINE, line))]
    last = _match(_VERDICT_LINE, lines[-1])
    if last is None:
        return Unjudged(reason="unparseable", detail=f"does not end with a verdict line: {_excerpt(lines[-1])}")
    if len(set(stated)) > 1:
        return Unjudged(reason="unparseable", detail=f"states different verdicts: {', '.join(sorted(set(stated)))}")
    if last["label"] not in offered:
        return Unjudged(reason="unparseable", detail=f"not one of the labels offered: {_excerpt(lines[-1])}")
    return Said(last["label"], "\n".join(lines[:-1]).strip() or None)


def _read_json(text: str, offered: Collection[str]) -> Said | Unjudged:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return Unjudged(reason="unparseable", detail=f"not one JSON object: {_excerpt(text)}")
    if not isinstance(value, dict) or not {"verdict"} <= value.keys() <= {"verdict", "rationale"}:
        return Unjudged(reason="unparseable", detail=f"not an object with 'verdict' and 'rationale': {_excerpt(text)}")
    verdict, rationale = value["verdict"], value.get("rationale")
    if not isinstance(verdict, str) or verdict not in offered or not isinstance(rationale, str | None):
        return Unjudged(reason="unparseable", detail=f"not one of the labels offered: {_excerpt(str(verdict))}")
    return Said(verdict, rationale)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 120 else text[:117] + "...")
