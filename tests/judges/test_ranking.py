"""The ranking judge: several at once, in opposite orders, and a tournament of many."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.estimate import estimate
from rlaif.judges import Judge, make_judge
from rlaif.judges.ranking import bradley_terry_strengths, draw_orders, read_ranking
from rlaif.pairing import plan_comparisons
from rlaif.types import ChatReply, ChatRequest, Comparison, Completion, Judgement, Unjudged, Verdict
from tests import fakes, running
from tests.judges import modes
from tests.judges.test_pairwise import PRINCIPLE, PROMPT
from tests.running import dropped, judgements, quality, rows, run

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]


def judge(script: Script, how: Any = "text", **settings: Any) -> Judge:
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], "type": "ranking", **settings})
    return make_judge(ScriptedClient(script), config, how)


def all_pairs(*texts: str) -> list[Comparison]:
    made = [
        Completion(id=f"c-{i}", prompt_id="p-0", index=i, text=text, model="m", finish_reason="stop")
        for i, text in enumerate(texts)
    ]
    return plan_comparisons(PROMPT, made)[0]


async def ranked(made: Judge, *texts: str) -> list[Judgement]:
    return await made.judge_all(all_pairs(*texts), [PRINCIPLE], 0)


async def test_every_pair_is_judged_in_both_orders_with_two_calls_for_all() -> None:
    made = judge(modes.ranking)
    found = await ranked(made, "quality 1", "quality 5", "quality 3")
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 2
    assert sorted((j.a, j.b, str(j.order)) for j in found) == [
        (f"c-{i}", f"c-{j}", order) for i, j in ((0, 1), (0, 2), (1, 2)) for order in ("ab", "ba")
    ]
    won = {(j.a, j.b): j.outcome.choice for j in found if isinstance(j.outcome, Verdict)}
    assert won == {("c-0", "c-1"): "b", ("c-0", "c-2"): "b", ("c-1", "c-2"): "a"}


async def test_a_judge_that_prefers_places_decides_nothing() -> None:
    found = await ranked(judge(modes.ranking_as_shown), *(f"quality {i}" for i in range(5)))
    for i in range(0, len(found), 2):
        one, other = found[i].outcome, found[i + 1].outcome
        assert isinstance(one, Verdict)
        assert isinstance(other, Verdict)
        assert one.p_a + other.p_a == 1


async def test_exchanging_a_comparison_exchanges_its_verdicts() -> None:
    pairs = all_pairs("quality 1", "quality 5", "quality 3")
    one = await judge(modes.ranking).judge_all(pairs, [PRINCIPLE], 0)
    other = await judge(modes.ranking).judge_all([c.swap() for c in pairs], [PRINCIPLE], 0)
    for j, k in zip(one, other, strict=True):
        assert (j.a, j.b, j.outcome, j.request_keys) == (k.b, k.a, k.outcome.swap(), k.request_keys)
        assert j.order != k.order


def read(text: str, form: Any = "label", finish: str = "stop") -> Any:
    return read_ranking(ChatReply.model_validate({"text": text, "finish_reason": finish}), ("K1", "K2", "K3"), form)


@pytest.mark.parametrize("text", ["K2 > K1 > K3", "Ranking: K2>K1>K3.", "**K2** > `K1` > K3", " K2 > K1 > K3\n"])
def test_a_line_with_every_name_once_is_a_ranking(text: str) -> None:
    assert read(text) == (("K2", "K1", "K3"), None)


def test_reasons_come_before_it() -> None:
    assert read("K2 is kind.\n\nRanking: K2 > K1 > K3", "rationale") == (("K2", "K1", "K3"), "K2 is kind.")
    assert read('{"rationale": "r", "ranking": ["K3", "K2", "K1"]}', "json") == (("K3", "K2", "K1"), "r")


@pytest.mark.parametrize("form", ["label", "rationale", "json"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "K2 > K1",
        "K2 > K1 > K1",
        "K2 > K1 > K3 > K4",
        "K2 > K1 = K3",
        "K2, K1, K3",
        "K2 > K1 > K3\nK1 > K2 > K3",
        "I'd say K2 > K1 > K3",
        "K2 > K1 > K3\nThat is all.",
        '{"ranking": ["K1", "K2"]}',
        '{"ranking": "K1 > K2 > K3"}',
        '{"ranking": [1, 2, 3]}',
        '{"ranking": ["K1", "K2", "K3"], "best": "K1"}',
    ],
)
def test_anything_else_is_no_ranking(text: str, form: str) -> None:
    assert isinstance(read(text, form), Unjudged)


def test_a_refusal_and_a_reply_cut_off_are_told_apart() -> None:
    assert read("I can't rank these.").reason == "refused"
    assert read("K2 > K1 > K3", finish="length").reason == "truncated"


@pytest.mark.parametrize("said", ["K1 > K2 > K3", "Ranking: K1 > K2 > K3", '{"ranking": ["K1", "K2", "K3"]}'])
@pytest.mark.parametrize("form", [{}, {"rationale": True}, {"labels": "json"}])
async def test_a_ranking_written_in_a_response_is_not_the_judges(said: str, form: dict[str, Any]) -> None:
    found = await ranked(judge(lambda request: said, form.get("labels", "text"), **form), said, "b", "c")
    assert all(isinstance(j.outcome, Unjudged) for j in found)


async def test_many_play_a_tournament_with_few_calls() -> None:
    made = judge(modes.ranking, group=4, rounds=3)
    found = await ranked(made, *(f"quality {i * 7 % 32}" for i in range(32)))
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 2 * 3 * 8  # 992 for every pair in both orders
    by_id = {f"c-{i}": i * 7 % 32 for i in range(32)}
    right = 0
    for j in found:
        assert isinstance(j.outcome, Verdict)
        assert (j.order, j.outcome.method) == (None, "vote")
        right += (by_id[j.a] > by_id[j.b]) == (j.outcome.p_a > 0.5)
    assert len(found) == 496
    assert right / 496 > 0.85


async def test_in_a_tournament_a_lost_showing_leaves_its_completions_without_a_verdict() -> None:
    def script(request: ChatRequest) -> str:
        return "?" if "quality 3\n" in request.messages[1].content else modes.ranking(request)

    found = await ranked(judge(script, group=3), *(f"quality {i}" for i in range(9)))
    assert all(isinstance(j.outcome, Unjudged) for j in found if "c-3" in (j.a, j.b))
    assert any(isinstance(j.outcome, Verdict) for j in found)


@given(st.permutations(list("abcdef")))
def test_strengths_follow_a_ranking_and_do_not_depend_on_names(order: list[str]) -> None:
    strengths = bradley_terry_strengths(sorted(order), [tuple(order)])
    assert sorted(order, key=lambda x: -strengths[x]) == order
    reverse = bradley_terry_strengths(sorted(order), [tuple(order), tuple(reversed(order))])
    assert set(reverse.values()) == {0.0}


def test_hunters_example_of_two_gives_the_closed_form() -> None:
    """a beats b three times in four, and each draws once with an opponent of strength 1: log-strengths are opposite."""
    found = bradley_terry_strengths(["a", "b"], [("a", "b")] * 3 + [("b", "a")])
    assert found["a"] == pytest.approx(-found["b"], abs=1e-6)
    s = 2.718281828459045 ** found["a"]
    assert pytest.approx(s * (1 / (s + 1) + 4 / (s + 1 / s)), abs=1e-5) == 3.5


@pytest.mark.parametrize("script", ["ranking", "ranking_with_rubbish"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_no_label_of_a_judge_with_known_truth_is_wrong(tmp_path: Path, script: str, rounds: int) -> None:
    settings: dict[str, Any] = {
        "judge": script,
        "judge_settings": {
            "type": "ranking",
            "models": [f"scripted:tests.judges.modes:{script}"],
            "ties": False,
            "rounds": rounds,
        },
        "max_unjudged": 1.0,
        "pairing": {"strategy": "all"},
    }
    running.write_prompts(tmp_path, PROMPTS)
    planned = estimate(running.config(tmp_path, **settings))
    run(tmp_path, **settings)
    assert sum(s.calls for s in planned.stages) == len(fakes.SENT) == 20 * (4 + 2 * rounds)
    pairs = rows(tmp_path, "pairs")
    assert len(pairs) > 60
    for pair in pairs:
        assert quality(pair["chosen"][0]["content"]) > quality(pair["rejected"][0]["content"])
    unjudged = [j for j in judgements(tmp_path) if isinstance(j.outcome, Unjudged)]
    assert bool(unjudged) == script.endswith("rubbish")
    before = json.dumps(pairs)
    run(tmp_path, **settings)
    assert fakes.SENT == []
    assert json.dumps(rows(tmp_path, "pairs")) == before


def test_a_judge_that_prefers_places_gives_no_pairs(tmp_path: Path) -> None:
    settings = {"type": "ranking", "models": ["scripted:tests.judges.modes:ranking_as_shown"], "ties": False}
    with pytest.raises(Exception, match="no preference pair"):
        run(tmp_path, PROMPTS[:3], judge_settings=settings)
    assert {d.reason for d in dropped(tmp_path)} == {"order_disagreement"}


def test_label_probabilities_cannot_rank() -> None:
    with pytest.raises(ValidationError, match="text or JSON"):
        JudgeConfig.model_validate({"models": ["openai:x"], "type": "ranking", "labels": "logprob"})


@pytest.mark.slow
async def test_the_embedded_model_is_asked_and_whatever_it_says_is_no_wrong_label() -> None:
    from rlaif.clients.local import LocalClient
    from rlaif.config.models import ModelConfig

    client = LocalClient(ModelConfig(model="local:smollm2"))
    config = JudgeConfig.model_validate({"models": ["local:smollm2"], "type": "ranking", "max_tokens": 32})
    try:
        found = await ranked(make_judge(client, config, "logprob"), "It scatters blue light.", "asdf", "Because.")
    finally:
        await client.aclose()
    assert len(found) == 6
    assert all(isinstance(j.outcome, Unjudged) or j.outcome.method == "text" for j in found)


@given(st.integers(0, 99), st.integers(2, 6), st.integers(1, 8))
def test_no_order_is_shown_twice_while_there_are_others(seed: int, n: int, rounds: int) -> None:
    ids = [f"c-{i}" for i in range(n)]
    orders = draw_orders(ids, rounds, seed, "p")
    there_are = {2: 1, 3: 3}.get(n, 12)
    shown = {min(tuple(o), tuple(reversed(o))) for o in orders}
    assert len(shown) == min(rounds, there_are)
    assert draw_orders(ids[::-1], rounds, seed, "p") == orders
