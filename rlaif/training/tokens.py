"""Pairs of text to pairs of token ids, exactly as TRL's DPO trainer does it, but with what cannot train taken out and
counted before anything is computed.

TRL truncates each sequence in its collator, so the two completions of a pair can become one and the same without a
word, and it drops prompts that fill ``max_length``; here both are drops with a reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.errors import InputError
from rlaif.preferences import Pair, Turn

TokenDrop = Literal["prompt_too_long", "identical_when_cut", "no_prompt"]


@dataclass(frozen=True)
class TokenPair:
    """Token ids of one pair; prompt + completion is at most ``max_length`` long, and each part at least one token.
    ``prob_chosen`` and ``margin``: as the row has them, and otherwise what changes no loss."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    prob_chosen: float = 1.0
    margin: float = 0.0

    @property
    def length(self) -> int:
        """Tokens computed for this pair: the prompt once, both completions."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class TokenizedPairs:
    """``pairs`` + ``dropped`` = the pairs given. ``cut``: pairs kept although a completion lost its end.
    ``longest``: tokens of the longest prompt + completion before cutting. ``end_learned``: completions that end in the
    token at which generation stops. ``prompt_differs``: pairs whose prompt the chat template renders otherwise when an
    answer follows; the end of such a prompt is left out."""

    pairs: tuple[TokenPair, ...]
    dropped: Counter[TokenDrop]
    cut: int
    longest: int
    end_learned: int
    prompt_differs: int


def tokenize_pairs(pairs: Iterable[Pair], tokenizer: Any, max_length: int, end_ids: Sequence[int]) -> TokenizedPairs:
    """Token ids of ``pairs``. ``tokenizer``: a transformers tokenizer, with a chat template if the pairs are
    conversational; ``end_ids``: the tokens that end a generation. Raises InputError where the template refuses."""
    kept: list[TokenPair] = []
    dropped: Counter[TokenDrop] = Counter()
    cut = longest = end_learned = prompt_differs = 0
    for pair in pairs:
        prompt, with_chosen, with_rejected = _rendered(pair, tokenizer)
        shared = min(common(prompt, with_chosen), common(prompt, with_rejected))
        prompt_differs += shared < len(prompt)
        longest = max(longest, len(with_chosen), len(with_rejected))
        if shared >= max_length:
            dropped["prompt_too_long"] += 1
            continue
        chosen, rejected = (tuple(ids[shared:max_length]) for ids in (with_chosen, with_rejected))
        if not shared:  # its only tokens merged with the completion's
            dropped["no_prompt"] += 1
            continue
        if chosen == rejected:
            dropped["identical_when_cut"] += 1
            continue
        cut += max(len(with_chosen), len(with_rejected)) > max_length
        # The template may write something after the end token (a line break, say).
        end_learned += sum(not set(end_ids).isdisjoint(ids[-3:]) for ids in (chosen, rejected))
        prob = 1.0 if pair.prob_chosen is None else pair.prob_chosen
        kept.append(TokenPair(tuple(prompt[:shared]), chosen, rejected, prob, pair.margin or 0.0))
    return TokenizedPairs(tuple(kept), dropped, cut, longest, end_learned, prompt_differs)


def _rendered(pair: Pair, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt alone, with the chosen and with the rejected completion."""
    if isinstance(pair.prompt, str):
        end = tokenizer.eos_token
        # Plain text has no end of its own; without one the model would never learn to stop.
        chosen, rejected = (t if t.endswith(end) else t + end for t in (str(pair.chosen), str(pair.rejected)))
        prompt: str = pair.prompt
        whole, one, other = (list(tokenizer(text=t)["input_ids"]) for t in (prompt, prompt + chosen, prompt + rejected))
        return whole, one, other
    try:
        return (
            chat_ids(tokenizer, pair.prompt, add_generation_prompt=True),
            chat_ids(tokenizer, [*pair.prompt, *pair.chosen]),
            chat_ids(tokenizer, [*pair.prompt, *pair.rejected]),
        )
    except Exception as error:  # noqa: BLE001  a template is somebody else's program: it may raise anything
        raise InputError(f"{pair.row}: the model's chat template refuses this conversation ({error}).") from None


def chat_ids(tokenizer: Any, turns: list[Turn], **options: bool) -> list[int]:
    return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)["input_ids"])


def common(ids: Sequence[int], others: Sequence[int]) -> int:
    for i, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return i
    return min(len(ids), len(others))
