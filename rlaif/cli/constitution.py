"""rlaif constitution: lint, show, import."""

import json
from pathlib import Path

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
    """Check, show and import constitutions.

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
