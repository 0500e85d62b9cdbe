"""The command line: parse, load the config, call, map errors to exit codes. No logic lives here.

Commands are imported only when they run, so that ``rlaif --help`` needs none of the libraries behind them.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from rlaif import __version__
from rlaif.errors import RlaifError

# name -> (module:command, the line shown by rlaif --help)
_COMMANDS = {
    "quickstart": ("rlaif.cli.quickstart:quickstart", "The whole loop on the embedded model, on a CPU, in minutes."),
    "init": ("rlaif.cli.init:init", "Make a small project folder that runs."),
    "generate": ("rlaif.cli.generate:generate", "Prompts and a constitution in, preference data out."),
    "batch": ("rlaif.cli.batch:batch", "List, cancel and resume the batches of a run."),
    "judge": ("rlaif.cli.judge:judge", "How good a judge is: its card, figures of recorded verdicts."),
    "verify": ("rlaif.cli.verify:verify", "Rewards that a program decides: math, code, instructions, ..."),
    "data": ("rlaif.cli.data:data", "What is wrong with preference data before training on it."),
    "train": ("rlaif.cli.train:train", "Tune a model on preference data."),
    "eval": ("rlaif.cli.eval:evaluate", "Two models on the same prompts: what became better, and what worse."),
    "constitution": ("rlaif.cli.constitution:constitution", "Check, show, import, compare and learn constitutions."),
    "review": ("rlaif.cli.review:review", "Vote on what a run compared, blind, on a local page."),
    "report": ("rlaif.cli.report:report", "A run as one HTML file."),
    "doctor": ("rlaif.cli.doctor:doctor", "What is installed, which keys are set, whether the models answer."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rlaif")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def rlaif(debug: bool) -> None:
    """Reinforcement learning from AI feedback: a constitution and prompts in, preference data and a tuned model out.

    \b
    Example:
      rlaif init my-project && cd my-project && rlaif generate config.yaml
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract (see rlaif.errors)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:  # accepted anywhere on the line
        arguments.remove("--debug")
    try:
        code = rlaif.main(arguments, prog_name="rlaif", standalone_mode=False)
    except RlaifError as error:
        if debug:
            raise
        click.echo(f"rlaif: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        click.echo("rlaif: interrupted; running the same command again goes on from here.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if debug:
            raise
        click.echo(f"rlaif: {error.filename or 'the system'}: {error.strerror or error}.", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"rlaif: a bug in rlaif, sorry: {type(error).__name__}: {error}. Run again with --debug and report it.",
            err=True,
        )
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
