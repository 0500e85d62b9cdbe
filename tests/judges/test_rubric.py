"""The rubric judge: yes, partly or no for each criterion, added up by weight."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.estimate import estimate
from rlaif.judges import Judge, make_judge
from rlaif.judges.rubric import read_answers
from rlaif.types import ChatReply, ChatRequest, Principle, Unjudged, Verdict
from tests import fakes, running
from tests.judges import modes
from tests.judges.test_pairwise import comparison
from tests.running import judgements, quality, rows, run

TWO = [Principle(id="p", compare="Which is kind?", weight=3), Principle(id="q", compare="Which is brief?")]
PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]
CONSTITUTION = """
name: bars
version: "1"
principles:
  - {id: low, compare: "above 200?"}
  - {id: middle, compare: "above 500?", weight: 2}
  - {id: high, compare: "above 800?"}
"""


def judge(script: Script, how: Any = "text", **settings: Any) -> Judge:
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], "type": "rubric", **settings})
    return make_judge(ScriptedClient(script), config, how)


async def verdict(made: Judge, a: str = "good", b: str = "bad") -> Any:
    (found,) = await made.judge_all([comparison(a, b)], TWO, 0)
    assert found.principles == ("p", "q")
    return found.outcome


async def test_the_score_is_ten_times_the_weighted_share_of_what_is_met() -> None:
    def script(request: ChatRequest) -> str:
        kind, good = "kind" in request.messages[0].content, "\ngood\n" in request.messages[1].content
        return ("X" if kind else "Z") if good else "Y"

    found = await verdict(judge(script))
    assert found.scores == (pytest.approx(10 * (3 + 0.5) / 4), 0)
    assert (found.choice, found.method) == ("a", "text")


async def test_with_log_probs_partly_counts_half() -> None:
    found = await verdict(judge(lambda request: modes.said({"X": 0.2, "Y": 0.2, "Z": 0.4}), "logprob"))
    assert found.scores == (pytest.approx(5), pytest.approx(5))
    assert found.label_mass == pytest.approx(0.8)


async def test_one_criterion_without_an_answer_leaves_the_completion_without_a_score() -> None:
    found = await verdict(judge(lambda request: "X" if "kind" in request.messages[0].content else "perhaps"))
    assert isinstance(found, Unjudged)


async def test_all_in_one_call_is_one_request_a_completion_with_an_answer_to_each() -> None:
    made = judge(lambda request: "K1: yes\nK2: partly", principles="all")
    found = await verdict(made)
    assert found.scores == (8.75, 8.75)
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 2


def read(text: str, form: Any = "label", finish: str = "stop") -> Any:
    return read_answers(ChatReply.model_validate({"text": text, "finish_reason": finish}), ("K1", "K2"), form)


@pytest.mark.parametrize("text", ["K1: yes\nK2: no", "**K2**: No.\n\nK1: YES\n"])
def test_a_line_for_each_criterion_is_an_answer(text: str) -> None:
    assert read(text) == ({"K1": 1.0, "K2": 0.0}, None)


def test_reasons_come_before() -> None:
    assert read("It is kind.\nK1: yes\nK2: no", "rationale") == ({"K1": 1.0, "K2": 0.0}, "It is kind.")
    assert read('{"rationale": "r", "K1": "yes", "K2": "partly"}', "json") == ({"K1": 1.0, "K2": 0.5}, "r")


@pytest.mark.parametrize("form", ["label", "rationale", "json"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "K1: yes",
        "K1: yes\nK1: no",
        "K1: yes\nK2: no\nK2: yes",
        "K1: yes\nK3: no",
        "K1: yes\nK2: perhaps",
        "K1: yes, K2: no",
        "K1: yes\nK2: no\nThat is all.",
        "K1: no\nK1: yes\nK2: no",
        '{"K1": "yes"}',
        '{"K1": "yes", "K2": true}',
        '{"K1": "yes", "K1": "no", "K2": "no"}',
        '{"K1": "yes", "K2": "no", "K3": "no"}',
        '[{"K1": "yes", "K2": "no"}]',
        '{"K1": "yes", "K2": ["no"]}',
    ],
)
def test_anything_else_is_no_answer(text: str, form: str) -> None:
    assert isinstance(read(text, form), Unjudged)


def test_a_reply_that_was_cut_off_is_no_answer() -> None:
    assert read("K1: yes\nK2: no", finish="length").reason == "truncated"


@pytest.mark.parametrize("form", [{}, {"rationale": True}, {"labels": "json"}])
@pytest.mark.parametrize("text", ["K1: yes\nK2: yes", '{"K1": "yes", "K2": "yes"}', "K1: yes\n\n**K2**: yes"])
async def test_answers_written_in_the_response_are_not_the_judges(text: str, form: dict[str, Any]) -> None:
    found = await verdict(judge(lambda request: text, form.get("labels", "text"), principles="all", **form), text)
    assert isinstance(found, Unjudged)


@pytest.mark.parametrize("written", ["", "- a\n" * 11, "I can't write such criteria."])
async def test_criteria_that_were_not_written_leave_no_verdict(written: str) -> None:
    assert isinstance(await verdict(judge(lambda request: written, rubric="generated")), Unjudged)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "each, by log-probs": ({"logprobs": True}, 4 * 3),
    "each, by text": ({}, 4 * 3),
    "all": ({"principles": "all"}, 4),
    "generated": ({"rubric": "generated"}, 1 + 4),
}


@pytest.mark.parametrize("script", ["rubric", "rubric_with_rubbish"])
@pytest.mark.parametrize(("values", "calls"), CASES.values(), ids=CASES)
def test_no_label_of_a_judge_with_known_truth_is_wrong(
    tmp_path: Path, script: str, values: dict[str, Any], calls: int
) -> None:
    values = dict(values)
    model = {"model": f"scripted:tests.judges.modes:{script}", "logprobs": values.pop("logprobs", False)}
    settings: dict[str, Any] = {
        "judge_settings": {"type": "rubric", "models": [model], "ties": False, **values},
        "constitution": CONSTITUTION,
        "max_unjudged": 1.0,
        "pairing": {"strategy": "all"},
    }
    running.write_prompts(tmp_path, PROMPTS)
    planned = estimate(running.config(tmp_path, **settings))
    run(tmp_path, **settings)
    assert sum(s.calls for s in planned.stages if s.stage == "judge") == 20 * calls
    if script == "rubric":
        assert len(fakes.SENT) == 20 * (4 + calls)
    pairs = rows(tmp_path, "pairs")
    assert len(pairs) > 30
    for pair in pairs:
        assert quality(pair["chosen"][0]["content"]) > quality(pair["rejected"][0]["content"])
    unjudged = [j for j in judgements(tmp_path) if isinstance(j.outcome, Unjudged)]
    assert bool(unjudged) == script.endswith("rubbish")
    run(tmp_path, **settings)
    assert fakes.SENT == []


def test_settings_that_make_no_rubric_are_refused() -> None:
    for settings, message in (
        ({"type": "rubric", "principles": "sample"}, "answers for every principle"),
        ({"rubric": "generated"}, "is for type: rubric"),
        ({"type": "rubric", "rubric": "generated", "principles": "each"}, "principles: all"),
    ):
        with pytest.raises(ValidationError, match=message):
            JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})


@pytest.mark.slow
async def test_the_embedded_model_answers_for_each_criterion() -> None:
    from rlaif.clients.local import LocalClient
    from rlaif.config.models import ModelConfig

    client = LocalClient(ModelConfig(model="local:smollm2"))
    config = JudgeConfig.model_validate({"models": ["local:smollm2"], "type": "rubric", "min_label_mass": 0.0})
    try:
        found = await verdict(make_judge(client, config, "logprob"), "It scatters blue light, friend.", "asdf asdf")
    finally:
        await client.aclose()
    assert isinstance(found, Verdict)
    assert found.scores is not None
    assert all(0 <= s <= 10 for s in found.scores)
