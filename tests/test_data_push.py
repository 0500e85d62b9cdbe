"""`rlaif data push` against a server that speaks the hub's endpoints, through the hub's own client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif import hub as hub_module
from rlaif.cli import rlaif
from rlaif.errors import InputError, ProviderError, QualityError
from tests import running
from tests.servers.hub_server import Hub, hub
from tests.test_data_doctor import CLEAN, KEY, clean, write

pytest.importorskip("huggingface_hub")

SECRET = "hf_" + "qW7rT2yU9iO4pA6sD1fG8hJ3kL5zX0cVbN"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with hub(SECRET) as running_hub:
        yield running_hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "pairs.jsonl", CLEAN)
    (tmp_path / "set" / "README.md").write_text("---\ntags:\n- preference\n---\n\n# Pairs\n")
    (tmp_path / "set" / ".hidden.jsonl").write_text("{}")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    return tmp_path / "set"


def push(folder: Path, server: Hub, name: str = "somebody/pairs", **how: bool) -> str:
    return hub_module.push(hub_module.plan(folder, name), name, endpoint=server.url, **how)


def test_the_data_and_its_card_arrive_as_they_are_and_nothing_else(folder: Path, server: Hub) -> None:
    assert push(folder, server) == f"{server.url}/datasets/somebody/pairs"
    made = server.repositories["somebody/pairs"]
    assert made["files"] == {name: (folder / name).read_bytes() for name in ("README.md", "pairs.jsonl")}
    assert made["commits"] == ["40 preference pairs"]
    assert not made["private"]


def test_private_is_private(folder: Path, server: Hub) -> None:
    push(folder, server, private=True)
    assert server.repositories["somebody/pairs"]["private"]


def test_a_name_that_is_taken_is_refused_and_updated_where_that_is_asked_for(folder: Path, server: Hub) -> None:
    push(folder, server)
    with pytest.raises(ProviderError, match="somebody/pairs already"):
        push(folder, server)
    write(folder / "pairs.jsonl", CLEAN[:30])
    push(folder, server, update=True)
    assert server.repositories["somebody/pairs"]["commits"] == ["40 preference pairs", "30 preference pairs"]
    with pytest.raises(ProviderError, match="no data set somebody/other"):
        push(folder, server, "somebody/other", update=True)


def test_a_wrong_token_is_one_sentence_that_does_not_hold_it(
    folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = SECRET[::-1]
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(ProviderError, match="does not accept the token in HF_TOKEN") as caught:
        push(folder, server)
    assert wrong not in str(caught.value)
    assert not server.repositories


def test_somebody_else_s_name_is_refused(folder: Path, server: Hub) -> None:
    with pytest.raises(ProviderError, match="may not write to nobody"):
        push(folder, server, "nobody/pairs")


def test_no_network_is_one_sentence(folder: Path, server: Hub) -> None:
    planned = hub_module.plan(folder, "somebody/pairs")
    with pytest.raises(ProviderError, match="cannot be reached"):
        hub_module.push(planned, "somebody/pairs", endpoint="http://127.0.0.1:9")


def test_a_push_that_breaks_off_says_that_the_repository_is_there(folder: Path, server: Hub) -> None:
    server.status["/commit/main"] = 418
    with pytest.raises(ProviderError, match=r"status 418.* was made and is empty: push again with --update"):
        push(folder, server)
    server.status.clear()
    push(folder, server, update=True)


def test_without_a_token_in_the_environment_nothing_is_sent(
    folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="HF_TOKEN is not set"):
        push(folder, server)
    assert server.requests == []


def test_data_with_errors_is_not_pushed_unless_it_must_be(folder: Path, server: Hub) -> None:
    write(folder / "pairs.jsonl", [*CLEAN, {**clean(99), "chosen": f"Use {KEY} there."}])
    with pytest.raises(QualityError, match="1 rows hold a key, token") as caught:
        push(folder, server)
    assert KEY not in str(caught.value)
    assert server.requests == []
    push(folder, server, force=True)
    assert server.repositories["somebody/pairs"]["files"]


@pytest.mark.parametrize("name", ["pairs", "a/b/c", "/b", "a/", "a b/c", "a/..", "a/b.git", "a/b--c", "-a/b", "ä/b"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="OWNER/NAME"):
        hub_module.plan(folder, name)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Nothing")
    with pytest.raises(InputError, match="holds no data"):
        hub_module.plan(tmp_path, "a/b")
    with pytest.raises(InputError, match="no such folder"):
        hub_module.plan(tmp_path / "missing", "a/b")


def test_of_a_run_that_is_not_finished_nothing_is_pushed(folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(InputError, match="no data/ with a card yet"):
        hub_module.plan(folder, "a/b")


def test_a_dry_run_needs_no_token_and_shows_what_would_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (folder / "pairs.jsonl").rename(folder / "train.jsonl")  # a data set folder that is nothing else
    result = CliRunner().invoke(rlaif, ["data", "push", str(folder), "somebody/pairs", "--dry-run", "--private"])
    assert result.exit_code == 0, result.output
    size = (folder / "train.jsonl").stat().st_size
    assert result.output.splitlines() == [
        "somebody/pairs, private: 40 rows",
        f"  README.md, {(folder / 'README.md').stat().st_size} bytes",
        f"  train.jsonl, {size:,} bytes",
        "Nothing was sent.",
    ]
    write(folder / "train.jsonl", [*CLEAN, {**clean(99), "chosen": " "}])
    result = CliRunner().invoke(rlaif, ["data", "push", str(folder), "somebody/pairs", "--dry-run"])
    assert isinstance(result.exception, QualityError)


@pytest.mark.slow
def test_the_command_pushes_a_run_and_ends_with_the_right_code(tmp_path: Path) -> None:
    """In a process of its own, with the parquet file by LFS as the hub wants it."""
    running.run(tmp_path, [f"Question {i}?" for i in range(4)])
    env = os.environ | {"HF_TOKEN": SECRET, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    with hub(SECRET, lfs=True) as server:
        command = [sys.executable, "-m", "rlaif", "data", "push", str(tmp_path / "run"), "somebody/first"]
        env["HF_ENDPOINT"] = server.url
        first, second = (
            subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2)
        )
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"{server.url}/datasets/somebody/first"
    data = tmp_path / "run" / "data"
    files = server.repositories["somebody/first"]["files"]
    assert files == {name: (data / name).read_bytes() for name in ("README.md", "train.parquet")}
    assert ("PUT", f"/lfs/{next(iter(server.stored))}") in server.requests
    assert second.returncode == 4
    assert len(second.stderr.strip().splitlines()) == 1
    assert SECRET not in json.dumps([first.stdout, first.stderr, second.stdout, second.stderr])
