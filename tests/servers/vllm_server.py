"""A real ``vllm serve`` on a CPU, from a virtual environment of its own (vLLM's pins and ours do not fit together).

``RLAIF_VLLM_VENV`` names that environment (default: ``.venv-vllm`` in the repository root).
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 240  # importing torch and vLLM takes most of it on two cores
MAX_MODEL_LEN = 2048


@dataclass(frozen=True)
class VLLMServer:
    """A running server: ``url`` without path, ``model`` as requests name it."""

    url: str
    model: str


def vllm_venv() -> Path | None:
    """The environment that holds vLLM, or None where there is none."""
    root = Path(__file__).resolve().parents[2]
    venv = Path(os.environ.get("RLAIF_VLLM_VENV") or root / ".venv-vllm")
    return venv if (venv / "bin" / "vllm").exists() else None


def vllm_environment() -> dict[str, str]:
    """The process environment in which vLLM runs small on a CPU and asks nobody."""
    return {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def serve(venv: Path, model_dir: Path, log: Path, model: str = "smollm2") -> Iterator[VLLMServer]:
    """Serve ``model_dir`` under the name ``model`` until the block ends; its whole process group ends with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` runs; the command itself asks for the package "vllm" by name, which the CPU build is not called.
    command = [venv / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", model_dir]
    command += ["--served-model-name", model, "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=vllm_environment(),
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}", log)
        yield VLLMServer(f"http://127.0.0.1:{port}", model)
    finally:
        _stop(process)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed test run leaves no server


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    tail = log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"vllm serve did not come up (exit status {process.poll()}):\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
