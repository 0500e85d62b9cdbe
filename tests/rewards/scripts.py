"""Verifiers that say what the task tells them to say, to be composed in tests."""

import asyncio
from typing import Any

from pydantic import TypeAdapter

from rlaif.config.base import Config
from rlaif.config.rewards import Node, RewardConfig
from rlaif.errors import TaskError
from rlaif.rewards import CompositeReward
from rlaif.types import Reward, RewardReason, Unverified
from rlaif.verifiers import Task

Said = Reward | Unverified


def reward_of(written: Any) -> Node:
    return TypeAdapter[Node](RewardConfig).validate_python(written)


def says(value: float, reason: RewardReason | None = None) -> Reward:
    return Reward(value=value, reason=reason)


ABSTAINED = Unverified(reason="abstained", detail="not mine")
BROKEN = Unverified(reason="infrastructure", detail="no sandbox")
UNPARSEABLE = says(0.0, "unparseable")


class Scripted:
    """Part ``name`` answers ``task[name]``: a verdict, a list of them (one for each time it is asked), or an exception.
    ``asked``: the completions it was asked about."""

    class Options(Config):
        pass

    def __init__(self, name: str) -> None:
        self.name, self.identity = name, f"{name}@1"
        self.asked: list[str] = []
        self.closed = 0

    async def prepare(self, task: Task) -> None:
        if self.name not in task:
            raise TaskError(f"the row has no {self.name!r}.")

    async def verify(self, completion: str, task: Task) -> Any:
        times = self.asked.count(completion)
        self.asked.append(completion)
        said = task[self.name]
        if isinstance(said, list):
            said = said[min(times, len(said) - 1)]
        if isinstance(said, float):
            await asyncio.sleep(said)  # seconds until it answers
            return says(1.0)
        if isinstance(said, BaseException):
            raise said
        return said

    async def aclose(self) -> None:
        self.closed += 1


def scripted(written: Any, **settings: Any) -> CompositeReward:
    """A composite whose leaves are all `Scripted`."""
    config = reward_of(written)
    parts = [node.part for _, node in config.walk() if node.verifier]
    return CompositeReward(config, {part: Scripted(part) for part in parts}, **({"backoff": 0.0} | settings))


def asked(reward: CompositeReward) -> dict[str, int]:
    """How often each part was asked."""
    return {name: len(v.asked) for name, v in reward.verifiers.items() if isinstance(v, Scripted)}
