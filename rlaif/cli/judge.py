"""rlaif judge: check, stats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rlaif.judging.agreement import VerdictFigures


@click.group()
def judge() -> None:
    """Find out how good a judge is.

    \b
    Example:
      rlaif judge check --judge local:smollm2 --data labelled.jsonl --limit 50
      rlaif judge stats verdicts.jsonl
    """


@judge.command()
@click.argument("verdicts", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def stats(verdicts: Path, as_json: bool) -> None:
    """Agreement, consistency and position preference of recorded verdicts; no model is called.

    A line of VERDICTS is an object with id, order (ab or ba), verdict (a, b, tie or invalid, whatever was shown first),
    label (a, b or tie) and perhaps p_a. Every figure comes with its 95 % bootstrap interval over pairs.

    \b
    Example:
      rlaif judge stats runs/card/verdicts.jsonl --json
    """
    from rlaif.judging.agreement import verdict_figures
    from rlaif.judging.verdicts import read_pairs

    figures = verdict_figures(read_pairs(verdicts))
    if as_json:
        click.echo(json.dumps(figures.report(), indent=2))
    else:
        tell_figures(figures)


# What a reader is told of a figure, in this order.
_MEANING: Mapping[str, str] = {
    "accuracy": "verdicts that are the label, both orders averaged",
    "accuracy_ab": "... where a was shown first",
    "accuracy_ba": "... where b was shown first",
    "accuracy_averaged": "label found by the mean probability of the orders",
    "both_right": "pairs right in both orders",
    "kappa": "Cohen's kappa with the label",
    "alpha": "Krippendorff's alpha with the label",
    "swap_consistency": "pairs judged alike in both orders",
    "kappa_orders": "Cohen's kappa of one order with the other",
    "first_position_rate": "the response shown first is preferred",
    "tie_rate": "verdicts that are a tie",
    "invalid_rate": "looks without a verdict",
}


def tell_figures(figures: "VerdictFigures") -> None:
    """Print the figures as a table."""
    from rlaif.cli.cost import table

    click.echo(f"{figures.pairs:,} pairs, {figures.looks:,} verdicts")
    rows = []
    for name, meaning in _MEANING.items():
        value, low, high = figures.estimates[name]
        rows.append((name, meaning, number(value), number(low), number(high)))
    table(("figure", "what it is", "value", "low", "high"), rows, left=2)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
