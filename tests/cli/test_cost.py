"""What `rlaif generate` says about money, as a reader sees it."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from rlaif.cli.cost import plain
from rlaif.cli.generate import generate
from tests import running

PRICE = {"input": 1, "output": 4, "batch_discount": 0.5}


def project(folder: Path, price: dict[str, Any] | None = PRICE) -> str:
    running.write_prompts(folder, [f"Question {i}?" for i in range(10)])
    judge = {"models": [{"model": "scripted:tests.fakes:judge", "price": price}]}
    settings = running.config(folder, judge_settings=judge).model_dump(mode="json")
    (folder / "config.yaml").write_text(json.dumps(settings))
    return str(folder / "config.yaml")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(generate, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.exit_code, result.stdout


def test_a_dry_run_prints_calls_tokens_and_cost_by_stage(tmp_path: Path) -> None:
    code, out = run(project(tmp_path), "--dry-run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "10 prompts, 160 calls: 0 answered already, 160 to send"
    titles = " ".join(lines[1].split())
    assert titles == "stage model to send tokens in tokens out USD low expected high batch expected"
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["sample", "scripted:tests.fakes:policy", "40"],
        ["judge", "scripted:tests.fakes:judge", "120"],
    ]
    assert lines[4].split()[:2] == ["all", "160"]
    assert "estimated from the text" in lines[-1]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_whether_the_budget_is_enough(tmp_path: Path) -> None:
    config = project(tmp_path)
    low, expected, high = (
        json.loads(run(config, "--dry-run", "--json")[1])["usd"][k] for k in ("low", "expected", "high")
    )
    for budget, said in (
        (low / 2, "is not enough"),
        ((low + expected) / 2, "is probably not enough"),
        ((expected + high) / 2, "is enough for the expected cost, not for the highest"),
        (high * 1.01, "is enough for this run"),
    ):
        assert said in run(config, "--dry-run", "--max-cost", f"{budget:.8f}")[1]


def test_a_run_ends_with_what_each_model_was_asked_and_cost(tmp_path: Path) -> None:
    config = project(tmp_path)
    _, out = run(config, "--max-cost", "1")
    table = [line.split() for line in out.splitlines() if line.startswith(("stage", "sample", "judge"))]
    assert " ".join(table[0]) == "stage model sent reused tokens in tokens out USD"
    assert table[1][:4] == ["sample", "scripted:tests.fakes:policy", "40", "0"]
    assert table[1][-1] == "free"
    assert table[2][:4] == ["judge", "scripted:tests.fakes:judge", "120", "0"]
    assert table[2][-1].startswith("$0.0")
    paid = json.loads((tmp_path / "run" / "manifest.json").read_text())["cost"]
    assert paid["max_cost"] == 1
    _, again = run(config)
    assert [line.split()[2:4] for line in again.splitlines() if line.startswith("judge")] == [["0", "120"]]
    after = json.loads((tmp_path / "run" / "manifest.json").read_text())["cost"]
    assert (after["usd"], after["usd_this_session"]) == (paid["usd"], 0)


def test_how_a_model_is_reached_and_what_it_costs_may_change_between_two_sessions(tmp_path: Path) -> None:
    config = project(tmp_path)
    run(config)
    dearer = ["--set", "judge.models.0.price.output=40", "--set", "judge.models.0.rpm=600", "--set", "max_cost=9"]
    _, out = run(config, *dearer)
    assert "0  " in out
    before = json.loads((tmp_path / "run" / "manifest.json").read_text())["cost"]["usd"]
    run(config, "--set", "judge.models.0.price=null")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["cost"]["usd"] == 0
    assert before > 0


def test_plain_tables_line_up() -> None:
    assert plain(("a", "bb"), [("xxx", "1"), ("y", "22")], left=1) == "a    bb\nxxx   1\ny    22"
