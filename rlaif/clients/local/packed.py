"""Many prompts read in one forward pass, with what they have in common read once.

Requests of a judge repeat themselves: the instructions are the same for all, the prompt for all pairs of its responses,
the first response for every pair that begins with it. The rows are sorted, so that each follows the one it shares most
with, and of each row only the tokens after that shared beginning enter the pass. They stand one behind another, without
padding, each at the position it has in its own row. Everything but attention works on single tokens and does not care;
in attention a row's new tokens see the tokens of that row alone: its own, and those it shares, wherever they stand.

The result is the same as reading each row by itself, up to the rounding of the matrix products. (The idea is that of
prefix trees in RadixAttention, 2312.07104, within one pass and without a cache between passes.)

Not covered: models whose layers carry a state from token to token, and attention with more than queries, keys, values
and a scale (soft caps, sinks, biases, windows shorter than a row); see `can_pack`.

Shapes: N tokens of the pass, n new tokens of one row, L tokens of that row in all, H heads, D their width.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

_NAME = "rlaif_packed"
_TRIAL = ((1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 8), (4, 9, 10, 11, 12, 13, 14))


@dataclass(frozen=True)
class PackedRow:
    """A row's place in the pass: its new tokens are ``start`` to ``end``; ``path`` (L,) says where each token of the
    row stands. ``mask`` (n, L): what each new token sees; None where the whole row is new."""

    start: int
    end: int
    path: Any
    mask: Any


@dataclass(frozen=True)
class Packed:
    """``ids`` and ``positions`` (1, N); ``paths``: for each row in the caller's order, where its tokens stand."""

    ids: Any
    positions: Any
    rows: tuple[PackedRow, ...]
    paths: tuple[list[int], ...]


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two rows have in common."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])


def pack(rows: Sequence[list[int]], device: Any) -> Packed:
    """Lay out the rows; none is empty."""
    ids: list[int] = []
    positions: list[int] = []
    placed: list[PackedRow] = []
    paths: list[list[int]] = [[] for _ in rows]
    row: list[int] = []
    path: list[int] = []
    for number in sorted(range(len(rows)), key=lambda i: rows[i]):
        shared = shared_tokens(row, rows[number])
        row, start = rows[number], len(ids)
        new = len(row) - shared
        path = path[:shared] + list(range(start, start + new))
        paths[number] = path
        if not new:  # the same row again, or the beginning of the one before it
            continue
        ids += row[shared:]
        positions += range(shared, len(row))
        mask = torch.ones(new, len(row), dtype=torch.bool, device=device).tril(shared) if shared else None
        placed.append(PackedRow(start, start + new, torch.tensor(path, device=device), mask))
    as_row = torch.tensor([ids, positions], device=device)
    return Packed(as_row[:1], as_row[1:], tuple(placed), tuple(paths))


def read_packed(model: Any, packed: Packed, keep: Sequence[int]) -> Any:
    """The logits (len(keep), V) of what follows the tokens at the places ``keep`` of the pass."""
    with _packed_attention(model):
        out = model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=packed.ids.device),
            packed_rows=packed.rows,
        )
    return out.logits[0]


def can_pack(model: Any) -> int:
    """The longest row that may be read packed: 0 for a model that cannot, by its config or by a trial: three short rows
    must come out as they do when each is read by itself."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    takes = {"logits_to_keep", "position_ids"} <= set(inspect.signature(model.forward).parameters)
    if not takes or not kinds <= {"full_attention", "sliding_attention"}:
        return 0
    trial = [[token % config.vocab_size for token in row] for row in _TRIAL]
    try:
        packed = pack(trial, model.device)
        found = read_packed(model, packed, [path[-1] for path in packed.paths]).float().log_softmax(-1)
        alone = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False) for row in trial]
    except Exception:  # noqa: BLE001  (whatever a model's code has against it, it is then read without)
        return 0
    expected = torch.stack([out.logits[0, -1] for out in alone]).float().log_softmax(-1)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.3
    if not torch.isfinite(expected).all() or float((found - expected).exp().sub(1).abs().max()) > tolerance:
        return 0
    return int(getattr(config, "sliding_window", None) or 2**31)


@contextmanager
def _packed_attention(model: Any) -> Iterator[None]:
    # In transformers an attention function without a mask function of the same name gets no mask: the rows are ours.
    config = model.config.get_text_config(decoder=True)
    usual = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    packed_rows: Sequence[PackedRow],
    scaling: float | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """Attention of each row within itself. query (1, H, N, D), key and value (1, H or fewer, N, D); returns
    (1, N, H, D)."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"packed attention with {unknown or 'a mask'}")
    if query.is_cuda and query.shape[1] != key.shape[1]:  # with a mask its fast kernels take no grouped heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    for row in packed_rows:
        out[:, :, row.start : row.end] = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, row.start : row.end],
            key.index_select(2, row.path),
            value.index_select(2, row.path),
            attn_mask=row.mask,
            is_causal=row.mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
