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
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from typing import Any, Literal, NamedTuple

from rlaif.types import ChatReply, TokenLogprobs, Unjudged

Form = Literal["label", "rationale", "json"]
Shown = Literal["first", "second", "tie"]


class Labels(NamedTuple):
    """What the judge may answer. Letters that are no words in English (so never "A" or "I"), one token in the usual
    tokenizers. ``tie`` is None where the judge must choose."""

    first: str = "X"
    second: str = "Y"
    tie: str | None = None

    def offered(self) -> dict[str, Shown]:
        named: dict[str, Shown] = {self.first: "first", self.second: "second"}
        return named | ({self.tie: "tie"} if self.tie else {})


# Tried in this order. Capitals that are no words in English, neighbours in the alphabet so that none stands out.
_TRIPLES = (("P", "Q", "R"), ("K", "L", "M"), ("F", "G", "H"), ("B", "C", "D"), ("S", "T", "U"), ("V", "W", "N"))


def unclaimed(preferred: Labels, texts: Iterable[str], *, one_token: bool = False) -> Labels:
    """``preferred``, or the first other labels that occur in none of ``texts`` as a word.

    "X" is a word of "Verdict: X", "__X__" and "\\u0058" (which JSON reads as X), and none of "XY" or "response_X".
    ``one_token``: only single letters; where the texts contain all of them, ``preferred`` (its probabilities are read,
    and no text, so there is nothing to mistake for a verdict).
    """
    texts = list(texts)
    letters = [preferred, *(Labels(first, second, tie if preferred.tie else None) for first, second, tie in _TRIPLES)]
    for labels in letters:
        if not _claimed(labels, texts):
            return labels
    if one_token:
        return preferred
    first, second, tie = preferred
    numbered = (Labels(f"{first}{n}", f"{second}{n}", f"{tie}{n}" if tie else None) for n in count(1))
    return next(labels for labels in numbered if not _claimed(labels, texts))


def _claimed(labels: Labels, texts: Sequence[str]) -> bool:
    names = tuple(labels.offered())
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


class Probabilities(NamedTuple):
    """Label probabilities, renormalised to sum to 1, and the probability ``mass`` all labels had before that."""

    first: float
    second: float
    tie: float
    mass: float


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
    if (failed := unfinished(reply)) is not None:
        return failed
    text = reply.text.strip()
    if not text:
        return Unjudged(reason="unparseable", detail="the reply is empty")
    readers = {"label": _read_label, "rationale": _read_rationale, "json": _read_json}
    result = readers[form](text, labels.offered())
    if isinstance(result, Unjudged) and _REFUSAL.match(text):
        return Unjudged(reason="refused", detail=_excerpt(text))
    return result


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
    """The probabilities of the labels as the next token, or None if no label is among the alternatives.

    Surface variants of a label ("X", " X", "X\\n") are one label: their probabilities are added. Log-probs are taken
    before any mask of allowed tokens, so the labels are renormalised.
    """
    alternatives = dict([*token.top, (token.token, token.logprob)])
    found = dict.fromkeys(("first", "second", "tie"), 0.0)
    for text, logprob in alternatives.items():
        if shown := labels.offered().get(text.strip()):
            found[shown] += math.exp(min(logprob, 0.0))
    mass = sum(found.values())
    if mass <= 0.0:
        return None
    first, second, tie = (found[name] / mass for name in ("first", "second", "tie"))
    return Probabilities(first, second, tie, min(mass, 1.0))


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    # A verdict is short; the bound also keeps a hostile run of white space from costing quadratic time.
    return pattern.fullmatch(text) if len(text) <= 100 else None


def _read_label(text: str, offered: dict[str, Shown]) -> Reading | Unjudged:
    match = _match(_LABEL, text)
    if match is None or match["label"] not in offered:
        return Unjudged(reason="unparseable", detail=f"not one of the labels offered: {_excerpt(text)}")
    return Reading(offered[match["label"]])


def _read_rationale(text: str, offered: dict[str, Shown]) -> Reading | Unjudged:
    lines = text.split("\n")
    stated = [m["label"] for line in lines if (m := _match(_VERDICT_LINE, line))]
    last = _match(_VERDICT_LINE, lines[-1])
    if last is None:
        return Unjudged(reason="unparseable", detail=f"does not end with a verdict line: {_excerpt(lines[-1])}")
    if len(set(stated)) > 1:
        return Unjudged(reason="unparseable", detail=f"states different verdicts: {', '.join(sorted(set(stated)))}")
    if last["label"] not in offered:
        return Unjudged(reason="unparseable", detail=f"not one of the labels offered: {_excerpt(lines[-1])}")
    return Reading(offered[last["label"]], "\n".join(lines[:-1]).strip() or None)


def _read_json(text: str, offered: dict[str, Shown]) -> Reading | Unjudged:
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
    return Reading(offered[verdict], rationale)


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 120 else text[:117] + "...")
