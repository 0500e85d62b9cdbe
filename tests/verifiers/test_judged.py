"""A model as a verifier: what is a verdict, and what is none."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from rlaif.clients.base import Client
from rlaif.clients.scripted import ScriptedClient
from rlaif.errors import InputError, ProviderError, RequestError, TaskError, TransientError
from rlaif.types import ChatReply, ChatRequest, Reward, TokenLogprobs, Unverified
from rlaif.verifiers.judged import JudgeOptions, JudgeVerifier, says_nothing

TASK = {"prompt": "What is 2 + 2?", "reference": "4"}


def letter(request: ChatRequest, *, right: bool) -> str:
    """The letter that says yes (or no) in this request."""
    system = request.messages[0].content
    yes = "X" if "X if yes" in system or '"Verdict: X" if yes' in system else "Y"
    return yes if right else {"X": "Y", "Y": "X"}[yes]


def honest(request: ChatRequest) -> str:
    """Right exactly if the response, as fenced, says 4."""
    response = request.messages[-1].content.split("<response>\n")[1].split("\n</response>")[0]
    return letter(request, right=response.strip() == "4")


def made(script: Callable[[ChatRequest], Any], **options: Any) -> JudgeVerifier:
    client: Client = ScriptedClient(script)
    return JudgeVerifier(JudgeOptions.model_validate({"model": "scripted:a:b"} | options), client)


async def test_the_judge_decides() -> None:
    assert await made(honest).verify("4", TASK) == Reward(value=1.0)
    wrong = await made(honest).verify("5", TASK)
    assert isinstance(wrong, Reward)
    assert (wrong.value, wrong.reason) == (0.0, "wrong")


async def test_it_is_asked_under_both_meanings_of_the_letters_or_under_one_drawn_from_the_text() -> None:
    client = ScriptedClient(honest)
    both = JudgeVerifier(JudgeOptions.model_validate({"model": "scripted:a:b"}), client)
    await both.verify("4", TASK)
    assert {letter(r, right=True) for r in client.requests} == {"X", "Y"}
    one = made(honest, labelled="one")
    assert await one.verify("4", TASK) == Reward(value=1.0)
    drawn = set()
    for i in range(20):
        client = ScriptedClient(honest)
        await JudgeVerifier(one.options, client).verify(f"{i}", TASK)
        drawn.add(letter(client.requests[0], right=True))
        assert len(client.requests) == 1
    assert drawn == {"X", "Y"}


async def test_reasons_may_come_before_the_verdict() -> None:
    verifier = made(lambda r: f"It says so.\n\n**Verdict: {honest(r)}**", rationale=True)
    assert await verifier.verify("4", TASK) == Reward(value=1.0)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes",
        "Yes, X",
        "X or Y",
        "X\nY",
        "Z",
        "x",
        "The answer is X.",
        "A" * 10_000,
        '{"verdict": "X"}',
        " " * 9_999,
    ],
)
async def test_a_reply_that_is_no_label_is_no_verdict(reply: str) -> None:
    verdict = await made(lambda _: reply).verify("4", TASK)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "judge"


@pytest.mark.parametrize("reply", ["Verdict: X\nVerdict: Y", "Verdict: X\nBut then again no.", "I think X", "Verdict:"])
async def test_reasons_without_one_verdict_at_the_end_are_no_verdict(reply: str) -> None:
    verdict = await made(lambda _: reply, rationale=True).verify("4", TASK)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "judge"


async def test_a_reply_that_was_cut_off_is_no_verdict() -> None:
    verdict = await made(lambda r: ChatReply(text=honest(r), finish_reason="length")).verify("4", TASK)
    assert isinstance(verdict, Unverified)


@pytest.mark.parametrize(
    "error", [TransientError("down", kind="server"), RequestError("too long", kind="context_length")]
)
async def test_a_judge_that_cannot_answer_masks_the_row(error: Exception) -> None:
    def fail(_: ChatRequest) -> str:
        raise error

    verdict = await made(fail).verify("4", TASK)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "judge"


async def test_a_provider_that_refuses_everything_ends_the_run() -> None:
    def fail(_: ChatRequest) -> str:
        raise ProviderError("the key is not accepted")

    with pytest.raises(ProviderError):
        await made(fail).verify("4", TASK)


async def test_a_judge_that_is_too_slow_masks_the_row() -> None:
    async def slow(_: ChatRequest) -> str:
        await asyncio.sleep(30)
        return "X"

    verdict = await made(slow, seconds=0.05).verify("4", TASK)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "judge"


def token(p_yes: float) -> Callable[[ChatRequest], ChatReply]:
    def reply(request: ChatRequest) -> ChatReply:
        yes, no = letter(request, right=True), letter(request, right=False)
        top = ((yes, math.log(p_yes * 0.9)), (f" {no}", math.log((1 - p_yes) * 0.9)), ("The", math.log(0.1)))
        logprobs = (TokenLogprobs(token=yes, logprob=top[0][1], top=top),)
        return ChatReply(text=yes, finish_reason="length", logprobs=logprobs)

    return reply


async def test_probabilities_decide_where_they_are_asked_for() -> None:
    assert await made(token(0.8), labels="logprob").verify("4", TASK) == Reward(value=1.0)
    low = await made(token(0.3), labels="logprob").verify("4", TASK)
    assert isinstance(low, Reward)
    assert low.value == 0.0
    graded = await made(token(0.3), labels="logprob", graded=True).verify("4", TASK)
    assert isinstance(graded, Reward)
    assert graded.value == pytest.approx(0.3)
    unsure = await made(token(0.8), labels="logprob", min_label_mass=0.95).verify("4", TASK)
    assert isinstance(unsure, Unverified)
    none = await made(lambda _: "X", labels="logprob").verify("4", TASK)
    assert isinstance(none, Unverified)


async def test_a_wrong_task_is_told_when_it_is_loaded() -> None:
    for task, message in (({"reference": "4"}, "'prompt'"), ({"prompt": "What?"}, "'reference'")):
        with pytest.raises(TaskError, match=message):
            await made(honest).prepare(task)
    verdict = await made(honest).verify("4", {"prompt": "What?"})
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"
    assert await made(honest, needs_reference=False).verify("4", {"prompt": "What?"}) == Reward(value=1.0)


async def test_a_model_that_cannot_be_opened_is_told_when_a_task_is_loaded() -> None:
    verifier = JudgeVerifier(JudgeOptions.model_validate({"model": "scripted:tests.fakes:nobody"}))
    with pytest.raises(InputError, match="nobody"):
        await verifier.prepare(TASK)


@pytest.mark.parametrize(
    "text", ["", ":", ".", "{", "Thought process:", "Solution", "The answer is", "解", "**Solution:**"]
)
def test_an_opener_says_nothing(text: str) -> None:
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["4", "No", "Solution: 4", "The answer is 4.", "四"])
def test_an_answer_says_something(text: str) -> None:
    assert not says_nothing(text)
