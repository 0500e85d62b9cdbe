"""The terms of PPO: tensors in, tensors out, nothing else. Imports torch.

Shapes are named at the end: B completions, T tokens of a completion (padded at the end), N tokens, V the vocabulary.
``mask_BT`` is True where there is a token. What stands in the padding, NaN included, changes no result and no gradient,
and a row without any token contributes nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def token_logps(logits_NV: torch.Tensor, labels_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs (N,) of ``labels_N`` under softmax(logits / temperature): the distribution that was sampled from."""
    return -F.cross_entropy(logits_NV.float() / temperature, labels_N, reduction="none")


def token_entropy(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Entropy (N,) in nats of softmax(logits / temperature)."""
    logps_NV = F.log_softmax(logits_NV.float() / temperature, dim=-1)
    return -(logps_NV.exp() * logps_NV).sum(dim=-1)


# ------------------------------------------------------------------------------------------------------------- the KL


def kl_k1(logps_BT: torch.Tensor, reference_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """log p - log q of each token (B, T), 0 in the padding: unbiased, and what is penalised."""
    return (logps_BT - reference_BT).masked_fill(~mask_BT, 0.0)


def kl_k3(logps_BT: torch.Tensor, reference_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """q/p - 1 - log(q/p) of each token (B, T), 0 in the padding: never negative, of less variance than k1 and with the
    same mean (Schulman, "Approximating KL Divergence", 2020)."""
    log_ratio_BT = (reference_BT - logps_BT).masked_fill(~mask_BT, 0.0)
    return torch.expm1(log_ratio_BT) - log_ratio_BT


@dataclass
class KLController:
    """The coefficient of the KL penalty; steered towards ``target`` nats a completion where there is one: multiplied by
    1 + clip(KL / target - 1, -0.2, 0.2) * completions / horizon (Ziegler et al., arXiv 1909.08593, section 2.2)."""

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """``kl``: the mean over ``completions``, in nats of whole completions."""
        if self.target is not None and completions:
            error = max(-0.2, min(0.2, kl / self.target - 1.0))
            self.coefficient *= 1.0 + error * completions / self.horizon


# ---------------------------------------------------------------------------------------------- rewards and advantages


def token_rewards(
    rewards_B: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """The reward of each token (B, T): the penalty -coefficient * KL on every one, and the completion's reward on its
    last one, which is the EOS where it ended by itself. Never on padding."""
    rewards_BT = (-coefficient * kl_BT).masked_fill(~mask_BT, 0.0)
    return rewards_BT + torch.where(_last(mask_BT), rewards_B[:, None], 0.0)


def _last(mask_BT: torch.Tensor) -> torch.Tensor:
    """True at the last token of each row (B, T)."""
    following_BT = F.pad(mask_BT[:, 1:], (0, 1), value=False)
    return mask_BT & ~following_BT


def estimate_advantages(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates (Schulman et al., arXiv 1506.02438, eq. 16) and returns = advantages + values,
    both (B, T) and 0 in the padding. ``values_BT``: of the state before each token; after the last one it is 0."""
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    next_advantage_B = next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # In the padding both stay 0: rewards and values are 0 there, and nothing follows.
        next_advantage_B = delta_B + gamma * lam * next_advantage_B
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, advantages_BT + values_BT


def whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the tokens; 0 in the padding, and everywhere if they are all the same."""
    tokens_N = values_BT[mask_BT]
    if not tokens_N.numel():
        return torch.zeros_like(values_BT)
    centred_BT = (values_BT - tokens_N.mean()).masked_fill(~mask_BT, 0.0)
    deviation = math.sqrt(float(centred_BT.square().sum()) / tokens_N.numel())
    return centred_BT / (deviation + 1e-8)


# --------------------------------------------------------------------------------------------------------- the losses


@dataclass(frozen=True)
class TokenLosses:
    """``losses_BT`` of each token, 0 in the padding; ``clipped_BT``: where the clip decides, and no gradient flows."""

    losses_BT: torch.Tensor
    clipped_BT: torch.Tensor


def policy_losses(
    logps_BT: torch.Tensor, old_BT: torch.Tensor, advantages_BT: torch.Tensor, mask_BT: torch.Tensor, clip: float
) -> TokenLosses:
    """-min(r * A, clip(r, 1 - clip, 1 + clip) * A), r = p / p_old (arXiv 1707.06347, eq. 7). ``old_BT``: log-probs
    under the policy that sampled."""
    # Masked before exp: inf in the padding would make the gradient NaN, masked or not.
    ratios_BT = (logps_BT - old_BT).masked_fill(~mask_BT, 0.0).exp()
    advantages_BT = advantages_BT.masked_fill(~mask_BT, 0.0)
    free_BT = -advantages_BT * ratios_BT
    held_BT = -advantages_BT * ratios_BT.clamp(1.0 - clip, 1.0 + clip)
    return TokenLosses(torch.maximum(free_BT, held_BT), (held_BT > free_BT).detach())


def value_losses(
    values_BT: torch.Tensor,
    old_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip: float | None,
) -> TokenLosses:
    """Half the squared error of each value, or of the value held within ``clip`` of the old one, whichever is larger
    (as in the reference implementation of PPO, openai/baselines ppo2). ``clip`` None: the plain squared error."""
    values_BT, old_BT, returns_BT = (x.masked_fill(~mask_BT, 0.0) for x in (values_BT, old_BT, returns_BT))
    free_BT = (values_BT - returns_BT).square()
    if clip is None:
        return TokenLosses(0.5 * free_BT, torch.zeros_like(mask_BT))
    held_BT = (old_BT + (values_BT - old_BT).clamp(-clip, clip) - returns_BT).square()
    return TokenLosses(0.5 * torch.maximum(free_BT, held_BT), (held_BT > free_BT).detach())


def explained_variance(values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens: 1 foresees every return, 0 is a constant guess, below
    0 is worse than that. 0 where the returns do not vary."""
    returns_N, values_N = returns_BT[mask_BT].double(), values_BT[mask_BT].double()
    if returns_N.numel() < 2 or (variance := float(returns_N.var(correction=0))) < 1e-12:
        return 0.0
    return 1.0 - float((returns_N - values_N).var(correction=0)) / variance
