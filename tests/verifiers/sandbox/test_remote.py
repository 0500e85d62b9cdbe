"""Tier ``remote`` against a small server that speaks SandboxFusion's API and really runs what it is sent."""

import base64
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError
from rlaif.verifiers.sandbox.remote import RemoteLauncher


def run_code(asked: dict[str, Any]) -> dict[str, Any]:
    assert asked["language"] == "python"
    with tempfile.TemporaryDirectory() as folder:
        for name, content in asked["files"].items():
            Path(folder, name).write_bytes(base64.b64decode(content))
        command = [sys.executable, "-I", "-S", "-c", asked["code"]]
        given = asked["stdin"].encode("utf-8", "surrogateescape")
        result: dict[str, Any] = {"status": "Finished"}
        try:
            done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=asked["run_timeout"])
            result |= {"return_code": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}
        except subprocess.TimeoutExpired:
            result |= {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
        made = {n: base64.b64encode(Path(folder, n).read_bytes()).decode() for n in asked["fetch_files"]}
    status = "Success" if result.get("return_code") == 0 else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": result, "files": made}


class Service(BaseHTTPRequestHandler):
    broken: tuple[int, Any] | None = None  # what to answer instead

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        code, answer = self.broken or (200, run_code(asked))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def service() -> Iterator[tuple[type[Service], str]]:
    handler = type("Handler", (Service,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def outcome(url: str, source: str, given: bytes = b"", **limits: Any) -> tuple[Ending, bytes, bytes, bytes]:
    launcher = RemoteLauncher(url, workers=2)
    try:
        process = await launcher.launch(Limits(**limits))
        await process.send(values.dumps({"do": "script", "sources": [source]}))
        await process.write_stdin(given)
        ending = await process.wait()
        said = await process.receive(1 << 20)
        await process.aclose()
        return ending, process.stdout, process.stderr, said
    finally:
        await launcher.aclose()


async def test_a_program_runs_there_and_its_output_is_judged_here(service: tuple[type[Service], str]) -> None:
    ending, out, error, said = await outcome(service[1], "print(input()[::-1])", b"caf\xc3\xa9\n")
    assert (ending, out, error) == (Ending("exited", 0), "éfac\n".encode(), b"")
    assert "outline" in values.loads(said.splitlines()[0])


async def test_endings_are_told_apart(service: tuple[type[Service], str]) -> None:
    url = service[1]
    assert (await outcome(url, "import sys; sys.exit(3)"))[0] == Ending("exited", 3)
    assert (await outcome(url, "import os; os.kill(os.getpid(), 9)"))[0] == Ending("killed", 9)
    assert (await outcome(url, "while True: pass", seconds=0.5))[0] == Ending("timeout")
    assert (await outcome(url, "print('x' * 5000)", output_bytes=1000))[0] == Ending("resource")
    assert "invalid" in values.loads((await outcome(url, "def ("))[3].splitlines()[0])


@pytest.mark.parametrize(
    "broken",
    [
        (500, {"detail": "no"}),
        (200, b"<html>"),
        (200, []),
        (200, {"status": "SandboxError", "message": "no free pod"}),
        (200, {"status": "Success", "run_result": None, "files": {}}),
        (200, {"status": "Failed", "run_result": {"status": "Error", "return_code": None}, "files": {}}),
        (
            200,
            {"status": "Success", "run_result": {"status": "Finished", "return_code": 0}, "files": {"rlaif-said": "a"}},
        ),
    ],
)
async def test_a_failure_of_the_service_is_never_the_programs(
    service: tuple[type[Service], str], broken: tuple[int, Any]
) -> None:
    handler, url = service
    handler.broken = broken
    with pytest.raises(SandboxError, match="tier remote"):
        await outcome(url, "print(1)")


async def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9/run_code"):
        await outcome("http://127.0.0.1:9", "print(1)")
    with pytest.raises(InputError, match="no URL"):
        RemoteLauncher("localhost")


async def test_what_is_a_conversation_is_refused(service: tuple[type[Service], str]) -> None:
    launcher = RemoteLauncher(service[1])
    process = await launcher.launch(Limits())
    with pytest.raises(SandboxError, match="no sessions"):
        await process.send(values.dumps({"do": "session", "sources": ["x = 1"], "nonce": "a"}))
    with pytest.raises(SandboxError, match="input must be given first"):
        await process.wait()
    await launcher.aclose()
