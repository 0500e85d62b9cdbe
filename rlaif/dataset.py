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


def dataset_card(manifest: Mapping[str, Any], quality: str = "") -> str:
    """The README.md beside the parquet: what the pairs are, how they were made and what became of every comparison.

    ``quality``: a section about the pairs themselves (see rlaif.data_doctor.card). The licence is left to the user.
    """
    constitution, counts = manifest["constitution"], manifest["counts"]
    pairs = counts["comparisons"]["pairs"] - sum(sum(step["removed"].values()) for step in manifest.get("cleaned", ()))
    return f"""---
# license: name one here before you publish this (cc-by-4.0, say); those of the prompts and of the models hold, too
configs:
- config_name: default
  data_files: train.parquet
task_categories:
- reinforcement-learning
tags:
- preference
- rlaif
size_categories:
- {_size(pairs)}
---

# {pairs} preference pairs by the constitution "{_cell(constitution["name"])}"

Completions of each prompt were compared against the principles of a constitution, by an AI or by a program; `source`
says by which, and names the pairs that a human decided.

## How they were made

| | |
|---|---|
{_rows(_origin(manifest))}
## What became of every comparison

| outcome | comparisons |
|---|---|
{_rows(_outcomes(manifest))}
{_told(counts)}
{quality}
## Columns

`prompt`, `chosen`, `rejected` (lists of messages), `prompt_id`, `prob_chosen` (probability that chosen is better, over
orders, principles and judges), `margin` (2 * prob_chosen - 1), `source`, `principles`, `judge`, `constitution`,
`chosen_id`, `rejected_id`, `evidence` (keys of the requests in the run's ledger).

```python
from datasets import load_dataset
pairs = load_dataset("path/to/this/folder", split="train")
```

## Licence

None is named yet. Whoever publishes the data decides, within the licences of the prompts and the terms of the models.
"""


def _origin(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    constitution, prompts, models = manifest["constitution"], manifest["prompts"], manifest["models"]
    source = prompts["source"] if prompts["source"].startswith("hf:") else Path(prompts["source"]).name
    yield "prompts", f"{manifest['counts']['prompts']:,} of {source} (digest `{prompts['digest']}`)"
    yield "completions by", models["policy"]
    if "reviser" in models:
        yield "revised by", models["reviser"]
    yield "judged by", ", ".join(models["judges"])
    yield "labels read from", ", ".join(manifest["labels"].values())
    yield (
        "constitution",
        f"{constitution['name']}, version {constitution['version']}, digest `{constitution['digest']}`",
    )
    yield "templates", ", ".join(manifest["templates"])
    if "rewards" in manifest:
        yield "verified by", ", ".join(manifest["rewards"]["verifiers"].values())
    yield "seed", str(manifest["seed"])
    cost = manifest["cost"]
    yield "cost", f"{'' if cost['complete'] else 'at least '}${float(cost['usd']):,.4f}"
    yield "made with", ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())


def _outcomes(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    comparisons = manifest["counts"]["comparisons"]
    taken = [(reason, n) for step in manifest.get("cleaned", ()) for reason, n in step["removed"].items()]
    yield "a pair", f"{comparisons['pairs'] - sum(n for _, n in taken):,}"
    for reason, n in comparisons["dropped"].items():
        yield reason, f"{n:,}"
    for reason, n in taken:
        yield f"{reason}, taken out afterwards", f"{n:,}"
    yield "together", f"{comparisons['planned']:,}"


def _told(counts: Mapping[str, Any]) -> str:
    """Samples and judgements in a line each."""
    samples, judgements = counts["samples"], counts["judgements"]
    lost = ", ".join(f"{n:,} {reason}" for reason, n in samples["dropped"].items()) or "none lost"
    unjudged = ", ".join(f"{n:,} {reason}" for reason, n in judgements["unjudged"].items()) or "0"
    return (
        f"Samples: {samples['made']:,}, of them {samples['usable']:,} usable ({lost}).\n"
        f"Judgements: {judgements['made']:,}; without a verdict: {unjudged}.\n"
    )


def _size(rows: int) -> str:
    """The hub's words for the size of a data set."""
    ends = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for end, name in ends if rows < end), "1M<n<10M")


def _rows(cells: Iterable[tuple[str, str]]) -> str:
    return "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def json_line(value: Any) -> str:
    """One line of JSON, ending in a newline; keys in the order given."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
