"""The loss of pairs against numbers worked out by hand, and its laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

LN2 = math.log(2)

# (difference, probability that chosen is better, loss). sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4.
BY_HAND = [
    (0.0, 1.0, LN2),
    (0.0, 0.5, LN2),  # at no difference every label costs the same
    (0.0, 0.9, LN2),
    (math.log(3), 1.0, math.log(4 / 3)),
    (math.log(3), 0.0, math.log(4)),
    (math.log(3), 0.5, (math.log(4 / 3) + math.log(4)) / 2),
    (math.log(3), 0.75, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),  # the entropy of 3/4: the least there can be
    (-math.log(3), 0.9, 0.9 * math.log(4) + 0.1 * math.log(4 / 3)),
]


@pytest.mark.parametrize(("difference", "prob", "loss"), BY_HAND)
def test_the_loss_of_a_pair_is_the_cross_entropy_worked_by_hand(difference: float, prob: float, loss: float) -> None:
    import torch

    from rlaif.training.losses import preference_losses

    found = preference_losses(
        torch.tensor([difference], dtype=torch.float64), torch.tensor([prob], dtype=torch.float64)
    )
    assert float(found) == pytest.approx(loss, abs=1e-12)


def oracle(difference: np.ndarray, prob: np.ndarray) -> np.ndarray:
    # -log sigmoid(x) = log(1 + exp(-x)), which loses nothing where sigmoid(x) is near 1.
    losses: np.ndarray = prob * np.logaddexp(0, -difference) + (1 - prob) * np.logaddexp(0, difference)
    return losses


pairs = st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=8)


@given(pairs)
def test_the_loss_agrees_with_the_oracle(rows: list[tuple[float, float]]) -> None:
    import torch

    from rlaif.training.losses import preference_losses

    difference, prob = (np.array(side) for side in zip(*rows, strict=True))
    found = preference_losses(torch.tensor(difference), torch.tensor(prob)).numpy()
    assert np.allclose(found, oracle(difference, prob), rtol=1e-9, atol=1e-12)


@given(pairs)
def test_certain_labels_give_the_hard_loss_and_gradient_bit_for_bit(rows: list[tuple[float, float]]) -> None:
    import torch

    from rlaif.training.losses import preference_losses

    hard, soft = (torch.tensor([d for d, _ in rows], requires_grad=True) for _ in range(2))
    losses = preference_losses(hard), preference_losses(soft, torch.ones(len(rows)))
    assert torch.equal(*losses)
    for loss in losses:
        loss.mean().backward()
    assert hard.grad is not None
    assert soft.grad is not None
    assert torch.equal(hard.grad, soft.grad)


@given(st.floats(-8, 8), st.floats(0.01, 0.99))
def test_the_gradient_vanishes_where_the_model_believes_the_label(difference: float, prob: float) -> None:
    import torch

    from rlaif.training.losses import preference_losses

    at = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    preference_losses(at, torch.tensor([prob], dtype=torch.float64)).sum().backward()
    assert at.grad is not None
    assert float(at.grad) == pytest.approx(1 / (1 + math.exp(-difference)) - prob, abs=1e-9)


@given(st.floats(-30, 30), st.floats(0, 1))
def test_swapping_the_answers_and_the_label_changes_nothing(difference: float, prob: float) -> None:
    import torch

    from rlaif.training.losses import preference_losses

    one = preference_losses(torch.tensor([difference]), torch.tensor([prob]))
    other = preference_losses(torch.tensor([-difference]), torch.tensor([1 - prob]))
    assert float(one) == pytest.approx(float(other), rel=1e-5, abs=1e-6)


def test_dpos_loss_is_that_of_beta_times_the_ratios() -> None:
    import torch

    from rlaif.training.losses import dpo_losses

    # Policy minus reference: chosen +4, rejected -2; beta 0.5: a difference of 3.
    logps, reference = torch.tensor([[-6.0, -12.0]]), torch.tensor([[-10.0, -10.0]])
    expected = -0.8 * math.log(1 / (1 + math.exp(-3))) - 0.2 * math.log(1 / (1 + math.exp(3)))
    assert float(dpo_losses(logps, reference, 0.5, torch.tensor([0.8]))) == pytest.approx(expected, abs=1e-6)
