"""rlaif train"""

from pathlib import Path

import click

# One command for each method of rlaif.training.methods, which is not imported for a help text.
_HELP = {
    "sft": """Supervised fine-tuning: learn good answers as they are.

    \b
    Example:
      rlaif train sft train.yaml --set data=runs/first/best.jsonl --set epochs=2
    """,
    "reward": """A reward model: one score for an answer, so that chosen answers score higher than rejected ones.

    \b
    Example:
      rlaif train reward train.yaml --set data=runs/first --set eval_data=held_out.jsonl
    """,
    "dpo": """Direct Preference Optimization: hold the model near itself, and prefer what the pairs prefer.

    \b
    Example:
      rlaif train dpo train.yaml --set data=runs/first --set epochs=2
    """,
    "ppo": """Proximal Policy Optimization: sample, let verifiers, judges or a reward model score, and learn from it.

    \b
    Example:
      rlaif train ppo train.yaml --set reward=math --set steps=100
    """,
    "grpo": """Group Relative Policy Optimization: sample groups, and prefer what is above its group's mean.

    \b
    Example:
      rlaif train grpo train.yaml --set reward=math --set group_size=8 --check
    """,
    "kto": """Kahneman-Tversky Optimization: single answers, each good or bad, without a pair to each.

    \b
    Example:
      rlaif train kto train.yaml --set data=answers.jsonl --set epochs=2
    """,
    "online": """Rounds of sampling, judging and DPO, each from the model of the round before.

    \b
    Example:
      rlaif train online train.yaml --set rounds=3 --set max_cost=5
    """,
    "rejection": """Rejection sampling: fine-tuning on the best of the model's own answers, by a reward.

    \b
    Example:
      rlaif train rejection train.yaml --set reward=math --set n=8
    """,
    "rloo": """REINFORCE leave-one-out: as grpo, each completion against the mean of the others of its group.

    \b
    Example:
      rlaif train rloo train.yaml --set reward=math --set beta=0.05
    """,
}


@click.group()
def train() -> None:
    """Tune a model on preference data.

    \b
    Example:
      rlaif train dpo train.yaml --check
    """


def _command(method: str) -> click.Command:
    @click.argument("config", type=click.Path(path_type=Path))
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
    @click.option("--out", type=click.Path(path_type=Path), help="Where the model goes (instead of 'out').")
    @click.option("--check", "only_check", is_flag=True, help="Say what would happen, and compute nothing.")
    @click.option("--resume", is_flag=True, help="Go on from the last checkpoint of an unfinished training.")
    @click.option("--json", "as_json", is_flag=True, help="Print the check's report, or the manifest, as JSON.")
    def run(**options: object) -> None:
        _train(method, **options)  # type: ignore[arg-type]

    return click.command(method, help=_HELP[method])(run)


for _method in _HELP:
    train.add_command(_command(_method))


def _train(
    name: str,
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    only_check: bool,
    resume: bool,
    as_json: bool,
) -> None:
    import json

    from rlaif.cli.progress import progress
    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.train import replaced_key
    from rlaif.report import write_report
    from rlaif.training.check import duration, show
    from rlaif.training.methods import METHODS

    method = METHODS[name]
    document = read_yaml(config)
    apply_overrides(document, [*overrides, *([f"out={json.dumps(str(out))}"] if out else [])])
    settings = validate(method.config, document, replaced_key)
    if only_check:
        report = method.check(settings)
        click.echo(report.model_dump_json(indent=2)) if as_json else show(report)
        return
    with progress("training") as update:
        result = method.train(
            settings, resume=resume, progress=update, on_check=show if not as_json else lambda report: None
        )
    write_report(result.out)
    if as_json:
        click.echo(json.dumps(result.manifest, indent=2, ensure_ascii=False))
        return
    curve = result.manifest["curve"]
    name = "reward" if any("reward" in point for point in curve) else "loss"
    values = [point[name] for point in curve if point.get(name) is not None]
    if values:
        took = duration(result.manifest["seconds"])
        click.echo(f"{len(values)} steps, {took}: {name} {values[0]:.3f} -> {values[-1]:.3f}")
    if summary := result.manifest.get("summary"):
        click.echo(summary)
    click.echo(f"{result.model}")
