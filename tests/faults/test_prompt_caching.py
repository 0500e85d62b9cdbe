"""What providers can cache: the same words first in every request of a run, the row last, and requests that share the
most sent together; what was read from a cache and written to it stands in the manifest."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.sampling import CACHED_FROM
from tests.faults.sessions import Sessions
from tests.faults.world import Project, honest, is_judging, write_project
from tests.servers.fault_server import Answer, Asked, FaultServer

PROMPTS, N = 4, 3
COMPARISONS = PROMPTS * N * (N - 1) // 2
LONG = "All of this is context. " * (CACHED_FROM // 20)


def system(asked: Asked) -> str:
    """The text of the system message, whichever way the protocol spells it."""
    if asked.api == "anthropic":
        return "".join(block["text"] for block in asked.body.get("system", ()))
    return "".join(m["content"] for m in asked.body["messages"] if m["role"] == "system")


def judging(server: FaultServer, name: str) -> list[Asked]:
    return [asked for asked in server.asked if is_judging(asked) and asked.body["model"] == name]


def sampling(server: FaultServer) -> list[Asked]:
    return [asked for asked in server.asked if asked.body["model"] == "policy"]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory, sessions: Sessions) -> Iterator[FaultServer]:
    """The server after a run that sent each model one request at a time."""
    with FaultServer(honest) as server:
        project = write_project(
            tmp_path_factory.mktemp("caching"),
            server,
            prompts=PROMPTS,
            n=N,
            policy="anthropic",
            settings={"max_concurrency": 1},
        )
        code, session = sessions.run(project.folder, "generate", "config.yaml")
        assert code == 0, session.err
        yield server


@pytest.mark.parametrize("name", ["judge-openai", "judge-anthropic"])
def test_instructions_and_principle_come_first_and_are_the_same_in_every_request(
    name: str, one_by_one: FaultServer
) -> None:
    asked = judging(one_by_one, name)
    assert len(asked) == 2 * COMPARISONS
    principles = {"Which response is better?", "Which response is finer?"}
    first = {system(one) for one in asked}
    assert len(first) == len(principles)  # each request is about one of them
    assert all(any(principle in text for principle in principles) for text in first)
    assert not any("Question" in text or "quality" in text for text in first)
    for one in asked:
        roles = [m["role"] for m in one.body["messages"]]
        assert roles == (["user"] if one.api == "anthropic" else ["system", "user"])
        assert "Question" in one.last_message


def test_with_the_whole_constitution_in_one_question_they_are_the_same_in_all_requests(
    tmp_path: Path, sessions: Sessions
) -> None:
    with FaultServer(honest) as server:
        project = write_project(tmp_path, server, prompts=PROMPTS, n=2)
        assert sessions.run(project.folder, "generate", "config.yaml", "--set", "judge.principles=all")[0] == 0
        for name in ("judge-openai", "judge-anthropic"):
            (only,) = {system(one) for one in judging(server, name)}
            assert "Which response is better?" in only
            assert "Which response is finer?" in only


def test_anthropic_is_told_where_the_shared_part_ends(one_by_one: FaultServer) -> None:
    for one in judging(one_by_one, "judge-anthropic"):
        assert one.body["system"][-1]["cache_control"] == {"type": "ephemeral"}
        assert json.dumps(one.body).count("cache_control") == 1
    for one in sampling(one_by_one):  # siblings share all of the prompt
        assert one.body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
        assert json.dumps(one.body).count("cache_control") == 1


def test_siblings_are_sent_together(one_by_one: FaultServer) -> None:
    questions = [one.last_message for one in sampling(one_by_one)]
    assert questions == [f"Question {i}?" for i in range(PROMPTS) for _ in range(N)]


@pytest.mark.parametrize("name", ["judge-openai", "judge-anthropic"])
def test_both_orders_are_sent_together(name: str, one_by_one: FaultServer) -> None:
    shown = [re.findall(r"quality (\d+)\n", one.last_message) for one in judging(one_by_one, name)]
    for first, second in zip(shown[::2], shown[1::2], strict=True):
        assert first == second[::-1]


# ------------------------------------------------------------------------------------------------ a cache that works


class Cache:
    """A script with a prompt cache as the providers have one: an entry can be read once the request that wrote it has
    been answered. OpenAI's server caches long prompts by itself, Anthropic's up to each breakpoint."""

    TOKENS, SECONDS = 5, 0.05

    def __init__(self) -> None:
        self.readable: dict[str, float] = {}
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()

    def __call__(self, asked: Asked) -> Answer:
        answer, prefix = honest(asked), self._prefix(asked)
        if prefix is None:
            return Answer(answer.text, delay=self.SECONDS)
        read = self.readable.get(prefix, float("inf")) <= time.monotonic()
        (self.reads if read else self.writes)[asked.body["model"]] += 1
        self.readable.setdefault(prefix, time.monotonic() + self.SECONDS)
        used = {"cached" if read else "written": self.TOKENS}
        return Answer(answer.text, delay=self.SECONDS, **used)  # type: ignore[arg-type]

    def _prefix(self, asked: Asked) -> str | None:
        if asked.api == "openai":
            question = asked.last_message
            return f"{asked.body['model']} {question}" if len(question) >= CACHED_FROM else None
        blocks = [*asked.body.get("system", ()), *(b for m in asked.body["messages"] for b in m["content"])]
        marked = max((i for i, b in enumerate(blocks) if "cache_control" in b), default=None)
        return None if marked is None else json.dumps([asked.body["model"], blocks[: marked + 1]])


def manifest_tokens(project: Project) -> dict[str, dict[str, Any]]:
    manifest = json.loads((project.run / "manifest.json").read_text())
    stages = {stage["model"].partition(":")[2]: stage["usage"] for stage in manifest["ledger"]["stages"]}
    for model in manifest["cost"]["models"]:
        name = model["model"].partition(":")[2]
        assert model.get("cached_input_tokens", 0) == stages[name]["cached_input_tokens"]
        assert model.get("cache_write_tokens", 0) == stages[name]["cache_write_tokens"]
    return stages


@pytest.mark.parametrize("policy", ["openai", "anthropic"])
def test_of_a_long_prompt_one_sample_writes_the_cache_and_its_siblings_read_it(
    policy: str, tmp_path: Path, sessions: Sessions
) -> None:
    cache = Cache()
    with FaultServer(cache) as server:
        project = write_project(tmp_path, server, n=N, policy=policy, judges=["anthropic"])
        lines = (json.dumps({"prompt": f"{LONG}Question {i}?"}) + "\n" for i in range(PROMPTS))
        (project.folder / "prompts.jsonl").write_text("".join(lines))
        code, session = sessions.run(project.folder, "generate", "config.yaml")
        assert code == 0, session.err
    assert cache.writes["policy"] == PROMPTS
    assert cache.reads["policy"] == PROMPTS * (N - 1)
    assert cache.reads["judge-anthropic"] > cache.writes["judge-anthropic"]
    tokens = manifest_tokens(project)
    for name in ("policy", "judge-anthropic"):
        assert tokens[name]["cached_input_tokens"] == cache.TOKENS * cache.reads[name]
        assert tokens[name]["cache_write_tokens"] == cache.TOKENS * cache.writes[name]


def test_samples_of_a_short_prompt_do_not_wait_for_one_another(tmp_path: Path, sessions: Sessions) -> None:
    together = 0

    def script(asked: Asked) -> Answer:
        nonlocal together
        together = max(together, server.open_connections)
        return Answer(honest(asked).text, delay=0.3)

    with FaultServer(script) as server:
        project = write_project(tmp_path, server, prompts=1, n=N, judges=["anthropic"])
        assert sessions.run(project.folder, "generate", "config.yaml")[0] == 0
        assert together >= N
