"""rlaif generate"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.errors import QualityError

if TYPE_CHECKING:
    from rlaif.config.generate import GenerateConfig


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder (instead of the config's 'out').")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many prompts.")
@click.option("--fresh", is_flag=True, help="Forget what the run folder holds and pay again.")
@click.option(
    "--reparse", is_flag=True, help="Make all files anew from the stored replies; send nothing, cost nothing."
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent and what it would cost; send and write nothing.")
@click.option(
    "--max-cost", type=float, metavar="USD", help="Stop before a request could pass this, earlier runs included."
)
@click.option("--json", "as_json", is_flag=True, help="Print the run's manifest (or the estimate) as JSON.")
def generate(
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    limit: int | None,
    fresh: bool,
    reparse: bool,
    dry_run: bool,
    max_cost: float | None,
    as_json: bool,
) -> None:
    """Turn prompts into preference data by a constitution.

    What is in the run folder already is not paid for again: after a crash, run the same command.

    \b
    Example:
      rlaif generate config.yaml --dry-run
      rlaif generate config.yaml --limit 10 --set policy.n=2
      rlaif generate config.yaml --max-cost 20
    """
    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.generate import GenerateConfig

    document = read_yaml(config)
    options = [f"out={json.dumps(str(out))}"] if out else []
    options += [f"max_cost={max_cost}"] if max_cost is not None else []
    apply_overrides(document, [*overrides, *options])
    settings = validate(GenerateConfig, document)
    if reparse and (fresh or dry_run):
        raise click.UsageError(f"--reparse and {'--fresh' if fresh else '--dry-run'} exclude each other.")
    if dry_run:
        estimate_and_tell(settings, limit=limit, fresh=fresh, as_json=as_json)
        return
    run_and_tell(settings, limit=limit, fresh=fresh, reparse=reparse, as_json=as_json)


def estimate_and_tell(settings: "GenerateConfig", *, limit: int | None, fresh: bool, as_json: bool) -> None:
    """Print what a run would send and cost."""
    from rlaif.cli.cost import tell_estimate
    from rlaif.cli.progress import progress
    from rlaif.estimate import estimate

    with progress("prompts") as update:
        found = estimate(
            settings, limit=limit, fresh=fresh, progress=lambda done, total: update(done, total, "counted")
        )
    if as_json:
        click.echo(json.dumps(found.report(), indent=2, ensure_ascii=False))
    else:
        tell_estimate(found)


def run_and_tell(
    settings: "GenerateConfig", *, limit: int | None, fresh: bool, as_json: bool, reparse: bool = False
) -> None:
    """Run it with its progress on standard error, write its report, and print what came out."""
    from rlaif.cli.batch import batch_news
    from rlaif.cli.cost import tell_cost
    from rlaif.cli.progress import progress
    from rlaif.generation import Counts
    from rlaif.generation import generate as run
    from rlaif.judges.stats import in_words
    from rlaif.report import write_report
    from rlaif.runs import on_disk

    with batch_news(settings.out), progress("prompts") as update:

        def show(counts: Counts, total: int) -> None:
            notes = (f"{counts.pairs} pairs, {counts.unjudged.total()} unjudged", counts.cost)
            update(counts.prompts, total, ", ".join(filter(None, notes)))

        try:
            result = run(settings, limit=limit, fresh=fresh, reparse=reparse, progress=show)
        except QualityError:
            with on_disk(settings.out):
                write_report(settings.out)  # the run is whole, and the report shows what is wrong with it
            raise
        with on_disk(settings.out):
            write_report(settings.out)
    if as_json:
        click.echo(json.dumps(result.manifest, indent=2, ensure_ascii=False))
        return
    counts = result.manifest["counts"]
    comparisons = counts["comparisons"]
    click.echo(f"{comparisons['pairs']} pairs from {comparisons['planned']} comparisons of {counts['prompts']} prompts")
    for reason, number in comparisons["dropped"].items():
        click.echo(f"  {number} comparisons without a pair: {reason}")
    for sentence in in_words(result.manifest):
        click.echo(sentence)
    if human := counts.get("human"):
        click.echo(f"{human['votes']} votes of people, on {human['comparisons']} comparisons, came before the judge")
    if rewards := result.manifest.get("rewards"):
        mean = "none" if rewards["mean"] is None else f"mean {rewards['mean']:.3g}"
        click.echo(f"{rewards['rows']} rewards, {mean}, {sum(rewards['masked'].values())} masked")
        for alarm in rewards["alarms"].values():
            click.echo(f"  {alarm}", err=True)
    tell_cost(result.manifest["cost"])
    click.echo(f"{result.out}/pairs.jsonl, {result.out}/report.html")
