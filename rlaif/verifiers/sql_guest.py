"""Runs queries, each on a database of its own in a child of its own. Started by sql_process.py; standard library only.

Reads a line of JSON, {"setup", "query", "seconds", "memory_mb", "max_rows", "max_bytes"}, and answers with one:
{"rows": [[[type, value], ...], ...], "columns": n} or {"error": kind, "detail": text} with kind "setup", "query",
"denied", "timeout" or "resource". It never sees what the answer should be.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import sqlite3
import sys
import time

TYPE_CHECKING = False  # typing itself would be a quarter of the time to start
if TYPE_CHECKING:
    from typing import Any

_MAX_VALUE = 4 << 20  # bytes of one text or blob, also inside an expression
_DENIED = frozenset({"load_extension", "random", "randomblob", "fts3_tokenizer"})  # out of the box, or never the same
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


def main() -> None:
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(_answer(line).rstrip() + b"\n")
        sys.stdout.buffer.flush()


def _answer(line: bytes) -> bytes:
    """A child's answer; if the kernel ended it, that is the answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_child(json.loads(line)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        return answer
    kind = "timeout" if os.WTERMSIG(status) == signal.SIGXCPU else "resource"
    return json.dumps({"error": kind, "detail": f"ended by signal {os.WTERMSIG(status)}"}).encode()


def _child(asked: dict[str, Any]) -> bytes:
    megabytes = asked["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (megabytes, megabytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        return json.dumps(_run(asked)).encode()
    except MemoryError:
        return b'{"error": "resource", "detail": "out of memory"}'


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        database.executescript(asked["setup"])
    except (sqlite3.Error, sqlite3.Warning) as error:
        return {"error": "setup", "detail": str(error)}
    denied = _close_off(database, asked["seconds"])
    try:
        return _rows(database.execute(asked["query"]), asked["max_rows"], asked["max_bytes"])
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        detail = str(error)
        if denied:
            return {"error": "denied", "detail": denied[0]}
        if "interrupted" in detail:
            return {"error": "timeout", "detail": detail}
        if "too big" in detail or "out of memory" in detail:
            return {"error": "resource", "detail": detail}
        return {"error": "query", "detail": detail}


def _close_off(database: sqlite3.Connection, seconds: float) -> list[str]:
    """From here on only reading is possible. Returns the list that names what was refused."""
    denied: list[str] = []

    def authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
        function = (second or "").lower() if action == sqlite3.SQLITE_FUNCTION else ""
        if action in _ALLOWED and function not in _DENIED:
            return sqlite3.SQLITE_OK
        denied.append(function or _ACTIONS.get(action, f"action {action}"))
        return sqlite3.SQLITE_DENY

    database.execute("PRAGMA temp_store = MEMORY")
    database.execute("PRAGMA query_only = ON")
    database.execute("PRAGMA trusted_schema = OFF")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
    database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000)
    database.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    # Time of the processor, so that a busy machine costs no query its verdict. The kernel's limit, in whole seconds, is
    # for a function that does not come back to SQLite.
    deadline = time.process_time() + seconds
    database.set_progress_handler(lambda: time.process_time() > deadline, 10_000)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(deadline), math.ceil(deadline) + 1))
    database.set_authorizer(authorize)
    return denied


def _rows(cursor: sqlite3.Cursor, max_rows: int, max_bytes: int) -> dict[str, Any]:
    if cursor.description is None:
        return {"error": "query", "detail": "the statement returns no table"}
    rows, size = [], 0
    for row in cursor:
        rows.append([_tagged(value) for value in row])
        size += sum(len(str(value)) for _, value in rows[-1]) + 8 * len(row)
        if len(rows) > max_rows or size > max_bytes:
            return {"error": "resource", "detail": f"more than {max_rows:,} rows or {max_bytes:,} bytes"}
    return {"rows": rows, "columns": len(cursor.description)}


def _tagged(value: Any) -> tuple[str, Any]:
    if value is None:
        return "null", ""
    if isinstance(value, bytes):
        return "blob", value.hex()
    if isinstance(value, float):
        return "real", value.hex()
    return ("int", value) if isinstance(value, int) else ("text", value)


# The name of an action's code, for the message: "ATTACH", "DELETE", "DROP_TABLE".
_ACTIONS = {
    getattr(sqlite3, name): name.removeprefix("SQLITE_")
    for name in dir(sqlite3)
    if re.match(
        "SQLITE_(?:CREATE|DROP|ALTER|ATTACH|DETACH|INSERT|UPDATE|DELETE|PRAGMA|TRANSACTION|SAVEPOINT|REINDEX)", name
    )
}

if __name__ == "__main__":
    main()
