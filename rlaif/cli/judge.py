"""rlaif judge: check, stats."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.group()
def judge() -> None:
    """Find out how good a judge is.

    \b
    Example:
      rlaif judge check --judge local:smollm2 --data labelled.jsonl --limit 50
      rlaif judge stats verdicts.jsonl
    """


@judge.command()
@click.option("--judge", "model", required=True, metavar="MODEL", help="The judge, such as local:smollm2.")
@click.option(
    "--data", required=True, metavar="FILE", help="Labelled pairs: prompt and chosen, rejected or a, b, label."
)
@click.option("--out", type=click.Path(path_type=Path), help="The card's folder (default: runs/judge-NAME).")
@click.option("--constitution", metavar="NAME", help="Ask about its principles, not which response is better.")
@click.option("--labels", type=click.Choice(["auto", "logprob", "text", "json"]), default="auto", show_default=True)
@click.option("--rationale", is_flag=True, help="Ask for reasons before the verdict.")
@click.option("--ties", is_flag=True, help="Offer a tie as an answer.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other key, as in judge.max_tokens=256."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first that many pairs.")
@click.option(
    "--injections",
    type=click.Choice(["own", "all", "none"]),
    default="own",
    show_default=True,
    help="Try the injection set as verdicts are read here, in every way one can be read, or not at all.",
)
@click.option("--min-kappa", type=float, metavar="K", help="Exit with 3 where Cohen's kappa is less.")
@click.option("--max-cost", type=float, metavar="USD", help="Stop before a request could pass this.")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds and pay again.")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def check(
    model: str,
    data: str,
    out: Path | None,
    constitution: str | None,
    labels: str,
    rationale: bool,
    ties: bool,
    overrides: tuple[str, ...],
    limit: int | None,
    injections: str,
    min_kappa: float | None,
    max_cost: float | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """The judge card: ask MODEL about labelled pairs, in both orders, and count everything it does.

    Agreement with the labels, consistency, position and other preferences, calibration, cost, and what hostile text can
    do to it, in OUT/card.json and OUT/card.html. Running it again goes on and pays nothing twice.

    \b
    Example:
      rlaif judge check --judge local:smollm2 --data labelled.jsonl --limit 50
      rlaif judge check --judge openai:gpt-4.1-mini --data labelled.jsonl --max-cost 2 --min-kappa 0.4
    """
    from rlaif.cli.progress import progress
    from rlaif.config.base import Document, apply_overrides, validate
    from rlaif.judging.card import PAGE, CheckConfig
    from rlaif.judging.card import check as run
    from rlaif.judging.robustness import MODES

    settings: dict[str, Any] = {
        "data": data,
        "out": str(out or Path("runs") / ("judge-" + re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-"))),
        "judge": {"models": [{"model": model}], "labels": labels, "rationale": rationale, "ties": ties},
        "constitution": constitution,
        "modes": {"own": None, "all": list(MODES), "none": []}[injections],
        "max_cost": max_cost,
    }
    document = Document("command", settings, {})
    apply_overrides(document, overrides)
    config = validate(CheckConfig, document)
    with progress("pairs") as update:
        card = run(config, limit=limit, fresh=fresh, min_kappa=min_kappa, progress=update)
    if as_json:
        click.echo(json.dumps(card.report, indent=2, ensure_ascii=False))
        return
    tell_figures(card.report)
    tell_rest(card.report)
    click.echo(f"{card.out}/{PAGE}, {card.out}/verdicts.jsonl")


@judge.command()
@click.argument("verdicts", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def stats(verdicts: Path, as_json: bool) -> None:
    """Agreement, consistency and position preference of recorded verdicts; no model is called.

    A line of VERDICTS is an object with id, order (ab or ba), verdict (a, b, tie or invalid, whatever was shown first),
    label (a, b or tie) and perhaps p_a. Every figure comes with its 95 % bootstrap interval over pairs. With length_a
    and length_b (characters) there is the win rate of a too, and what it would be at equal length.

    \b
    Example:
      rlaif judge stats runs/card/verdicts.jsonl --json
    """
    from rlaif.judging.agreement import verdict_figures
    from rlaif.judging.bias import recorded_win_rate
    from rlaif.judging.position import position_report, recorded_prior, without_prior
    from rlaif.judging.verdicts import read_lengths, read_pairs

    pairs = read_pairs(verdicts)
    if contrary := sum(pair.contrary for pair in pairs):
        click.echo(
            f"{verdicts}: {contrary} verdicts contradict their p_a (a below 0.5, b above); un-swap p_a as well.",
            err=True,
        )
    report: dict[str, Any] = verdict_figures(pairs).report()
    if (prior := recorded_prior(pairs)).questions:
        report["position"] = position_report(prior, pairs, without_prior(pairs, prior))
    if (won := recorded_win_rate(pairs, read_lengths(verdicts))) is not None:
        rate, of = won
        report["win_rate"] = {"pairs": of, **rate._asdict()}
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    tell_figures(report)
    tell_position(report.get("position", {}))
    if won is not None:
        click.echo(
            f"win rate of a: {number(rate.raw)}, at equal length {number(rate.controlled)}"
            f" ({number(rate.low)} to {number(rate.high)}), {of:,} pairs"
        )


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


def tell_figures(report: Mapping[str, Any]) -> None:
    """Print the figures of a report as a table."""
    from rlaif.cli.cost import table

    click.echo(f"{report['pairs']:,} pairs, {report['looks']:,} verdicts")
    ends = ("", "_low", "_high")
    rows = [(name, what, *(number(report[name + end]) for end in ends)) for name, what in _MEANING.items()]
    table(("figure", "what it is", "value", "low", "high"), rows, left=2)


def tell_position(position: Mapping[str, Any]) -> None:
    """Print a judge's preference for a position, and what taking it out does."""
    if "prior" not in position:
        return
    prior = position["prior"]
    if prior["p_first"] is not None:
        ends = f" ({number(prior['p_first_low'])} to {number(prior['p_first_high'])})" * (
            prior["p_first_low"] is not None
        )
        click.echo(f"probability of the first place whatever stands there: {number(prior['p_first'])}{ends}")
    if position["after"] is None:
        click.echo(f"not corrected: {position['why_not']}")
        return
    for name in ("swap_consistency", "accuracy", "accuracy_averaged"):
        before, after = position["before"][name], position["after"][name]
        click.echo(f"{name} without it: {number(before['value'])} -> {number(after['value'])}")


def tell_rest(card: Mapping[str, Any]) -> None:
    """Print what else a card holds, a line each."""
    tell_position(card["position"])
    for name, rate in card["bias"].items():
        if name.endswith("_bias") and rate["value"] is not None:
            click.echo(f"{name}: {rate['value']:+.3f} ({number(rate['low'])} to {number(rate['high'])})")
    ece = card["calibration"]["ece_averaged"]
    if ece["value"] is not None:
        click.echo(f"expected calibration error, orders averaged: {number(ece['value'])}")
    if card["robustness"] and not card["robustness"]["bases"]:
        click.echo("hostile text: not tried, since the judge preferred neither response of any pair")
    for mode, m in (card["robustness"] or {}).get("modes", {}).items():
        if not m["texts"]:
            click.echo(f"hostile text, verdict from {mode}: no verdict on untouched pairs, so nothing to turn")
            continue
        turned, control = m["pair_flip_rate"], m["control"]["pair_flip_rate"]
        click.echo(f"hostile text, verdict from {mode}: turns {number(turned)} of pairs (control {number(control)})")
    if card["usd_per_1000"] is not None or card["seconds_per_1000"] is not None:
        usd, seconds = number(card["usd_per_1000"]), number(card["seconds_per_1000"])
        click.echo(f"for 1,000 pairs: {usd} USD, {seconds} seconds")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
