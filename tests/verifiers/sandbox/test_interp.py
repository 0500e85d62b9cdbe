"""The fast first try: what it can compute is what CPython would, and of anything else it says nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.interp import Interpreter, Untold

pytest.importorskip("pydantic_monty")


@pytest.fixture
async def interpreter() -> AsyncIterator[Interpreter]:
    try:
        made = Interpreter(workers=1, seconds=0.25, memory_mb=64)
    except InputError as error:
        pytest.skip(str(error))
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("def f(a, b): return a + b", [(1, 2), (2**70, 1), ([1], [2]), ("é", "ü")]),
        (
            "def f(x): return x",
            [(None,), (True,), (1.5,), ((1, (2,)),), ({1: [2], "a": {3}},), ({(1, 2): frozenset([3])},)],
        ),
        ("def f(): return float('inf'), -0.0, 1e300", [()]),
        ("from typing import List\ndef f(a: List[int]) -> List[int]:\n    return sorted(a)[::-1]", [([3, 1, 2],)]),
        ("import math\ndef f(n):\n    print('noise')\n    return math.isqrt(n)", [(49,), (10**30,)]),
        ("def f(a):\n    a.append(1)\n    return a", [([],), ([],)]),
    ],
)
async def test_values_are_those_of_cpython(
    interpreter: Interpreter, source: str, arguments: list[tuple[Any, ...]]
) -> None:
    got = await interpreter.calls(source, "f", arguments)
    space: dict[str, Any] = {}
    exec(source, space)
    for given, value in zip(arguments, got, strict=True):
        assert values.same(values.encode(space["f"](*given)), value)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return 1 / 0",
        "def f(x",
        "def g(x): return x",
        "def f(x):\n    while True: pass",
        "def f(x): return f(x)",
        "def f(x): return [0] * 10**12",
        "def f(x): return 9**9**9**9",
        "def f(x): return open('/etc/passwd').read()",
        "import os\ndef f(x): return dict(os.environ)",
        "import socket\ndef f(x): return socket.socket()",
        "import subprocess\ndef f(x): return subprocess.run(['id'])",
        "class C(int): pass\ndef f(x): return C(3)",
        "class C:\n    def __eq__(self, other): return True\ndef f(x): return C()",
        "from collections import Counter\ndef f(x): return Counter('ab')",
        "def f(x): raise SystemExit(0)",
        "_rlaif_encoded = lambda x: object()\ndef f(x): return x",
        "class json:\n    def dumps(x): return 'no json'\ndef f(x): return x",
        "class json:\n    def dumps(x): return '[]'\ndef f(x): return x",
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
    ],
)
async def test_of_anything_else_nothing_is_said_and_the_next_answer_is_tried_as_ever(
    interpreter: Interpreter, source: str
) -> None:
    began = time.monotonic()
    with pytest.raises(Untold):
        await interpreter.calls(source, "f", [(1,)])
    assert time.monotonic() - began < 3
    assert await interpreter.calls("def f(x): return x", "f", [(1,)]) == [1]


async def test_arguments_that_are_not_plain_are_for_cpython(interpreter: Interpreter) -> None:
    for value in (float("nan"), object(), 1j, bytearray(b"x")):
        with pytest.raises(Untold):
            await interpreter.calls("def f(x): return 1", "f", [(value,)])
    with pytest.raises(Untold):
        await interpreter.calls("def f(x): return 1", "f(1);", [(1,)])


async def test_one_answer_leaves_nothing_for_the_next(interpreter: Interpreter) -> None:
    await interpreter.calls("left = 1\ndef f(): return 1", "f", [()])
    with pytest.raises(Untold, match="left"):
        await interpreter.calls("def f(): return left", "f", [()])


async def test_it_serves_several_threads(interpreter: Interpreter) -> None:
    got: list[Any] = []

    async def some() -> None:
        got.extend([await interpreter.calls("def f(x): return x", "f", [(i,)]) for i in range(5)])

    threads = [threading.Thread(target=lambda: asyncio.run(some())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(got) == sorted([[i] for i in range(5)] * 3)
    await interpreter.aclose()
    await interpreter.aclose()
