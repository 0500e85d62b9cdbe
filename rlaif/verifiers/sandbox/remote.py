"""Tier ``remote``: somebody else's sandbox, by the HTTP API of SandboxFusion (``POST /run_code``).

One request is one whole run, so of what a `Process` can do only this much is served: one job of a program with standard
streams (``{"do": "script", ...}``), then its input, then its ending, its output and what the guest said. A session,
which is a conversation, is refused. The verdict stays here, and no expected value is sent.

How well it isolates is the service's affair and is not tried: the tier ranks below those that are. That it really runs
a program is tried before the first run, with a program whose output is known: a service that cannot do that (or a page
of HTML in its place) has never seen an answer, and no answer fails by it. After that it is believed.

API: SandboxFusion's ``CodeRunArgs`` and ``RunCodeResponse`` (files in and out are base64).
"""

import asyncio
import base64
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import values
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
_MOST_BYTES = 64 << 20  # of one reply, which holds all that a program has printed
_TRIAL = "print(input()[::-1])"


class RemoteLauncher:
    """See `rlaif.verifiers.sandbox.base.Launcher`. url: of the service, without the path. workers: requests at a time.
    grace_seconds: that a run may take longer than its own limit, in the service's queue and on the way.

    Raises InputError for a URL that is none.
    """

    tier: Tier = "remote"

    def __init__(self, url: str, workers: int = 16, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        import httpx2

        self.endpoint = url.rstrip("/") + "/run_code"
        try:
            parsed = httpx2.URL(self.endpoint)
        except httpx2.InvalidURL:
            parsed = None
        if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError(f"sandbox: {url!r} is no URL of a sandbox service (http://host:port).")
        self.grace_seconds = grace_seconds
        self.tried = False
        self.http = httpx2.Client(limits=httpx2.Limits(max_connections=workers))
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self.program = {name: _encoded((_HERE / name).read_bytes()) for name in ("guest.py", "values.py")}

    async def launch(self, limits: Limits) -> "RemoteProcess":
        """Nothing is sent yet. See `RemoteProcess`."""
        return RemoteProcess(self, limits)

    async def run(self, limits: Limits, job: bytes, stdin: bytes) -> dict[str, Any] | None:
        """One request and its answer; None where the program printed more than an answer may hold. Raises
        SandboxError."""
        try:
            waiting = self.threads.submit(self._run, limits, job, stdin)
        except RuntimeError:
            raise SandboxError("tier remote: the sandbox is closed") from None
        return await asyncio.wrap_future(waiting)

    def _run(self, limits: Limits, job: bytes, stdin: bytes) -> dict[str, Any] | None:
        if not self.tried:  # two at the same time may both try
            word = secrets.token_hex(8)
            trial = values.dumps({"do": "script", "sources": [_TRIAL]})
            answer = self._post(limits, trial, word.encode())
            if answer is None or _outputs(answer)[0].strip() != word[::-1].encode() or not _said(answer):
                raise SandboxError(f"tier remote: {self.endpoint} does not run a program as it should")
            self.tried = True
        return self._post(limits, job, stdin)

    def _post(self, limits: Limits, job: bytes, stdin: bytes) -> dict[str, Any] | None:
        import httpx2

        try:
            body = self._exchanged(limits, job, stdin)
            answer = None if body is None else json.loads(body)
        except (httpx2.HTTPError, OSError, ValueError, RecursionError) as error:
            raise SandboxError(f"tier remote: {self.endpoint}: {error or type(error).__name__}") from error
        if body is None:
            return None
        if not isinstance(answer, dict) or answer.get("status") not in ("Success", "Failed"):
            said = answer.get("message") if isinstance(answer, dict) else ""
            raise SandboxError(f"tier remote: the service failed ({str(said)[:200] or 'no reason given'})")
        if not isinstance(answer.get("run_result"), dict) or not isinstance(answer.get("files"), dict):
            raise SandboxError("tier remote: the service did not say how the run ended")
        return answer

    def _exchanged(self, limits: Limits, job: bytes, stdin: bytes) -> bytes | None:
        """The bytes of the reply, none of them after the deadline; None if they are too many."""
        asked = {
            "code": _START,
            "language": "python",
            "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
            "stdin": stdin.decode("utf-8", "surrogateescape"),
            "files": {**self.program, _JOB: _encoded(job)},
            "fetch_files": [_SAID],
        }
        content, headers = json.dumps(asked).encode(), {"content-type": "application/json"}
        timeout = limits.seconds + self.grace_seconds
        deadline = time.monotonic() + timeout  # a time-out of httpx is for one read, and a trickle has many
        body = bytearray()
        with self.http.stream("POST", self.endpoint, content=content, headers=headers, timeout=timeout) as reply:
            reply.raise_for_status()
            for chunk in reply.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply in {timeout:.3g} s")
                if len(body) > _MOST_BYTES:
                    return None
        return bytes(body)

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
        if answer is None:
            self.ending = Ending("resource")
            return
        out, error = _outputs(answer)
        most = self.limits.output_bytes
        self.outputs = (out[:most], error[:most])
        self.ending = _ending(answer["run_result"], flooded=max(len(out), len(error)) > most)
        self.said = _said(answer)

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


def _outputs(answer: dict[str, Any]) -> tuple[bytes, bytes]:
    """Standard output and error. Raises SandboxError where a run that ended has none (an empty one is "")."""
    result = answer["run_result"]
    texts = [result.get(name) for name in ("stdout", "stderr")]
    if result.get("status") != "Finished":
        texts = [text or "" for text in texts]
    if not all(isinstance(text, str) for text in texts):
        raise SandboxError("tier remote: the service did not say what the program printed")
    return texts[0].encode("utf-8", "surrogatepass"), texts[1].encode("utf-8", "surrogatepass")


def _said(answer: dict[str, Any]) -> bytes:
    """What the guest said; nothing where the program has removed the file. Raises SandboxError."""
    said = answer["files"].get(_SAID, "")
    try:
        return base64.b64decode(said, validate=True)
    except (TypeError, ValueError) as error:
        raise SandboxError(f"tier remote: the service sent a file that is not base64 ({error})") from error


def _ending(result: dict[str, Any], *, flooded: bool) -> Ending:
    if flooded:
        return Ending("resource")
    status, code = result.get("status"), result.get("return_code")
    if status == "TimeLimitExceeded":
        return Ending("timeout")
    if status != "Finished" or type(code) is not int:
        raise SandboxError(f"tier remote: a run that is {status!r}, with exit code {code!r}")
    return Ending("exited", code) if code >= 0 else Ending("killed", -code)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
