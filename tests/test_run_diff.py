"""`constitution diff` with a finished run: only what must be is judged again, and the sums add up."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.constitution import constitution as command
from rlaif.engine import Ledger
from rlaif.errors import InputError, ProviderError
from rlaif.run_diff import diff_run, open_finished, price
from rlaif.types import ChatRequest
from tests import fakes, running
from tests.fakes import shown_qualities

PROMPTS = [f"Question {i}?" for i in range(8)]
WORKING = {"key": True}


def judge(request: ChatRequest) -> str:
    """What is better depends on the principle: the higher quality, the lower, or the higher last digit."""
    if not WORKING["key"]:
        raise ProviderError("scripted: 401, the key is not accepted")
    fakes.SENT.append(request)
    first, second = shown_qualities(request)
    asked = request.messages[0].content
    if "lower" in asked:
        first, second = -first, -second
    elif "digit" in asked:
        first, second = first % 10, second % 10
    return "X" if first > second else "Y" if second > first else "Z"


def constitution(*principles: str) -> str:
    return "name: c\nprinciples:\n" + "".join(f"  - {{{p}}}\n" for p in principles)


HIGHER = 'id: main, compare: "Which has the higher quality?"'
LOWER = 'id: main, compare: "Which has the lower quality?"'
DIGIT = 'id: digit, compare: "Which has the higher last digit?"'


def made(folder: Path, *principles: str, **judge_settings: Any) -> Path:
    """A finished run by a constitution of these principles; it lies beside the folder's ``constitution.yaml``."""
    running.write_prompts(folder, PROMPTS)
    settings = {"models": [{"model": "scripted:tests.test_run_diff:judge"}], "ties": True, "principles": "each"}
    running.generate(
        running.config(
            folder,
            constitution=constitution(*principles),
            judge_settings=settings | judge_settings,
            policy_settings={"n": 3},
            pairing={"strategy": "all"},
        )
    )
    fakes.SENT.clear()
    return folder / "run"


def diff(run: Path, *principles: str, **how: Any) -> dict[str, Any]:
    before, after = str(run.parent / "constitution.yaml"), run.parent / "other.yaml"
    after.write_text(constitution(*principles), encoding="utf-8")
    fakes.SENT.clear()
    return diff_run(open_finished(run, before), before, str(after), **how).report


def contents(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.rglob("*") if p.is_file() and not p.name.startswith("ledger")}


def test_the_opposite_principle_flips_every_pair_and_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    before = contents(run)
    pairs = len(running.rows(tmp_path, "pairs"))
    report = diff(run, LOWER)
    assert report["fates"] == {"flipped": pairs, "appears": 0, "vanishes": 0, "moved": 0, "same": 0, "unknown": 0}
    assert report["asked"] == 2 * 3 * len(PROMPTS)
    assert not any("quality" not in r.messages[0].content for r in fakes.SENT)
    assert contents(run) == before
    assert report["principles"]["main"]["change"] == "reworded"
    assert report["principles"]["main"]["said_otherwise"] == report["principles"]["main"]["judged_after"]
    example = report["examples"]["flipped"][0]
    assert running.quality(example["chosen"]) > running.quality(example["rejected"])
    assert (example["prob_before"], example["prob_after"]) == (1.0, 0.0)


def test_what_was_asked_once_is_in_the_ledger_and_not_asked_again(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    first = diff(run, LOWER)
    again = diff(run, LOWER)
    assert again["asked"] == 0
    assert fakes.SENT == []
    assert {k: v for k, v in again.items() if k not in ("asked", "usd")} == {
        k: v for k, v in first.items() if k not in ("asked", "usd")
    }


def test_only_the_principle_that_is_new_is_judged(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    report = diff(run, HIGHER, DIGIT)
    assert report["asked"] == 2 * 3 * len(PROMPTS)
    assert all("digit" in request.messages[0].content for request in fakes.SENT)
    assert report["principles"]["digit"]["change"] == "added"
    assert report["fates"]["vanishes"] > 0  # one for each side is a tie
    assert set(report["vanished_because"]) == {"tie"}


@pytest.mark.parametrize("principles", ["each", "all"])
def test_other_weights_cost_nothing_and_need_no_key(
    tmp_path: Path, principles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path, HIGHER, DIGIT, principles=principles)
    monkeypatch.setitem(WORKING, "key", False)
    report = diff(run, f"{HIGHER}, weight: 3.0", DIGIT)
    assert report["asked"] == 0
    assert report["changes"][0]["fields"] == ["weight"]
    if principles == "each":  # what was a tie of one against one is decided now
        assert report["fates"]["appears"] > 0
        assert report["fates"]["flipped"] == 0
    else:
        assert report["fates"]["same"] == report["pairs_before"] == report["pairs_after"]


def test_where_principles_are_drawn_other_weights_ask_only_about_those_drawn_anew(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER, DIGIT, principles="sample")
    report = diff(run, f"{HIGHER}, weight: 4.0", DIGIT)
    by_principle = report["principles"]
    drawn_anew = (by_principle["main"]["judged_after"] - by_principle["main"]["judged_before"]) // 2
    assert 0 < drawn_anew < 3 * len(PROMPTS)
    assert report["asked"] == 2 * drawn_anew
    (tmp_path / "free").mkdir()
    stored = diff(
        made(tmp_path / "free", HIGHER, DIGIT, principles="sample"), f"{HIGHER}, weight: 4.0", DIGIT, ask=False
    )
    assert stored["asked"] == 0
    assert stored["fates"]["unknown"] == drawn_anew


def test_of_a_prompt_with_an_unasked_question_nothing_is_claimed(tmp_path: Path) -> None:
    """Where one comparison of a prompt becomes its pair, which one it is depends on those that were not asked about."""
    running.write_prompts(tmp_path, PROMPTS)
    settings = {"models": [{"model": "scripted:tests.test_run_diff:judge"}], "ties": True, "principles": "sample"}
    running.generate(running.config(tmp_path, constitution=constitution(HIGHER, DIGIT), judge_settings=settings))
    reworded = 'id: digit, compare: "Which has the higher last digit of all?"'
    asked = diff(tmp_path / "run", HIGHER, reworded, ask=False)
    assert asked["asked"] == 0
    assert asked["fates"]["unknown"] > 0
    assert [asked["fates"][fate] for fate in ("flipped", "appears", "vanishes", "moved")] == [0, 0, 0, 0]
    digit = asked["principles"]["digit"]
    assert digit["judged_before"] > 0
    assert (digit["judged_after"], digit["said_otherwise"]) == (0, 0)


def test_a_removed_principle_costs_nothing(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER, DIGIT)
    report = diff(run, HIGHER)
    assert report["asked"] == 0
    assert report["principles"]["digit"]["change"] == "removed"
    assert report["fates"]["vanishes"] == 0
    assert report["pairs_after"] >= report["pairs_before"]


def test_a_check_is_decided_by_program_for_nothing(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    report = diff(run, HIGHER, "id: short, check: {words: {max: 1}}")
    assert report["asked"] == 0
    assert report["principles"]["short"]["judged_after"] == 3 * len(PROMPTS)


def test_every_pair_of_either_side_has_one_fate(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    for after in ((LOWER,), (HIGHER, DIGIT), (DIGIT,), (f"{HIGHER}, weight: 2.0",), (HIGHER,)):
        report = diff(run, *after)
        fates = report["fates"]
        both = fates["same"] + fates["moved"] + fates["flipped"]
        assert report["pairs_before"] == both + fates["vanishes"], after
        assert report["pairs_after"] == both + fates["appears"], after
        assert fates["unknown"] == 0


def test_it_is_what_a_run_with_the_other_constitution_makes(tmp_path: Path) -> None:
    report = diff(made(tmp_path, HIGHER, DIGIT), LOWER, f"{DIGIT}, weight: 0.5")
    (tmp_path / "fresh").mkdir()
    made(tmp_path / "fresh", LOWER, f"{DIGIT}, weight: 0.5")
    fresh = running.rows(tmp_path / "fresh", "pairs")
    assert report["pairs_after"] == len(fresh)
    now = {(r["chosen_id"], r["rejected_id"]): r["prob_chosen"] for r in fresh}
    was = {(r["chosen_id"], r["rejected_id"]): r["prob_chosen"] for r in running.rows(tmp_path, "pairs")}
    assert report["fates"]["flipped"] == len({k[::-1] for k in was} & set(now))
    assert report["fates"]["same"] == sum(now.get(k) == p for k, p in was.items())


# --------------------------------------------------------------------------------------------------- price and errors


def test_the_dry_run_says_exactly_how_much_would_be_asked(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    (tmp_path / "other.yaml").write_text(constitution(HIGHER, DIGIT), encoding="utf-8")
    before = contents(run)
    finished = open_finished(run, str(tmp_path / "constitution.yaml"))
    expected = price(finished, str(tmp_path / "other.yaml"))
    assert sum(stage.calls - stage.answered for stage in expected.stages) == 2 * 3 * len(PROMPTS)
    assert fakes.SENT == []
    assert contents(run) == before


def test_a_cap_holds_and_what_was_paid_for_is_kept(tmp_path: Path) -> None:
    paid = {"model": "scripted:tests.test_run_diff:judge", "price": {"input": 1000, "output": 0}}
    run = made(tmp_path, HIGHER, models=[paid])
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        judged = [stage for stage in ledger.stats().stages if stage.stage == "judge"]
    spent = Decimal(sum(stage.usage.input_tokens for stage in judged)) / 1000  # USD
    with pytest.raises(ProviderError, match="budget"):
        diff(run, LOWER, max_cost=spent + 4)
    asked = len(fakes.SENT)
    assert 0 < asked < 2 * 3 * len(PROMPTS)
    report = diff(run, LOWER)
    assert report["asked"] == 2 * 3 * len(PROMPTS) - asked


def test_a_refused_key_is_a_provider_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, HIGHER)
    monkeypatch.setitem(WORKING, "key", False)
    with pytest.raises(ProviderError, match="401"):
        diff(run, LOWER)


def test_the_constitution_must_be_the_one_the_run_was_made_with(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    (tmp_path / "constitution.yaml").write_text(constitution(LOWER), encoding="utf-8")
    with pytest.raises(InputError, match="not the constitution of"):
        open_finished(run, str(tmp_path / "constitution.yaml"))


def test_other_prompts_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    before = str(tmp_path / "constitution.yaml")
    running.write_prompts(tmp_path, PROMPTS[:5])
    with pytest.raises(InputError, match="changed since"):
        open_finished(run, before)
    (run / "manifest.json").unlink()
    with pytest.raises(InputError, match="no finished run"):
        open_finished(run, before)


# ------------------------------------------------------------------------------------------------------- the command


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(command, ["diff", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_shows_what_becomes_of_the_run(tmp_path: Path) -> None:
    run = made(tmp_path, HIGHER)
    (tmp_path / "other.yaml").write_text(constitution(LOWER), encoding="utf-8")
    files = (str(tmp_path / "constitution.yaml"), str(tmp_path / "other.yaml"), str(run))
    page = tmp_path / "diff.html"
    said = invoke(*files, "--out", str(page))
    assert "main: reworded" in said
    assert "[-higher-] {+lower+}" in said
    assert re.search(r"\d+  flipped: the other response is chosen", said)
    assert "<script" not in page.read_text()
    assert "</response_X>" not in page.read_text()  # a completion holds this, and it is escaped
    assert json.loads(invoke(*files, "--json"))["asked"] == 0
    assert "0 to send" in invoke(*files, "--dry-run")


def test_options_about_a_run_want_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["diff", "brief", "thorough", "--dry-run"])
    assert result.exit_code == 2
