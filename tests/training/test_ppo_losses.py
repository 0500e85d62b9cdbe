"""Every term of PPO against a NumPy oracle that goes token by token, hand-worked numbers, and laws."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from rlaif.training.ppo_losses import (  # noqa: E402
    KLController,
    estimate_advantages,
    explained_variance,
    kl_k1,
    kl_k3,
    policy_losses,
    token_entropy,
    token_logps,
    token_rewards,
    value_losses,
    whiten,
)

few = settings(max_examples=25, deadline=None, derandomize=True)


def tensor(rows: Any) -> Any:
    return torch.tensor(np.asarray(rows), dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> Any:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


class Case:
    """A ragged batch: ``ragged(x)`` gives the real tokens of a (B, T) tensor, row by row."""

    def __init__(self, lengths: list[int], seed: int, padding: int = 0) -> None:
        self.lengths, self.width = lengths, max(1, *lengths) + padding
        self.mask = mask_of(lengths, self.width)
        self.random = np.random.default_rng(seed)

    def draw(self, scale: float = 1.0) -> Any:
        """A (B, T) tensor, with NaN in the padding: what stands there must change nothing."""
        drawn = tensor(self.random.normal(0, scale, (len(self.lengths), self.width)))
        return drawn.masked_fill(~self.mask, math.nan)

    def ragged(self, values_BT: Any) -> list[Any]:
        return [row[:n].detach().numpy() for row, n in zip(values_BT, self.lengths, strict=True)]

    def assert_padding_is_zero(self, values_BT: Any) -> None:
        assert (values_BT[~self.mask] == 0).all()


cases = st.builds(
    Case,
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.integers(0, 3),
)


# ----------------------------------------------------------------------------------------- log-probs and entropy


def test_logps_and_entropy_are_those_of_the_tempered_softmax() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])
    for temperature in (0.5, 1.0, 2.0):
        p = np.exp(logits / temperature)
        p /= p.sum(axis=1, keepdims=True)
        found = token_logps(torch.tensor(logits), torch.tensor([2, 0]), temperature)
        assert found.numpy() == pytest.approx(np.log([p[0, 2], p[1, 0]]), abs=1e-6)
        entropy = token_entropy(torch.tensor(logits), temperature).numpy()
        assert entropy == pytest.approx(-(p * np.log(p)).sum(axis=1), abs=1e-6)


def test_the_entropy_of_a_uniform_choice_is_the_log_of_its_size() -> None:
    assert float(token_entropy(torch.zeros(1, 8), 0.7)) == pytest.approx(math.log(8), abs=1e-6)


# -------------------------------------------------------------------------------------------------------- the KL


def test_kl_by_hand() -> None:
    mask = mask_of([2], 2)
    logps, reference = tensor([[math.log(0.5), math.log(0.25)]]), tensor([[math.log(0.25), math.log(0.5)]])
    assert kl_k1(logps, reference, mask).tolist()[0] == pytest.approx([math.log(2), -math.log(2)])
    # q/p - 1 - log(q/p): of 1/2 and of 2
    assert kl_k3(logps, reference, mask).tolist()[0] == pytest.approx([0.5 - 1 + math.log(2), 2 - 1 - math.log(2)])


@few
@given(cases)
def test_kl_is_that_of_the_tokens_and_nothing_in_the_padding(case: Case) -> None:
    logps, reference = case.draw(), case.draw()
    k1, k3 = kl_k1(logps, reference, case.mask), kl_k3(logps, reference, case.mask)
    for got1, got3, p, q in zip(*map(case.ragged, (k1, k3, logps, reference)), strict=True):
        assert got1 == pytest.approx(p - q)
        assert got3 == pytest.approx(np.exp(q - p) - 1 - (q - p))
        assert (got3 >= 0).all()
    case.assert_padding_is_zero(k1)
    case.assert_padding_is_zero(k3)


def test_the_mean_of_k1_and_of_k3_under_the_policy_is_the_kl() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    logps, reference, mask = tensor(np.log([p])), tensor(np.log([q])), mask_of([3], 3)
    exact = float((p * np.log(p / q)).sum())
    for estimate in (kl_k1, kl_k3):
        assert float((estimate(logps, reference, mask)[0] * tensor(p)).sum()) == pytest.approx(exact)


def test_the_controller_by_hand() -> None:
    control = KLController(0.1, target=6.0, horizon=1000)
    control.update(kl=6.6, completions=50)  # 10 % above: the error is 0.1
    assert control.coefficient == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000))
    control = KLController(0.1, target=6.0, horizon=1000)
    control.update(kl=60.0, completions=50)  # the error is held at 0.2
    assert control.coefficient == pytest.approx(0.1 * (1 + 0.2 * 50 / 1000))
    control = KLController(0.1, target=6.0, horizon=1000)
    control.update(kl=0.0, completions=50)
    assert control.coefficient == pytest.approx(0.1 * (1 - 0.2 * 50 / 1000))


@few
@given(st.floats(-50, 50), st.integers(0, 1000))
def test_a_fixed_coefficient_stays_and_no_completions_steer_nothing(kl: float, completions: int) -> None:
    fixed = KLController(0.3)
    fixed.update(kl, completions)
    steered = KLController(0.3, target=1.0)
    steered.update(kl, 0)
    assert (fixed.coefficient, steered.coefficient) == (0.3, 0.3)


# ---------------------------------------------------------------------------------------- rewards and advantages


def test_the_reward_stands_at_the_last_token_and_the_penalty_on_every_one() -> None:
    mask = mask_of([3, 1], 4)
    kl = tensor([[1.0, 2.0, -1.0, math.nan], [0.5, math.nan, math.nan, math.nan]])
    found = token_rewards(tensor([10.0, -4.0]), kl, mask, 0.1)
    assert found.tolist() == [pytest.approx([-0.1, -0.2, 10.1, 0.0]), pytest.approx([-4.05, 0.0, 0.0, 0.0])]


@few
@given(cases, st.floats(0, 2))
def test_rewards_of_a_row_add_up_to_reward_less_penalty(case: Case, coefficient: float) -> None:
    kl, rewards = case.draw(), tensor(case.random.normal(size=len(case.lengths)))
    found = token_rewards(rewards, kl, case.mask, coefficient)
    case.assert_padding_is_zero(found)
    for got, k, reward, n in zip(case.ragged(found), case.ragged(kl), rewards.tolist(), case.lengths, strict=True):
        assert got.sum() == pytest.approx((reward if n else 0.0) - coefficient * k.sum())


def gae(rewards: Any, values: Any, gamma: float, lam: float) -> Any:
    """The definition: a sum over the future of every token."""
    n = len(rewards)
    following = np.append(values[1:], 0.0)
    delta = rewards + gamma * following - values if n else rewards
    return np.array([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)])


def test_advantages_by_hand() -> None:
    rewards, values = tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.6, 0.8]])
    # delta: 0 + 0.6 - 0.5, 0 + 0.8 - 0.6, 1 - 0.8; with lambda 1/2: 0.2, 0.2 + 0.1, 0.1 + 0.15
    advantages, returns = estimate_advantages(rewards, values, mask_of([3], 3), 1.0, 0.5)
    assert advantages.tolist()[0] == pytest.approx([0.25, 0.3, 0.2])
    assert returns.tolist()[0] == pytest.approx([0.75, 0.9, 1.0])


@few
@given(cases, st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_definitions_and_padding_never_matters(case: Case, gamma: float, lam: float) -> None:
    rewards, values = case.draw(), case.draw()
    advantages, returns = estimate_advantages(rewards, values, case.mask, gamma, lam)
    case.assert_padding_is_zero(advantages)
    case.assert_padding_is_zero(returns)
    for got, back, r, v in zip(*map(case.ragged, (advantages, returns, rewards, values)), strict=True):
        assert got == pytest.approx(gae(r, v, gamma, lam))
        assert back == pytest.approx(got + v)


@few
@given(cases, st.floats(0, 1))
def test_with_lambda_1_an_advantage_is_the_discounted_return_less_the_value(case: Case, gamma: float) -> None:
    rewards, values = case.draw(), case.draw()
    advantages, _ = estimate_advantages(rewards, values, case.mask, gamma, 1.0)
    for got, r, v in zip(*map(case.ragged, (advantages, rewards, values)), strict=True):
        expected = [sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) - v[t] for t in range(len(r))]
        assert got == pytest.approx(np.array(expected))


@few
@given(cases)
def test_whitened_tokens_have_mean_0_and_deviation_1_whatever_is_around_them(case: Case) -> None:
    values = case.draw(3.0)
    found = whiten(values, case.mask)
    case.assert_padding_is_zero(found)
    tokens = found[case.mask].numpy()
    if len(tokens) >= 2:
        assert tokens.mean() == pytest.approx(0, abs=1e-9)
        assert tokens.std() == pytest.approx(1, abs=1e-6)
        real = values[case.mask].numpy()
        assert tokens == pytest.approx((real - real.mean()) / real.std(), abs=1e-5)


def test_equal_advantages_teach_nothing() -> None:
    assert whiten(tensor([[2.0, 2.0], [2.0, 7.0]]), mask_of([2, 1], 2)).abs().max() == 0


# ---------------------------------------------------------------------------------------------------- the losses


def test_policy_losses_by_hand() -> None:
    ratios = tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    advantages = tensor([[2.0, -2.0, 2.0, -2.0, 3.0]])
    found = policy_losses(ratios.log(), torch.zeros_like(ratios), advantages, mask_of([5], 5), 0.2)
    # The clip holds only what would be rewarded for going further.
    assert found.losses_BT.tolist()[0] == pytest.approx([-2.4, 3.0, -1.0, 1.6, -3.3])
    assert found.clipped_BT.tolist()[0] == [True, False, False, True, False]


@few
@given(cases, st.floats(0.05, 0.5))
def test_policy_losses_are_the_papers_and_padding_has_no_gradient(case: Case, clip: float) -> None:
    logps, old, advantages = case.draw(0.5), case.draw(0.5), case.draw()
    logps.requires_grad_()
    found = policy_losses(logps, old, advantages, case.mask, clip)
    found.losses_BT.sum().backward()
    case.assert_padding_is_zero(found.losses_BT)
    case.assert_padding_is_zero(logps.grad)
    for got, new, before, a in zip(*map(case.ragged, (found.losses_BT, logps, old, advantages)), strict=True):
        ratio = np.exp(new - before)
        assert got == pytest.approx(-np.minimum(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a))


@few
@given(cases)
def test_while_the_policy_is_the_old_one_the_gradient_is_that_of_the_policy_gradient(case: Case) -> None:
    logps, advantages = case.draw(), case.draw()
    old = logps.clone()
    logps.requires_grad_()
    policy_losses(logps, old, advantages, case.mask, 0.2).losses_BT.sum().backward()
    ours = logps.grad.clone()
    logps.grad = None
    (-(logps.masked_fill(~case.mask, 0) * advantages.masked_fill(~case.mask, 0))).sum().backward()
    assert torch.allclose(ours, logps.grad)


def test_where_the_clip_decides_no_gradient_flows() -> None:
    logps = tensor([[math.log(1.5), math.log(0.5)]]).requires_grad_()
    policy_losses(
        logps, torch.zeros_like(logps), tensor([[1.0, -1.0]]), mask_of([2], 2), 0.2
    ).losses_BT.sum().backward()
    assert logps.grad.abs().max() == 0


def test_value_losses_by_hand() -> None:
    values, old, returns = tensor([[1.0, 1.0, 0.3]]), tensor([[0.0, 0.0, 0.2]]), tensor([[2.0, 0.0, 1.0]])
    mask = mask_of([3], 3)
    # Held at 0.2: (0.2 - 2)^2 is more than (1 - 2)^2; (1 - 0)^2 is more than (0.2 - 0)^2; 0.3 is within reach.
    found = value_losses(values, old, returns, mask, 0.2)
    assert found.losses_BT.tolist()[0] == pytest.approx([0.5 * 1.8**2, 0.5, 0.5 * 0.7**2])
    assert found.clipped_BT.tolist()[0] == [True, False, False]
    plain = value_losses(values, old, returns, mask, None)
    assert plain.losses_BT.tolist()[0] == pytest.approx([0.5, 0.5, 0.5 * 0.7**2])
    assert not plain.clipped_BT.any()


@few
@given(cases, st.floats(0.05, 0.5))
def test_value_losses_are_the_larger_of_two_and_padding_has_no_gradient(case: Case, clip: float) -> None:
    values, old, returns = case.draw(), case.draw(), case.draw()
    values.requires_grad_()
    found = value_losses(values, old, returns, case.mask, clip)
    found.losses_BT.sum().backward()
    case.assert_padding_is_zero(found.losses_BT)
    case.assert_padding_is_zero(values.grad)
    for got, v, before, r in zip(*map(case.ragged, (found.losses_BT, values, old, returns)), strict=True):
        held = before + np.clip(v - before, -clip, clip)
        assert got == pytest.approx(0.5 * np.maximum((v - r) ** 2, (held - r) ** 2))


def test_explained_variance_by_hand() -> None:
    returns, mask = tensor([[1.0, 2.0], [3.0, 99.0]]), mask_of([2, 1], 2)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 5.0), returns, mask) == pytest.approx(0.0)
    # returns - values = 0, 0, 2: variance 8/9; of the returns 2/3
    assert explained_variance(tensor([[1.0, 2.0], [1.0, 0.0]]), returns, mask) == pytest.approx(1 - (8 / 9) / (2 / 3))
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0.0


@few
@given(cases)
def test_a_row_without_tokens_changes_nothing(case: Case) -> None:
    """All terms together, with and without a row that is masked from its first token."""
    with_row = Case([*case.lengths, 0], 0, case.width - max(1, *case.lengths))
    parts = [case.draw() for _ in range(4)]
    garbage = torch.full((1, case.width), math.nan, dtype=torch.float64)
    scores = tensor(case.random.normal(size=len(case.lengths)))

    def everything(parts: list[Any], mask: Any, scores: Any) -> Any:
        logps, reference, values, old = parts
        rewards = token_rewards(scores, kl_k1(logps, reference, mask), mask, 0.1)
        advantages, returns = estimate_advantages(rewards, values, mask, 0.99, 0.9)
        policy = policy_losses(logps, old, whiten(advantages, mask), mask, 0.2).losses_BT.sum()
        return policy + value_losses(values, old, returns, mask, 0.2).losses_BT.sum()

    alone = everything(parts, case.mask, scores)
    beside = everything(
        [torch.cat([p, garbage]) for p in parts], with_row.mask, torch.cat([scores, tensor([math.nan])])
    )
    assert float(beside) == pytest.approx(float(alone), rel=1e-12)
