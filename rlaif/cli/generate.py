"""rlaif generate"""

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder (instead of the config's 'out').")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many prompts.")
@click.option("--fresh", is_flag=True, help="Forget what the run folder holds and pay again.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's manifest as JSON.")
def generate(
    config: Path, overrides: tuple[str, ...], out: Path | None, limit: int | None, fresh: bool, as_json: bool
) -> None:
    """Turn prompts into preference data by a constitution.

    What is in the run folder already is not paid for again: after a crash, run the same command.

    \b
    Example:
      rlaif generate config.yaml --limit 10 --set policy.n=2
    """
    import json

    from rlaif.cli.progress import progress
    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.generate import GenerateConfig
    from rlaif.generate import Counts
    from rlaif.generate import generate as run
    from rlaif.report import write_report

    document = read_yaml(config)
    apply_overrides(document, [*overrides, *([f"out={json.dumps(str(out))}"] if out else [])])
    settings = validate(GenerateConfig, document)
    with progress("prompts") as update:

        def show(counts: Counts, total: int) -> None:
            update(counts.prompts, total, f"{counts.pairs} pairs, {counts.unjudged.total()} unjudged")

        try:
            result = run(settings, limit=limit, fresh=fresh, progress=show)
        finally:
            if (settings.out / "manifest.json").exists():
                write_report(settings.out)
    if as_json:
        click.echo(json.dumps(result.manifest, indent=2, ensure_ascii=False))
        return
    counts = result.manifest["counts"]
    comparisons = counts["comparisons"]
    click.echo(f"{comparisons['pairs']} pairs from {comparisons['planned']} comparisons of {counts['prompts']} prompts")
    for reason, number in comparisons["dropped"].items():
        click.echo(f"  {number} comparisons without a pair: {reason}")
    click.echo(f"{result.out}/pairs.jsonl, {result.out}/report.html")
