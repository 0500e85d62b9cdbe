"""Whole runs with transport: batch, killed at random moments among them."""

import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from rlaif.engine import Ledger
from rlaif.generation import generate
from tests.engine.batch_runs import answer, config, processes, rows, start
from tests.servers.batch_server import BatchServer, Plan


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return processes()


@pytest.mark.parametrize("samples", [False, True])
def test_a_run_in_batches_writes_the_rows_of_the_online_run_byte_for_byte(tmp_path: Path, samples: bool) -> None:
    with BatchServer(answer, plan=lambda nth: Plan(expired=lambda i: nth % 3 == 0 and i % 5 == 1)) as server:
        online = config(tmp_path, server, samples=samples, transport="online", out="online")
        batched = config(tmp_path, server, samples=samples, max_requests=30)
        generate(online)
        asked = server.paid.total()
        generate(batched)
        assert rows(batched) == rows(online)
        assert len(rows(batched)["pairs"].split(b"\n")) > 10
        assert {made.api for made in server.batches} == ({"anthropic"} if samples else {"openai", "anthropic"})
        assert server.paid.total() == 2 * asked


def kill_and_resume(folder: Path, context: ForkServerContext, server: BatchServer, kills: int, seed: int) -> int:
    """Run, killed after random times, until that many kills struck; then to its end. How many struck."""
    draw = random.Random(seed)
    run = config(folder, server, prompts=6, max_requests=10)
    struck = 0
    while struck < kills:
        before, process = server.attempts, start(context, run)
        if draw.random() < 0.5:  # in the moment of submitting
            while process.exitcode is None and server.attempts == before:
                time.sleep(0.002)
            process.join(draw.uniform(0.0, 0.2))
        else:
            process.join(draw.uniform(0.02, 0.9))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        struck += 1
    last = start(context, run)
    last.join(60)
    assert last.exitcode == 0
    return struck


def killed_at_random(tmp_path: Path, context: ForkServerContext, kills: int) -> None:
    """Several runs, each killed a few times."""
    struck, seed = 0, 0
    while struck < kills:
        folder = tmp_path / str(seed)
        folder.mkdir()
        plans = random.Random(f"plan {seed}")
        drawn = [
            Plan(
                seconds=plans.uniform(0, 0.3),
                lost=plans.random() < 0.2,
                made_after=plans.choice([0.0, 0.1, 0.2]),
                told_after=plans.choice([0.0, 0.1]),
            )
            for _ in range(1000)
        ]
        with BatchServer(answer, plan=drawn.__getitem__) as server:
            struck += kill_and_resume(folder, context, server, kills=min(7, kills - struck), seed=seed)
            done = config(folder, server, prompts=6)
            assert set(server.submitted.values()) == {1}, "a request was part of two batches"
            assert set(server.items.values()) == {1}, "a request was paid twice"
            generate(online := config(folder, server, prompts=6, transport="online", out="online"))
            assert rows(done) == rows(online)
            with Ledger.open(done.out / "ledger.sqlite", read_only=True) as ledger:
                assert ledger.stats().total("stored") == len(server.submitted)
        seed += 1


def test_a_run_killed_at_random_moments_submits_no_request_twice(tmp_path: Path, context: ForkServerContext) -> None:
    killed_at_random(tmp_path, context, kills=20)


@pytest.mark.slow
def test_a_run_killed_at_200_random_moments_submits_no_request_twice(
    tmp_path: Path, context: ForkServerContext
) -> None:
    killed_at_random(tmp_path, context, kills=200)


def test_prompts_wait_for_a_batch_together_and_more_prompts_than_fill_one_wait_their_turn(tmp_path: Path) -> None:
    with BatchServer(answer) as server:
        run = config(tmp_path, server, prompts=10, max_requests=12)
        run = run.model_copy(update={"prompts_in_flight": 1})
        assert run.window == 4  # 12 requests, 3 samples of a prompt
        generate(run)
        sizes = [len(made.items) for made in server.batches if made.api == "openai"]
        assert sum(sizes) == 30
        assert max(sizes) == 12
        assert run.model_copy(update={"prompts_in_flight": 99}).window == 99
        assert config(tmp_path, server).window == 16_667  # 100,000 looks of the judge, 6 at each prompt
        assert config(tmp_path, server, transport="online").window == 64
