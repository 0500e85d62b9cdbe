"""A fast first try: calls of a candidate's functions in a Python interpreter written in Rust (pydantic-monty).

It knows a part of Python (no inheritance, few modules), has no files, network, environment or processes to reach, and
runs on any system in a fraction of a millisecond. What it could compute is worth comparing; anything else (an error, a
limit, a value of another type) means nothing, for its Python is not the candidate's: `Interpreter.calls` then says None
and the program must be run in CPython. So a pass may be taken from here, a failure never.

Not covered: the interpreter's worker is an ordinary process, so a hole in the interpreter is a hole in the sandbox.
This ranks below the Linux tiers; where ``min_tier`` names one of those, it must not be used. Halves of surrogate pairs
come out as U+FFFD.
"""

import asyncio
import math
import os
from collections.abc import Sequence
from typing import Any

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Tier

# values.encode in the part of Python that this interpreter knows. It runs beside the candidate, who may change it, and
# would gain by that what any return value gains: nothing, without knowing what is expected.
_ENCODE = """
import json
def _rlaif_encoded(x):
    t = type(x)
    if x is None or t is bool or t is str:
        return x
    if t is int:
        return x if -2**63 < x < 2**63 else {"int": hex(x)}
    if t is float:
        return x if x - x == 0 else {"float": repr(x)}
    if t is list:
        return [_rlaif_encoded(i) for i in x]
    if t is tuple:
        return {"tuple": [_rlaif_encoded(i) for i in x]}
    if t is set:
        return {"set": [_rlaif_encoded(i) for i in x]}
    if t is frozenset:
        return {"frozenset": [_rlaif_encoded(i) for i in x]}
    if t is dict:
        return {"dict": [[_rlaif_encoded(k), _rlaif_encoded(v)] for k, v in x.items()]}
    raise TypeError("a value of another type")
"""
_PLAIN = (type(None), bool, int, str)


class Interpreter:
    """A pool of workers. seconds: for all calls of one answer together; what takes longer is for CPython.

    Raises InputError where it is not installed or does not start. Methods may be called from any thread and event loop.
    """

    tier: Tier = "interp"

    def __init__(self, workers: int | None = None, *, seconds: float = 0.25, memory_mb: int = 64) -> None:
        try:
            from pydantic_monty import Monty, MontyError
        except ImportError:
            raise InputError(
                "sandbox: tier 'interp' needs pydantic-monty; install it with: pip install 'rlaif[interp]'."
            ) from None
        self.limits = {"max_feed_duration_secs": seconds, "max_memory": memory_mb << 20}
        try:
            self.pool = Monty(max_processes=workers or os.cpu_count() or 1, request_timeout=seconds + 1.0)
            self.pool.__enter__()
        except (OSError, MontyError) as error:
            raise InputError(f"sandbox: tier 'interp' cannot be started ({error}).") from error
        self._open = True

    async def calls(self, source: str, name: str, arguments: Sequence[Sequence[Any]]) -> list[Any] | None:
        """What ``name(*a)`` returns for each of ``arguments``, encoded as by `values.encode`; None if this interpreter
        cannot tell. Arguments are values of the task's, of plain builtin types."""
        if not name.isidentifier() or not all(_plain(value) for given in arguments for value in given):
            return None
        return await asyncio.to_thread(self._calls, source, name, arguments)

    def _calls(self, source: str, name: str, arguments: Sequence[Sequence[Any]]) -> list[Any] | None:
        from pydantic_monty import MontyError

        try:
            with self.pool.checkout(limits=self.limits) as session:  # type: ignore[arg-type]
                session.feed_run(_ENCODE, print_callback=_ignored)
                session.feed_run(source, print_callback=_ignored)
                made = f"json.dumps([_rlaif_encoded({name}(*given)) for given in _rlaif_given])"
                inputs = {"_rlaif_given": [list(given) for given in arguments]}
                said = session.feed_run(made, inputs=inputs, print_callback=_ignored)
        except (MontyError, OSError, ValueError):
            return None
        if type(said) is not str:
            return None
        try:
            got = values.loads(said.encode("utf-8", "surrogatepass"))
        except values.Malformed:
            return None
        return got if isinstance(got, list) and len(got) == len(arguments) else None

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await asyncio.to_thread(self.pool.__exit__, None, None, None)


def _ignored(stream: str, text: str) -> None:
    """What it prints is no part of a call's value."""


def _plain(value: Any, depth: int = values.MAX_DEPTH) -> bool:
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind in (list, tuple, set, frozenset):
        return depth > 0 and all(_plain(v, depth - 1) for v in value)
    if kind is dict:
        return depth > 0 and all(_plain(v, depth - 1) for pair in value.items() for v in pair)
    return kind in _PLAIN
