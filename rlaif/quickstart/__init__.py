"""The whole loop on the embedded model: sample, judge, pair, tune, and compare before with after.

It uses nothing but the public pieces, in the order a user would: read it as the shortest example of all of them. The
prompts beside this file were written for it; the held-out ones share no question with the others.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rlaif.config.generate import GenerateConfig, PolicyConfig
from rlaif.config.models import ModelConfig
from rlaif.config.train import TrainDPOConfig
from rlaif.constitution import load_constitution
from rlaif.engine import Ledger, open_client
from rlaif.evaluation.before_after import BeforeAfter, compare_models
from rlaif.generation import generate
from rlaif.prompts import read_prompts
from rlaif.report import write_report
from rlaif.runs import LEDGER, write_text
from rlaif.training import train_dpo

MODEL = "local:smollm2"
PROMPTS = Path(__file__).with_name("prompts.jsonl")
HELD_OUT = Path(__file__).with_name("held_out.jsonl")
COMPARISON = "comparison.json"

# Settings for two CPU cores: 128 samples of at most 160 tokens, 64 comparisons, about two minutes of tuning.
SAMPLES = 4
MAX_TOKENS = 160
SYSTEM = "Answer in one or two short sentences."  # the model does not: its answers have 30 to 140 words, room both ways

Say = Callable[[str], None]
Update = Callable[[int, int, str], None]  # done, total, note


class Quickstart(NamedTuple):
    out: Path
    report: Path
    comparison: BeforeAfter


def _policy(n: int) -> dict[str, object]:
    return {"model": MODEL, "n": n, "temperature": 0.8, "max_tokens": MAX_TOKENS, "system": SYSTEM}


def generate_config(constitution: str, out: Path, seed: int) -> GenerateConfig:
    """The generate run of the quickstart."""
    return GenerateConfig.model_validate(
        {
            "prompts": str(PROMPTS),
            "constitution": constitution,
            "policy": _policy(SAMPLES),
            "judge": {"models": [MODEL], "principles": "all", "comparisons": "disjoint", "min_label_mass": 0.0},
            "pairing": {"strategy": "all", "min_margin": 0.05},
            "seed": seed,
            "out": str(out),
            "max_unjudged": 0.2,
        }
    )


def train_config(out: Path, seed: int) -> TrainDPOConfig:
    """The tuning of the quickstart."""
    return TrainDPOConfig.model_validate(
        {"data": str(out), "model": MODEL, "out": str(out / "tuned"), "seed": seed, "epochs": 3, "learning_rate": 1e-4}
    )


def quickstart(
    constitution: str, out: Path, *, seed: int = 0, prompts: int = 32, say: Say, progress: Callable[[str], Update]
) -> Quickstart:
    """Run the loop into the folder ``out``. ``say`` gets a line for each stage; ``progress`` opens a bar by title.

    Run again after an interruption, it goes on where it stopped.
    """
    rules = load_constitution(constitution)
    say(f"1/3  {prompts} prompts, {SAMPLES} samples each, judged by the constitution '{rules.name}'")
    update = progress("judging")
    made = generate(
        generate_config(constitution, out, seed),
        limit=prompts,
        progress=lambda counts, total: update(counts.prompts, total, f"{counts.pairs} pairs"),
    )
    say(f"2/3  tuning on {made.manifest['counts']['comparisons']['pairs']} pairs")
    train_dpo(train_config(out, seed), resume=True, progress=progress("tuning"))
    say("3/3  the same held-out prompts and seeds, before and after")
    comparison = asyncio.run(_compare(constitution, out, seed, progress("comparing")))
    write_text(out / COMPARISON, json.dumps(comparison.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    return Quickstart(out, write_report(out), comparison)


async def _compare(constitution: str, out: Path, seed: int, update: Update) -> BeforeAfter:
    prompts = list(read_prompts(str(HELD_OUT)))
    config = PolicyConfig.model_validate(_policy(1))
    with Ledger.open(out / LEDGER) as ledger:
        before = open_client(ModelConfig(model=MODEL), ledger=ledger, stage="before")
        after = open_client(ModelConfig(model=f"local:{out / 'tuned' / 'model'}"), ledger=ledger, stage="after")
        try:
            return await compare_models(
                before,
                after,
                prompts,
                load_constitution(constitution),
                config,
                seed,
                lambda done, total: update(done, total, "answers"),
            )
        finally:
            await before.aclose()
            await after.aclose()
