"""Tier ``remote``: somebody else's sandbox, by the HTTP API of SandboxFusion (``POST /run_code``).

One request is one whole run, so of what a `Process` can do only this much is served: one job of a program with standard
streams (``{"do": "script", ...}``), then its input, then its ending, its output and what the guest said. A session,
which is a conversation, is refused. The verdict stays here, and no expected value is sent.

How well it isolates is the service's affair and is not tried by `probe`: the tier ranks below those that are.

API: SandboxFusion's ``CodeRunArgs`` and ``RunCodeResponse`` (files in and out are base64).
"""

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.verifiers.sandbox.base import Ending, Limits, SandboxError, Tier

_HERE = Path(__file__).parent
_JOB, _SAID = "rlaif-job", "rlaif-said"  # in the run's folder: descriptors 3 and 4
_START = f"""
import os, sys
os.dup2(os.open("{_JOB}", os.O_RDONLY), 3)
os.dup2(os.open("{_SAID}", os.O_WRONLY | os.O_CREAT, 0o600), 4)
sys.path.insert(0, os.getcwd())
import guest
del sys.path[0]
guest.main(3, 4)
"""
_GRACE_SECONDS = 60.0  # the service's own queue and start, before a run counts as failed


class RemoteLauncher:
    """See `rlaif.verifiers.sandbox.base.Launcher`. url: of the service, without the path. workers: requests at a time.

    Raises InputError for a URL that is none.
    """

    tier: Tier = "remote"

    def __init__(self, url: str, workers: int = 16) -> None:
        import httpx2

        if not url.startswith(("http://", "https://")):
            raise InputError(f"sandbox: {url!r} is no URL of a sandbox service (http://host:port).")
        self.endpoint = url.rstrip("/") + "/run_code"
        self.http = httpx2.Client(limits=httpx2.Limits(max_connections=workers))
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self.program = {name: _encoded((_HERE / name).read_bytes()) for name in ("guest.py", "values.py")}

    async def launch(self, limits: Limits) -> "RemoteProcess":
        """Nothing is sent yet. See `RemoteProcess`."""
        return RemoteProcess(self, limits)

    async def run(self, limits: Limits, job: bytes, stdin: bytes) -> dict[str, Any]:
        """One request and its answer. Raises SandboxError."""
        body = {
            "code": _START,
            "language": "python",
            "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
            "stdin": stdin.decode("utf-8", "surrogateescape"),
            "files": {**self.program, _JOB: _encoded(job)},
            "fetch_files": [_SAID],
        }
        try:
            waiting = self.threads.submit(self._post, json.dumps(body).encode(), limits.seconds + _GRACE_SECONDS)
        except RuntimeError:
            raise SandboxError("tier remote: the sandbox is closed") from None
        return await asyncio.wrap_future(waiting)

    def _post(self, body: bytes, timeout: float) -> dict[str, Any]:
        import httpx2

        try:
            reply = self.http.post(
                self.endpoint, content=body, timeout=timeout, headers={"content-type": "application/json"}
            )
            reply.raise_for_status()
            answer = reply.json()
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise SandboxError(f"tier remote: {self.endpoint}: {error or type(error).__name__}") from error
        if not isinstance(answer, dict) or answer.get("status") not in ("Success", "Failed"):
            said = answer.get("message") if isinstance(answer, dict) else ""
            raise SandboxError(f"tier remote: the service failed ({str(said)[:200] or 'no reason given'})")
        return answer

    async def aclose(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.http.close()


class RemoteProcess:
    """One run; see `rlaif.verifiers.sandbox.base.Process`. `write_stdin` is what sends it, and returns when it is over;
    so it comes after the job, and before anything is received."""

    def __init__(self, launcher: RemoteLauncher, limits: Limits) -> None:
        self.launcher = launcher
        self.limits = limits
        self.job = bytearray()
        self.ending: Ending | None = None
        self.outputs = (b"", b"")
        self.said = b""

    @property
    def stdout(self) -> bytes:
        return self.outputs[0]

    @property
    def stderr(self) -> bytes:
        return self.outputs[1]

    async def send(self, data: bytes) -> None:
        if self.ending is not None:
            raise BrokenPipeError("the process is gone")
        self.job += data
        if b"\n" in self.job and (self.job.count(b"\n") > 1 or json.loads(self.job).get("do") != "script"):
            raise SandboxError("tier remote: it runs whole programs only, no sessions; use a local tier for this mode")

    async def write_stdin(self, data: bytes) -> None:
        answer = await self.launcher.run(self.limits, bytes(self.job), data)
        result = answer.get("run_result")
        if not isinstance(result, dict):
            raise SandboxError("tier remote: the service did not say how the run ended")
        full = [str(result.get(name) or "").encode("utf-8", "surrogatepass") for name in ("stdout", "stderr")]
        self.outputs = (full[0][: self.limits.output_bytes], full[1][: self.limits.output_bytes])
        self.ending = _ending(result, flooded=any(len(text) > self.limits.output_bytes for text in full))
        files = answer.get("files")
        said = files.get(_SAID) if isinstance(files, dict) else None
        try:
            self.said = base64.b64decode(said) if isinstance(said, str) else b""
        except ValueError as error:
            raise SandboxError(f"tier remote: the service sent a file that is not base64 ({error})") from error

    async def receive(self, size: int) -> bytes:
        self._over()
        got, self.said = self.said[:size], self.said[size:]
        return got

    async def wait(self) -> Ending:
        return self._over()

    def _over(self) -> Ending:
        if self.ending is None:
            raise SandboxError("tier remote: its input must be given first; one request is a whole run")
        return self.ending

    async def aclose(self) -> None:
        """Nothing of it is here."""


def _ending(result: dict[str, Any], *, flooded: bool) -> Ending:
    if flooded:
        return Ending("resource")
    status, code = result.get("status"), result.get("return_code")
    if status == "TimeLimitExceeded":
        return Ending("timeout")
    if status != "Finished" or not isinstance(code, int):
        raise SandboxError(f"tier remote: a run that is {status!r}, with exit code {code!r}")
    return Ending("exited", code) if code >= 0 else Ending("killed", -code)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
