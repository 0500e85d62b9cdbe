"""The reward of GRPO and RLOO: one composite, given to TRL as its one reward function.

Where the reward has a judge (the verifier ``judge``), its requests go through the training folder's ledger, so that
nothing is paid for twice however often a training is resumed, and keep within ``max_cost``.

Not covered: the requests of a verifier of your own that asks a model by itself; rows are masked one by one, never a
whole group because one of it failed.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlaif.clients.base import Client
from rlaif.config.rewards import Node
from rlaif.engine import Budget, Ledger, open_client
from rlaif.errors import InputError, TaskError
from rlaif.rewards import CompositeReward, PartsMonitor, Scored, open_reward
from rlaif.training.reward_functions import RewardFunction, text_of
from rlaif.training.watch import text_figures
from rlaif.verifiers.base import Task
from rlaif.verifiers.judged import JudgeOptions, JudgeVerifier

logger = logging.getLogger(__name__)

_WINDOW, _ENOUGH = 200, 20  # completions that a share of failures is taken over, and the fewest that say anything


class GroupReward:
    """TRL's reward function. It is told which row of ``tasks`` each completion belongs to (the column ``row``).

    ``samples``: the file that the first group of every step is added to. ``masked``: of the completions scored last,
    which have no reward. ``ended``: why the training should end, or None.
    """

    __name__ = "reward"

    def __init__(
        self,
        config: Node,
        tasks: Sequence[Task],
        *,
        group_size: int,
        max_failed: float,
        max_flat: int | None,
        opened: Callable[[], CompositeReward] | None = None,
        samples: Path | None = None,
    ) -> None:
        self.group_size, self.samples = group_size, samples
        self.asked: tuple[list[str], list[Task], list[int]] = ([], [], [])
        self.tasks, self.max_failed, self.max_flat = tasks, max_failed, max_flat
        self.monitor = PartsMonitor(max_infrastructure=1.0)  # here `max_failed` decides
        self.function = RewardFunction(config, monitor=self.monitor, opened=opened)
        self.scored: list[Scored] = []
        self.failures: deque[bool] = deque(maxlen=_WINDOW)
        self.flat = 0  # steps in a row
        self.example = ""
        self.stopped: str | None = None  # why the training is to end, as others have found

    @property
    def masked(self) -> list[bool]:
        return [row.value is None for row in self.scored]

    @property
    def ended(self) -> str | None:
        if self.stopped is not None:
            return self.stopped
        failed, seen = sum(self.failures), len(self.failures)
        if seen >= _ENOUGH and failed > self.max_failed * seen:
            return (
                f"{failed} of the last {seen} completions have no reward ({failed / seen:.0%}, max_failed is"
                f" {self.max_failed:.0%}): {self.example}"
            )
        if self.max_flat is not None and self.flat >= self.max_flat:
            values = sorted({row.value for row in self.scored if row.value is not None})
            found = f"every reward is {values[0]:g}" if len(values) == 1 else "all rewards of a group are equal"
            found = found if values else f"no completion has a reward ({self.scored[0].why})"
            return (
                f"{self.flat} steps in a row gave no signal: {found}; look at samples.jsonl, and make the task easier,"
                " the reward finer, or the groups larger"
            )
        return None

    def submit(self, rows: Sequence[int], completions: Sequence[Any], ids: Sequence[Sequence[int]]) -> None:
        """Start scoring what the trainer is about to ask for."""
        self.function.submit_tasks(*self._asked(rows, completions, ids))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        *,
        row: Sequence[int],
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **_: Any,
    ) -> list[float | None]:
        self.asked = self._asked(row, completions, completion_ids)
        self.scored = self.function.score_tasks(*self.asked)
        for scored in self.scored:
            failed = scored.value is None and scored.masked != "abstained"
            self.failures.append(failed)
            self.example = scored.why if failed else self.example
        self._log(log_metric)
        if self.samples is not None and trainer_state is not None:
            self._write_sample(self.samples, trainer_state.global_step + 1)
        return [scored.value for scored in self.scored]

    def note_flat(self, flat: bool) -> None:
        """Whether no group of the step had two different rewards."""
        self.flat = self.flat + 1 if flat else 0

    def state(self) -> dict[str, Any]:
        """The running statistics, as JSON; part of a checkpoint."""
        return {"reward": self.function.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.function.load_state(state["reward"])

    def last(self) -> str:
        """The completions scored last, each a line of JSON with its prompt and reward."""
        texts, tasks, _ = self.asked
        rows = (
            {"prompt": task["prompt"], "completion": text, "reward": scored.value}
            for text, task, scored in zip(texts, tasks, self.scored, strict=True)
        )
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _write_sample(self, samples: Path, step: int) -> None:
        texts, tasks, size = self.asked[0], self.asked[1], self.group_size
        rows = [
            {"step": step, "prompt": tasks[0]["prompt"], "completion": text, "reward": scored.value}
            for text, scored in zip(texts[:size], self.scored, strict=False)
        ]
        with samples.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _asked(
        self, rows: Sequence[int], completions: Sequence[Any], ids: Sequence[Sequence[int]]
    ) -> tuple[list[str], list[Task], list[int]]:
        return [text_of(c) for c in completions], [self.tasks[row] for row in rows], [len(one) for one in ids]

    def _log(self, log_metric: Callable[[str, float], None]) -> None:
        for part in self.function.reward.identities:
            verdicts = [scored.parts.get(part) for scored in self.scored]
            decided = [value for verdict in verdicts if (value := getattr(verdict, "value", None)) is not None]
            if decided:
                log_metric(f"parts/{part}", sum(decided) / len(decided))
        log_metric("masked", sum(self.masked) / len(self.scored))
        for name, value in text_figures(self.asked[0]).items():
            log_metric(name, value)


def check_tasks(config: Node, tasks: Sequence[Task]) -> None:
    """Check every task, before anything is spent. Raises InputError for the first that is wrong, with how many are."""
    function = RewardFunction(config)
    wrong: list[tuple[int, str]] = []
    try:
        for row, task in enumerate(tasks):
            try:
                function.prepare([task])
            except TaskError as error:
                wrong.append((row, str(error)))
    finally:
        function.close()
    if wrong:
        row, why = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(tasks)} prompts have no task for the reward; the first is prompt {row + 1}"
            f" ({str(tasks[row]['prompt'])[:60]!r}): {why}"
        )


class StoredJudge(JudgeVerifier):
    """A judge whose replies are kept in a ledger and whose requests are paid from a budget."""

    def __init__(self, options: JudgeOptions, ledger: Ledger, budget: Budget) -> None:
        super().__init__(options)
        self.ledger, self.budget = ledger, budget

    def _open(self) -> Client:
        if self._client is None:
            self._client = open_client(self.options.model, self.ledger, "reward", self.budget)
        return self._client


def has_judge(config: Node) -> bool:
    return any(node.verifier == "judge" for _, node in config.walk())


def opener(
    config: Node, max_cost: Decimal | None, ledger: Callable[[], Ledger]
) -> tuple[Callable[[], CompositeReward], Budget | None]:
    """What opens the reward, and the budget of its judges. ``ledger`` is opened where there is a judge; without one
    there is neither ledger nor budget."""
    if not has_judge(config):
        return lambda: open_reward(config), None
    stored = ledger()
    budget = Budget(max_cost, stored)

    def opened() -> CompositeReward:
        reward = open_reward(config)
        for part, verifier in reward.verifiers.items():
            if isinstance(verifier, JudgeVerifier):
                reward.verifiers[part] = StoredJudge(verifier.options, stored, budget)
        return reward

    return opened, budget
