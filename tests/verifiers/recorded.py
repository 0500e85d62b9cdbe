"""The recorded data that these tests compare with, where it is at hand."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

needs_data = pytest.mark.skipif(not (DATA / "ifeval").is_dir(), reason=f"no data in {DATA}; set RLAIF_DATA")

MODELS = ("gpt4", "qwen25_1.5b")


@lru_cache(maxsize=8)
def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def ifeval(model: str) -> list[dict[str, Any]]:
    """Recorded responses and verdicts (``strict``, ``loose``), each with its task's columns."""
    tasks = {row["prompt"]: row for row in rows("ifeval/ifeval_541.jsonl.gz")}
    recorded = rows(f"ifeval/ifeval_{model}_responses_and_verdicts.jsonl.gz")
    return [tasks[row["prompt"]] | {key: row[key] for key in ("response", "strict", "loose")} for row in recorded]
