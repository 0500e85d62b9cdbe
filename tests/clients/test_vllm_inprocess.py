"""The in-process vLLM engine, really run: inside the environment that holds vLLM, as a test run of its own.

From the project's own environment one test starts that run (marker vllm); in there, the others are what runs.
"""

import asyncio
import json
import math
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rlaif.clients import open_transport
from rlaif.clients.base import Client
from rlaif.config.models import ModelConfig
from rlaif.errors import InputError, ProviderError, RequestError
from rlaif.types import ChatRequest, Message
from tests.servers.vllm_server import vllm_environment, vllm_venv

HERE = find_spec("vllm") is not None
ELSEWHERE = "vLLM is in an environment of its own, where test_in_its_own_environment runs this"
ASK = Message(role="user", content="What is the capital of France?")
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 32}


def inside(test: Callable[..., Any]) -> Any:
    """A test that runs where vLLM is, with the one engine of this module (which belongs to one event loop)."""
    test = pytest.mark.asyncio(loop_scope="module")(test)
    return pytest.mark.vllm(pytest.mark.skipif(not HERE, reason=ELSEWHERE)(test))


@pytest.mark.skipif(HERE, reason="this is that environment")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(InputError, match=r"vllm:some-model: vLLM is not installed; run `pip install 'rlaif\[vllm\]'`"):
        open_transport(ModelConfig(model="vllm:some-model"))


@pytest.mark.vllm
@pytest.mark.skipif(HERE, reason="this is that environment")
def test_in_its_own_environment() -> None:
    venv = vllm_venv()
    if venv is None:
        pytest.skip("no vLLM environment: make .venv-vllm, or name one with RLAIF_VLLM_VENV")
    from rlaif.embedded import embedded_model_dir

    command = [str(venv / "bin" / "python"), "-m", "pytest", "-m", "vllm", "-p", "no:cacheprovider", __file__]
    environment = {**vllm_environment(), "RLAIF_TEST_MODEL": str(embedded_model_dir())}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 16


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Client]:
    client = open_transport(ModelConfig(model=f"vllm:{os.environ['RLAIF_TEST_MODEL']}", options=OPTIONS))
    yield client
    await client.aclose()


@inside
async def test_it_answers_with_usage_and_reason(engine: Client) -> None:
    assert isinstance(engine, Client)
    reply = await engine.complete(ChatRequest(messages=(ASK,), max_tokens=40))
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.usage.input_tokens > 10
    assert 1 < reply.usage.output_tokens <= 40
    assert reply.logprobs is None
    json.dumps(reply.raw)


@inside
async def test_a_cut_off_reply_says_so_and_a_stop_text_stops(engine: Client) -> None:
    assert (await engine.complete(ChatRequest(messages=(ASK,), max_tokens=2))).finish_reason == "length"
    stopped = await engine.complete(ChatRequest(messages=(ASK,), max_tokens=40, stop=("Paris",)))
    assert stopped.finish_reason == "stop"
    assert "Paris" not in stopped.text


@inside
async def test_logprobs_are_probabilities_and_labels_are_among_them(engine: Client) -> None:
    request = ChatRequest(messages=(ASK,), max_tokens=1, top_logprobs=20, labels=("X", "Y"))
    first, second = await engine.complete(request), await engine.complete(request)
    assert first.logprobs is not None
    assert second.logprobs is not None
    (token,) = first.logprobs
    top = dict(token.top)
    assert len(top) > 20
    assert {"X", " X", "Y", " Y"} <= top.keys()
    assert 0.2 < sum(math.exp(p) for p in top.values()) <= 1 + 1e-6
    assert token.top[0] == (token.token, token.logprob)
    assert dict(second.logprobs[0].top) == pytest.approx(top, abs=1e-4)


@inside
async def test_a_label_has_the_same_logprob_alone_and_among_the_likely_ones(engine: Client) -> None:
    plain = ChatRequest(messages=(ASK,), max_tokens=1, top_logprobs=20)
    reply = await engine.complete(plain)
    assert reply.logprobs is not None
    likely = [(text, p) for text, p in reply.logprobs[0].top if text.strip().isalpha()][-1]
    asked = await engine.complete(plain.model_copy(update={"top_logprobs": 1, "labels": (likely[0].strip(),)}))
    assert asked.logprobs is not None
    assert dict(asked.logprobs[0].top)[likely[0]] == pytest.approx(likely[1], abs=1e-4)


@inside
async def test_a_given_text_has_the_log_probs_of_a_plain_forward(engine: Client) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert engine.capabilities.scores_text
    path, text = os.environ["RLAIF_TEST_MODEL"], "The capital of France is Paris."
    reply = await engine.complete(ChatRequest(messages=(ASK,), max_tokens=1, continuation=text))
    assert (reply.text, reply.finish_reason, reply.usage.output_tokens) == ("", "stop", 0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.apply_chat_template([ASK.model_dump()], add_generation_prompt=True, return_dict=False)
    given = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + given])).logits[0].float().log_softmax(-1)
    expected = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(given)]
    assert reply.logprobs is not None
    assert [t.logprob for t in reply.logprobs] == pytest.approx(expected, abs=2e-3)
    assert "".join(t.token for t in reply.logprobs) == text


@inside
async def test_a_given_text_is_read_to_its_end_and_a_longer_one_refused(engine: Client) -> None:
    asked = ChatRequest(messages=(ASK,), max_tokens=1, continuation="Paris <|im_end|> Paris")
    reply = await engine.complete(asked)
    assert reply.logprobs is not None
    assert "".join(t.token for t in reply.logprobs) == asked.continuation
    with pytest.raises(RequestError, match="a given text of") as error:
        await engine.complete(asked.model_copy(update={"continuation": "word " * 3000}))
    assert error.value.kind == "context_length"


@inside
async def test_a_json_schema_is_kept_to(engine: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"winner": {"type": "string", "enum": ["A", "B"]}},
        "required": ["winner"],
        "additionalProperties": False,
    }
    question = Message(role="user", content="Which city is bigger: A) Paris or B) Lyon? Answer as JSON.")
    reply = await engine.complete(ChatRequest(messages=(question,), max_tokens=60, json_schema=schema))
    assert json.loads(reply.text)["winner"] in ("A", "B")


@inside
async def test_a_seed_fixes_a_sample(engine: Client) -> None:
    def request(seed: int) -> ChatRequest:
        return ChatRequest(messages=(ASK,), max_tokens=20, temperature=1.5, seed=seed)

    texts = [(await engine.complete(request(seed))).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@inside
async def test_many_at_once_each_get_their_own_answer(engine: Client) -> None:
    asks = [Message(role="user", content=f"Repeat the number {n}.") for n in range(10, 26)]
    requests = [ChatRequest(messages=(ask,), max_tokens=12) for ask in asks]
    alone = await engine.complete(requests[3])
    replies = await asyncio.gather(*map(engine.complete, requests))
    assert replies[3].text == alone.text
    assert len({reply.text for reply in replies}) > 8


@inside
async def test_clients_of_one_model_share_its_engine(engine: Client) -> None:
    other = open_transport(ModelConfig(model=f"vllm:{os.environ['RLAIF_TEST_MODEL']}", options=OPTIONS))
    assert (await other.complete(ChatRequest(messages=(ASK,), max_tokens=2))).text
    await other.aclose()
    assert (await engine.complete(ChatRequest(messages=(ASK,), max_tokens=2))).text  # still there for this one


@inside
async def test_an_engine_that_cannot_start_ends_the_run() -> None:
    model = f"vllm:{os.environ['RLAIF_TEST_MODEL']}"
    broken = open_transport(ModelConfig(model=model, options={**OPTIONS, "max_model_len": 10**9}))
    for _ in range(2):
        with pytest.raises(ProviderError, match=r"the vLLM engine did not start: .*max_model_len"):
            await broken.complete(ChatRequest(messages=(ASK,), max_tokens=2))
    await broken.aclose()


@inside
async def test_a_request_that_is_too_long_is_refused(engine: Client) -> None:
    for content, tokens in (("word " * 5000, 5), ("Hello", 100_000)):
        with pytest.raises(RequestError) as caught:
            await engine.complete(ChatRequest(messages=(Message(role="user", content=content),), max_tokens=tokens))
        assert caught.value.kind == "context_length"


@inside
async def test_a_schema_that_is_none_is_refused(engine: Client) -> None:
    with pytest.raises(RequestError) as caught:
        await engine.complete(ChatRequest(messages=(ASK,), max_tokens=5, json_schema={"type": "no-such-type"}))
    assert (caught.value.kind, caught.value.parameter) == ("unsupported", "json_schema"), str(caught.value)
    assert (await engine.complete(ChatRequest(messages=(ASK,), max_tokens=2))).text  # the engine lives on


@inside
async def test_a_control_token_in_a_message_is_plain_text(engine: Client) -> None:
    def usage(content: str) -> ChatRequest:
        return ChatRequest(messages=(Message(role="user", content=content),), max_tokens=1)

    plain = (await engine.complete(usage("Hello"))).usage.input_tokens
    injected = (await engine.complete(usage("Hello<|im_end|>"))).usage.input_tokens
    assert injected > plain + 1  # one control token would be one token more


@inside
@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("/no/such/folder", {}, "no such model folder"),
        ("org/model", {"max_modle_len": 5}, "options.max_modle_len is no engine argument of vLLM. Did you mean"),
    ],
)
async def test_what_cannot_be_opened_is_an_input_error(model: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_transport(ModelConfig(model=f"vllm:{model}", options=options))
