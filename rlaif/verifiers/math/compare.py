"""How two answers are compared: a table from types to functions (`RULES`).

What reads the same is equal. Two types without an entry are not: a tuple is no interval, "1 or 2" is not 2, a numeral
in base two is not the number its digits spell in base ten. In doubt, not equal: a wrong answer that passes teaches a
policy more than a right one that fails.

Numbers are exact. A decimal stands for a value it only approximates where the value has no finite decimal (1/3, pi),
the decimal shows at least six significant digits, and it is the value rounded or cut off there: 0.333333 is 1/3, 0.333
and 0.333334 are not, and 1000001.0000001 is not 1000001.

``Algebra`` decides about what is no rational number: `Exactly` (here) only where that is plain, and otherwise raises
Undecided; the workers' (algebra.py) by computer algebra.
"""

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Protocol

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
from rlaif.verifiers.math.parse import INFINITE, interval_of, name_of
from rlaif.verifiers.math.units import TEMPERATURES, same_noun, worth

SIGNIFICANT = 6  # digits a decimal must show to stand for what it approximates

Leaf = Number | Expr
EMPTY_SET = Expr(r"\emptyset")


class Algebra(Protocol):
    def same(self, a: Leaf, b: Leaf) -> bool:
        """Whether two expressions, at least one of them no plain number, have the same value."""
        ...

    def same_equation(self, a: tuple[Leaf, Leaf], b: tuple[Leaf, Leaf]) -> bool:
        """Whether two equations, each as (left, right), have the same solutions because one is a multiple of the
        other."""
        ...


class Undecided(Exception):
    """This needs computer algebra."""


class Exactly:
    """What can be said without computer algebra."""

    def same(self, a: Leaf, b: Leaf) -> bool:
        if a in INFINITE or b in INFINITE:
            return a == b
        raise Undecided

    def same_equation(self, a: tuple[Leaf, Leaf], b: tuple[Leaf, Leaf]) -> bool:
        raise Undecided


def equal(a: Answer, b: Answer, algebra: Algebra) -> bool:
    """Whether two answers are the same answer; symmetric. Raises what ``algebra`` raises."""
    if a == b:
        return True
    if rule := RULES.get((type(a), type(b))):
        return rule(a, b, algebra)
    if rule := RULES.get((type(b), type(a))):
        return rule(b, a, algebra)
    return False


# ---------------------------------------------------------------------------------------------------------- the rules


def numbers(a: Number, b: Number, _: Algebra) -> bool:
    return a.value == b.value or approximates(a, b) or approximates(b, a)


def approximates(decimal: Number, exact: Number) -> bool:
    """Whether ``decimal`` stands for the other value (see the header)."""
    return (
        decimal.digits >= SIGNIFICANT
        and not has_finite_decimal(exact.value)
        and is_rounded(decimal.value, exact.value, decimal.unit_in_last_place)
    )


def is_rounded(decimal: Any, exact: Any, unit: Any) -> bool:
    """Whether ``decimal`` is ``exact`` rounded or cut off at a digit worth ``unit``; numbers of any one kind."""
    beyond = abs(exact) - abs(decimal)
    return bool((decimal > 0) == (exact > 0) and -unit / 2 <= beyond < unit)


def has_finite_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def leaves(a: Leaf, b: Leaf, algebra: Algebra) -> bool:
    return algebra.same(a, b)


def choices(a: Choice, b: Choice, algebra: Algebra) -> bool:
    """The same letter, and no other number behind it."""
    numbers_differ = isinstance(a.says, Number) and isinstance(b.says, Number) and not equal(a.says, b.says, algebra)
    return a.letter == b.letter and not numbers_differ


def letters(choice: Choice, leaf: Leaf, algebra: Algebra) -> bool:
    return algebra.same(Expr(choice.letter), leaf) if choice.says is None else equal(choice.says, leaf, algebra)


def option_of(choice: Choice, answer: Answer, algebra: Algebra) -> bool:
    """ "(C) 14" where the reference is 14: which letter the option has in the question is not known here."""
    return choice.says is not None and equal(choice.says, answer, algebra)


def only_itself(a: Answer, b: Answer, _: Algebra) -> bool:
    return a == b


def quantities(a: Quantity, b: Quantity, algebra: Algebra) -> bool:
    if a.unit == b.unit:
        return equal(a.amount, b.amount, algebra)
    if {"degree"} < {a.unit, b.unit} < {"degree", *TEMPERATURES}:
        return equal(a.amount, b.amount, algebra)
    one, other = worth(a.unit), worth(b.unit)
    if one is None and other is None:
        return "%" not in (a.unit, b.unit) and same_noun(a.unit, b.unit) and equal(a.amount, b.amount, algebra)
    if one is None or other is None or one[0] != other[0]:
        return False
    if not isinstance(a.amount, Number) or not isinstance(b.amount, Number):
        return False
    return a.amount.value * one[1] == b.amount.value * other[1]


def unit_left_out(quantity: Quantity, bare: Leaf, algebra: Algebra) -> bool:
    if isinstance(bare, Expr) and (measured := _letter_for_unit(bare, quantity.unit)):
        return quantities(quantity, measured, algebra)
    if equal(quantity.amount, bare, algebra):
        return True
    if quantity.unit == "%" and isinstance(quantity.amount, Number):
        return equal(Number(quantity.amount.value / 100), bare, algebra)
    return False


def _letter_for_unit(bare: Expr, unit: str) -> Quantity | None:
    """ "5000 g" where the other side says kg: only beside a unit of its kind is a letter one, elsewhere a variable."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ([a-z])", bare.latex)
    kinds = [worth(unit), worth(found[2])] if found else [None]
    if found is None or None in kinds or len({kind[0] for kind in kinds if kind}) > 1:
        return None
    return Quantity(Number(Fraction(found[1])), found[2])


def in_order(a: Tuple, b: Tuple, algebra: Algebra) -> bool:
    return a.brackets == b.brackets and _all_equal(a.items, b.items, algebra)


def intervals(a: Interval, b: Interval, algebra: Algebra) -> bool:
    return a.brackets == b.brackets and _all_equal((a.low, a.high), (b.low, b.high), algebra)


def interval_or_pair(a: Interval, b: Tuple, algebra: Algebra) -> bool:
    # Only an interval read out of an inequality is "()" without infinity; (1, 2) itself is read as a tuple.
    return a.brackets == b.brackets == "()" and _all_equal((a.low, a.high), b.items, algebra)


def sets(a: Set, b: Set, algebra: Algebra) -> bool:
    return same_members(a.items, b.items, algebra)


def unions(a: Union, b: Union, algebra: Algebra) -> bool:
    return same_members(a.parts, b.parts, algebra)


def only_member(a: Set, b: Answer, algebra: Algebra) -> bool:
    if b == EMPTY_SET:
        return not a.items  # a set that holds the empty set is not empty
    return bool(a.items) and all(equal(item, b, algebra) for item in a.items)


def same_members(a: Iterable[Answer], b: Iterable[Answer], algebra: Algebra) -> bool:
    """As sets: every member of one is a member of the other."""
    left, right = list(a), list(b)
    return all(any(equal(x, y, algebra) for y in right) for x in left) and all(
        any(equal(y, x, algebra) for x in left) for y in right
    )


def matrices(a: Matrix, b: Matrix, algebra: Algebra) -> bool:
    return len(a.rows) == len(b.rows) and all(_all_equal(x, y, algebra) for x, y in zip(a.rows, b.rows, strict=True))


def vector(a: Matrix, b: Tuple, algebra: Algebra) -> bool:
    """A matrix of one row or one column is the tuple of its entries."""
    entries = a.rows[0] if len(a.rows) == 1 else tuple(row[0] for row in a.rows) if len(a.rows[0]) == 1 else ()
    return b.brackets == "()" and bool(entries) and _all_equal(entries, b.items, algebra)


def relations(a: Relation, b: Relation, algebra: Algebra) -> bool:
    if (one := interval_of(a)) and (other := interval_of(b)):
        return _variable(a) == _variable(b) and equal(one, other, algebra)
    if (one and _named(b)) or (interval_of(b) and _named(a)):  # m >= 1, m \in [1, \infty)
        inequality, named = (a, b) if one else (b, a)
        return _variable(inequality) == name_of(named.sides[0]) and named_value(named, interval_of(inequality), algebra)
    if a.operators != b.operators:
        return False
    names = (name_of(a.sides[0]), name_of(b.sides[0]))
    if len(a.operators) == 1 and None not in names and None is name_of(a.sides[1]) is name_of(b.sides[1]):
        if names[0] == names[1]:
            return equal(a.sides[1], b.sides[1], algebra)
        if isinstance(a.sides[1], Number) and isinstance(b.sides[1], Number):
            return False
    elif _all_equal(a.sides, b.sides, Plainly()):
        return True
    if a.operators == ("=",) and all(isinstance(s, Number | Expr | Choice) for s in (*a.sides, *b.sides)):
        return algebra.same_equation(_leaf_pair(a), _leaf_pair(b))
    return _all_equal(a.sides, b.sides, algebra)


def named_value(a: Relation, b: Any, algebra: Algebra) -> bool:
    """ "x = 5" is 5, and m \\in [1, 2] is [1, 2]. A chain (2 + 3 = 5) is what all its sides are: 1 = 2 is nothing."""
    if any(operator != "=" for operator in a.operators) and a.operators != (r"\in",):
        return (region := interval_of(a)) is not None and isinstance(b, Interval | Tuple) and equal(region, b, algebra)
    values = a.sides[1:] if name_of(a.sides[0]) else a.sides
    if a.operators == ("=",) and name_of(a.sides[1]) and not name_of(a.sides[0]):  # 5 = x
        values = a.sides[:1]
    if len(values) > 1 and not all(isinstance(value, Number | Quantity) for value in values):
        return False
    return all(equal(value, b, algebra) for value in values)


Rule = Callable[[Any, Any, Algebra], bool]
RULES: dict[tuple[type, type], Rule] = {
    (Number, Number): numbers,
    (Number, Expr): leaves,
    (Expr, Expr): leaves,
    (Choice, Choice): choices,
    (Choice, Expr): letters,
    **{(Choice, other): option_of for other in (Number, Quantity, Text, Tuple, Interval, Matrix)},
    (Text, Text): only_itself,
    (Numeral, Numeral): only_itself,
    (Quantity, Quantity): quantities,
    (Quantity, Number): unit_left_out,
    (Quantity, Expr): unit_left_out,
    (Tuple, Tuple): in_order,
    (Interval, Interval): intervals,
    (Interval, Tuple): interval_or_pair,
    (Set, Set): sets,
    (Set, Number): only_member,
    (Set, Expr): only_member,
    (Set, Quantity): only_member,
    (Set, Choice): only_member,
    (Set, Text): only_member,
    (Union, Union): unions,
    (Matrix, Matrix): matrices,
    (Matrix, Tuple): vector,
    (Relation, Relation): relations,
    **{
        (Relation, other): named_value
        for other in (Number, Expr, Quantity, Numeral, Tuple, Interval, Set, Union, Matrix)
    },
}


# -------------------------------------------------------------------------------------------------------- for relations


class Plainly:
    """No algebra at all: what is not the same by itself counts as different."""

    def same(self, a: Leaf, b: Leaf) -> bool:
        return a == b

    def same_equation(self, a: tuple[Leaf, Leaf], b: tuple[Leaf, Leaf]) -> bool:
        return a == b


def _all_equal(a: tuple[Answer, ...], b: tuple[Answer, ...], algebra: Algebra) -> bool:
    return len(a) == len(b) and all(equal(x, y, algebra) for x, y in zip(a, b, strict=True))


def _named(relation: Relation) -> bool:
    return relation.operators in (("=",), (r"\in",)) and name_of(relation.sides[0]) is not None


def _variable(relation: Relation) -> str | None:
    """The name an inequality is about."""
    return next((name for side in relation.sides if (name := name_of(side))), None)


def _leaf_pair(relation: Relation) -> tuple[Leaf, Leaf]:
    left, right = (Expr(s.letter) if isinstance(s, Choice) else s for s in relation.sides)
    assert isinstance(left, Number | Expr)
    assert isinstance(right, Number | Expr)
    return left, right
