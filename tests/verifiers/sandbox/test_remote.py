"""Tier ``remote`` against a small server that speaks SandboxFusion's API and really runs what it is sent."""

import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers import open_verifier
from rlaif.verifiers.code import CodeVerifier
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError
from rlaif.verifiers.sandbox.remote import RemoteLauncher

SILENCE, HALF, TRICKLE = "never answers", "half a reply", "a byte at a time"


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
        there = [name for name in asked["fetch_files"] if Path(folder, name).is_file()]
        made = {name: base64.b64encode(Path(folder, name).read_bytes()).decode() for name in there}
    status = "Success" if result.get("return_code") == 0 else "Failed"
    return {"status": status, "message": "", "compile_result": None, "run_result": result, "files": made}


class Service(BaseHTTPRequestHandler):
    broken: tuple[int, Any] | None = None  # what to answer instead

    def read(self) -> dict[str, Any]:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        return asked

    def do_POST(self) -> None:
        asked = self.read()
        code, answer = self.broken or (200, run_code(asked))
        if answer is SILENCE:
            time.sleep(1.5)
            return
        self.send_response(code)
        if answer is HALF:
            answer = b'{"status": "Success", "run_result": {"sta'
            self.send_header("content-length", "500")
        self.end_headers()
        if answer is TRICKLE:
            answer = b""
            with contextlib.suppress(OSError):
                for _ in range(30):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
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


async def outcome(
    url: str, source: str, given: bytes = b"", grace_seconds: float = 20.0, **limits: Any
) -> tuple[Ending, bytes, bytes, bytes]:
    launcher = RemoteLauncher(url, workers=2, grace_seconds=grace_seconds)
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
        (200, {"status": "Success", "run_result": {"status": "Finished", "return_code": 0}, "files": {}}),
        (200, b"[" * 100_000),
        (302, b""),
        (200, SILENCE),
        (200, HALF),
        (200, TRICKLE),
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
    begun = time.monotonic()
    with pytest.raises(SandboxError, match="tier remote"):
        await outcome(url, "print(1)", grace_seconds=0.5, seconds=0.5)
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize("broken", [(500, {"detail": "no"}), (200, b"<html>"), (200, HALF), (200, SILENCE)])
async def test_a_service_that_breaks_masks_the_row_and_is_asked_again_for_the_next(
    service: tuple[type[Service], str], broken: tuple[int, Any]
) -> None:
    handler, url = service
    options = CodeVerifier.Options(tier="remote", remote_url=url, max_seconds=0.5, min_seconds=0.5, self_check=False)
    for after in (False, True):
        handler.broken = None
        verifier = CodeVerifier(options, RemoteLauncher(url, 2, grace_seconds=0.2))
        if after:
            assert await verifier.verify(SUM, ROW) == Reward(value=1.0)
        handler.broken = broken
        verdict = await verifier.verify(SUM, ROW)
        assert isinstance(verdict, Unverified)
        assert verdict.reason == "infrastructure"
        handler.broken = None
        assert await verifier.verify(SUM, ROW) == Reward(value=1.0)
        await verifier.aclose()


async def test_a_service_that_runs_something_else_is_found_out_before_an_answer_is_judged_by_it(
    service: tuple[type[Service], str],
) -> None:
    handler, url = service
    result = {"status": "Finished", "return_code": 0, "stdout": "5\n", "stderr": ""}
    handler.broken = (200, {"status": "Success", "run_result": result, "files": {}})
    verifier = CodeVerifier(CodeVerifier.Options(tier="remote", remote_url=url, self_check=False))
    verdict = await verifier.verify("print(5)", {"tests": [{"input": "", "output": "5"}]})
    assert isinstance(verdict, Unverified)
    assert "does not run a program as it should" in verdict.detail
    await verifier.aclose()


# ------------------------------------------------------------------------------------------------ the code verifier

SUM = "print(sum(map(int, input().split())))"
ROW = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}], "reference": SUM}


async def test_whole_programs_are_judged_by_what_they_print(service: tuple[type[Service], str]) -> None:
    verifier = CodeVerifier(CodeVerifier.Options(tier="remote", remote_url=service[1], min_seconds=5.0, workers=2))
    await verifier.prepare(ROW)
    answers = {
        SUM: None,
        "print(3)": "wrong",
        "print(": "unparseable",
        "raise ValueError": "crashed",
        "import os\nos.remove('rlaif-said')": "crashed",
        "import os\nos.write(4, b'{\"outline\": 3}')\nprint(3)": "wrong",
        "print('x' * (2 << 20))": "resource",
    }
    for answer, reason in answers.items():
        verdict = await verifier.verify(answer, ROW)
        assert isinstance(verdict, Reward)
        assert (verdict.reason, verdict.value) == (reason, float(reason is None)), answer
    assert verifier.tier == "remote"
    await verifier.aclose()


async def test_no_expected_value_is_sent_to_the_service(service: tuple[type[Service], str]) -> None:
    handler, url = service
    seen: list[str] = []
    read = handler.read

    def recorded(self: Service) -> dict[str, Any]:
        asked = read(self)
        files = [base64.b64decode(content).decode() for content in asked["files"].values()]
        seen.append("\n".join([asked["code"], asked["stdin"], *files]))
        return asked

    handler.read = recorded  # type: ignore[method-assign]
    verifier = CodeVerifier(CodeVerifier.Options(tier="remote", remote_url=url, self_check=False, workers=1))
    await verifier.verify(SUM, {"tests": [{"input": "40000 2", "output": "40002"}]})
    assert any("40000" in sent for sent in seen)
    assert not any("40002" in sent for sent in seen)
    await verifier.aclose()


async def test_what_is_no_whole_program_is_refused_with_the_cure(service: tuple[type[Service], str]) -> None:
    verifier = CodeVerifier(CodeVerifier.Options(tier="remote", remote_url=service[1]))
    for row in (
        {"tests": ["assert add(1, 2) == 3"]},
        {"tests": [{"args": [1], "output": 2}], "entry_point": "f"},
        {**ROW, "checker": "def check(i, o, e): return True"},
    ):
        with pytest.raises(TaskError, match="whole programs only"):
            await verifier.prepare(row)
    with pytest.raises(InputError, match="not mode call"):
        open_verifier("code", {"tier": "remote", "remote_url": "http://a", "mode": "call"})
    for half in ({"tier": "remote"}, {"remote_url": "http://a"}):
        with pytest.raises(InputError, match="belong together"):
            open_verifier("code", half)
    with pytest.raises(InputError, match="less than the 'lsm'"):
        await CodeVerifier(CodeVerifier.Options(tier="remote", remote_url=service[1], min_tier="lsm")).prepare(ROW)


async def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9/run_code"):
        await outcome("http://127.0.0.1:9", "print(1)")
    with pytest.raises(InputError, match="no URL"):
        RemoteLauncher("localhost")
    with pytest.raises(InputError, match="no URL"):
        RemoteLauncher("http://[::1")


async def test_what_is_a_conversation_is_refused(service: tuple[type[Service], str]) -> None:
    launcher = RemoteLauncher(service[1])
    process = await launcher.launch(Limits())
    with pytest.raises(SandboxError, match="no sessions"):
        await process.send(values.dumps({"do": "session", "sources": ["x = 1"], "nonce": "a"}))
    with pytest.raises(SandboxError, match="input must be given first"):
        await process.wait()
    await launcher.aclose()
