"""The folder data/ of a run: its pairs as parquet, and the card that says all there is to say about them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.config.dataset import DatasetConfig
from rlaif.data_doctor import Report, examine
from rlaif.data_doctor.card import section
from rlaif.dataset import dataset_card, write_parquet
from rlaif.runs import write_text

DATA, TRAIN, CARD, PAIRS = "data", "train.parquet", "README.md", "pairs.jsonl"


def write_data(out: Path, manifest: Mapping[str, Any], config: DatasetConfig) -> Report | None:
    """data/train.parquet and its card, from ``out``/pairs.jsonl; what the data doctor says of them (None: no pairs).

    ``config.against``: the benchmarks that the card speaks of.
    """
    folder, pairs = out / DATA, out / PAIRS
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{TRAIN}.tmp"
    with pairs.open("rb") as lines:
        write_parquet((json.loads(line) for line in lines), temporary)
    temporary.replace(folder / TRAIN)
    report = examine(pairs, against=config.against, gram=config.ngram) if pairs.stat().st_size else None
    write_text(folder / CARD, dataset_card(manifest, section(report) if report else ""))
    return report
