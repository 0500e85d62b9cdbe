"""rlaif batch: ls, cancel, resume; and what a run says of its batches when it ends before them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.cli import main
from rlaif.config.generate import GenerateConfig
from rlaif.engine import batch
from tests.engine.batch_runs import answer, config, processes, rows, start_command
from tests.servers.batch_server import BatchServer, Plan


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SETTLE_SECONDS", 0.3)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def rlaif(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert rlaif("batch", *arguments, "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def interrupted(run: GenerateConfig, server: BatchServer) -> str:
    """What a run says that is interrupted (Ctrl-C) while its first batch is under way."""
    file = run.out.parent / "config.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    process = start_command(processes(), ["generate", str(file)], said := run.out.parent / "stderr")
    polls = server.polls
    while process.exitcode is None and server.polls < polls + 2:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130, said.read_text()
    return said.read_text()


def held(nth: int) -> Plan:
    return Plan(seconds=3600.0 if nth == 0 else 0.0)


def go_on(server: BatchServer, share: float) -> None:
    """The batch comes so far."""
    server.batches[0].created -= 3600 * share


def test_an_interrupted_run_says_that_its_batches_go_on_and_resume_takes_them_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(answer, plan=held) as server:
        run = config(tmp_path, server)
        said = interrupted(run, server)
        assert f"1 batch of 36 requests goes on at the provider; `rlaif batch resume {run.out}`" in said
        assert "running the same command again goes on" in said
        (info,) = listed(capsys, "ls", run.out)
        assert (info["id"], info["status"], info["open"], info["requests"]) == ("batch_000000", "in_progress", True, 36)
        assert 0 < info["age_seconds"] < 60
        (stored,) = listed(capsys, "ls", run.out, "--offline")
        assert stored["open"] is True
        assert rlaif("batch", "ls", run.out) == 0
        shown = capsys.readouterr().out
        assert "batch_000000" in shown
        assert "openai:policy" in shown
        go_on(server, 1.0)
        assert rlaif("batch", "resume", run.out) == 0
        assert {info["open"] for info in listed(capsys, "ls", run.out)} == {False}
        assert set(server.items.values()) == {1}
        online = config(tmp_path, server, transport="online", out="online")
        assert rlaif("batch", "ls", online.out) == 2
        file = tmp_path / "online.yaml"
        file.write_text(yaml.safe_dump(online.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        assert rlaif("generate", file) == 0
        assert rows(run) == rows(online)
        assert listed(capsys, "ls", online.out) == []


def test_cancelled_batches_keep_what_they_answered_and_resume_online_asks_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(answer, plan=held) as server:
        run = config(tmp_path, server)
        interrupted(run, server)
        assert rlaif("batch", "cancel", run.out, "no-such-batch") == 2
        assert "has no open batch 'no-such-batch'" in capsys.readouterr().err
        go_on(server, 0.5)
        (info,) = listed(capsys, "cancel", run.out)
        assert info["status"] == "cancelled"
        assert (info["succeeded"], info["cancelled"]) == (18, 18)
        assert rlaif("batch", "resume", run.out, "--online") == 0
        assert len(server.batches) == 1
        assert set(server.paid.values()) == {1}
        assert listed(capsys, "cancel", run.out) == []
        assert rlaif("batch", "cancel", run.out) == 0
        assert "has no batch under way" in capsys.readouterr().out


def test_a_batch_the_provider_no_longer_knows_can_be_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(answer, plan=held) as server:
        run = config(tmp_path, server)
        interrupted(run, server)
        server.batches[0].id = "gone"
        (info,) = listed(capsys, "ls", run.out)
        assert "batch_000000 or its results are not there" in info["problem"]
        assert rlaif("batch", "resume", run.out) == 4
        assert "rlaif batch cancel" in capsys.readouterr().err
        assert rlaif("batch", "cancel", run.out, "--forget") == 2
        assert rlaif("batch", "cancel", run.out, "batch_000000", "--forget") == 0
        assert rlaif("batch", "resume", run.out) == 0


@pytest.mark.parametrize("command", ["ls", "cancel", "resume"])
def test_a_folder_that_is_no_run_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert rlaif("batch", command, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlaif: ")
    assert said.count("\n") == 1


def test_a_run_folder_tells_of_its_batches_without_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchServer(answer, plan=held) as server:
        run = config(tmp_path, server)
        interrupted(run, server)
        text = (run.out / "config.yaml").read_text(encoding="utf-8")
        (run.out / "config.yaml").write_text(text.replace("api_key_env: null", "api_key_env: NO_SUCH_KEY"))
        (info,) = listed(capsys, "ls", run.out)
        assert info["id"] == "batch_000000"
        assert "NO_SUCH_KEY is not set" in info["problem"]
        assert rlaif("batch", "cancel", run.out) == 2
