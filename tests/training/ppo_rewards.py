"""Rewards of the tests of PPO, as verifiers of one's own."""

import os

from rlaif.config.base import Config
from rlaif.types import Reward, Unverified
from rlaif.verifiers.base import Task

BROKEN = "RLAIF_TEST_BROKEN_REWARD"  # while set, the reward fails on every completion


class NoOptions(Config):
    pass


class Letters:
    """The share of letters and other signs of ASCII among the characters."""

    identity = "letters@1"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        pass

    async def prepare(self, task: Task) -> None:
        pass

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if os.environ.get(BROKEN):
            return Unverified(reason="task_error", detail="broken on purpose")
        return Reward(value=sum(c.isascii() for c in completion) / max(1, len(completion)))

    async def aclose(self) -> None:
        pass


class SometimesMute(Letters):
    """Abstains on completions with an even number of characters, and is `Letters` on the others."""

    identity = "sometimes_mute@1"

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if len(completion) % 2 == 0:
            return Unverified(reason="abstained", detail="an even number")
        return await super().verify(completion, task)
