"""Memory does not grow with the rows: what a run holds is what is under way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.prompts import _Seen
from tests.faults import world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "prompts": "prompts.jsonl",
    "constitution": "constitution.yaml",
    "policy": {"model": "scripted:benchmarks.generation.memory:policy", "n": 2},
    "judge": {"models": ["scripted:benchmarks.generation.memory:judge"]},
    "out": "run",
}


def peak(folder: Path, prompts: int) -> float:
    """MB at the peak of `rlaif generate` with scripted models, its report included."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    (folder / "constitution.yaml").write_text(world.CONSTITUTION)
    with (folder / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"Question {i}? {'and so on ' * 25}"}) + "\n" for i in range(prompts))
    command = [sys.executable, "-m", "rlaif", "generate", "config.yaml"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "log").read_text()
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_20000_prompts_take_the_memory_of_100(tmp_path: Path) -> None:
    few, many = peak(tmp_path / "few", 100), peak(tmp_path / "many", 20_000)
    print(f"{few:.0f} MB for 100 prompts, {many:.0f} MB for 20,000")
    assert many <= 1.2 * few


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=200))
def test_the_prompts_seen_are_a_set(ids: list[int]) -> None:
    seen, known = _Seen(), set[int]()
    for id_ in ids:
        assert seen.add(f"p-{id_:016x}") == ((id_ or 1) not in known)
        known.add(id_ or 1)


def test_the_prompts_seen_are_a_set_when_it_has_grown() -> None:
    seen = _Seen()
    ids = [f"p-{i * 0x9E3779B97F4A7C15 % 2**64:016x}" for i in range(1, 20_000)]
    assert all(seen.add(id_) for id_ in ids)
    assert not any(seen.add(id_) for id_ in ids)
