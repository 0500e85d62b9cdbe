"""Content hashes, and random draws made from them.

Every draw in the project (order shown, sampling seed, principle drawn) comes from ``uniform(seed, *ids)``, never from a
running generator: adding or dropping a row must change nothing for the others.
"""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, UTF-8 kept; lone surrogates escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def digest(*parts: Any, length: int = 16) -> str:
    """Hex SHA-256 (its first ``length`` digits) of the parts as one JSON list."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:length]


def uniform(*parts: Any) -> float:
    """A number in (0, 1) that depends on nothing but ``parts``."""
    bits = int(digest(*parts, length=13), 16)  # 52 bits: exact in a float
    return (bits + 0.5) / 2**52


def derived_seed(*parts: Any) -> int:
    """A non-negative 31-bit seed that depends on nothing but ``parts`` (what every backend accepts)."""
    return int(digest(*parts, length=8), 16) & 0x7FFF_FFFF
