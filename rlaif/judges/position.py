"""A judge's preference for a position: measured on the run itself, without labels, and taken out of its probabilities.

A look's log-odds are taken for the judge's opinion plus its **prior**, the log-odds it gives the first place whatever
stands there. Where a question is shown in both orders the opinion cancels: half the difference of the two log-odds is
the prior. Where each question is shown once, in an order drawn by hash, the opinion cancels on average, and the mean
log-odds of the first place are the prior. A look that was asked for because of a verdict (the second one of
`orders: auto`) measures nothing; the audit sample, drawn by hash, does.

Why this and not the answer to an empty question (contextual calibration, Zhao et al. 2021): what a model prefers
between two empty responses is not what it prefers between two real ones, which docs/judging.md has in figures, and it
would cost requests. Estimating the prior from exchanged options is PriDe's way (Zheng et al. 2023, 2309.03882), taking
the mean over the run is batch calibration (Zhou et al. 2023, 2309.17249).

Only label probabilities (method "logprob") are measured and corrected. A label that was written, voted or computed has
no log-odds to correct, and neither has a probability of 0 or 1 (the other label was not among the alternatives).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlaif.config.generate import JudgeConfig
from rlaif.judges.orders import is_drawn
from rlaif.types import Judgement, Order, Verdict

LEAST = 30  # questions; with fewer the interval of the prior is a guess itself
_Z = 1.959964  # of a 95 % interval

Questions = Literal["both orders", "one order"]


def log_odds(p: float) -> float:
    """log(p / (1 - p)), infinite at 0 and 1; log_odds(1 - p) == -log_odds(p) exactly where 1 - p is exact."""
    if p in (0.0, 1.0):
        return math.inf if p else -math.inf
    return math.log(p) - math.log(1.0 - p)


def probability(odds: float) -> float:
    """The inverse of `log_odds`; of the two signs of a number the results add up to 1 exactly."""
    p = 1.0 / (1.0 + math.exp(-abs(odds)))
    return p if odds >= 0 else 1.0 - p


def without(prior: float, p_a: float, order: Order) -> float:
    """The probability that a is better, without a prior (log-odds of the first place)."""
    return probability(log_odds(p_a) - (prior if order == "ab" else -prior))


class Prior(NamedTuple):
    """Log-odds of the first place, and the ends of their 95 % interval (None: fewer than two ``questions``)."""

    log_odds: float | None
    low: float | None
    high: float | None
    questions: int
    shown_in: Questions

    @property
    def why_not(self) -> str:
        """Why nothing is corrected by it; empty where something is."""
        if self.questions < LEAST or self.low is None or self.high is None:
            return f"{self.questions} questions with label probabilities; {LEAST} are needed to measure a preference"
        if self.low <= 0.0 <= self.high:
            return "no preference for a position is seen: the interval holds 0"
        return ""

    def report(self) -> dict[str, Any]:
        """Probabilities of the first place, which a reader knows better than log-odds."""
        ends = {"p_first": self.log_odds, "p_first_low": self.low, "p_first_high": self.high}
        found: dict[str, Any] = {name: None if x is None else round(probability(x), 6) for name, x in ends.items()}
        odds = None if self.log_odds is None else round(self.log_odds, 6)
        return {"questions": self.questions, "shown_in": self.shown_in, "log_odds": odds, **found}


@dataclass
class RunningPrior:
    """`Prior` of log-odds that come one by one (Welford's sums), so that memory does not grow with them. Infinite ones
    say nothing."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, odds: float) -> None:
        if not math.isfinite(odds):
            return
        self.n += 1
        step = odds - self.mean
        self.mean += step / self.n
        self.squares += step * (odds - self.mean)

    def add_both(self, p_a_ab: float, p_a_ba: float) -> None:
        """A question shown in both orders: the probability that a is better in each."""
        self.add((log_odds(p_a_ab) - log_odds(p_a_ba)) / 2)

    def prior(self, shown_in: Questions) -> Prior:
        if self.n < 2:
            return Prior(self.mean if self.n else None, None, None, self.n, shown_in)
        reach = _Z * math.sqrt(self.squares / (self.n - 1) / self.n)
        return Prior(self.mean, self.mean - reach, self.mean + reach, self.n, shown_in)


def prior_of_pairs(pairs: Iterable[tuple[float, float]]) -> Prior:
    """The prior of questions shown in both orders: the probability that a is better, a first and b first."""
    running = RunningPrior()
    for ab, ba in pairs:
        running.add_both(ab, ba)
    return running.prior("both orders")


Who = tuple[str, str]  # a judge and its template: another question is another preference


@dataclass
class _Seen:
    """Of one judge: its looks for the prior, and how they agree before and after."""

    twice: RunningPrior = field(default_factory=RunningPrior)
    once: RunningPrior = field(default_factory=RunningPrior)
    pairs: int = 0
    alike: int = 0
    alike_after: int = 0

    def prior(self) -> Prior:
        both = self.twice.prior("both orders")
        return both if both.questions >= LEAST or not self.once.n else self.once.prior("one order")


class PositionPriors:
    """The prior of each judge of a run, and what taking it out does. A pure function of the judgements.

    First `add` all judgements, then `correct` each; `corrected` counts what that did."""

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._seen: dict[Who, _Seen] = {}
        self._priors: dict[Who, float] | None = None

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Measure one prompt's judgements. The first of a question's two is the one that was asked first."""
        for looks in _questions(judgements):
            seen = self._seen.setdefault(_who(looks[0]), _Seen())
            if self._config.orders != "both":  # both orders begin with the same one: it is not drawn by hash
                first = looks[0]
                seen.once.add(log_odds(_p_first(first)))
            if len(looks) == 2 and self._by_design(looks[0]):
                ps = {j.order: _p_a(j) for j in looks}
                seen.twice.add_both(ps["ab"], ps["ba"])

    def _by_design(self, look: Judgement) -> bool:
        return self._config.orders == "both" or is_drawn(self._seed, look.a, look.b, self._config.audit)

    def correct(self, judgements: Sequence[Judgement]) -> list[Judgement]:
        """One prompt's judgements without the priors. What has no label probability, or no prior that could be
        measured, stays as it is."""
        if self._priors is None:
            found = {who: seen.prior() for who, seen in self._seen.items()}
            self._priors = {w: p.log_odds for w, p in found.items() if p.log_odds is not None and not p.why_not}
        corrected = [_corrected(j, self._priors.get(_who(j), 0.0)) for j in judgements]
        for before, after in zip(_questions(judgements), _questions(corrected), strict=True):
            if len(before) == 2:
                seen = self._seen[_who(before[0])]
                seen.pairs += 1
                seen.alike += _alike(before)
                seen.alike_after += _alike(after)
        return corrected

    def priors(self) -> list[Prior]:
        """One for each judge and template."""
        return [seen.prior() for seen in self._seen.values()]

    def report(self) -> dict[str, Any]:
        """For the manifest: by judge, its prior and what was done about it. ``swap_consistency``: of the questions
        shown in both orders, the share judged alike."""
        found = []
        for (judge, template), seen in self._seen.items():
            prior = seen.prior()
            row = {"judge": judge, "template": template, **prior.report()}
            if self._config.calibrate == "position":
                row |= {"corrected": not prior.why_not, "why_not": prior.why_not}
                row["swap_consistency"] = round(seen.alike / seen.pairs, 6) if seen.pairs else None
                row["swap_consistency_corrected"] = round(seen.alike_after / seen.pairs, 6) if seen.pairs else None
            found.append(row)
        return {"calibrate": self._config.calibrate, "judges": found} if found else {}


def _questions(judgements: Sequence[Judgement]) -> list[list[Judgement]]:
    """The looks with label probabilities, by question: one or two of each."""
    found: dict[tuple[Who, tuple[str, ...], str, str], list[Judgement]] = {}
    for j in judgements:
        if j.order is not None and isinstance(j.outcome, Verdict) and j.outcome.method == "logprob":
            found.setdefault((_who(j), j.principles, j.a, j.b), []).append(j)
    return list(found.values())


def _who(j: Judgement) -> Who:
    return j.judge, j.template


def _p_a(j: Judgement) -> float:
    assert isinstance(j.outcome, Verdict)
    return j.outcome.p_a


def _p_first(j: Judgement) -> float:
    return _p_a(j) if j.order == "ab" else 1.0 - _p_a(j)


def _alike(looks: Sequence[Judgement]) -> bool:
    return len({j.outcome.choice for j in looks if isinstance(j.outcome, Verdict)}) == 1


def _corrected(j: Judgement, prior: float) -> Judgement:
    outcome = j.outcome
    if not prior or j.order is None or not isinstance(outcome, Verdict) or outcome.method != "logprob":
        return j
    p_a = without(prior, outcome.p_a, j.order)
    # Made anew and not copied: the probability is put on the grid of `Verdict` again.
    verdict = Verdict.model_validate({**outcome.model_dump(), "p_a": p_a})
    if outcome.choice == "tie" and outcome.p_a != 0.5:
        return j.model_copy(
            update={"outcome": verdict}
        )  # the label of a tie was the likeliest, wherever the rest leans
    choice = "tie" if verdict.p_a == 0.5 else "a" if verdict.p_a > 0.5 else "b"
    return j.model_copy(update={"outcome": verdict.model_copy(update={"choice": choice})})
