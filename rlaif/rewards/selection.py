"""Best-of-n and rejection sampling: which completions of one prompt are kept. Pure.

A masked completion (value None) is never selected, and the order in which completions come changes nothing: equal
values are told apart by a hash of the text.
"""

from collections.abc import Sequence

from rlaif.hashing import digest
from rlaif.rewards.composite import Scored


def best_of_n(completions: Sequence[str], scored: Sequence[Scored], seed: int = 0) -> int | None:
    """The index of the best completion; None where all are masked."""
    order = ranked(completions, scored, seed)
    return order[0] if order else None


def rejection_sample(
    completions: Sequence[str],
    scored: Sequence[Scored],
    *,
    threshold: float,
    keep: int = 1,
    seed: int = 0,
) -> list[int]:
    """The indices of the ``keep`` best completions whose reward is at least ``threshold``, the best first: data for
    rejection-sampled fine-tuning (RAFT, Dong et al., arXiv 2304.06767; STaR, Zelikman et al., arXiv 2203.14465).

    Of completions that differ in white space only, one is kept.
    """
    kept: list[int] = []
    seen: set[str] = set()
    for index in ranked(completions, scored, seed):
        value = scored[index].value
        text = " ".join(completions[index].split())
        if len(kept) == keep or value is None or value < threshold:
            break
        if text not in seen:
            seen.add(text)
            kept.append(index)
    return kept


def ranked(completions: Sequence[str], scored: Sequence[Scored], seed: int = 0) -> list[int]:
    """The indices of all completions that have a reward, the best first."""
    if len(completions) != len(scored):
        raise ValueError(f"{len(completions)} completions, {len(scored)} rewards; give one for each")
    valued = [(-s.value, digest(seed, text), i) for i, (text, s) in enumerate(zip(completions, scored, strict=True))
              if s.value is not None]  # fmt: skip
    return [index for _, _, index in sorted(valued)]
