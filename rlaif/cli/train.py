"""rlaif train"""

from pathlib import Path

import click


@click.group()
def train() -> None:
    """Tune a model on preference data.

    \b
    Example:
      rlaif train dpo train.yaml --check
    """


@train.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the model goes (instead of the config's 'out').")
@click.option("--check", "only_check", is_flag=True, help="Say what would happen, and compute nothing.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an unfinished training.")
@click.option("--json", "as_json", is_flag=True, help="Print the check's report, or the manifest, as JSON.")
def dpo(
    config: Path, overrides: tuple[str, ...], out: Path | None, only_check: bool, resume: bool, as_json: bool
) -> None:
    """Direct Preference Optimization: hold the model near itself, and prefer what the pairs prefer.

    \b
    Example:
      rlaif train dpo train.yaml --set data=runs/first --set epochs=2
    """
    import json

    from rlaif.cli.progress import progress
    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.train import TrainDPOConfig, replaced_key
    from rlaif.training.check import check_dpo, duration, show
    from rlaif.training.dpo import train_dpo

    document = read_yaml(config)
    apply_overrides(document, [*overrides, *([f"out={json.dumps(str(out))}"] if out else [])])
    settings = validate(TrainDPOConfig, document, replaced_key)
    if only_check:
        report = check_dpo(settings)
        click.echo(report.model_dump_json(indent=2)) if as_json else show(report)
        return
    with progress("training") as update:
        result = train_dpo(
            settings, resume=resume, progress=update, on_check=show if not as_json else lambda report: None
        )
    if as_json:
        click.echo(json.dumps(result.manifest, indent=2, ensure_ascii=False))
        return
    losses = [point["loss"] for point in result.manifest["curve"] if "loss" in point]
    click.echo(
        f"{result.manifest['data']['pairs']} pairs, {len(losses)} steps, {duration(result.manifest['seconds'])}:"
        f" loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )
    click.echo(f"{result.model}")
