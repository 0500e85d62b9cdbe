"""The code verifier: a chat answer in, a verdict out. The way of one answer, top to bottom:

    row ──▶ tasks.read_task ──▶ selfcheck (once a task) ─┐
    answer ──▶ extract.programs ─────────────────────────┴▶ verdicts.run_* ──▶ Outcome ──▶ Reward
                                       (with ``interp``: first_try, whose passes count)

Tests and expected values never enter a process that runs an answer (sandbox/guest.py), so an answer can do nothing but
give values; whether they are right is decided here, or in a second sandbox that runs the tests and nothing else.

Not covered: an answer that knows the test inputs may special-case them (``special_cases`` flags it; only hidden tests
show it); one that keeps state may answer a later call from an earlier one's arguments (``decode`` from ``encode``'s);
and without a reference, one may change its arguments into what the tests compare it with.
"""

import asyncio
import hashlib
import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self, TypeVar
from weakref import WeakKeyDictionary

from pydantic import Field, model_validator

from rlaif.config.base import Config
from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers.base import Task
from rlaif.verifiers.code.compare import Compare
from rlaif.verifiers.code.extract import Blocks, program_in, programs
from rlaif.verifiers.code.first_try import PureCalls, outcome_of, passes, prove, pure_calls
from rlaif.verifiers.code.selfcheck import Learnt, learn, passing_without_knowledge
from rlaif.verifiers.code.tasks import CodeTask, Mode, Streams, read_task
from rlaif.verifiers.code.verdicts import Outcome, Rules, run
from rlaif.verifiers.sandbox.base import TIERS, Launcher, Limits, SandboxError, Tier
from rlaif.verifiers.sandbox.bwrap import LANGUAGES, LanguageName
from rlaif.verifiers.sandbox.interp import Interpreter, Untold
from rlaif.verifiers.sandbox.probe import open_bubblewrap, open_sandbox

_ATTEMPTS = 3  # when the sandbox itself fails
_KNOWN_TASKS = 10_000
_TASK_COLUMNS = (
    *("tests", "test", "test_list", "test_setup_code", "test_imports", "setup", "entry_point", "fn_name"),
    *("prompt", "reference", "canonical_solution", "code", "solution", "checker"),
)  # fmt: skip
T = TypeVar("T")


class CodeVerifier:
    """Runs the program in an answer against the row's tests (see `rlaif.verifiers.code.tasks.read_task`).

    launcher: instead of one of its own, a sandbox with two places for every answer that is judged at the same time.
    """

    identity = "code@1"

    class Options(Config):
        """``mode``: how the tests are run ("auto": by their shape). ``compare``, ``tolerance``: of printed output.
        ``call_tolerance``: of floats that a call returns (0: exactly equal); ``tuple_is_list``: a tuple that it returns
        is as good as a list (JSON stores no tuples). ``blocks``: which of several fenced
        programs. ``partial``: a share of the tests is a share of the reward. ``self_check``: tasks prove themselves
        when loaded. Seconds: an answer may take four times as long as the reference, at least ``min_seconds``, at most
        ``max_seconds``. ``tier``, ``min_tier``, ``allow_unsafe``: of the sandbox
        (`rlaif.verifiers.sandbox.probe.open_sandbox`). ``remote_url``: of the service, for ``tier: remote``, which
        runs whole programs only (mode "io", without a checker). ``interp``: try tests that are calls with literals in
        a fast interpreter first; a pass counts and is flagged "interp", anything else is run in the sandbox. ``tier:
        interp`` (any system) has that interpreter alone: tests must be calls with literals, and an answer that it
        cannot run is Unverified.
        ``language``: another one runs by bubblewrap (tier bwrap), whole programs only as with a remote sandbox.
        ``workers``: answers judged at the same time (default: the processors)."""

        language: Literal["python"] | LanguageName = "python"
        mode: Mode = "auto"
        compare: Compare = "tokens"
        tolerance: float = Field(1e-6, ge=0, lt=1)
        call_tolerance: float = Field(0.0, ge=0, lt=1)
        tuple_is_list: bool = False
        blocks: Blocks = "last"
        partial: bool = False
        self_check: bool = True
        min_seconds: float = Field(1.0, gt=0)
        max_seconds: float = Field(10.0, gt=0)
        memory_mb: int = Field(512, ge=64)
        threads: bool = False
        max_code_chars: int = Field(200_000, gt=0)
        tier: Tier | None = None
        min_tier: Tier | None = None
        allow_unsafe: bool = False
        remote_url: str | None = None
        interp: bool = False
        workers: int | None = Field(None, ge=1, le=256)

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if (self.tier == "remote") != (self.remote_url is not None):
                raise ValueError("tier: remote and remote_url (http://host:port of the service) belong together")
            if self.tier == "remote" and self.mode not in ("auto", "io"):
                raise ValueError(f"tier: remote runs whole programs only (mode io), not mode {self.mode}")
            if self.tier == "interp" and self.mode == "io":
                raise ValueError("tier: interp is for tests that call functions, not for whole programs (mode io)")
            if self.language != "python":
                if self.mode not in ("auto", "io") or self.interp:
                    raise ValueError(f"language: {self.language} is for whole programs (mode io), without interp")
                if self.tier not in (None, "bwrap"):
                    raise ValueError(f"language: {self.language} runs in tier bwrap only, not in tier {self.tier}")
            if self.interp and (self.tier == "remote" or self.mode == "io"):
                raise ValueError("interp: true is for tests that call functions, not for whole programs (mode io)")
            if (
                self.tier == "interp"
                and self.min_tier is not None
                and TIERS.index(self.min_tier) > TIERS.index("interp")
            ):
                raise ValueError(f"tier: interp is less than min_tier: {self.min_tier}; leave out one of the two")
            if self.interp and self.min_tier is not None and TIERS.index(self.min_tier) > TIERS.index("interp"):
                raise ValueError(
                    f"min_tier: {self.min_tier} promises that no answer runs in anything less, and interp: true would "
                    "run it in less first; leave out one of the two"
                )
            return self

    def __init__(self, options: Options | None = None, launcher: Launcher | None = None) -> None:
        self.options = options or self.Options()
        if (self.options.interp or self._interprets) and importlib.util.find_spec("pydantic_monty") is None:
            raise InputError("code: interp needs pydantic-monty; install it with: pip install 'rlaif[interp]'.")
        self.workers = self.options.workers or os.cpu_count() or 1
        self.rules = Rules(
            self.options.compare, self.options.tolerance, self.options.call_tolerance, self.options.tuple_is_list
        )
        self._launcher = launcher
        self._interpreter: Interpreter | None = None
        self._opening = threading.Lock()
        self._known: OrderedDict[str, _Proven | TaskError] = OrderedDict()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Here] = WeakKeyDictionary()

    async def prepare(self, task: Task) -> None:
        """Read the task and let it prove itself: the reference passes, answers that know nothing fail. Raises
        TaskError; InputError where this machine has no such sandbox; SandboxError where one fails."""
        await self._task(task)

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        try:
            return await self._verdict(completion, await self._task(task))
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))
        except SandboxError as error:
            return Unverified(reason="infrastructure", detail=str(error))

    async def aclose(self) -> None:
        for proving in self._here().proving.values():
            proving.cancel()
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            await launcher.aclose()
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            await interpreter.aclose()

    # ------------------------------------------------------------------------------------------------- the answer

    async def _verdict(self, completion: str, proven: "_Proven") -> Reward | Unverified:
        task, learnt = proven.task, proven.learnt
        if len(completion) > 5 * self.options.max_code_chars:
            return Reward(value=0.0, reason="unparseable", detail=f"an answer of {len(completion):,} characters")
        sources = self._programs(completion, task)
        if not sources:
            return Reward(value=0.0, reason="unparseable", detail="no program in the answer")
        if len(sources[-1]) > self.options.max_code_chars:
            return Reward(value=0.0, reason="unparseable", detail=f"a program of {len(sources[-1]):,} characters")
        if self._interprets:
            return await self._interpreted(proven, sources)
        if proven.pure is not None and await self._passes_first_try(proven.pure, sources, learnt):
            return Reward(value=1.0, flags=("interp",))
        rules = replace(self.rules, go_on=self.options.partial)
        limits = self._limits(learnt)

        async def judged(write_back: bool = learnt.write_back) -> Outcome:
            return await run(await self._sandbox(), limits, task, sources, rules, write_back)

        outcome = await self._attempt(judged)
        flags = _flags(outcome, task)
        if outcome.passed and "chance" in flags:
            again = await self._attempt(judged)  # an answer by luck is none
            outcome = outcome if again.passed else again
        if outcome.passed and outcome.changes_arguments and not learnt.write_back:
            # The reference leaves its arguments alone, and tests may ask for that: it must pass where they see it, too.
            outcome = await self._attempt(partial(judged, True))
        return _reward(outcome, learnt, flags, self.options.partial)

    def _programs(self, completion: str, task: CodeTask) -> tuple[str, ...]:
        if self.options.language == "python":
            return programs(completion, task.names, task.prompt, self.options.blocks)
        return program_in(completion, LANGUAGES[self.options.language].fences, self.options.blocks)

    async def _interpreted(self, proven: "_Proven", sources: Sequence[str]) -> Reward | Unverified:
        """The verdict of tier ``interp``."""
        assert proven.pure is not None
        rules = replace(self.rules, go_on=self.options.partial)
        try:
            async with self._here().slots:
                outcome = await outcome_of(await self._open_or_get_interpreter(), proven.pure, sources, rules)
        except Untold as why:
            if why.reason is not None:
                return Reward(value=0.0, reason=why.reason, detail=str(why))
            return Unverified(reason="infrastructure", detail=f"tier interp cannot run this answer: {why}")
        return _reward(outcome, proven.learnt, ("interp",), self.options.partial)

    async def _passes_first_try(self, pure: PureCalls, sources: Sequence[str], learnt: Learnt) -> bool:
        async with self._here().slots:
            outcome = await passes(await self._open_or_get_interpreter(), pure, sources, self.rules)
        return outcome is not None and learnt.agrees(outcome)

    def _limits(self, learnt: Learnt) -> Limits:
        options = self.options
        seconds = options.max_seconds if learnt.seconds is None else 4 * learnt.seconds
        return Limits(
            seconds=min(max(seconds, options.min_seconds), options.max_seconds),
            memory_mb=options.memory_mb,
            threads=options.threads,
        )

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work`` in one of the slots; again, where the sandbox failed and not the program in it."""
        slots = self._here().slots
        for attempt in range(_ATTEMPTS - 1):
            try:
                async with slots:
                    return await work()
            except SandboxError:
                await asyncio.sleep(0.1 * 2**attempt)
        async with slots:
            return await work()

    # --------------------------------------------------------------------------------------------------- the task

    async def _task(self, row: Task) -> "_Proven":
        """The row's task, read and proven once for equal rows."""
        columns = repr([row.get(column) for column in _TASK_COLUMNS])
        key = hashlib.sha256(columns.encode("utf-8", "backslashreplace")).hexdigest()
        known = self._known.get(key)
        if known is None:
            proving = self._here().proving
            if key not in proving:
                proving[key] = asyncio.create_task(self._learn_about(key, row))
                proving[key].add_done_callback(lambda _: proving.pop(key))
            known = await asyncio.shield(proving[key])
        if isinstance(known, TaskError):
            raise known
        return known

    async def _learn_about(self, key: str, row: Task) -> "_Proven | TaskError":
        try:
            known: _Proven | TaskError = await self._proven(row)
        except TaskError as error:
            known = error
        self._known[key] = known
        if len(self._known) > _KNOWN_TASKS:
            self._known.popitem(last=False)
        return known

    async def _proven(self, row: Task) -> "_Proven":
        if self._interprets:
            return await self._proven_by_interpreter(row)
        whole = self.options.tier == "remote" or self.options.language != "python"
        task = read_task(row, "io" if self.options.language != "python" else self.options.mode)
        if whole and (not isinstance(task.tests, Streams) or task.tests.checker is not None):
            what = "tier remote" if self.options.tier == "remote" else f"language {self.options.language}"
            raise TaskError(
                f"{what} is for whole programs only: give tests of {{input, output}} texts (mode io) without a checker."
            )
        pure = pure_calls(task) if self.options.interp else None
        if not self.options.self_check:
            return _Proven(task, Learnt(), pure)

        async def proven() -> Learnt:
            sandbox = await self._sandbox()
            learnt = await learn(sandbox, self._limits(Learnt()), task, self.rules)
            limits = self._limits(replace(learnt, seconds=learnt.seconds or 0.0))  # knowing nothing takes no time
            doing = await passing_without_knowledge(sandbox, limits, task, self.rules, learnt)
            if doing is not None:
                raise TaskError(f"the tests prove nothing: an answer that {doing} passes them; add some that it fails.")
            return learnt

        return _Proven(task, await self._attempt(proven), pure)

    async def _proven_by_interpreter(self, row: Task) -> "_Proven":
        task = read_task(row, self.options.mode)
        pure = pure_calls(task)
        if pure is None:
            raise TaskError("tier interp runs only tests that are calls of one function with plain values.")
        if self.options.self_check:
            async with self._here().slots:
                await prove(await self._open_or_get_interpreter(), task, pure, self.rules)
        return _Proven(task, Learnt(), pure)

    # ------------------------------------------------------------------------------------------------ the sandbox

    @property
    def tier(self) -> Tier | None:
        """The sandbox's tier, the lower one of two where ``interp`` is tried first; None before it was needed."""
        opened = [s.tier for s in (self._launcher, self._interpreter) if s is not None]
        return min(opened, key=TIERS.index, default=None)

    async def _sandbox(self) -> Launcher:
        if self._launcher is not None:
            return self._launcher
        return await asyncio.to_thread(self._open)

    def _open(self) -> Launcher:
        with self._opening:
            launcher = self._launcher
            if launcher is None:
                # A verdict holds up to two processes at a time: with fewer places than that, two verdicts could each
                # hold one and wait for ever for another.
                o, workers = self.options, 2 * self.workers
                if o.language == "python":
                    launcher = open_sandbox(o.min_tier, o.tier, o.allow_unsafe, workers, o.remote_url)
                else:
                    launcher = open_bubblewrap(o.language, o.min_tier, self.workers)
                self._launcher = launcher
            return launcher

    async def _open_or_get_interpreter(self) -> Interpreter:
        known = self._interpreter
        return known if known is not None else await asyncio.to_thread(self._open_interpreter)

    def _open_interpreter(self) -> Interpreter:
        with self._opening:
            if self._interpreter is None:
                o = self.options
                alone = self._interprets
                self._interpreter = Interpreter(
                    self.workers, seconds=o.max_seconds if alone else 0.25, memory_mb=o.memory_mb if alone else 64
                )
            return self._interpreter

    @property
    def _interprets(self) -> bool:
        return self.options.tier == "interp"

    def _here(self) -> "_Here":
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = _Here(asyncio.Semaphore(self.workers))
        return self._loops[loop]


@dataclass(frozen=True)
class _Proven:
    """``pure``: its tests for a first try, where there is to be one."""

    task: CodeTask
    learnt: Learnt
    pure: PureCalls | None = None


@dataclass
class _Here:
    """What belongs to one event loop: a trainer may start a loop for every step, or use several threads."""

    slots: asyncio.Semaphore
    proving: dict[str, asyncio.Task[_Proven | TaskError]] = field(default_factory=dict)


def _reward(outcome: Outcome, learnt: Learnt, flags: tuple[str, ...], partial: bool) -> Reward:
    if outcome.passed and not learnt.agrees(outcome):
        outcome.failed("wrong", f"{outcome.total} asserts ran where the reference's answer meets {learnt.total}")
    if outcome.passed:
        return Reward(value=1.0, flags=flags)
    total = max(outcome.total, learnt.total or 0)
    share = outcome.held / total if partial and total and outcome.reason in ("wrong", "crashed") else 0.0
    detail = outcome.detail.encode("utf-8", "backslashreplace").decode()  # it may quote halves of characters
    return Reward(value=min(share, 1 - 1e-6), reason=outcome.reason, detail=detail, flags=flags)


def _flags(outcome: Outcome, task: CodeTask) -> tuple[str, ...]:
    """Telemetry: what is odd about the code. ``special_cases``: it holds many of the expected values."""
    outline = outcome.outline or {}
    flags = [str(flag) for flag in outline.get("flags", ())]
    known = task.literals.intersection(map(str, outline.get("literals", ())))
    if len(known) >= 3 and 2 * len(known) >= len(task.literals):
        flags.append("special_cases")
    return tuple(flags)
