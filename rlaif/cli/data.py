"""rlaif data: doctor."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rlaif.data_doctor import Report


@click.group()
def data() -> None:
    """Find out what a data set is worth.

    \b
    Example:
      rlaif data doctor runs/first
      rlaif data doctor pairs.jsonl.gz --against gsm8k_test.jsonl
    """


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="A benchmark not to train on."
)
@click.option("--ngram", type=click.IntRange(min=2), help="Words of a passage shared with a benchmark (default: 13).")
@click.option("--max-words", type=click.IntRange(min=1), help="What is a long row (default: 1500).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many rows.")
@click.option("--strict", is_flag=True, help="Exit with 3 where there are warnings, too.")
@click.option("--card", is_flag=True, help="Write the summary into the card of the data set (data/README.md).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def doctor(
    ctx: click.Context,
    path: Path,
    against: tuple[Path, ...],
    ngram: int | None,
    max_words: int | None,
    limit: int | None,
    strict: bool,
    card: bool,
    as_json: bool,
) -> None:
    """What is wrong with the preference data of PATH before it is trained on.

    PATH is a run folder, a JSONL, JSON, CSV or parquet file (perhaps .gz) or a data set folder, in any of TRL's
    preference formats. Exits with 3 where there are errors, with 2 where PATH is no preference data.

    \b
    Example:
      rlaif data doctor runs/first
      rlaif data doctor pairs.jsonl.gz --against gsm8k_test.jsonl --strict
    """
    from rlaif.config.dataset import GRAM
    from rlaif.data_doctor import examine
    from rlaif.data_doctor.card import card_of, write_section
    from rlaif.data_doctor.examine import MAX_WORDS

    readme = card_of(path) if card else None
    report = examine(path, against=against, limit=limit, gram=ngram or GRAM, max_words=max_words or MAX_WORDS)
    if readme is not None:
        write_section(report, readme)
    ok = report.ok(strict=strict)
    if as_json:
        click.echo(json.dumps({"ok": ok, **report.model_dump(mode="json")}, indent=2, ensure_ascii=False))
    else:
        _tell(report)
    ctx.exit(0 if ok else 3)


def _tell(report: "Report") -> None:
    from rlaif.cli.cost import table

    click.echo(f"{report.source}: {report.rows:,} rows, {report.pairs:,} usable pairs, {report.format}")
    if baseline := report.figures.get("longer_wins_characters"):
        low, high = baseline["low"], baseline["high"]
        click.echo(f'"take the longer answer" is right in {baseline["accuracy"]:.1%} ({low:.1%} to {high:.1%})')
    if refusals := report.figures.get("refusals"):
        click.echo(f"refusals: {refusals['chosen_share']:.1%} of chosen, {refusals['rejected_share']:.1%} of rejected")
    for reason in report.skipped:
        click.echo(f"skipped {reason}")
    if not report.findings:
        click.echo("Nothing to complain about.")
        return
    rows = [
        (f.severity, f"{f.count:,}", f"{f.share:.1%}", f.text, f"{', '.join(map(str, f.rows))}", f.advice)
        for f in report.findings
    ]
    table(("severity", "rows", "share", "that", f"{report.unit}s", "what to do"), rows, left=6)
