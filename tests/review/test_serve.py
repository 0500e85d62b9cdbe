"""The command itself: what it refuses, and how it ends."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from rlaif.engine import Ledger
from rlaif.engine.votes import read_votes
from rlaif.errors import InputError
from rlaif.review import open_review
from tests import running
from tests.review.runs import made, page

ROOT = Path(__file__).parents[2]


def refused(run: Path, **other: object) -> str:
    with pytest.raises(InputError) as told, open_review(run, **other):  # type: ignore[arg-type]
        pass
    return str(told.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_the_page_is_served_to_this_machine_alone(tmp_path: Path, host: str) -> None:
    assert "served to this machine alone" in refused(tmp_path, host=host)


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "\x1b[31m"])
def test_a_name_is_printable_and_short(tmp_path: Path, name: str) -> None:
    assert "1 to 64 printable characters" in refused(tmp_path, reviewer=name)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "none")
    assert "is no run folder" in refused(tmp_path)
    (tmp_path / "config.yaml").write_text("data: x.jsonl\njudge: {models: [local:smollm2]}\n", encoding="utf-8")
    with Ledger.open(tmp_path / "ledger.sqlite"):
        pass
    assert "not made by `rlaif generate`" in refused(tmp_path)


def test_a_run_without_a_reply_is_one_sentence(tmp_path: Path) -> None:
    running.write_prompts(tmp_path, ["Q?"])
    run = made(tmp_path)
    for path in run.glob("*.jsonl"):
        path.unlink()
    (run / "ledger.sqlite").unlink()
    with Ledger.open(run / "ledger.sqlite"):
        pass
    assert "no reply is stored there yet" in refused(run)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refused(run) == "rlaif review needs the extra: pip install 'rlaif[review]'."


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    run = made(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be used on 127.0.0.1 (Address already in use); choose" in refused(run, port=port)


@pytest.mark.parametrize("end", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_vote_over_a_real_socket_outlives_the_server_however_it_ends(tmp_path: Path, end: signal.Signals) -> None:
    run = made(tmp_path)
    command = [sys.executable, "-m", "rlaif", "review", str(run), "--no-browser", "--name", "anna"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert "12 comparisons to review as 'anna'" in server.stdout.readline()
        url = server.stdout.readline().strip()
        key = re.search(rb'"key": "(\w+)"', urllib.request.urlopen(url + "next", timeout=20).read())
        assert key is not None
        body = b'{"key": "' + key[1] + b'", "vote": "left"}'
        asked = urllib.request.Request(url + "vote", body, {"content-type": "application/json"})
        assert urllib.request.urlopen(asked, timeout=20).status == 200
        server.send_signal(end)
        out, err = server.communicate(timeout=20)
    finally:
        server.kill()
    if end == signal.SIGINT:
        assert server.returncode == 0
        assert out == "\n1 votes are stored (+1); `rlaif generate` on this run will take them.\n"
        assert err == ""
        assert not (run / "ledger.sqlite-wal").exists()
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        assert [vote.reviewer for vote in read_votes(ledger).votes(key[1].decode())] == ["anna"]


@pytest.mark.slow
def test_people_vote_while_a_run_goes_on_and_nothing_of_either_is_lost(tmp_path: Path) -> None:
    running.write_prompts(tmp_path, [f"Question {i}?" for i in range(60)])
    models = {"models": ["scripted:tests.review.slow_models:judge"], "ties": True}
    config = running.config(tmp_path, judge_settings=models, pairing={"strategy": "all"}, prompts_in_flight=4)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    command = [sys.executable, "-m", "rlaif", "generate", str(path), "--json"]
    generate = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    async def vote() -> int:
        cast = 0
        async with page(config.out) as p:
            while generate.poll() is None:
                await p.http.get("")  # takes in what is new
                for _ in range(3):
                    if key := (await p.next())["key"]:
                        better = await p.better(key)
                        await p.vote(key, {"left": "right", "right": "left"}[better])
                        cast += 1
        return cast

    while not _replies(config.out / "ledger.sqlite"):
        assert generate.poll() is None, generate.stderr and generate.stderr.read()
        time.sleep(0.05)
    cast = asyncio.run(vote())
    out, err = generate.communicate(timeout=60)
    assert generate.returncode == 0, err
    assert cast >= 3
    sent = json.loads(out)["ledger"]["stages"]
    assert sum(stage["stored"] for stage in sent) == 60 * 4 + 60 * 6 * 2
    again = running.generate(config)
    assert again.manifest["counts"]["human"] == {"comparisons": cast, "votes": cast}
    assert again.manifest["counts"]["comparisons"]["pairs"] == 60 * 6
    assert sum(stage["sent"] for stage in again.manifest["ledger"]["stages"]) == 0


def _replies(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with Ledger.open(path, read_only=True) as ledger:
            return int(ledger.read("SELECT count(*) FROM replies")[0][0])
    except InputError:  # it is just being made
        return 0
