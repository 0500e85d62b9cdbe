"""What happens to a training from outside: killed, or a disk that takes no more."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError
from tests.training.test_dpo import same
from tests.training.tiny import contract_rows, write_jsonl

METHODS = ("sft", "reward", "dpo")

# Another process, which trains and (LIMIT) may write no file of more bytes from step STEP on.
SCRIPT = """
import json, resource, signal, sys
from rlaif.training.methods import METHODS
from rlaif.errors import InputError
name, values, limit, step = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
method = METHODS[name]
def progress(done, total, note):
    print(done, flush=True)
    if limit and done == step:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    method.train(method.config.model_validate(values), progress=progress, resume=True)
except InputError as error:
    print("refused:", error)
"""


@pytest.fixture
def values(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_jsonl(tmp_path / "pairs.jsonl", contract_rows(24))
    return {
        "data": str(data), "model": str(tiny_model), "batch_size": 4, "device": "cpu", "lora": None, "epochs": 4,
        "save_steps": 2, "learning_rate": 0.001, "eval_fraction": 0,
    }  # fmt: skip


def start(name: str, values: dict[str, Any], limit: int = 0, step: int = 0) -> "subprocess.Popen[str]":
    import torch

    threads = str(torch.get_num_threads())  # another number adds up in another order
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, json.dumps(values), str(limit), str(step)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": threads},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


def trained(name: str, values: dict[str, Any]) -> Any:
    from rlaif.training.methods import METHODS as all_methods

    method = all_methods[name]
    return method.train(method.config.model_validate(values), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_training_loses_no_more_than_the_steps_since_the_last_save(
    name: str, values: dict[str, Any], tmp_path: Path
) -> None:
    from rlaif.training.folder import last_checkpoint

    whole = trained(name, values | {"out": str(tmp_path / "whole")})
    parts = values | {"out": str(tmp_path / "parts")}
    process = start(name, parts)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 9:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    saved = last_checkpoint(tmp_path / "parts" / "checkpoints")
    assert saved is not None
    assert int(saved.name.rpartition("-")[2]) >= 6  # the save after step 8 may have been in progress
    result = trained(name, parts)
    assert result.manifest["resumed_from"] == saved.name
    assert same(result.model, whole.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(
    name: str, values: dict[str, Any], tmp_path: Path
) -> None:
    from rlaif.training.folder import last_checkpoint

    whole = trained(name, values | {"out": str(tmp_path / "whole")})
    parts = values | {"out": str(tmp_path / "parts")}
    output, _ = start(name, parts, limit=5000, step=5).communicate(timeout=300)
    assert "a checkpoint cannot be written" in output
    saved = last_checkpoint(tmp_path / "parts" / "checkpoints")
    assert saved is not None
    assert saved.name == "checkpoint-4"
    assert f"{saved.name} is whole: make room and go on with --resume" in output
    result = trained(name, parts)
    assert result.manifest["resumed_from"] == saved.name
    assert same(result.model, whole.model)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left.*\); make room and start again"):
        trained("sft", values | {"out": str(tmp_path / "out")})
    assert not (tmp_path / "out" / "model").exists()
