import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rlaif.training.rollout import Sampled, draws, pad_left, sample  # noqa: E402

END = 1
PROMPTS = [(3, 5, 8), (13, 21, 34, 55, 89), (7,)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    return loaded.eval()


def drawn(model: Any, prompts: Any = PROMPTS, each: int = 2, length: int = 20, **changes: Any) -> list[Sampled]:
    seeds = [(prompt, k) for prompt in prompts for k in range(each)]
    options = {"end_ids": [END], "pad_id": END, "temperature": 1.0}
    found: list[Sampled] = sample(model, prompts, draws(seeds, length), **(options | changes))
    return found


def forward_logps(model: Any, prompt: Any, ids: Any, temperature: float) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_samplers_log_probs_are_those_of_one_forward_pass(model: Any, temperature: float) -> None:
    found = drawn(model, temperature=temperature)
    for i, row in enumerate(found):
        assert row.logps == pytest.approx(forward_logps(model, PROMPTS[i // 2], row.ids, temperature), abs=1e-4)


def test_a_completion_does_not_depend_on_what_is_sampled_beside_it(model: Any) -> None:
    together = drawn(model)
    for i, prompt in enumerate(PROMPTS):
        alone = drawn(model, [prompt])
        assert [row.ids for row in alone] == [row.ids for row in together[2 * i : 2 * i + 2]]


def test_the_same_seeds_give_the_same_and_others_give_others(model: Any) -> None:
    assert drawn(model) == drawn(model)
    ids = [row.ids for row in drawn(model, [PROMPTS[0]], each=8)]
    assert len(set(ids)) == 8


def test_a_completion_ends_with_its_first_end_token_or_at_the_limit(model: Any) -> None:
    # Whatever the model says most often is declared an end: some completions end early, some do not.
    common = max(range(200), key=[t for row in drawn(model, each=16) for t in row.ids].count)
    found = drawn(model, each=16, end_ids=[END, common], length=12)
    assert {row.ended for row in found} == {True, False}
    for row in found:
        ends = [t in (END, common) for t in row.ids]
        assert len(row.ids) == len(row.logps) <= 12
        assert not any(ends[:-1])
        assert row.ended == ends[-1]
        assert row.ended or len(row.ids) == 12


def test_tokens_come_as_often_as_the_model_says(model: Any) -> None:
    n, temperature = 4000, 0.4  # cold enough that a few tokens carry the mass
    found = sample(
        model, [PROMPTS[0]], draws([(i,) for i in range(n)], 1), end_ids=[END], pad_id=END, temperature=temperature
    )
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature, dim=-1).tolist()
    counts = [0] * len(p)
    for row in found:
        counts[row.ids[0]] += 1
    top = sorted(range(len(p)), key=lambda token: -p[token])[:5]
    for token in top:
        error = math.sqrt(p[token] * (1 - p[token]) / n)
        assert counts[token] / n == pytest.approx(p[token], abs=4 * error)


def test_nearly_no_temperature_is_the_likeliest_token(model: Any) -> None:
    row = drawn(model, [PROMPTS[1]], each=1, temperature=1e-4, length=6)[0]
    greedy = model.generate(
        torch.tensor([PROMPTS[1]]), attention_mask=torch.ones(1, 5), do_sample=False, max_new_tokens=6, pad_token_id=END
    )
    assert list(row.ids) == greedy[0, 5 : 5 + len(row.ids)].tolist()


def test_draws_are_uniform_and_each_rows_own() -> None:
    numbers = draws([("a", 1), ("a", 2), ("b", 1)], 500)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert numbers.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(numbers[1], draws([("a", 2)], 500)[0])
    assert not torch.equal(numbers[0], numbers[1])


def test_padding_stands_before_a_prompt() -> None:
    ids, mask = pad_left([(1, 2, 3), (4,)], 0, "cpu")
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
