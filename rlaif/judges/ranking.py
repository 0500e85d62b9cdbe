"""The ranking judge: several completions at once, best first.

**Debiased**: a model prefers places in a list, so each group is shown in an order drawn by hash and in the reverse of
it, ``rounds`` times. Up to ``group`` completions are one group, and each showing is a judgement of each pair in it: in
order "ab" where a stood before b, so that position preference shows, and cancels, as between two.

**More completions** play a tournament in as many rounds: groups drawn by hash first, then of neighbours in the
standing, so that the calls go where the order is open. It takes 2 * rounds * ceil(n / group) calls instead of n(n-1).
All results together give each completion a Bradley-Terry strength, and two strengths a verdict (method "vote").

    reply = [reasons], then as the last line: ["Ranking:"] name ">" name ">" ... with every name once

or one JSON object with "ranking": the list of names, and perhaps "rationale". The names ("K1") are words that no text
under judgement contains.
"""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rlaif.clients.base import Client
from rlaif.config.generate import JudgeConfig
from rlaif.errors import RequestError, TransientError
from rlaif.hashing import uniform
from rlaif.judges.ask import Asker, How
from rlaif.judges.pointwise import Score, compare_scores
from rlaif.judges.reply import Form, refused, unclaimed_numbers, unfinished
from rlaif.templates import Template, load_template
from rlaif.types import (
    ChatReply,
    Comparison,
    Completion,
    Judgement,
    Order,
    Outcome,
    Principle,
    Prompt,
    Unjudged,
    Verdict,
)

VARIABLES = ("principles", "conversation", "responses", "names", "form")

_LINE = re.compile(r"[\s*_`]*(?:[Rr]anking[\s*_`]*:)?([\w\s*_`]+(?:>[\w\s*_`]+)+)\.?\s*")

_ATTEMPTS = 64  # to draw an order that is not there yet; of two completions there is but one


class Showing(NamedTuple):
    """One request: the completions as shown, and as ranked (best first)."""

    shown: tuple[str, ...]
    ranked: tuple[str, ...] | Unjudged
    rationale: str | None
    keys: tuple[str, ...]


class RankingJudge:
    """A model that puts several completions into order. Its verdicts are read from text, or from JSON."""

    def __init__(self, client: Client, config: JudgeConfig, labels: How) -> None:
        self.client, self.config = client, config
        self.labels: How = "json" if labels == "json" else "text"
        self.template: Template = load_template(config.template, variables=VARIABLES, must_use=VARIABLES[:-1])
        self.asker = Asker(client, config, self.labels)

    async def judge_all(
        self, comparisons: Sequence[Comparison], principles: Sequence[Principle], seed: int
    ) -> list[Judgement]:
        """Of each comparison (all of one prompt) a judgement for each showing of it, or one of a whole tournament."""
        prompt = comparisons[0].prompt
        completions = {c.id: c for comparison in comparisons for c in (comparison.a, comparison.b)}
        standing: list[str] = sorted(completions)
        showings: list[Showing] = []
        for drawn in draw_orders(standing, self.config.rounds, seed, prompt.id):
            # Neighbours in the standing meet; within a group, the order shown is always the one drawn.
            groups = _split(standing if showings else drawn, self.config.group)
            orders = [[id_ for id_ in drawn if id_ in group] for group in groups]
            showings += await asyncio.gather(
                *(
                    self._show(prompt, [completions[id_] for id_ in order], principles)
                    for forward in orders
                    for order in (forward, forward[::-1])
                )
            )
            strengths = bradley_terry_strengths(sorted(completions), [s.ranked for s in showings])
            standing = sorted(completions, key=lambda id_: (-strengths[id_], id_))
        if len(completions) <= self.config.group:
            return [self._judgement(c, principles, s) for c in comparisons for s in showings]
        return [self._of_tournament(c, principles, showings, strengths) for c in comparisons]

    def _judgement(self, c: Comparison, principles: Sequence[Principle], s: Showing) -> Judgement:
        order: Order = "ab" if s.shown.index(c.a.id) < s.shown.index(c.b.id) else "ba"
        outcome: Outcome
        if isinstance(s.ranked, Unjudged):
            outcome = s.ranked
        else:
            first = s.ranked.index(c.a.id) < s.ranked.index(c.b.id)
            method: Literal["json", "text"] = "json" if self.labels == "json" else "text"
            outcome = Verdict(choice="a" if first else "b", p_a=float(first), method=method, rationale=s.rationale)
        return self._row(c, principles, order, outcome, s.keys)

    def _of_tournament(
        self, c: Comparison, principles: Sequence[Principle], showings: Sequence[Showing], of: Mapping[str, float]
    ) -> Judgement:
        own = [s for s in showings if c.a.id in s.shown or c.b.id in s.shown]
        failed = [s.ranked for s in own if isinstance(s.ranked, Unjudged)]
        a, b = (Score(of[id_], "vote") for id_ in (c.a.id, c.b.id))
        keys = tuple(key for s in own for key in s.keys)
        return self._row(c, principles, None, failed[0] if failed else compare_scores(a, b), keys)

    def _row(
        self,
        c: Comparison,
        principles: Sequence[Principle],
        order: Order | None,
        outcome: Outcome,
        keys: tuple[str, ...],
    ) -> Judgement:
        return Judgement(
            prompt_id=c.prompt.id,
            a=c.a.id,
            b=c.b.id,
            principles=tuple(p.id for p in principles),
            judge=str(self.client.identity),
            template=self.template.version,
            order=order,
            outcome=outcome,
            request_keys=keys,
        )

    async def _show(self, prompt: Prompt, shown: Sequence[Completion], principles: Sequence[Principle]) -> Showing:
        texts = (*(m.content for m in prompt.messages), *(c.text for c in shown))
        names = unclaimed_numbers(range(1, len(shown) + 1), texts)
        form: Form = "json" if self.labels == "json" else "rationale" if self.config.rationale else "label"
        messages = self.template.render(
            principles=[p.compare for p in principles],
            conversation=prompt.messages,
            responses=[c.text for c in shown],
            names=names,
            form=form,
        )
        keys: list[str] = []
        ids = tuple(c.id for c in shown)
        try:
            reply = await self.asker.send(messages, keys, schema=_schema(names) if form == "json" else None)
        except (RequestError, TransientError) as error:
            return Showing(ids, Unjudged(reason="provider_error", detail=str(error)), None, tuple(keys))
        found = read_ranking(reply, names, form)
        if isinstance(found, Unjudged):
            return Showing(ids, found, None, tuple(keys))
        ranked, rationale = found
        by_name = dict(zip(names, ids, strict=True))
        return Showing(ids, tuple(by_name[name] for name in ranked), rationale, tuple(keys))


def read_ranking(reply: ChatReply, names: Sequence[str], form: Form) -> tuple[tuple[str, ...], str | None] | Unjudged:
    """All of ``names``, best first, and the reasons given, by the grammar above."""
    if (failed := unfinished(reply)) is not None:
        return failed
    ranked, rationale = _read_json(reply.text) if form == "json" else _read_text(reply.text, form)
    if sorted(ranked) != sorted(names):
        detail = f"not a ranking of {', '.join(names)} with each once"
        return refused(reply.text.strip()) or Unjudged(reason="unparseable", detail=detail)
    return ranked, rationale


def _read_text(text: str, form: Form) -> tuple[tuple[str, ...], str | None]:
    lines = text.strip().split("\n")
    stated = {ranked for line in lines if (ranked := _names(line))}
    if not (last := _names(lines[-1])) or len(stated) > 1 or (form == "label" and len(lines) > 1):
        return (), None
    return last, "\n".join(lines[:-1]).strip() or None


def _names(line: str) -> tuple[str, ...]:
    match = _LINE.fullmatch(line) if len(line) <= 1000 and ">" in line else None
    return tuple(part.strip(" \t*_`") for part in match[1].split(">")) if match else ()


def _read_json(text: str) -> tuple[tuple[str, ...], str | None]:
    pairs: list[tuple[str, Any]] = []

    def noted(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend(items)
        return dict(items)

    try:
        found: Any = json.loads(text, object_pairs_hook=noted)
    except (ValueError, RecursionError):
        return (), None
    if not isinstance(found, dict) or len(pairs) != len(found):  # a key given twice, or an object within
        return (), None
    if not {"ranking"} <= found.keys() <= {"ranking", "rationale"}:
        return (), None
    ranked, rationale = found["ranking"], found.get("rationale")
    whole = isinstance(ranked, list) and all(isinstance(n, str) for n in ranked) and isinstance(rationale, str | None)
    return (tuple(ranked), rationale) if whole else ((), None)


def _schema(names: Sequence[str]) -> dict[str, object]:
    ranking = {"type": "array", "items": {"type": "string", "enum": list(names)}}
    return {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, "ranking": ranking},
        "required": ["rationale", "ranking"],
        "additionalProperties": False,
    }


def draw_orders(ids: Sequence[str], rounds: int, seed: int, prompt_id: str) -> list[list[str]]:
    """An order for each round, drawn by hash. None is another's or its reverse, as far as there are others."""
    orders: list[list[str]] = []
    for round_ in range(rounds):
        for attempt in range(_ATTEMPTS):
            draw = ("ranking", seed, prompt_id, round_, attempt)
            order = sorted(ids, key=lambda id_: uniform(*draw, id_))
            if order not in orders and order[::-1] not in orders:
                break
        orders.append(order)
    return orders


def _split(ids: Sequence[str], size: int) -> list[list[str]]:
    """As few groups as hold at most ``size``, in order and as equal as can be."""
    n = -(-len(ids) // size)
    return [list(ids[len(ids) * i // n : len(ids) * (i + 1) // n]) for i in range(n)]


def bradley_terry_strengths(
    ids: Sequence[str], rankings: Sequence[tuple[str, ...] | Unjudged], steps: int = 200
) -> dict[str, float]:
    """The log-strength of each, by Hunter's MM algorithm (2004) on the pairs in the rankings.

    Each has besides one draw with an opponent of strength 1, so that who always wins is not infinitely strong."""
    wins: Counter[str] = Counter()
    met: Counter[tuple[str, str]] = Counter()
    for ranked in rankings:
        if not isinstance(ranked, Unjudged):
            for i, better in enumerate(ranked):
                for worse in ranked[i + 1 :]:
                    wins[better] += 1
                    met[min(better, worse), max(better, worse)] += 1
    opponents: dict[str, list[tuple[str, int]]] = {id_: [] for id_ in ids}
    for (x, y), n in met.items():
        opponents[x].append((y, n))
        opponents[y].append((x, n))
    strength = dict.fromkeys(ids, 1.0)
    for _ in range(steps):
        strength = {
            id_: (wins[id_] + 0.5) / (1 / (own + 1) + sum(n / (own + strength[other]) for other, n in opponents[id_]))
            for id_, own in strength.items()
        }
    return {id_: round(math.log(s), 9) for id_, s in strength.items()}
