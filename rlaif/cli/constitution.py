"""rlaif constitution: lint, show, import, learn, diff."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlaif.checks import describe
from rlaif.constitution import TEXTS, lint, load_constitution
from rlaif.constitution_import import FORMATS, Format, import_constitution
from rlaif.errors import InputError
from rlaif.runs import write_text
from rlaif.types import Constitution, Principle


@click.group()
def constitution() -> None:
    """Check, show, import, compare and learn constitutions.

    \b
    Example:
      rlaif constitution show helpful-harmless
    """


@constitution.command("lint")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def lint_(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Check each FILE or shipped name.

    Says every mistake with its line or, when there is none, what looks unintended.

    Exits with 2 when any has a mistake; warnings alone do not fail.

    \b
    Example:
      rlaif constitution lint constitution.yaml
    """
    failed = False
    for file in files:
        found = lint(file)
        failed |= bool(found.errors)
        for error in found.errors:
            click.echo(error)
        for warning in found.warnings:
            place, _, said = warning.partition(": ")
            click.echo(f"{place}: warning: {said}")
        if found.constitution is not None:
            count = len(found.constitution.principles)
            click.echo(f"{file}: OK ({count} principle{'s' if count != 1 else ''})")
    if failed:
        ctx.exit(2)


@constitution.command()
@click.argument("name_or_file")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(name_or_file: str, as_json: bool) -> None:
    """Print a constitution as a reader sees it.

    \b
    Example:
      rlaif constitution show helpful-harmless
    """
    loaded = load_constitution(name_or_file)
    if as_json:
        content = loaded.model_dump(mode="json", exclude_none=True)
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    console = Console()
    if console.is_terminal:
        _show_rich(console, loaded)
    else:
        click.echo(_plain(loaded))


def _rows(principle: Principle) -> list[tuple[str, str]]:
    rows = [(key, getattr(principle, key)) for key in TEXTS if getattr(principle, key)]
    if principle.check:
        rows.append(("check", f"{describe(principle.check)} (decided by program)"))
    if principle.applies_to:
        rows.append(("applies", ", ".join(f"{key}: {_values(value)}" for key, value in principle.applies_to.items())))
    return rows


def _values(value: object) -> str:
    return " or ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _title(loaded: Constitution) -> str:
    return f"{loaded.name}, version {loaded.version} (digest {loaded.digest})"


def _share(loaded: Constitution, principle: Principle) -> str:
    total = sum(p.weight for p in loaded.principles)
    return f"weight {principle.weight:g}, {principle.weight / total:.0%} of draws"


def _plain(loaded: Constitution) -> str:
    lines = [_title(loaded)]
    lines += [loaded.description] if loaded.description else []
    for p in loaded.principles:
        lines += ["", f"{p.id} ({_share(loaded, p)})"]
        lines += [f"  {key:<8}  {' '.join(text.split())}" for key, text in _rows(p)]
    return "\n".join(lines)


def _show_rich(console: Console, loaded: Constitution) -> None:
    # Text objects throughout: a bracket in a constitution is no markup.
    console.print(Text(_title(loaded), style="bold"))
    if loaded.description:
        console.print(Text(loaded.description))
    for p in loaded.principles:
        console.print()
        console.print(Text.assemble((p.id, "bold cyan"), (f"  {_share(loaded, p)}", "dim")))
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=8)
        table.add_column()
        for key, text in _rows(p):
            table.add_row(Text(f"  {key}", style="dim"), Text(text))
        console.print(table)


@constitution.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="The JSON's format; without it, its shape decides."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write here (a new file) instead of printing.")
def import_(file: Path, format_: Format | None, out: Path | None) -> None:
    """Convert a constitution published as JSON into ours. What is not carried is said on stderr.

    \b
    Example:
      rlaif constitution import CritiqueRevisionInstructions.json --out constitution.yaml
    """
    if out is not None and out.exists():
        raise InputError(f"{out}: exists already; choose another --out or remove it.")
    imported = import_constitution(file, format_)
    for note in imported.notes:
        click.echo(f"{file}: {note}", err=True)
    if out is None:
        click.echo(imported.yaml, nl=False)
        return
    try:
        write_text(out, imported.yaml)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from None
    click.echo(f"{out}: {imported.format}, lint it next: rlaif constitution lint {out}", err=True)


@constitution.command()
@click.argument("pairs", metavar="PAIRS")
@click.option("--model", required=True, metavar="MODEL", help="Who proposes principles, such as openai:gpt-4.1.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The constitution to write, a .yaml file.")
@click.option("--judge", metavar="MODEL", help="Who tests them (default: the same model).")
@click.option("--proposals", type=click.IntRange(min=0), default=20, show_default=True, help="How often it is asked.")
@click.option("--try", "given", multiple=True, metavar="NAME", help="Test the principles of this constitution too.")
@click.option(
    "--candidates", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many are tested."
)
@click.option("--wordings-only", is_flag=True, help="Measure programs (longer wins, ...) too, but keep none.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other key, as in judge.rationale=true."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many pairs.")
@click.option("--seed", type=int, default=0, show_default=True, help="Divides the pairs and draws what is shown.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent and what it would cost; send and write nothing.")
@click.option("--max-cost", type=float, metavar="USD", help="Stop before a request could pass this.")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds and pay again.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
@click.pass_context
def learn(
    ctx: click.Context,
    pairs: str,
    model: str,
    out: Path,
    judge: str | None,
    proposals: int,
    given: tuple[str, ...],
    candidates: int,
    wordings_only: bool,
    overrides: tuple[str, ...],
    limit: int | None,
    seed: int,
    dry_run: bool,
    max_cost: float | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Which principles explain the labels of PAIRS? Write them as a constitution.

    MODEL reads some of the pairs and proposes; the judge tests each proposal, in both orders, on others; few are kept,
    and measured on pairs that decided nothing. Every reply is kept beside OUT (mine.learn for mine.yaml): running it
    again goes on and pays nothing twice. Exits with 3 when nothing explains the labels better than chance.

    \b
    Example:
      rlaif constitution learn labelled.jsonl --model openai:gpt-4.1-mini --out mine.yaml --dry-run
      rlaif constitution learn labelled.jsonl --model openai:gpt-4.1-mini --out mine.yaml --max-cost 5
    """
    from rlaif.cli.progress import progress
    from rlaif.config.base import Document, apply_overrides, validate
    from rlaif.learning import LearnConfig
    from rlaif.learning import learn as run

    settings: dict[str, Any] = {
        "data": pairs,
        "model": {"model": model},
        "judge": {"models": [{"model": judge or model}], "ties": True},
        "proposals": proposals,
        "given": given,
        "candidates": candidates,
        "keep": {"programs": not wordings_only},
        "seed": seed,
        "out": str(out),
        "max_cost": max_cost,
    }
    document = Document("command", settings, {})
    apply_overrides(document, overrides)
    config = validate(LearnConfig, document)
    if dry_run:
        _tell_price(config, limit, fresh, as_json)
        return
    with progress("learn") as update:
        found = run(config, limit=limit, fresh=fresh, command=_typed(ctx), progress=update)
    if as_json:
        click.echo(json.dumps(found.report, indent=2, ensure_ascii=False))
        return
    _tell_learned(found.report)
    click.echo(f"{found.out}, {config.folder}/learned.json")


def _typed(ctx: click.Context) -> str:
    """The command as it was typed, without what a URL may hold besides its place."""
    said = ["rlaif", "constitution", str(ctx.info_name)]
    for parameter in ctx.command.params:
        value = ctx.params[str(parameter.name)]
        if isinstance(parameter, click.Argument):
            said.append(str(value))
        elif value != parameter.default and value not in (None, (), False):
            values = value if isinstance(value, tuple) else (value,)
            for one in values:
                said += [parameter.opts[0]] + ([] if one is True else [str(one)])
    return re.sub(r"(?<=//)[^/@\s]*@", "", shlex.join(said))


def _tell_learned(report: Mapping[str, Any]) -> None:
    """Print what was kept, what it is to be compared with, and the finding."""
    from rlaif.cli.cost import table

    said, data = report["proposals"], report["data"]
    refused = ", ".join(f"{n} {why}" for why, n in said["refused"].items()) or "none"
    click.echo(
        f"{data['pairs']} pairs: {data['read']} read, {data['choosing']} to choose on, {data['held_out']} held out"
    )
    click.echo(f"{said['asked']} proposals, {said['different']} different questions; lines not used: {refused}")
    rows = [(row["id"], "kept", *_held_out(row["held_out"])) for row in report["kept"]]
    kept = {row["id"] for row in report["kept"]}
    for name, key in (("best wording", "best_wording"), ("best program", "best_program")):
        if (row := report[key]) is not None and row["id"] not in kept and row["held_out"]:
            rows.append((row["id"], f"{name}, not kept", *_held_out(row["held_out"])))
    for name, key in (("all kept", "together"), ("their opposite", "flipped"), ("no principle", "none")):
        if report[key] is not None:
            rows.append((name, "", *_held_out(report[key])))
    table(("held out", "", "as labelled", "low", "high", "decides", "of"), rows, left=2)
    click.echo(report["finding"])


def _held_out(figures: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    from rlaif.cli.judge import number

    accuracy = figures["accuracy"]
    ends = tuple(number(accuracy[end]) for end in ("value", "low", "high"))
    return ends[0], ends[1], ends[2], str(figures["right"] + figures["wrong"]), str(figures["pairs"])


def _tell_price(config: Any, limit: int | None, fresh: bool, as_json: bool) -> None:
    """Print what learning would send and cost."""
    from rlaif.cli.cost import tell_estimate
    from rlaif.learning.price import estimate

    found = estimate(config, limit=limit, fresh=fresh)
    if as_json:
        click.echo(json.dumps(found.report(), indent=2, ensure_ascii=False))
    else:
        tell_estimate(found, "labelled pairs")
