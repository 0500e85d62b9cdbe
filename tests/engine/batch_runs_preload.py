"""What `batch_runs.processes` imports once: a process forked from there begins at once."""

from importlib import import_module

for name in (
    "anthropic.resources.messages.batches",
    "anthropic.types.beta",
    "openai.resources.batches",
    "openai.resources.chat",
    "pandas",
    "rlaif.cli.batch",
    "rlaif.cli.cost",
    "rlaif.cli.generate",
    "rlaif.cli.progress",
    "rlaif.clients.anthropic_batch",
    "rlaif.clients.openai_batch",
    "rlaif.engine.batch",
    "rlaif.generation",
    "rlaif.report",
    "rich.console",
    "rich.table",
    "tests.engine.batch_runs",
):
    import_module(name)
