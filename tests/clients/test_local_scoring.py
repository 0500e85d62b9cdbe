"""The local transport as a reader: given texts, and many prompts read in one pass, against a plain forward of each."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.clients.local import LocalClient
from rlaif.config.models import ModelConfig
from rlaif.errors import RequestError
from rlaif.types import ChatReply, ChatRequest, Message
from tests.clients.test_local import LONG, all_of, ask, make_model, make_tokenizer, open_local, prompt_ids, score

torch = pytest.importorskip("torch", reason="needs the local extra")
transformers = pytest.importorskip("transformers", reason="needs the local extra")

from rlaif.clients.local import packed as packing  # noqa: E402  (it imports torch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[LocalClient]:
    opened = open_local(folder)
    yield opened
    await opened.aclose()


def given_text(text: str, content: str = "which?", system: str | None = LONG) -> ChatRequest:
    return ask(content, system, max_tokens=1, temperature=0, continuation=text)


def expected(model: Any, tokenizer: Any, request: ChatRequest) -> list[float]:
    """Each token's log-prob, the whole row read by itself."""
    prompt = prompt_ids(tokenizer, request)
    text = tokenizer(request.continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(text)]


def logprobs_of(reply: ChatReply) -> list[float]:
    assert reply.logprobs is not None
    return [token.logprob for token in reply.logprobs]


# ------------------------------------------------------------------------------------------------------ a given text


async def test_each_token_of_a_given_text_has_the_log_prob_of_a_plain_forward(
    client: LocalClient, plain: tuple[Any, Any]
) -> None:
    texts = ["X", "the better response is X", "the better response is Y, say Y", "the better", "ünd ☃", " X"]
    requests = [given_text(t, c, s) for t, c, s in itertools.product(texts, ("which?", "or?"), (LONG, None))]
    for request, reply in zip(requests, await all_of(client, requests), strict=True):
        assert logprobs_of(reply) == pytest.approx(expected(*plain, request), abs=1e-4)
        assert (reply.text, reply.finish_reason) == ("", "stop")
        assert reply.usage.output_tokens == 0
        assert plain[1].decode(reply.raw["token_ids"]) == request.continuation
        assert reply.usage.input_tokens == len(prompt_ids(plain[1], request)) + len(reply.raw["token_ids"])


async def test_given_texts_labels_and_samples_may_be_asked_for_together(
    client: LocalClient, plain: tuple[Any, Any]
) -> None:
    requests = [given_text("the better response is X"), score("which?", LONG), ask("which?", LONG, seed=1)] * 2
    replies = await all_of(client, [*requests, given_text("say Y")])
    alone = [await client.complete(request) for request in requests[:3]]
    assert logprobs_of(replies[0]) == pytest.approx(logprobs_of(alone[0]), abs=1e-4)
    assert logprobs_of(replies[1]) == pytest.approx(logprobs_of(alone[1]), abs=1e-4)
    assert replies[2].text == alone[2].text
    assert replies[:3] == replies[3:6]
    assert logprobs_of(replies[6]) == pytest.approx(expected(*plain, given_text("say Y")), abs=1e-4)


async def test_a_control_token_in_a_given_text_is_text(client: LocalClient, plain: tuple[Any, Any]) -> None:
    text = "X<|im_end|>\n<|im_start|>user"
    reply = await client.complete(given_text(text))
    assert not {0, 1, 2} & set(reply.raw["token_ids"])
    assert plain[1].decode(reply.raw["token_ids"]) == text


async def test_a_text_that_does_not_fit_and_one_of_half_a_character_are_refused(client: LocalClient) -> None:
    with pytest.raises(
        RequestError, match=r"a prompt of \d+ tokens and a given text of \d+ exceed the model's context"
    ):
        await client.complete(given_text("the better response is X " * 100))
    with pytest.raises(RequestError, match="half a character"):
        await client.complete(given_text("a\ud800"))
    with pytest.raises(RequestError, match="the text has no tokens"):
        await client.complete(given_text(""))
    assert (await client.complete(given_text("X"))).finish_reason == "stop"


async def test_a_model_told_to_give_no_log_probs_scores_no_text(folder: Path) -> None:
    refusing = LocalClient(ModelConfig(model=f"local:{folder}", logprobs=False))
    assert not refusing.capabilities.scores_text
    with pytest.raises(RequestError, match="gives no log-probs of a given text; local:, vllm: and scripted: models do"):
        await refusing.complete(given_text("X"))
    await refusing.aclose()


async def test_a_text_without_a_finite_probability_fails_alone(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = given_text("say X"), given_text("say Y")
    await client.complete(good)  # loading tries it out
    usual = packing.read_packed

    def broken(model: Any, packed: Any, keep: Any) -> Any:
        logits = usual(model, packed, keep)
        y = client._worker._chat.encode_text("say Y")[-1]
        logits[:, y] = -math.inf
        return logits

    monkeypatch.setattr(packing, "read_packed", broken)
    found = await asyncio.gather(*map(client.complete, (good, bad)), return_exceptions=True)
    assert isinstance(found[0], ChatReply)
    assert isinstance(found[1], RequestError)
    assert "no finite probability" in str(found[1])


# --------------------------------------------------------------------------------------------------- read in one pass

rows = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_every_row_finds_its_tokens_in_the_pass_and_sees_nothing_else(made: list[list[int]]) -> None:
    found = packing.pack(made, "cpu")
    ids, positions = found.ids[0].tolist(), found.positions[0].tolist()
    for row, path in zip(made, found.paths, strict=True):
        assert [ids[place] for place in path] == row
        assert [positions[place] for place in path] == list(range(len(row)))
        assert path == sorted(path)
    covered = [place for r in found.rows for place in range(r.start, r.end)]
    assert covered == list(range(len(ids)))
    for r in found.rows:
        new, length = r.end - r.start, len(r.path)
        seen = torch.ones(length, length).tril().bool()[length - new :]
        assert (r.mask is None) == (new == length)
        assert r.mask is None or torch.equal(r.mask, seen)
        assert r.path[-new:].tolist() == list(range(r.start, r.end))


@settings(max_examples=40, deadline=None)
@given(rows)
def test_what_rows_begin_with_alike_is_read_once(made: list[list[int]]) -> None:
    beginnings = {tuple(row[: i + 1]) for row in made for i in range(len(row))}
    assert packing.pack(made, "cpu").ids.shape[1] == len(beginnings)


@settings(max_examples=20, deadline=None)
@given(rows.map(lambda made: [[2 + token for token in row] for row in made]))
def test_a_packed_pass_gives_the_logits_of_each_row_by_itself(made: list[list[int]]) -> None:
    model = _tiny_model()
    with torch.inference_mode():
        found = packing.pack(made, "cpu")
        keep = sorted({path[-1] for path in found.paths})
        logits = packing.read_packed(model, found, keep)
        for row, path in zip(made, found.paths, strict=True):
            alone = model(torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(logits[keep.index(path[-1])], alone, atol=1e-4, rtol=1e-4)


_models: list[Any] = []


def _tiny_model() -> Any:
    if not _models:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.6,
        )
        _models.append(transformers.LlamaForCausalLM(config).eval())
    return _models[0]


async def test_the_two_orders_of_a_pair_and_its_siblings_share_what_they_begin_with(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    usual = packing.read_packed

    def counted(model: Any, packed: Any, keep: Any) -> Any:
        read.append(packed.ids.shape[1])
        return usual(model, packed, keep)

    await client.complete(score("warm up"))  # loading tries it out
    monkeypatch.setattr(packing, "read_packed", counted)
    texts = ["the better response is X", "say Y, say X", "which?"]
    shown = [f"{first}\n{second}" for first, second in itertools.permutations(texts, 2)]
    replies = await all_of(client, [score(text, LONG) for text in shown])
    whole = sum(reply.usage.input_tokens for reply in replies)
    assert len(read) == 1
    assert read[0] < whole / 2


def family(name: str) -> Any:
    size = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, **ends)
        )
    if name == "gemma2":  # soft caps, and windows
        config = transformers.Gemma2Config(**size, **heads, **ends, head_dim=8, sliding_window=64)
        return transformers.Gemma2ForCausalLM(config)
    if name == "mistral":
        return transformers.MistralForCausalLM(transformers.MistralConfig(**size, **heads, **ends, sliding_window=60))
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**size, **heads, **ends, head_dim=8))


@pytest.mark.parametrize(("name", "longest"), [("qwen3", 2**31), ("gpt2", 2**31), ("mistral", 60), ("gemma2", 0)])
async def test_of_any_family_the_log_probs_are_those_of_a_plain_forward(
    name: str, longest: int, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    model = family(name).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert packing.can_pack(model) == longest
    opened = open_local(tmp_path)
    requests = [given_text(t, c) for t in ("X", "the better response is X") for c in ("which?", "X or Y, " * 10)]
    requests += [score("which?", LONG), score("which? " * 9, LONG)]
    replies = await all_of(opened, requests)
    await opened.aclose()
    for request, reply in zip(requests[:-2], replies, strict=False):
        assert logprobs_of(reply) == pytest.approx(expected(model, tokenizer, request), abs=1e-4)
    for request, reply in zip(requests[-2:], replies[-2:], strict=True):
        with torch.no_grad():
            best = model(torch.tensor([prompt_ids(tokenizer, request)])).logits[0, -1].log_softmax(-1).max()
        assert logprobs_of(reply) == pytest.approx([float(best)], abs=1e-4)


@pytest.mark.slow
async def test_the_embedded_model_judges_packed_as_it_does_alone() -> None:
    from benchmarks.local_judge import Alone, largest_difference, requests_of
    from rlaif.embedded import embedded_model_dir

    opened = open_local("smollm2", device="cpu", dtype="float32")
    alone = Alone(str(embedded_model_dir()), opened)
    for case in ("pairs", "likelihood"):
        requests = await requests_of(case, 1)
        replies = await all_of(opened, requests)
        assert largest_difference(requests, replies, alone(requests)) < 1e-3
    await opened.aclose()


@pytest.mark.slow
async def test_the_embedded_model_finds_a_text_likelier_where_it_is_asked_for() -> None:
    opened = open_local("smollm2", device="cpu", dtype="float32")
    ask_for = [Message(role="user", content=f"Say the word {word}.") for word in ("apple", "river")]
    requests = [
        ChatRequest(messages=(message,), max_tokens=1, continuation=text)
        for message in ask_for
        for text in ("apple", "river")
    ]
    totals = [sum(logprobs_of(reply)) for reply in await all_of(opened, requests)]
    await opened.aclose()
    assert totals[0] + totals[3] > totals[1] + totals[2]
