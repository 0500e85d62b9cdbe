"""`rlaif verify`: a verifier over the rows of a file of any size, in streaming, on all cores, resumable.

The file is read once, a chunk of rows at a time; worker processes hold a verifier each and judge chunks; results are
written in the rows' order. What is written is kept: with ``out``, running again goes on after the last whole line.
"""

import asyncio
import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, NamedTuple, cast

from rlaif.errors import InputError, ProviderError, QualityError
from rlaif.types import Reward, Unverified
from rlaif.verifiers import Verifier, open_verifier

CHUNK = 32  # rows a worker takes at a time
AT_ONCE = 4  # of them in work at the same time: a verifier waits for its own processes most of the time
ATTEMPTS = 3  # at a row whose verifier's machinery failed
MOST_FAILURES = 0.01  # share of rows with infrastructure failures, after which the run is not to be trusted
ENOUGH_ROWS = 100  # to tell that share


@dataclass
class Summary:
    """What the rows came to. ``passed``: rewards of 1.0; ``tier``: of the sandbox, where the verifier has one."""

    rows: int = 0
    passed: int = 0
    failed: int = 0
    unverified: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    tier: str | None = None

    def add(self, result: Mapping[str, Any]) -> None:
        self.rows += 1
        if result["kind"] == "unverified":
            self.unverified += 1
        elif result["value"] >= 1.0:
            self.passed += 1
        else:
            self.failed += 1
        if result["reason"] is not None:
            self.reasons[result["reason"]] += 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reasons": dict(sorted(self.reasons.items())), "seconds": round(self.seconds, 3)}


Emit = Callable[[str], None]  # a finished line, without its end
Progress = Callable[[Summary, int], None]  # what there is so far, and the number of rows


def verify_file(
    name: str,
    source: Path,
    *,
    options: Mapping[str, Any] | None = None,
    out: Path | None = None,
    emit: Emit | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run the verifier ``name`` over the rows of ``source`` (JSONL, may end in .gz): one line of results for each.

    A row has ``completion`` (text, or messages of which the last counts) and the columns of its task. A row that is
    none is "unverified", as one whose task is wrong. ``out``: the file of results; without it they go to ``emit``.
    Raises InputError where the name, the options, the file or its first row is wrong; QualityError, with everything
    kept, when more than 1 % of the rows could not be verified because the verifier's machinery failed.
    """
    given = dict(options or {})
    asyncio.run(open_verifier(name, given).aclose())  # a wrong name or option is told before anything is begun
    total = min(_count(source), limit or sys.maxsize)
    started, summary = time.monotonic(), Summary()
    with ExitStack() as stack:
        if out is not None:
            results = Results(out, {"verifier": name, "options": given, "limit": limit, **_identity(source)})
            for result in results.before:
                summary.add(result)
            if results.complete:
                return summary
            emit = stack.enter_context(results).write
        rows = islice(_lines(source), summary.rows, limit)
        workers = workers or len(os.sched_getaffinity(0))
        for verified in _verified(name, given, rows, summary.rows, workers):
            for line in verified.lines:
                if emit is not None:
                    emit(line)
                summary.add(json.loads(line))
            summary.tier = verified.tier or summary.tier
            summary.seconds = time.monotonic() - started
            _check_failures(summary, source, finished=False)
            if progress:
                progress(summary, total)
        if out is not None:
            results.finish()
    _check_failures(summary, source, finished=True)
    return summary


def _check_failures(summary: Summary, source: Path, *, finished: bool) -> None:
    failures = summary.reasons["infrastructure"]
    if failures > MOST_FAILURES * summary.rows and (finished or summary.rows >= ENOUGH_ROWS):
        raise QualityError(
            f"{source}: {failures} of {summary.rows} rows could not be verified because the verifier's own machinery"
            " failed (reason infrastructure); what was verified is kept. `rlaif verify --self-test` tells what this"
            " machine lacks; remove those lines and run again to go on."
        )


# ----------------------------------------------------------------------------------------------------------- the file


def _lines(source: Path) -> Iterator[bytes]:
    """The rows' lines, split on "\\n" only; blank ones are none."""
    try:
        with _open(source) as file:
            for line in file:
                if line.strip():
                    yield line
    except (OSError, EOFError) as error:
        raise InputError(f"{source}: cannot be read ({error}).") from None


def _open(source: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(source, "rb")) if source.suffix == ".gz" else source.open("rb")


def _count(source: Path) -> int:
    """The rows. Raises InputError where there are none, or where the first is none: it is another kind of file."""
    lines = _lines(source)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{source}: no rows in it; it needs lines of JSON with 'completion'.")
    row = _read(first)
    if isinstance(row, Unverified):
        raise InputError(f"{source}:1: {row.detail}")
    return 1 + sum(1 for _ in lines)


def _identity(source: Path) -> dict[str, Any]:
    """Enough of the file to tell it from another: its size, and a hash of both ends."""
    end = 1 << 20
    with source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(end)
        file.seek(max(0, size - end))
        return {"bytes": size, "digest": hashlib.sha256(head + file.read(end)).hexdigest()[:16]}


class Results:
    """The file of results while it grows, under the name ``OUT.partial``. A hidden file beside it says what it is the
    result of, so that another run never goes on with it. ``before``: the results that were there already."""

    def __init__(self, out: Path, made_by: Mapping[str, Any]) -> None:
        self._out, self._partial = out, out.with_name(f"{out.name}.partial")
        self._record = out.with_name(f".{out.name}.verify.json")
        self._file: IO[bytes] | None = None
        self.complete = out.exists()
        if out.is_dir():
            raise InputError(f"{out}: is a folder; give a file for the results.")
        known = self._made_by()
        if (self.complete or self._partial.exists()) and known != json.loads(json.dumps(made_by)):
            differing = ", ".join(k for k in made_by if known.get(k) != made_by[k]) if known else "not known"
            raise InputError(
                f"{out}: there are results of something else there (different: {differing});"
                " give another file with --out, or remove it."
            )
        self.before = self._read()
        if not self.complete:
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                self._record.write_text(json.dumps(made_by), encoding="utf-8")
            except OSError as error:
                raise InputError(f"{out}: cannot be written ({error.strerror}).") from None

    def _made_by(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return {}

    def _read(self) -> Iterator[dict[str, Any]]:
        where = self._out if self.complete else self._partial
        if not where.exists():
            return
        whole = 0
        with where.open("rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # written when the disk was full, or the machine stopped
                whole += len(line)
                yield json.loads(line)
            if not self.complete:
                file.truncate(whole)

    def __enter__(self) -> "Results":
        self._file = self._partial.open("ab")
        return self

    def write(self, line: str) -> None:
        assert self._file is not None
        with self._on_disk():
            self._file.write(line.encode() + b"\n")

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ProviderError(
                f"{self._partial}: cannot be written ({error.strerror or error}); what is there is kept: make room and"
                " run again to go on."
            ) from None

    def finish(self) -> None:
        """Every row is there: give the file its name."""
        assert self._file is not None
        with self._on_disk():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._out)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._file is not None
        with self._on_disk():
            self._file.close()  # writes what is left


# -------------------------------------------------------------------------------------------------------- the workers


class Verified(NamedTuple):
    """The result lines of one chunk, in order."""

    lines: list[str]
    tier: str | None


def _verified(
    name: str, options: Mapping[str, Any], rows: Iterator[bytes], first: int, workers: int
) -> Iterator[Verified]:
    """The chunks of ``rows``, verified by ``workers`` processes, in the rows' order; a few are waited for at a time."""
    pool = _Pool(name, options, workers)
    waiting: deque[tuple[int, list[bytes], Future[Verified]]] = deque()
    try:
        while True:
            while len(waiting) < 3 * workers and (chunk := list(islice(rows, CHUNK))):
                waiting.append((first, chunk, pool.submit(first, chunk)))
                first += len(chunk)
            if not waiting:
                return
            number, chunk, future = waiting.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:
                # A worker is gone (out of memory, killed): the pool with it, and every chunk that was with them.
                pool.renew()
                yield pool.alone(number, chunk)
                waiting = deque((n, c, pool.submit(n, c)) for n, c, _ in waiting)
    finally:
        pool.close()


class _Pool:
    def __init__(self, name: str, options: Mapping[str, Any], workers: int) -> None:
        self._name, self._options, self._workers = name, dict(options), workers
        self._executor = self._start(workers)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy what this process is in the middle of
        return ProcessPoolExecutor(workers, context, _open_worker, (self._name, self._options))

    def submit(self, first: int, chunk: list[bytes]) -> Future[Verified]:
        return self._executor.submit(_verify_chunk, first, chunk)

    def renew(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._start(self._workers)

    def alone(self, first: int, chunk: list[bytes]) -> Verified:
        """Row by row, so that a row which takes its worker down takes no other row with it."""
        lines, tier = [], None
        executor = self._start(1)
        try:
            for number, line in enumerate(chunk, first):
                for _ in range(ATTEMPTS):
                    try:
                        verified = executor.submit(_verify_chunk, number, [line]).result()
                    except BrokenProcessPool:
                        executor.shutdown(wait=False)
                        executor = self._start(1)
                    else:
                        lines += verified.lines
                        tier = verified.tier or tier
                        break
                else:
                    failure = Unverified(reason="infrastructure", detail="the worker process died with this row")
                    lines.append(_line(number, self._name, failure, 0.0))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
        return Verified(lines, tier)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


class _Worker(NamedTuple):
    name: str
    loop: asyncio.AbstractEventLoop
    verifier: Verifier


_worker: _Worker | None = None  # of this process, if it is one


def _open_worker(name: str, options: Mapping[str, Any]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loop = asyncio.new_event_loop()
    verifier = open_verifier(name, options)
    _worker = _Worker(name, loop, verifier)
    Finalize(None, lambda: loop.run_until_complete(verifier.aclose()), exitpriority=10)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])  # killed, it cannot tell us
    os._exit(1)


def _verify_chunk(first: int, chunk: list[bytes]) -> Verified:
    """In a worker."""
    worker = _worker
    assert worker is not None
    verifier = worker.verifier
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, line: bytes) -> str:
        async with slots:
            began = time.perf_counter()
            verdict = await _verify_line(verifier, line)
            return _line(number, worker.name, verdict, time.perf_counter() - began)

    async def all_of_it() -> list[str]:
        return await asyncio.gather(*(one(number, line) for number, line in enumerate(chunk, first)))

    return Verified(worker.loop.run_until_complete(all_of_it()), getattr(verifier, "tier", None))


async def _verify_line(verifier: Verifier, line: bytes) -> Reward | Unverified:
    row = _read(line)
    if isinstance(row, Unverified):
        return row
    completion, task = row
    for attempt in range(1, ATTEMPTS + 1):
        verdict = await verifier.verify(completion, task)
        if isinstance(verdict, Reward) or verdict.reason != "infrastructure" or attempt == ATTEMPTS:
            break
        await asyncio.sleep(0.2 * 2**attempt)
    return verdict


def _read(line: bytes) -> tuple[str, Mapping[str, Any]] | Unverified:
    """The completion and its task, or why this line has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unverified(reason="task_error", detail=f"the line is no JSON ({error}).")
    if not isinstance(row, dict):
        return Unverified(reason="task_error", detail=f"a row is a JSON object; this is a {type(row).__name__}.")
    completion = row.pop("completion", None)
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        found = ", ".join(row) or "none"
        return Unverified(reason="task_error", detail=f"no 'completion' (a text) in this row; other columns: {found}.")
    return completion, row


def _line(number: int, verifier: str, verdict: Reward | Unverified, seconds: float) -> str:
    result: dict[str, Any] = {"row": number, "verifier": verifier, **verdict.model_dump(mode="json")}
    return json.dumps(result | {"seconds": round(seconds, 6)})
