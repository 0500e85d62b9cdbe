"""The arithmetic of the local transport: next-token probabilities and batched sampling.

Written out instead of calling ``generate``, for what that cannot do: rows leave the batch when they end, a prompt that
several rows share is read once, and each row draws with its own random numbers, so that a sample does not depend on the
batch around it (up to the rounding of the matrix products, which may differ with the batch's shape).

Shapes: B rows, U distinct prompts, T positions, V vocabulary.

Not covered: models that are not decoders, adapters switched per request, speculative decoding, paged attention. The
sampling defaults of a model's ``generation_config`` (top_k, penalties) are not applied: the request says all.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as hf_logging

from rlaif.clients.local import packed
from rlaif.clients.local.chat import Chat, Job
from rlaif.errors import ProviderError, RequestError
from rlaif.hashing import digest, uniform
from rlaif.types import ChatRequest, TokenLogprobs

# A prefix shorter than this is cheaper to read again in every row than to read apart.
_MIN_SHARED = 16
# Enough of the vocabulary to hold the nucleus of nearly every distribution; sorting all of it costs ten times more.
_NUCLEUS = 1024
# Rows of logits turned into log-probs at once: a buffer of the whole vocabulary for each is not small.
_SOME = 64


class Decoder:
    """A causal language model that scores and samples batches of rows. Used from one thread."""

    def __init__(self, model: Any, chat: Chat) -> None:
        self._model, self._chat = model.eval(), chat
        self._device = model.device
        self._stops = chat.eos_tokens() | _eos_of(model)
        parameters = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._takes_positions = "position_ids" in parameters
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize  # for one position
        self._cache_positions = _cache_budget(self._device) // cache_bytes
        self._forward_positions = 4096 if self._device.type == "cpu" else 32768
        logits_bytes = 2**28 if self._device.type == "cpu" else 2**32  # for the logits of one scoring pass
        self._forward_logits = max(1, logits_bytes // (4 * config.vocab_size))
        with torch.inference_mode():
            self._longest_packed = packed.can_pack(model)

    def in_order(self, rows: Sequence[Job]) -> list[Job]:
        """Rows of one kind in the order in which batches are made of them: each beside those it is best read with."""
        if not rows[0].scoring or not self._longest_packed:
            return sorted(rows, key=lambda row: (len(row.read), row.read))
        read: list[int] = []
        ordered = sorted(rows, key=lambda row: row.read)
        for row in ordered:
            before, read = read, row.read
            row.unshared = len(read) - packed.shared_tokens(before, read)
        return ordered

    def fits(self, rows: Sequence[Job]) -> bool:
        """Whether these rows, neighbours in `in_order`, stay within memory as one batch: the activations of reading
        them, the logits of scored ones, and the cache of a sampled batch."""
        if rows[0].scoring and self._longest_packed:
            read = len(rows[0].read) + sum(row.unshared for row in rows[1:])
            logits = sum(row.kept for row in rows)
            return read <= self._forward_positions and logits <= self._forward_logits
        read = len(rows) * max(len(row.read) for row in rows)
        if rows[0].scoring:
            return read <= self._forward_positions
        generated = sum(row.request.max_tokens for row in rows)
        return read <= 4 * self._forward_positions and read + generated <= self._cache_positions

    def score(self, rows: Sequence[Job]) -> None:
        """The probabilities of each row's next token or of its given text: one forward pass, logits only where they are
        asked for. A row whose given text has a probability that is no finite number gets a ``failure``."""
        with torch.inference_mode():
            for row, logits in zip(rows, self._read_scored(rows), strict=True):
                row.finish = "stop"  # all that was asked for is here
                if row.request.continuation is not None:
                    self._score_given(row, logits)
                    continue
                best = int(_best(logits[-1:]).indices[0])
                row.logprobs.append(self._token_logprobs(row.request, logits[-1].log_softmax(-1), best))
                row.tokens.append(best)

    def _score_given(self, row: Job, logits_TV: Any) -> None:
        tokens = torch.tensor(row.given, device=self._device)[:, None]
        found: list[float] = []
        for some, those in zip(logits_TV.split(_SOME), tokens.split(_SOME), strict=True):
            found += (some.gather(1, those)[:, 0] - some.logsumexp(-1)).tolist()
        if not all(map(math.isfinite, found)):
            row.failure = RequestError(
                "the model gives this text no finite probability (its output overflows, or is NaN).", kind="invalid"
            )
            return
        for token, logprob in zip(row.given, found, strict=True):
            # Rounding can leave a sure token a hair above 0, where no probability is.
            row.logprobs.append(TokenLogprobs(token=self._chat.token_text(token), logprob=min(0.0, logprob), top=()))

    def _read_scored(self, rows: Sequence[Job]) -> Iterator[Any]:
        """For each row the logits of its last ``kept`` places, (kept, V) in float32."""
        if max(len(row.read) for row in rows) > self._longest_packed:
            if any(row.given for row in rows):
                return map(self._read_alone, rows)
            _, _, logits_U, of_row = self._read(rows)
            return (logits_U[u : u + 1] for u in of_row)
        together = packed.pack([row.read for row in rows], self._device)
        wanted = [path[-row.kept :] for row, path in zip(rows, together.paths, strict=True)]
        keep = sorted({place for places in wanted for place in places})
        at = {place: i for i, place in enumerate(keep)}
        logits = packed.read_packed(self._model, together, keep)
        return (logits[[at[place] for place in places]].float() for places in wanted)

    def _read_alone(self, row: Job) -> Any:
        last = {"logits_to_keep": row.kept} if self._last_only else {}
        ids = torch.tensor([row.read], device=self._device)
        return self._model(input_ids=ids, use_cache=False, **last).logits[0, -row.kept :].float()

    def sample(self, rows: Sequence[Job]) -> None:
        """Generate every row to its end: an end token, a stop string or its ``max_tokens``."""
        with torch.inference_mode():
            self._sample(rows)

    def _sample(self, rows: Sequence[Job]) -> None:
        cache, mask, logits, of_row = self._read(rows)
        index = torch.tensor(of_row, device=self._device)
        cache.reorder_cache(index)
        mask, logits = mask[index], logits[index]
        active = list(rows)
        streams = {id(row): _stream(row.request) for row in rows}
        while True:
            tokens = self._draw(logits, active, [streams[id(row)] for row in active])
            going = [i for i, token in enumerate(tokens) if not self._ends(active[i], token, logits[i])]
            if not going:
                return
            if len(going) < len(active):
                keep = torch.tensor(going, device=self._device)
                cache.reorder_cache(keep)
                mask, active, tokens = mask[keep], [active[i] for i in going], [tokens[i] for i in going]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            logits = self._forward(torch.tensor(tokens, device=self._device)[:, None], mask, cache)

    def _read(self, rows: Sequence[Job]) -> tuple[Any, Any, Any, list[int]]:
        """Read the distinct prompts: their cache, mask (U, T), last logits (U, V), and each row's place among them."""
        prompts = {tuple(row.prompt): 0 for row in rows}
        for place, prompt in enumerate(prompts):
            prompts[prompt] = place
        shared = _common_prefix(list(prompts))
        cache = DynamicCache(config=self._model.config)
        mask = torch.ones(len(prompts), shared, dtype=torch.long, device=self._device)
        if shared:
            prefix = torch.tensor([next(iter(prompts))[:shared]], device=self._device)
            self._forward(prefix, mask[:1], cache)
            cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.long, device=self._device))
        rest = [prompt[shared:] for prompt in prompts]
        width = max(map(len, rest))
        # Padded on the left: every row's next token then stands in the last column.
        ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rest], device=self._device)
        real = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rest], device=self._device)
        mask = torch.cat([mask, real], dim=1)
        return cache, mask, self._forward(ids, mask, cache), [prompts[tuple(row.prompt)] for row in rows]

    def _forward(self, ids: Any, mask: Any, cache: Any) -> Any:
        """Append ``ids`` (B, T) to the cache; the logits of the last position, (B, V) in float32."""
        extra = dict(self._last_only)
        if self._takes_positions:
            extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1].float()

    def _draw(self, logits: Any, rows: Sequence[Job], streams: Sequence[str]) -> list[int]:
        """One token for each row (logits (B, V)): the most likely at temperature 0, else by inverse CDF from the row's
        own uniform number."""
        best, tokens = _best(logits)
        hot = [i for i, row in enumerate(rows) if row.request.temperature > 0]
        if hot:
            asked = [rows[i].request for i in hot]
            heat = torch.tensor([r.temperature for r in asked], device=self._device)[:, None]
            probs = ((logits[hot] - best[hot, None]) / heat).softmax(-1)
            for k, request in enumerate(asked):
                if request.top_p < 1:
                    probs[k] = _nucleus(probs[k], request.top_p)
            cdf = probs.cumsum(-1)
            u = torch.tensor([uniform(streams[i], len(rows[i].tokens)) for i in hot], device=self._device)
            # The first token whose cumulated probability reaches u: it never has probability 0, since u > 0.
            drawn = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None])[:, 0]
            tokens[hot] = drawn.clamp(max=logits.shape[-1] - 1)
        return [int(t) for t in tokens.tolist()]

    def _ends(self, row: Job, token: int, logits_V: Any) -> bool:
        """Append the token to the row and say whether the row ends with it."""
        request = row.request
        row.tokens.append(token)
        if token in self._stops:
            row.finish = "stop"
            return True
        if request.top_logprobs is not None:
            row.logprobs.append(self._token_logprobs(request, logits_V.log_softmax(-1), token))
        if request.stop and any(s in self._chat.decode(row.tokens) for s in request.stop):
            row.finish = "stop"
            return True
        row.finish = "length"
        return len(row.tokens) >= request.max_tokens or not row.wanted

    def _token_logprobs(self, request: ChatRequest, logprobs_V: Any, token: int) -> TokenLogprobs:
        """The token's log-prob with the top alternatives, and every spelling of the request's labels besides."""
        top = logprobs_V.topk(min(request.top_logprobs or 1, logprobs_V.shape[-1]))
        found = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        for label in request.labels:
            for t in self._chat.label_tokens(label):
                found[t] = float(logprobs_V[t])
        ranked = sorted(found.items(), key=lambda item: -item[1])
        return TokenLogprobs(
            token=self._chat.token_text(token),
            logprob=float(logprobs_V[token]),
            top=tuple((self._chat.token_text(t), lp) for t, lp in ranked if lp > float("-inf")),
        )


def load_decoder(path: str, chat: Chat, device: str | None, dtype: str | None) -> Decoder:
    """The model of a folder or hub id, ready to decode. Default: CUDA with bfloat16 where there is one, else CPU with
    float32 (bfloat16 is slower there)."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    with _no_bars():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind)
    return Decoder(model.to(place), chat)


@contextmanager
def _no_bars() -> Iterator[None]:
    # Loading takes a second or two, and its progress bar would write across the run's own.
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _best(logits: Any) -> Any:
    """The most likely token of each row and its logit. A NaN anywhere in a row comes out here and ends the batch."""
    best = logits.max(-1)
    if not torch.isfinite(best.values).all():
        raise ProviderError("the model's output is not finite (NaN); its weights or its dtype are unusable.")
    return best


def out_of_memory(error: Exception) -> bool:
    # torch has a class for a GPU's memory only; the CPU allocator says it in words.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _stream(request: ChatRequest) -> str:
    # Who draws: the same question with another seed or sample_index draws other numbers, and so does another question.
    return digest([m.model_dump() for m in request.messages], request.seed, request.sample_index)


def _nucleus(probs_V: Any, top_p: float) -> Any:
    """The smallest set of most likely tokens with at least ``top_p`` of the mass (Holtzman et al., 1904.09751); the
    others' probabilities become 0."""
    for k in (min(_NUCLEUS, probs_V.shape[-1]), probs_V.shape[-1]):
        ranked = probs_V.topk(k).values
        before = ranked.cumsum(-1) - ranked
        inside = before < top_p
        if not inside[-1] or k == probs_V.shape[-1]:
            break
    return torch.where(probs_V >= ranked[inside][-1], probs_V, 0.0)


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens all prompts share, at least one left for each; 0 where sharing does not pay."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in sorted order these two differ the earliest
    longest = min(map(len, prompts)) - 1
    shared = next((i for i in range(longest) if first[i] != last[i]), longest)
    return shared if shared >= _MIN_SHARED else 0


def _eos_of(model: Any) -> frozenset[int]:
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)


def _cache_budget(device: Any) -> int:
    """Bytes that the keys and values of one batch may take: half of what is free on a GPU, 2 GiB elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return 2 * 2**30
