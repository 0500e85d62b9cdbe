"""Values cross unchanged, or not at all."""

import contextlib
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.verifiers.sandbox.values import (
    MAX_DEPTH,
    Malformed,
    TooLarge,
    Unencodable,
    decode,
    dumps,
    encode,
    loads,
    same,
)

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**400), max_value=2**400)
    | st.floats()
    | st.text()
    | st.text(alphabet=st.characters(categories=["Cs", "Ll"]))  # lone surrogates
    | st.binary()
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.sets(HASHABLE, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
        | st.lists(inner, max_size=3).map(deque)
        | st.lists(HASHABLE, max_size=5).map(Counter)
        | st.binary().map(bytearray)
    ),
    max_leaves=12,
)


def cross(value: Any) -> Any:
    return decode(loads(dumps(encode(value))))


def alike(a: Any, b: Any) -> bool:
    """Equal, of the same types all the way down; NaN like NaN, 0.0 unlike -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(alike(x, y) for y in b) for x in a)
    return repr(a) == repr(b)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    assert alike(cross(value), value)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_a_value_is_the_same_as_itself_however_often_it_crosses(value: Any) -> None:
    encoded = encode(value)
    assert same(encoded, loads(dumps(encoded)))
    assert same(encoded, encode(cross(value)))


@given(VALUES, VALUES)
@settings(max_examples=100, deadline=None)
def test_being_the_same_goes_both_ways_and_means_being_alike(a: Any, b: Any) -> None:
    assert same(encode(a), encode(b)) == same(encode(b), encode(a))
    if alike(a, b):
        assert same(encode(a), encode(b))
    elif type(a) is not type(b):
        assert not same(encode(a), encode(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("3", 3),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({1: 2}, OrderedDict({1: 2})),
        ({1}, {True}),
        ({1: "a"}, {1.0: "a"}),
        (b"a", bytearray(b"a")),
        (float("nan"), 0.0),
        (1 + 0j, 1.0),
        (Decimal(1), 1),
        (Fraction(1), 1),
        (range(0), []),
        (OrderedDict([(1, 1), (2, 2)]), OrderedDict([(2, 2), (1, 1)])),
        ([None], []),
    ],
)
def test_what_python_may_hold_equal_is_not_the_same(a: Any, b: Any) -> None:
    assert not same(encode(a), encode(b))
    assert not same(encode([a]), encode([b]))


def test_sets_and_dicts_have_no_order_at_any_depth() -> None:
    inner = [frozenset({"a", "b", "c"}), frozenset({"d", "e"})]
    assert same(encode({*inner}), {"set": [encode(inner[1]), {"frozenset": ["c", "a", "b"]}]})
    assert same(encode({"a": {1, 2}, "b": 0}), {"dict": [["b", 0], ["a", {"set": [2, 1]}]]})


def test_a_tolerance_is_for_floats_only() -> None:
    assert same(encode([0.1 + 0.2, {"a": 1e9}]), encode([0.3, {"a": 1e9 + 1e-3}]), 1e-6)
    assert not same(encode(0.3), encode(0.30001), 1e-6)
    assert not same(1, encode(1.0), 1e-6)
    assert not same(encode(float("nan")), 0.0, 1e-6)


class Number(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        Number(3),
        Colour.RED,
        Point(1, 2),
        type("L", (list,), {})([1]),
        type("S", (str,), {})("a"),
        type("D", (dict,), {})(),
        object(),
        print,
        iter([1]),
        {}.keys(),
        Number,
        NotImplemented,
        ValueError("x"),
        [[(Number(1),)]],
        {1: Number(1)},
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_subclass_or_an_unknown_type_does_not_cross(value: Any) -> None:
    with pytest.raises(Unencodable):
        encode(value)


def test_a_builtin_type_crosses_by_its_name() -> None:
    assert cross([int, str, ValueError]) == [int, str, ValueError]


def test_a_default_dict_crosses_without_its_factory() -> None:
    made = cross(defaultdict(list, {1: [2]}))
    assert type(made) is defaultdict
    assert made == {1: [2]}
    with pytest.raises(KeyError):
        made[3]


def test_depth_and_size_are_bounded_and_no_cycle_is_followed() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert cross(deep) == deep
    with pytest.raises(TooLarge):
        encode([deep])
    cycle: list[Any] = []
    cycle.append(cycle)
    unfolding: list[Any] = [0]
    for _ in range(60):
        unfolding = [unfolding, unfolding]
    for value in (cycle, unfolding, "x" * (9 << 20), {"a": cycle}):
        with pytest.raises(TooLarge):
            encode(value)


def test_a_number_of_a_hundred_thousand_digits_crosses() -> None:
    huge = 7**120_000
    assert cross([huge, -huge]) == [huge, -huge]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"NaN",
        b"[Infinity]",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"a": 1} {"b": 2}',
        b"nul",
    ],
)
def test_bytes_that_are_no_message_are_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        loads(line)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"tuple": [1], "list": [2]},
        {"unknown": 1},
        {"tuple": 3},
        {"set": [[1]]},
        {"dict": [[1]]},
        {"dict": [1]},
        {"int": 3},
        {"int": "zz"},
        {"float": "abc"},
        {"fraction": ["0x1", "0x0"]},
        {"decimal": "x"},
        {"bytes": "0"},
        {"range": ["0x0", "0x1", "0x0"]},
        {"type": "open"},
        {"type": []},
        {"object": 3},
    ],
    ids=str,
)
def test_json_that_is_no_value_is_refused(data: Any) -> None:
    with pytest.raises(Malformed):
        decode(data)
    assert not same(encode((1,)), data)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)))
@settings(max_examples=100, deadline=None)
def test_no_json_at_all_breaks_comparing_or_decoding(data: Any) -> None:
    data = json.loads(json.dumps(data))
    for expected in (encode({1: [2]}), encode({1}), encode((1.0, "a")), encode(2**70), 3):
        assert isinstance(same(expected, data), bool)
    with contextlib.suppress(Malformed):
        decode(data)
