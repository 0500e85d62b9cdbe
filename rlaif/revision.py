"""Critique and revision (Constitutional AI, 2212.08073, section 3): a model criticises a sample by a principle drawn
for the step, then rewrites it.

A revision is not better by definition: critiques are often wrong. It is only another completion, and a judge compares
it with its draft like any two. Every version on the way is kept, and names the one it was made from (``revised_from``).
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.clients.base import Client, request_key
from rlaif.config.revision import RevisionConfig
from rlaif.constitution import applies, draw_principle
from rlaif.errors import InputError, RequestError, TransientError
from rlaif.hashing import derived_seed, digest
from rlaif.templates import load_template
from rlaif.types import (
    ChatReply,
    ChatRequest,
    Completion,
    Constitution,
    Dropped,
    DropReason,
    Message,
    Principle,
    Prompt,
)

CRITIQUE = ("conversation", "response", "critique_request")
REVISE = ("conversation", "response", "critique_request", "critique", "revision_request")


class Revised(NamedTuple):
    """What became of one draft: its ``versions`` in order, the draft left out, and, where a step failed, why. Only
    where none failed is the last version its revision."""

    draft: Completion
    versions: tuple[Completion, ...]
    failed: Dropped | None = None

    @property
    def final(self) -> Completion | None:
        return self.versions[-1] if self.versions and self.failed is None else None


class Reviser:
    """A model that criticises and rewrites. Raises InputError where the constitution has nothing to do it by."""

    def __init__(self, client: Client, config: RevisionConfig, constitution: Constitution) -> None:
        self.client, self.config = client, config
        self.principles = [p for p in constitution.principles if p.critique and p.revise]
        if not self.principles:
            raise InputError(
                f"revision: no principle of {constitution.name} has both `critique` and `revise`; write these for at"
                " least one, or remove `revision`."
            )
        self.critique = load_template(config.critique_template, variables=CRITIQUE, must_use=CRITIQUE)
        self.revise = load_template(config.revise_template, variables=REVISE, must_use=REVISE[:2] + REVISE[3:])

    async def revise_all(self, prompt: Prompt, drafts: Sequence[Completion], seed: int) -> list[Revised]:
        """The first ``config.drafts`` of ``drafts``, revised; none where no principle applies to the prompt."""
        pool = [p for p in self.principles if applies(p, prompt)]
        chosen = drafts[: self.config.drafts] if pool else ()
        return await asyncio.gather(*(self._revise(prompt, draft, pool, seed) for draft in chosen))

    async def _revise(self, prompt: Prompt, draft: Completion, pool: Sequence[Principle], seed: int) -> Revised:
        versions: list[Completion] = []
        for step in range(self.config.steps):
            latest = versions[-1] if versions else draft
            principle = draw_principle(pool, seed, "revision", prompt.id, draft.id, str(step))
            made = await self._step(prompt, latest, principle, step, derived_seed("revision", seed, draft.id, step))
            if isinstance(made, Completion):
                versions.append(made)
                if _is_whole(made):
                    continue
                made = _dropped(prompt, f"revision {step + 1}", made.finish_reason, made.id)
            return Revised(draft, tuple(versions), made)
        return Revised(draft, tuple(versions))

    async def _step(
        self, prompt: Prompt, latest: Completion, principle: Principle, step: int, seed: int
    ) -> Completion | Dropped:
        shown = {
            "conversation": prompt.messages,
            "response": latest.text,
            "critique_request": principle.critique,
        }
        what = f"critique {step + 1}"
        try:
            critique, _ = await self._send(self.critique.render(**shown), seed)
            if critique.finish_reason != "stop" or not critique.text.strip():
                return _dropped(prompt, what, critique.finish_reason)
            what = f"revision {step + 1}"
            messages = self.revise.render(**shown, critique=critique.text.strip(), revision_request=principle.revise)
            reply, key = await self._send(messages, seed)
        except (RequestError, TransientError) as error:
            return Dropped(prompt_id=prompt.id, reason="provider_error", detail=f"{what}: {error}")
        return Completion(
            id="c-" + digest(prompt.id, "revision", latest.id, step, reply.text),
            prompt_id=prompt.id,
            index=latest.index,
            text=reply.text,
            model=str(self.client.identity),
            finish_reason=reply.finish_reason,
            revised_from=latest.id,
            request_key=key,
        )

    async def _send(self, messages: tuple[Message, ...], seed: int) -> tuple[ChatReply, str]:
        request = ChatRequest(
            messages=messages,
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seed=seed,
            cache_prefix=1 if messages[0].role == "system" else 0,
        )
        return await self.client.complete(request), request_key(self.client.identity, request)


def _is_whole(completion: Completion) -> bool:
    return completion.finish_reason == "stop" and bool(completion.text.strip())


def _dropped(prompt: Prompt, what: str, finish: str, id_: str | None = None) -> Dropped:
    why = "the text is empty" if finish == "stop" else f"finish reason {finish}"
    reason: DropReason = "bad_finish"
    return Dropped(prompt_id=prompt.id, a=id_, reason=reason, detail=f"{what}: {why}")
