"""Completions sampled from the policy as it is now. Imports torch and transformers.

Every draw is fixed before sampling begins: a completion gets its own uniform numbers from (seed, step, prompt, sample),
one for each token, and a token is where its number falls in the cumulated distribution. So what else is in the batch,
and what was sampled before, changes nothing (but for rounding), and a resumed training samples what it would have.

A prompt is read once for all of its samples; completions that have ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from rlaif.hashing import derived_seed


@dataclass(frozen=True)
class Sampled:
    """``ids``: the completion's tokens, with the end token if it ``ended`` by itself. ``logps``: of each token, as the
    sampler saw it."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    ended: bool


def draws(seeds: Sequence[tuple[Any, ...]], length: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), shape (R, length): row i depends on ``seeds[i]`` alone."""
    rows = [
        torch.rand(length, generator=torch.Generator().manual_seed(derived_seed(*seed)), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws_RT: torch.Tensor,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    temperature: float,
) -> list[Sampled]:
    """R = len(prompts) * n completions, those of a prompt in a row, each of at most T tokens.

    ``model``: a causal language model of transformers, in eval mode, without dropout.
    """
    rows, length = draws_RT.shape
    each = rows // len(prompts)
    device = next(model.parameters()).device
    ids_PT, mask_PT = pad_left(prompts, pad_id, device)
    cache = DynamicCache(config=model.config)
    logits_PV = _next_logits(model, ids_PT, mask_PT, cache)
    if each > 1:
        cache.batch_repeat_interleave(each)
    logits_AV, mask_AT = logits_PV.repeat_interleave(each, dim=0), mask_PT.repeat_interleave(each, dim=0)
    ends = torch.tensor(list(end_ids), device=device)
    draws_RT = draws_RT.to(device)
    tokens_RT = torch.zeros(rows, length, dtype=torch.long, device=device)
    logps_RT = torch.zeros(rows, length, device=device)
    lengths_R = torch.full((rows,), length, device=device)
    ended_R = torch.zeros(rows, dtype=torch.bool, device=device)
    active_A = torch.arange(rows, device=device)  # which completions the batch holds
    for t in range(length):
        tokens_A, logps_A = _draw(logits_AV, draws_RT[active_A, t], temperature)
        tokens_RT[active_A, t], logps_RT[active_A, t] = tokens_A, logps_A
        over_A = torch.isin(tokens_A, ends)
        ended_R[active_A[over_A]] = True
        lengths_R[active_A[over_A]] = t + 1
        going_A = (~over_A).nonzero().squeeze(1)
        if not len(going_A) or t + 1 == length:
            break
        if len(going_A) < len(active_A):
            cache.batch_select_indices(going_A)
            active_A, tokens_A, mask_AT = active_A[going_A], tokens_A[going_A], mask_AT[going_A]
        mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(active_A), 1)], dim=1)
        logits_AV = _next_logits(model, tokens_A[:, None], mask_AT, cache)
    return [
        Sampled(tuple(ids[:n]), tuple(logps[:n]), ended)
        for ids, logps, n, ended in zip(
            tokens_RT.tolist(), logps_RT.tolist(), lengths_R.tolist(), ended_R.tolist(), strict=True
        )
    ]


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1 where there is a token), both (B, T): every row ends in the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """The position of each token among those of its row (B, T)."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def _next_logits(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits (B, V) of the token after ``ids_BT``; ``mask_BT`` covers what the cache holds, too."""
    output = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions(mask_BT)[:, -ids_BT.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def _draw(logits_BV: torch.Tensor, draws_B: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) and their log-probs (B,)."""
    logps_BV = torch.log_softmax(logits_BV / temperature, dim=-1)
    # In float64, so that the sum of a large vocabulary does not swallow its tail; the last sum may miss 1 by rounding.
    cumulated_BV = logps_BV.double().exp().cumsum(dim=-1)
    tokens_B = torch.searchsorted(cumulated_BV, (draws_B * cumulated_BV[:, -1])[:, None], right=True).squeeze(1)
    tokens_B = tokens_B.clamp(max=logits_BV.shape[1] - 1)
    return tokens_B, logps_BV.gather(1, tokens_B[:, None]).squeeze(1)
