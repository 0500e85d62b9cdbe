"""rlaif quickstart"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rlaif.evaluation.before_after import BeforeAfter


@click.command()
@click.option("--constitution", default="brief", show_default=True, help="A shipped name or a file.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder.  [default: runs/quickstart-NAME]")
@click.option("--seed", default=0, show_default=True, help="Another seed is another experiment.")
@click.option("--prompts", type=click.IntRange(4, 48), default=32, show_default=True, help="How many prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def quickstart(constitution: str, out: Path | None, seed: int, prompts: int, as_json: bool) -> None:
    """The whole loop on the embedded model: sample, judge, tune, compare. Minutes on a CPU, no key, no download.

    \b
    Example:
      rlaif quickstart --constitution thorough
    """
    import json
    from contextlib import ExitStack

    from rlaif.cli.progress import progress
    from rlaif.quickstart import quickstart as run

    out = out or Path("runs") / f"quickstart-{Path(constitution).stem}"
    with ExitStack() as bars:
        result = run(
            constitution,
            out,
            seed=seed,
            prompts=prompts,
            say=lambda line: click.echo(line, err=True),
            progress=lambda title: bars.enter_context(progress(title)),
        )
    if as_json:
        click.echo(json.dumps(result.comparison.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        _show(result.comparison)
        click.echo(f"The run to look at: {result.report}")


def _show(comparison: "BeforeAfter") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Constitution '{comparison.constitution}': {comparison.prompts} held-out prompts, same seeds",
        title_justify="left",
    )
    for column in ("measure", "before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for m in comparison.metrics:
        table.add_row(
            m.name, f"{m.before:.2f}", f"{m.after:.2f}", f"{m.difference:+.2f}", f"{m.low:+.2f} to {m.high:+.2f}"
        )
    Console(width=100).print(table)
    if not any(m.moved for m in comparison.metrics):
        click.echo("No measure moved beyond the noise of these prompts: more prompts or more tuning are needed.")
