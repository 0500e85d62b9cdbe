"""A small run with known judges to review, and the page over HTTP as the browser asks for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from rlaif.review import Review, open_review
from tests import running

PROMPTS = [f"Question {i}: which, <b>why</b> & how?" for i in range(4)]

ALL: dict[str, Any] = {"pairing": {"strategy": "all"}, "policy_settings": {"n": 3}}
COMPARISONS = 3 * len(PROMPTS)


def made(folder: Path, **other: Any) -> Path:
    """A finished run, all of whose comparisons are pairs where the judge decides."""
    running.run(folder, PROMPTS, **(ALL | other))
    return folder / "run"


class Page:
    """The page's own requests."""

    def __init__(self, review: Review, client: httpx2.AsyncClient) -> None:
        self.review, self.http = review, client

    async def next(self, **filters: str) -> dict[str, Any]:
        reply = await self.http.get("next", params=filters)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def comparison(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"comparison/{key}")).json()
        return found

    async def vote(self, key: str, said: str) -> dict[str, Any]:
        reply = await self.http.post("vote", json={"key": key, "vote": said})
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def undo(self) -> str | None:
        key: str | None = (await self.http.post("undo", json={})).json()["key"]
        return key

    async def better(self, key: str) -> str:
        """The side of the higher quality."""
        shown = await self.comparison(key)
        left, right = (running.quality(shown[side]) for side in ("left", "right"))
        return "left" if left > right else "right"


@asynccontextmanager
async def page(run: Path, reviewer: str = "anna") -> AsyncIterator[Page]:
    """Without a server: the application answers in this process."""
    with ExitStack() as stack:
        review = await asyncio.to_thread(stack.enter_context, open_review(run, reviewer=reviewer))
        transport = httpx2.ASGITransport(app=review.app)
        async with httpx2.AsyncClient(transport=transport, base_url=review.url) as client:
            yield Page(review, client)
