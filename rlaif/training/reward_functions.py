"""A composite reward as a reward function of TRL 1.16 (GRPOTrainer, RLOOTrainer).

    reward = RewardFunction(config)                     # or reward.as_async(), beside other async reward functions
    trainer = GRPOTrainer(model, reward_funcs=reward, ...)

TRL calls ``(prompts, completions, completion_ids, <columns>, trainer_state, log_extra, log_metric)`` from its own
thread and wants a list of numbers or None. Hand it this one function and no other: TRL counts a None of one of several
functions as 0 (grpo_trainer.py, nansum) and masks a row only where all of them are None.

All verdicts are made on one event loop in a thread of its own, so any thread may call. `submit` starts them early:
while the rest of the batch is generated, or the reference model runs. A column of the data set is a column of the
task; ``prompt`` is the last user message.

Call ``monitor.check(final=True)`` when training has ended: a short run is only judged then.

Not covered: several processes share no statistics; each scores its own rows, and stops on its own.
"""

import asyncio
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from rlaif.config.base import Document
from rlaif.config.rewards import Node
from rlaif.errors import InputError, RlaifError
from rlaif.rewards.composite import CompositeReward, Scored, open_reward
from rlaif.rewards.monitor import PartsMonitor
from rlaif.rewards.tree import Row
from rlaif.types import Reward
from rlaif.verifiers.base import Task

logger = logging.getLogger(__name__)
T = TypeVar("T")

_STOP_SECONDS = 10.0  # for verifiers to end their processes; then the thread is left behind (it is a daemon)


class RewardFunction:
    """Scores a batch of completions; see the header. Thread-safe. A copy or pickle has the same config and running
    statistics, and starts its own thread and verifiers when it is first called; so does a forked process.

    ``name``: what TRL's logs call it. ``waiting``: rows that may be unscored at once; `submit` waits beyond that.
    ``seconds``: for a call; rows not scored by then are masked and everything that still runs is given up.
    ``monitor``: gets every scored row; its QualityError (too many infrastructure failures) ends the training.
    ``opened``: makes the reward in place of `open_reward` (with judges that a ledger answers for, say); a copy or
    pickle does without.

    Raises InputError at once for a config that cannot run.
    """

    def __init__(
        self,
        config: Node,
        document: Document | None = None,
        *,
        name: str = "reward",
        waiting: int = 1024,
        seconds: float = 3600.0,
        monitor: PartsMonitor | None = None,
        opened: Callable[[], CompositeReward] | None = None,
    ) -> None:
        self.__name__ = name
        self.config, self.waiting, self.seconds = config, waiting, seconds
        self.monitor = monitor if monitor is not None else PartsMonitor()
        self._open = opened or (lambda: open_reward(config, document))
        self.reward = self._open()
        self._told: set[str] = set()
        self._running: _Engine | None = None
        self._stop: weakref.finalize[[], RewardFunction] | None = None
        self._fresh()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of each completion, in order; None masks it."""
        scored = self.score(prompts, completions, completion_ids, **columns)
        self._log(scored, log_extra, log_metric)
        self.monitor.check()
        return [row.value for row in scored]

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[Scored]:
        """As a call, with the verdict of every part. Running statistics learn the batch."""
        tasks, tokens = tasks_of(prompts, completions, columns), _counts(completions, completion_ids)
        return self.score_tasks([text_of(completion) for completion in completions], tasks, tokens)

    def score_tasks(self, texts: Sequence[str], tasks: Sequence[Task], tokens: Sequence[int | None]) -> list[Scored]:
        """As `score`, for tasks that are known already. ``tokens``: of each completion, where they were counted."""
        deadline = time.monotonic() + self.seconds
        futures = self._start(texts, tasks, tokens, deadline)
        try:
            rows = [_wait(future, deadline) for future in futures]
        except CancelledError:
            raise RlaifError("the reward function was closed while it scored a batch.") from None
        finally:
            for future in futures:  # after an error or Ctrl-C nothing goes on behind our back
                if future is not None:
                    future.cancel()
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            self._give_up()
        late = Scored(value=None, masked="infrastructure", why=f"no reward within {self.seconds:g} s")
        with self._lock:  # statistics are of whole batches, whichever thread comes first
            self.reward.learn(known)
            scored = [self.reward.total(row) if row is not None else late for row in rows]
            self.monitor.add_all(scored)
        assert len(scored) == len(texts)
        return scored

    def submit(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> None:
        """Start scoring rows that a later call will ask for with the same columns. Waits while ``waiting`` rows are
        unscored. What is never asked for is forgotten, the oldest first."""
        tasks, tokens = tasks_of(prompts, completions, columns), _counts(completions, completion_ids)
        self.submit_tasks([text_of(completion) for completion in completions], tasks, tokens)

    def submit_tasks(self, texts: Sequence[str], tasks: Sequence[Task], tokens: Sequence[int | None]) -> None:
        """As `submit`, for `score_tasks`."""
        self._start(texts, tasks, tokens, time.monotonic() + self.seconds, early=True)

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Check tasks before training. Raises TaskError."""

        async def every() -> None:
            for task in tasks:
                await self.reward.prepare(task)

        self._engine().start(every()).result()

    def as_async(self) -> "AsyncRewardFunction":
        """The same function in TRL's async form, which TRL runs beside its other async reward functions."""
        return AsyncRewardFunction(self)

    def close(self) -> None:
        """Stop: verdicts under way are cancelled, calls that wait for them raise, helper processes end. May be called
        twice, from any thread; a later call starts again."""
        self._own()
        if (stop := self._let_go()) is not None:
            stop()

    def state(self) -> dict[str, Any]:
        """The running statistics, as JSON; part of a checkpoint."""
        return self.reward.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.reward.load_state(state)

    # ------------------------------------------------------------------------------------------- copies and processes

    def __getstate__(self) -> dict[str, Any]:
        settings = {"name": self.__name__, "waiting": self.waiting, "seconds": self.seconds}
        allowed = self.monitor.max_infrastructure
        return {"config": self.config, "settings": settings, "state": self.state(), "max_infrastructure": allowed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        monitor = PartsMonitor(state["max_infrastructure"])  # each copy counts its own rows
        RewardFunction.__init__(self, state["config"], **state["settings"], monitor=monitor)
        self.load_state(state["state"])

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.waiting)
        self._early: OrderedDict[str, Future[Row]] = OrderedDict()
        self._running, self._stop = None, None

    def _own(self) -> None:
        if self._pid != os.getpid():  # forked: threads and processes stayed with the parent
            if self._stop is not None:
                self._stop.detach()
            self._reopen()
            self._fresh()

    def _reopen(self) -> None:
        state, self.reward = self.reward.state(), self._open()
        self.reward.load_state(state)

    def _engine(self) -> "_Engine":
        self._own()
        with self._lock:
            if self._running is None:
                self._running = _Engine(self.reward)
                self._stop = weakref.finalize(self, self._running.stop)
                # Not when Python ends: threads cannot start any more then, and helper processes end with this one.
                self._stop.atexit = False
            return self._running

    def _let_go(self) -> Callable[[], object] | None:
        """Part from the loop and its verifiers; what stops them is returned. The next call opens others."""
        with self._lock:
            stop, self._stop, self._running = self._stop, None, None
            self._early.clear()
            if stop is not None:
                self._reopen()
        return stop

    def _give_up(self) -> None:
        """Leave a loop behind that may answer no more."""
        if (stop := self._let_go()) is not None:
            threading.Thread(target=stop, daemon=True).start()

    # --------------------------------------------------------------------------------------------------------- rows

    def _start(
        self,
        texts: Sequence[str],
        tasks: Sequence[Task],
        tokens: Sequence[int | None],
        deadline: float,
        early: bool = False,
    ) -> list["Future[Row] | None"]:
        """A future for each row; None where the queue was full until the deadline. Equal rows are scored once; those
        that were submitted are under way already."""
        engine = self._engine()
        mine: dict[str, Future[Row]] = {}
        futures: list[Future[Row] | None] = []
        for text, task, count in zip(texts, tasks, tokens, strict=True):
            key = _key(text, task, count)
            with self._lock:
                future = mine.get(key) or (self._early.get(key) if early else self._early.pop(key, None))
            if future is None or future.cancelled():
                future = self._enqueue(engine, text, task, count, deadline)
                if early and future is not None:
                    self._keep(key, future)
            if future is not None:
                mine[key] = future
            futures.append(future)
        return futures

    def _enqueue(
        self, engine: "_Engine", text: str, task: Task, tokens: int | None, deadline: float
    ) -> "Future[Row] | None":
        slots = self._slots
        if not slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            future = engine.start(engine.reward.ask(text, task, tokens))
        except BaseException:
            slots.release()
            raise
        future.add_done_callback(lambda _: slots.release())
        return future

    def _keep(self, key: str, future: "Future[Row]") -> None:
        with self._lock:
            self._early[key] = future
            while len(self._early) > self.waiting:
                self._early.popitem(last=False)[1].cancel()

    def _log(
        self,
        scored: Sequence[Scored],
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        for part in self.reward.identities:
            verdicts = [row.parts.get(part) for row in scored]
            values = [verdict.value if isinstance(verdict, Reward) else None for verdict in verdicts]
            decided = [value for value in values if value is not None]
            if log_extra is not None:
                log_extra(part, values)
            if log_metric is not None and decided:
                log_metric(f"parts/{part}/mean", sum(decided) / len(decided))
        if log_metric is not None and scored:
            log_metric("parts/masked", sum(row.value is None for row in scored) / len(scored))
        for about, sentence in self.monitor.alarms().items():
            if about not in self._told:
                self._told.add(about)
                logger.warning("reward: %s", sentence)


class AsyncRewardFunction:
    """`RewardFunction.as_async`. TRL knows it by its async ``__call__``."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.__name__ = function.__name__

    async def __call__(self, **batch: Any) -> list[float | None]:
        # In a thread: waiting for a place in the queue must not stop TRL's loop.
        return await asyncio.to_thread(self.function, **batch)


class _Engine:
    """An event loop in a daemon thread, and the reward that lives on it."""

    def __init__(self, reward: CompositeReward) -> None:
        self.reward, self.pid = reward, os.getpid()
        self._starting, self._ending = threading.Lock(), False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="rlaif-reward", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        with self._starting:  # all that starts comes before the end, which cancels it: no future is left waiting
            if not self._ending:
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        work.close()
        raise RlaifError("the reward function was closed while it started a batch.")

    def stop(self) -> None:
        if self.pid != os.getpid():
            return
        if threading.current_thread() is self.thread:  # dropped by the garbage collector, which runs anywhere
            threading.Thread(target=self.stop, daemon=True).start()
            return
        with self._starting:
            if self._ending:
                return
            self._ending = True
            ended = asyncio.run_coroutine_threadsafe(self._end(), self.loop)
        try:
            ended.result(timeout=_STOP_SECONDS)
        except (TimeoutError, CancelledError):
            logger.warning("reward: a verifier did not stop within %g s and is left behind", _STOP_SECONDS)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(timeout=1.0)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.reward.aclose()


def _wait(future: "Future[Row] | None", deadline: float) -> Row | None:
    """The row, or None when the deadline has passed."""
    try:
        return None if future is None else future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return None


# --------------------------------------------------------------------------------------------------- TRL's formats

_OF_THE_TRAINER = ("trainer_state", "environments", "log_extra", "log_metric")  # no columns


def tasks_of(prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Task]:
    """The task of each row: its columns, those of a mapping ``metadata`` among them, and ``prompt``.

    An empty cell (None) is no column: Arrow fills in the columns of other rows so. Raises InputError where lengths
    differ.
    """
    columns = {name: values for name, values in columns.items() if name not in _OF_THE_TRAINER}
    sized = {"prompts": prompts, **columns}
    for name, values in sized.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(completions):
            raise InputError(f"the reward function got {len(completions)} completions, but not as many {name!r}.")
    tasks: list[Task] = []
    for i, prompt in enumerate(prompts):
        row = {name: values[i] for name, values in columns.items() if values[i] is not None}
        metadata = row.get("metadata")
        carried = {k: v for k, v in metadata.items() if v is not None} if isinstance(metadata, Mapping) else {}
        tasks.append({**carried, **row, "prompt": question_of(prompt)})
    return tasks


def _counts(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None) -> list[int | None]:
    if completion_ids is None:
        return [None] * len(completions)
    if len(completion_ids) != len(completions):
        raise InputError(
            f"the reward function got {len(completions)} completions and {len(completion_ids)} completion_ids."
        )
    return [len(ids) for ids in completion_ids]


def text_of(completion: Any) -> str:
    """A completion's text: as it is, or of its last assistant message."""
    if isinstance(completion, str):
        return completion
    return next((_content(m) for m in reversed(completion) if m.get("role") == "assistant"), "")


def question_of(prompt: Any) -> str:
    """A prompt's text: as it is, or of its last user message."""
    if isinstance(prompt, str):
        return prompt
    return next((_content(m) for m in reversed(prompt) if m.get("role") == "user"), "")


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # blocks, as multimodal models have them
        return "".join(block.get("text") or "" for block in content if isinstance(block, Mapping))
    return content if isinstance(content, str) else ""


def _key(text: str, task: Task, tokens: int | None) -> str:
    told = repr((text, tokens, sorted(task.items(), key=lambda item: item[0])))
    return hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()
