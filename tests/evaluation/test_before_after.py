"""Before and after: paired by prompt, same seeds, and no answer stands for one that was not given."""

import pytest

from rlaif.clients.scripted import ScriptedClient
from rlaif.config.generate import PolicyConfig
from rlaif.constitution import constitution_from_text
from rlaif.errors import QualityError, TransientError
from rlaif.evaluation.before_after import BeforeAfter, compare_models
from rlaif.types import ChatReply, ChatRequest, Message, Prompt

CONSTITUTION = constitution_from_text(
    'name: brief\nversion: "1"\nprinciples:\n  - {id: short, check: {words: {max: 10}}}\n', "c.yaml"
)
PROMPTS = [Prompt(id=f"p-{i}", messages=(Message(role="user", content=f"Question {i}?"),)) for i in range(12)]
CONFIG = PolicyConfig.model_validate({"model": "scripted:m:o", "n": 2, "max_tokens": 50, "system": "Be kind."})


def talk(words: int, spread: int = 3) -> ScriptedClient:
    def script(request: ChatRequest) -> str:
        assert request.seed is not None
        return "word " * (words + request.seed % spread)

    return ScriptedClient(script)


async def compare(before: ScriptedClient, after: ScriptedClient) -> BeforeAfter:
    return await compare_models(before, after, PROMPTS, CONSTITUTION, CONFIG, seed=0)


async def test_a_shift_in_length_is_measured_with_an_interval_that_leaves_out_zero() -> None:
    result = await compare(talk(20), talk(10))
    words, cut, short = result.metrics
    assert (words.name, words.difference, words.low, words.high) == ("words", -10.0, -10.0, -10.0)
    assert words.moved
    assert cut.before == cut.after == 0.0
    assert not cut.moved
    assert short.after > short.before
    assert (result.prompts, result.lost) == (12, 0)


async def test_both_models_get_the_same_prompts_seeds_and_system_message() -> None:
    before, after = talk(20), talk(10)
    await compare(before, after)
    assert sorted(r.model_dump_json() for r in before.requests) == sorted(r.model_dump_json() for r in after.requests)
    assert {r.messages[0].content for r in before.requests} == {"Be kind."}
    assert len({r.seed for r in before.requests}) == 24


async def test_equal_models_show_no_difference() -> None:
    result = await compare(talk(20), talk(20))
    assert all(m.difference == 0.0 and not m.moved for m in result.metrics)


async def test_a_prompt_that_one_model_did_not_answer_is_left_out_of_both() -> None:
    def script(request: ChatRequest) -> str:
        if "Question 3?" in request.messages[-1].content:
            raise TransientError("gone", kind="connection")
        return "word " * 5

    result = await compare(talk(20), ScriptedClient(script))
    assert (result.prompts, result.lost) == (11, 1)
    assert result.metrics[0].after == 5.0


async def test_no_answer_at_all_is_an_error_and_not_a_zero() -> None:
    def script(request: ChatRequest) -> str:
        raise TransientError("gone", kind="connection")

    with pytest.raises(QualityError, match="nothing to compare"):
        await compare(talk(20), ScriptedClient(script))


async def test_cut_off_answers_are_counted() -> None:
    cut = ScriptedClient(lambda request: ChatReply(text="word " * 50, finish_reason="length"))
    result = await compare(talk(20), cut)
    assert result.metrics[1].after == 1.0
