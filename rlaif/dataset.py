"""Preference pairs as files that others read: TRL's conversational format in JSONL and parquet, with a card."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.types import Completion, Constitution, PreferencePair, Prompt

PAIR_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "prompt_id",
    "prob_chosen",
    "margin",
    "source",
    "principles",
    "judge",
    "constitution",
    "chosen_id",
    "rejected_id",
    "evidence",
)


_ROW_GROUP = 500  # rows; all of them are in memory before they are written


def preference_record(
    pair: PreferencePair, prompt: Prompt, completions: Mapping[str, Completion], constitution: Constitution
) -> dict[str, Any]:
    """A row of pairs.jsonl: TRL's explicit-prompt conversational format, then where the label comes from."""
    return {
        "prompt": [m.model_dump() for m in prompt.messages],
        "chosen": [{"role": "assistant", "content": completions[pair.chosen].text}],
        "rejected": [{"role": "assistant", "content": completions[pair.rejected].text}],
        "prompt_id": pair.prompt_id,
        "prob_chosen": pair.prob_chosen,
        "margin": pair.margin,
        "source": pair.source,
        "principles": list(pair.principles),
        "judge": pair.judge,
        "constitution": f"{constitution.name}@{constitution.digest}",
        "chosen_id": pair.chosen,
        "rejected_id": pair.rejected,
        "evidence": list(pair.evidence),
    }


def write_parquet(records: Iterable[dict[str, Any]], path: Path) -> None:
    """``records`` (rows as made by `preference_record`) as one parquet file, streamed."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types: dict[str, Any] = dict.fromkeys(("prompt", "chosen", "rejected"), turns)
    types |= {"prob_chosen": pa.float64(), "margin": pa.float64()}
    types |= dict.fromkeys(("principles", "evidence"), pa.list_(pa.string()))
    schema = pa.schema([(name, types.get(name, pa.string())) for name in PAIR_COLUMNS])
    parsing = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with pq.ParquetWriter(path, schema) as writer:
        tables: list[Any] = []
        for lines in _chunks(json_line(record).encode() for record in records):
            # By way of JSON: pa.Table.from_pylist imports pandas where that is installed, a second and 90 MB. In small
            # pieces, because reading JSON takes several times its size.
            reading = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
            tables.append(pa.json.read_json(io.BytesIO(lines), reading, parsing))
            if sum(table.num_rows for table in tables) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))


def _chunks(lines: Iterable[bytes], rows: int = 100, size: int = 2**18) -> Iterator[bytes]:
    """``lines`` joined, so many of them, or a little more than so many bytes, at once."""
    chunk: list[bytes] = []
    length = 0
    for line in lines:
        chunk.append(line)
        length += len(line)
        if len(chunk) >= rows or length >= size:
            yield b"".join(chunk)
            chunk.clear()
            length = 0
    if chunk:
        yield b"".join(chunk)


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """The README.md beside the parquet: what the pairs are and how they were made."""
    constitution, counts = manifest["constitution"], manifest["counts"]
    dropped = "".join(f"| {reason} | {n} |\n" for reason, n in counts["comparisons"]["dropped"].items())
    return f"""---
configs:
- config_name: default
  data_files: train.parquet
task_categories:
- reinforcement-learning
tags:
- preference
- rlaif
---

# {counts["comparisons"]["pairs"]} preference pairs by the constitution "{constitution["name"]}"

Made by rlaif {manifest["versions"]["rlaif"]} from {counts["prompts"]} prompts. An AI or a program compared completions
of each prompt against the principles of the constitution (version {constitution["version"]}, digest
`{constitution["digest"]}`); no human labelled them.

| | |
|---|---|
| completions by | {manifest["models"]["policy"]} |
| judged by | {", ".join(manifest["models"]["judges"])} |
| labels read from | {", ".join(manifest["labels"].values())} |
| comparisons | {counts["comparisons"]["planned"]} |
| pairs | {counts["comparisons"]["pairs"]} |

Comparisons that gave no pair:

| reason | comparisons |
|---|---|
{dropped}
Columns: `prompt`, `chosen`, `rejected` (lists of messages), `prompt_id`, `prob_chosen` (probability that chosen is
better, over orders, principles and judges), `margin` (2 * prob_chosen - 1), `source`, `principles`, `judge`,
`constitution`, `chosen_id`, `rejected_id`, `evidence` (keys of the requests in the run's ledger).

```python
from datasets import load_dataset
pairs = load_dataset("path/to/this/folder", split="train")
```
"""


def json_line(value: Any) -> str:
    """One line of JSON, ending in a newline; keys in the order given."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
