"""Fixtures of several test files. Imports nothing heavy: it is also read inside the environment that holds vLLM."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.servers.vllm_server import VLLMServer, serve, vllm_venv

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core: more threads would only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

with contextlib.suppress(ImportError):  # it is not in the environment of vLLM
    from hypothesis import settings

    # The same examples every time; HYPOTHESIS_PROFILE=default tries new ones.
    settings.register_profile("rlaif", derandomize=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rlaif"))

# A shell that starts the suite in the background has it ignore Ctrl-C, and every process started from here would
# inherit that: the tests of an interruption need the ordinary behaviour.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A real vLLM server with the embedded model, started once (about a minute)."""
    venv = vllm_venv()
    if venv is None:
        pytest.skip("no vLLM environment: make .venv-vllm, or name one with RLAIF_VLLM_VENV")
    from rlaif.embedded import embedded_model_dir

    with serve(venv, embedded_model_dir(), tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server
