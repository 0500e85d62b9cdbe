"""What a run folder holds, counted in one pass over each file.

Memory does not grow with the rows: counters, histograms of a fixed number of bins, and the few pairs that are shown.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlaif.checks import count_words
from rlaif.errors import InputError
from rlaif.hashing import uniform
from rlaif.types import Completion, Dropped, Judgement, Message, Unjudged, Verdict

EXAMPLES = 20  # pairs shown
DETAILS = 3  # examples of each reason for a missing verdict
WORD_BINS = (0, 10, 20, 40, 80, 160, 320, 640)  # lower ends; the last is open
PROB_BINS = 10  # of prob_chosen, from 0.5 to 1
FILES = ("manifest.json", "pairs.jsonl", "judgements.jsonl", "dropped.jsonl", "completions.jsonl")

M = TypeVar("M", bound=BaseModel)


class PairRow(BaseModel):
    """A row of pairs.jsonl, as far as the report reads it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    prompt_id: str = ""
    prob_chosen: float | None = None
    margin: float | None = None
    source: str = ""
    principles: list[str] = []
    judge: str = ""
    chosen_id: str = ""
    rejected_id: str = ""
    evidence: list[str] = []


# ----------------------------------------------------------------------------------------------- running statistics


@dataclass
class Mean:
    """A running mean; ``value`` is None before the first number."""

    total: float = 0.0
    n: int = 0

    def add(self, x: float) -> None:
        self.total += x
        self.n += 1

    @property
    def value(self) -> float | None:
        return self.total / self.n if self.n else None


class Quantiles:
    """Quantiles of numbers in [0, 1], to the width of one bin (0.001)."""

    BINS = 1000

    def __init__(self) -> None:
        self.counts = [0] * self.BINS
        self.n = 0

    def add(self, x: float) -> None:
        self.counts[min(int(x * self.BINS), self.BINS - 1)] += 1
        self.n += 1

    def at(self, q: float) -> float | None:
        """The middle of the bin that holds the q-th of the numbers; None when there are none."""
        seen = 0
        for i, count in enumerate(self.counts):
            seen += count
            if seen and seen >= q * self.n:
                return (i + 0.5) / self.BINS
        return None


@dataclass
class Asked:
    """What one judge said, or what was said about one principle.

    ``first``: 1 for each decided verdict that prefers what was shown first; ``p_first``: the probability given to it;
    ``confidence``: the probability of the preferred side; ``agree``: 1 for each comparison in which both orders chose
    alike; ``drawn``: comparisons.
    """

    drawn: int = 0
    judgements: int = 0
    ties: int = 0
    unjudged: int = 0
    first: Mean = field(default_factory=Mean)
    p_first: Mean = field(default_factory=Mean)
    confidence: Mean = field(default_factory=Mean)
    agree: Mean = field(default_factory=Mean)
    label_mass: Quantiles = field(default_factory=Quantiles)
    methods: Counter[str] = field(default_factory=Counter)

    def add(self, judgement: Judgement) -> None:
        self.judgements += 1
        outcome = judgement.outcome
        if isinstance(outcome, Unjudged):
            self.unjudged += 1
            return
        self.methods[outcome.method] += 1
        self.ties += outcome.choice == "tie"
        self.confidence.add(max(outcome.p_a, 1 - outcome.p_a))
        if outcome.label_mass is not None:
            self.label_mass.add(outcome.label_mass)
        if judgement.order is not None:
            shown_first = "a" if judgement.order == "ab" else "b"
            self.p_first.add(outcome.p_a if shown_first == "a" else 1 - outcome.p_a)
            if outcome.choice != "tie":
                self.first.add(outcome.choice == shown_first)


@dataclass
class Lengths:
    """Words of the chosen and the rejected responses."""

    chosen: Mean = field(default_factory=Mean)
    rejected: Mean = field(default_factory=Mean)
    longer: Mean = field(default_factory=Mean)  # 1 for each pair whose chosen response is longer, 0.5 for equal ones
    chosen_bins: Counter[int] = field(default_factory=Counter)
    rejected_bins: Counter[int] = field(default_factory=Counter)

    def add(self, chosen: int, rejected: int) -> None:
        self.chosen.add(chosen)
        self.rejected.add(rejected)
        self.longer.add(0.5 if chosen == rejected else float(chosen > rejected))
        self.chosen_bins[_word_bin(chosen)] += 1
        self.rejected_bins[_word_bin(rejected)] += 1


def _word_bin(words: int) -> int:
    return sum(words >= low for low in WORD_BINS) - 1


class Example(NamedTuple):
    """A pair that is shown, with every judgement of it."""

    pair: PairRow
    judgements: list[Judgement]


@dataclass
class Summary:
    """All that the report says about the rows. ``missing``: row files that the folder lacks."""

    prompts: int = 0
    samples: int = 0
    finish: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    probabilities: Counter[int] = field(default_factory=Counter)
    lengths: Lengths = field(default_factory=Lengths)
    dropped_comparisons: Counter[str] = field(default_factory=Counter)
    dropped_samples: Counter[str] = field(default_factory=Counter)
    dropped_prompts: Counter[str] = field(default_factory=Counter)
    judgements: int = 0
    unjudged: Counter[str] = field(default_factory=Counter)
    details: dict[str, list[str]] = field(default_factory=dict)
    principles: dict[str, Asked] = field(default_factory=dict)
    judges: dict[str, Asked] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def comparisons(self) -> int:
        return self.pairs + self.dropped_comparisons.total()


# ------------------------------------------------------------------------------------------------- reading the rows


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; {} when there is no such file. Raises InputError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object.")
    return value


def summarize(run: Path) -> Summary:
    """Count the rows of the run folder. Raises InputError (file:line) for a line that is no row of its kind."""
    summary = Summary(missing=[name for name in FILES if not (run / name).exists()])
    _read_completions(run, summary)
    _read_dropped(run, summary)
    _read_pairs(run, summary)
    _read_judgements(run, summary)
    return summary


def _rows(path: Path, model: type[M]) -> Iterator[M]:
    if not path.exists():
        return
    with path.open("rb") as lines:  # binary files end lines at "\n" only; texts may hold other separators
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"]))
                reason = f"{place}: {first['msg']}" if place else first["msg"]
                raise InputError(f"{path}:{number}: not a row as written by rlaif ({reason}).") from None


def _read_completions(run: Path, summary: Summary) -> None:
    for _, group in groupby(_rows(run / "completions.jsonl", Completion), key=lambda c: c.prompt_id):
        summary.prompts += 1
        for completion in group:
            summary.samples += 1
            summary.finish[completion.finish_reason] += 1


def _read_dropped(run: Path, summary: Summary) -> None:
    for row in _rows(run / "dropped.jsonl", Dropped):
        if row.b is not None:
            summary.dropped_comparisons[row.reason] += 1
        elif row.a is not None:
            summary.dropped_samples[row.reason] += 1
        else:
            summary.dropped_prompts[row.reason] += 1


def _read_pairs(run: Path, summary: Summary) -> None:
    shown: list[tuple[float, int, PairRow]] = []  # a heap with the largest draw on top
    for number, row in enumerate(_rows(run / "pairs.jsonl", PairRow)):
        summary.pairs += 1
        summary.sources[row.source or "not said"] += 1
        if row.prob_chosen is not None:
            place = int((row.prob_chosen - 0.5) * 2 * PROB_BINS)
            summary.probabilities[min(max(place, 0), PROB_BINS - 1)] += 1
        summary.lengths.add(*(count_words(m[-1].content if m else "") for m in (row.chosen, row.rejected)))
        # Drawn by hash: the same pairs are shown whatever the order of the file, and others do not crowd them out.
        draw = -uniform("report", row.prompt_id, row.chosen_id, row.rejected_id)
        item = (draw, -number, row)
        if len(shown) < EXAMPLES:
            heapq.heappush(shown, item)
        elif item[:2] > shown[0][:2]:
            heapq.heapreplace(shown, item)
    in_file_order = sorted(shown, key=lambda item: -item[1])
    summary.examples = [Example(row, []) for _, _, row in in_file_order]


def _read_judgements(run: Path, summary: Summary) -> None:
    shown = {(e.pair.prompt_id, frozenset((e.pair.chosen_id, e.pair.rejected_id))): e for e in summary.examples}
    # A run writes prompt by prompt, so the rows of one prompt are all that must be held at once.
    for prompt_id, group in groupby(_rows(run / "judgements.jsonl", Judgement), key=lambda j: j.prompt_id):
        rows = list(group)
        for j in rows:
            _count(j, summary)
            if example := shown.get((prompt_id, frozenset((j.a, j.b)))):
                example.judgements.append(j)
        _count_comparisons(rows, summary)


def _count(j: Judgement, summary: Summary) -> None:
    summary.judgements += 1
    summary.judges.setdefault(j.judge, Asked()).add(j)
    for principle in j.principles:
        summary.principles.setdefault(principle, Asked()).add(j)
    if isinstance(j.outcome, Unjudged):
        summary.unjudged[j.outcome.reason] += 1
        details = summary.details.setdefault(j.outcome.reason, [])
        if len(details) < DETAILS:
            details.append(j.outcome.detail)


def _count_comparisons(rows: list[Judgement], summary: Summary) -> None:
    """Count each comparison once for each judge and principle, and whether a question's two orders chose alike."""
    for judge, _, _ in {(j.judge, j.a, j.b) for j in rows}:
        summary.judges[judge].drawn += 1
    for principle, _, _ in {(p, j.a, j.b) for j in rows for p in j.principles}:
        summary.principles[principle].drawn += 1
    questions: dict[tuple[Any, ...], list[Verdict]] = {}
    for j in rows:
        if j.order is not None and isinstance(j.outcome, Verdict):
            questions.setdefault((j.judge, j.principles, j.a, j.b), []).append(j.outcome)
    for (judge, principles, _, _), verdicts in questions.items():
        if len(verdicts) == 2:
            alike = float(verdicts[0].choice == verdicts[1].choice)
            summary.judges[judge].agree.add(alike)
            for principle in principles:
                summary.principles[principle].agree.add(alike)
