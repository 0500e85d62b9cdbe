"""A fast first try: calls of a candidate's functions in a Python interpreter written in Rust (pydantic-monty).

It knows a part of Python (no inheritance, few modules), has no files, network, environment or processes to reach, and
runs on any system in a fraction of a millisecond. What it could compute is worth comparing; anything else (an error, a
limit, a value of another type) says little, for its Python is not the candidate's: `Interpreter.calls` then raises
`Untold`, and the program is to be run in CPython. Where there is no sandbox for CPython (tier ``interp``), an answer
that ran out of time or memory has failed, and any other that could not be run here is undecided.

Not covered: the interpreter's worker is an ordinary process, so a hole in the interpreter is a hole in the sandbox.
This ranks below the Linux tiers; where ``min_tier`` names one of those, it must not be used. Halves of surrogate pairs
come out as U+FFFD.
"""

import asyncio
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

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


class Untold(Exception):
    """What the calls return is not known. ``reason``: "timeout" or "resource" where a limit was met."""

    def __init__(self, why: str, reason: Literal["timeout", "resource"] | None = None) -> None:
        super().__init__(why)
        self.reason = reason


class Interpreter:
    """A pool of workers. seconds: for all calls of one answer together.

    Raises InputError where it is not installed or does not start. Methods may be called from any thread and event loop.
    """

    tier: Tier = "interp"

    def __init__(self, workers: int | None = None, *, seconds: float, memory_mb: int) -> None:
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

    async def calls(self, source: str, name: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """What ``name(*a)`` returns for each of ``arguments``, encoded as by `values.encode`. Arguments are values of
        the task's, of plain builtin types. Raises Untold if this interpreter cannot tell."""
        if not name.isidentifier() or not all(_plain(value) for given in arguments for value in given):
            raise Untold("an argument is no plain value")
        return await asyncio.to_thread(self._calls, source, name, arguments)

    def _calls(self, source: str, name: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        from pydantic_monty import MontyCrashedError, MontyError, MontyRuntimeError

        try:
            with self.pool.checkout(limits=self.limits) as session:  # type: ignore[arg-type]
                session.feed_run(_ENCODE, print_callback=_ignored)
                session.feed_run(source, print_callback=_ignored)
                made = f"json.dumps([_rlaif_encoded({name}(*given)) for given in _rlaif_given])"
                inputs = {"_rlaif_given": [list(given) for given in arguments]}
                said = session.feed_run(made, inputs=inputs, print_callback=_ignored)
        except MontyRuntimeError as error:
            raise Untold(_first_line(error), _LIMITS.get(type(error.exception()))) from None
        except MontyCrashedError as error:  # the pool kills at a deadline that the interpreter's own did not keep
            raise Untold(_first_line(error), "timeout") from None
        except (MontyError, OSError, ValueError) as error:
            raise Untold(_first_line(error)) from None
        if type(said) is not str:
            raise Untold("no reply")
        try:
            got = values.loads(said.encode("utf-8", "surrogatepass"))
        except values.Malformed:
            raise Untold("a reply that cannot be read") from None
        if not isinstance(got, list) or len(got) != len(arguments):
            raise Untold("a reply of another length")
        return got

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await asyncio.to_thread(self.pool.__exit__, None, None, None)


_LIMITS: dict[type[BaseException], Literal["timeout", "resource"]] = {TimeoutError: "timeout", MemoryError: "resource"}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__


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
