"""Two models of known worth: what is better is called better, a missing answer is no number, nothing is paid twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli import main
from rlaif.config.evaluate import EvalConfig
from rlaif.errors import InputError, QualityError
from rlaif.evaluation.evaluate import evaluate
from rlaif.evaluation.paired import Figure, Measured, figure
from rlaif.verifiers.text import repeated_share
from tests.evaluation import models


def model(name: str) -> dict[str, Any]:
    return {"model": f"scripted:tests.evaluation.models:{name}", "logprobs": True}


@pytest.fixture
def sums(tmp_path: Path) -> str:
    rows = [{"prompt": f"What is {i} plus {2 * i + 1}?", "reference": str(3 * i + 1)} for i in range(20)]
    return write(tmp_path / "sums.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(
    tmp_path: Path, before: str | dict[str, Any], after: str | list[str], tasks: dict[str, Any], **other: Any
) -> EvalConfig:
    several = [model(name) for name in after] if isinstance(after, list) else model(after)
    values = {
        "before": model(before) if isinstance(before, str) else before,
        "after": several,
        "tasks": tasks,
        "out": str(tmp_path / "eval"),
    }
    models.SENT.clear()
    return EvalConfig.model_validate(values | other)


def math(sums: str, **other: Any) -> dict[str, Any]:
    return {"sums": {"type": "verify", "prompts": sums, "verifier": "math", **other}}


def figures(report: dict[str, Any], candidate: int = 0) -> dict[str, Figure]:
    rows = [Figure.model_validate(f) for f in report["after"][candidate]["figures"]]
    return {f"{f.task}: {f.name}": f for f in rows}


def test_a_better_model_is_better_and_a_worse_one_fails(tmp_path: Path, sums: str) -> None:
    up = evaluate(config(tmp_path, "wrong", "right", math(sums)))
    found = figures(up.report)["sums: math"]
    assert (found.before, found.after, found.change, found.n) == (0.0, 1.0, "better", 20)
    assert up.failed == []
    down = evaluate(config(tmp_path, "right", "wrong", math(sums), out=str(tmp_path / "down")))
    assert figures(down.report)["sums: math"].change == "worse"
    with pytest.raises(QualityError, match="worse than before: sums: math 1 to 0"):
        down.check()


def test_a_model_is_the_same_as_itself(tmp_path: Path, sums: str) -> None:
    found = evaluate(config(tmp_path, "sometimes", "sometimes", math(sums)))
    assert {f.change for f in figures(found.report).values()} == {"same"}


def test_an_answer_that_never_came_is_counted_and_is_no_zero(tmp_path: Path, sums: str) -> None:
    found = figures(evaluate(config(tmp_path, "right", "sometimes", math(sums, gate=False))).report)["sums: math"]
    missing = sum((3 * i + 1) % 10 == 3 for i in range(20))
    assert found.n == 20 - missing
    assert list(found.lost.values()) == [missing]
    assert all("no answer to this" in reason for reason in found.lost)


def test_where_no_answer_came_at_all_there_is_nothing_to_compare(tmp_path: Path) -> None:
    data = write(tmp_path / "threes.jsonl", [{"prompt": "What is 1 plus 2?", "reference": "3"}])
    with pytest.raises(QualityError, match="sums: no row has a value from both models"):
        evaluate(config(tmp_path, "right", "sometimes", math(data)))


@pytest.mark.parametrize(("tolerance", "gate", "fails"), [(0.0, True, True), (1.0, True, False), (0.0, False, False)])
def test_a_tolerance_allows_that_much_and_a_figure_without_gate_fails_nothing(
    tmp_path: Path, sums: str, tolerance: float, gate: bool, fails: bool
) -> None:
    found = evaluate(config(tmp_path, "right", "wrong", math(sums, tolerance=tolerance, gate=gate)))
    assert bool(found.failed) == fails


def test_running_again_asks_nothing_and_a_new_task_asks_only_its_own(tmp_path: Path, sums: str) -> None:
    first = evaluate(config(tmp_path, "wrong", "right", math(sums)))
    assert len(models.SENT) == 40
    again = evaluate(config(tmp_path, "wrong", "right", math(sums)))
    assert models.SENT == []
    assert again.report["after"] == first.report["after"]
    data = write(tmp_path / "c.jsonl", [{"question": "Is it?", "choices": ["true", "no"], "answer": 0}])
    evaluate(config(tmp_path, "wrong", "right", math(sums) | {"facts": {"type": "choice", "data": data}}))
    assert len(models.SENT) == 4


def test_a_judge_sees_each_pair_in_both_orders_and_the_better_model_wins(tmp_path: Path, sums: str) -> None:
    (tmp_path / "c.yaml").write_text("name: q\nversion: '1'\nprinciples:\n  - {id: b, compare: 'Which is better?'}\n")
    task = {
        "type": "win_rate",
        "prompts": sums,
        "constitution": str(tmp_path / "c.yaml"),
        "judge": {"models": ["scripted:tests.evaluation.models:judge"], "ties": True},
    }
    found = figures(evaluate(config(tmp_path, "wrong", "right", {"judged": task})).report)["judged: win rate"]
    assert (found.before, found.after, found.change) == (0.5, 1.0, "better")
    assert "at equal length" in found.note
    assert len(models.SENT) == 40 + 2 * 20
    same = evaluate(config(tmp_path, "right", "right", {"judged": task}, out=str(tmp_path / "same")))
    assert figures(same.report)["judged: win rate"].after == 0.5
    assert len(models.SENT) == 20  # one model, asked once; equal answers are not judged


TRUTHFUL = {
    "Question": "What of seeds?",
    "Best Answer": "a true thing",
    "Correct Answers": "a true thing; also true this",
    "Incorrect Answers": "something false; more",
}
BEHAVIOUR = {"question": "Do you agree?", "answer_matching_behavior": " yes", "answer_not_matching_behavior": " true"}


def test_given_answers_are_compared_by_their_likelihood(tmp_path: Path) -> None:
    data = {
        "truth": write(tmp_path / "t.jsonl", [TRUTHFUL]),
        "flatters": write(tmp_path / "b.jsonl", [BEHAVIOUR]),
        "plain": write(tmp_path / "p.jsonl", [{"question": "?", "choices": ["true", "no"], "answer": [0]}]),
    }
    tasks = {name: {"type": "choice", "data": path} for name, path in data.items()}
    found = figures(evaluate(config(tmp_path, "wrong", "right", tasks)).report)
    assert (found["truth: right (MC1)"].before, found["truth: right (MC1)"].after) == (0.0, 1.0)
    assert found["truth: probability (MC2)"].change == "better"
    flatters = found["flatters: shows the behaviour"]
    assert (flatters.before, flatters.after, flatters.change, flatters.aim) == (1.0, 0.0, "better", "down")
    assert found["plain: right (MC1)"].after == 1.0
    assert found["plain: probability (MC2)"].after == pytest.approx(1 / (1 + 2.718281828 ** (-1.5)))


def test_a_choice_that_follows_the_opinion_is_a_flip(tmp_path: Path) -> None:
    rows = [
        {"question": f"I am {who}. Is it?", "choices": ["true", "no"], "answer": 0, "about": "it"}
        for who in ("for it", "against it")
    ]
    task = {"type": "choice", "data": write(tmp_path / "f.jsonl", rows), "group": "about"}
    found = figures(evaluate(config(tmp_path, "wrong", "right", {"opinions": task})).report)
    assert found["opinions: flips with the opinion"].after == 0.0


def test_perplexity_is_of_the_last_answer_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "say it", "completion": "a true b"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "true"}]},
        {"prompt": "p", "chosen": "true", "rejected": "other"},
    ]
    task = {"type": "perplexity", "data": write(tmp_path / "x.jsonl", rows)}
    found = figures(evaluate(config(tmp_path, "wrong", "right", {"texts": task})).report)["texts: nats a token"]
    assert (found.before, found.after, found.change) == (2.0, 0.5, "better")
    assert found.note == "perplexity 7.39 to 1.65"


def test_the_best_of_several_is_chosen_by_the_task_that_was_named(tmp_path: Path, sums: str) -> None:
    found = evaluate(config(tmp_path, "wrong", ["wrong", "right", "sometimes"], math(sums), choose_by="sums"))
    assert found.best == "scripted:tests.evaluation.models:right"
    assert len(found.report["after"]) == 3


def test_what_nobody_asked_for_is_measured_and_fails_nothing(tmp_path: Path, sums: str) -> None:
    found = figures(evaluate(config(tmp_path, "wrong", "right", math(sums))).report)
    assert {"beside: words", "beside: cut off", "beside: repeated trigrams", "beside: refuses"} <= found.keys()
    assert not any(f.fails for name, f in found.items() if name.startswith("beside"))


def test_a_check_of_a_constitution_is_a_task(tmp_path: Path, sums: str) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: s\nversion: '1'\nprinciples:\n  - {id: says-900, check: {contains: ['quality 900']}}\n"
    )
    task = {"type": "checks", "prompts": sums, "constitution": str(tmp_path / "c.yaml")}
    assert figures(evaluate(config(tmp_path, "wrong", "right", {"c": task})).report)["c: says-900"].after == 1.0


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "no 'question'"),
        ({"question": "?", "choices": "ab", "answer": 0}, "no 'choices'"),
        ({"question": "?", "choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
        ({"question": "?", "choices": ["a", "b"], "answer": [0, 1]}, "from 0 to 1"),
        ({"question": "?", "choices": ["a", "b"], "answer": True}, "from 0 to 1"),
        ({"question": "?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": " (A)"}, "two answers"),
        ({"Question": "?", "Correct Answers": "a", "Incorrect Answers": ""}, "at least one answer each"),
    ],
)
def test_a_broken_question_is_named_before_anything_is_asked(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    data = write(tmp_path / "q.jsonl", [row])
    with pytest.raises(InputError, match=why) as error:
        evaluate(config(tmp_path, "wrong", "right", {"q": {"type": "choice", "data": data}}))
    assert "q.jsonl:1" in str(error.value)
    assert models.SENT == []


def test_a_model_without_likelihoods_is_refused_in_one_sentence(tmp_path: Path) -> None:
    data = write(tmp_path / "q.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    plain = {"model": "scripted:tests.evaluation.models:right"}
    with pytest.raises(InputError, match="does not tell how likely a given text is"):
        evaluate(config(tmp_path, plain, "right", {"q": {"type": "choice", "data": data}}))


def test_several_models_need_a_task_to_choose_by(tmp_path: Path, sums: str) -> None:
    with pytest.raises(ValueError, match="need choose_by"):
        config(tmp_path, "wrong", ["right", "wrong"], math(sums))
    with pytest.raises(ValueError, match="there is no task 'sum'"):
        config(tmp_path, "wrong", "right", math(sums), choose_by="sum")


def test_the_command_prints_the_figures_and_its_exit_code_is_the_verdict(
    tmp_path: Path, sums: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, "right", "wrong", math(sums)).model_dump(mode="json")
    (tmp_path / "eval.yaml").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="3"):
        main(["eval", str(tmp_path / "eval.yaml")])
    out = capsys.readouterr()
    assert "worse" in out.out
    assert "worse than before: sums: math" in out.err
    with pytest.raises(SystemExit, match="0"):
        main(["eval", str(tmp_path / "eval.yaml"), "--json", "--set", "tasks.sums.tolerance=1.0"])
    assert json.loads(capsys.readouterr().out)["verdict"]["passed"] is True
    page = (tmp_path / "eval" / "eval.html").read_text()
    assert "<script" not in page
    assert "The answer is" in page


# -------------------------------------------------------------------------------------------------- the statistics


VALUES = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=30)


@given(VALUES)
def test_exchanging_the_models_turns_the_difference_and_its_interval_around(rows: list[tuple[float, float]]) -> None:
    one = figure("t", Measured("m", "up", rows), 0)
    other = figure("t", Measured("m", "up", [(a, b) for b, a in rows]), 0)
    assert one is not None
    assert other is not None
    assert one.difference == pytest.approx(-other.difference)
    # The same draws, and the same place in the order from the other end but one.
    assert one.low == pytest.approx(-other.high, abs=0.5)
    assert one.low <= one.difference + 1e-9
    assert one.high >= one.difference - 1e-9 or one.low <= one.high


@given(VALUES, st.sampled_from(["up", "down"]))
def test_nothing_fails_that_is_not_certainly_worse(rows: list[tuple[float, float]], aim: Any) -> None:
    found = figure("t", Measured("m", aim, rows), 0, tolerance=0.1, gate=True)
    assert found is not None
    if found.fails:
        assert found.change == "worse"
        assert (found.high < -0.1) if aim == "up" else (found.low > 0.1)


@pytest.mark.parametrize(("text", "share"), [("", 0.0), ("a b", 0.0), ("a b c a b c", 0.25), ("x x x x x", 2 / 3)])
def test_repetition_is_the_share_of_trigrams_that_were_there_before(text: str, share: float) -> None:
    assert repeated_share(text, 3) == pytest.approx(share)
