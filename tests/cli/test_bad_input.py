"""What a new user gets wrong: each is one sentence that names the place and the cure, the promised exit code, no
traceback, and nothing sent."""

import json
from pathlib import Path

import pytest

from rlaif.cli import main
from rlaif.engine import Ledger
from tests import fakes

CONFIG = """\
prompts: prompts.jsonl
constitution: constitution.yaml
policy: {model: "scripted:tests.fakes:policy", n: 4}
judge:
  models: ["scripted:tests.fakes:judge"]
out: run
"""
CONSTITUTION = """\
name: mine
version: "1"
principles:
  - id: good
    compare: Which response is better?
"""
PROMPTS = "".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(5))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Path("config.yaml").write_text(CONFIG)
    Path("constitution.yaml").write_text(CONSTITUTION)
    Path("prompts.jsonl").write_text(PROMPTS)
    fakes.SENT.clear()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(exit_.value.code or 0), out, err


def test_the_project_without_mistakes_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "generate", "config.yaml")
    assert code == 0, err
    assert "5 pairs from 30 comparisons of 5 prompts" in out
    assert Path("run/report.html").exists()


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("config.yaml", "prompts:", "promts:", r"config.yaml:1: unknown key 'promts'; did you mean 'prompts'?"),
        ("config.yaml", "n: 4", "m: 4", "config.yaml:3: unknown key 'policy.m'; "),
        ("config.yaml", "n: 4", "temprature: 1", "did you mean 'temperature'?"),
        ("config.yaml", "n: 4", "n: four", "config.yaml:3: policy.n: "),
        ("config.yaml", "n: 4", "n: 1", "policy.n must be at least 2"),
        ("config.yaml", "out: run\n", "", "config.yaml:1: the key 'out' is missing."),
        ("config.yaml", "judge:\n", "judge: [\n", "config.yaml:"),
        ("config.yaml", "scripted:tests.fakes:policy", "opnai:gpt", "Did you mean 'openai:gpt'?"),
        ("config.yaml", "scripted:tests.fakes:policy", "gpt-4", "is not a model; write BACKEND:NAME"),
        ("config.yaml", "scripted:tests.fakes:policy", "scripted:no.such:x", "cannot import no.such"),
        ("config.yaml", "scripted:tests.fakes:policy", "scripted:tests.fakes:nobody", "has no nobody"),
        ("config.yaml", "scripted:tests.fakes:policy", "openai:gpt-4.1-mini", "OPENAI_API_KEY"),
        ("config.yaml", "scripted:tests.fakes:policy", "anthropic:claude-x", "ANTHROPIC_API_KEY"),
        ("config.yaml", "scripted:tests.fakes:policy", "local:./no/such/folder", "no/such/folder"),
        ("config.yaml", "prompts.jsonl", "nothing.jsonl", "nothing.jsonl: no such file"),
        ("config.yaml", "constitution.yaml", "helpful-harmles", "helpful-harmless"),
        ("config.yaml", "constitution.yaml", "nothing.yaml", "nothing.yaml"),
        ("constitution.yaml", "compare:", "compair:", "constitution.yaml:5: unknown key"),
        ("constitution.yaml", "Which response is better?", '""', "constitution.yaml:5"),
        (
            "constitution.yaml",
            "principles:\n",
            "principles:\n  - id: good\n    compare: Which is good?\n",
            "constitution.yaml:6",
        ),
        ("constitution.yaml", CONSTITUTION, "", "constitution.yaml: the file is empty"),
        ("constitution.yaml", "  - id: good\n    compare: Which response is better?\n", "", "constitution.yaml:3"),
        (
            "prompts.jsonl",
            '{"prompt": "Question 2?"}',
            '{"prompt": "Question 2?',
            "prompts.jsonl:3: not a line of JSON",
        ),
        ("prompts.jsonl", '{"prompt": "Question 2?"}', '{"promt": "?"}', "columns found: promt; accepted: prompt"),
        ("prompts.jsonl", PROMPTS, "", "prompts.jsonl: no prompts in it"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, message: str
) -> None:
    edit(file, old, new)
    code, _, err = run(capsys, "generate", "config.yaml")
    assert code == 2
    assert message in err
    assert fakes.SENT == []
    assert not Path("run/pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "Missing argument 'CONFIG'"),
        (("generate", "none.yaml"), "none.yaml: no such file"),
        (("generate", "."), "is a folder"),
        (("generate", "config.yaml", "--set", "policy.n"), "expected KEY=VALUE"),
        (("generate", "config.yaml", "--set", "policy.n=x"), "policy.n"),
        (("generate", "config.yaml", "--set", "polcy.n=2"), "did you mean 'policy'?"),
        (("generate", "config.yaml", "--limit", "0"), "--limit"),
        (("generat", "config.yaml"), "No such command 'generat'"),
        (("report", "nowhere"), "nowhere"),
        (("init", "."), "is there already"),
        (("init", "new", "--model", "gpt"), "write BACKEND:NAME"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert fakes.SENT == []


def test_a_run_folder_made_by_another_config_is_refused_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "generate", "config.yaml")
    before = Path("run/pairs.jsonl").read_bytes()
    code, _, err = run(capsys, "generate", "config.yaml", "--set", "seed=1", "--set", "judge.orders=one")
    assert code == 2
    assert "judge.orders" in err
    assert "seed" in err
    assert Path("run/pairs.jsonl").read_bytes() == before
    code, _, _ = run(capsys, "generate", "config.yaml", "--set", "seed=1", "--fresh")
    assert code == 0
    assert Path("run/pairs.jsonl").read_bytes() != before


def test_a_folder_that_is_no_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("mine")
    code, _, err = run(capsys, "generate", "config.yaml", "--out", "other", "--fresh")
    assert code == 2
    assert "is no run folder" in err
    assert Path("other/thesis.txt").read_text() == "mine"


def test_a_judge_that_answers_rubbish_exits_3_and_keeps_everything(capsys: pytest.CaptureFixture[str]) -> None:
    edit("config.yaml", "fakes:judge", "fakes:judge_rubbish")
    code, _, err = run(capsys, "generate", "config.yaml")
    assert code == 3
    assert "unparseable" in err
    assert len(Path("run/completions.jsonl").read_text().splitlines()) >= 20
    assert Path("run/report.html").exists()


def test_a_provider_that_refuses_exits_4(capsys: pytest.CaptureFixture[str]) -> None:
    edit("config.yaml", "fakes:judge", "fakes:judge_without_key")
    code, _, err = run(capsys, "generate", "config.yaml")
    assert code == 4
    assert "401" in err


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("judge_with_a_bug", "scripted:tests.fakes:judge_with_a_bug: the function raised ZeroDivisionError"),
        ("judge_of_numbers", "scripted:tests.fakes:judge_of_numbers: the function must return a text or a ChatReply"),
    ],
)
def test_a_mistake_in_the_users_own_function_is_no_bug_of_ours(
    capsys: pytest.CaptureFixture[str], name: str, complaint: str
) -> None:
    edit("config.yaml", "fakes:judge", f"fakes:{name}")
    code, _, err = run(capsys, "generate", "config.yaml")
    assert code == 4
    assert complaint in err
    assert "a bug in rlaif" not in err


def test_a_key_is_in_no_file_and_no_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    canary = "sk-canary-1234567890"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    edit(
        "config.yaml",
        '"scripted:tests.fakes:policy"',
        '{model: "openai:m", base_url: "http://127.0.0.1:9/v1", timeout: 2}',
    )
    code, out, err = run(capsys, "generate", "config.yaml", "--limit", "1")
    assert code != 0
    assert canary not in out + err
    for path in project.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


def test_a_config_may_be_corrected_as_long_as_nothing_was_answered(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "generate", "config.yaml", "--set", "policy.model=scripted:tests.fakes:judge_without_key")
    assert code == 4
    code, _, err = run(capsys, "generate", "config.yaml")
    assert code == 0, err


def test_a_folder_that_another_process_works_in_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "generate", "config.yaml")
    before = Path("run/pairs.jsonl").read_bytes()
    with Ledger.open(Path("run/ledger.sqlite")):
        for extra in ((), ("--fresh",)):
            code, _, err = run(capsys, "generate", "config.yaml", *extra)
            assert code == 2
            assert "another process" in err or "pid" in err or "process" in err
    assert Path("run/pairs.jsonl").read_bytes() == before
