"""What the headers of a response say about the provider's limits."""

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Told(NamedTuple):
    """One quota: ``limit`` a minute, ``remaining`` of it, ``reset``: seconds until it is full again."""

    limit: float | None
    remaining: float
    reset: float | None


def read_rate_limits(headers: Mapping[str, str]) -> dict[str, Told]:
    """The quotas by kind, from OpenAI's headers (``x-ratelimit-remaining-requests``) or Anthropic's
    (``anthropic-ratelimit-requests-remaining``). What cannot be read is left out."""
    told = {}
    for kind in KINDS:
        for name in (f"x-ratelimit-{{}}-{kind}", f"anthropic-ratelimit-{kind}-{{}}"):
            remaining = _number(headers.get(name.format("remaining")))
            if remaining is not None:
                limit = _number(headers.get(name.format("limit")))
                told[kind] = Told(limit or None, remaining, read_seconds(headers.get(name.format("reset"))))
    return told


def read_seconds(text: str | None) -> float | None:
    """``6m0s``, ``120ms``, plain seconds, or a time (RFC 3339) as seconds from now; None for anything else."""
    if text is None:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text.strip():
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    number = _number(text)
    if number is not None:
        return number
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) and value >= 0 else None
