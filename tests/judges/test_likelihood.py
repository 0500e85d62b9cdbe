"""The likelihood judge: what two probabilities of a text say, and what is never made a number."""

import json
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.clients.base import Capabilities
from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.constitution import constitution_from_text, lint
from rlaif.engine.budget import token_bounds
from rlaif.errors import InputError, RequestError
from rlaif.estimate import estimate
from rlaif.hashing import digest
from rlaif.judges import Judge, judge_comparisons, make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.types import ChatReply, ChatRequest, Message, Principle, TokenLogprobs, Unjudged, Verdict
from tests import fakes, running
from tests.judges.test_pairwise import PRINCIPLE, comparison
from tests.running import judgements, quality, rows, run

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]
SCORING = Capabilities(logprobs=True, scores_text=True)
REVERSED = "do the opposite of what the question asks for"
TWO_PRINCIPLES = """
name: x
principles:
- {id: kind, compare: "Kinder?", opposite: "Crueller?"}
- {id: honest, compare: "Truer?"}
"""
TWO = Principle(id="kind", compare="Which is kinder?", opposite="Which is crueller?")


def judge(script: Script, **settings: Any) -> Judge:
    settings = {"length": "sum", "scale": 1, **settings}
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], "type": "likelihood", **settings})
    return make_judge(ScriptedClient(script, capabilities=SCORING), config, "logprob")


def scored(*logprobs: float) -> ChatReply:
    tokens = tuple(TokenLogprobs(token="t", logprob=x, top=()) for x in logprobs)
    return ChatReply(text="", finish_reason="stop", logprobs=tokens)


def is_reversed(request: ChatRequest) -> bool:
    return REVERSED in request.messages[0].content


def saying(table: dict[tuple[str | None, bool], tuple[float, ...]]) -> Script:
    return lambda request: scored(*table[request.continuation, is_reversed(request)])


TABLE: dict[tuple[str | None, bool], tuple[float, ...]] = {
    ("good", False): (-1.0, -2.0),
    ("good", True): (-2.0, -3.0),
    ("bad", False): (-4.0,),
    ("bad", True): (-3.5,),
}


async def verdict(made: Judge, principle: Principle = PRINCIPLE, *, swapped: bool = False) -> Any:
    (found,) = await made.judge_all([comparison().swap() if swapped else comparison()], [principle], 0)
    assert found.order is None
    return found.outcome


async def test_a_contrast_is_the_log_probability_under_the_principle_less_that_under_its_opposite() -> None:
    found = await verdict(judge(saying(TABLE)))
    assert found.scores == (2.0, -0.5)
    assert (found.choice, found.method, found.label_mass) == ("a", "likelihood", None)
    assert found.p_a == pytest.approx(1 / (1 + exp(-2.5)))


async def test_the_mean_is_of_the_tokens_and_the_scale_divides_the_contrast() -> None:
    assert (await verdict(judge(saying(TABLE), length="mean"))).scores == (1.0, -0.5)
    found = await verdict(judge(saying(TABLE), scale=10))
    assert found.scores == (0.2, -0.05)
    assert found.p_a == pytest.approx(1 / (1 + exp(-0.25)))


def test_the_scale_fits_the_length_unless_it_is_given() -> None:
    def scale(**settings: Any) -> float:
        return JudgeConfig.model_validate({"models": ["scripted:m:o"], "type": "likelihood", **settings}).scale

    assert (scale(), scale(length="mean"), scale(length="sum"), scale(length="sum", scale=3)) == (0.2, 0.2, 20, 3)


async def test_the_model_gets_the_principle_the_prompt_and_the_response_and_writes_nothing() -> None:
    made = judge(saying(TABLE))
    await verdict(made)
    assert isinstance(made.client, ScriptedClient)
    assert [(r.continuation, is_reversed(r)) for r in made.client.requests] == list(TABLE)
    for request in made.client.requests:
        assert [m.role for m in request.messages] == ["system", "user"]
        assert str(PRINCIPLE.compare) in request.messages[0].content
        assert request.messages[1] == comparison().prompt.messages[-1]
        assert (request.max_tokens, request.temperature, request.top_logprobs, request.labels) == (1, 0.0, None, ())


async def test_the_turns_before_and_a_system_message_of_the_prompt_stay() -> None:
    turns = [("system", "You are Ada."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "How are you?")]
    prompt = comparison().prompt.model_copy(
        update={"messages": tuple(Message.model_validate({"role": r, "content": c}) for r, c in turns)}
    )
    made = judge(saying(TABLE))
    await made.judge_all([comparison().model_copy(update={"prompt": prompt})], [PRINCIPLE], 0)
    assert isinstance(made.client, ScriptedClient)
    for request in made.client.requests:
        assert request.messages[1:] == prompt.messages[1:]
        assert request.messages[0].content.endswith("You are Ada.")
        assert str(PRINCIPLE.compare) in request.messages[0].content


async def test_a_principle_with_an_opposite_is_set_against_that() -> None:
    made = judge(lambda request: scored(-1.0 if "kinder" in request.messages[0].content else -2.0))
    found = await verdict(made, TWO)
    assert found.scores == (1.0, 1.0)
    assert found.choice == "tie"
    assert isinstance(made.client, ScriptedClient)
    systems = {r.messages[0].content for r in made.client.requests}
    assert len(systems) == 2
    assert not any(REVERSED in text for text in systems)
    kind, cruel = sorted(systems, key=lambda text: "crueller" in text)
    assert cruel == kind.replace("kinder", "crueller")


async def test_each_response_is_scored_twice_however_many_it_is_compared_with() -> None:
    made = judge(lambda request: scored(-1.0))
    a, b = comparison().a, comparison().b
    c = a.model_copy(update={"id": "c-2", "text": "third"})
    all_pairs = [comparison().model_copy(update={"a": x, "b": y}) for x, y in ((a, b), (a, c), (b, c))]
    found = await made.judge_all(all_pairs, [PRINCIPLE], 0)
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 6
    assert [len(set(j.request_keys)) for j in found] == [4, 4, 4]


@pytest.mark.parametrize(("how", "sent", "said"), [("all", 4, 1), ("each", 8, 2), ("sample", 4, 1)])
async def test_principles_are_drawn_put_together_or_asked_about_one_by_one(how: str, sent: int, said: int) -> None:
    constitution = constitution_from_text(TWO_PRINCIPLES, "c")
    made = judge(lambda request: scored(-1.0), principles=how)
    found = await judge_comparisons([comparison()], constitution, [made], 0)
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == sent
    assert len(found) == said
    if how == "all":
        first, second = sorted({r.messages[0].content for r in made.client.requests}, key=lambda t: "Crueller" in t)
        assert "Kinder?" in first
        assert "Truer?" in first
        assert "Crueller?" in second
        assert "Truer?" in second
        assert REVERSED in second


@pytest.mark.parametrize(
    "reply",
    [
        ChatReply(text="", finish_reason="stop"),
        ChatReply(text="", finish_reason="stop", logprobs=()),
        scored(-1.0).model_copy(update={"finish_reason": "length"}),
        scored(-1.0).model_copy(update={"finish_reason": "refusal"}),
        RequestError("too long", kind="context_length"),
    ],
)
@pytest.mark.parametrize("side", [False, True])
async def test_what_was_not_scored_to_its_end_is_unjudged(reply: ChatReply | RequestError, side: bool) -> None:
    def script(request: ChatRequest) -> ChatReply:
        if request.continuation == "bad" and is_reversed(request) == side:
            if isinstance(reply, RequestError):
                raise reply
            return reply
        return scored(-1.0)

    found = await verdict(judge(script))
    assert isinstance(found, Unjudged)
    assert found.detail.startswith("b: ")


def test_a_log_probability_that_is_no_number_cannot_be_a_reply() -> None:
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ValidationError):
            scored(bad)


numbers = st.lists(st.floats(-1e3, 0), min_size=1, max_size=5).map(tuple)


@settings(max_examples=50)
@given(st.tuples(numbers, numbers, numbers, numbers), st.sampled_from(["sum", "mean"]), st.floats(1e-3, 1e3))
async def test_swapping_the_responses_swaps_the_verdict_exactly(
    values: tuple[tuple[float, ...], ...], length: str, scale: float
) -> None:
    made = judge(saying(dict(zip(TABLE, values, strict=True))), length=length, scale=scale)
    one, other = await verdict(made), await verdict(made, swapped=True)
    assert isinstance(one, Verdict)
    assert other.p_a == 1 - one.p_a
    assert other == one.swap()


@pytest.mark.parametrize("logprobs", [None, False])
def test_a_model_that_scores_no_text_is_refused_before_anything_is_sent(tmp_path: Path, logprobs: bool | None) -> None:
    settings = {
        "type": "likelihood",
        "ties": False,
        "models": [{"model": "scripted:tests.judges.test_likelihood:known", "logprobs": logprobs}],
    }
    running.write_prompts(tmp_path, PROMPTS)
    for what in (run, lambda folder, **other: estimate(running.config(folder, **other))):
        with pytest.raises(
            InputError, match=r"judge\.type likelihood needs the log-probs of a given text, and scripted"
        ):
            what(tmp_path, judge_settings=settings)
        assert not fakes.SENT


@pytest.mark.parametrize("model", ["openai:gpt-4.1-mini", "anthropic:claude-haiku-4-5"])
async def test_apis_are_refused_and_none_is_asked(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.clients import open_transport

    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobody")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-nobody")
    config = JudgeConfig.model_validate({"models": [model], "type": "likelihood"})
    client = open_transport(config.models[0])
    labels = await resolve_labels(client, config)
    with pytest.raises(InputError, match=f"and {model} does not give them; use a local: or vllm: model"):
        make_judge(client, config, labels)
    with pytest.raises(RequestError, match="gives no log-probs of a given text"):
        await client.complete(
            ChatRequest(messages=(Message(role="user", content="x"),), max_tokens=1, continuation="y")
        )
    await client.aclose()


def known(request: ChatRequest) -> ChatReply:
    """Likelier under the principle by the quality that the response states, in thousandths of a nat."""
    fakes.SENT.append(request)
    q = quality(str(request.continuation))
    return scored(log(0.5), -1.0 if is_reversed(request) else -1.0 + q / 1000)


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_every_label_of_a_judge_with_known_truth_comes_out_right(tmp_path: Path, length: str) -> None:
    settings = {
        "type": "likelihood",
        "models": [{"model": "scripted:tests.judges.test_likelihood:known", "logprobs": True}],
        "ties": False,
        "length": length,
        "scale": 1.0,
    }
    other: dict[str, Any] = {"judge_settings": settings, "pairing": {"strategy": "all"}}
    running.write_prompts(tmp_path, PROMPTS)
    planned = estimate(running.config(tmp_path, **other))
    run(tmp_path, **other)
    assert {s.stage: s.calls for s in planned.stages} == {"sample": 20 * 4, "judge": 20 * 4 * 2}
    assert sum(s.calls for s in planned.stages) == len(fakes.SENT)
    pairs = rows(tmp_path, "pairs")
    assert len(pairs) > 70
    for pair in pairs:
        better, worse = (quality(pair[side][0]["content"]) for side in ("chosen", "rejected"))
        assert better > worse
        n = 1 if length == "sum" else 2
        assert pair["prob_chosen"] == pytest.approx(1 / (1 + exp(-(better - worse) / 1000 / n)), abs=1e-9)
    assert {j.order for j in judgements(tmp_path)} == {None}
    assert estimate(running.config(tmp_path, **other)).report()["answered"] == 20 * (4 + 8)


def test_the_given_text_counts_for_the_budget() -> None:
    request = ChatRequest(messages=(Message(role="user", content="x"),), max_tokens=1, continuation="ü" * 1000)
    assert token_bounds(request, {})[0] >= 2000


def test_a_dry_run_counts_the_given_text_and_prices_it(tmp_path: Path) -> None:
    price = {"input": 1, "output": 4}
    model = {"model": "scripted:tests.judges.test_likelihood:known", "logprobs": True, "price": price}
    row = {"prompt": "Why?", "completions": ["word " * 400, "other " * 400]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = estimate(
        running.config(
            tmp_path,
            prompts=None,
            policy_settings={"model": None, "completions": str(tmp_path / "samples.jsonl")},
            judge_settings={"type": "likelihood", "models": [model], "ties": False},
        )
    )
    (stage,) = found.stages
    assert stage.calls == 4
    assert 4 * 400 < stage.input_tokens.expected < 4 * 600
    assert stage.output_tokens.expected == 4
    assert stage.online is not None
    assert float(stage.online[1]) == pytest.approx((stage.input_tokens.expected + 4 * 4) / 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "likelihood", "orders": "one"}, "orders is for type: pairwise"),
        ({"type": "likelihood", "rationale": True}, "nothing is asked, so there is nothing for rationale"),
        ({"type": "likelihood", "labels": "json"}, "nothing is asked, so there is nothing for labels"),
        ({"length": "sum"}, "length and scale are for type: likelihood"),
        ({"type": "score", "scale": 2}, "length and scale are for type: likelihood"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})


def test_an_opposite_of_nothing_is_a_mistake_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text('name: x\nprinciples:\n- {id: a, compare: "A?"}\n- {id: b, critique: "B?", opposite: "Not?"}\n')
    (error,) = lint(file).errors
    assert "c.yaml:4" in error
    assert "opposite is the opposite of compare, which is missing" in error


def test_an_opposite_left_out_leaves_a_constitution_what_it_was() -> None:
    text = 'name: x\nprinciples:\n- {id: a, compare: "Kinder?"}\n'
    assert constitution_from_text(text, "c").digest == digest([{"id": "a", "compare": "Kinder?"}])
