"""The pairwise judge: which of two completions follows a principle better?

Asked in both orders, because a judge prefers a position about as often as it prefers a response; a verdict is about
completions a and b themselves, and un-swapped in one place (`judge`).
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.judges.ask import Answer, Asker, How, resolve_labels
from rlaif.judges.orders import first_order, is_audited
from rlaif.judges.reply import Form, Labels, Shown, unclaimed
from rlaif.templates import Template, load_template
from rlaif.types import Comparison, Judgement, Message, Order, Principle, Unjudged, Verdict

__all__ = ["MUST_USE", "VARIABLES", "PairwiseJudge", "resolve_labels"]

VARIABLES = ("principles", "conversation", "first", "second", "labels", "form")
MUST_USE = ("principles", "conversation", "first", "second", "labels")
CLAMP = 0.4, 0.6  # after reasons a model is surer than it is right (Constitutional AI, 2212.08073, section 4.1)

_CHOICE: dict[Shown, Literal["a", "b", "tie"]] = {"first": "a", "second": "b", "tie": "tie", "bad": "tie"}


class PairwiseJudge:
    """A model as a judge of pairs.

    ``labels``: where the verdict is read from: "logprob", "text" or "json" (see `resolve_labels` for "auto").
    """

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        self.client = client
        self.config = config
        self.labels = labels
        # or others, where a text contains these
        self.offered = Labels(tie="Z" if config.ties else None, bad="W" if config.both_bad else None)
        self.template: Template = load_template(config.template, variables=VARIABLES, must_use=MUST_USE)

    async def judge_all(
        self, comparisons: Sequence[Comparison], principles: Sequence[Principle], seed: int
    ) -> list[Judgement]:
        """`judge` on each of a prompt's comparisons."""
        answers = await asyncio.gather(*(self.judge(c, principles, seed) for c in comparisons))
        return [j for answer in answers for j in answer]

    async def judge(self, comparison: Comparison, principles: Sequence[Principle], seed: int) -> list[Judgement]:
        """One judgement for each order asked, outcomes un-swapped. ``seed`` draws the order where only one is asked,
        and which comparisons are audited with ``orders: auto``."""
        if self.config.orders == "both":
            return list(await asyncio.gather(*(self._look(comparison, principles, order) for order in ("ab", "ba"))))
        order = first_order(seed, comparison)
        first = await self._look(comparison, principles, order)
        if self.config.orders == "one" or not self._look_twice(comparison, first, seed):
            return [first]
        return [first, await self._look(comparison, principles, "ba" if order == "ab" else "ab")]

    def _look_twice(self, comparison: Comparison, first: Judgement, seed: int) -> bool:
        # Without a first verdict the comparison is lost: a second one would be paid for nothing.
        return isinstance(first.outcome, Verdict) and (
            first.outcome.method != "logprob"  # a label alone says nothing of how sure it is
            or max(first.outcome.p_a, 1 - first.outcome.p_a) < self.config.sure
            or is_audited(seed, comparison, self.config.audit)
        )

    async def _look(self, comparison: Comparison, principles: Sequence[Principle], order: Order) -> Judgement:
        keys: list[str] = []
        outcome = await self._ask(comparison if order == "ab" else comparison.swap(), principles, keys)
        return Judgement(
            prompt_id=comparison.prompt.id,
            a=comparison.a.id,
            b=comparison.b.id,
            principles=tuple(p.id for p in principles),
            judge=str(self.client.identity),
            template=self.template.version,
            order=order,
            outcome=outcome if order == "ab" else outcome.swap(),
            request_keys=tuple(keys),
        )

    async def _ask(self, shown: Comparison, principles: Sequence[Principle], keys: list[str]) -> Verdict | Unjudged:
        """The outcome in terms of what was shown: a is the first, b the second."""
        offered = self.labels_for(shown)

        def render(form: Form) -> tuple[Message, ...]:
            return self.template.render(
                principles=[p.compare for p in principles],
                conversation=shown.prompt.messages,
                first=shown.a.text,
                second=shown.b.text,
                labels=offered,
                form=form,
            )

        asker = Asker(self.client, self.config, self.labels)
        answer = await asker.ask(render, tuple(offered.offered()), keys)
        return answer if isinstance(answer, Unjudged) else self._verdict(answer, offered)

    def _verdict(self, answer: Answer, offered: Labels) -> Verdict:
        p = {shown: answer.p[label] for label, shown in offered.offered().items()}
        p_a = p["first"] + (p.get("tie", 0.0) + p.get("bad", 0.0)) / 2
        if self.config.clamp and answer.rationale is not None and answer.method == "logprob":
            p_a = min(max(p_a, CLAMP[0]), CLAMP[1])
        best = answer.best
        return Verdict(
            choice=_CHOICE[offered.offered()[best]] if best else "tie",
            p_a=p_a,
            method=answer.method,
            label_mass=answer.mass,
            rationale=answer.rationale,
            both_bad=best is not None and best == offered.bad,
        )

    def labels_for(self, shown: Comparison) -> Labels:
        """Labels that nothing under judgement contains. The same for both orders: their texts are the same."""
        texts = (*(message.content for message in shown.prompt.messages), shown.a.text, shown.b.text)
        return unclaimed(self.offered, texts, one_token=self.labels == "logprob")
