"""rlaif constitution: lint, show, import, learn, diff."""

import json
import re
import shlex
from collections.abc import Mapping
from decimal import Decimal
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


@constitution.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="With RUN: say what would be asked and what it would cost.")
@click.option("--stored-only", is_flag=True, help="With RUN: ask nothing; what depends on a new question is 'unknown'.")
@click.option(
    "--max-cost", type=float, metavar="USD", help="Stop before a request could pass this, earlier sessions included."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write what was found here too (.html or .json).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def diff(
    before: str,
    after: str,
    run: Path | None,
    dry_run: bool,
    stored_only: bool,
    max_cost: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """What differs between constitutions A and B, and what would change in RUN, which was made with A.

    Only what must be is judged again: an unchanged principle has its replies in the run's ledger, and the replies to
    new questions go there too. Nothing else in the run folder changes.

    \b
    Example:
      rlaif constitution diff mine.yaml edited.yaml
      rlaif constitution diff mine.yaml edited.yaml runs/first --dry-run
      rlaif constitution diff mine.yaml edited.yaml runs/first --max-cost 2 --out diff.html
    """
    from rlaif.constitution_diff import differences, told

    changed = differences(load_constitution(before), load_constitution(after))
    if run is None:
        if dry_run or stored_only or out or max_cost is not None:
            raise click.UsageError("--dry-run, --stored-only, --max-cost and --out are about a RUN; name its folder.")
        click.echo(json.dumps(changed.report(), indent=2, ensure_ascii=False) if as_json else "\n".join(told(changed)))
        return
    from rlaif.run_diff import open_finished, price

    if out is not None and out.suffix not in (".html", ".json"):
        raise InputError(f"--out {out}: give a name that ends in .html or .json.")
    cap = None if max_cost is None else Decimal(str(max_cost))
    finished = open_finished(run, before)
    if dry_run:
        from rlaif.cli.cost import tell_estimate

        expected = price(finished, after, cap)
        if as_json:
            click.echo(json.dumps(expected.report(), indent=2, ensure_ascii=False))
        else:
            tell_estimate(expected)
        return
    report = _diff(finished, before, after, not stored_only, cap)
    if out is not None:
        from rlaif.run_diff import write

        write(report, out)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    click.echo("\n".join(told(changed)))
    _tell_diff(report)


def _diff(finished: Any, before: str, after: str, ask: bool, max_cost: Decimal | None) -> dict[str, Any]:
    from rlaif.cli.progress import progress
    from rlaif.run_diff import diff_run

    with progress("prompts") as update:
        found = diff_run(
            finished,
            before,
            after,
            ask=ask,
            max_cost=max_cost,
            progress=lambda counts, total: update(counts.prompts, total, counts.cost),
        )
    return found.report


def _tell_diff(report: Mapping[str, Any]) -> None:
    """Print what becomes of a run's pairs."""
    from rlaif.cli.cost import table
    from rlaif.run_diff import FATES

    click.echo("")
    spent = f" for {report['usd']:.4f} USD" if report["usd"] else ""
    where = f"{spent}; the replies are in the run's ledger" if report["asked"] else ""
    pairs = f"{report['pairs_before']} pairs before, {report['pairs_after']} after"
    click.echo(f"{report['run']}: {pairs}; {report['asked']} questions asked anew{where}")
    for fate, what in FATES.items():
        if report["fates"][fate]:
            click.echo(f"  {report['fates'][fate]:>6}  {fate}: {what}")
    because = ", ".join(f"{n} {reason}" for reason, n in report["vanished_because"].items())
    if because:
        click.echo(f"  vanished because: {because}")
    margins = report["margins"]
    if margins["moved"]:
        click.echo(f"  margins moved by {margins['mean_move']:.3f} on average, {margins['largest_move']:.3f} at most")
    columns = ("judged_before", "judged_after", "said_otherwise", "flipped", "appears", "vanishes", "moved")
    rows = [
        (id_, p["change"], *(str(p.get(column, 0)) for column in columns)) for id_, p in report["principles"].items()
    ]
    header = ("principle", "change", "looks before", "after", "another choice", *columns[3:])
    click.echo("")
    table(header, rows, left=2)
    for fate in ("flipped", "appears", "vanishes"):
        for example in report["examples"][fate][:2]:
            click.echo("")
            _tell_example(fate, example)
    if report["warning"]:
        click.echo(report["warning"], err=True)


def _tell_example(fate: str, example: Mapping[str, Any]) -> None:
    def side(when: str) -> str:
        prob = example[f"prob_{when}"]
        by = ", ".join(example[f"principles_{when}"])
        return f"no pair ({example[f'reason_{when}']})" if prob is None else f"{prob:.3f} ({by})"

    click.echo(f"{fate}: {_short(example['prompt'])}")
    click.echo(f"  first   {_short(example['chosen'])}")
    click.echo(f"  second  {_short(example['rejected'])}")
    click.echo(f"  probability that the first is better: {side('before')} -> {side('after')}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 100 else line[:97] + "..."
