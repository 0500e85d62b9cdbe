"""rlaif report"""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write RUN/report.html, a generate run or a training as one self-contained page.

    \b
    Example:
      rlaif report runs/first
    """
    from rlaif.report import write_report

    click.echo(write_report(run))
