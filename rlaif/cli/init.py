"""rlaif init"""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", default="local:smollm2", show_default=True, help="The policy and the judge, BACKEND:NAME.")
def init(folder: Path, model: str) -> None:
    """Make a small project in FOLDER: a config, a constitution and prompts, ready to run.

    \b
    Example:
      rlaif init my-project --model openai:gpt-4.1-mini
    """
    from rlaif.starter import write_project

    for path in write_project(folder, model):
        click.echo(path)
    click.echo(f"Next: cd {folder} && rlaif generate config.yaml")
