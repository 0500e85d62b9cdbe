"""Equality by computer algebra. Runs in a worker only (forkserver.py): what it is given may make it run for ever.

LaTeX is read by the parser of math-verify (latex2sympy2_extended, an ANTLR grammar; nothing is evaluated as Python).
Two expressions are the same if they are so to sympy, or if their values agree to 40 digits: the values themselves where
there are no symbols, else those at points that are the same for every question (drawn from the symbols' names), of
which those count where both are real. So ``\\ln x^2`` is ``2 \\ln x``, and ``\\sqrt{x^2}`` is not ``x``.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from rlaif.verifiers.math.answers import Expr, Number
from rlaif.verifiers.math.compare import SIGNIFICANT, Leaf, is_rounded

_PRECISION = 60  # digits evaluated
_AGREEMENT = 40  # digits that must agree
_POINTS = 12
_ENOUGH = 3  # points that must count


class NotMathematics(Exception):
    """The computer algebra cannot read an expression."""


class Sympy:
    """`compare.Algebra` by sympy. Values are kept for the life of the object."""

    def __init__(self) -> None:
        self._values: dict[Leaf, Any] = {}

    def value(self, leaf: Leaf) -> Any:
        """The sympy value. Raises NotMathematics."""
        if leaf not in self._values:
            self._values[leaf] = _rational(leaf) if isinstance(leaf, Number) else _read(leaf.latex)
        return self._values[leaf]

    def same(self, a: Leaf, b: Leaf) -> bool:
        x, y = self.value(a), self.value(b)
        return _tried(lambda: _same(x, y) or _approximated(a, y) or _approximated(b, x))

    def same_equation(self, a: tuple[Leaf, Leaf], b: tuple[Leaf, Leaf]) -> bool:
        sides = [(self.value(left), self.value(right)) for left, right in (a, b)]
        return _tried(lambda: _proportional(*(left - right for left, right in sides)))


def _tried(compare: Callable[[], bool]) -> bool:
    """What sympy fails to compare is not shown to be equal."""
    try:
        return compare()
    except (MemoryError, RecursionError, NameError):  # the last is a mistake of ours
        raise
    except Exception:  # its own, of many types  # noqa: BLE001
        return False


def _proportional(f: Any, g: Any) -> bool:
    """Whether f / g is a constant, at the points where neither is 0."""
    if f.free_symbols != g.free_symbols or not f.free_symbols:
        return False
    ratios = []
    for point in _points(f.free_symbols):
        x, y = _evaluated(f.subs(point)), _evaluated(g.subs(point))
        if x and y:
            ratios.append(x / y)
            if not _close(ratios[0], ratios[-1]):
                return False
    return len(ratios) >= _ENOUGH


def _rational(number: Number) -> Any:
    from sympy import Rational

    return Rational(number.value.numerator, number.value.denominator)


_DECIMAL = re.compile(r"(\d*)\.(\d+)")  # exact: 10.5 is 21/2, and no float of 15 digits


def _read(latex: str) -> Any:
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy import Basic, I, MatrixBase, Symbol

    try:
        value = latex2sympy(
            _DECIMAL.sub(lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", latex),
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if not isinstance(value, Basic | MatrixBase):
            raise NotMathematics(f"{latex!r} is no expression")
        value = value.subs(Symbol("i", real=True), I)  # an index of a sum is bound and stays
        return value.doit()
    except (MemoryError, RecursionError, NotMathematics):
        raise
    except Exception as error:  # the parser's and sympy's own, of many types
        raise NotMathematics(f"{latex[:80]!r} cannot be read: {type(error).__name__}") from error


def _same(x: Any, y: Any) -> bool:
    from sympy import Expr as Expression
    from sympy import simplify

    if x == y:
        return True
    if not (isinstance(x, Expression) and isinstance(y, Expression)):
        return False
    symbols = x.free_symbols | y.free_symbols
    if not symbols:
        p, q = _evaluated(x), _evaluated(y)
        if p is None or q is None:
            return False
        if max(abs(p), abs(q)) < 10.0**-_AGREEMENT:  # noise, or very small: only algebra can tell
            return bool(simplify(x - y) == 0)
        return _close(p, q)
    counted: list[tuple[bool, bool]] = []  # at each point: whether both are real, whether they agree
    for point in _points(symbols):
        p, q = _evaluated(x.subs(point)), _evaluated(y.subs(point))
        if p is None or q is None:
            continue
        both_real = p.imag == 0 and q.imag == 0
        if both_real and not _close(p, q):
            return False
        counted.append((both_real, _close(p, q)))
    real = [agree for both_real, agree in counted if both_real]
    relevant = real if len(real) >= _ENOUGH else [agree for _, agree in counted]
    if len(relevant) >= _ENOUGH:
        return all(relevant)
    return bool(simplify(x - y) == 0)  # an unknown function, say


def _approximated(decimal: Leaf, value: Any) -> bool:
    """compare.approximates, for what is no rational."""
    if not isinstance(decimal, Number) or decimal.digits < SIGNIFICANT:
        return False
    if getattr(value, "free_symbols", True) or value.is_rational:
        return False
    exact = _evaluated(value)
    if exact is None or exact.imag != 0:
        return False
    return is_rounded(_mp(decimal.value), exact.real, _mp(decimal.unit_in_last_place))


def _points(symbols: Any) -> Iterator[dict[Any, Any]]:
    from sympy import Rational

    for index in range(_POINTS):
        point = {}
        for symbol in symbols:
            drawn = int.from_bytes(hashlib.sha256(f"{symbol.name}:{index}".encode()).digest()[:4], "big")
            point[symbol] = Rational(drawn % 6007 - 3003, 1009)  # in (-3, 3)
        yield point


def _evaluated(expression: Any) -> Any:
    """The value as an mpmath number of `_PRECISION` digits; None where it has none."""
    import mpmath
    from sympy import Float, Integer

    value = expression.evalf(_PRECISION)
    if not getattr(value, "is_number", False):
        return None
    real, imaginary = value.as_real_imag()
    parts = []
    for part in (real, imaginary):
        if not isinstance(part, Float | Integer) and not (part.is_Rational or part.is_Float):
            return None
        parts.append(mpmath.mpf(part._to_mpmath(_precision_bits())))
    if not all(mpmath.isfinite(part) for part in parts):
        return None
    # A rounding error in one part is no part.
    if abs(parts[1]) < abs(parts[0]) * mpmath.mpf(10) ** -_AGREEMENT:
        parts[1] = mpmath.mpf(0)
    return mpmath.mpc(*parts)


def _precision_bits() -> int:
    return int(_PRECISION * 3.33) + 8


def _mp(value: Any) -> Any:
    import mpmath

    return mpmath.mpf(value.numerator) / mpmath.mpf(value.denominator)


def _close(p: Any, q: Any) -> bool:
    import mpmath

    return bool(abs(p - q) <= max(abs(p), abs(q)) * mpmath.mpf(10) ** -_AGREEMENT)


def warm_up() -> None:
    """Make the first question as fast as the later ones: parser tables, sympy's lazy imports."""
    import mpmath

    mpmath.mp.dps = _PRECISION + 5
    algebra = Sympy()
    for a, b in _WARMING:
        algebra.same(Expr(a), Expr(b))
    x = Expr("x"), Expr(r"\frac{1}{2}")
    algebra.same_equation(x, x)


_WARMING = [
    (r"\frac{1}{2} x^{2} - 3\sqrt{x+1}", r"\frac{x^{2}}{2} + \ln x"),
    (r"\sin(\frac{\pi}{2}-x)", r"\cos x + 2^{n} \cdot n!"),
    (r"\int_{0}^{12} x dx", r"\sum_{k=1}^{10} k"),
    (r"2\sqrt{3} + \pi", r"e^{2} + \log_{2} 8 - |x| + f(x)"),
    (r"\sqrt[3]{5} + \tan^{2} \theta", r"\lim_{x \to 0} \frac{\sin x}{x}"),
    (r"(x-1)(x+1)", r"\binom{5}{2} + 1.5"),
]
