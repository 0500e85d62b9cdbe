"""rlaif data: doctor, clean, push."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

if TYPE_CHECKING:
    from rlaif.config.dataset import Drop
    from rlaif.data_doctor import Report


@click.group()
def data() -> None:
    """Find out what a data set is worth, take out what is not, and publish it.

    \b
    Example:
      rlaif data doctor runs/first
      rlaif data clean pairs.jsonl.gz --out clean.jsonl.gz --against gsm8k_test.jsonl
      rlaif data push runs/first somebody/first --dry-run
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


def _drops(ctx: click.Context, param: click.Parameter, value: str | None) -> "tuple[Drop, ...] | None":
    """Names of `Drop` with commas between them."""
    from rlaif.config.dataset import Drop

    if value is None:
        return None
    known: dict[str, Drop] = {name: name for name in get_args(Drop)}
    names = [name.strip() for name in value.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(known)}.", ctx, param)
    return tuple(known[name] for name in names)


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="PATH", help="A new file or folder.")
@click.option("--drop", callback=_drops, metavar="NAME,..", help="What to take out (default: see above).")
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="A benchmark not to train on."
)
@click.option("--ngram", type=click.IntRange(min=2), help="Words of a passage shared with a benchmark (default: 13).")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def clean(
    path: Path, out: Path, drop: "tuple[Drop, ...] | None", against: tuple[Path, ...], ngram: int | None, as_json: bool
) -> None:
    """Write the preference data of PATH to --out without the rows that should not be trained on.

    The format stays as it is: of a run folder comes a folder with pairs.jsonl and data/, of a file a file. What was
    taken out goes to NAME.removed.jsonl beside it, each row with its reason and the row it repeats. Of rows that repeat
    one another the first stays. Nothing that is there is overwritten.

    \b
    --drop takes: duplicates, near_duplicates, contradictions, overlap (with --against), secrets, personal,
    unusable. Without it: unusable, duplicates and near_duplicates, and overlap where --against is given.

    \b
    Example:
      rlaif data clean runs/first --out runs/first-clean --drop duplicates,contradictions,secrets
      rlaif data clean pairs.jsonl.gz --out clean.jsonl.gz --against gsm8k_test.jsonl
    """
    from rlaif.cleaning import clean as run
    from rlaif.config.dataset import GRAM

    done = run(path, out, drop=drop, against=against, gram=ngram or GRAM)
    if as_json:
        click.echo(json.dumps(done.model_dump(), indent=2, ensure_ascii=False))
        return
    click.echo(f"{done.kept:,} of {done.rows:,} rows stay: {done.out}")
    for reason, n in done.removed.items():
        click.echo(f"  {n:,} {reason}")
    click.echo(f"what was taken out: {done.removed_file}")


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("name", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--update", is_flag=True, help="A new version of a repository that is there.")
@click.option("--force", is_flag=True, help="Push although the data doctor finds errors.")
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded; send nothing.")
def push(path: Path, name: str, private: bool, update: bool, force: bool, dry_run: bool) -> None:
    """Upload the data of PATH, a run folder or a data set folder, to the Hugging Face Hub.

    The token is taken from HF_TOKEN. Exits with 3, and uploads nothing, where the data doctor finds errors; with 4
    where the hub refuses or cannot be reached, or OWNER/NAME is there already.

    \b
    Example:
      rlaif data push runs/first somebody/first --dry-run
      rlaif data push runs/first somebody/first --private
    """
    from rlaif import hub

    planned = hub.plan(path, name)
    click.echo(f"{name}{', private' if private else ''}: {planned.report.rows:,} rows")
    for upload in planned.uploads:
        click.echo(f"  {upload.path}, {upload.size:,} bytes")
    hub.check(planned, force=force)
    if dry_run:
        click.echo("Nothing was sent.")
        return
    click.echo(hub.push(planned, name, private=private, update=update, force=force))
