"""The tree of a reward as pure functions: what is known about a row in, a value out, or what else must be known.

A rule is called with a `Row` and gives `Value`, `Failed` or `Needs`. The caller gets the verdicts that are needed and
calls again: so a judge is asked only where the rule before it abstained, what stands behind a closed gate is never
run, and all parts of a sum are asked at once. No rule does anything else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif.config.rewards import Gate, Node, Normalise, Route, Shaping
from rlaif.rewards.normalise import RunningNorm
from rlaif.rewards.shaping import penalties, shaped
from rlaif.types import Reward, Unverified, UnverifiedReason
from rlaif.verifiers.base import Task


@dataclass(frozen=True)
class Value:
    """``answered`` is False where the completion holds no answer that the part could read: the value stands, but
    `first_decided` asks the next."""

    value: float
    answered: bool = True


@dataclass(frozen=True)
class Failed:
    reason: UnverifiedReason
    why: str


@dataclass(frozen=True)
class Needs:
    """The parts whose verdicts are missing."""

    parts: frozenset[str]


Outcome = Value | Failed | Needs


@dataclass
class Row:
    """What is known about a completion. ``penalties``: filled in by shaping, for the logs. ``retries``: how often a
    part was asked again."""

    text: str
    task: Task
    tokens: int | None = None
    verdicts: dict[str, Reward | Unverified] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    retries: int = 0


Rule = Callable[[Row], Outcome]
Norms = dict[str, tuple[Rule, RunningNorm]]  # of each `normalise`: the rule within it, and its statistics


def build(node: Node, norms: Norms) -> Rule:
    """The rule of ``node``. Each ``normalise`` on the way is entered into ``norms``."""
    rules = [build(child, norms) for _, child in node.children]
    if node.gate is not None:
        return _gate(node.gate, *rules)
    if node.route is not None:
        return _route(node.route, rules)
    if node.first_decided is not None:
        return _first_decided(rules)
    if node.shaping is not None:
        return _shaping(node.shaping, rules[0], node.part)
    if node.normalise is not None:
        norms[node.part] = (rules[0], RunningNorm())
        return _normalise(node.normalise, rules[0], norms[node.part][1])
    if node.verifier is not None:
        return _leaf(node.part)
    required = [child.required for _, child in node.children]
    if node.weighted_sum is not None:
        weights = [child.weight for _, child in node.children]
        tops = [child.bounds[1] for _, child in node.children]
        return _all_of(rules, required, lambda found: _mean(found, weights, tops, node.bounds))
    if node.product is not None:
        return _all_of(rules, required, lambda found: math.prod(value for _, value in found))
    return _all_of(rules, required, lambda found: min(value for _, value in found))


def column(task: Task, by: str) -> str | None:
    """The value of a column as a key of ``cases``; None where there is none."""
    place: Any = task
    if by in task:
        place = task[by]
    else:
        for step in by.split("."):
            place = place.get(step) if isinstance(place, Mapping) else None
    if isinstance(place, bool):
        return str(place).lower()
    return str(place) if isinstance(place, str | int | float) else None


def _leaf(part: str) -> Rule:
    def rule(row: Row) -> Outcome:
        verdict = row.verdicts.get(part)
        if verdict is None:
            return Needs(frozenset([part]))
        if isinstance(verdict, Unverified):
            return Failed(verdict.reason, f"{part}: {verdict.detail}")
        return Value(verdict.value, answered=verdict.reason != "unparseable")

    return rule


Found = Sequence[tuple[int, float]]  # (which part, its value)


def _all_of(rules: Sequence[Rule], required: Sequence[bool], join: Callable[[Found], float]) -> Rule:
    """The values of all parts together: a required one that failed masks the row, others are left out."""

    def rule(row: Row) -> Outcome:
        outcomes = [part(row) for part in rules]
        if needs := [o for o in outcomes if isinstance(o, Needs)]:
            return Needs(frozenset().union(*(o.parts for o in needs)))
        failed = [(o, must) for o, must in zip(outcomes, required, strict=True) if isinstance(o, Failed)]
        if first := next((o for o, must in failed if must), None):
            return first
        found = [(i, o) for i, o in enumerate(outcomes) if isinstance(o, Value)]
        if not found:
            return failed[0][0]
        return Value(join([(i, o.value) for i, o in found]), any(o.answered for _, o in found))

    return rule


def _mean(found: Found, weights: Sequence[float], tops: Sequence[float], bounds: tuple[float, float]) -> float:
    """The weighted mean, in ``bounds``, and at the upper one exactly where every part is at its own: "fully correct"
    must not depend on rounding."""
    low, high = bounds
    if all(value >= tops[i] for i, value in found):
        return high
    total = math.fsum(weights[i] for i, _ in found)
    mean = math.fsum(weights[i] * value for i, value in found) / total
    return max(low, min(mean, math.nextafter(high, low)))


def _gate(gate: Gate, condition: Rule, then: Rule) -> Rule:
    opens = gate.condition.bounds[1] if gate.at_least is None else gate.at_least
    closed = gate.then.bounds[0]

    def rule(row: Row) -> Outcome:
        outcome = condition(row)
        if isinstance(outcome, Value):
            return then(row) if outcome.value >= opens else Value(closed)
        return outcome

    return rule


def _first_decided(rules: Sequence[Rule]) -> Rule:
    """Abstained or no readable answer: the next is asked. Any other failure masks: a judge must not quietly take over
    from a broken verifier. Where nobody decides, a value for "no readable answer" stands if the others abstained."""

    def rule(row: Row) -> Outcome:
        unanswered: Value | None = None
        last: Outcome = Failed("abstained", "")
        for part in rules:
            last = part(row)
            if isinstance(last, Needs) or (isinstance(last, Failed) and last.reason != "abstained"):
                return last
            if isinstance(last, Value):
                if last.answered:
                    return last
                unanswered = unanswered or last
        return unanswered or last

    return rule


def _route(route: Route, rules: Sequence[Rule]) -> Rule:
    cases = dict(zip(route.cases, rules, strict=False))
    default = rules[-1] if route.default is not None else None

    def rule(row: Row) -> Outcome:
        key = column(row.task, route.by)
        chosen = cases.get(key, default) if key is not None else default
        return chosen(row) if chosen is not None else Failed("task_error", no_case(route, key))

    return rule


def no_case(route: Route, key: str | None) -> str:
    found = f"{route.by!r} is {key!r}" if key is not None else f"the row has no {route.by!r}"
    return f"route: {found}; cases are {', '.join(route.cases)}; add a case or a default."


def _shaping(config: Shaping, inner: Rule, label: str) -> Rule:
    def rule(row: Row) -> Outcome:
        outcome = inner(row)
        if not isinstance(outcome, Value):
            return outcome
        found = penalties(config, row.text, row.tokens)
        row.penalties.update({f"{label}.{name}": share for name, share in found.items()})
        return Value(shaped(outcome.value, config, min(1.0, sum(found.values()))), outcome.answered)

    return rule


def _normalise(config: Normalise, inner: Rule, norm: RunningNorm) -> Rule:
    def rule(row: Row) -> Outcome:
        outcome = inner(row)
        return Value(norm(outcome.value, config.clip), outcome.answered) if isinstance(outcome, Value) else outcome

    return rule
