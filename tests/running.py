"""A whole generate run on scripted models, in a few milliseconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.generate import GenerateConfig
from rlaif.generation import GenerateResult, generate
from rlaif.types import Dropped, Judgement
from tests import fakes

__all__ = ["GenerateConfig", "config", "dropped", "generate", "judgements", "quality", "rows", "run", "write_prompts"]

CONSTITUTION = """
name: quality
version: "1"
principles:
  - id: better
    compare: Which response is better?
"""


def write_prompts(folder: Path, prompts: Sequence[str]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    return path


def config(
    folder: Path,
    *,
    policy: str = "policy",
    judge: str = "judge",
    constitution: str = CONSTITUTION,
    policy_settings: dict[str, Any] | None = None,
    judge_settings: dict[str, Any] | None = None,
    **other: Any,
) -> GenerateConfig:
    (folder / "constitution.yaml").write_text(constitution, encoding="utf-8")
    values: dict[str, Any] = {
        "prompts": str(folder / "prompts.jsonl"),
        "constitution": str(folder / "constitution.yaml"),
        "policy": {"model": f"scripted:tests.fakes:{policy}", "n": 4} | (policy_settings or {}),
        "judge": {
            "models": [{"model": f"scripted:tests.fakes:{judge}", "logprobs": "logprobs" in judge}],
            "ties": True,
        }
        | (judge_settings or {}),
        "out": str(folder / "run"),
        **other,
    }
    return GenerateConfig.model_validate(values)


def run(folder: Path, prompts: Sequence[str] = (), **other: Any) -> GenerateResult:
    """A run into ``folder``/run. ``fakes.SENT`` holds what it sent."""
    if prompts:
        write_prompts(folder, prompts)
    fakes.SENT.clear()
    return generate(config(folder, **other))


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / "run" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def judgements(folder: Path) -> list[Judgement]:
    return [Judgement.model_validate(row) for row in rows(folder, "judgements")]


def dropped(folder: Path) -> list[Dropped]:
    return [Dropped.model_validate(row) for row in rows(folder, "dropped")]


def quality(completion: str) -> int:
    return int(completion.split("\n")[0].removeprefix("quality "))
