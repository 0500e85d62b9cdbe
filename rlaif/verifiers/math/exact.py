"""Rational arithmetic on LaTeX, exact and bounded: the fast path that most answers never leave.

`evaluate` reads numbers, + - * /, fractions, whole powers, factorials, roots that come out even, repeating decimals
and mixed numbers, and nothing else. It is bounded by a budget of bits, so that it may run in the caller's process.
"""

import math
import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+|\\[A-Za-z]+|\\.|.)", re.DOTALL)
_BUDGET = 1 << 18  # bits read or written by all operations together: some milliseconds
_DEPTH = 40


class NotExact(Exception):
    """The text is no rational arithmetic, or too much of it."""


def evaluate(text: str) -> Fraction:
    """The value. Raises NotExact."""
    reader = _Reader(_TOKEN.findall(text))
    value = reader.sum()
    if reader.next is not None:
        raise NotExact
    return value


class _Reader:
    """Recursive descent: sum > product > signed > power > atom."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.bits, self.depth = tokens, 0, 0, 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        if self.at == len(self.tokens):
            raise NotExact
        self.at += 1
        return self.tokens[self.at - 1]

    def spend(self, value: Fraction) -> Fraction:
        self.bits += value.numerator.bit_length() + value.denominator.bit_length() + 64
        if self.bits > _BUDGET:
            raise NotExact
        return value

    def sum(self) -> Fraction:
        value = self.product()
        while self.next in ("+", "-"):
            value = self.spend(value + self.product() if self.take() == "+" else value - self.product())
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while (token := self.next) is not None:
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value = self.spend(value * self.signed())
            elif token in ("/", r"\div"):
                self.take()
                value = self.spend(_divide(value, self.signed()))
            elif token in ("(", "{", r"\frac", r"\sqrt"):  # 2(3), 2\frac12
                value = self.beside(value, token)
            elif token.isdecimal() and self.tokens[self.at + 1 : self.at + 2] == ["/"]:  # 1 1/2
                written, top, _, bottom = self.tokens[self.at - 1], self.take(), self.take(), self.take()
                if not bottom.isdecimal():
                    raise NotExact
                value = self.mixed(value, _divide(Fraction(int(top)), Fraction(int(bottom))), written)
            else:
                break
        return value

    def beside(self, value: Fraction, token: str) -> Fraction:
        """What stands beside a value without a sign: a mixed number after a whole number, else a factor."""
        written = self.tokens[self.at - 1]
        factor = self.power()
        if token == r"\frac" and written.isdecimal():
            return self.mixed(value, factor, written)
        return self.spend(value * factor)

    def mixed(self, whole: Fraction, part: Fraction, written: str) -> Fraction:
        # ``written``: the token before the fraction. 2*1 1/2 is 3, and not read here.
        if not written.isdecimal() or abs(whole) != int(written) or not 0 < part < 1:
            raise NotExact
        return self.spend(whole + part if whole >= 0 else whole - part)

    def signed(self) -> Fraction:
        sign = 1
        while self.next in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign * self.power()

    def power(self) -> Fraction:
        value = self.atom()
        while self.next in ("^", "!"):
            value = self.spend(self.raised(value) if self.take() == "^" else self.factorial(value))
        return value

    def raised(self, base: Fraction) -> Fraction:
        exponent = self.argument()
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1:
            return _root(base, exponent)
        if (size > 1 and size * abs(exponent) > _BUDGET - self.bits) or abs(exponent) > 10**9:
            raise NotExact
        if base == 0 and exponent <= 0:
            raise NotExact
        return base ** int(exponent)

    def factorial(self, value: Fraction) -> Fraction:
        if value.denominator != 1 or not 0 <= value <= 3000 or self.next == "!":
            raise NotExact
        return Fraction(math.factorial(int(value)))

    def argument(self) -> Fraction:
        """LaTeX's argument of a command: a group, or one digit (\\frac12 is a half)."""
        token = self.next
        if token is not None and token[0].isdigit():
            self.tokens[self.at] = token[1:]
            if not token[1:]:
                self.at += 1
            return Fraction(int(token[0]))
        if token in ("{", r"\frac", r"\sqrt"):
            return self.atom()
        raise NotExact

    def atom(self) -> Fraction:
        self.depth += 1
        if self.depth > _DEPTH:
            raise NotExact
        value = self.unbounded_atom()
        self.depth -= 1
        return value

    def unbounded_atom(self) -> Fraction:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if token in ("(", "{"):
            value = self.sum()
            if self.take() != {"(": ")", "{": "}"}[token]:
                raise NotExact
            return value
        if token == r"\frac":
            return self.spend(_divide(self.argument(), self.argument()))
        if token == r"\sqrt":
            return _root(self.argument(), Fraction(1, 2))
        raise NotExact

    def number(self, token: str) -> Fraction:
        value = self.spend(Fraction(token))
        if self.next in (r"\overline", r"\bar", r"\dot") and "." in token:  # 0.1\overline{6}
            self.take()
            digits = "".join(self.tokens[self.at + 1 : self.at + 2])
            if [self.take(), self.take(), self.take()] != ["{", digits, "}"] or not digits.isdecimal():
                raise NotExact
            shift = len(token.partition(".")[2])
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**shift)
        return value


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise NotExact
    return a / b


def _root(value: Fraction, exponent: Fraction) -> Fraction:
    """value ** exponent where it is rational, for square roots of what is not negative."""
    if exponent.denominator != 2 or abs(exponent.numerator) > 64 or value < 0:
        raise NotExact
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top != value.numerator or bottom * bottom != value.denominator or (top == 0 and exponent < 0):
        raise NotExact
    return Fraction(top, bottom) ** exponent.numerator
