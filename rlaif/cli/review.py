"""rlaif review"""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--name", default="reviewer", show_default=True, help="Whose votes they are; several people may vote.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On which port (default: a free one).")
@click.option("--host", default="127.0.0.1", show_default=True, help="An address of this machine's own: loopback.")
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option("--export", "to", type=click.Path(path_type=Path), help="Write the votes to this file as labelled pairs.")
def review(run: Path, name: str, port: int, host: str, no_browser: bool, to: Path | None) -> None:
    """Read what RUN compared, vote on it blind, and see how far the judge agrees.

    Serves a page to this machine alone. Votes are kept in the run's ledger; `rlaif generate` on the same run then takes
    them before any judge. With --export nothing is served: the file is what `rlaif judge check --data` and `judge.gold`
    read.

    \b
    Example:
      rlaif review runs/first --name anna
      rlaif review runs/first --export labelled.jsonl
    """
    from rlaif.review import export_votes, open_review

    if to is not None:
        click.echo(f"{to}: {export_votes(run, to)} labelled pairs")
        return
    with open_review(run, reviewer=name, host=host, port=port) as page:
        click.echo(f"{page.comparisons} comparisons to review as {name!r}; Ctrl-C ends, every vote is stored at once.")
        click.echo(page.url)
        if not no_browser:
            click.launch(page.url)
        before = len(page.votes.book)
        try:
            page.serve()
        except KeyboardInterrupt:
            click.echo()  # after the ^C
        book = page.votes.refresh()
    click.echo(f"{len(book)} votes are stored ({len(book) - before:+d}); `rlaif generate` on this run will take them.")
