"""rlaif verify"""

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("name", required=False)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file of results; running again goes on with it.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="An option of the verifier.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many rows.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: one for each core).")
@click.option("--self-test", is_flag=True, help="Which sandbox this machine has, and whether it holds.")
@click.option("--json", "as_json", is_flag=True, help="A summary as JSON, last.")
def verify(
    name: str | None,
    file: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    limit: int | None,
    workers: int | None,
    self_test: bool,
    as_json: bool,
) -> None:
    """Run the verifier NAME over the rows of FILE (JSONL): one line of results for each.

    A row has `completion` and what its verifier needs: `reference` (math, exact, ...), `tests` (code),
    `instruction_id_list` and `kwargs` (instructions). NAME may be MODULE:CLASS of your own.

    \b
    Example:
      rlaif verify math answers.jsonl --out verdicts.jsonl
      rlaif verify code programs.jsonl --set min_tier=ns --json
      rlaif verify --self-test
    """
    if self_test:
        _self_test(as_json)
        return
    if name is None or file is None:
        raise click.UsageError("give the name of a verifier and a file; `rlaif verify --help` has examples.")
    from rlaif.cli.progress import progress
    from rlaif.config.base import Document, apply_overrides
    from rlaif.verification import Summary, verify_file

    document = Document(name, {}, {})
    apply_overrides(document, overrides)
    with progress("rows") as update:

        def told(so_far: Summary, rows: int) -> None:
            update(so_far.rows, rows, f"{so_far.passed} passed, {so_far.unverified} unverified")

        summary = verify_file(
            name,
            file,
            options=document.data,
            out=out,
            emit=click.echo,
            limit=limit,
            workers=workers,
            progress=told if out else None,
        )
    figures = summary.as_json()
    if as_json:
        click.echo(json.dumps(figures))
    else:
        _tell(figures)


def _tell(figures: dict[str, Any]) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in figures["reasons"].items())
    tier = f"; sandbox: {figures['tier']}" if figures["tier"] else ""
    click.echo(
        f"{figures['rows']} rows: {figures['passed']} passed, {figures['failed']} failed,"
        f" {figures['unverified']} unverified{f' ({reasons})' if reasons else ''};"
        f" {figures['seconds']:.1f} s{tier}",
        err=True,
    )


def _self_test(as_json: bool) -> None:
    from rlaif.verifiers.sandbox.probe import survey

    report = survey()
    click.echo(json.dumps(report.as_json()) if as_json else str(report))
