"""Checks: properties of one text that a program decides, so that a constitution has effect even with a weak judge.

``degree(check, text)`` is 1.0 exactly when the text satisfies the check; below that it says how near the text comes, so
that of two texts that both fail the nearer one is preferred. Everything here is pure.

What is counted
---------------
* **A word** is a run without white space that holds a letter or a digit ("don't", "state-of-the-art", "3.5" and a URL
  are one word each; a lone dash or emoji is none). Han, Hiragana and Katakana are written without spaces: there each
  letter counts as one word. Thai, Lao and Khmer have neither spaces nor such letters: a run counts as one.
* **A sentence** ends at ". ! ? …" before white space, at their full-width, Arabic and Devanagari kin anywhere, at an
  empty line, and before a line that is a list item, heading or quote. A full stop does not end one before a small
  letter ("e.g. this") nor after a title or an initial ("Dr. Smith", "J. Smith"). A piece without a letter ("1.") is no
  sentence of its own, but a text with any letter or digit has at least one. Neither count falls when text is added at
  the end.
* **Strings** (contains, excludes) are found regardless of case, after Unicode NFC; write a ``regex`` for exact case.
* **A regex** is searched with RE2, in linear time whatever the text: no look-around, no back references; ``.`` does not
  match a line break and ``^`` and ``$`` are the ends of the text unless ``(?s)`` and ``(?m)`` say otherwise.
* **JSON** is one value as in RFC 8259, white space around it allowed: NaN, infinity, a key given twice, a comment or a
  Markdown fence fail it.
"""

import json
import re
import unicodedata
from functools import lru_cache
from typing import Any, Literal

from rlaif.errors import InputError
from rlaif.types import Bounds, Check

_UNSPACED = re.compile("[\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

# Possessive (++) and anchored by what came before, so that a run of a million dots is read once.
_SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]++ ["'”’»)\]*_]*+ (?=\s|$)
      | [。！？｡؟۔।॥።]++ [”’」』）]*+
      | \n[ \t]*\n
      | \n(?=[ \t]*+(?:[-*•+#>]|\d+[.)])\s)
    """,
    re.VERBOSE,
)
_TITLE = re.compile(r"(?:^|[\s(\"“])([^\W\d_]|Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|vs|No|Fig|approx|e\.g|i\.e|cf)\.$")
_FOLLOWING = re.compile(r"[^\S\n]*+\n?[^\S\n]*+(\w)")  # the first letter of what may be the next sentence


def count_words(text: str) -> int:
    """Words of ``text`` (see the header)."""
    if not _UNSPACED.search(text):
        return sum(_has_alnum(run) for run in text.split())
    count = 0
    for run in text.split():
        count += sum(c.isalnum() for c in _UNSPACED.findall(run))
        count += sum(_has_alnum(piece) for piece in _UNSPACED.split(run))
    return count


def count_sentences(text: str) -> int:
    """Sentences of ``text`` (see the header)."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _is_no_end(text, end):
            continue
        count += _has_letter(text[start : end.end()])
        start = end.end()
    count += _has_letter(text[start:])
    return count or int(_has_alnum(text))


def _is_no_end(text: str, end: re.Match[str]) -> bool:
    if end[0] != ".":
        return False
    following = _FOLLOWING.match(text, end.end())
    if following and following[1].islower():
        return True
    title = _TITLE.search(text[max(0, end.end() - 12) : end.end()])
    if title is None or following is None:
        return False
    initial = len(title[1]) == 1
    return not initial or (title[1].isupper() and title[1] != "I")


def _has_alnum(text: str) -> bool:
    return text[:1].isalnum() or any(map(str.isalnum, text))


def _has_letter(text: str) -> bool:
    return text[:1].isalpha() or any(map(str.isalpha, text))


# ------------------------------------------------------------------------------------------------------- degrees


def degree(check: Check, text: str) -> float:
    """How far ``text`` satisfies ``check``, in [0, 1]; 1.0 exactly when it does.

    words, sentences: max / count above the range, count / min below it. contains: the share of the strings that are
    there; excludes: the share that is not. regex, json: 1 or 0. Raises InputError for a regex that RE2 refuses.
    """
    if check.words is not None:
        return _within(check.words, count_words(text))
    if check.sentences is not None:
        return _within(check.sentences, count_sentences(text))
    if check.regex is not None:
        return float(_compiled(_encodable(check.regex)).search(_encodable(text)) is not None)
    if check.contains is not None:
        return _share_present(check.contains, text)
    if check.excludes is not None:
        return 1.0 - _share_present(check.excludes, text)
    return float(_is_json(text))


def compare_by_check(check: Check, a: str, b: str) -> Literal["a", "b", "tie"]:
    """Which text comes nearer to satisfying ``check``; "tie" when neither is nearer (both satisfy it, say)."""
    of_a, of_b = degree(check, a), degree(check, b)
    if of_a == of_b:
        return "tie"
    return "a" if of_a > of_b else "b"


def describe(check: Check) -> str:
    """The check as a phrase: "words: 5 to 40", "contains: 'yes', 'no'"."""
    for name, bounds in (("words", check.words), ("sentences", check.sentences)):
        if bounds is not None:
            return f"{name}: {_range(bounds)}"
    if check.regex is not None:
        return f"matches the regex {check.regex}"
    if check.contains is not None:
        return "contains: " + ", ".join(map(repr, check.contains))
    if check.excludes is not None:
        return "excludes: " + ", ".join(map(repr, check.excludes))
    return "is valid JSON"


def _range(bounds: Bounds) -> str:
    if bounds.min is None:
        return f"at most {bounds.max}"
    return f"at least {bounds.min}" if bounds.max is None else f"{bounds.min} to {bounds.max}"


def _within(bounds: Bounds, count: int) -> float:
    if bounds.max is not None and count > bounds.max:
        return bounds.max / count
    if bounds.min is not None and count < bounds.min:
        return count / bounds.min
    return 1.0


def _share_present(wanted: tuple[str, ...], text: str) -> float:
    folded = _fold(text)
    return sum(_fold(part) in folded for part in wanted) / len(wanted)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


# --------------------------------------------------------------------------------------------------- regex, JSON


def regex_problem(pattern: str) -> str | None:
    """Why RE2 refuses ``pattern``, or None when it accepts it."""
    try:
        _compiled(_encodable(pattern))
    except InputError as error:
        return str(error)
    return None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False  # the reason comes with the exception; RE2 would print it to stderr too
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise InputError(
            f"the regex {pattern!r} is not valid: {reason} (RE2 syntax: no look-around, no back references)"
        ) from None


def _encodable(text: str) -> str:
    # A lone surrogate has no UTF-8 form, which is what RE2 reads.
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_json(text: str) -> bool:
    try:
        # Numbers stay text: a number may be longer than Python converts, and it is JSON all the same.
        json.loads(text, object_pairs_hook=_no_twice, parse_constant=_refuse, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return True


def _no_twice(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
