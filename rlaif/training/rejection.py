"""`rlaif train rejection`: the best of the model's own answers, by a reward, are what it is fine-tuned on.

``ledger.sqlite`` holds every sample (and every reply of a judge in the reward), ``best.jsonl`` the answers that were
kept, and ``sft/`` is the folder of the fine-tuning. Running again goes on: no sample is made twice.

Not covered: several rounds (run it again on the model it left), and samples from another model (`rlaif generate` writes
``best.jsonl`` too, and `rlaif train sft` learns from it).
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.config.generate import PolicyConfig
from rlaif.config.models import ModelConfig
from rlaif.config.train.rejection import TrainRejectionConfig
from rlaif.engine import Ledger, open_client
from rlaif.errors import InputError, QualityError
from rlaif.generation import ordered
from rlaif.hashing import digest
from rlaif.prompts import read_prompts
from rlaif.rewards import PartsMonitor, Scored, rejection_sample
from rlaif.runs import LEDGER, write_text
from rlaif.sampling import is_usable, sample, with_system
from rlaif.training.check import CheckReport, DataReport, Finding, installed, versions_line
from rlaif.training.folder import Progress, StopAsked, Trained, TrainResult, train_in_folder
from rlaif.training.group_reward import check_tasks, opener
from rlaif.training.model import load_tokenizer, model_facts, tokenizer_facts
from rlaif.types import Prompt
from rlaif.verifiers.base import task_of

BEST, SFT = "best.jsonl", "sft"
_AT_ONCE = 32  # prompts sampled and scored at the same time

# Keys of the config that the fine-tuning shares.
_SHARED = (
    "model", "seed", "learning_rate", "batch_size", "micro_batch_size", "lora", "warmup", "gradient_checkpointing",
    "device", "save_steps", "epochs", "max_length",
)  # fmt: skip


class RejectionCheck(CheckReport):
    """What `rlaif train rejection --check` says."""

    model: str
    samples: int


def check_rejection(config: TrainRejectionConfig) -> RejectionCheck:
    """What ``train_rejection(config)`` would do. Raises InputError when it could not."""
    return _prepare(config)[0]


def train_rejection(
    config: TrainRejectionConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Sample, keep the best, fine-tune; the tuned model is left in ``config.out``.

    Raises InputError for what `check_rejection` refuses, for a folder made with another config or other data;
    QualityError where no answer is good enough or too many rewards failed; what `rlaif.training.sft` raises;
    KeyboardInterrupt after Ctrl-C.
    """
    report, prompts = _prepare(config)
    on_check(report)

    def train(_: Path | None, stop: StopAsked) -> Trained:
        best = config.out / BEST
        if not best.is_file():
            with ExitStack() as stack:
                asyncio.run(_sample(config, prompts, best, stop, progress, stack))
        tuned = _fine_tune(config, best, progress)

        def save(part: str) -> Callable[[Path], None]:
            return lambda target: _copy(config.out / SFT / part, target)

        kept = best.read_text(encoding="utf-8").count("\n")
        facts = {"kept": kept, "curve": tuned.manifest["curve"]}
        return Trained(save("model"), save("adapter") if config.lora else None, facts)

    manifest = report.manifest("train rejection", config)
    return train_in_folder(config, manifest, train, steps=1, resume=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _fine_tune(config: TrainRejectionConfig, best: Path, progress: Progress) -> TrainResult:
    from rlaif.config.train.sft import TrainSFTConfig
    from rlaif.training.sft import train_sft

    shared = {key: getattr(config, key) for key in _SHARED}
    return train_sft(TrainSFTConfig(data=str(best), out=config.out / SFT, **shared), resume=True, progress=progress)


async def _sample(
    config: TrainRejectionConfig,
    prompts: Sequence[Prompt],
    best: Path,
    stop: StopAsked,
    progress: Progress,
    stack: ExitStack,
) -> None:
    """Write ``best`` whole, from samples that the ledger keeps."""
    monitor = PartsMonitor(max_infrastructure=0.05)
    ledger = stack.enter_context(Ledger.open(config.out / LEDGER))
    opened, _ = opener(config.reward, config.max_cost, lambda: ledger)
    reward = opened()
    model = ModelConfig(model=config.model)
    client = open_client(model, ledger, "sample")
    policy = PolicyConfig(model=model, n=config.n, temperature=config.temperature, max_tokens=config.max_new_tokens)

    async def one(prompt: Prompt) -> tuple[Prompt, list[str], list[Scored]]:
        made, _ = await sample(prompt, client, policy, config.seed)
        texts = [completion.text for completion in made if is_usable(completion)]
        return prompt, texts, await reward.score_many(texts, [task_of(prompt)] * len(texts))

    lines: list[str] = []
    done = unfinished = 0
    try:
        async with aclosing(ordered(iter(prompts), one, _AT_ONCE)) as results:
            async for prompt, texts, scored in results:
                monitor.add_all(scored)
                monitor.check()
                lines += _kept(config, prompt, texts, scored)
                done, unfinished = done + 1, unfinished + config.n - len(texts)
                progress(done, len(prompts), f"{len(lines)} kept")
                if stop.asked:
                    raise KeyboardInterrupt
        monitor.check(final=True)
    finally:
        await client.aclose()
        await reward.aclose()
    if not lines:
        raise QualityError(
            f"no completion of {done} prompts has a reward of at least {_threshold(config):g} ({unfinished} of"
            f" {done * config.n} did not end within max_new_tokens); lower threshold, raise n, or begin with an easier"
            " task (the samples are kept)."
        )
    write_text(best, "".join(lines))


def _kept(config: TrainRejectionConfig, prompt: Prompt, texts: Sequence[str], scored: Sequence[Scored]) -> list[str]:
    places = rejection_sample(texts, scored, threshold=_threshold(config), keep=config.keep, seed=config.seed)
    rows: list[dict[str, Any]] = [
        {
            "prompt": [message.model_dump() for message in prompt.messages],
            "completion": [{"role": "assistant", "content": texts[place]}],
            "prompt_id": prompt.id,
            "reward": scored[place].value,
        }
        for place in places
    ]
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]


def _threshold(config: TrainRejectionConfig) -> float:
    return config.reward.bounds[1] if config.threshold is None else config.threshold


def _prepare(config: TrainRejectionConfig) -> tuple[RejectionCheck, list[Prompt]]:
    versions = installed()
    prompts = [with_system(prompt, config.system) for prompt in islice(read_prompts(config.data), config.limit)]
    if not prompts:
        raise InputError(f"{config.data}: no prompts in it.")
    tokens = tokenizer_facts(load_tokenizer(config.model_name), config.model_name)
    if not tokens.chat_template:
        raise InputError(f"{config.model}: has no chat template, by which prompts are laid out; take a chat model.")
    check_tasks(config.reward, [task_of(prompt) for prompt in prompts])
    low, high = config.reward.bounds
    if not low < _threshold(config) <= high:
        raise InputError(f"threshold {_threshold(config):g} is outside of the reward's range, {low:g} to {high:g}.")
    facts = model_facts(config.model_name, config.lora)
    samples = len(prompts) * config.n
    content = digest([prompt.model_dump(mode="json") for prompt in prompts])
    report = RejectionCheck(
        data=DataReport(source=config.data, digest=content, rows=len(prompts)),
        model=facts.name,
        samples=samples,
        lines=[
            ("data", f"{config.data}: {len(prompts)} prompts x {config.n} samples = {samples}"),
            ("kept", f"of each prompt at most {config.keep}, with a reward of at least {_threshold(config):g}"),
            ("then", f"{config.epochs} epochs of supervised fine-tuning, {config.batch_size} conversations in a step"),
            ("model", f"{facts.name}: {facts.architecture}, {facts.parameters / 1e6:.1f} M parameters"),
            versions_line(versions),
        ],
        findings=[Finding(level="note", text="n 1: there is no best of one; the threshold alone decides.")]
        if config.n == 1
        else [],
        versions=versions,
    )
    return report, prompts
