"""Many things asked at once, and no more than so many."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_flight(items: Sequence[Item], work: Callable[[Item], Awaitable[Result]], at_once: int) -> list[Result]:
    """``work`` on every item, at most ``at_once`` of them together; the first exception cancels the rest."""
    slots = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
