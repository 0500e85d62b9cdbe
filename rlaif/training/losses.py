"""Losses of training: tensors in, tensors out, nothing else. Shapes are named at the end: B pairs, T tokens of a row,
N completion tokens. Imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rlaif.training.tokens import TokenPair


def preference_losses(difference_B: torch.Tensor, prob_B: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of each pair, shape (B,), under Bradley and Terry's model: chosen is better with the probability
    sigmoid(difference). ``prob_B``: how probably it is better (None: for certain). The cross-entropy

        -p log sigmoid(difference) - (1 - p) log sigmoid(-difference),

    as in RLAIF (arXiv 2309.00267, sec. 2.2); least where sigmoid(difference) = p, and with p = 1 the ordinary loss bit
    for bit."""
    if prob_B is None:
        return -F.logsigmoid(difference_B)
    return -(prob_B * F.logsigmoid(difference_B) + (1 - prob_B) * F.logsigmoid(-difference_B))


def dpo_losses(
    logps_B2: torch.Tensor, reference_B2: torch.Tensor, beta: float, prob_B: torch.Tensor | None = None
) -> torch.Tensor:
    """DPO's loss of each pair, shape (B,): `preference_losses` of beta * (chosen - rejected), where chosen and rejected
    are log-probs of whole completions, policy minus reference (arXiv 2305.18290, eq. 7). Columns: chosen, rejected."""
    ratios_B2 = logps_B2 - reference_B2
    return preference_losses(beta * (ratios_B2[:, 0] - ratios_B2[:, 1]), prob_B)


@dataclass(frozen=True)
class SharedPromptRow:
    """B pairs in one row of T tokens, each pair as prompt + chosen + rejected, the prompt once.

    Both completions continue the prompt: their positions go on from it, and ``mask`` hides the chosen one from the
    rejected one and every pair from the others. A completion's last token is left out, for it predicts nothing.
    ``predict_N``: where in the row each completion token is predicted; ``labels_N``: that token;
    ``completion_N``: which completion it belongs to, 2 * pair for chosen and 2 * pair + 1 for rejected.
    ``ends_B2``: where in the row chosen and rejected end.
    """

    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    mask: torch.Tensor  # (1, 1, T, T), True where a token may look
    predict_N: torch.Tensor
    labels_N: torch.Tensor
    completion_N: torch.Tensor
    ends_B2: torch.Tensor


def share_prompts(pairs: Sequence[TokenPair], *, whole: bool = False) -> SharedPromptRow:
    """Lay out ``pairs`` for one forward pass that computes every prompt once. ``whole``: with the last tokens, where
    scores are read."""
    left_out = 0 if whole else 1
    lengths = [len(p.prompt) + len(p.chosen) + len(p.rejected) - 2 * left_out for p in pairs]
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    labels: list[int] = []
    completion: list[int] = []
    ends: list[int] = []
    mask = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    for i, pair in enumerate(pairs):
        start, prompt = len(ids), len(pair.prompt)
        ids += pair.prompt
        positions += range(prompt)
        mask[start : start + prompt, start : start + prompt] = _causal(prompt)
        for branch, tokens in enumerate((pair.chosen, pair.rejected)):
            begin, inside = len(ids), len(tokens) - left_out
            ids += tokens[:inside]
            positions += range(prompt, prompt + inside)
            mask[begin : begin + inside, start : start + prompt] = True
            mask[begin : begin + inside, begin : begin + inside] = _causal(inside)
            predict += [start + prompt - 1, *range(begin, begin + len(tokens) - 1)]
            labels += tokens
            ends.append(len(ids) - 1)
            completion += [2 * i + branch] * len(tokens)
    return SharedPromptRow(
        torch.tensor([ids]),
        torch.tensor([positions]),
        mask[None, None],
        torch.tensor(predict),
        torch.tensor(labels),
        torch.tensor(completion),
        torch.tensor(ends).view(-1, 2),
    )


def _causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def completion_logps(logits_NV: torch.Tensor, labels_N: torch.Tensor, completion_N: torch.Tensor) -> torch.Tensor:
    """Log-probs of whole completions, shape (B, 2): chosen, rejected."""
    token_logps_N = -F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    pairs = (int(completion_N.max()) + 1) // 2
    totals = torch.zeros(2 * pairs, device=logits_NV.device, dtype=torch.float32)
    return totals.index_add(0, completion_N, token_logps_N).view(pairs, 2)
