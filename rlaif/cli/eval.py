"""rlaif eval"""

import sys
from pathlib import Path

import click


@click.command("eval")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder (instead of the config's 'out').")
@click.option("--max-cost", type=float, metavar="USD", help="Stop before a request could pass this.")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds and pay again.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def evaluate(
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    max_cost: float | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Compare two models: the same prompts, the same seeds, every difference with its 95 % interval.

    Tasks are rewards of a verifier, a judge's win rate in both orders, likelihoods of given answers, perplexity and
    checks of a constitution. Exits with 3 where one is certainly worse than its tolerance allows. Running it again goes
    on and pays nothing twice.

    \b
    Example:
      rlaif eval eval.yaml --set after=local:runs/first-dpo/model
    """
    import json

    from rlaif.cli.progress import progress
    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.evaluate import EvalConfig
    from rlaif.evaluation.evaluate import PAGE
    from rlaif.evaluation.evaluate import evaluate as run

    document = read_yaml(config)
    given = {"out": out and str(out), "max_cost": max_cost}
    apply_overrides(document, [*overrides, *(f"{k}={json.dumps(v)}" for k, v in given.items() if v is not None)])
    settings = validate(EvalConfig, document)
    with progress("answers") as update:
        found = run(settings, fresh=fresh, progress=update)
    if as_json:
        click.echo(json.dumps(found.report, indent=2, ensure_ascii=False))
    else:
        _show(found.report)
        click.echo(f"{settings.out}/{PAGE}")
    found.check()


def _show(report: dict[str, object]) -> None:
    from typing import Any, cast

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)  # a file takes lines of any length
    for candidate in cast("list[dict[str, Any]]", report["after"]):
        table = Table(title=f"{report['before']} -> {candidate['model']}", title_justify="left")
        for column in ("task", "figure", "rows", "before", "after", "change by", "95 % interval", ""):
            table.add_column(column, justify="left" if column in ("task", "figure", "") else "right", no_wrap=True)
        for f in candidate["figures"]:
            interval = f"{f['low']:+.3f} to {f['high']:+.3f}"
            figures = (f"{f['before']:.3f}", f"{f['after']:.3f}", f"{f['difference']:+.3f}", interval)
            table.add_row(f["task"], f["name"], str(f["n"]), *figures, f["change"] + (" !" if f["fails"] else ""))
        console.print(table)
    if report["chosen_by"]:
        console.print(f"best by {report['chosen_by']}: {report['best']}", markup=False)
