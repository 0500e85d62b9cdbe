"""`rlaif train METHOD --check`: what a training would do with this data on this machine, without computing any of it.

No weights are read and no model runs; the tokenizer does, over all rows. `CheckReport` is what every method reports;
a method adds figures of its own in a subclass. Below it: the check of methods that learn from pairs.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.config.base import Config
from rlaif.config.train import TrainConfig, TrainDPOConfig
from rlaif.errors import InputError
from rlaif.preferences import Pair, Preferences, counted, read_preferences
from rlaif.training.model import ModelFacts, TokenizerFacts, load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import Machine, Plan, Setting, held_out, make_plan, this_machine
from rlaif.training.tokens import TokenizedPairs, TokenPair, tokenize_pairs

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class Lengths(Config):
    """Tokens: the median, the 95th percentile and the largest."""

    median: int
    p95: int
    max: int


class Finding(Config):
    level: Literal["warning", "note"]
    text: str


class DataReport(Config):
    """``digest``: of what is learned from; another one is another training."""

    source: str
    digest: str
    rows: int


class PairsReport(DataReport):
    """``rows`` = ``pairs`` + all of ``dropped`` (by reason). ``longer_chosen``: share of pairs in which the chosen
    answer has more characters, ties counting a half: what "prefer the longer" would get right. ``soft_labels``: pairs
    that say how probably the chosen answer is the better one."""

    format: str
    implicit_prompt: bool
    pairs: int
    dropped: dict[str, int]
    cut_at_max_length: int
    longer_chosen: float
    soft_labels: int
    prompt_tokens: Lengths
    chosen_tokens: Lengths
    rejected_tokens: Lengths


class ModelReport(Config):
    name: str
    architecture: str
    parameters: int
    trained: int
    chat_template: bool
    eos: str
    pad: str | None
    ends_in_eos: float  # share of completions that end where generation would stop


class CostReport(Config):
    """A row is what a step counts: a pair, a conversation. ``basis`` says what the estimate rests on."""

    steps: int
    steps_per_epoch: int
    rows_per_step: int
    micro_batch_size: int
    train_rows: int
    eval_rows: int
    memory_gb: float
    memory_free_gb: float
    seconds: float
    basis: str


class SettingReport(Config):
    name: str
    value: str | int | float | bool
    reason: str


class CheckReport(Config):
    """What `rlaif train METHOD --check` prints, as text or as JSON. ``lines``: name and text of each line of the
    table. A method with figures of its own makes a subclass."""

    data: DataReport
    lines: list[tuple[str, str]]
    settings: list[SettingReport] = []
    findings: list[Finding] = []
    versions: dict[str, str] = {}

    def manifest(self, kind: str, config: TrainConfig) -> dict[str, Any]:
        """What a training's manifest.json says before it begins."""
        return {
            "kind": kind,
            "finished": False,
            "versions": self.versions,
            "config": config.model_dump(mode="json"),
            **self.model_dump(mode="json", exclude={"versions", "lines"}),
        }


class ModelCheck(CheckReport):
    """Of a method that tunes one model on rows known before it begins."""

    model: ModelReport
    cost: CostReport


class PairsCheck(ModelCheck):
    """Of a method that learns from pairs."""

    data: PairsReport


@dataclass(frozen=True)
class Prepared:
    """A training ready to begin: the report, and what it was made from."""

    report: PairsCheck
    plan: Plan
    tokenizer: Any
    model_path: str
    train: list[TokenPair]
    evaluate: list[TokenPair]


def check_dpo(config: TrainDPOConfig) -> PairsCheck:
    """What ``train_dpo(config)`` would do. Raises InputError when it could not: no pairs, data of another kind, no such
    model, no chat template for conversational pairs, not enough memory."""
    return prepare(config).report


def prepare(config: TrainDPOConfig) -> Prepared:
    """All of a training that needs no weights. Raises as `check_dpo`."""
    data = read_preferences(config.data, config.limit)
    digest = labelled(data, config.labels)
    versions = installed()
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    need_template(data.format, data.source, tokens, config)
    facts = model_facts(config.model_name, config.lora)
    found = tokenize_pairs(data.pairs, tokenizer, config.max_length, tokens.end_ids)
    if not found.pairs:
        raise InputError(
            f"{data.source}: no pair is left at max_length {config.max_length} ({counted(found.dropped)});"
            f" the longest needs {found.longest} tokens."
        )
    train, evaluate = held_out(found.pairs, config.eval_fraction, config.seed)
    if not train:
        raise InputError(f"{data.source}: all of its {len(evaluate)} pairs were held out; lower eval_fraction.")
    machine = this_machine(config.device)
    plan = make_plan(config, facts, machine, train, evaluate)
    pairs, model, cost = (
        pairs_report(data, found, digest),
        _model_report(facts, tokens, found),
        cost_report(config, plan, machine),
    )
    report = PairsCheck(
        data=pairs,
        model=model,
        cost=cost,
        lines=[
            *pairs_lines(pairs),
            *model_lines(model, "completions"),
            *cost_lines(cost, "pairs"),
            versions_line(versions),
        ],
        settings=setting_reports(plan.settings),
        findings=_findings(config, data, found, facts, tokens, plan),
        versions=versions,
    )
    return Prepared(report, plan, tokenizer, facts.path, train, evaluate)


def need_template(shape: str, source: str, tokens: TokenizerFacts, config: TrainConfig) -> None:
    """Raises InputError where conversations meet a model that cannot lay them out."""
    if shape == "conversational" and not tokens.chat_template:
        raise InputError(
            f"{config.model}: has no chat template, and {source} holds conversations; take a chat model, or rows"
            " of plain text."
        )


def labelled(data: Preferences, labels: Literal["hard", "soft"]) -> str:
    """The digest of what is learned: the pairs, and with soft labels how probably each is right. Raises InputError for
    soft labels where a pair has none: 1 would say that it is right for certain."""
    if labels == "hard":
        return data.digest
    if all(pair.prob_chosen == 0.5 for pair in data.pairs):
        raise InputError(f"{data.source}: every pair is a tie (prob_chosen 0.5); nothing to learn.")
    if lacking := [pair for pair in data.pairs if pair.prob_chosen is None]:
        raise InputError(
            f"{data.source}: {lacking[0].row} has no prob_chosen ({len(lacking)} of {len(data.pairs)} pairs have none);"
            " soft labels need it in every row: set 'labels: hard', or write 1 where the chosen answer is certain."
        )
    return hashlib.sha256(f"{data.digest} {[pair.prob_chosen for pair in data.pairs]}".encode()).hexdigest()


def setting_reports(settings: Sequence[Setting]) -> list[SettingReport]:
    return [SettingReport(name=s.name, value=s.value, reason=s.reason) for s in settings]


def installed() -> dict[str, str]:
    """The versions of what training uses. Raises InputError when one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in (*LIBRARIES, "rlaif")}
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"training needs {error.name}: run `pip install 'rlaif[train]'`.") from None


def pairs_report(data: Preferences, found: TokenizedPairs, digest: str) -> PairsReport:
    dropped = {str(reason): n for reason, n in data.dropped.items()}
    for late, n in found.dropped.items():
        dropped[late] = dropped.get(late, 0) + n
    return PairsReport(
        source=data.source,
        digest=digest,
        rows=data.rows,
        format=data.format,
        implicit_prompt=data.implicit_prompt,
        pairs=len(found.pairs),
        dropped=dict(sorted(dropped.items())),
        cut_at_max_length=found.cut,
        longer_chosen=_longer_chosen(data.pairs),
        soft_labels=sum(pair.prob_chosen is not None for pair in data.pairs),
        prompt_tokens=lengths([len(p.prompt) for p in found.pairs]),
        chosen_tokens=lengths([len(p.chosen) for p in found.pairs]),
        rejected_tokens=lengths([len(p.rejected) for p in found.pairs]),
    )


def _model_report(facts: ModelFacts, tokens: TokenizerFacts, found: TokenizedPairs) -> ModelReport:
    return ModelReport(
        name=facts.name,
        architecture=facts.architecture,
        parameters=facts.parameters,
        trained=facts.trained,
        chat_template=tokens.chat_template,
        eos=tokens.eos,
        pad=tokens.pad,
        ends_in_eos=found.end_learned / (2 * len(found.pairs)),
    )


def cost_report(config: TrainConfig, plan: Plan, machine: Machine) -> CostReport:
    return CostReport(
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        rows_per_step=config.batch_size,
        micro_batch_size=plan.micro_batch_size,
        train_rows=plan.train_rows,
        eval_rows=plan.eval_rows,
        memory_gb=round(plan.memory / 1e9, 2),
        memory_free_gb=round(machine.memory / 1e9, 2),
        seconds=round(plan.seconds, 1),
        basis=plan.basis,
    )


def lengths(values: Sequence[int]) -> Lengths:
    """Median (the lower one), nearest-rank 95th percentile and maximum."""
    ordered = sorted(values)
    return Lengths(
        median=ordered[(len(ordered) - 1) // 2], p95=ordered[max(0, -(-95 * len(ordered) // 100) - 1)], max=ordered[-1]
    )


def _longer_chosen(pairs: Sequence[Pair]) -> float:
    points = 0.0
    for pair in pairs:
        chosen, rejected = len(pair.chosen_text), len(pair.rejected_text)
        points += 0.5 if chosen == rejected else float(chosen > rejected)
    return points / len(pairs)


def _findings(
    config: TrainDPOConfig,
    data: Preferences,
    found: TokenizedPairs,
    facts: ModelFacts,
    tokens: TokenizerFacts,
    plan: Plan,
) -> list[Finding]:
    findings: list[Finding] = []
    if found.cut:
        findings.append(
            warning(
                f"{found.cut} pairs lose the end of a completion at max_length {config.max_length} (the longest has"
                f" {found.longest} tokens): what is cut off is not learned, nor is the end."
            )
        )
    if found.prompt_differs:
        findings.append(
            warning(
                f"in {found.prompt_differs} pairs the prompt is rendered otherwise when an answer follows; the part"
                " that differs is left out, so training sees another context than use."
            )
        )
    findings += end_findings(found.end_learned / (2 * len(found.pairs)), "completions", tokens)
    return [*findings, *pairs_findings(data, tokens, plan, facts, min(config.max_length, found.longest))]


def warning(text: str) -> Finding:
    return Finding(level="warning", text=text)


def note(text: str) -> Finding:
    return Finding(level="note", text=text)


def end_findings(share: float, what: str, tokens: TokenizerFacts) -> list[Finding]:
    """``share`` of ``what`` ("completions") that end where generation stops."""
    if share < 0.99:
        return [
            warning(f"only {share:.0%} of {what} end in a token that stops generation; the model may forget to stop.")
        ]
    if tokens.pad is None or tokens.pad == tokens.eos:
        return [
            note(f"pad and eos are both {tokens.eos}; the loss goes by lengths, so the end of an answer is learned.")
        ]
    return []


def position_findings(facts: ModelFacts, longest: int) -> list[Finding]:
    if facts.positions is not None and longest > facts.positions:
        return [warning(f"the model was made for {facts.positions} tokens; lower max_length to that.")]
    return []


def pairs_findings(
    data: Preferences, tokens: TokenizerFacts, plan: Plan, facts: ModelFacts, longest: int
) -> list[Finding]:
    """What is worth knowing about pairs, whatever learns from them. ``longest``: tokens of the longest text used."""
    findings = position_findings(facts, longest)
    if data.format == "plain" and tokens.chat_template:
        findings.append(
            warning("the pairs are plain text, so the model's chat template is not used; a chat model expects it.")
        )
    longer = _longer_chosen(data.pairs)
    if not 0.3 <= longer <= 0.7 and len(data.pairs) >= 10:
        way = "longer" if longer > 0.5 else "shorter"
        share = max(longer, 1 - longer)
        findings.append(note(f"the {way} answer is the chosen one in {share:.0%} of pairs: length will be learned."))
    if plan.steps < 10:
        findings.append(note(f"only {plan.steps} optimizer steps; more epochs or a smaller batch_size give more."))
    if data.implicit_prompt and data.format == "plain":
        findings.append(note("the prompt is what chosen and rejected begin with in common, up to a whole word."))
    return findings


# ------------------------------------------------------------------------------------------------- the report as text


def show(report: CheckReport) -> None:
    """Print the report as tables, for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in report.lines:
        table.add_row(f"[bold]{name}[/]", text)
    console.print(table)
    console.print()
    settings = Table("setting", "value", "because", box=None, pad_edge=False, header_style="bold")
    for setting in report.settings:
        settings.add_row(setting.name, spelled(setting.value), setting.reason)
    console.print(settings)
    for finding in report.findings:
        colour = "yellow" if finding.level == "warning" else "dim"
        console.print(f"[{colour}]{finding.level}[/]: {finding.text}")


def pairs_lines(data: PairsReport) -> list[tuple[str, str]]:
    dropped = ", ".join(f"{n} {reason}" for reason, n in data.dropped.items()) or "none"
    sides = {"prompt": data.prompt_tokens, "chosen": data.chosen_tokens, "rejected": data.rejected_tokens}
    tokens = "; ".join(f"{name} {spread(found)}" for name, found in sides.items())
    implicit = ", implicit prompt" if data.implicit_prompt else ""
    return [
        ("data", f"{data.source}: {data.rows} rows, {data.format}{implicit}"),
        ("pairs", f"{data.pairs} usable; dropped: {dropped}; cut at max_length: {data.cut_at_max_length}"),
        ("tokens", f"{tokens} (median / 95 % / largest)"),
        ("longer answer", f"is the chosen one in {data.longer_chosen:.0%} of pairs"),
    ]


def spread(found: Lengths) -> str:
    return f"{found.median} / {found.p95} / {found.max}"


def model_lines(model: ModelReport, ending: str) -> list[tuple[str, str]]:
    """``ending``: what should end in the eos token ("completions")."""
    return [
        ("model", f"{model.name}: {model.architecture}, {model.parameters / 1e6:.1f} M parameters"),
        ("ends", f"eos {model.eos}, pad {model.pad or 'none'}; {model.ends_in_eos:.0%} of {ending} end there"),
    ]


def cost_lines(cost: CostReport, rows: str) -> list[tuple[str, str]]:
    """``rows``: what a step counts ("pairs")."""
    epochs = cost.steps // cost.steps_per_epoch
    return [
        (
            "steps",
            f"{cost.steps} = {epochs} epochs x {cost.steps_per_epoch} steps of {cost.rows_per_step} {rows},"
            f" {cost.micro_batch_size} at once",
        ),
        ("memory", f"about {cost.memory_gb:.1f} GB of {cost.memory_free_gb:.1f} GB that are free"),
        ("time", f"about {duration(cost.seconds)} ({cost.basis})"),
    ]


def versions_line(versions: dict[str, str]) -> tuple[str, str]:
    return "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def spelled(value: str | int | float | bool) -> str:
    return (
        ("yes" if value else "no")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


__all__ = [
    "CheckReport",
    "CostReport",
    "DataReport",
    "Finding",
    "Lengths",
    "ModelCheck",
    "ModelReport",
    "PairsCheck",
    "Prepared",
    "SettingReport",
    "check_dpo",
    "prepare",
    "show",
]
