"""Prompt -> completions: n samples of each prompt, every one with a seed of its own."""

import asyncio
from collections.abc import Sequence

from rlaif.clients.base import Client, request_key
from rlaif.config.generate import PolicyConfig
from rlaif.errors import RequestError, TransientError
from rlaif.hashing import derived_seed, digest
from rlaif.types import ChatRequest, Completion, Dropped, Message, Prompt

CACHED_FROM = 4096  # characters; no provider caches less than 1,024 tokens, and those are seldom shorter


def completion_id(prompt_id: str, index: int, text: str) -> str:
    return "c-" + digest(prompt_id, index, text)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt as the policy is shown it: ``system`` goes before messages that have no system message.

    Judging and training see the same messages, so that a pair never holds an answer to another prompt. The id stays."""
    if system is None or prompt.messages[0].role == "system":
        return prompt
    return prompt.model_copy(update={"messages": (Message(role="system", content=system), *prompt.messages)})


async def sample(
    prompt: Prompt, client: Client, config: PolicyConfig, seed: int
) -> tuple[list[Completion], list[Dropped]]:
    """``config.n`` completions of a prompt. A sample that the provider never gave is Dropped; one that did not end
    normally is both returned (a record of what was paid for) and Dropped, so that nothing uses it."""
    ahead = 1 if _is_cached(prompt, config) else 0
    results = [await _one(prompt, client, config, seed, i) for i in range(ahead)]
    results += await asyncio.gather(*(_one(prompt, client, config, seed, i) for i in range(ahead, config.n)))
    completions = [r for r in results if isinstance(r, Completion)]
    dropped = [r for r in results if isinstance(r, Dropped)]
    return completions, dropped + [_unusable(c) for c in completions if not is_usable(c)]


def _is_cached(prompt: Prompt, config: PolicyConfig) -> bool:
    """Whether the siblings of a first sample can read the prompt from the provider's cache.

    Only what an earlier request has written can be read, and Anthropic charges writing a quarter more than plain input:
    n samples sent at once would pay for n writes. Prompts that are too short to be cached need not wait, and a batch
    must not (its replies may take a day)."""
    if config.model is None or config.model.backend not in ("openai", "anthropic") or config.model.transport == "batch":
        return False
    return sum(len(m.content) for m in prompt.messages) >= CACHED_FROM


def given(prompt: Prompt, texts: Sequence[str], source: str) -> tuple[list[Completion], list[Dropped]]:
    """Completions made elsewhere, as `sample` would have returned them; ``source`` stands for their model."""
    completions = [
        Completion(
            id=completion_id(prompt.id, i, text),
            prompt_id=prompt.id,
            index=i,
            text=text,
            model=source,
            finish_reason="stop",
        )
        for i, text in enumerate(texts)
    ]
    return completions, [_unusable(c) for c in completions if not is_usable(c)]


def is_usable(completion: Completion) -> bool:
    """Whether a completion may be judged and trained on: it ended normally and says something."""
    return completion.finish_reason == "stop" and bool(completion.text.strip())


def _unusable(completion: Completion) -> Dropped:
    why = "the text is empty" if completion.finish_reason == "stop" else f"finish reason {completion.finish_reason}"
    return Dropped(prompt_id=completion.prompt_id, a=completion.id, reason="bad_finish", detail=why)


async def _one(prompt: Prompt, client: Client, config: PolicyConfig, seed: int, index: int) -> Completion | Dropped:
    request = ChatRequest(
        messages=prompt.messages,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=derived_seed("sample", seed, prompt.id, index),
        sample_index=index,
        cache_prefix=len(prompt.messages),
    )
    try:
        reply = await client.complete(request)
    except (RequestError, TransientError) as error:
        return Dropped(prompt_id=prompt.id, reason="provider_error", detail=f"sample {index}: {error}")
    return Completion(
        id=completion_id(prompt.id, index, reply.text),
        prompt_id=prompt.id,
        index=index,
        text=reply.text,
        model=str(client.identity),
        finish_reason=reply.finish_reason,
        request_key=request_key(client.identity, request),
    )
