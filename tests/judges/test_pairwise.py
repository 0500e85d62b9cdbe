"""The pairwise judge: what it asks, in which order, and what it makes of the replies."""

from collections.abc import Callable
from math import log
from typing import Any

import pytest

from rlaif.clients.base import Capabilities, request_key
from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig
from rlaif.constitution import constitution_from_text
from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.judges import judge_comparison
from rlaif.judges.pairwise import PairwiseJudge, resolve_labels
from rlaif.types import (
    ChatReply,
    ChatRequest,
    Comparison,
    Completion,
    Judgement,
    Message,
    Principle,
    Prompt,
    TokenLogprobs,
    Unjudged,
    Verdict,
)

PRINCIPLE = Principle(id="p", compare="Which response is better?")
PROMPT = Prompt(id="p-0", messages=(Message(role="user", content="Why?"),))


def comparison(a: str = "good", b: str = "bad") -> Comparison:
    made = [
        Completion(id=f"c-{i}", prompt_id="p-0", index=i, text=text, model="m", finish_reason="stop")
        for i, text in enumerate((a, b))
    ]
    return Comparison(prompt=PROMPT, a=made[0], b=made[1])


def judge(script: Script, labels: str = "text", **settings: Any) -> PairwiseJudge:
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})
    return PairwiseJudge(ScriptedClient(script), config, labels)  # type: ignore[arg-type]


def token(x: float, y: float) -> TokenLogprobs:
    return TokenLogprobs(token="X", logprob=log(x), top=(("X", log(x)), ("Y", log(y))))


def probabilities(x: float, y: float, finish: str = "length") -> Callable[[ChatRequest], ChatReply]:
    return lambda request: ChatReply.model_validate(
        {"text": "X", "finish_reason": finish, "logprobs": (token(x, y),), "model": "m"}
    )


def prefers(good: str) -> Script:
    def script(request: ChatRequest) -> str:
        text = request.messages[-1].content
        return "X" if text.index(f"\n{good}\n") < text.index("response_Y") else "Y"

    return script


async def only(made: PairwiseJudge, c: Comparison | None = None) -> list[Judgement]:
    return await made.judge(c or comparison(), [PRINCIPLE], seed=0)


async def test_both_orders_are_shown_and_the_outcomes_are_about_the_completions_themselves() -> None:
    for c in (comparison(), comparison().swap()):
        first, second = await only(judge(prefers("good")), c)
        assert (first.order, second.order) == ("ab", "ba")
        for j in (first, second):
            assert isinstance(j.outcome, Verdict)
            assert j.outcome.choice == ("a" if c.a.text == "good" else "b")


async def test_a_judge_that_always_says_first_says_opposite_things_about_the_completions() -> None:
    first, second = await only(judge(lambda request: "X"))
    assert isinstance(first.outcome, Verdict)
    assert isinstance(second.outcome, Verdict)
    assert (first.outcome.choice, second.outcome.choice) == ("a", "b")


async def test_one_order_asks_once() -> None:
    made = judge(prefers("good"), orders="one")
    (j,) = await only(made)
    assert isinstance(j.outcome, Verdict)
    assert j.outcome.choice == "a"
    assert isinstance(made.client, ScriptedClient)
    assert len(made.client.requests) == 1


async def test_label_probabilities_are_read_from_one_token_that_ends_by_its_limit() -> None:
    first, second = await only(judge(probabilities(0.6, 0.2), "logprob"))
    assert first.outcome == Verdict(choice="a", p_a=0.75, method="logprob", label_mass=0.8)
    assert isinstance(second.outcome, Verdict)
    assert second.outcome.p_a == pytest.approx(0.25)


async def test_a_label_request_asks_for_one_token_and_its_alternatives() -> None:
    made = judge(probabilities(0.6, 0.2), "logprob")
    await only(made)
    assert isinstance(made.client, ScriptedClient)
    request = made.client.requests[0]
    assert (request.max_tokens, request.top_logprobs, request.labels, request.temperature) == (1, 20, ("X", "Y"), 0.0)
    assert request.cache_prefix == 1


async def test_too_little_label_mass_is_unjudged() -> None:
    first, _ = await only(judge(probabilities(0.02, 0.01), "logprob", min_label_mass=0.05))
    assert isinstance(first.outcome, Unjudged)
    assert "0.030" in first.outcome.detail


@pytest.mark.parametrize(("finish", "reason"), [("content_filter", "refused"), ("unknown", "unparseable")])
async def test_probabilities_of_a_filtered_reply_are_no_data(finish: str, reason: str) -> None:
    first, _ = await only(judge(probabilities(0.6, 0.2, finish), "logprob"))
    assert isinstance(first.outcome, Unjudged)
    assert first.outcome.reason == reason


async def test_a_reply_without_the_log_probs_it_was_asked_for_is_unjudged() -> None:
    first, _ = await only(judge(lambda request: "X", "logprob"))
    assert isinstance(first.outcome, Unjudged)
    assert "no log-probs" in first.outcome.detail


async def test_a_rationale_comes_before_the_verdict_and_is_kept() -> None:
    first, _ = await only(judge(lambda request: "It is shorter.\nVerdict: X", rationale=True))
    assert first.outcome == Verdict(choice="a", p_a=1.0, method="text", rationale="It is shorter.")


async def test_with_log_probs_the_label_is_asked_for_after_the_rationale() -> None:
    def script(request: ChatRequest) -> str | ChatReply:
        if request.top_logprobs is None:
            return "Because of this."
        assert request.messages[-2] == Message(role="assistant", content="Because of this.")
        return probabilities(0.9, 0.1)(request)

    first, _ = await only(judge(script, "logprob", rationale=True))
    assert isinstance(first.outcome, Verdict)
    assert first.outcome.rationale == "Because of this."
    assert first.outcome.p_a == pytest.approx(0.9)
    assert len(first.request_keys) == 2


async def test_a_rationale_that_was_cut_off_gives_no_verdict_and_no_second_request() -> None:
    made = judge(lambda request: ChatReply(text="Because", finish_reason="length"), "logprob", rationale=True)
    first, _ = await only(made)
    assert isinstance(first.outcome, Unjudged)
    assert first.outcome.reason == "truncated"
    assert len(first.request_keys) == 1


async def test_json_replies_are_asked_for_with_a_schema_of_the_labels() -> None:
    made = judge(lambda request: '{"rationale": "r", "verdict": "Y"}', "json")
    first, _ = await only(made)
    assert first.outcome == Verdict(choice="b", p_a=0.0, method="json", rationale="r")
    assert isinstance(made.client, ScriptedClient)
    schema = made.client.requests[0].json_schema
    assert schema is not None
    assert schema["properties"]["verdict"]["enum"] == ["X", "Y"]


@pytest.mark.parametrize(
    "error", [RequestError("too long", kind="context_length"), TransientError("down", kind="connection")]
)
async def test_a_request_that_fails_is_unjudged_with_its_reason(error: Exception) -> None:
    def script(request: ChatRequest) -> str:
        raise error

    first, _ = await only(judge(script))
    assert first.outcome == Unjudged(reason="provider_error", detail=str(error))


async def test_a_provider_that_refuses_everything_is_not_a_row() -> None:
    def script(request: ChatRequest) -> str:
        raise ProviderError("no key")

    with pytest.raises(ProviderError):
        await only(judge(script))


async def test_request_keys_find_the_requests() -> None:
    made = judge(prefers("good"))
    first, second = await only(made)
    assert isinstance(made.client, ScriptedClient)
    keys = [request_key(made.client.identity, r) for r in made.client.requests]
    assert [*first.request_keys, *second.request_keys] == keys


class TestWhichLabels:
    async def resolve(self, script: Script, capabilities: Capabilities, labels: str = "auto") -> str:
        config = JudgeConfig.model_validate({"models": ["scripted:m:o"], "labels": labels})
        self.client = ScriptedClient(script, capabilities=capabilities)
        return await resolve_labels(self.client, config)

    async def test_what_the_config_says_is_taken(self) -> None:
        assert await self.resolve(lambda request: "X", Capabilities(), "json") == "json"
        assert self.client.requests == []

    async def test_a_known_capability_is_not_asked_for(self) -> None:
        assert await self.resolve(lambda request: "X", Capabilities(logprobs=True)) == "logprob"
        assert await self.resolve(lambda request: "X", Capabilities(logprobs=False)) == "text"
        assert self.client.requests == []

    async def test_an_unknown_model_is_asked_once(self) -> None:
        assert await self.resolve(probabilities(0.5, 0.5), Capabilities()) == "logprob"
        assert await self.resolve(lambda request: "X", Capabilities()) == "text"
        assert len(self.client.requests) == 1

    async def test_a_model_that_refuses_log_probs_is_read_by_text(self) -> None:
        def script(request: ChatRequest) -> str:
            raise RequestError("no log-probs", kind="unsupported", parameter="logprobs")

        assert await self.resolve(script, Capabilities()) == "text"

    async def test_a_server_that_does_not_answer_ends_the_run(self) -> None:
        def script(request: ChatRequest) -> str:
            raise TransientError("connection refused", kind="connection")

        with pytest.raises(ProviderError, match="connection refused"):
            await self.resolve(script, Capabilities())


CONSTITUTION = """
name: two
version: "1"
principles:
  - {id: good, compare: "Which response is better?", weight: 2}
  - {id: kind, compare: "Which response is kinder?"}
  - {id: short, check: {words: {max: 2}}}
"""


class TestPrinciples:
    async def asked(self, mode: str, constitution: str = CONSTITUTION) -> list[tuple[str, ...]]:
        made = judge(prefers("good"), principles=mode)
        rows = await judge_comparison(comparison(), constitution_from_text(constitution, "c"), [made], seed=0)
        return [j.principles for j in rows]

    async def test_one_is_drawn_for_each_comparison(self) -> None:
        assert len(set(await self.asked("sample"))) == 1

    async def test_all_that_a_model_decides_are_in_one_question(self) -> None:
        assert await self.asked("all") == [("short",), ("good", "kind"), ("good", "kind")]

    async def test_each_is_a_question_of_its_own(self) -> None:
        assert await self.asked("each") == [("short",), ("good",), ("good",), ("kind",), ("kind",)]

    async def test_none_applies_to_the_prompt(self) -> None:
        picky = CONSTITUTION.replace("}\n", ", applies_to: {topic: law}}\n")
        assert await self.asked("all", picky) == []
