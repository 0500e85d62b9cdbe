"""`rlaif train sft`: good answers and a model in, a tuned model out, in one folder (see folder.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config.train.sft import TrainSFTConfig
from rlaif.errors import InputError
from rlaif.preferences import counted
from rlaif.training.check import (
    DataReport,
    Finding,
    Lengths,
    ModelCheck,
    ModelReport,
    cost_lines,
    cost_report,
    end_findings,
    installed,
    lengths,
    model_lines,
    need_template,
    note,
    position_findings,
    setting_reports,
    spread,
    versions_line,
    warning,
)
from rlaif.training.demonstrations import Demonstrations, TokenRow, TokenRows, read_demonstrations, tokenize
from rlaif.training.folder import CHECKPOINTS, Progress, TrainResult
from rlaif.training.model import ModelFacts, TokenizerFacts, load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import (
    Load,
    Machine,
    Plan,
    Setting,
    Work,
    decide,
    held_out,
    start_notes,
    this_machine,
)
from rlaif.training.rows import train_rows


class DemonstrationsReport(DataReport):
    """``rows`` = ``usable`` + all of ``dropped`` (by reason). ``kind``: what a row is."""

    kind: str
    plain: bool
    usable: int
    dropped: dict[str, int]
    cut_at_max_length: int
    tokens: Lengths
    learned_tokens: Lengths


class SFTCheck(ModelCheck):
    """What `rlaif train sft --check` says."""

    data: DemonstrationsReport


@dataclass(frozen=True)
class Prepared:
    """A training ready to begin: the report, and what it was made from."""

    report: SFTCheck
    plan: Plan
    tokenizer: Any
    model_path: str
    train: list[TokenRow]
    evaluate: list[TokenRow]


def check_sft(config: TrainSFTConfig) -> SFTCheck:
    """What ``train_sft(config)`` would do. Raises InputError when it could not: no rows, data of another kind, no such
    model, no chat template for conversations, not enough memory."""
    return prepare(config).report


def prepare(config: TrainSFTConfig) -> Prepared:
    """All of a training that needs no weights. Raises as `check_sft`."""
    data = read_demonstrations(config.data, config.limit)
    versions = installed()
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    need_template("plain" if data.plain else "conversational", data.source, tokens, config)
    facts = model_facts(config.model_name, config.lora)
    found = tokenize(data.usable, tokenizer, config.max_length, tokens.end_ids)
    if not found.rows:
        raise InputError(
            f"{data.source}: no row is left at max_length {config.max_length} ({counted(found.dropped)});"
            f" the longest needs {found.longest} tokens."
        )
    train, evaluate = held_out(found.rows, config.eval_fraction, config.seed)
    if not train:
        raise InputError(f"{data.source}: all of its {len(evaluate)} rows were held out; lower eval_fraction.")
    machine = this_machine(config.device)
    plan = _plan(config, facts, machine, train, evaluate)
    report = _report(config, data, found, facts, tokens, plan, machine, versions)
    return Prepared(report, plan, tokenizer, facts.path, train, evaluate)


def _plan(
    config: TrainSFTConfig, facts: ModelFacts, machine: Machine, train: list[TokenRow], evaluate: list[TokenRow]
) -> Plan:
    notes: list[Setting] = []
    start_notes(config, facts, machine, notes)
    cpu = machine.device == "cpu"
    packing = (
        "rows are computed one by one, so there is no padding to save"
        if cpu
        else ("it would change what a step is; rows of like length stand together, so little is padded")
    )
    notes.append(Setting("packing", False, packing))
    notes.append(Setting("rows of like length", "together", "inside one optimizer step: the same step, less padding"))
    notes.append(Setting("learned", "answers", "the tokens of the assistant and the end token; prompts are context"))
    loads = [
        [Load(len(r.ids), r.answers if cpu else len(r.ids), len(r.ids) ** 2 / 2) for r in s] for s in (train, evaluate)
    ]
    work = Work("conversation", loads[0], loads[1], config.epochs, chunked_logits=not cpu)
    return decide(config, facts, machine, work, notes)


def _report(
    config: TrainSFTConfig,
    data: Demonstrations,
    found: TokenRows,
    facts: ModelFacts,
    tokens: TokenizerFacts,
    plan: Plan,
    machine: Machine,
    versions: dict[str, str],
) -> SFTCheck:
    rows = DemonstrationsReport(
        source=data.source,
        digest=data.digest,
        rows=data.rows,
        kind=data.kind,
        plain=data.plain,
        usable=len(found.rows),
        dropped={str(reason): n for reason, n in sorted((data.dropped + found.dropped).items())},
        cut_at_max_length=found.cut,
        tokens=lengths([len(row.ids) for row in found.rows]),
        learned_tokens=lengths([row.answers for row in found.rows]),
    )
    ends = found.end_learned / len(found.rows)
    model = ModelReport(
        name=facts.name,
        architecture=facts.architecture,
        parameters=facts.parameters,
        trained=facts.trained,
        chat_template=tokens.chat_template,
        eos=tokens.eos,
        pad=tokens.pad,
        ends_in_eos=ends,
    )
    cost = cost_report(config, plan, machine)
    dropped = ", ".join(f"{n} {reason}" for reason, n in rows.dropped.items()) or "none"
    form = ", plain text" if data.plain else ""
    return SFTCheck(
        data=rows,
        model=model,
        cost=cost,
        lines=[
            ("data", f"{data.source}: {data.rows} rows, {data.kind}{form}"),
            ("rows", f"{rows.usable} usable; dropped: {dropped}; cut at max_length: {found.cut}"),
            ("tokens", f"{spread(rows.tokens)}; learned {spread(rows.learned_tokens)} (median / 95 % / largest)"),
            *model_lines(model, "conversations"),
            *cost_lines(cost, "conversations"),
            versions_line(versions),
        ],
        settings=setting_reports(plan.settings),
        findings=_findings(config, data, found, facts, tokens, plan, ends),
        versions=versions,
    )


def _findings(
    config: TrainSFTConfig,
    data: Demonstrations,
    found: TokenRows,
    facts: ModelFacts,
    tokens: TokenizerFacts,
    plan: Plan,
    ends: float,
) -> list[Finding]:
    findings: list[Finding] = []
    if found.cut:
        findings.append(
            warning(
                f"{found.cut} conversations lose their end at max_length {config.max_length} (the longest has"
                f" {found.longest} tokens): what is cut off is not learned, nor is the end."
            )
        )
    if found.rewritten:
        findings.append(
            warning(
                f"{found.rewritten} answers are rendered otherwise once the conversation goes on, and are not learned."
            )
        )
    findings += end_findings(ends, "conversations", tokens) + position_findings(
        facts, min(config.max_length, found.longest)
    )
    if data.plain and tokens.chat_template:
        findings.append(
            warning("the rows are plain text, so the model's chat template is not used; a chat model expects it.")
        )
    if plan.steps < 10:
        findings.append(note(f"only {plan.steps} optimizer steps; more epochs or a smaller batch_size give more."))
    return findings


# -------------------------------------------------------------------------------------------------------- training


def train_sft(
    config: TrainSFTConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[SFTCheck], None] = lambda report: None,
) -> TrainResult:
    """Train ``config.model`` on the answers of ``config.data`` and leave the tuned model in ``config.out``.

    ``on_check`` gets the report of `check_sft` before anything is computed. A folder that holds this training finished
    already is returned as it is. ``resume`` continues from the last checkpoint, exactly.

    Raises InputError for what `check_sft` refuses, for a folder made with another config or other data, and for an
    unfinished one without ``resume``; QualityError when the loss is no longer a number; KeyboardInterrupt after
    Ctrl-C, once the step in progress is done and its checkpoint written (at once when pressed again).
    """
    prepared = prepare(config)
    on_check(prepared.report)

    def open_trainer(callbacks: Sequence[Any]) -> Any:
        from rlaif.training.trl_adapter.sft import make_trainer

        return make_trainer(
            config,
            prepared.plan,
            prepared.train,
            prepared.evaluate,
            prepared.tokenizer,
            prepared.model_path,
            config.out / CHECKPOINTS,
            callbacks,
        )

    return train_rows("sft", config, prepared, open_trainer, _facts, resume=resume, progress=progress)


def _facts(trainer: Any) -> dict[str, Any]:
    return {"curve": _curve(trainer.state.log_history)}


_LOGGED = ("loss", "learning_rate", "grad_norm", "eval_loss")


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each step (and evaluation): the loss in nats a learned token, the learning rate, the norm of the gradient."""
    points = []
    for entry in log_history:
        point = {key: float(entry[key]) for key in _LOGGED if key in entry}
        if "loss" in point or "eval_loss" in point:
            points.append({"step": entry["step"], **point})
    return points


__all__ = ["Prepared", "check_sft", "prepare", "train_sft"]
