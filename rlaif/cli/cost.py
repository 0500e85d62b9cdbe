"""What a run cost, and what it would cost: tables for a reader."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import click

from rlaif.engine.prices import dollars
from rlaif.estimate import METHOD, Estimate, Range

Row = tuple[str, ...]


def table(header: Row, rows: Sequence[Row], left: int) -> None:
    """Print columns, the first ``left`` of them left-aligned: a rich table on a terminal, plain text otherwise."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        click.echo(plain(header, rows, left))
        return
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(header):
        grid.add_column(title, justify="left" if i < left else "right")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


def plain(header: Row, rows: Sequence[Row], left: int) -> str:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def tell_cost(cost: dict[str, Any]) -> None:
    """The ``cost`` of a manifest: what each model was sent in this session, and its tokens and USD of all sessions."""
    rows = [
        (
            model["stage"],
            model["model"],
            f"{model.get('sent', 0):,}",
            f"{model.get('reused', 0):,}",
            f"{model.get('input_tokens', 0):,}",
            f"{model.get('output_tokens', 0):,}",
            _paid(model),
        )
        for model in cost["models"]
    ]
    table(("stage", "model", "sent", "reused", "tokens in", "tokens out", "USD"), rows, left=2)
    if cost["usd_unanswered"]:
        click.echo(
            f"{dollars(Decimal(str(cost['usd_unanswered'])))} of it is counted for requests whose reply never came:"
            " the most that they can have cost."
        )


def _paid(model: dict[str, Any]) -> str:
    if model["usd"] is None:
        return "unknown"
    return "free" if model["price"]["source"] == "free" else dollars(Decimal(str(model["usd"])))


def tell_estimate(estimate: Estimate, what: str = "prompts") -> None:
    """The whole estimate of a command's ``--dry-run``."""
    calls = sum(stage.calls for stage in estimate.stages)
    answered = sum(stage.answered for stage in estimate.stages)
    click.echo(
        f"{estimate.prompts:,} {what}, {calls:,} calls: {answered:,} answered already, {calls - answered:,} to send"
    )
    header = ("stage", "model", "to send", "tokens in", "tokens out", "USD low", "expected", "high", "batch expected")
    rows = [
        (
            stage.stage,
            stage.model,
            f"{stage.calls - stage.answered:,}",
            _tokens(stage.input_tokens),
            _tokens(stage.output_tokens),
            *_money(stage.online, stage.batch),
        )
        for stage in estimate.stages
    ]
    if len(rows) > 1:
        rows.append(("all", "", f"{calls - answered:,}", "", "", *_money(estimate.usd(), estimate.usd(batch=True))))
    table(header, rows, left=2)
    if estimate.spent:
        click.echo(f"{dollars(estimate.spent)} were spent in earlier sessions.")
    for note in (*_orders(estimate), *estimate.notes, *_budget(estimate), METHOD):
        click.echo(note)


def _orders(estimate: Estimate) -> list[str]:
    """What judging would take with each setting of `judge.orders`."""
    found = [
        f"{orders} {'about ' if orders == 'auto' else ''}{price['calls']:,} calls"
        + ("" if price["usd"] is None else f" ({dollars(Decimal(str(price['usd'])))})")
        for orders, price in (estimate.orders or {}).items()
    ]
    return [f"judge.orders: {', '.join(found)}."] if found else []


def _money(online: tuple[Decimal, Decimal, Decimal] | None, batch: tuple[Decimal, Decimal, Decimal] | None) -> Row:
    if online is None or batch is None:
        return ("unknown",) * 4
    return (*map(dollars, online), dollars(batch[1]))


def _tokens(tokens: Range) -> str:
    return f"{_short(tokens.expected)} ({_short(tokens.low)} to {_short(tokens.high)})"


def _short(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _budget(estimate: Estimate) -> list[str]:
    cost = estimate.usd()
    if estimate.max_cost is None or cost is None:
        return []
    low, expected, high = (estimate.spent + usd for usd in cost)
    cap = f"The budget of {dollars(estimate.max_cost)}"
    if high <= estimate.max_cost:
        return [f"{cap} is enough for this run."]
    if expected <= estimate.max_cost:
        return [f"{cap} is enough for the expected cost, not for the highest."]
    if low <= estimate.max_cost:
        return [f"{cap} is probably not enough: the run would stop on its way, and go on with a higher one."]
    return [f"{cap} is not enough: the run would stop on its way, and go on with a higher one."]
