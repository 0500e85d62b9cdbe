"""The text of an answer -> its type (`answers`).

The order of the questions asked is the meaning: is it a choice, a matrix, a list, a union, a relation, something in
brackets, a quantity, a rational number, other mathematics, or words? Text is bounded before anything else is done with
it, so that hostile text costs no more than a long answer does.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from rlaif.verifiers.math.answers import (
    Answer,
    Choice,
    Expr,
    Interval,
    Matrix,
    Number,
    Numeral,
    Quantity,
    Relation,
    Set,
    Text,
    Tuple,
    Union,
)
from rlaif.verifiers.math.exact import NotExact, evaluate
from rlaif.verifiers.math.fold import clean, fold
from rlaif.verifiers.math.units import CURRENCY, MULTIPLIERS, NO_UNIT, PARTS, UNITS, normal_unit

LONGEST = 2_000  # characters of an answer
DEEPEST = 40  # brackets within brackets
MOST_ITEMS = 200  # of a list, set or matrix

INFINITE = (Expr(r"\infty"), Expr(r"-\infty"))


class Unreadable(Exception):
    """There is no answer in the text."""


class TooComplex(Exception):
    """The answer is too long, too deep, or asks for more arithmetic than an answer may."""


@lru_cache(maxsize=8192)
def parse(text: str) -> Answer:
    """Read an answer. Raises Unreadable or TooComplex."""
    if len(text) > LONGEST:
        raise TooComplex(f"an answer of {len(text):,} characters (at most {LONGEST:,})")
    _check_depth(text)
    cleaned = clean(_unwrapped(fold(text).strip()))
    _check_depth(cleaned)
    if not re.search(r"\w|\\emptyset|\\\{\s*\\\}", cleaned.replace(r"\ldots", "")):
        raise Unreadable(f"no answer in {text[:40]!r}")
    return _read_item(cleaned)


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        if depth > DEEPEST:
            raise TooComplex(f"brackets more than {DEEPEST} deep")


_WRAPPING = re.compile(r"\\(?:boxed|fbox|underline|text|textbf|mbox|mathrm|mathbf)\s*\{")


def _unwrapped(text: str) -> str:
    """Without a command around the whole: \\text{(B)}, \\boxed{5}."""
    while (wrapping := _WRAPPING.match(text)) and _closing(text, wrapping.end() - 1) == len(text) - 1:
        inner = text[wrapping.end() : -1].strip()
        if re.fullmatch(r"[a-z]", inner):  # \mathrm{e}
            break
        text = inner
    return text


# ------------------------------------------------------------------------------------------------ the order of types


def _read(text: str) -> Answer:
    for reader in _READERS:
        if (answer := reader(text)) is not None:
            return answer
    return _number(text) or _expression(text) or Text(_folded(text))


def _date(text: str) -> Text | None:
    """2024-01-05 is a day, not a difference."""
    return Text(text) if re.fullmatch(r"\d{4}-(?:0\d|1[0-2])-(?:[0-2]\d|3[01])", text) else None


_OPTION = re.compile(r"\(([A-J])\)\s*(.*)|([A-J])[.):]\s*(.*)|(?:[Oo]ption|[Cc]hoice)\s+\(?([A-Z])\)?()|([A-Z])()")


def _choice(text: str) -> Choice | None:
    """(B), B., "Option B", or one of these before the option's text, if that names no other option."""
    if not (found := _OPTION.fullmatch(text)):
        return None
    letter, rest = [group for group in found.groups() if group is not None]
    if re.search(r"\b(?:[A-J]|or|wrong|incorrect|maybe|perhaps)\b", rest):
        return None
    return Choice(letter, _read(rest) if re.search(r"\w", rest) else None)


_ENVIRONMENT = re.compile(
    r"[\[(]?\s*\\begin\s*\{([pbBv]?matrix|smallmatrix|array)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}\s*[\])]?",
    re.DOTALL,
)


def _matrix(text: str) -> Matrix | None:
    found = _ENVIRONMENT.fullmatch(text)
    if not found or found[1] == "vmatrix" or r"\begin" in found[2]:
        return None
    rows = [row.strip() for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", found[2])]
    cells = tuple(tuple(_read_item(cell) for cell in row.split("&")) for row in rows if row and row != r"\hline")
    return Matrix(cells) if cells and len({len(row) for row in cells}) == 1 else None


def _list(text: str) -> Answer | None:
    """ "1, 2", "1 and 2", "x = 1 or x = 2": a set. A comma before exactly three digits groups thousands."""
    text = _without_thousands(text)
    items = list(_split(text, _COMMA))
    if len(items) > 1 and not items[-1].strip():
        items.pop()
    if len(items) == 1 or len(items) > MOST_ITEMS:
        return None
    if not all(item.strip() for item in items) or any(r"\ldots" in item for item in items):
        return Text(_folded(text))
    answers = tuple(_read_item(item) for item in items)
    regions = [interval_of(a) for a in answers if isinstance(a, Relation) and a.operators[0] not in ("=", r"\in")]
    if not regions:
        return Set(answers)
    # With inequalities "or" and "and" differ: "or" is a union of intervals, the rest is only compared as it stands.
    joined = [region for region in regions if region is not None]
    if len(joined) == len(answers) and re.search(r"\bor\b", text) and not re.search(r"\band\b|,", text):
        return Union(tuple(joined))
    return Text(_folded(text))


def _union(text: str) -> Union | None:
    parts = list(_split(text, _CUP))
    return Union(tuple(_read_item(part) for part in parts)) if len(parts) > 1 else None


def _plus_minus(text: str) -> Set | None:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    signs = (("+", "-"), ("-", "+"))
    return Set(tuple(_read_item(text.replace(r"\pm", pm).replace(r"\mp", mp)) for pm, mp in signs))


_OPERATORS = re.compile(
    r"=|<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\in(?![A-Za-z])|\\approx|\\equiv|\\to(?![A-Za-z])|\\sim"
)


def _relation(text: str) -> Answer | None:
    sides, operators = [], []
    start = 0
    for at, end, operator in _at_top(text, _OPERATORS):
        sides.append(text[start:at])
        operators.append(operator)
        start = end
    if not operators or len(operators) > 8:
        return None
    sides.append(text[start:])
    if r"\approx" in operators:  # x = 1/3 \approx 0.33 says 1/3; x \approx 11 says 11
        at = operators.index(r"\approx")
        if at == 0 and name_of(_read_item(sides[0])):
            operators[0] = "="
        else:
            operators, sides = operators[:at], sides[: at + 1]
        if not operators:
            return _read_item(sides[0])
    if not all(side.strip() for side in sides):
        return None
    return Relation(tuple(operators), tuple(_read_item(side) for side in sides))


def _reals(text: str) -> Interval | None:
    return Interval("()", *INFINITE[::-1]) if re.fullmatch(r"\\mathbb ?\{? ?R ?\}?", text) else None


def _bracketed(text: str) -> Answer | None:
    for left, right in (
        ("(", ")"),
        ("[", "]"),
        ("(", "]"),
        ("[", ")"),
        (r"\{", r"\}"),
        (r"\langle", r"\rangle"),
        ("{", "}"),
    ):
        if text.startswith(left) and text.endswith(right) and _closing(text, len(left) - 1, left) == len(text) - 1:
            return _inside(left[-1] if left in "([" else left, right[-1], text[len(left) : len(text) - len(right)])
    return None


def _inside(left: str, right: str, content: str) -> Answer | None:
    items = [item.strip() for item in _split(content, _COMMA_ONLY)]
    if left == r"\{":
        if not any(items):
            return Set(())
        if condition := _CONDITION.fullmatch(content):  # {x | 1 < x}: what it says of x
            stated = _read_item(condition["condition"])
            return stated if isinstance(stated, Relation) else Text(_folded(content))
        if not all(items) or len(items) > MOST_ITEMS or any(r"\ldots" in i or r"\mid" in i for i in items):
            return Text(_folded(content))
        return Set(tuple(_read_item(item) for item in items))
    if left == "{":  # LaTeX's own grouping
        return _read(content.strip()) if content.strip() else None
    if not all(items) or len(items) > MOST_ITEMS or any(r"\ldots" in item for item in items):
        return None if len(items) == 1 else Text(_folded(content))
    if len(items) == 1:
        return _read(items[0]) if left + right in ("()", r"\langle>") else None
    answers = tuple(_read_item(item) for item in items)
    brackets = left + right if left in "([" else "()"
    if len(answers) == 2 and (brackets != "()" or any(a in INFINITE for a in answers)):
        return Interval(brackets, *answers)
    return Tuple(brackets, answers) if brackets in ("()", "[]") else None


_CONDITION = re.compile(
    r"\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\||\\mid|\\vert|:)(?P<condition>[^,|:]*(?:\\le|\\ge|<|>)[^,|:]*)"
)


def _ratio(text: str) -> Tuple | None:
    if not re.fullmatch(r"[\d.]+(?:\s*:\s*[\d.]+)+", text):
        return None
    return Tuple(":", tuple(_read_item(part) for part in text.split(":")))


def _numeral(text: str) -> Numeral | None:
    text = re.sub(r"^\(([0-9A-F]+)\)(?=\s*_)", r"\1", text)
    found = re.fullmatch(r"(-?[0-9][0-9A-F]*(?:\.[0-9A-F]+)?)\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))", text)
    if not found:
        return None
    return Numeral(found[1].lstrip("0") or "0", int(found[2] or found[3]))


_MEASURED = re.compile(
    r"(?P<amount>.*?(?:[\d)}.]|\\pi)|.*?(?=\\text))"  # an amount ends in a digit, pi or a bracket, or before \text
    r"\s*(?:(?P<percent>%)|\\text\{\s*(?P<text>[^{}]*)\}|\s\(\s*(?P<paren>[A-Za-z][^()\d]*)\)"
    r"|(?P<word>(?<![A-Za-z\\])[A-Za-z][A-Za-z .'/-]*))"
    r"\s*(?:\^\s*\{?\s*(?P<power>[23])\s*\}?)?"
)


def _quantity(text: str) -> Answer | None:
    """A number and its unit: "9 (apples)", 5\\text{ cm}^2, 50%, \\text{dollar}20, "3 million"."""
    if found := re.fullmatch(r"(-?)\s*\\text\{(\w+)\}\s*(.*)", text):  # a currency sign in front
        if found[2] not in CURRENCY.values():
            return None
        text = f"{found[1]}{found[3]}" + ("" if re.search(r"[A-Za-z%]", found[3]) else rf"\text{{{found[2]}}}")
    if not (found := _MEASURED.fullmatch(text)):
        return None
    amount_text = found["amount"].strip()
    if found["percent"]:
        return _measure(amount_text, "%", 1)
    words = (found["text"] or found["paren"] or found["word"] or "").strip(" .")
    if found["word"] and not _may_be_unit(amount_text, text, words):
        return None
    if re.fullmatch(r"\d+", amount_text) and words in ("st", "nd", "rd", "th"):
        return Number(Fraction(int(amount_text)))
    if words in ("percent", "per cent", "percentage", "pct"):
        return _measure(amount_text, "%", 1)
    if not words or len(words.split()) > 5 or re.search(r"\d", words) or NO_UNIT.search(words):
        return None
    if PARTS.search(words) and not found["paren"]:
        return None
    return _measure(amount_text, words, int(found["power"] or 1))


def _may_be_unit(amount: str, text: str, words: str) -> bool:
    """Bare letters after a number are a unit if they are a known one, or words apart from it; "3x" is not."""
    if not re.search(r"[\d)}.]$|\\pi$", amount):
        return False
    first = words.split()[0].strip(".")
    if len(first) == 1:
        return False
    known = normal_unit(first) in UNITS or first in ("st", "nd", "rd", "th", "percent", "pct", "sq", *MULTIPLIERS)
    return known or (not amount.endswith("pi") and text[len(amount) : len(amount) + 1] == " " and len(first) > 2)


def _measure(amount_text: str, words: str, power: int) -> Answer | None:
    amount = _number(amount_text) or _expression(amount_text)
    if amount is None or (isinstance(amount, Expr) and not re.search(r"\d|\\", amount.latex)):
        return None
    first, _, others = words.partition(" ")
    if (multiplier := MULTIPLIERS.get(first.casefold().removesuffix("s"))) and isinstance(amount, Number):
        whole = Number(amount.value * multiplier)
        return Quantity(whole, normal_unit(others, power)) if others else whole
    return Quantity(amount, "%" if words == "%" else normal_unit(words, power))


_DECIMAL = re.compile(r"[-+]?\s*(\d*)\.(\d+)(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*(-?\d{1,4})\s*\}?)?")


_FLOAT = re.compile(r"^([-+]?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,3})$")  # as programs write it


def _number(text: str) -> Number | None:
    text = _FLOAT.sub(r"\1 \\times 10^{\2}", _without_thousands(text))
    text = re.sub(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d/])", lambda m: m[0].replace(" ", ""), text)
    try:
        value = evaluate(text)
    except NotExact:
        return None
    if not (decimal := _DECIMAL.fullmatch(text.strip())):
        return Number(value)
    digits = (decimal[1] + decimal[2]).lstrip("0").rstrip("0")
    return Number(value, len(digits), Fraction(10) ** (int(decimal[3] or 0) - len(decimal[2])))


_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
    | {"max", "min", "gcd", "lcm"}
)


def _expression(text: str) -> Expr | None:
    """Mathematics: no words, no dots that stand for "and so on"."""
    if r"\text" in text or r"\ldots" in text:
        return None
    words = [w for w in re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text) if w not in _FUNCTIONS]
    if not _PROSE.isdisjoint(words):
        return None
    if len(words) > 1 or any(len(word) > 3 for word in words) or _WORD.fullmatch(text):
        return None
    if _FACTOR_BEHIND.search(text) or re.search(
        r"[\"'?;:@#&%\x00-\x1f]|[^\x00-\x7f]|(?<![_^\d.])\d[\d.]*\s+\d|\d\s*_", text
    ):
        return None
    _check_size(text)
    return Expr(re.sub(r"(?<=\\)([A-Za-z]+)\s+(?![A-Za-z])", r"\1", re.sub(r"\s+", " ", text)).strip())


_PROSE = frozenset(
    {"and", "or", "at", "is", "by", "to", "of", "in", "on", "if", "no", "so", "we", "it", "for", "the", "not", "are"}
)
# A number right behind a factor: \frac{1}{2}1, x2. Nobody writes a product like that, and what is meant is open.
_FACTOR_BEHIND = re.compile(
    r"(?:\\(?:frac|sqrt)\s*(?:\[[^\]]*\])?(?:\s*\{(?:[^{}]|\{[^{}]*\})*\})+|\\pi|\\rfloor|\\rceil"
    r"|(?<![\\A-Za-z])[A-Za-z]|(?<![A-Za-z\\}_])[\dA-Za-z)]\s*\^\s*\{[^{}]*\})\s*\d"
)
# "yes" is a word; "ab" is a times b.
_WORD = re.compile(r"(?i:no|yes|true|false)|on|off|up|in|out|(?=.{3})(?=.*[aeiouAEIOU])[A-Za-z][a-z]+")


def _check_size(text: str) -> None:
    """Refuse what only asks for work: towers of powers, iterated or huge factorials, sums of very many terms."""
    depths: list[bool] = []
    raised, pending = 0, False
    for token in re.findall(r"\^|\{|\}|\S", text):
        if token == "{":
            depths.append(pending)
            raised += pending
        elif token == "}" and depths:
            raised -= depths.pop()
        pending = token == "^"
        if raised + pending > 2:
            raise TooComplex("a tower of powers")
    if re.search(r"!\s*[)}]*\s*!", text) or re.search(r"\d{5,}\s*[)}]*\s*!|\^\s*\{?\s*\d+\s*\}?\s*\)\s*!", text):
        raise TooComplex("a factorial too large to write")
    if re.search(r"\\(?:sum|prod|int|binom|lim|gcd)", text) and re.search(
        r"\d{7,}|10\s*\^\s*\{?\s*(?:[7-9]|\d\d)", text
    ):
        raise TooComplex("a sum, product or integral over too much")
    if re.search(r"\^\s*\{?\s*-?\d{6,}|\d{400,}", text):
        raise TooComplex("a number too large to write")


# --------------------------------------------------------------------------------------------------------- helpers


_READERS = (
    *(_date, _choice, _matrix, _list, _union, _plus_minus, _relation),
    *(_reals, _bracketed, _ratio, _numeral, _quantity),
)  # fmt: skip


def interval_of(relation: Relation) -> Interval | None:
    """The interval an inequality in one name says: "x > 2", "1 < x \\le 2"; None for other relations."""
    below = {"<": "(", r"\le": "["}
    above = {">": "(", r"\ge": "["}
    sides, operators = relation.sides, relation.operators
    if len(operators) == 2 and operators[0] in above and operators[1] in above:
        sides = sides[::-1]
        operators = tuple({">": "<", r"\ge": r"\le"}[o] for o in operators[::-1])
    if len(operators) == 2 and operators[0] in below and operators[1] in below and name_of(sides[1]):
        return Interval(below[operators[0]] + {"(": ")", "[": "]"}[below[operators[1]]], sides[0], sides[2])
    if len(operators) != 1 or operators[0] not in below | above:
        return None
    operator = operators[0]
    if name_of(sides[0]) is None:
        sides = sides[::-1]
        operator = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[operator]
    if name_of(sides[0]) is None or name_of(sides[1]) is not None:
        return None
    if operator in above:
        return Interval(above[operator] + ")", sides[1], INFINITE[0])
    return Interval("(" + {"(": ")", "[": "]"}[below[operator]], INFINITE[1], sides[1])


_NAME = re.compile(
    r"\|[A-Z]{2}\||\\angle ?[A-Z]{1,3}|\\overline ?\{[A-Z]{2}\}"  # |AB|, an angle
    r"|\\?[A-Za-z]+'*(?:\s*_\s*(?:\{[^{}]*\}|\w))?(?:\s*\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\))?"  # x, x_1, f(x, y)
)


def name_of(answer: Answer) -> str | None:
    """The name a side of an equation is: a letter, f(x), a word; None where it is an expression."""
    match answer:
        case Choice(letter):
            return letter
        case Text(words):
            return words if not re.search(r"\d|\bnot\b", words) else None
        case Tuple("()", items) if all(name_of(item) for item in items):  # (x, y) = (5, 8)
            return "(" + ", ".join(str(name_of(item)) for item in items) + ")"
        case Expr(latex) if _NAME.fullmatch(latex) and latex not in (r"\infty", r"\pi", r"\emptyset", "e", "i"):
            return latex
    return None


def _read_item(text: str) -> Answer:
    text = text.strip()
    if not text:
        raise Unreadable("an empty part")
    if text.startswith("+") and r"\infty" in text:
        text = text[1:].strip()
    return _read(text)


def _folded(text: str) -> str:
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold()
    words = re.sub(r"\s+", " ", words).strip(" .,;:!?\"'*")
    words = re.sub(r"\b([ap])\. ?m\b\.?", r"\1m", words)
    return re.sub(r"^(?:the|an?) ", "", words)


_COMMA = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_COMMA_ONLY = re.compile(r"[,;]")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_BRACKET = re.compile(r"\\begin|\\end|\\[{}]|\\langle|\\rangle|[()\[\]{}]")
_OPEN = frozenset(["(", "[", "{", r"\{", r"\langle", r"\begin"])


def _at_top(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int, str]]:
    """(start, end, text) of every match of ``pattern`` that stands in no bracket."""
    brackets = [(m.start(), 1 if m[0] in _OPEN else -1) for m in _BRACKET.finditer(text)]
    depth = at = 0
    for found in pattern.finditer(text):
        while at < len(brackets) and brackets[at][0] < found.start():
            depth += brackets[at][1]
            at += 1
        if depth == 0:
            yield found.start(), found.end(), found[0].strip()


def _split(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    start = 0
    parts: list[str] = []
    for at, end, separator in _at_top(text, pattern):
        # "1, and 2" is one separation
        if not (separator in ("and", "or") and parts and not text[start:at].strip()):
            parts.append(text[start:at])
        start = end
    yield from parts
    yield text[start:]


def _closing(text: str, opening: int, left: str = "{") -> int:
    """Where the bracket that opens at ``opening`` closes (any kind closes any: half-open intervals); -1 if nowhere."""
    depth = 0
    for found in _BRACKET.finditer(text, opening - len(left) + 1):
        depth += 1 if found[0] in _OPEN else -1
        if depth == 0:
            return found.end() - 1
    return -1


_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d)")


def _without_thousands(text: str) -> str:
    if "," not in text:
        return text
    inside = {at for at, _, _ in _at_top(text, _GROUPED)}
    return _GROUPED.sub(lambda m: m[0].replace(",", "") if m.start() in inside else m[0], text)
