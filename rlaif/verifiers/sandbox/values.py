"""Values as they cross between a sandbox and us: plain JSON with tags, of exact builtin types only.

====================================  =====================================================
None, bool, str, small int, float     themselves
list                                  a JSON list
big int, NaN, infinities              ``{"int": "0x..."}``, ``{"float": "nan"}``
everything else                       ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, ...
an object of any other type           refused, or ``{"object": ...}`` by the caller's ``box``
====================================  =====================================================

A subclass is another type: an ``int`` whose ``__eq__`` always agrees must not pass for an int. Nothing is pickled.

`same` compares two *encoded* values, so that nothing of a candidate's is ever rebuilt outside of a sandbox (a set of
colliding numbers alone can keep an interpreter busy for hours).

Standard library only: both ends of the channel load this file.
"""

import builtins
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100  # far below the interpreter's recursion limit, which json obeys too
MAX_ITEMS = 1_000_000  # shared parts count each time they are met, so a value cannot unfold without bound
_CONTAINER = 8  # what a container counts besides its parts
MAX_CHARS = 8 << 20
_SMALL = 2**63  # a larger int is written in base 16, which no digit limit concerns and no quadratic algorithm slows


class Unencodable(TypeError):
    """The value is of no type that may cross."""


class TooLarge(ValueError):
    """The value is nested too deeply (or in itself), or has too many parts."""


class Malformed(ValueError):
    """These bytes are no message, or this JSON no value: nobody honest wrote it."""


# ------------------------------------------------------------------------------------------------------ the bytes


def dumps(message: Any) -> bytes:
    """One line of ASCII."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def loads(line: bytes) -> Any:
    """The JSON of one line. Raises Malformed for anything else, whoever wrote it."""
    try:
        return json.loads(line.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not a line of JSON ({type(error).__name__})") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# --------------------------------------------------------------------------------------------------------- encode

Box = Callable[[Any], Any]  # an object of another type -> JSON that stands for it


def encode(value: Any, box: Box | None = None) -> Any:
    """``value`` as JSON. Raises Unencodable (only without ``box``) and TooLarge."""
    return _Encoder(box).encode(value, MAX_DEPTH)


class _Encoder:
    def __init__(self, box: Box | None) -> None:
        self.box = box
        self.room = MAX_ITEMS

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _AS_IS:
            return value
        if kind is str:
            return _text(value)
        if kind is int:
            return value if -_SMALL < value < _SMALL else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return self.items(value, depth)
        if kind in _SCALARS:
            tag, payload = _SCALARS[kind](value)
            return {tag: payload}
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: self.items(value, depth)}
        if kind in _MAPPINGS:
            return {_MAPPINGS[kind]: [self.items(pair, depth) for pair in value.items()]}
        if kind is type and value in _TYPES.values():
            return {"type": value.__name__}
        if self.box is None:
            raise Unencodable(f"an object of type {kind.__name__}")
        return self.box(value)

    def items(self, values: Collection[Any], depth: int) -> list[Any]:
        if depth <= 0:
            raise TooLarge(f"a value nested more than {MAX_DEPTH} deep")
        self.room -= len(values) + _CONTAINER
        if self.room < 0:
            raise TooLarge(f"a value of more than {MAX_ITEMS:,} parts")
        return [self.encode(v, depth - 1) for v in values]


def _text(value: str) -> Any:
    if len(value) > MAX_CHARS:
        raise TooLarge(f"a text of {len(value):,} characters")
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
        return value
    except UnicodeEncodeError:  # halves of surrogate pairs: JSON would join two of them to one character
        return {"str": value.encode("utf-8", "surrogatepass").hex()}


_AS_IS = frozenset((type(None), bool))
_SEQUENCES: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
_MAPPINGS: dict[type, str] = {dict: "dict", Counter: "counter", OrderedDict: "ordered", defaultdict: "defaultdict"}
_SCALARS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    bytes: lambda v: ("bytes", v.hex()),
    bytearray: lambda v: ("bytearray", v.hex()),
    Decimal: lambda v: ("decimal", str(v)),
    Fraction: lambda v: ("fraction", [hex(v.numerator), hex(v.denominator)]),
    complex: lambda v: ("complex", [repr(v.real), repr(v.imag)]),
    range: lambda v: ("range", [hex(v.start), hex(v.stop), hex(v.step)]),
    type(...): lambda v: ("ellipsis", None),
}

# --------------------------------------------------------------------------------------------------------- decode


def decode(data: Any, unbox: Callable[[Any], Any] | None = None) -> Any:
    """The value of ``data``, for use inside of a sandbox. Raises Malformed."""
    try:
        return _decode(data, unbox)
    except Malformed:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
        raise Malformed(f"not an encoded value ({type(error).__name__})") from None


def _decode(data: Any, unbox: Callable[[Any], Any] | None) -> Any:
    if type(data) is list:
        return [_decode(d, unbox) for d in data]
    if type(data) is not dict:
        return data
    ((tag, payload),) = data.items()
    if tag in _COLLECT:
        return _COLLECT[tag](_decode(d, unbox) for d in payload)
    if tag in _PAIR:
        return _PAIR[tag]((_decode(k, unbox), _decode(v, unbox)) for k, v in payload)
    if tag in _BUILD:
        return _BUILD[tag](payload)
    if unbox is None:
        raise Malformed(f"unknown tag {str(tag)[:20]!r}")
    return unbox(data)


def _hex(text: str) -> int:
    return int(text, 16)


def _counter(pairs: Iterable[tuple[Any, Any]]) -> "Counter[Any]":
    return Counter(dict(pairs))


def _defaultdict(pairs: Iterable[tuple[Any, Any]]) -> "defaultdict[Any, Any]":
    return defaultdict(None, pairs)  # its factory does not cross; two of them are equal whatever it is


_COLLECT: dict[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
_PAIR: dict[str, Callable[[Iterable[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "counter": _counter,
    "ordered": OrderedDict,
    "defaultdict": _defaultdict,
}
_TYPES = {name: value for name, value in vars(builtins).items() if type(value) is type}
_BUILD: dict[str, Callable[[Any], Any]] = {
    "int": _hex,
    "float": float,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "decimal": Decimal,
    "fraction": lambda p: Fraction(_hex(p[0]), _hex(p[1])),
    "complex": lambda p: complex(float(p[0]), float(p[1])),
    "range": lambda p: range(*map(_hex, p)),
    "ellipsis": lambda p: ...,
    "type": lambda name: _TYPES[name],
}

# -------------------------------------------------------------------------------------------------------- compare


def without_tuples(data: Any) -> Any:
    """The encoded value with a list for every tuple in it. ``data`` may be any JSON at all."""
    try:
        return _without_tuples(data)
    except RecursionError:
        return data


def _without_tuples(data: Any) -> Any:
    if isinstance(data, list):
        return [_without_tuples(part) for part in data]
    if isinstance(data, dict):
        plain = {tag: _without_tuples(payload) for tag, payload in data.items()}
        return plain["tuple"] if plain.keys() == {"tuple"} else plain
    return data


_UNORDERED = frozenset(("set", "frozenset", "dict", "counter", "defaultdict"))


def same(expected: Any, got: Any, tolerance: float = 0.0) -> bool:
    """Whether two encoded values are one value: types exactly (True is not 1, 1 is not 1.0, a tuple no list), NaN like
    NaN, 0.0 unlike -0.0, sets and dicts in any order. With a ``tolerance``, floats may differ by that much, absolutely
    or relatively (not inside of sets, nor as keys). ``got`` may be any JSON at all."""
    try:
        return _same(expected, got, tolerance)
    except (RecursionError, TypeError, ValueError):  # of a shape that no honest value has
        return False


def _same(expected: Any, got: Any, tolerance: float) -> bool:
    if type(expected) is not type(got):
        return False
    if isinstance(expected, list):
        return len(expected) == len(got) and all(_same(e, g, tolerance) for e, g in zip(expected, got, strict=True))
    if isinstance(expected, dict):
        ((tag, e),), ((got_tag, g),) = expected.items(), got.items()
        if tag != got_tag:
            return False
        if tag in _UNORDERED and len(e) != len(g):
            return False
        if tag in ("set", "frozenset"):
            return _canonical(expected) == _canonical(got)
        if tag in _UNORDERED:
            left, right = ({_canonical(key): value for key, value in pairs} for pairs in (e, g))
            return left.keys() == right.keys() and all(_same(v, right[key], tolerance) for key, v in left.items())
        return _same(e, g, tolerance)
    if isinstance(expected, float):
        if tolerance:
            return math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
        return expected == got and math.copysign(1, expected) == math.copysign(1, got)
    return bool(expected == got)


def _canonical(data: Any) -> str:
    """One spelling for equal values: what has no order is sorted."""
    if isinstance(data, list):
        return f"[{','.join(map(_canonical, data))}]"
    if isinstance(data, dict):
        ((tag, payload),) = data.items()
        parts = map(_canonical, payload) if isinstance(payload, list) else [json.dumps(payload)]
        return f"{tag}({','.join(sorted(parts) if tag in _UNORDERED else parts)})"
    return json.dumps(data)
