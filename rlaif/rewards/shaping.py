"""Penalties for length and repetition that cannot outweigh correctness.

The law: let ``high`` be the highest value of what is shaped, ``budget`` > 0 the most that all penalties take off
together. A fully correct completion (value = high) keeps at least high - budget; any other is held at or below
high - 2 * budget before penalties. So *every fully correct completion ranks above every other one, by at least budget*,
whatever their lengths. Not covered: between two completions with partial credit a penalty may decide (with ``among:
all``), and credits above high - 2 * budget become equal.
"""

from rlaif.checks import count_words
from rlaif.config.base import Config
from rlaif.config.rewards import LengthPenalty, OverlongPenalty, RepetitionPenalty, Shaping
from rlaif.errors import InputError
from rlaif.verifiers.text import repeated_share

_READ = 1_000_000  # characters; a longer completion has every penalty in full, unread


def shaped(value: float, config: Shaping, penalty: float) -> float:
    """``value`` less the ``penalty`` (a share, 0 to 1, of the budget); see the law above."""
    high = config.of.bounds[1]
    correct = value >= high
    if not correct:
        value = min(value, high - 2 * config.budget)
        if config.among == "correct":
            return value
    return value - config.budget * penalty


def penalties(config: Shaping, text: str, tokens: int | None) -> dict[str, float]:
    """Each penalty of ``config``, 0 to 1. ``tokens``: how many the completion has, where known; InputError where a
    penalty counts tokens and nobody did."""
    found: dict[str, float] = {}
    if config.length is not None:
        found["length"] = _length(config.length, text, tokens)
    if config.overlong is not None:
        found["overlong"] = _overlong(config.overlong, text, tokens)
    if config.repetition is not None:
        found["repetition"] = _repetition(config.repetition, text)
    return found


def _length(penalty: LengthPenalty, text: str, tokens: int | None) -> float:
    return _ramp(_count(penalty, penalty.unit, text, tokens), penalty.free, penalty.full)


def _overlong(penalty: OverlongPenalty, text: str, tokens: int | None) -> float:
    count = _count(penalty, penalty.unit, text, tokens)
    return _ramp(count, penalty.limit - penalty.buffer, penalty.limit)


def _repetition(penalty: RepetitionPenalty, text: str) -> float:
    if len(text) > _READ:
        return 1.0
    return max(0.0, repeated_share(text, penalty.n) - penalty.free) / (1.0 - penalty.free)


def _ramp(count: float, free: int, full: int) -> float:
    return min(1.0, max(0.0, (count - free) / (full - free)))


def _count(penalty: Config, unit: str, text: str, tokens: int | None) -> float:
    if unit == "tokens":
        if tokens is None:
            what = "overlong" if isinstance(penalty, OverlongPenalty) else "length"
            raise InputError(f"shaping.{what}: nobody counted the tokens here; write 'unit: words' or characters.")
        return tokens
    if len(text) > _READ:
        return float("inf")
    # A text without spaces is not one word.
    return len(text) if unit == "characters" else max(count_words(text), len(text) / 50)
