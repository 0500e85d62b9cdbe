"""rlaif doctor: one true sentence for each thing, the right exit code, and never a key."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif import doctor
from rlaif.cli.doctor import doctor as command
from rlaif.config.generate import GenerateConfig
from rlaif.doctor import Finding, examine, exit_code
from tests.servers.fault_server import Answer, FaultServer

KEY = "sk-canary-0123456789abcdef"


class Models:
    """A server that knows GET /v1/models and nothing else."""

    def __init__(self, status: int = 200, body: Any = None, hang: bool = False) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over = Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                if hang:
                    outer.over.wait(10)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Models":
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def config(folder: Path, *models: Any) -> GenerateConfig:
    (folder / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    return GenerateConfig.model_validate(
        {
            "prompts": str(folder / "prompts.jsonl"),
            "constitution": "helpful-harmless",
            "policy": {"model": models[0]},
            "judge": {"models": list(models)},
            "out": str(folder / "run"),
        }
    )


def about(findings: list[Finding], name: str) -> Finding:
    (found,) = [f for f in findings if f.name == name]
    return found


def openai_at(url: str, **other: Any) -> dict[str, Any]:
    return {"model": "openai:judge-1", "base_url": f"{url}/v1", **other}


# ------------------------------------------------------------------------------------------- without a config


def test_it_names_versions_extras_and_keys_and_is_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = examine()
    assert exit_code(found) == 0
    assert about(found, "python").message.startswith("Python 3.")
    assert about(found, "openai").message.startswith("openai 3.")
    assert "(extra local" in about(found, "torch").message
    assert about(found, "OPENAI_API_KEY").message == "OPENAI_API_KEY is set."
    assert about(found, "ANTHROPIC_API_KEY").status == "absent"
    assert not any(f.name in ("pytest", "mypy", "ruff") for f in found)


def test_what_is_not_installed_comes_with_the_extra_that_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_packages", lambda: {("no-such", ("vllm",), ">=1"), ("neither-this", (), ">=1")})
    found = examine()
    absent, problem = about(found, "no-such"), about(found, "neither-this")
    assert (absent.status, problem.status) == ("absent", "problem")
    assert "pip install 'rlaif[vllm]'" in absent.message
    assert exit_code(found) == 2


def test_a_version_that_does_not_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_packages", lambda: {("pytest", ("dev",), "<2")})
    found = about(examine(), "pytest")
    assert found.status == "warning"
    assert "made for <2" in found.message


# ------------------------------------------------------------------------------------------------ a server's list


def test_a_server_that_lists_the_model(tmp_path: Path) -> None:
    with Models(body={"data": [{"id": "judge-1", "max_model_len": 4096}, {"id": "x"}]}) as server:
        found = examine(config(tmp_path, openai_at(server.url)))
    said = about(found, "server")
    assert (
        said.message == f"openai:judge-1 at {server.url}/v1 answers and knows the model, with a context of 4096 tokens."
    )
    assert said.status == "ok"
    assert len(server.asked) == 1  # policy and judge are one model
    assert about(found, "price").status == "warning"
    assert "only a request can tell" in about(found, "log-probs").message
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("answer", "status", "said", "code"),
    [
        ({"body": {"data": [{"id": "other"}]}}, "warning", "does not list the model; it lists other.", 0),
        ({"status": 404, "body": {}}, "ok", "no list of models", 0),
        ({"body": b"<html>"}, "ok", "no list of models", 0),
        ({"body": b"\xff\xfe"}, "ok", "no list of models", 0),
        ({"body": {"data": [1]}}, "ok", "no list of models", 0),
        ({"status": 401, "body": {}}, "unreachable", "refused a request without a key (OPENAI_API_KEY is not set)", 4),
        ({"status": 503, "body": {}}, "unreachable", "answers, but fails (503)", 4),
        ({"hang": True, "body": {}}, "unreachable", "no answer within 0.3 s", 4),
    ],
)
def test_what_a_server_may_answer(
    tmp_path: Path, answer: dict[str, Any], status: str, said: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.3 if "hang" in answer else 10.0)
    with Models(**answer) as server:
        found = examine(config(tmp_path, openai_at(server.url)))
    assert about(found, "server").status == status
    assert said in about(found, "server").message
    assert exit_code(found) == code


def test_nothing_listening_is_exit_4(tmp_path: Path) -> None:
    with Models() as server:
        pass
    found = examine(config(tmp_path, openai_at(server.url)))
    assert "no connection" in about(found, "server").message
    assert exit_code(found) == 4


def test_anthropic_is_asked_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with Models(body={"data": [{"id": "claude-x"}]}) as server:
        found = examine(config(tmp_path, {"model": "anthropic:claude-x", "base_url": server.url}))
    ((path, headers),) = server.asked
    assert path.startswith("/v1/models")
    assert headers["x-api-key"] == KEY
    assert about(found, "server").status == "ok"
    assert "gives no log-probs" in about(found, "log-probs").message


@pytest.mark.parametrize("answer", [{"status": 401, "body": {}}, {"body": {"data": [{"id": KEY}]}}, {"body": {}}])
def test_no_key_is_ever_shown(tmp_path: Path, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with Models(**answer) as server:
        found = examine(config(tmp_path, openai_at(server.url, api_key_env="MY_KEY")), call=True)
    assert server.asked[0][1]["authorization"] == f"Bearer {KEY}"
    assert about(found, "MY_KEY").message == "MY_KEY is set."
    assert KEY not in "".join(f.model_dump_json() for f in found)


# -------------------------------------------------------------------------------------------------- a real call


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(lambda asked: Answer("X")) as running:
        yield running


def test_a_call_finds_out_about_log_probs(tmp_path: Path, server: FaultServer) -> None:
    found = examine(config(tmp_path, openai_at(server.url)), call=True)
    assert about(found, "call").status == "ok"
    assert "answered in" in about(found, "call").message
    assert "gives log-probs" in about(found, "log-probs").message
    assert exit_code(found) == 0


def test_a_model_that_refuses_log_probs_is_asked_without(tmp_path: Path, server: FaultServer) -> None:
    refusal = json.dumps(
        {"error": {"message": "logprobs is not supported", "param": "logprobs", "code": "unsupported"}}
    )
    server.script = lambda asked: (
        Answer(status=400, body=refusal.encode()) if asked.body.get("logprobs") else Answer("X")
    )
    found = examine(config(tmp_path, openai_at(server.url)), call=True)
    assert "gives no log-probs" in about(found, "log-probs").message
    assert exit_code(found) == 0


@pytest.mark.parametrize("status", [401, 404, 500, 400])
def test_a_call_that_fails_is_exit_4(tmp_path: Path, server: FaultServer, status: int) -> None:
    server.script = lambda asked: Answer(status=status, body=b'{"error": {"message": "no"}}')
    found = examine(config(tmp_path, openai_at(server.url)), call=True)
    assert about(found, "call").status == "unreachable"
    assert exit_code(found) == 4


# --------------------------------------------------------------------------------------------- models on this machine


def test_a_scripted_model_is_called_too(tmp_path: Path) -> None:
    found = examine(config(tmp_path, "scripted:tests.fakes:policy"), call=True)
    assert about(found, "call").status == "ok"
    assert "costs nothing" in about(found, "price").message


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("scripted:no.such.module:judge", "cannot import no.such.module"),
        ("local:/no/such/folder", "/no/such/folder"),
        ("openai:gpt-4.1-mini", "OPENAI_API_KEY is not set"),
        ({"model": "openai:x", "base_url": "https://models.example.org/v1"}, "OPENAI_API_KEY is not set"),
    ],
)
def test_what_is_wrong_here_is_exit_2(tmp_path: Path, model: Any, said: str) -> None:
    found = examine(config(tmp_path, model))
    assert said in about(found, "usable").message
    assert exit_code(found) == 2


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    for model, cure in (("local:smollm2", "rlaif[local]"), ("vllm:owner/name", "rlaif[vllm]")):
        assert cure in about(examine(config(tmp_path, model)), "usable").message


def test_a_missing_constitution_or_prompt_file_is_found(tmp_path: Path) -> None:
    settings = config(tmp_path, "scripted:tests.fakes:policy")
    found = examine(settings.model_copy(update={"constitution": "no-such", "prompts": "/no/such.jsonl"}))
    assert about(found, "constitution").status == about(found, "prompts").status == "problem"


# ---------------------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(arguments))
    return result.exit_code, result.output


def test_the_command_prints_one_line_for_each_finding_and_json(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config(tmp_path, "scripted:tests.fakes:policy").model_dump(mode="json")))
    code, text = run(str(path))
    assert code == 0
    code, output = run(str(path), "--json")
    assert code == 0
    findings = json.loads(output)["findings"]
    assert [line[13:] for line in text.splitlines()] == [f["message"] for f in findings]
    assert all(f["message"].endswith(".") for f in findings)
    code, output = run(str(path), "--set", "policy.model=local:/no/such", "--json")
    assert code == 2
    assert json.loads(output)["ok"] is False
