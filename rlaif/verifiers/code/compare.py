"""What a program printed, against what it should have printed."""

import math
from typing import Literal

Compare = Literal["exact", "tokens", "floats"]


def difference(expected: str, printed: bytes, how: Compare, tolerance: float) -> str | None:
    """What differs first, for a reader; None if nothing does.

    "exact": the same text, but for the end of the last line. "tokens": as many lines, and on each the same words.
    "floats": so, and two words that are numbers with a point or an exponent may differ by ``tolerance``, absolutely or
    relatively. Blank lines at the end count in "exact" only.
    """
    try:
        got = printed.decode("utf-8")
    except UnicodeDecodeError:
        return "the output is not UTF-8 text"
    if how == "exact":
        same = _newlines(expected).removesuffix("\n") == _newlines(got).removesuffix("\n")
        return None if same else "the output is not exactly the expected one"
    want_lines, got_lines = _lines(expected), _lines(got)
    if len(want_lines) != len(got_lines):
        return f"{len(got_lines)} lines of output, {len(want_lines)} expected"
    for number, (want, line) in enumerate(zip(want_lines, got_lines, strict=True), 1):
        if not _same_words(want.split(), line.split(), how, tolerance):
            return f"line {number}: {line[:80]!r}, expected {want[:80]!r}"
    return None


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _lines(text: str) -> list[str]:
    return _newlines(text).rstrip().split("\n")


def _same_words(want: list[str], got: list[str], how: Compare, tolerance: float) -> bool:
    if len(want) != len(got):
        return False
    return all(w == g or (how == "floats" and _close(w, g, tolerance)) for w, g in zip(want, got, strict=True))


def _close(want: str, got: str, tolerance: float) -> bool:
    both = want + got
    if not any(c in both for c in ".eE") or "_" in both or len(both) > 800:
        return False  # whole numbers are equal or not; an underscore is Python's own
    try:
        a, b = float(want), float(got)
    except ValueError:
        return False
    return math.isfinite(a) and math.isfinite(b) and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
