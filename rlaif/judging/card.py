"""The judge card: a judge is asked about pairs that people labelled, and everything it did is counted.

The folder is a run folder: every reply is in its ledger, so running again goes on, and pays nothing twice. It leaves
``verdicts.jsonl`` (what ``rlaif judge stats`` reads, for the same figures), ``judgements.jsonl``, ``card.json`` and
``card.html``.
"""

import asyncio
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from rlaif.config.base import Config
from rlaif.config.generate import JudgeConfig
from rlaif.constitution import constitution_digest, load_constitution
from rlaif.engine import Budget, Ledger, open_client
from rlaif.engine.ledger import BATCH
from rlaif.errors import InputError, QualityError
from rlaif.judges import Judge, judge_comparison, make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.judges.position import PositionPriors
from rlaif.judges.program import JUDGE as PROGRAM
from rlaif.judging.agreement import Choice, Estimate, Look, Pair, agreement, krippendorff_alpha, verdict_figures
from rlaif.judging.bias import Side, bias_counts, bias_figures, traits
from rlaif.judging.calibration import averaged_stated, expected_calibration_error, looks_stated, reliability
from rlaif.judging.flow import in_flight
from rlaif.judging.gold import GoldPair, data_digest, read_gold
from rlaif.judging.page import render
from rlaif.judging.position import position_report
from rlaif.judging.robustness import INJECTED, Injection, Mode, load_injections, measure
from rlaif.runs import RowFiles, on_disk, open_run, write_text
from rlaif.types import Constitution, Judgement, Principle, Unjudged, Verdict

CARD, PAGE, VERDICTS = "card.json", "card.html", "verdicts.jsonl"
QUESTION = Principle(id="better", compare="Which response is more helpful, honest and harmless?")

Progress = Callable[[int, int, str], None]  # done, of how many, a note


class CheckConfig(Config):
    """What is checked: ``judge`` (as in a generate config) on ``data`` (see rlaif.judging.gold).

    ``constitution``: whose principles are asked about; without one, the one question "Which response is more helpful,
    honest and harmless?". ``modes``: in which ways of reading a verdict the injection set is tried; empty: not at all;
    None: in the judge's own. ``in_flight``: pairs judged at once.
    """

    data: str
    judge: JudgeConfig
    constitution: str | None = None
    modes: tuple[Mode, ...] | None = None
    seed: int = 0
    out: Path
    max_cost: Decimal | None = Field(None, ge=0)
    in_flight: int = Field(64, gt=0)


@dataclass(frozen=True)
class Card:
    """Where the card is, and the content of card.json. ``kappa``: Cohen's with the labels, None where undefined."""

    out: Path
    report: dict[str, Any]

    @property
    def kappa(self) -> float | None:
        kappa: float | None = self.report["kappa"]
        return kappa

    @property
    def kappa_in_words(self) -> str:
        """With its interval, and of how many pairs: a reader must see when they are too few."""
        found = "undefined (no variation)" if self.kappa is None else f"{self.kappa:.3f}"
        low, high = (self.report[f"kappa_{end}"] for end in ("low", "high"))
        interval = "" if low is None or high is None else f"95 % interval {low:.3f} to {high:.3f}, "
        return f"{found} ({interval}{self.report['pairs']} pairs)"


def check(
    config: CheckConfig,
    *,
    limit: int | None = None,
    fresh: bool = False,
    min_kappa: float | None = None,
    progress: Progress | None = None,
) -> Card:
    """Judge the labelled pairs and write the card in ``config.out``, going on from what is there (``fresh``: anew).

    ``limit``: only the first that many pairs. Raises InputError before anything is spent, ProviderError when the
    provider refuses or the budget is reached, and QualityError (with everything written) when kappa is below
    ``min_kappa``, or undefined.
    """
    if len(config.judge.models) != 1:
        raise InputError(f"judge.models: a card is about one judge (found {len(config.judge.models)} models).")
    work = _prepared(config, limit)
    with open_run(config.out, config, fresh=fresh) as ledger:
        card = asyncio.run(_Check(config, *work, ledger, "judge", progress).main())
    return _passed(card, min_kappa)


async def gate(
    config: CheckConfig,
    ledger: Ledger,
    min_kappa: float | None = None,
    progress: Progress | None = None,
    *,
    budget: Budget | None = None,
) -> Card:
    """As `check`, for a run that is about to begin: the replies go into its own ``ledger`` (as stage "gold") and count
    towards its ``budget``; the card goes to the folder ``config.out``."""
    work = _prepared(config, None)
    with on_disk(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    return _passed(await _Check(config, *work, ledger, "gold", progress, budget).main(), min_kappa)


def _prepared(config: CheckConfig, limit: int | None) -> tuple[list[GoldPair], Constitution, list[Injection]]:
    """Everything that can be wrong before anything is spent."""
    pairs = read_gold(config.data)[:limit]
    constitution = load_constitution(config.constitution) if config.constitution else _default_constitution()
    return pairs, constitution, load_injections() if config.modes is None or config.modes else []


def _passed(card: Card, min_kappa: float | None) -> Card:
    if min_kappa is not None and (card.kappa is None or card.kappa < min_kappa):
        raise QualityError(
            f"{card.out}: the kappa of {card.report['judge']} is {card.kappa_in_words}, less than the {min_kappa:g}"
            f" asked for; everything is kept, and {PAGE} shows where it fails."
        )
    return card


def _default_constitution() -> Constitution:
    return Constitution(name="better", version="1", principles=(QUESTION,), digest=constitution_digest([QUESTION]))


class _Check:
    def __init__(
        self,
        config: CheckConfig,
        pairs: Sequence[GoldPair],
        constitution: Constitution,
        injections: Sequence[Injection],
        ledger: Ledger,
        stage: str,
        progress: Progress | None,
        budget: Budget | None = None,
    ) -> None:
        self.config, self.pairs, self.constitution, self.ledger = config, pairs, constitution, ledger
        self.injections, self.stage, self.progress = injections, stage, progress
        self.budget = budget or Budget(config.max_cost, ledger)
        self.done = 0

    async def main(self) -> Card:
        config, (model,) = self.config, self.config.judge.models
        async with AsyncExitStack() as stack:
            clients = []
            for stage in (self.stage, INJECTED):
                clients.append(open_client(model, self.ledger, stage, self.budget))
                stack.push_async_callback(clients[-1].aclose)
            self.budget.check()
            labels = await resolve_labels(clients[0], config.judge)
            judge = make_judge(clients[0], config.judge, labels)
            started, sent = time.monotonic(), self.ledger.stats().total("sent")
            judged = await in_flight(self.pairs, lambda pair: self._one(pair, judge), self._window)
            seconds = time.monotonic() - started
            asked = self.ledger.stats().total("sent") - sent
            speed = _speed(config.out, seconds, asked, judged)
            weights = {p.id: p.weight for p in self.constitution.principles}
            raw = [_pair(gold, answers, weights) for gold, answers in zip(self.pairs, judged, strict=True)]
            priors = PositionPriors(config.judge, config.seed)
            for answers in judged:
                priors.add(answers)
            corrected = [_pair(g, priors.correct(js), weights) for g, js in zip(self.pairs, judged, strict=True)]
            found = corrected if config.judge.calibrate == "position" else raw
            self._write_rows(found, judged)
            robustness = await self._robustness(clients[1], labels, found)
        report = self._report(judge, found, judged, speed, robustness)
        report["position"] |= _position(priors, raw, corrected)
        with on_disk(config.out):
            write_text(config.out / CARD, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            write_text(config.out / PAGE, render(report))
        return Card(config.out, report)

    @property
    def _window(self) -> int:
        # A batch must fill before it is sent; each pair makes two requests.
        return max(self.config.in_flight, -(-self.config.judge.models[0].requests_at_once // 2))

    async def _one(self, gold: GoldPair, judge: Judge) -> list[Judgement]:
        asked = gold.asked(self.constitution)
        answers = await judge_comparison(gold.comparison, asked, [judge], self.config.seed)
        self._tell(len(self.pairs), "judged")
        return answers

    def _tell(self, total: int, what: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, total, ", ".join(filter(None, (what, self.budget.note()))))

    async def _robustness(self, client: Any, labels: Mode, found: Sequence["Judged"]) -> dict[str, Any] | None:
        if not self.injections:
            return None
        bases = [
            (j.gold.comparison, j.pair.together) for j in found if j.pair is not None and j.pair.together in ("a", "b")
        ]
        own: Mode = "rationale" if labels == "text" and self.config.judge.rationale else labels
        modes = (own,) if self.config.modes is None else self.config.modes
        self.done = 0
        principles = [p for p in self.constitution.principles if p.compare and not p.check]
        return await measure(
            client,
            self.config.judge,
            modes,
            self.injections,
            bases,
            principles,
            seed=self.config.seed,
            at_once=self._window,
            progress=lambda total: self._tell(total, "injections tried"),
        )

    def _write_rows(self, found: Sequence["Judged"], judged: Sequence[Sequence[Judgement]]) -> None:
        with RowFiles(self.config.out, ("verdicts", "judgements")) as files:
            for one in found:
                for row in one.rows():
                    files.write("verdicts", row)
            for answers in judged:
                for answer in answers:
                    files.write("judgements", answer)

    def _report(
        self,
        judge: Judge,
        found: Sequence["Judged"],
        judged: Sequence[Sequence[Judgement]],
        speed: float | None,
        robustness: dict[str, Any] | None,
    ) -> dict[str, Any]:
        config = self.config
        known = [j for j in found if j.pair is not None]
        if not known:
            raise InputError(f"{config.data}: no principle of {self.constitution.name} applies to any of its prompts.")
        pairs = [j.pair for j in known if j.pair is not None]
        answers = [answer for answers in judged for answer in answers if answer.judge != PROGRAM]
        unjudged = Counter(a.outcome.reason for a in answers if isinstance(a.outcome, Unjudged))
        p_first = [p if order == "ab" else 1 - p for pair in pairs for order, p in _stated(pair)]
        bias = [j.traits(config.judge.models[0].name, str(judge.client.identity)) for j in known]
        return {
            "judge": str(judge.client.identity),
            "labels": judge.labels + (" after a rationale" if config.judge.rationale else ""),
            "orders": config.judge.orders,
            "template": judge.template.version,
            "constitution": {k: getattr(self.constitution, k) for k in ("name", "version", "digest")},
            "data": {
                "source": config.data,
                "digest": data_digest(self.pairs),
                "rows": len(self.pairs),
                "without_a_principle": len(found) - len(known),
                "labels": dict(sorted(Counter(p.label for p in pairs).items())),
            },
            **verdict_figures(pairs).report(),
            "annotators": _annotators(known),
            "position": {"mean_p_first": sum(p_first) / len(p_first) if p_first else None},
            "bias": {name: _ends(e) for name, e in bias_figures(bias).items()},
            "bias_pairs": bias_counts(bias),
            "calibration": _calibration(pairs),
            "no_verdict": {
                "by_reason": dict(sorted(unjudged.items())),
                "refusal_rate": unjudged["refused"] / len(answers) if answers else None,
            },
            "usd_per_1000": self._usd_per_1000(answers, len(pairs)),
            "seconds_per_1000": speed,
            "robustness": robustness,
            "cost": self.budget.report(),
            "versions": {"rlaif": version("rlaif"), "python": platform.python_version()},
            "seed": config.seed,
        }

    def _usd_per_1000(self, answers: Sequence[Judgement], pairs: int) -> float | None:
        """USD for 1,000 pairs: what a reply cost on average, times the requests a pair takes."""
        models = [m for m in self.budget.report()["models"] if m["stage"] == self.stage]
        paid = sum(s.paid for s in self.ledger.stats().stages if s.stage.removesuffix(BATCH) == self.stage)
        if not paid or not pairs or any(m["usd"] is None for m in models):
            return None
        requests = sum(len(a.request_keys) for a in answers) / pairs
        return float(sum(m["usd"] for m in models)) / paid * requests * 1000


@dataclass(frozen=True)
class Judged:
    """A labelled pair and what the judge made of it; ``pair`` is None where no principle applies to the prompt."""

    gold: GoldPair
    pair: Pair | None
    reasons: Mapping[str, str]  # order -> why there is no verdict

    def rows(self) -> list[dict[str, Any]]:
        """The lines of verdicts.jsonl."""
        if self.pair is None:
            return []
        made = []
        for order, look in (("ab", self.pair.ab), ("ba", self.pair.ba)):
            if look is not None:
                row: dict[str, Any] = {
                    "id": self.pair.id,
                    "order": order,
                    "verdict": look.verdict,
                    "label": self.pair.label,
                }
                row |= {"p_a": look.p_a} if look.p_a is not None else {}
                comparison = self.gold.comparison
                row |= {"length_a": len(comparison.a.text), "length_b": len(comparison.b.text)}
                row |= {"labels": list(self.gold.labels)} if self.gold.labels else {}
                row |= {"reason": self.reasons[order]} if order in self.reasons else {}
                made.append(row)
        return made

    def traits(self, *judge: str) -> Any:
        assert self.pair is not None
        comparison, names = self.gold.comparison, {name.lower() for name in judge}
        is_own = [model is not None and model.lower() in names for model in self.gold.models]
        own: Side | None = None if is_own[0] == is_own[1] else "a" if is_own[0] else "b"
        return traits(self.pair.together, self.pair.label, comparison.a.text, comparison.b.text, own)


def _pair(gold: GoldPair, answers: Sequence[Judgement], weights: Mapping[str, float]) -> Judged:
    """The looks at one pair: where an order has several questions, their weighted mean; a verdict without an order
    (a program's) counts in each. Where nothing was shown in an order there is one look, and nothing was swapped."""
    by_order: dict[str, list[Judgement]] = {
        order: [a for a in answers if a.order in (order, None)] for order in ("ab", "ba")
    }
    shown = {a.order for a in answers if a.order is not None} or ({"ab"} if answers else set())
    looks = {order: _look(by_order[order], weights) for order in by_order if order in shown}
    reasons: dict[str, str] = {
        order: next(a.outcome.reason for a in by_order[order] if isinstance(a.outcome, Unjudged))
        for order, look in looks.items()
        if look.verdict == "invalid"
    }
    pair = Pair(gold.id, gold.label, looks.get("ab"), looks.get("ba")) if looks else None
    return Judged(gold, pair, reasons)


def _look(answers: Sequence[Judgement], weights: Mapping[str, float]) -> Look:
    verdicts = [a.outcome for a in answers if isinstance(a.outcome, Verdict)]
    if len(verdicts) < len(answers):
        return Look("invalid")
    if len(verdicts) == 1:
        (verdict,) = verdicts
        # A label alone states no probability; 1 or 0 there would be a claim the judge never made.
        stated = verdict.method in ("logprob", "vote", "likelihood") or verdict.scores is not None
        return Look(verdict.choice, verdict.p_a if stated else None)
    weight = [sum(weights[principle] for principle in a.principles) for a in answers]
    p = sum(w * v.p_a for w, v in zip(weight, verdicts, strict=True)) / sum(weight)
    choice: Choice = "tie" if abs(p - 0.5) < 1e-9 else "a" if p > 0.5 else "b"
    return Look(choice, p)


def _position(priors: PositionPriors, raw: Sequence[Judged], corrected: Sequence[Judged]) -> dict[str, Any]:
    """The judge's preference for a position and the figures before and after; empty where it has no label
    probabilities in two orders."""
    found = priors.priors()
    if not found:
        return {}
    before, after = ([j.pair for j in some if j.pair is not None] for some in (raw, corrected))
    return position_report(found[0], before, after)


def _stated(pair: Pair) -> list[tuple[str, float]]:
    found = [("ab", pair.ab), ("ba", pair.ba)]
    return [(order, look.probability) for order, look in found if look is not None and look.probability is not None]


def _calibration(pairs: Sequence[Pair]) -> dict[str, Any]:
    by_look, averaged = [looks_stated(p) for p in pairs], [averaged_stated(p) for p in pairs]
    return {
        "ece": _ends(expected_calibration_error(by_look)),
        "ece_averaged": _ends(expected_calibration_error(averaged)),
        "bins": [b._asdict() for b in reliability(s for group in by_look for s in group)],
        "bins_averaged": [b._asdict() for b in reliability(s for group in averaged for s in group)],
    }


def _annotators(judged: Sequence[Judged]) -> dict[str, Any] | None:
    """Where several people labelled the same pairs: how they agree with one another and with the judge.

    ``agreement``: of two of them, drawn from the same pair; ``judge_agreement``: of the judge (both orders together)
    with one of them. ``alpha``: Krippendorff's of the people; ``alpha_with_judge``: with the judge as one more.
    """
    several = [j for j in judged if len(j.gold.labels) > 1]
    if not several:
        return None
    people, with_judge, units, joined = [], [], [], []
    for j in several:
        assert j.pair is not None
        labels = j.gold.labels
        said = j.pair.together
        twos = [(x, y) for i, x in enumerate(labels) for y in labels[i + 1 :]]
        people.append(sum(x == y for x, y in twos) / len(twos))
        with_judge.append(sum(agreement(said, label) for label in labels) / len(labels))
        units.append(labels)
        joined.append((*labels, None if said == "invalid" else said))
    return {
        "pairs": len(several),
        "agreement": sum(people) / len(people),
        "judge_agreement": sum(with_judge) / len(with_judge),
        "alpha": krippendorff_alpha(units),
        "alpha_with_judge": krippendorff_alpha(joined),
    }


def _speed(out: Path, seconds: float, sent: int, judged: Sequence[Sequence[Judgement]]) -> float | None:
    """Seconds for 1,000 pairs, from the requests of this session; where all were answered before, the last card's."""
    requests = sum(len(a.request_keys) for answers in judged for a in answers)
    if sent:
        return seconds / sent * requests / max(len(judged), 1) * 1000
    try:
        old = json.loads((out / CARD).read_bytes()).get("seconds_per_1000")
    except (OSError, ValueError, AttributeError):
        return None  # no card yet: nothing was ever timed
    return float(old) if isinstance(old, int | float) else None


def _ends(estimate: Estimate) -> dict[str, float | None]:
    return estimate._asdict()
