"""Judgements -> preference pairs. Pure: data in, data out, and the sums add up.

Every comparison planned ends as exactly one PreferencePair or one Dropped.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlaif.config.generate import PairingConfig
from rlaif.panel import Rule, decisive, together
from rlaif.types import (
    Comparison,
    Completion,
    Dropped,
    DropReason,
    Judgement,
    PreferencePair,
    Prompt,
    Source,
    Unjudged,
)

_EPSILON = 1e-9


def plan_comparisons(
    prompt: Prompt, completions: Sequence[Completion], *, disjoint: bool = False
) -> tuple[list[Comparison], list[Dropped]]:
    """The comparisons to judge among a prompt's completions, and those dropped unjudged because the texts are equal.

    ``disjoint``: 1 with 2, 3 with 4, ...; otherwise every pair. With fewer than two completions the prompt itself is
    dropped."""
    if len(completions) < 2:
        return [], [
            Dropped(prompt_id=prompt.id, reason="too_few_samples", detail=f"{len(completions)} usable, 2 are needed")
        ]
    n = len(completions)
    places = (
        [(i, i + 1) for i in range(0, n - 1, 2)] if disjoint else [(i, j) for i in range(n) for j in range(i + 1, n)]
    )
    comparisons, dropped = [], []
    for i, j in places:
        a, b = completions[i], completions[j]
        if a.text.strip() == b.text.strip():
            dropped.append(Dropped(prompt_id=prompt.id, a=a.id, b=b.id, reason="identical"))
        else:
            comparisons.append(Comparison(prompt=prompt, a=a, b=b))
    return comparisons, dropped


def with_revisions(
    prompt: Prompt,
    planned: tuple[list[Comparison], list[Dropped]],
    revised: Sequence[tuple[Completion, Completion]],
) -> tuple[list[Comparison], list[Dropped]]:
    """``planned`` with each draft against its revision besides. One usable sample is then enough."""
    comparisons, dropped = planned
    dropped = [d for d in dropped if not (revised and d.reason == "too_few_samples")]
    for draft, revision in revised:
        one, identical = plan_comparisons(prompt, (draft, revision))
        comparisons, dropped = comparisons + one, dropped + identical
    return comparisons, dropped


class Rewards(NamedTuple):
    """The rewards of one prompt's completions, by completion id (None: masked). ``span``: the highest possible value
    less the lowest; ``verifiers``: who gave them."""

    values: Mapping[str, float | None]
    span: float
    verifiers: str


class Decision(NamedTuple):
    """What is known of one comparison: the probability that a is better, by all judgements together or by rewards."""

    a: str
    b: str
    p_a: float
    opposed: bool  # some judge chose differently in its two orders
    principles: tuple[str, ...]
    judge: str
    evidence: tuple[str, ...]
    source: Source = "judge"

    @property
    def margin(self) -> float:
        return abs(2 * self.p_a - 1)


def decide_by_rewards(comparison: Comparison, rewards: Rewards) -> Decision | Dropped | None:
    """The higher reward wins, by a margin of the difference as a share of the span: passing over failing is certain.
    None where both are equal: that is for a judge to say."""
    a, b = (rewards.values[c.id] for c in (comparison.a, comparison.b))
    ids = comparison.prompt.id, comparison.a.id, comparison.b.id
    if a is None or b is None:
        return _drop(ids, "unverified", "a failure of the verifier is no label; see rewards.jsonl")
    if a == b:
        return None
    lead = max(-1.0, min((a - b) / rewards.span, 1.0))
    return Decision(ids[1], ids[2], 0.5 + lead / 2, False, (), rewards.verifiers, (), "verifier")


def decide_by_votes(comparison: Comparison, votes: Sequence[str]) -> Decision | Dropped:
    """What people say: ``votes`` ("a", "b", "tie", "both_bad"; at least one) count alike. The probability that a is
    better is the share of the votes for a, a tie counting half: 1 where one person decided, 2/3 where two of three did.
    Dropped where they are even, or where at least half call both bad.
    """
    ids = comparison.prompt.id, comparison.a.id, comparison.b.id
    share = {choice: votes.count(choice) / len(votes) for choice in ("a", "tie", "both_bad")}
    people = f"by people: {len(votes)} vote{'s' if len(votes) > 1 else ''}"
    if share["both_bad"] >= 0.5:
        return _drop(ids, "both_bad", people)
    p_a = share["a"] + (share["tie"] + share["both_bad"]) / 2
    if abs(2 * p_a - 1) <= _EPSILON:
        return _drop(ids, "tie", people)
    return Decision(ids[1], ids[2], p_a, False, (), "human", (), "human")


def decide(
    comparison: Comparison, judgements: Sequence[Judgement], weights: Mapping[str, float], panel: Rule = "mean"
) -> Decision | Dropped:
    """What the judges say together by the ``panel``'s rule (see rlaif.panel); ``weights`` by principle id.

    One missing verdict leaves the whole comparison undecided. Where at least half of the verdicts call both responses
    bad, the comparison is dropped: whichever is chosen, it should not be learned from.
    """
    ids = comparison.prompt.id, comparison.a.id, comparison.b.id
    if not judgements:
        return _drop(ids, "unjudged", "no principle applies to this prompt")
    found = together(panel, judgements, weights)
    if isinstance(found, Unjudged):
        return _drop(ids, "unjudged", f"{found.reason}: {found.detail}")
    if found.both_bad >= 0.5:
        return _drop(ids, "both_bad", f"{found.both_bad:.0%} of the verdicts call both bad")
    if panel == "veto" and found.split:
        return _drop(ids, "vetoed", f"the judges' mean probability that a is better: {found.p_a:.4f}")
    judgements = decisive(panel, judgements)
    return Decision(
        comparison.a.id,
        comparison.b.id,
        found.p_a,
        found.opposed,
        tuple(dict.fromkeys(p for j in judgements for p in j.principles)),
        ", ".join(dict.fromkeys(j.judge for j in judgements)),
        tuple(dict.fromkeys(key for j in judgements for key in j.request_keys)),
    )


def pair(
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    weights: Mapping[str, float],
    config: PairingConfig,
    rewards: Rewards | None = None,
    panel: Rule = "mean",
    votes: Mapping[tuple[str, str], Sequence[str]] | None = None,
) -> tuple[list[PreferencePair], list[Dropped]]:
    """The preference pairs of one prompt's comparisons: len(pairs) + len(dropped) == len(comparisons).

    ``rewards``: decide where they differ, and judgements only where they do not. ``votes``: of people, by the ids of a
    and b; they decide before either, and what they decided is taken before what they did not."""
    by_comparison: dict[tuple[str, str], list[Judgement]] = {(c.a.id, c.b.id): [] for c in comparisons}
    for j in judgements:
        by_comparison[j.a, j.b].append(j)
    decided, dropped = [], []
    for c in comparisons:
        said = votes.get((c.a.id, c.b.id)) if votes else None
        decision = decide_by_votes(c, said) if said else decide_by_rewards(c, rewards) if rewards else None
        if decision is None:
            decision = decide(c, by_comparison[c.a.id, c.b.id], weights, panel)
        if isinstance(decision, Dropped):
            dropped.append(decision)
        else:
            decided.append((c, decision))
    wins = _wins([d for _, d in decided])
    eligible: list[tuple[Comparison, Decision]] = []
    for c, d in decided:
        if (reason := _undecided(d, config)) is None:
            eligible.append((c, d))
        else:
            dropped.append(_drop((c.prompt.id, d.a, d.b), reason, f"probability that a is better: {d.p_a:.4f}"))
    chosen = _select(eligible, wins, config)
    for c, d in eligible:
        if d not in chosen:
            dropped.append(_drop((c.prompt.id, d.a, d.b), "not_selected", f"strategy {config.strategy}"))
    return [_pair(c, d) for c, d in eligible if d in chosen], dropped


def _undecided(d: Decision, config: PairingConfig) -> DropReason | None:
    if config.require_agreement and d.opposed:
        return "order_disagreement"
    if d.margin <= _EPSILON:
        return "order_disagreement" if d.opposed else "tie"
    return "low_margin" if d.margin < config.min_margin else None


def _wins(decisions: Sequence[Decision]) -> dict[str, float]:
    """For each completion the mean probability of winning, over the comparisons it was in."""
    chances: dict[str, list[float]] = {}
    for d in decisions:
        chances.setdefault(d.a, []).append(d.p_a)
        chances.setdefault(d.b, []).append(1 - d.p_a)
    return {id_: sum(ps) / len(ps) for id_, ps in chances.items()}


def _select(
    eligible: Sequence[tuple[Comparison, Decision]], wins: Mapping[str, float], config: PairingConfig
) -> list[Decision]:
    decisions = [d for _, d in eligible]
    if config.strategy != "all":
        decisions = [d for d in decisions if d.source == "human"] or decisions
    if config.strategy == "all" or not decisions:
        return decisions
    if config.strategy == "margin":
        return [min(decisions, key=lambda d: (abs(d.margin - config.margin), d.a, d.b))]

    def gap(d: Decision) -> tuple[float, float, str, str]:
        lead = wins[d.a] - wins[d.b]
        return (lead if d.p_a > 0.5 else -lead, d.margin, d.a, d.b)

    return [max(decisions, key=gap)]


def _pair(c: Comparison, d: Decision) -> PreferencePair:
    chosen, rejected = (d.a, d.b) if d.p_a > 0.5 else (d.b, d.a)
    p = max(d.p_a, 1 - d.p_a)
    return PreferencePair(
        prompt_id=c.prompt.id,
        chosen=chosen,
        rejected=rejected,
        prob_chosen=round(p, 9),
        margin=round(2 * p - 1, 9),
        source="revision" if d.source == "judge" and (c.a.revised_from or c.b.revised_from) else d.source,
        principles=d.principles,
        judge=d.judge,
        evidence=d.evidence,
    )


def _drop(ids: tuple[str, str, str], reason: DropReason, detail: str = "") -> Dropped:
    return Dropped(prompt_id=ids[0], a=ids[1], b=ids[2], reason=reason, detail=detail)
