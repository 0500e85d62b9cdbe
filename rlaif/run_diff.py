"""What changes in a finished run if its constitution changes, judging again only what must be.

The run's own code makes the pairs anew by the other constitution, in a temporary folder: from the samples in its
ledger, the stored reply to every question that stays the same, and, for the questions that are new, the judges. What
they answer goes into the run's ledger; nothing else of its folder is touched. Then the two sets of pairs are compared.

A question to a judge is made of the texts of its principles, not of their weights. With ``judge.principles: each`` or
``all`` weights therefore change pairs for nothing; with ``sample`` they change which principle is drawn for some
comparisons, and those whose new one was never asked about must be judged.

Memory grows with the comparisons of a run (about 1 kB each), not with their texts.
"""

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.config.base import read_yaml, validate
from rlaif.config.generate import GenerateConfig
from rlaif.constitution import find_constitution, load_constitution
from rlaif.constitution_diff import Differences, differences
from rlaif.engine import Ledger
from rlaif.errors import InputError, QualityError
from rlaif.estimate import Estimate, estimate_beside
from rlaif.generation import Counts, generate_beside
from rlaif.hashing import digest
from rlaif.pages import page
from rlaif.prompts import check_prompts
from rlaif.runs import CONFIG, LEDGER, MANIFEST, write_text
from rlaif.types import Dropped, Judgement, Unjudged, Verdict

EXAMPLES = 5  # of each kind of change
_EPSILON = 1e-9

Fate = Literal["same", "moved", "flipped", "appears", "vanishes", "unknown"]
FATES: Mapping[Fate, str] = {
    "flipped": "the other response is chosen",
    "appears": "there was no pair before",
    "vanishes": "there is no pair any more",
    "moved": "the same is chosen, by another margin",
    "same": "nothing changes",
    "unknown": "a judge would have to be asked",
}
Progress = Callable[[Counts, int], None]


@dataclass(frozen=True)
class Finished:
    """A finished run, and what it was made with."""

    folder: Path
    config: GenerateConfig
    manifest: dict[str, Any]

    @property
    def limit(self) -> int | None:
        limit: int | None = self.manifest["prompts"]["limit"]
        return limit


@dataclass(frozen=True)
class RunDiff:
    """``report``: everything found, as JSON. ``warning``: the quality gate that the new pairs would fail."""

    report: dict[str, Any]
    warning: str | None


def open_finished(run: Path, before: str) -> Finished:
    """The run in folder ``run``, made with the constitution ``before``. Raises InputError where it is not finished, was
    made with another constitution, or its prompts are no longer what they were."""
    try:
        manifest = json.loads((run / MANIFEST).read_bytes())
        made_with = manifest["constitution"]["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{run}: no finished run (its {MANIFEST} is missing); run `rlaif generate` on it.") from None
    found = load_constitution(before).digest
    if found != made_with:
        raise InputError(
            f"{before}: not the constitution of {run} (digest {found}, the run was made with {made_with}); give the one"
            " it was made with first."
        )
    config = validate(GenerateConfig, read_yaml(run / CONFIG))
    samples = config.policy.completions
    prompts = check_prompts(str(samples or config.prompts), samples=samples is not None)
    if prompts.digest != manifest["prompts"]["digest"]:
        raise InputError(f"{samples or config.prompts}: changed since {run} was made; the two cannot be compared.")
    return Finished(run, config, manifest)


def _beside(finished: Finished, after: str, out: Path, max_cost: Decimal | None) -> GenerateConfig:
    """The run's config with the other constitution. The judges were measured before, by the run itself."""
    judge = finished.config.judge.model_copy(update={"gold": None, "min_kappa": None})
    cap = finished.config.max_cost if max_cost is None else max_cost
    changed = {"constitution": str(find_constitution(after)), "judge": judge, "out": out, "max_cost": cap}
    return finished.config.model_copy(update=changed)


def price(finished: Finished, after: str, max_cost: Decimal | None = None) -> Estimate:
    """What `diff_run` would send and cost. Sends and writes nothing."""
    config = _beside(finished, after, finished.folder, max_cost)
    with Ledger.open(finished.folder / LEDGER, read_only=True) as ledger:
        return estimate_beside(config, ledger, limit=finished.limit)


def diff_run(
    finished: Finished,
    before: str,
    after: str,
    *,
    ask: bool = True,
    max_cost: Decimal | None = None,
    progress: Progress | None = None,
) -> RunDiff:
    """The run as it would be with the constitution ``after`` in place of ``before``, its own.

    ``ask``: whether judges may be asked what the ledger does not hold; otherwise what depends on it is "unknown".
    ``max_cost``: USD over all sessions of the run folder (default: the run's own cap). Raises ProviderError when the
    provider refuses or the budget is reached: what was paid for is in the ledger, and running again goes on."""
    expected = price(finished, after, max_cost)
    asks = ask and any(stage.calls > stage.answered for stage in expected.stages)
    warning = None
    with tempfile.TemporaryDirectory(prefix="rlaif-diff-") as folder:
        config = _beside(finished, after, Path(folder), max_cost)
        with Ledger.open(finished.folder / LEDGER, read_only=not asks) as ledger:
            try:
                generate_beside(config, ledger, limit=finished.limit, reparse=not asks, progress=progress)
            except QualityError as error:
                if not (config.out / MANIFEST).exists():
                    raise
                # All rows are written; what the gate says belongs to the finding.
                warning = None if not ask else str(error).replace(folder, f"{finished.folder} with {after}")
            sent = ledger.stats().total("sent")
        manifest = json.loads((config.out / MANIFEST).read_bytes())
        changed = differences(load_constitution(before), load_constitution(after))
        report = _compare(finished.folder, config.out, changed, config.pairing.strategy != "all")
    spent = manifest["cost"]["usd_this_session"] if manifest["cost"]["complete"] else None
    report = {"run": str(finished.folder), **report, "asked": sent, "usd": spent, "warning": warning}
    return RunDiff(report, warning)


def write(diff: Mapping[str, Any], out: Path) -> None:
    """Write a report as a page (.html) or as JSON (.json)."""
    if out.suffix == ".json":
        write_text(out, json.dumps(diff, indent=2, ensure_ascii=False) + "\n")
    elif out.suffix == ".html":
        write_text(out, page(Path(__file__).with_name("run_diff.html.jinja")).render(diff=diff, fates=FATES))
    else:
        raise InputError(f"--out {out}: give a name that ends in .html or .json.")


# --------------------------------------------------------------------------------------------------------- comparing


class Side(NamedTuple):
    """What became of a comparison in one of the two: a pair (``chosen``, with its probability), or why there is none.
    ``line``: where its row stands in pairs.jsonl. ``prompt``: the id of its prompt."""

    chosen: str | None = None
    prob: float = 0.5
    principles: tuple[str, ...] = ()
    line: int | None = None
    reason: str | None = None
    prompt: str = ""


_NOT_MADE = Side(reason="not made")  # a comparison with a revision that the other constitution does not make
_UNASKED = "unjudged: not asked"
_NOT_STORED = "not in the ledger"  # what a run that asks nothing says of a verdict it would have to ask for
Comparisons = dict[frozenset[str], Side]


@dataclass
class ByPrinciple:
    """What became of what one principle had a say in. ``judged_before``, ``judged_after``: looks with it, in each;
    ``said_otherwise``: of looks in both, those with another choice."""

    what: str = ""
    judged_before: int = 0
    judged_after: int = 0
    said_otherwise: int = 0
    fates: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        counts = ("judged_before", "judged_after", "said_otherwise")
        return {"change": self.what, **{name: getattr(self, name) for name in counts}, **dict(self.fates)}


def _compare(before: Path, after: Path, changed: Differences, one_a_prompt: bool) -> dict[str, Any]:
    """``one_a_prompt``: whether the strategy takes one comparison of each prompt. Which one it is, is then unknown as
    soon as one of them was not asked about: what the others make of it is no finding."""
    old, new = _comparisons(before), _comparisons(after)
    open_prompts = {side.prompt for side in new.values() if one_a_prompt and side.reason == _UNASKED}
    fates: dict[frozenset[str], Fate] = {}
    principles = {c.id: ByPrinciple(c.what) for c in changed.changes}
    for key in [*old, *(key for key in new if key not in old)]:
        one, two = old.get(key, _NOT_MADE), new.get(key, _NOT_MADE)
        if one.chosen is None and two.chosen is None and two.reason != _UNASKED:
            continue
        fates[key] = fate = "unknown" if (two.prompt or one.prompt) in open_prompts else _fate(one, two)
        for id_ in dict.fromkeys((*one.principles, *two.principles)):
            principles.setdefault(id_, ByPrinciple()).fates[fate] += 1
    _count_looks(before, after, principles)
    counts = Counter(fates.values())
    moved = [_shift(old[key], new[key]) for key, fate in fates.items() if fate == "moved"]
    return {
        **changed.report(),
        "pairs_before": sum(side.chosen is not None for side in old.values()),
        "pairs_after": sum(side.chosen is not None for side in new.values()),
        "fates": {fate: counts[fate] for fate in FATES},
        "vanished_because": dict(
            sorted(
                Counter(new.get(key, _NOT_MADE).reason for key, fate in fates.items() if fate == "vanishes").items(),
                key=str,
            )
        ),
        "margins": {
            "moved": len(moved),
            "mean_move": sum(map(abs, moved)) / len(moved) if moved else None,
            "largest_move": max(map(abs, moved), default=None),
        },
        "principles": {id_: found.report() for id_, found in sorted(principles.items())},
        "examples": _examples(before, after, old, new, fates),
    }


def _fate(one: Side, two: Side) -> Fate:
    if two.reason == _UNASKED:
        return "unknown"
    if one.chosen is None:
        return "appears"
    if two.chosen is None:
        return "vanishes"
    if one.chosen != two.chosen:
        return "flipped"
    return "same" if abs(one.prob - two.prob) <= _EPSILON else "moved"


def _shift(one: Side, two: Side) -> float:
    """By how much the margin of what was chosen moved."""
    return 2 * (two.prob - one.prob)


def _comparisons(run: Path) -> Comparisons:
    found: Comparisons = {}
    for line, row in enumerate(_rows(run / "pairs.jsonl")):
        found[frozenset((row["chosen_id"], row["rejected_id"]))] = Side(
            row["chosen_id"], row["prob_chosen"], tuple(row["principles"]), line, prompt=row["prompt_id"]
        )
    for row in _rows(run / "dropped.jsonl"):
        dropped = Dropped.model_validate(row)
        if dropped.a is not None and dropped.b is not None:
            unasked = dropped.reason == "unjudged" and _NOT_STORED in dropped.detail
            key = frozenset((dropped.a, dropped.b))
            found.setdefault(key, Side(reason=_UNASKED if unasked else dropped.reason, prompt=dropped.prompt_id))
    return found


def _count_looks(before: Path, after: Path, principles: dict[str, ByPrinciple]) -> None:
    said: dict[str, str] = {}
    for j in _judgements(before):
        said[_look(j)] = _choice(j)
        for id_ in j.principles:
            principles.setdefault(id_, ByPrinciple()).judged_before += 1
    for j in _judgements(after):
        if isinstance(j.outcome, Unjudged) and _NOT_STORED in j.outcome.detail:
            continue  # nobody looked
        earlier = said.get(_look(j))
        for id_ in j.principles:
            found = principles.setdefault(id_, ByPrinciple())
            found.judged_after += 1
            found.said_otherwise += earlier is not None and earlier != _choice(j)


def _judgements(run: Path) -> Iterator[Judgement]:
    return (Judgement.model_validate(row) for row in _rows(run / "judgements.jsonl"))


def _look(j: Judgement) -> str:
    return digest(j.a, j.b, j.principles, j.judge, j.order)


def _choice(j: Judgement) -> str:
    return j.outcome.choice if isinstance(j.outcome, Verdict) else "none"


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _examples(
    before: Path, after: Path, old: Comparisons, new: Comparisons, fates: Mapping[frozenset[str], Fate]
) -> dict[str, list[dict[str, Any]]]:
    """Of each kind of change those that move a probability furthest."""
    found: dict[str, list[dict[str, Any]]] = {}
    wanted: dict[tuple[bool, int], tuple[str, Side, Side]] = {}
    for fate in ("flipped", "appears", "vanishes", "moved"):
        keys = [key for key, of in fates.items() if of == fate]
        for key in heapq.nlargest(
            EXAMPLES, keys, key=lambda key: _distance(old.get(key, _NOT_MADE), new.get(key, _NOT_MADE))
        ):
            one, two = old.get(key, _NOT_MADE), new.get(key, _NOT_MADE)
            line = one.line if one.line is not None else two.line
            assert line is not None
            wanted[one.line is not None, line] = (fate, one, two)
        found[fate] = []
    for folder, is_before in ((before, True), (after, False)):
        for line, row in enumerate(_rows(folder / "pairs.jsonl")):
            if (is_before, line) in wanted:
                fate, one, two = wanted[is_before, line]
                found[fate].append(_example(row, one, two))
    return found


def _distance(one: Side, two: Side) -> float:
    a, b = (side.prob if side.chosen else 0.5 for side in (one, two))
    return a + b - 1 if one.chosen and two.chosen and one.chosen != two.chosen else abs(a - b)


def _example(row: Mapping[str, Any], one: Side, two: Side) -> dict[str, Any]:
    """``chosen`` and ``rejected`` as they were before, or, where there was no pair, as they are now; the probabilities
    are that this ``chosen`` is better, None where there is no pair."""

    def prob(side: Side) -> float | None:
        if side.chosen is None:
            return None
        return side.prob if side.chosen == row["chosen_id"] else 1 - side.prob

    return {
        "prompt": row["prompt"][-1]["content"],
        "prompt_id": row["prompt_id"],
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
        "prob_before": prob(one),
        "prob_after": prob(two),
        "principles_before": list(one.principles),
        "principles_after": list(two.principles),
        "reason_before": one.reason,
        "reason_after": two.reason,
    }
