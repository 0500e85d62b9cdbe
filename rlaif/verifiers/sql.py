"""SQL that answers a question: the query's rows against those of a reference query, on the same SQLite database.

A row has ``setup`` (the SQL that makes the tables and fills them, or a list of such: the query must be right on every
one) and ``reference`` (a query). Each query runs in a process of its own on an in-memory database, where nothing but
reading is allowed: no write, no ATTACH, no PRAGMA, no extension, no random number. Its time, memory and rows are
bounded. The reference's rows never enter the process that runs the candidate's query.

``order``: "auto" compares row by row if the reference has an ORDER BY at its end, as multisets otherwise: a row that
comes twice counts twice. Names of columns do not count, their order does. Integers and reals compare by value, reals
with ``tolerance``; text is never a number.

Not covered: a query that is right by luck on this data (give several databases), and Windows (limits are POSIX's).
"""

import asyncio
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.base import Task
from rlaif.verifiers.sql_process import ProcessError, Processes
from rlaif.verifiers.text import TextOptions, answer_of, checked, excerpt, passed, unreadable

T = TypeVar("T")
Value = int | float | str | bytes | None
Rows = tuple[tuple[Value, ...], ...]


class SqlOptions(TextOptions):
    """``seconds``: processor time of one query. ``workers``: processes at once (default: one a core).
    ``allow_empty``: a reference without rows is a task, although any query that finds nothing passes it."""

    max_characters: int = Field(100_000, gt=0)
    order: Literal["auto", "ordered", "multiset"] = "auto"
    tolerance: float = Field(1e-9, ge=0)
    seconds: float = Field(1.0, gt=0, le=60)
    memory_mb: int = Field(256, ge=64)
    max_rows: int = Field(10_000, gt=0)
    workers: int | None = Field(None, gt=0)
    allow_empty: bool = False


class Goal(NamedTuple):
    setups: tuple[str, ...]
    reference: str
    ordered: bool


class Ran(NamedTuple):
    """How a query ended: its rows, or the kind of its failure (see sql_guest.py)."""

    rows: Rows = ()
    columns: int = 0
    error: str | None = None
    detail: str = ""


class SqlVerifier:
    """The completion's query returns what the reference returns (see the header)."""

    identity = "sql@1"
    Options = SqlOptions

    def __init__(self, options: SqlOptions) -> None:
        self.options = options
        # Threads, not an asyncio.Semaphore: trainers call from one event loop after another.
        self._threads = ThreadPoolExecutor(options.workers or os.cpu_count() or 1, "rlaif-sql")
        # No candidate's query runs in a process, or a child of one, that has seen a reference.
        self._candidates, self._references = Processes(), Processes()
        self._expected = lru_cache(maxsize=4096)(self._run_reference)

    async def prepare(self, task: Task) -> None:
        goal = self._goal(task)
        for setup in goal.setups:
            try:
                await self._in_thread(self._expected, setup, goal.reference)
            except ProcessError as error:
                raise InputError(f"{self.identity}: queries cannot run on this machine: {error}.") from None

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if (failed := unreadable(completion, self.options.max_characters)) is not None:
            return failed
        query = query_of(answer_of(completion) if self.options.drop_thinking else completion)
        if query is None:
            return Reward(value=0.0, reason="unparseable", detail="no query in the completion")
        try:
            goal = self._goal(task)
            for setup in goal.setups:
                reward = await self._in_thread(self._verify_on, setup, query, goal)
                if reward.value < 1.0:
                    return reward
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))
        except ProcessError as error:
            return Unverified(reason="infrastructure", detail=str(error))
        return Reward(value=1.0)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._candidates.close()
        self._references.close()

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))

    def _goal(self, task: Task) -> Goal:
        setup = checked(str | list[str], task.get("setup"), f"{self.identity}: setup")
        reference = checked(str, task.get("reference"), f"{self.identity}: reference").strip().rstrip(";")
        setups = (setup,) if isinstance(setup, str) else tuple(setup)
        if not setups or not all(s.strip() for s in setups) or not reference:
            raise TaskError(f"{self.identity}: the row needs 'setup' (SQL that fills a database) and 'reference'.")
        ordered = self.options.order == "ordered" or (self.options.order == "auto" and is_ordered(reference))
        return Goal(setups, reference, ordered)

    def _verify_on(self, setup: str, query: str, goal: Goal) -> Reward:
        expected = self._expected(setup, goal.reference)
        ran = self._run(self._candidates, setup, query)
        if ran.error == "setup":
            raise TaskError(f"{self.identity}: the setup fails: {ran.detail}.")
        if ran.error is not None:
            return _failure(ran)
        if ran.columns != expected.columns:
            return passed(False, f"{ran.columns} columns; {expected.columns} expected")
        return passed(
            same_rows(ran.rows, expected.rows, ordered=goal.ordered, tolerance=self.options.tolerance),
            f"{len(ran.rows)} rows, not those of the reference ({len(expected.rows)})",
        )

    def _run_reference(self, setup: str, reference: str) -> Ran:
        ran = self._run(self._references, setup, reference)
        if ran.error is not None:
            what = "setup" if ran.error == "setup" else "reference"
            raise TaskError(f"{self.identity}: the {what} fails ({ran.error}): {ran.detail}.")
        if not ran.rows and not self.options.allow_empty:
            raise TaskError(f"{self.identity}: the reference returns no row, as many a wrong query does; add data.")
        return ran

    def _run(self, processes: Processes, setup: str, query: str) -> Ran:
        asked = {
            "setup": setup,
            "query": query,
            "seconds": self.options.seconds,
            "memory_mb": self.options.memory_mb,
            "max_rows": self.options.max_rows,
            "max_bytes": 8 << 20,
        }
        # The guest stops a query itself; the time given here is for a machine that stands still.
        patience = 3 * self.options.seconds + 10
        try:
            answer = processes.ask(asked, patience)
        except ProcessError:  # once more, in a new process
            answer = processes.ask(asked, patience)
        if "error" in answer:
            return Ran(error=answer["error"], detail=excerpt(answer["detail"], 200))
        rows = tuple(tuple(_value(tag, value) for tag, value in row) for row in answer["rows"])
        return Ran(rows, answer["columns"])


def _value(tag: str, value: Any) -> Value:
    readers: dict[str, Any] = {"null": lambda _: None, "blob": bytes.fromhex, "real": float.fromhex}
    result: Value = readers.get(tag, lambda v: v)(value)
    return result


def _failure(ran: Ran) -> Reward:
    if ran.error == "timeout":
        return Reward(value=0.0, reason="timeout", detail="the query used up its time")
    if ran.error == "resource":
        return Reward(value=0.0, reason="resource", detail=ran.detail)
    if ran.error == "denied":
        return Reward(value=0.0, reason="cheat", detail=f"only reading is allowed; refused: {ran.detail}")
    return Reward(value=0.0, reason="crashed", detail=ran.detail)


# ------------------------------------------------------------------------------------------------- text of a query

_FENCE = re.compile(r"^[^\S\n]*```[^\S\n]*(\w*)[^\n]*\n(.*?)^[^\S\n]*```[^\S\n]*$", re.DOTALL | re.MULTILINE)
# What has no say in where an ORDER BY stands: comments, text, quoted names.
_OPAQUE = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]", re.DOTALL)


def query_of(completion: str) -> str | None:
    """The last SQL code block of the completion, or else the completion itself if it begins like a query."""
    blocks = [body for language, body in _FENCE.findall(completion) if language.lower() in ("", "sql", "sqlite")]
    query = (blocks[-1] if blocks else completion).strip()
    bare = _OPAQUE.sub(" ", query).lstrip(" (\t\n;").lower()
    if not blocks and not re.match(r"\w+\s", bare):
        return None
    if not blocks and bare.split(None, 1)[0] not in _STATEMENTS:
        return None
    return query.encode("utf-8", "replace").decode() or None


_STATEMENTS = frozenset(
    "select with values insert update delete replace attach detach pragma create drop alter vacuum begin".split()  # noqa: SIM905
)


def is_ordered(query: str) -> bool:
    """Whether the query itself, and not only a part of it, has an ORDER BY."""
    bare = _OPAQUE.sub(" ", query)
    depth, outside = 0, []
    for char in bare:
        depth += (char == "(") - (char == ")")
        outside.append(char if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(outside), re.IGNORECASE) is not None


# ------------------------------------------------------------------------------------------------------------- rows


def same_rows(
    found: Sequence[Sequence[Value]], expected: Sequence[Sequence[Value]], *, ordered: bool, tolerance: float
) -> bool:
    """Whether two tables hold the same rows, in the same order or (not ``ordered``) each as often."""
    if len(found) != len(expected):
        return False
    if not ordered:
        if Counter(map(tuple, found)) == Counter(map(tuple, expected)):
            return True
        found, expected = sorted(found, key=_sort_key), sorted(expected, key=_sort_key)
    return all(
        len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
        for a, b in zip(found, expected, strict=True)
    )


def _same(a: Value, b: Value, tolerance: float) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return False
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return type(a) is type(b) and a == b


def _sort_key(row: Sequence[Value]) -> tuple[Any, ...]:
    # Reals that are nearly equal must sort alike: by their first nine digits.
    return tuple((0, float(f"{v:.9g}"), "") if isinstance(v, int | float) else (1, 0.0, repr(v)) for v in row)
