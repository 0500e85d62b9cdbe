"""Whole generate runs against the batch server, in processes that may be killed."""

import json
import multiprocessing
import re
import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from rlaif.config.generate import GenerateConfig
from rlaif.hashing import digest, uniform
from tests.running import CONSTITUTION
from tests.servers.batch_server import BatchServer
from tests.servers.fault_server import Answer, Asked

_SHOWN = re.compile(r"<response_[XY]>\nquality (\d+)")
ROWS = ("completions", "judgements", "pairs", "dropped")


def answer(asked: Asked) -> Answer:
    """A policy whose samples state their quality, and a judge that reads it."""
    text = asked.last_message
    if shown := _SHOWN.findall(text):
        first, second = map(int, shown)
        return Answer("X" if first > second else "Y" if second > first else "Z")
    quality = int(uniform("quality", asked.body.get("seed"), digest(text)) * 1000)
    return Answer(f"quality {quality}\nto {text!r}: a line\u2028another — end")


def config(
    folder: Path,
    server: BatchServer,
    *,
    prompts: int = 12,
    samples: bool = False,
    transport: str = "batch",
    out: str = "run",
    **batch: Any,
) -> GenerateConfig:
    """The policy is openai's, the judge anthropic's. ``samples``: from a file, so that nothing is sampled."""
    (folder / "constitution.yaml").write_text(CONSTITUTION, encoding="utf-8")
    asked = [{"prompt": f"Question {i}: why?"} for i in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    rows = [row | {"completions": [f"quality {17 * i + 5 * k}\nso" for k in range(3)]} for i, row in enumerate(asked)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    how: dict[str, Any] = {"transport": transport}
    if transport == "batch":
        how["batch"] = {"quiet_seconds": 0.05, "poll_seconds": 0.03, **batch}
    policy = {"model": "openai:policy", "base_url": server.openai_url, **how}
    judge = {"model": "anthropic:judge", "base_url": server.anthropic_url, **how}
    return GenerateConfig.model_validate(
        {
            "constitution": str(folder / "constitution.yaml"),
            "judge": {"models": [judge], "ties": True},
            "out": str(folder / out),
        }
        | (
            {"policy": {"completions": str(folder / "samples.jsonl")}}
            if samples
            else {"prompts": str(folder / "prompts.jsonl"), "policy": {"model": policy, "n": 3}}
        )
    )


def rows(config: GenerateConfig) -> dict[str, bytes]:
    """The files of rows, byte for byte."""
    return {name: (config.out / f"{name}.jsonl").read_bytes() for name in ROWS}


def processes() -> ForkServerContext:
    """Makes processes that have everything imported already, so that one lives for a fraction of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.batch_runs_preload"])
    return context


def start(context: ForkServerContext, config: GenerateConfig) -> ForkServerProcess:
    process = context.Process(target=_run, args=(config.model_dump_json(),))
    process.start()
    return process


def _run(config: str) -> None:
    from rlaif.engine import batch
    from rlaif.generation import generate

    batch.SETTLE_SECONDS = 0.4
    generate(GenerateConfig.model_validate_json(config))


def start_command(context: ForkServerContext, arguments: list[str], stderr: Path) -> ForkServerProcess:
    """``rlaif ARGUMENTS`` with its standard error in a file."""
    process = context.Process(target=_command, args=(arguments, str(stderr)))
    process.start()
    return process


def _command(arguments: list[str], stderr: str) -> None:
    from rlaif.cli import main

    sys.stderr = Path(stderr).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115
    main(arguments)
