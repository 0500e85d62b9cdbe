"""Which part of a completion is its answer: one part, chosen without looking at the reference.

Forms, tried in the order given; the first that is there decides, and no other is looked at then:

========== ============================================================================================
boxed      the last balanced ``\\boxed{...}`` (or ``\\fbox``); an empty one is an empty answer; boxes with
           only "and", a comma or space between them are one answer of several parts
hash       what follows ``####``, as in GSM8K: on the last line, or if it is no heading but mathematics
phrase     what follows "answer is", "answer:", or a line that begins "A:"
bare       the whole completion, if it is a formula, a number or a letter and nothing else
conclusion the value that the last sentence with a number in it states (below)
========== ============================================================================================

Nothing inside ``<think>`` counts, closed or not. Of a long completion only the end is searched (`WINDOW` characters
for boxes, fewer for the other forms); every search is linear in it.

The value a sentence states: of a formula in math mode, the last one; else, after the last "=", the first number; else
the first number that the question does not mention already ("Kylar pays $64 for the 16 glasses"); else the last one.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rlaif.verifiers.math.answers import Answer, Choice, Expr, Number, Quantity, Relation, Text
from rlaif.verifiers.math.parse import LONGEST, TooComplex, Unreadable, parse

Form = Literal["boxed", "hash", "phrase", "bare", "conclusion"]
FORMS: tuple[Form, ...] = ("boxed", "hash", "phrase", "bare", "conclusion")

WINDOW = 100_000  # characters, after thinking, in which a box may stand
_LATE = 20_000  # characters in which another form may
_TAIL = 2_000  # characters in which a concluding sentence may stand
_SENTENCE = 600  # characters of one


@dataclass(frozen=True)
class Extracted:
    text: str
    form: Form
    rivals: tuple[str, ...] = ()  # other boxed answers before this one


def extract(completion: str, forms: Sequence[Form] = FORMS, question: str = "") -> Extracted | None:
    """The answer's text; None if there is none."""
    said = outside_thinking(completion)
    late = _last(said, _LATE)
    for form in forms:
        if form == "boxed":
            if boxes := boxed(said[-WINDOW:]):
                rivals = tuple(box for box in boxes[:-1] if box.strip() != boxes[-1].strip())
                return Extracted(boxes[-1], form, rivals)
        elif (text := _FINDERS[form](late, question)) is not None:
            return Extracted(text, form)
    return None


def outside_thinking(completion: str) -> str:
    """Without ``<think>`` ... ``</think>``, nested or unclosed; a closing tag alone ends what the prompt began."""
    if "think>" not in completion:
        return completion
    kept, depth, start = [], 0, 0
    for tag in re.finditer(r"<(/?)think>", completion):
        if not tag[1]:
            if depth == 0:
                kept.append(completion[start : tag.start()])
            depth += 1
        elif depth:
            depth -= 1
            start = tag.end()
        else:
            kept, start = [], tag.end()
    if depth == 0:
        kept.append(completion[start:])
    return "".join(kept)


_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\[{}\\]|[{}]")


def boxed(text: str) -> list[str]:
    """The boxed answers, in order: the contents of all balanced boxes that stand in no other box. Boxes with nothing
    but "and", "or", a comma or space between them are the parts of one answer (so two guesses are a list)."""
    if "boxed" not in text and "fbox" not in text:
        return []
    found: list[str] = []
    last_end = -1
    for start, begins, ends in _boxes(text):
        content = text[begins:ends]
        if last_end >= 0 and start - last_end <= _GLUE_LENGTH and _GLUE.fullmatch(text, last_end, start):
            if content.strip() != found[-1].strip():
                found[-1] += ", " + content
        else:
            found.append(content)
        last_end = ends + 1
    return found


_GLUE = re.compile(r"(?:[\s$,;]|\\[()\[\],; ]|\\q?quad|\\text\s*\{\s*(?:,?\s*and|or|,)?\s*\}|and|or)*")
_GLUE_LENGTH = 60


def _boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, start of the content, end of the content) of every balanced box in no other box, in order."""
    open_braces: list[tuple[int, int]] = []  # of each open brace: where its box starts, or -1; where its content does
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0] in (r"\{", r"\}", "\\\\"):
            continue
        if token[0] != "}":
            open_braces.append((token.start() if token[0] != "{" else -1, token.end()))
        elif open_braces:
            start, begins = open_braces.pop()
            if start >= 0 and not any(box >= 0 for box, _ in open_braces[:DEEPEST_BOX]):
                yield start, begins, token.start()


DEEPEST_BOX = 40  # braces around a box that are looked at for an outer box


def _after_hashes(said: str, question: str) -> str | None:
    lines = re.findall(r"####[ \t]*([^\n#]{1,300})(?=\n|\Z)", said)[-3:]
    if lines and said.rstrip().endswith(lines[-1].rstrip()):
        return _answer_in(lines[-1], question)  # the last line is the answer, even if it is words
    return next((str(line) for line in reversed(lines) if not isinstance(_parsed(line), Text | None)), None)


_PHRASE = re.compile(
    r"(?:^[ \t>*_#-]{0,8}A:"
    r"|\b(?:final |correct |right )?answer\b(?:[ \t]+to[^.:\n]{0,80}?)?[*_]{0,2}[ \t]*"
    r"(?:is|are|=|:|would be|will be|must be)(?!\w))",
    re.IGNORECASE | re.MULTILINE,
)


def _after_phrase(said: str, question: str) -> str | None:
    last = deque(_PHRASE.finditer(said), maxlen=1)
    after = said[last[0].end() :][:_SENTENCE].lstrip(" \t\n:*_") if last else ""
    return _answer_in(_SENTENCE_END.split(after, maxsplit=1)[0], question) if after else None


def _answer_in(sentence: str, question: str) -> str:
    """The sentence itself if it is an answer, else the value that it states."""
    answer = _parsed(sentence)
    if answer is None or (_is_prose(answer) and re.search(r"\d", sentence) and len(sentence.split()) > 3):
        return _stated(sentence, question) or ""
    return sentence


def _is_prose(answer: Answer) -> bool:
    return isinstance(answer, Text) or (isinstance(answer, Relation) and any(_is_prose(side) for side in answer.sides))


def _bare(said: str, _: str) -> str | None:
    whole = said.strip()
    if len(whole) > LONGEST or "\n\n" in whole:
        return None
    if re.fullmatch(r"\$[^$]+\$|\$\$[^$]+\$\$|\\\(.+\\\)|\\\[.+\\\]", whole, re.DOTALL):
        return whole
    answer = _parsed(whole)
    return whole if isinstance(answer, Number | Quantity | Choice | Expr | Relation) and not _is_prose(answer) else None


_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bMrs\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)[*_\"')]{0,3}\s+(?=[A-Z\"'(\\$*])|\n+"
)


def _conclusion(said: str, question: str) -> str | None:
    for sentence in reversed(_SENTENCE_END.split(_last(said, _TAIL))):
        if re.search(r"\d", sentence) and (stated := _stated(sentence, question)) is not None:
            return stated
    return None


_FORMULA = re.compile(r"(?<![\\\w])\$([^$\n]+)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_NUMBER = re.compile(
    r"(?<![\w^_\\.{/:])([-−]\s?)?(?:\\?\$|[€£¥₹])?([-−])?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?)"
    r"(\s?\\?%| (?:million|billion|trillion)\b)?(?:[kmc]?[gm]|m[Ll]|L|lbs?|oz|ft|in|hrs?|h|s)?(?![\w^{]|:\d)"
)


def _stated(sentence: str, question: str) -> str | None:
    """The value a sentence states (see the header); None if it has none, "" if what it states is no value."""
    sentence = re.sub(r"<<[^<>]*>>", "", sentence)  # GSM8K's calculator
    formulas = [next(filter(None, groups)) for groups in _FORMULA.findall(sentence)]
    formulas = [f for f in formulas if not re.search(r"[A-Za-z]{3,} [A-Za-z]{2,}|=\s*$", f)]  # text between two prices
    if formulas and re.search(r"\d", formulas[-1]):
        return str(formulas[-1])
    # What stands in brackets explains: "7 hours (420 minutes)"; so does what goes before: "Since 24 are in a box, ..."
    plain = _LEAD.sub("", re.sub(r"\([^()]*\)", " ", sentence))
    _, equals, after = plain.rpartition("=")
    if equals and (numbers := _numbers(after)):
        return numbers[0][0] if not _GOES_ON.match(after) else ""
    numbers = _numbers(plain) or _numbers(sentence)
    if not numbers:
        return None
    known = {value for _, value in _numbers(question)}
    new = [text for text, value in numbers if value not in known]
    return new[0] if new else numbers[-1][0]


_LEAD = re.compile(
    r"^(?:(?:therefore|so|thus|hence|finally),? )?(?:since|if|because|as|when|after)\b[^,]*, ", re.IGNORECASE
)
_GOES_ON = re.compile(r"\s*-?\s*\$?[\d.,]+\s*[-+*/^]\s*[A-Za-z(]")  # "160 - y" is no value


def _numbers(text: str) -> list[tuple[str, Fraction | str]]:
    found = []
    for m in _NUMBER.finditer(text):
        # "30 - 5", "30-5": that minus takes away, it is no sign
        minus = m[2] or (m[1] and not m[1].endswith(" ") and not re.search(r"[\d)%]\s*$", text[: m.start()][-4:]))
        digits = m[3].replace(",", "").replace(" ", "")
        value: Fraction | str = digits if "/" in digits else Fraction(digits)
        found.append((f"{'-' if minus else ''}{m[3]}{m[4] or ''}", value))
    return found


def _parsed(text: str) -> Answer | None:
    try:
        return parse(text)
    except (Unreadable, TooComplex):
        return None


def _last(text: str, characters: int) -> str:
    """The end of a text, from the first white space on if more was before it: no number is cut."""
    if len(text) <= characters:
        return text
    end = text[-characters:]
    space = re.search(r"\s", end)
    return end[space.start() :] if space else ""


_FINDERS = {"hash": _after_hashes, "phrase": _after_phrase, "bare": _bare, "conclusion": _conclusion}


_LAST_LINE = re.compile(r"\n[ \t]*(?:A|Answer|Final answer)[ \t]*:[ \t]*([^\n]+)\s*\Z")


def reference_answer(reference: str) -> str:
    """The answer a reference holds: its last box; of a written solution what follows ``####``, or "A:" in the last
    line; or all of it."""
    if boxes := boxed(reference):
        return boxes[-1]
    _, hashes, after = reference.rpartition("####")
    if hashes:
        return after
    last = _LAST_LINE.search(reference)
    return last[1] if last else reference
