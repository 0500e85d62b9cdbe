"""The lying server itself: what the suites that rely on it take for granted."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer, drawn, echo, limited

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """The server as a process of its own; yields its URL."""
    command = [sys.executable, "-m", "tests.servers.fault_server", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield f"http://127.0.0.1:{int(running.stdout.readline())}"
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(10) == 130


def post(url: str, path: str, content: str) -> tuple[int, Any, dict[str, str]]:
    body = {"model": "fake", "max_tokens": 5, "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def asked(content: str, nth: int = 0) -> Asked:
    body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
    return Asked("openai", body, {}, content, nth, 0)


def test_as_a_process_it_prints_its_port_answers_and_counts_by_content() -> None:
    with process() as url:
        status, reply, _ = post(url, "/v1/chat/completions", "Hello")
        assert (status, reply["choices"][0]["message"]["content"]) == (200, "echo: Hello")
        for _ in range(2):
            status, reply, _ = post(url, "/v1/messages", "Hello")
            assert (status, reply["content"][0]["text"]) == (200, "echo: Hello")
        with urllib.request.urlopen(f"{url}/stats", timeout=10) as stats:
            counted = json.load(stats)
    assert (counted["requests"], counted["distinct"]) == (3, 2)
    assert sorted(counted["counts"].values()) == [1, 2]


def test_as_a_process_it_fails_at_the_given_rate_and_the_same_way_every_time() -> None:
    def run() -> list[int]:
        with process("--fault", "500=0.3", "--fault", "429-ms=0.2", "--first-only", "--seed", "7") as url:
            return [post(url, "/v1/messages", f"number {i}")[0] for i in range(60)] + [
                post(url, "/v1/messages", "number 0")[0]
            ]

    first, second = run(), run()
    assert first == second
    assert Counter(first).keys() == {200, 500, 429}
    assert first[-1] == 200


def test_as_a_process_it_knows_its_faults() -> None:
    command = [sys.executable, "-m", "tests.servers.fault_server", "--fault", "499=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown fault ['499']" in done.stderr


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_faults_come_at_their_rates(rate: float) -> None:
    script = drawn(echo, {"500": rate, "drop": 0.05}, seed=1)
    answers = [script(asked(f"row {i}")) for i in range(2000)]
    assert sum(answer.status == 500 for answer in answers) / 2000 == pytest.approx(rate, abs=0.03)
    assert sum(answer.hang_up for answer in answers) / 2000 == pytest.approx(0.05, abs=0.02)


def test_the_limit_lets_through_what_it_promises_and_says_when_to_come_back() -> None:
    now = [0.0]
    script = limited(echo, rpm=60, burst=2, clock=lambda: now[0])
    assert [script(asked("x")).status for _ in range(3)] == [200, 200, 429]
    refused = script(asked("x"))
    assert refused.headers["retry-after-ms"] == "1000"
    now[0] += 1.0
    good = script(asked("x"))
    assert (good.status, good.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert script(asked("x")).status == 429


def test_a_script_sees_how_often_a_request_came() -> None:
    with FaultServer(lambda asked: Answer("yes") if asked.nth else FAULTS["503"](asked)) as server:
        assert post(server.url, "/v1/messages", "again")[0] == 503
        assert post(server.url, "/v1/messages", "again")[0] == 200
        assert [one.nth for one in server.asked] == [0, 1]
        assert set(server.counts.values()) == {2}
