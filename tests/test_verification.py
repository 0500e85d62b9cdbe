"""`rlaif verify` over files: nothing lost, nothing done twice, and a machine that fails is no zero."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.base import Config
from rlaif.errors import InputError, QualityError
from rlaif.types import Reward, Unverified
from rlaif.verification import Summary, verify_file
from rlaif.verifiers.base import Task

ROOT = Path(__file__).resolve().parents[1]
ME = "tests.test_verification:Told"


class Told:
    """Does what the completion says."""

    identity = "told@1"

    class Options(Config):
        kills: Path | None = None  # a file that counts the workers that died

    def __init__(self, options: Options) -> None:
        self.options = options
        self.flaky: set[str] = set()

    async def prepare(self, task: Task) -> None:
        pass

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        match completion.split(" ")[0]:
            case "pass":
                return Reward(value=1.0)
            case "slow":
                await asyncio.sleep(0.02)
                return Reward(value=1.0)
            case "die":
                with (self.options.kills or Path(os.devnull)).open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            case "flaky" if completion not in self.flaky:
                self.flaky.add(completion)
                return Unverified(reason="infrastructure", detail="this once")
            case "flaky":
                return Reward(value=1.0)
            case "broken":
                return Unverified(reason="infrastructure", detail="always")
        return Reward(value=0.0, reason="wrong")

    async def aclose(self) -> None:
        pass


def write(path: Path, completions: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps({"completion": c}) + "\n" for c in completions), encoding="utf-8")
    return path


def verified(source: Path, **options: Any) -> tuple[Summary, list[dict[str, Any]]]:
    lines: list[str] = []
    summary = verify_file(options.pop("name", ME), source, emit=lines.append, workers=2, **options)
    return summary, [json.loads(line) for line in lines]


def test_every_row_has_one_line_in_its_order(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ["pass" if i % 3 else "fail" for i in range(200)])
    summary, lines = verified(source)
    assert [line["row"] for line in lines] == list(range(200))
    assert [line["value"] for line in lines] == [1.0 if i % 3 else 0.0 for i in range(200)]
    assert (summary.rows, summary.passed, summary.failed, summary.unverified) == (200, 133, 67, 0)
    assert set(lines[0]) >= {"row", "verifier", "kind", "value", "reason", "seconds"}


def test_rows_that_are_none_are_unverified_and_the_others_are_not_touched(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [
        '{"completion": "pass"}',
        "no json",
        "[1]",
        '{"completion": 3}',
        "",
        '{"completion": "pass", "x": "\\ud800"}',
    ]
    source.write_text("\n".join(rows))
    summary, lines = verified(source)
    assert [line["kind"] for line in lines] == ["reward", *["unverified"] * 3, "reward"]
    assert {line["reason"] for line in lines[1:4]} == {"task_error"}
    assert (summary.passed, summary.unverified) == (2, 3)


def test_a_message_list_and_a_compressed_file_are_read(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.write(json.dumps({"completion": [{"role": "assistant", "content": "pass"}]}) + "\n")
    assert verified(source)[0].passed == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("x,y\n1,2\n", ":1: the line is no JSON"),
        ('{"text": "x"}\n', "no 'completion'"),
    ],
)
def test_a_file_of_another_kind_is_told_at_once(content: str, says: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(content)
    with pytest.raises(InputError, match=says):
        verified(source)


def test_a_worker_that_dies_costs_its_row_and_no_other(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [*["pass"] * 70, "die", *["pass"] * 200])
    kills = tmp_path / "kills"
    summary, lines = verified(source, options={"kills": str(kills)})
    assert [line["row"] for line in lines] == list(range(271))
    assert (summary.passed, summary.unverified) == (270, 1)
    assert lines[70]["kind"] == "unverified"
    assert lines[70]["reason"] == "infrastructure"
    assert kills.stat().st_size >= 3  # it was tried again


def test_what_fails_once_is_tried_again(tmp_path: Path) -> None:
    summary, _ = verified(write(tmp_path / "rows.jsonl", ["flaky"]))
    assert summary.passed == 1


def test_too_many_failures_of_the_machine_end_the_run_and_keep_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "rows.jsonl", ["pass", "broken", "pass"])
    with pytest.raises(QualityError, match="1 of 3 rows"):
        verify_file(ME, source, out=out, workers=1)
    assert len(out.read_text().splitlines()) == 3


def test_results_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", ["pass"]), tmp_path / "out.jsonl"
    verify_file(ME, source, out=out, workers=1)
    before = out.read_bytes()
    assert verify_file(ME, source, out=out, workers=1).passed == 1  # nothing is left to do
    with pytest.raises(InputError, match="something else there"):
        verify_file("refusal", source, out=out, workers=1)
    write(source, ["pass", "pass"])
    with pytest.raises(InputError, match="different: bytes, digest"):
        verify_file(ME, source, out=out, workers=1)
    assert out.read_bytes() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_run_again_it_goes_on_where_it_was(how: signal.Signals, tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", ["slow"] * 2000), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rlaif", "verify", ME, str(source), "--out", str(out), "--workers", "2"]
    partial = tmp_path / "out.jsonl.partial"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while not (partial.exists() and partial.stat().st_size > 20_000):
            assert running.poll() is None
            time.sleep(0.02)
        os.killpg(running.pid, how) if how == signal.SIGINT else running.kill()
        _, said = running.communicate(timeout=60)
    assert not out.exists()
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert "Traceback" not in said
    with partial.open("a") as file:
        file.write('{"row": 17, "torn')
    kept = partial.read_bytes().count(b"\n")
    summary = verify_file(ME, source, out=out, workers=2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(2000))
    assert summary.passed == 2000
    assert kept > 50
