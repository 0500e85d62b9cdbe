"""Units: which words are the same measure, and what one is worth in another.

The rule: a unit may be left out on either side ("$20.00" is 20); where both sides name one, the measures must be of
one kind and are converted exactly ("1 m" is "100 cm"); a counted noun must be the same noun ("9 apples" is not
"9 oranges"). A percent sign is a unit whose number may also be written as the fraction it is: 50 % is 50 and 0.5.
"""

import re
from fractions import Fraction

_F = Fraction
# kind -> {spellings: worth in the kind's first unit}
_KINDS: dict[str, dict[str, Fraction]] = {
    "length": {
        "m meter metre": _F(1),
        "km kilometer kilometre": _F(1000),
        "dm decimeter decimetre": _F(1, 10),
        "cm centimeter centimetre": _F(1, 100),
        "mm millimeter millimetre": _F(1, 1000),
        "in inch": _F(254, 10000),
        "ft foot": _F(3048, 10000),
        "yd yard": _F(9144, 10000),
        "mi mile": _F(1609344, 1000),
    },
    "mass": {
        "g gram": _F(1),
        "kg kilogram kilo": _F(1000),
        "mg milligram": _F(1, 1000),
        "lb pound": _F(45359237, 100000),
        "oz ounce": _F(45359237, 1600000),
    },
    "time": {
        "s sec second": _F(1),
        "min minute": _F(60),
        "h hr hour": _F(3600),
        "day": _F(86400),
        "week": _F(604800),
    },
    "volume": {"l liter litre": _F(1), "ml milliliter millilitre": _F(1, 1000)},
    "us volume": {"cup": _F(1), "pint": _F(2), "quart": _F(4), "gallon": _F(16)},
    "dollars": {"dollar usd": _F(1), "cent": _F(1, 100)},
    "euro": {"euro eur": _F(1)},
    "pounds sterling": {"gbp": _F(1)},
    "yen": {"yen jpy": _F(1)},
    "rupees": {"rupee inr": _F(1)},
    "angle": {"degree deg": _F(1)},
    "length/time": {"mph": _F(1609344, 3600 * 1000)},
}
UNITS: dict[str, tuple[str, Fraction]] = {
    word: (kind, worth) for kind, units in _KINDS.items() for words, worth in units.items() for word in words.split()
}
# What stands before a number, or after it, as a sign.
CURRENCY = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}
MULTIPLIERS = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
TEMPERATURES = ("degree c", "degree f")
# Words after a number that make it another number, a guess or a sentence: "5 plus three", "2 or three", "5 is wrong".
NO_UNIT = re.compile(
    r"\b(?:plus|minus|squared|cubed|than|factorial|root|over|power|modulo?|negative|not|is|are|was|were|but|if|because"
    r"|since|unless|wrong|false|incorrect|or|and|either|maybe|perhaps|possibly|probably|otherwise|to|through)\b"
    r"|\btimes\s+\w",
    re.IGNORECASE,
)
# Parts, where they are no noun in brackets, as in "4 (quarters)".
PARTS = re.compile(
    r"\b(?:hal(?:f|ves)|thirds?|fourths?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?"
    r"|thousandths?)\b",
    re.IGNORECASE,
)
_IRREGULAR = {"feet": "foot", "inches": "inch", "children": "child", "people": "person", "pennies": "penny"}
_POWER = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word


def normal_unit(words: str, power: int = 1) -> str:
    """One spelling of a unit: ``square centimeters``, ``sq. cm``, ``cm^2`` are "cm^2"; nouns in the singular."""
    parts = [_singular(w) for w in re.sub(r"[^\w%\s-]", " ", words.casefold().replace("/", " per ")).split()]
    if parts and parts[0] in _POWER and len(parts) > 1:
        power, parts = _POWER[parts[0]], parts[1:]
    name = " ".join(parts)
    return f"{name}^{power}" if power != 1 else name


def worth(unit: str) -> tuple[str, Fraction] | None:
    """(kind, worth in the kind's first unit) of a measure; None for a counted noun."""
    name, _, power = unit.partition("^")
    if len(sides := name.split(" per ")) == 2 and not power:
        over, under = worth(sides[0]), worth(sides[1])
        return (f"{over[0].removesuffix('^1')}/{under[0]}", over[1] / under[1]) if over and under else None
    if name not in UNITS:
        return None
    kind, factor = UNITS[name]
    exponent = int(power or 1)
    return (f"{kind}^{exponent}", factor**exponent)


def same_noun(a: str, b: str) -> bool:
    """Whether two counted nouns may be one thing: all words of one are among the other's ("red apple", "apple")."""
    left, right = set(a.split()), set(b.split())
    return left <= right or right <= left
