"""A server that speaks the few endpoints of the Hugging Face Hub that pushing a data set needs, and keeps what it got.

Endpoints: POST /api/repos/create, /api/validate-yaml, /api/datasets/OWNER/NAME/preupload/main and .../commit/main
(newline-delimited JSON), POST /datasets/OWNER/NAME.git/info/lfs/objects/batch, PUT /lfs/OID. Not spoken: Xet.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """``repositories``: by name, whether private and the files in it. ``requests``: method and path of each, in order.
    ``lfs``: whether parquet files are to come by LFS."""

    def __init__(self, token: str, owner: str, *, lfs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.owner, self.lfs = token, owner, lfs
        self.repositories: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.status: dict[str, int] = {}  # by the end of a path: what to answer instead

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(token: str, owner: str = "somebody", *, lfs: bool = False) -> Iterator[Hub]:
    server = Hub(token, owner, lfs=lfs)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "not the bytes that were announced"})
            return
        self.server.stored[oid] = body
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        for end, status in self.server.status.items():
            if self.path.endswith(end):
                self._answer(status, {"error": f"planned {status}"})
                return
        if self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {self.server.token}":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        else:
            self._to_repository(body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.server.owner:
            self._answer(403, {"error": f"You don't have the rights to create a dataset under {asked['organization']}"})
        elif name in self.server.repositories:
            self._answer(409, {"error": "You already created this dataset repo"})
        else:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories[name] = {"private": bool(private), "files": {}, "commits": []}
            self._answer(200, {"url": f"{self.server.url}/datasets/{name}", "name": name})

    def _to_repository(self, body: bytes) -> None:
        name = "/".join(self.path.removeprefix("/api").split("/")[2:4]).removesuffix(".git")
        if name not in self.server.repositories:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if self.server.lfs and f["path"].endswith(".parquet") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self._answer(200, {"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            self._commit(name, [json.loads(line) for line in body.decode().split("\n") if line])
        else:
            self._answer(404, {"error": "no such endpoint"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository["commits"].append(value["summary"])
            elif line["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository["files"][value["path"]] = self.server.stored[value["oid"]]
        commit = "0" * 40
        self._answer(200, {"commitUrl": f"{self.server.url}/datasets/{name}/commit/{commit}", "commitOid": commit})

    def _body(self) -> bytes:
        self.server.requests.append((self.command, self.path))
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for key, header in (headers or {}).items():
            self.send_header(key, header)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
