"""rlaif doctor"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rlaif.doctor import Finding

_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red", "unreachable": "bold red"}


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the config.")
@click.option("--call", is_flag=True, help="Ask each model something (a few tokens).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, overrides: tuple[str, ...], call: bool, as_json: bool) -> None:
    """Say what is installed, which keys are set and, for the models of CONFIG, whether they can be used.

    Exits with 2 when something here is wrong, with 4 when a provider refuses or does not answer.

    \b
    Example:
      rlaif doctor config.yaml --call
    """
    import json

    from rlaif.config.base import apply_overrides, read_yaml, validate
    from rlaif.config.generate import GenerateConfig
    from rlaif.doctor import examine, exit_code

    settings = None
    if config is not None:
        document = read_yaml(config)
        apply_overrides(document, overrides)
        settings = validate(GenerateConfig, document)
    findings = examine(settings, call=call)
    code = exit_code(findings)
    if as_json:
        report = {"ok": code == 0, "findings": [finding.model_dump(mode="json") for finding in findings]}
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _tell(findings)
    ctx.exit(code)


def _tell(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        for finding in findings:
            click.echo(f"{finding.status:<11}  {finding.message}")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in findings:
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), Text(finding.message))
    console.print(table)
