"""A completion and its task in, one reward out: a number, or None where it must not be used.

    reward = open_reward(config)
    scored = await reward.score("The answer is \\boxed{20}.", {"reference": "20"})

Retries: an infrastructure failure of a verifier is tried again here, ``attempts`` times in all and nowhere above.
Nothing is cut down to its range: a verifier that leaves it, or gives NaN, has failed, and the row is masked.

Not covered: a verifier that blocks its thread without ever awaiting cannot be timed out here (the ones of this package
do not; for your own, `rlaif.training.reward_functions` has a deadline around everything).
"""

import asyncio
import math
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rlaif.config.base import Document, Path_
from rlaif.config.rewards import Node
from rlaif.errors import InputError, RequestError, RlaifError, TaskError, TransientError
from rlaif.rewards.normalise import RunningNorm
from rlaif.rewards.tree import Failed, Needs, Norms, Row, Value, build, column, no_case
from rlaif.types import Reward, Unverified, UnverifiedReason, Verified
from rlaif.types import Row as FrozenRow
from rlaif.verifiers import Task, Verifier, open_verifier

T = TypeVar("T")


class Scored(FrozenRow):
    """The reward of one completion. ``value``: None masks the row, and ``masked`` and ``why`` say why. ``parts``: the
    verdict of each part that was asked. ``penalties``: each penalty of a shaping, 0 to 1. ``retries``: how often a part
    was asked again after an infrastructure failure."""

    value: float | None
    parts: dict[str, Verified] = {}
    penalties: dict[str, float] = {}
    masked: UnverifiedReason | None = None
    why: str = ""
    retries: int = 0


def open_reward(config: Node, document: Document | None = None, at: Path_ = ("reward",)) -> "CompositeReward":
    """The reward a config describes. ``document``, ``at``: the file it was read from and the place in it, for messages.

    Raises InputError for an unknown verifier or wrong options, before anything runs.
    """
    verifiers: dict[str, Verifier] = {}
    for place, node in config.walk():
        if node.verifier is not None:
            here = (*at, *place)
            try:
                options = _below(document, (*here, "options"), node.options) if document else None
                verifiers[node.part] = open_verifier(node.verifier, node.options, options)
            except InputError as error:
                told = document is None or str(error).startswith((f"{document.name}:", "--set "))
                where = "" if told or document is None else f"{document.where((*here, 'verifier'))}: "
                raise InputError(f"{where}{error}") from None
    return CompositeReward(config, verifiers)


def open_run_reward(config: Node) -> "CompositeReward":
    """The reward of a run of `generate`, whose own judge is asked where this one leaves two completions equal. Raises
    InputError as `open_reward` does, and for a judge inside."""
    if any(node.verifier == "judge" for _, node in config.walk()):
        raise InputError("reward: the run's own judge decides among equals; leave the verifier 'judge' out.")
    return open_reward(config)


class CompositeReward:
    """Scores completions by a config's tree. ``verifiers``: of each leaf, by its name; closed with `aclose`.

    ``attempts``: how often a part is asked while it fails by infrastructure; ``backoff``: seconds before the second
    time, doubled each further time. ``in_flight``: completions scored at the same time.
    """

    def __init__(
        self,
        config: Node,
        verifiers: Mapping[str, Verifier],
        *,
        attempts: int = 3,
        backoff: float = 0.2,
        in_flight: int = 64,
    ) -> None:
        self.config = config
        self.verifiers = dict(verifiers)
        self.attempts, self.backoff = attempts, backoff
        self.identities = {part: verifier.identity for part, verifier in self.verifiers.items()}
        self._leaves = {node.part: node for _, node in config.walk() if node.verifier is not None}
        if missing := self._leaves.keys() - self.verifiers.keys():
            raise InputError(f"there is no verifier for the part {min(missing)!r} of the reward.")
        self._norms: Norms = {}
        self._rule = build(config, self._norms)
        self._slots = asyncio.Semaphore(in_flight)

    async def prepare(self, task: Task) -> None:
        """Check a task with every part that could be asked about it. Raises TaskError, which names the part. A part
        that may be left out may also have no task here."""
        for node in _reached(self.config, task):
            try:
                await self.verifiers[node.part].prepare(task)
            except TaskError as error:
                raise TaskError(f"{node.part}: {error}") from None

    async def score(self, completion: str, task: Task, tokens: int | None = None) -> Scored:
        """The reward of one completion. ``tokens``: how many it has, where a penalty counts them. Running statistics
        are used as they are and not changed.

        Raises ProviderError or InputError where no row could be scored (a key that is refused, a verifier's setting).
        """
        return self.total(await self.ask(completion, task, tokens))

    async def score_many(
        self,
        completions: Sequence[str],
        tasks: Sequence[Task],
        tokens: Sequence[int] | None = None,
        *,
        learn: bool = False,
    ) -> list[Scored]:
        """As `score`, for a batch: one result for each completion, in the same order. ``learn``: running statistics
        learn the batch first, as a whole, so that its order changes nothing."""
        if len(tasks) != len(completions) or (tokens is not None and len(tokens) != len(completions)):
            raise ValueError(f"{len(completions)} completions, {len(tasks)} tasks; give one of each for a row")
        counts = tokens if tokens is not None else [None] * len(completions)
        rows = await _together([self.ask(*row) for row in zip(completions, tasks, counts, strict=True)])
        if learn:
            self.learn(rows)
        scored = [self.total(row) for row in rows]
        assert len(scored) == len(completions)  # a reward given to another row would never be noticed
        return scored

    async def ask(self, completion: str, task: Task, tokens: int | None = None) -> Row:
        """The row with every verdict that its value needs: the part of `score` that takes time."""
        row = Row(completion, task, tokens)
        async with self._slots:
            while isinstance(outcome := self._rule(row), Needs):
                parts = sorted(outcome.parts)
                asked = await _together([self._ask(part, completion, task) for part in parts])
                for part, (verdict, again) in zip(parts, asked, strict=True):
                    row.verdicts[part] = verdict
                    row.retries += again
        return row

    def total(self, row: Row) -> Scored:
        """The reward of a row that `ask` gave."""
        outcome, parts = self._rule(row), dict(row.verdicts)
        if isinstance(outcome, Value):
            return Scored(value=outcome.value, parts=parts, penalties=dict(row.penalties), retries=row.retries)
        assert isinstance(outcome, Failed)
        return Scored(value=None, parts=parts, masked=outcome.reason, why=outcome.why, retries=row.retries)

    def learn(self, rows: Sequence[Row]) -> None:
        """Let the running statistics learn rows that `ask` gave."""
        for inner, norm in self._norms.values():
            outcomes = [inner(row) for row in rows]
            norm.update([outcome.value for outcome in outcomes if isinstance(outcome, Value)])

    def state(self) -> dict[str, Any]:
        """The running statistics, as JSON; part of a checkpoint."""
        return {label: norm.state() for label, (_, norm) in self._norms.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What `state` gave. Raises InputError where it belongs to another reward."""
        if state.keys() != self._norms.keys():
            have, want = (", ".join(sorted(keys)) or "none" for keys in (state, self._norms))
            raise InputError(f"the saved reward statistics are of another reward (saved: {have}; here: {want}).")
        for label, saved in state.items():
            vars(self._norms[label][1]).update(vars(RunningNorm.from_state(saved)))

    async def aclose(self) -> None:
        """Close every verifier, even where one of them fails at it; may be called twice."""
        results = await asyncio.gather(*(v.aclose() for v in self.verifiers.values()), return_exceptions=True)
        for error in (result for result in results if isinstance(result, BaseException)):
            raise error

    async def _ask(self, part: str, completion: str, task: Task) -> tuple[Reward | Unverified, int]:
        """The part's verdict, and how often it was asked again."""
        leaf, again = self._leaves[part], 0
        try:
            async with asyncio.timeout(leaf.seconds):
                while True:
                    verdict = _checked(await _verdict(self.verifiers[part], completion, task), leaf)
                    if isinstance(verdict, Reward) or verdict.reason != "infrastructure" or again + 1 >= self.attempts:
                        return verdict, again
                    await asyncio.sleep(self.backoff * 2**again)
                    again += 1
        except TimeoutError:
            return Unverified(reason="infrastructure", detail=f"no verdict within {leaf.seconds:g} s"), again


def _below(document: Document, at: Path_, data: Mapping[str, Any]) -> Document:
    """The part of a document at ``at``, which keeps the lines of its keys."""
    end = len(at)
    below = Document(document.name, dict(data), {p[end:]: n for p, n in document.lines.items() if p[:end] == at})
    below.lines.setdefault((), document.lines.get(at[:-1], 1))
    below.overrides = {p[end:]: s for p, s in document.overrides.items() if p[:end] == at}
    return below


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. The first error ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _verdict(verifier: Verifier, completion: str, task: Task) -> object:
    try:
        return await verifier.verify(completion, task)
    except TaskError as error:
        return Unverified(reason="task_error", detail=str(error))
    except (TransientError, RequestError) as error:
        return Unverified(reason="infrastructure", detail=str(error))
    except RlaifError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's own verifier; the row is masked and counted
        told = f"{type(error).__name__}: {error}"[:500].encode("utf-8", "backslashreplace").decode()  # must be JSON
        return Unverified(reason="infrastructure", detail=told)


def _checked(verdict: object, leaf: Node) -> Reward | Unverified:
    """A finite value in the leaf's range, or Unverified."""
    if isinstance(verdict, Unverified):
        return verdict
    if not isinstance(verdict, Reward):
        kind = type(verdict).__name__
        return Unverified(reason="infrastructure", detail=f"gave {kind}, not Reward or Unverified")
    low, high = leaf.bounds
    if not (math.isfinite(verdict.value) and low <= verdict.value <= high):
        found = f"gave {verdict.value}, outside of its range {low:g} to {high:g}; set 'range' to what it can give"
        return Unverified(reason="infrastructure", detail=found)
    return verdict


def _reached(node: Node, task: Task) -> Iterator[Node]:
    """The leaves that could be asked about ``task`` and must then be able to. Raises TaskError: no case of a route."""
    if node.verifier is not None:
        yield node
    elif node.route is not None:
        key = column(task, node.route.by)
        chosen = node.route.cases.get(key, node.route.default) if key is not None else node.route.default
        if chosen is None:
            raise TaskError(no_case(node.route, key))
        yield from _reached(chosen, task)
    else:
        for _, child in node.children:
            if child.required:
                yield from _reached(child, task)
