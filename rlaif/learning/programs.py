"""Principles that a program can decide, tried on every data set: they cost nothing, and where "the longer one wins"
explains the labels as well as any wording, a reader must see it."""

from collections.abc import Sequence

from rlaif.checks import count_sentences, count_words
from rlaif.types import Bounds, Check, Principle

# With a bound that no text reaches, whichever comes nearer wins: the longer, or the shorter, always.
_ENDLESS = 1_000_000

_LISTS = ("\n- ", "\n* ", "\n• ", "\n1. ", "\n1) ")
_REFUSALS = ("I can't", "I cannot", "I won't", "I'm sorry", "I am sorry", "I'm not able", "As an AI")

_FIXED: dict[str, Check] = {
    "longer": Check(words=Bounds(min=_ENDLESS)),
    "shorter": Check(words=Bounds(max=1)),
    "more-sentences": Check(sentences=Bounds(min=_ENDLESS)),
    "fewer-sentences": Check(sentences=Bounds(max=1)),
    "has-a-list": Check(regex=r"(?m)^\s*(?:[-*•]|\d{1,2}[.)])\s"),
    "no-list": Check(excludes=_LISTS),
    "has-code": Check(contains=("```",)),
    "no-code": Check(excludes=("```",)),
    "has-emphasis-or-headings": Check(regex=r"(?m)\*\*|^#{1,6}\s"),
    "no-emphasis": Check(excludes=("**", "\n#")),
    "has-a-number": Check(regex=r"\d"),
    "ends-with-a-question": Check(regex=r"\?\s*$"),
    "asks-a-question": Check(contains=("?",)),
    "no-question": Check(excludes=("?",)),
    "no-exclamation-mark": Check(excludes=("!",)),
    "refuses": Check(regex=r"(?i)\bI(?:['’]m| am) (?:very )?sorry|\bI (?:can['’]t|cannot|won['’]t)\b|\bas an AI\b"),
    "no-refusal": Check(excludes=_REFUSALS),
    "valid-json": Check(json_valid=True),
}


def programs(texts: Sequence[str]) -> list[Principle]:
    """The checks to try on ``texts``: the fixed ones, and lengths of at most and at least what a quarter, a half and
    three quarters of the texts have. The labels have no say in it."""
    found = {name: Principle(id=name, check=check) for name, check in _FIXED.items()}
    for kind, count in (("words", count_words), ("sentences", count_sentences)):
        counts = sorted(map(count, texts))
        for quarter in (1, 2, 3) if counts else ():
            n = _round(counts[quarter * (len(counts) - 1) // 4])
            for end, word in (("max", "most"), ("min", "least")):
                name = f"at-{word}-{n}-{kind}"
                if n > 1:
                    found.setdefault(name, Principle(id=name, check=Check(**{kind: Bounds(**{end: n})})))
    return list(found.values())


def _round(n: int) -> int:
    """To a number that one would write into a constitution."""
    step = 1 if n < 20 else 5 if n < 100 else 10 if n < 500 else 50
    return max(1, round(n / step) * step)
