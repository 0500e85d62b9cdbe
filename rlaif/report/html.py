"""The run as one self-contained HTML file: no script, nothing loaded from outside, every text escaped."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from rlaif.checks import count_words, describe
from rlaif.constitution import load_constitution
from rlaif.errors import InputError
from rlaif.pages import page
from rlaif.report.summary import FILES, PROB_BINS, WORD_BINS, Example, Summary, read_object, summarize
from rlaif.report.training import is_training, write_training_report
from rlaif.runs import REPORT, write_text
from rlaif.types import Judgement, Verdict


class Metric(BaseModel):
    """A row of comparison.json: a mean before and after, the difference and its interval."""

    model_config = ConfigDict(extra="ignore")

    name: str
    before: float
    after: float
    difference: float
    low: float | None = Field(None, validation_alias=AliasChoices("low", "interval_low"))
    high: float | None = Field(None, validation_alias=AliasChoices("high", "interval_high"))
    aim: str | None = None

    @property
    def moved(self) -> str:
        """ "up", "down", "unclear" (the interval holds 0) or "" (no interval was given)."""
        if self.low is None or self.high is None:
            return ""
        return "up" if self.low > 0 else "down" if self.high < 0 else "unclear"


class TextPair(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt: str
    before: str
    after: str


class Position(BaseModel):
    """What the manifest says of a judge's preference for the first place (rlaif.judges.position)."""

    model_config = ConfigDict(extra="ignore")

    judge: str
    questions: int
    shown_in: str
    p_first: float | None = None
    p_first_low: float | None = None
    p_first_high: float | None = None
    corrected: bool = False
    why_not: str = ""
    swap_consistency: float | None = None
    swap_consistency_corrected: float | None = None


class ComparisonFile(BaseModel):
    """comparison.json; other keys of it are shown as they are."""

    model_config = ConfigDict(extra="allow")

    metrics: list[Metric] = []
    examples: list[TextPair] = []


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir``/report.html, of a generate run or of a training, and return its path.

    Raises InputError when the folder is no run folder, or a file in it is not what rlaif writes (with its line).
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such folder; give the folder of a run (the 'out' of its config).")
    if is_training(run_dir):
        return write_training_report(run_dir)
    if not any((run_dir / name).exists() for name in FILES):
        raise InputError(f"{run_dir}: not a run folder: it has none of {', '.join(FILES)}.")
    path = run_dir / REPORT
    try:
        write_text(path, render(run_dir))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def render(run_dir: Path) -> str:
    """The page. It depends on nothing but the folder (and on the constitution it names, while that is unchanged)."""
    manifest = read_object(run_dir / "manifest.json")
    summary = summarize(run_dir)
    comparison = _read_comparison(run_dir / "comparison.json")
    return page(Path(__file__).with_name("report.html.jinja")).render(
        title=run_dir.resolve().name,
        manifest=manifest,
        facts=_facts(manifest),
        summary=summary,
        disagreements=_disagreements(manifest, summary),
        probabilities=_bars((f"{0.5 + i / 2 / PROB_BINS:.2f}", summary.probabilities[i]) for i in range(PROB_BINS)),
        chosen_words=_bars(_word_bins(summary.lengths.chosen_bins)),
        rejected_words=_bars(_word_bins(summary.lengths.rejected_bins)),
        examples=[_example_view(e) for e in summary.examples],
        texts=_principle_texts(run_dir, manifest),
        stages=_stages(manifest),
        positions=_positions(manifest),
        comparison=comparison,
    )


# ------------------------------------------------------------------------------------------------- what is shown


def _read_comparison(path: Path) -> ComparisonFile | None:
    content = read_object(path)
    if not content:
        return None
    try:
        return ComparisonFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest's entries that say what ran, in words; the whole of it is in the page too."""
    constitution, models = _mapping(manifest.get("constitution")), _mapping(manifest.get("models"))
    name = " ".join(str(constitution[k]) for k in ("name", "version") if constitution.get(k))
    prompts, versions = _mapping(manifest.get("prompts")), _mapping(manifest.get("versions"))
    facts = [
        ("Constitution", f"{name} ({constitution['digest']})" if constitution.get("digest") else name),
        ("Policy", str(models.get("policy") or "")),
        ("Judges", ", ".join(map(str, _list(models.get("judges"))))),
        ("Prompts", str(prompts.get("source") or "")),
        ("Templates", ", ".join(map(str, _list(manifest.get("templates"))))),
        ("Seed", str(manifest.get("seed", ""))),
        ("Versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
    ]
    return [(label, value) for label, value in facts if value]


def _disagreements(manifest: Mapping[str, Any], summary: Summary) -> list[str]:
    """Where the manifest counts other than the files hold; a reader should trust neither then."""
    comparisons = _mapping(_mapping(manifest.get("counts")).get("comparisons"))
    planned, pairs = comparisons.get("planned"), comparisons.get("pairs")
    found = []
    if isinstance(pairs, int) and pairs != summary.pairs:
        found.append(f"The manifest counts {pairs:,} pairs; pairs.jsonl has {summary.pairs:,}.")
    if isinstance(planned, int) and planned != summary.comparisons:
        found.append(f"The manifest counts {planned:,} comparisons; pairs and dropped are {summary.comparisons:,}.")
    return found


def _stages(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests and tokens of each stage and model, from the ledger's figures in the manifest."""
    stages = [_mapping(stage) for stage in _list(_mapping(manifest.get("ledger")).get("stages"))]
    return [{**stage, "usage": _mapping(stage.get("usage"))} for stage in stages]


def _positions(manifest: Mapping[str, Any]) -> list[Position]:
    """Of each judge whose label probabilities were read; those that are none of ours are left out."""
    found = []
    for row in _list(_mapping(manifest.get("position")).get("judges")):
        with suppress(ValidationError):
            found.append(Position.model_validate(row))
    return found


def _principle_texts(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """What each principle says, if the constitution the run names can still be found unchanged."""
    digest = _mapping(manifest.get("constitution")).get("digest")
    try:
        config = _mapping(yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
        constitution = load_constitution(str(config["constitution"]))
    except (OSError, ValueError, KeyError, yaml.YAMLError, InputError):
        return {}  # the texts are a help to the reader; the ids say enough
    if constitution.digest != digest:
        return {}
    return {p.id: p.compare or (describe(p.check) if p.check else "") for p in constitution.principles}


class Seen(NamedTuple):
    """A judgement of a shown pair, in terms of chosen and rejected."""

    judgement: Judgement
    shown_first: str
    said: str
    p_chosen: float | None
    verdict: Verdict | None


class ExampleView(NamedTuple):
    example: Example
    chosen: str
    rejected: str
    chosen_words: int
    rejected_words: int
    seen: list[Seen]


def _example_view(example: Example) -> ExampleView:
    pair = example.pair
    chosen, rejected = (m[-1].content if m else "" for m in (pair.chosen, pair.rejected))
    seen = [_seen(j, pair.chosen_id) for j in example.judgements]
    return ExampleView(example, chosen, rejected, count_words(chosen), count_words(rejected), seen)


def _seen(j: Judgement, chosen_id: str) -> Seen:
    chosen_is_a = j.a == chosen_id
    first = "" if j.order is None else "chosen" if (j.order == "ab") == chosen_is_a else "rejected"
    if not isinstance(j.outcome, Verdict):
        return Seen(j, first, f"no verdict: {j.outcome.reason}", None, None)
    said = "tie" if j.outcome.choice == "tie" else "chosen" if (j.outcome.choice == "a") == chosen_is_a else "rejected"
    return Seen(j, first, said, j.outcome.p_a if chosen_is_a else 1 - j.outcome.p_a, j.outcome)


class Bar(NamedTuple):
    label: str
    n: int
    height: float  # of the highest, 0 to 1


def _bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    counts = list(counts)
    highest = max((n for _, n in counts), default=0) or 1
    return [Bar(label, n, n / highest) for label, n in counts]


def _word_bins(counts: Mapping[int, int]) -> list[tuple[str, int]]:
    ends = (*WORD_BINS[1:], None)
    labels = [f"{low}–{high - 1}" if high else f"{low}+" for low, high in zip(WORD_BINS, ends, strict=True)]
    return [(label, counts.get(i, 0)) for i, label in enumerate(labels)]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
