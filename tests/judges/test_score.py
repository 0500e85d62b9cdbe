"""The score judge: the expectation over grades, and what two scores say."""

from math import exp
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.estimate import estimate
from rlaif.judges import Judge, judge_comparisons, make_judge
from rlaif.judges.pointwise import Score, bradley_terry, compare_scores
from rlaif.types import ChatReply, ChatRequest, Comparison, Unjudged, Verdict
from tests import fakes, running
from tests.judges import modes
from tests.judges.test_pairwise import PRINCIPLE, comparison
from tests.running import judgements, quality, rows, run

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]


def judge(script: Script, labels: Any = "text", **settings: Any) -> Judge:
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], "type": "score", **settings})
    return make_judge(ScriptedClient(script), config, labels)


async def verdict(made: Judge, c: Comparison | None = None) -> Any:
    (found,) = await made.judge_all([c or comparison()], [PRINCIPLE], 0)
    assert found.order is None
    return found.outcome


def grading(p: dict[str, dict[str, float]]) -> Script:
    """Grades by the response's text."""
    return lambda request: modes.said(next(g for text, g in p.items() if f"\n{text}\n" in request.messages[1].content))


async def test_the_score_is_the_expectation_over_the_grades_on_a_scale_from_1_to_10() -> None:
    made = judge(grading({"good": {"9": 0.5, "7": 0.25, "!": 0.25}, "bad": {"0": 0.2, "1": 0.2}}), "logprob")
    found = await verdict(made)
    assert found.scores == (pytest.approx((2 * 10 + 8) / 3), pytest.approx(1.5))
    assert found.choice == "a"
    assert found.p_a == pytest.approx(1 / (1 + exp(1.5 - 28 / 3)))
    assert found.method == "logprob"
    assert found.label_mass == pytest.approx(0.4)


async def test_from_text_the_score_is_the_grade_named() -> None:
    def script(request: ChatRequest) -> str:
        return modes.grades(request)[7 if "\ngood\n" in request.messages[1].content else 6]

    found = await verdict(judge(script))
    assert (found.scores, found.choice, found.method) == ((8, 7), "a", "text")
    assert found.p_a == pytest.approx(1 / (1 + exp(-1)))


async def test_equal_grades_are_a_tie() -> None:
    found = await verdict(judge(lambda request: modes.grades(request)[4]))
    assert (found.choice, found.p_a, found.scores) == ("tie", 0.5, (5, 5))


@pytest.mark.parametrize("reply", ["7", "10", "K7 K8", "K10", "7/10", "Verdict: 8", "score K3", ""])
async def test_what_is_no_grade_alone_is_unjudged(reply: str) -> None:
    assert isinstance(await verdict(judge(lambda request: reply)), Unjudged)


@pytest.mark.parametrize("said", ["K9", "Verdict: K9", '{"verdict": "K9"}', "**K9**", "KK9", "Q9 and K9"])
@pytest.mark.parametrize("settings", [{}, {"rationale": True}, {"labels": "json"}])
async def test_a_judge_that_repeats_a_response_has_given_no_grade(said: str, settings: dict[str, Any]) -> None:
    made = judge(lambda request: said, **({"labels": "text"} | settings))
    assert isinstance(await verdict(made, comparison(said, "bad")), Unjudged)


async def test_reasons_come_before_the_grade_and_both_are_kept() -> None:
    def script(request: ChatRequest) -> str:
        good = "\ngood\n" in request.messages[1].content
        return f"{'Fine' if good else 'Poor'}.\nVerdict: {modes.grades(request)[8 if good else 2]}"

    found = await verdict(judge(script, rationale=True))
    assert found.rationale == "9: Fine.\n\n3: Poor."
    other = await verdict(judge(script, rationale=True), comparison().swap())
    assert other == found.swap()


async def test_log_probs_after_reasons_are_asked_for_in_a_turn_of_their_own() -> None:
    def script(request: ChatRequest) -> str | ChatReply:
        if request.top_logprobs is None:
            return "Because."
        assert request.messages[-1].content.startswith("Now answer with one grade and nothing else: 0 or 1")
        return modes.said({"9": 0.9})

    found = await verdict(judge(script, "logprob", rationale=True))
    assert found.rationale == "10: Because.\n\n10: Because."


async def test_each_completion_is_asked_about_once() -> None:
    made = judge(lambda request: modes.grades(request)[4])
    a, b = comparison().a, comparison().b
    c = a.model_copy(update={"id": "c-2", "text": "third"})
    all_pairs = [comparison().model_copy(update={"a": x, "b": y}) for x, y in ((a, b), (a, c), (b, c))]
    found = await made.judge_all(all_pairs, [PRINCIPLE], 0)
    assert len(found) == 3
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 3
    assert all(len(j.request_keys) == 2 for j in found)


async def test_one_missing_score_leaves_its_comparisons_undecided_and_no_other() -> None:
    def script(request: ChatRequest) -> str:
        return "?" if "\nbad\n" in request.messages[1].content else modes.grades(request)[4]

    a, b = comparison().a, comparison().b
    c = a.model_copy(update={"id": "c-2", "text": "third"})
    all_pairs = [comparison().model_copy(update={"a": x, "b": y}) for x, y in ((a, b), (a, c), (b, c))]
    found = await judge(script).judge_all(all_pairs, [PRINCIPLE], 0)
    assert [isinstance(j.outcome, Unjudged) for j in found] == [True, False, True]


scores = st.builds(Score, st.floats(-1e6, 1e6), st.just("logprob"), st.none() | st.floats(0, 1), st.none() | st.text())


@given(scores, scores)
def test_swapping_the_completions_swaps_the_verdict(a: Score, b: Score) -> None:
    one, other = compare_scores(a, b), compare_scores(b, a)
    assert one == other.swap()
    assert isinstance(one, Verdict)
    assert one.swap().swap() == one


@given(st.floats(allow_nan=False))
def test_the_two_sides_of_a_difference_add_up_to_one(difference: float) -> None:
    assert bradley_terry(difference) + bradley_terry(-difference) == 1.0


@pytest.mark.parametrize("logprobs", [True, False])
@pytest.mark.parametrize("script", ["score", "score_with_rubbish"])
def test_every_label_of_a_judge_with_known_truth_comes_out_right(tmp_path: Path, script: str, logprobs: bool) -> None:
    settings = {
        "type": "score",
        "models": [{"model": f"scripted:tests.judges.modes:{script}", "logprobs": logprobs}],
        "ties": False,
    }
    other: dict[str, Any] = {"judge_settings": settings, "max_unjudged": 1.0, "pairing": {"strategy": "all"}}
    running.write_prompts(tmp_path, PROMPTS)
    planned = estimate(running.config(tmp_path, **other))
    run(tmp_path, **other)
    assert sum(s.calls for s in planned.stages) == len(fakes.SENT) == 20 * (4 + 4)
    pairs = rows(tmp_path, "pairs")
    assert len(pairs) > 70
    for pair in pairs:
        assert quality(pair["chosen"][0]["content"]) > quality(pair["rejected"][0]["content"])
    unjudged = [j for j in judgements(tmp_path) if isinstance(j.outcome, Unjudged)]
    assert bool(unjudged) == script.endswith("rubbish")
    assert estimate(running.config(tmp_path, **other)).report()["answered"] == 20 * 8


async def test_a_principle_is_drawn_for_the_prompt_so_that_scores_compare() -> None:
    from rlaif.constitution import constitution_from_text
    from tests.judges.test_pairwise import CONSTITUTION

    a, b = comparison().a, comparison().b
    c = a.model_copy(update={"id": "c-2", "text": "third"})
    all_pairs = [comparison().model_copy(update={"a": x, "b": y}) for x, y in ((a, b), (a, c), (b, c))]
    made = judge(lambda request: modes.grades(request)[4])
    for seed in range(5):
        found = await judge_comparisons(all_pairs, constitution_from_text(CONSTITUTION, "c"), [made], seed)
        assert len({j.principles for j in found}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "score", "orders": "one"}, "orders is for type: pairwise"),
        ({"type": "score", "ties": True}, "ties is for type: pairwise"),
        ({"clamp": True}, "set rationale: true"),
        ({"clamp": True, "rationale": True, "labels": "text"}, "labels: text gives none"),
        ({"both_bad": True}, "set ties: true"),
        ({"panel": "veto"}, "at least 2 different models"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})


@pytest.mark.slow
async def test_the_embedded_model_gives_scores_with_all_grades_in_view() -> None:
    from rlaif.clients.local import LocalClient
    from rlaif.config.models import ModelConfig

    client = LocalClient(ModelConfig(model="local:smollm2"))
    config = JudgeConfig.model_validate({"models": ["local:smollm2"], "type": "score"})
    made = make_judge(client, config, "logprob")
    try:
        found = await verdict(made, comparison("Because the sky scatters blue light.", "asdf asdf asdf"))
    finally:
        await client.aclose()
    assert isinstance(found, Verdict)
    assert found.method == "logprob"
    assert found.scores is not None
    assert all(1 <= s <= 10 for s in found.scores)
