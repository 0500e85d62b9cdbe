"""`rlaif train kto`: single answers, good or bad, and a model in, a tuned model out, in one folder (see folder.py)."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.config.train.kto import TrainKTOConfig
from rlaif.errors import InputError
from rlaif.preferences import Pair, Turn, counted, place, read_pair, read_rows, useless
from rlaif.training.check import (
    CheckReport,
    CostReport,
    DataReport,
    Finding,
    Lengths,
    cost_lines,
    cost_report,
    installed,
    lengths,
    need_template,
    setting_reports,
    spread,
    versions_line,
)
from rlaif.training.folder import CHECKPOINTS, Progress, TrainResult
from rlaif.training.model import ModelFacts, load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import Load, Machine, Plan, Setting, Work, decide, start_notes, this_machine
from rlaif.training.rows import train_rows
from rlaif.training.tokens import tokenize_pairs

ACCEPTED = "prompt, completion and label (true or false), or prompt, chosen and rejected"


class Answer(NamedTuple):
    """One row. ``pair`` holds the answer on its chosen side; its other side means nothing."""

    pair: Pair
    good: bool


class TokenAnswer(NamedTuple):
    """Token ids of one row; prompt + completion is at most ``max_length`` long, and each at least one token."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    good: bool


class AnswersReport(DataReport):
    """``rows`` = (``pairs`` or ``answers``) + all of ``dropped``; a pair is two answers. ``cut_at_max_length``: answers
    that lose their end."""

    format: str
    pairs: int
    answers: int
    good: int
    dropped: dict[str, int]
    cut_at_max_length: int
    prompt_tokens: Lengths
    completion_tokens: Lengths


class KTOCheck(CheckReport):
    """What `rlaif train kto --check` says."""

    data: AnswersReport
    model: str
    parameters: int
    trained: int
    cost: CostReport


@dataclass(frozen=True)
class Prepared:
    """A training ready to begin. ``weights``: of the losses of good and of bad answers."""

    report: KTOCheck
    plan: Plan
    tokenizer: Any
    model_path: str
    train: list[TokenAnswer]
    weights: tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """All rows of one source; see `AnswersReport`."""

    source: str
    format: Literal["conversational", "plain"]
    rows: int
    pairs: int
    answers: tuple[Answer, ...]
    dropped: Counter[str]
    digest: str


def check_kto(config: TrainKTOConfig) -> KTOCheck:
    """What ``train_kto(config)`` would do. Raises InputError when it could not."""
    return prepare(config).report


def train_kto(
    config: TrainKTOConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Train ``config.model`` on the answers of ``config.data`` and leave the tuned model in ``config.out``. As
    `rlaif.training.train_dpo` in all else."""
    prepared = prepare(config)
    on_check(prepared.report)

    def open_trainer(callbacks: Sequence[Any]) -> Any:
        from rlaif.training.trl_adapter.kto import make_trainer

        return make_trainer(
            config,
            prepared.plan,
            prepared.train,
            prepared.weights,
            prepared.tokenizer,
            prepared.model_path,
            config.out / CHECKPOINTS,
            callbacks,
        )

    return train_rows("kto", config, prepared, open_trainer, _facts, resume=resume, progress=progress)


def _facts(trainer: Any) -> dict[str, Any]:
    return {"curve": _curve(trainer.state.log_history)}


_LOGGED = {
    "loss": "loss",
    "kl": "kl",
    "rewards/chosen": "reward_good",
    "rewards/rejected": "reward_bad",
    "rewards/margins": "margin",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each step: the loss, the estimate of the KL divergence that good and bad answers are held against, and the
    mean rewards beta * (log-prob - reference) of both kinds."""
    points = []
    for entry in log_history:
        point = {name: float(entry[key]) for key, name in _LOGGED.items() if entry.get(key) is not None}
        if "loss" in point:
            points.append({"step": entry["step"], **point})
    return points


# ------------------------------------------------------------------------------------------------------------ the data


def read_answers(source: str, limit: int | None = None) -> Answers:
    """Answers with a label, or pairs taken apart; at most ``limit`` rows. Raises InputError: no such file, rows of
    another kind (which, and the method that learns from them), nothing left, or only good or only bad answers."""
    name, rows = read_rows(Path(source).expanduser())
    answers: list[Answer] = []
    dropped: Counter[str] = Counter()
    seen = pairs = 0
    shape = ""
    for at, row in rows:
        if isinstance(row, InputError):
            raise row
        seen += 1
        found, form = _read(row, name, at)
        if shape and form != shape:
            raise InputError(f"{place(name, at)}: this row is {form}, those before it are {shape}; use one form.")
        shape = form
        if reason := useless(found[0].pair):
            dropped["empty_answer" if reason == "identical" and len(found) == 1 else reason] += 1
        else:
            answers += found
            pairs += len(found) == 2
        if limit is not None and seen >= limit:
            break
    if not answers:
        raise InputError(f"{name}: nothing to learn from its {seen} rows ({counted(dropped) or 'none'}).")
    good = sum(answer.good for answer in answers)
    if good in (0, len(answers)):
        all_ = "good" if good else "bad"
        raise InputError(
            f"{name}: every answer is {all_}, and kto learns the difference;"
            + (" `rlaif train sft` learns from good answers alone." if good else " add good ones.")
        )
    told = json.dumps([[a.pair.prompt, a.pair.chosen, a.good] for a in answers], sort_keys=True)
    kind: Literal["conversational", "plain"] = "plain" if shape == "plain" else "conversational"
    return Answers(name, kind, seen, pairs, tuple(answers), dropped, hashlib.sha256(told.encode()).hexdigest())


def _read(row: Any, name: str, at: int | str) -> tuple[list[Answer], str]:
    """One answer, or the two of a pair, and the format."""
    if isinstance(row, dict) and row.get("completion") is not None and "label" in row:
        label = row["label"]
        if not isinstance(label, bool) and label not in (0, 1):
            raise InputError(f"{place(name, at)}: label must be true or false (found {label!r}).")
        # An answer is checked as a pair is, against an answer that nobody gave.
        other = "\0" if isinstance(row["completion"], str) else [{"role": "assistant", "content": "\0"}]
        pair, (form, _) = read_pair({**row, "chosen": row["completion"], "rejected": other}, name, at)
        return [Answer(pair, bool(label))], form
    if isinstance(row, dict) and (row.get("chosen") is None or row.get("rejected") is None):
        kind = _other_kind(row)
        raise InputError(f"{place(name, at)}: {kind} (columns found: {', '.join(row)}; accepted: {ACCEPTED}).")
    pair, (form, _) = read_pair(row, name, at)
    turned = Pair(pair.prompt, pair.rejected, pair.chosen, pair.row)
    return [Answer(pair, True), Answer(turned, False)], form


def _other_kind(row: dict[str, Any]) -> str:
    if row.get("completion") is not None or row.get("messages") is not None:
        return "answers without a label, which `rlaif train sft` learns from"
    if row.get("prompt") is not None:
        return "prompts only; `rlaif train grpo` learns from them with a reward, `rlaif generate` makes pairs of them"
    return "no answers to learn from"


# ----------------------------------------------------------------------------------------------------- before training


def prepare(config: TrainKTOConfig) -> Prepared:
    """All of a training that needs no weights. Raises InputError."""
    data = read_answers(config.data, config.limit)
    versions = installed()
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    need_template(data.format, data.source, tokens, config)
    facts = model_facts(config.model_name, config.lora)
    dropped = Counter(data.dropped)
    rows, cut = _tokenized(data.answers, tokenizer, config, tokens.end_ids, dropped)
    good = sum(row.good for row in rows)
    if good in (0, len(rows)):
        raise InputError(
            f"{data.source}: no {'bad' if good else 'good'} answer is left at max_length {config.max_length}"
            f" ({counted(dropped)})."
        )
    machine = this_machine(config.device)
    weights = _weights(config, good, len(rows) - good)
    plan = _plan(config, facts, machine, rows, weights)
    report = AnswersReport(
        source=data.source,
        digest=data.digest,
        rows=data.rows,
        format=data.format,
        pairs=data.pairs,
        answers=len(rows),
        good=good,
        dropped=dict(sorted(dropped.items())),
        cut_at_max_length=cut,
        prompt_tokens=lengths([len(row.prompt) for row in rows]),
        completion_tokens=lengths([len(row.completion) for row in rows]),
    )
    cost = cost_report(config, plan, machine)
    check = KTOCheck(
        data=report,
        model=facts.name,
        parameters=facts.parameters,
        trained=facts.trained,
        cost=cost,
        lines=[*_lines(report, facts), *cost_lines(cost, "answers"), versions_line(versions)],
        settings=setting_reports(plan.settings),
        findings=_findings(config, report, plan),
        versions=versions,
    )
    return Prepared(check, plan, tokenizer, facts.path, rows, weights)


def _tokenized(
    answers: Sequence[Answer],
    tokenizer: Any,
    config: TrainKTOConfig,
    end_ids: Sequence[int],
    dropped: Counter[str],
) -> tuple[list[TokenAnswer], int]:
    """The rows that are left, and how many of them lost the end of their answer."""
    rows: list[TokenAnswer] = []
    cut = 0
    for pair, good in answers:
        alone = Pair(pair.prompt, pair.chosen, _nothing(pair.chosen), pair.row)
        found = tokenize_pairs([alone], tokenizer, config.max_length, end_ids)
        dropped.update({str(reason): n for reason, n in found.dropped.items()})
        rows += [TokenAnswer(p.prompt, p.chosen, good) for p in found.pairs]
        cut += sum(len(p.prompt) + len(p.chosen) == config.max_length < found.longest for p in found.pairs)
    return rows, cut


def _nothing(answer: list[Turn] | str) -> list[Turn] | str:
    """The shortest answer of that form: tokenizing is told of pairs."""
    return "" if isinstance(answer, str) else [{"role": "assistant", "content": ""}]


def _weights(config: TrainKTOConfig, good: int, bad: int) -> tuple[float, float]:
    most = max(good, bad)
    return config.desirable_weight or most / good, config.undesirable_weight or most / bad


def _plan(
    config: TrainKTOConfig,
    facts: ModelFacts,
    machine: Machine,
    rows: Sequence[TokenAnswer],
    weights: tuple[float, float],
) -> Plan:
    notes: list[Setting] = []
    start_notes(config, facts, machine, notes)
    notes.append(Setting("weights", f"good {weights[0]:.2f}, bad {weights[1]:.2f}", "both kinds count alike in sum"))
    # The row, and its prompt with another row's answer, without a gradient; both also under the reference.
    lengths_ = [len(row.prompt) + len(row.completion) for row in rows]
    loads = [Load(n, 0, float(n) ** 2) for n in lengths_]
    work = Work("answer", loads, [], config.epochs, before=3 * config.epochs, chunked_logits=True)
    if config.micro_batch_size == "auto" and machine.device == "cpu":
        config = config.model_copy(update={"micro_batch_size": config.batch_size})
    plan = decide(config, facts, machine, work, notes)
    if plan.micro_batch_size < 2:
        raise InputError(
            f"{facts.name}: a micro-batch of 2 answers does not fit into memory; lower max_length or take a smaller"
            " model."
        )
    return plan


def _lines(data: AnswersReport, facts: ModelFacts) -> list[tuple[str, str]]:
    dropped = ", ".join(f"{n} {reason}" for reason, n in data.dropped.items()) or "none"
    whence = f"{data.pairs} pairs" if data.pairs else f"{data.rows} rows"
    return [
        ("data", f"{data.source}: {whence}, {data.format}"),
        ("answers", f"{data.answers}, {data.good} good; dropped: {dropped}; cut off: {data.cut_at_max_length}"),
        (
            "tokens",
            f"prompt {spread(data.prompt_tokens)}; answer {spread(data.completion_tokens)} (median / 95 % / largest)",
        ),
        ("model", f"{facts.name}: {facts.architecture}, {facts.parameters / 1e6:.1f} M parameters"),
    ]


def _findings(config: TrainKTOConfig, data: AnswersReport, plan: Plan) -> list[Finding]:
    found = []
    if data.cut_at_max_length:
        text = f"{data.cut_at_max_length} answers lose their end at max_length {config.max_length}; it is not learned."
        found.append(Finding(level="warning", text=text))
    if data.pairs:
        text = "the data are pairs; `rlaif train dpo` also learns which answer belongs to which."
        found.append(Finding(level="note", text=text))
    if plan.micro_batch_size < 4:
        text = f"the KL divergence is estimated from {plan.micro_batch_size} answers at a time, which is little."
        found.append(Finding(level="note", text=text))
    if plan.steps < 10:
        text = f"only {plan.steps} optimizer steps; more epochs or a smaller batch_size give more."
        found.append(Finding(level="note", text=text))
    return found
