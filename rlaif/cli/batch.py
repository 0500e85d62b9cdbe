"""rlaif batch: ls, cancel, resume."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.errors import InputError, RlaifError

if TYPE_CHECKING:
    from rlaif.batches import BatchInfo

_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.group()
def batch() -> None:
    """The batches of a run folder (models with `transport: batch`).

    \b
    Example:
      rlaif batch ls runs/first
    """


@batch.command("ls")
@_RUN
@click.option("--offline", is_flag=True, help="As last heard; ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def ls(run: Path, offline: bool, as_json: bool) -> None:
    """List the batches of RUN and how far they are.

    \b
    Example:
      rlaif batch ls runs/first --json
    """
    from rlaif.batches import list_batches

    found = list_batches(run, ask=not offline)
    if as_json:
        click.echo(json.dumps([info.model_dump(mode="json") for info in found], indent=2))
        return
    _print(found)
    if not found:
        click.echo(f"{run}: has no batches.")


@batch.command()
@_RUN
@click.argument("id", required=False)
@click.option("--forget", is_flag=True, help="Give ID up for lost: what it was asked may be sent, and paid for, again.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of what was cancelled.")
def cancel(run: Path, id: str | None, forget: bool, as_json: bool) -> None:
    """Cancel the batches of RUN that are under way, or only ID.

    What they have answered by then is paid for, and kept by the next run; the rest is not charged.

    \b
    Example:
      rlaif batch cancel runs/first batch_6745
    """
    from rlaif.batches import cancel_batches, forget_batch

    if forget:
        if id is None:
            raise InputError("--forget needs the ID of a batch; see `rlaif batch ls`.")
        forget_batch(run, id)
        click.echo(f"{id}: forgotten; the next run sends its requests again.")
        return
    found = cancel_batches(run, id)
    if as_json:
        click.echo(json.dumps([info.model_dump(mode="json") for info in found], indent=2))
        return
    _print(found)
    if not found:
        click.echo(f"{run}: has no batch under way.")


@batch.command()
@_RUN
@click.option("--online", is_flag=True, help="Cancel what is not done and ask it online, at the online price.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's manifest as JSON.")
def resume(run: Path, online: bool, limit: int | None, as_json: bool) -> None:
    """Go on with RUN: wait for its batches, take their results, send what is left.

    The same as running `rlaif generate` again with the config the folder was made with.

    \b
    Example:
      rlaif batch resume runs/first --online
    """
    from rlaif.batches import finishing_online, run_config
    from rlaif.cli.generate import run_and_tell

    config = run_config(run)
    run_and_tell(finishing_online(config) if online else config, limit=limit, fresh=False, as_json=as_json)


def _print(found: "list[BatchInfo]") -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("id", "model", "status", "requests", "done", "failed", "left out", "age"):
        table.add_column(name, justify="left" if name in ("id", "model", "status") else "right", overflow="fold")
    for info in found:
        left = info.expired + info.cancelled
        numbers = (info.requests, info.succeeded, info.errored, left)
        table.add_row(info.id or "-", info.model, info.status, *map(str, numbers), _age(info.age_seconds))
    Console(highlight=False, markup=False).print(table)
    for info in found:
        if info.problem:
            click.echo(f"{info.id or info.model}: {info.problem}", err=True)


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ----------------------------------------------------------------------------------------------- while a run waits


@contextmanager
def batch_news(run: Path) -> Iterator[None]:
    """Tell of batches as they come and go; and, should the run end before them, that they go on, and with what command
    they are taken up."""
    handler = _Echo()
    logger = logging.getLogger("rlaif.batch")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except (KeyboardInterrupt, RlaifError):
        _tell_what_goes_on(run)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


def _tell_what_goes_on(run: Path) -> None:
    from rlaif.batches import under_way

    try:
        batches, requests = under_way(run)
    except RlaifError:  # the error that ended the run says more
        return
    if batches:
        click.echo(
            f"rlaif: {batches} batch{'es' if batches > 1 else ''} of {requests} requests"
            f" {'go' if batches > 1 else 'goes'} on at the provider; `rlaif batch resume {run}` takes up the results.",
            err=True,
        )
