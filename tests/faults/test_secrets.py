"""A key is in no file, no reply kept, no message and no traceback, whatever the server does with it."""

import json
import re
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.clients._http import Endpoint
from tests.faults import world
from tests.faults.sessions import Sessions
from tests.faults.test_faults import PASSING, QUICK, REPLIES, at
from tests.faults.world import Liar, Project, honest, write_project
from tests.servers.fault_server import Answer, Asked, FaultServer

KEY = "sk-canary-Zq9/x+7Yw=="  # with characters that JSON and URLs may spell in other ways
PART = "canary-Zq9"
ENV = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
NOISY = {"OPENAI_LOG": "debug", "ANTHROPIC_LOG": "debug"}  # the SDKs' own logs, on standard error


def spellings(key: str) -> set[bytes]:
    """The key as it may stand in a file: as it is, in JSON, in a URL, in JSON with every character escaped."""
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    return {s.encode() for s in (key, json.dumps(key)[1:-1], key.replace("/", "\\/"), escaped, PART)}


def where_is_the_key(folder: Path) -> list[str]:
    """Every place below ``folder`` that holds the key or most of it, what is compressed in the ledger among them."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(s in path.read_bytes() for s in spellings(KEY)):
            found.append(str(path))
    for path in folder.rglob("ledger.sqlite"):
        found += [f"{path}: {place}" for place in _in_ledger(path)]
    return found


def _in_ledger(path: Path) -> list[str]:
    found = []
    db = sqlite3.connect(path)
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in db.execute(f"SELECT * FROM {table}"):
            for value in row:
                text = value if isinstance(value, bytes) else str(value).encode()
                if isinstance(value, bytes):
                    try:
                        text = zlib.decompress(value)
                    except zlib.error:  # a checksum
                        continue
                if any(s in text for s in spellings(KEY)):
                    found.append(f"{table}: {text[:200]!r}")
    db.close()
    return found


def header_key(asked: Asked) -> str:
    return asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")


def check(project: Project, sessions: Sessions, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run it with the key in the environment, quietly and with --debug; the key must be nowhere."""
    for extra in ((), ("--debug",)):
        code, session = sessions.run(
            project.folder,
            *("generate", "config.yaml", "--set", "max_unjudged=1.0", *arguments, *extra),
            env=ENV | (env or {}),
            constants=QUICK | {"rlaif.engine.breaker:Breaker.PATIENCE": 0.2},
        )
        for text in (session.out, session.err):
            assert not any(s in text.encode() for s in spellings(KEY)), text
        assert not where_is_the_key(project.folder)
    return code, session.err


def project_of(folder: Path, server: FaultServer, **settings: Any) -> Project:
    return write_project(folder, server, prompts=3, n=2, settings={"timeout": 0.5, "max_concurrency": 8, **settings})


def test_this_test_finds_a_key_where_there_is_one(tmp_path: Path, sessions: Sessions) -> None:
    """A prompt that holds the key is kept, in files and compressed in the ledger: the search must find it there."""
    with FaultServer(honest) as server:
        project = project_of(tmp_path, server)
        (project.folder / "prompts.jsonl").write_text(json.dumps({"prompt": f"What is {KEY}?"}) + "\n")
        assert sessions.run(project.folder, "generate", "config.yaml", env=ENV)[0] == 0
        assert header_key(server.asked[0]) == KEY
    (project.folder / "prompts.jsonl").unlink()
    found = where_is_the_key(project.folder)
    assert any(place.endswith("pairs.jsonl") for place in found)
    assert any("ledger.sqlite: requests" in place for place in found)
    assert not any("ledger.sqlite: replies" in place for place in found)  # where the server has said it again


@pytest.mark.parametrize("names", [PASSING, REPLIES], ids=["failures", "lies"])
def test_through_every_failure_and_the_sdks_own_logs(
    names: tuple[str, ...], tmp_path: Path, sessions: Sessions
) -> None:
    rates = at(0.6, *names)
    with FaultServer(Liar(rates, rates)) as server:
        check(project_of(tmp_path, server), sessions, env=NOISY)


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in text)


def _said(asked: Asked, spelt: str) -> str:
    key = header_key(asked)
    return {"plain": key, "escaped": "@" + key, "slashes": "%" + key, "cut": key + "x" * 300}[spelt]


def _spell(body: bytes) -> bytes:
    """JSON in which a key after "@" is written in escapes, and one after "%" with escaped slashes."""
    text = body.decode()
    text = text.replace("@" + KEY, _escaped(KEY)).replace("%" + KEY, KEY.replace("/", "\\/"))
    return text.encode()


@pytest.mark.parametrize(
    ("status", "spelt"),
    [
        *((status, "plain") for status in (200, 400, 401, 403, 404, 413, 422, 429, 500, 529)),
        *((status, spelt) for status in (200, 400, 403, 500) for spelt in ("escaped", "slashes")),
    ],
)
def test_a_server_that_repeats_the_key_in_what_it_answers(
    status: int, spelt: str, tmp_path: Path, sessions: Sessions
) -> None:
    from tests.servers.fault_server import error_json, reply_json

    def script(asked: Asked) -> Answer:
        said = f"the key {_said(asked, spelt)} was used"
        good = honest(asked)
        if status == 200 and world.is_judging(asked):
            good = Answer(f"{said}\nVerdict: X")  # ends in the row's detail
        elif status == 200:
            good = Answer(f"{good.text}\n{said}")
        if status == 200:
            return Answer(body=_spell(json.dumps(reply_json(asked, good) | {"echo": said}).encode()))
        if asked.nth == 0 or status < 429:
            headers = {"x-echo": KEY, "retry-after-ms": "10"}
            return Answer(status=status, headers=headers, body=_spell(error_json(asked.api, said)))
        return good

    with FaultServer(script) as server:
        check(project_of(tmp_path, server), sessions)


@pytest.mark.parametrize("url", ["http://user:{key}@127.0.0.1:{port}/v1", "http://127.0.0.1:{port}/v1?api_key={key}"])
def test_a_key_in_the_url_stays_out_of_what_a_run_writes(url: str, tmp_path: Path, sessions: Sessions) -> None:
    """The user wrote it into a config: that file is theirs, but it goes no further."""
    key = KEY.replace("/", "-")
    with FaultServer(honest) as server:
        project = project_of(tmp_path / "mine", server)
        project.edit("config.yaml", server.openai_url, url.format(key=key, port=server.port))
        for extra in ((), ("--debug",)):
            _, session = sessions.run(project.folder, "generate", "config.yaml", "--out", "../run", *extra, env=ENV)
            assert PART not in session.out + session.err
    assert not where_is_the_key(tmp_path / "run")


def test_a_key_given_where_the_name_of_a_variable_belongs_is_not_repeated(tmp_path: Path, sessions: Sessions) -> None:
    with FaultServer(honest) as server:
        project = project_of(tmp_path, server, api_key_env=KEY)
        code, session = sessions.run(project.folder, "generate", "config.yaml", env=ENV)
    assert code == 2
    assert "api_key_env" in session.err
    assert PART not in session.out + session.err
    assert not project.run.exists()


@pytest.mark.parametrize("key", ["sk-canary-Zq9 with a space", "sk-canary-Zq9\n", "sk-canary-Zq9-ü", 'sk-canary-Zq9"'])
def test_a_key_that_is_none_is_not_repeated(key: str, tmp_path: Path, sessions: Sessions) -> None:
    with FaultServer(honest) as server:
        project = project_of(tmp_path, server)
        for extra in ((), ("--debug",)):
            _, session = sessions.run(
                project.folder, "generate", "config.yaml", *extra, env=dict.fromkeys(ENV, key), constants=QUICK
            )
            assert not re.search("canary", session.out + session.err)
    assert not where_is_the_key(tmp_path)


@given(st.text(), st.sets(st.integers(0, 100)))
def test_looking_through_the_escapes_of_json_changes_nothing_it_says(text: str, escaped: set[int]) -> None:
    """Whatever characters of a text are written in escapes, spelling them out leaves JSON of the same text."""
    written = "".join(
        f"\\u{ord(c):04x}"
        if i in escaped and ord(c) < 0x10000
        else "\\/"
        if c == "/" and i % 2
        else json.dumps(c)[1:-1]
        for i, c in enumerate(text)
    )
    body = f'{{"a": "{written}", "key": "{_escaped(KEY)}"}}'
    at = Endpoint("openai:m", "http://127.0.0.1", "OPENAI_API_KEY", KEY)
    cleaned = at.clean(body)
    assert json.loads(cleaned) == {"a": text.replace(KEY, "[key]"), "key": "[key]"}
    without = Endpoint("openai:m", "http://127.0.0.1", "OPENAI_API_KEY", "another-key")
    assert without.clean(body) == body
