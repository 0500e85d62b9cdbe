"""`rlaif train online`: rounds of sampling, judging and DPO, each from the model of the round before.

``round-K.jsonl`` holds the prompts of a round; ``round-K/`` is its run folder of `rlaif generate` (``pairs.jsonl``,
``ledger.sqlite``, ...), and in it ``dpo/``, the folder of its training. Resuming is running again: a round that is done
is passed over, a reply that was paid for is not asked for again, and DPO goes on from its last checkpoint.

Not covered: a frozen reference over all rounds; a policy anywhere but on this machine.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from rlaif.config.generate import GenerateConfig, PolicyConfig
from rlaif.config.models import ModelConfig
from rlaif.config.train.dpo import TrainDPOConfig
from rlaif.config.train.online import TrainOnlineConfig
from rlaif.constitution import load_constitution
from rlaif.errors import InputError
from rlaif.generation import generate
from rlaif.hashing import digest
from rlaif.prompts import read_prompts
from rlaif.runs import write_text
from rlaif.training.check import CheckReport, DataReport, Finding, installed, versions_line
from rlaif.training.dpo import train_dpo
from rlaif.training.folder import Progress, StopAsked, Trained, TrainResult, train_in_folder
from rlaif.training.model import load_tokenizer, model_facts, tokenizer_facts
from rlaif.types import Prompt

# Keys of the config that are DPO's: all of its class but these.
_NOT_OF_A_ROUND = {"data", "model", "out", "seed", "limit"}


class OnlineCheck(CheckReport):
    """What `rlaif train online --check` says."""

    model: str
    rounds: int
    prompts_per_round: int
    samples: int


def check_online(config: TrainOnlineConfig) -> OnlineCheck:
    """What ``train_online(config)`` would do. Raises InputError when it could not: no prompts, constitution or model,
    or settings that the first round would refuse."""
    return _prepare(config)[0]


def train_online(
    config: TrainOnlineConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Tune ``config.model`` in rounds and leave the last round's model in ``config.out``.

    Raises InputError for what `check_online` refuses and for a folder made with another config or other data; what
    `rlaif.generate` and `rlaif.training.train_dpo` raise, with the round's folder kept; KeyboardInterrupt after Ctrl-C.
    """
    report, prompts = _prepare(config)
    on_check(report)

    def train(_: Path | None, stop: StopAsked) -> Trained:
        return _rounds(config, prompts, stop, progress)

    manifest = report.manifest("train online", config)
    return train_in_folder(config, manifest, train, steps=config.rounds, resume=True)


def _rounds(config: TrainOnlineConfig, prompts: Sequence[Prompt], stop: StopAsked, progress: Progress) -> Trained:
    policy, done, spent = config.model, [], Decimal(0)
    for number in range(1, config.rounds + 1):
        folder = config.out / f"round-{number}"
        asked = _asked(config, number)
        if not asked.is_file():
            write_text(asked, _lines(_slice(prompts, config.prompts_per_round, number)))
        made = _generate(config, folder, policy, number, spent, stop, progress)
        spent += Decimal(str((made.get("cost") or {}).get("usd") or 0))
        tuned = train_dpo(_dpo(config, folder, policy, number), resume=True, progress=_within(progress, number, config))
        policy = f"local:{tuned.model}"
        done.append({"round": number, "pairs": _pairs(made), "curve": tuned.manifest["curve"]})

    def save_model(target: Path) -> None:
        shutil.copytree(Path(policy.removeprefix("local:")), target, dirs_exist_ok=True)

    def save_adapter(target: Path) -> None:
        # Of the last round alone: it belongs onto the model of the round before.
        shutil.copytree(config.out / f"round-{config.rounds}" / "dpo" / "adapter", target, dirs_exist_ok=True)

    curve = [{**point, "round": one["round"]} for one in done for point in one["curve"]]
    facts = {"rounds": [{key: one[key] for key in ("round", "pairs")} for one in done], "curve": curve}
    return Trained(save_model, save_adapter if config.lora else None, facts)


def _generate(
    config: TrainOnlineConfig,
    folder: Path,
    policy: str,
    number: int,
    spent: Decimal,
    stop: StopAsked,
    progress: Progress,
) -> dict[str, Any]:
    def told(counts: Any, total: int) -> None:
        progress(number - 1, config.rounds, f"round {number}: {counts.prompts}/{total} prompts, {counts.pairs} pairs")
        if stop.asked:
            raise KeyboardInterrupt

    left = None if config.max_cost is None else config.max_cost - spent
    return generate(_generate_config(config, folder, policy, number, left), progress=told).manifest


def _generate_config(
    config: TrainOnlineConfig, folder: Path, policy: str, number: int, max_cost: Decimal | None
) -> GenerateConfig:
    try:
        sampled = PolicyConfig(model=ModelConfig(model=policy), **config.sampling.model_dump())
        return GenerateConfig(
            prompts=str(_asked(config, number)),
            constitution=config.constitution,
            policy=sampled,
            judge=config.judge,
            pairing=config.pairing,
            reward=config.reward,
            seed=config.seed + number,
            out=folder,
            max_cost=max_cost,
            max_unjudged=config.max_unjudged,
        )
    except ValueError as error:  # of settings that do not fit together
        raise InputError(f"the generate run of a round: {error}") from None


def _dpo(config: TrainOnlineConfig, folder: Path, policy: str, number: int) -> TrainDPOConfig:
    keys = TrainDPOConfig.model_fields.keys() - _NOT_OF_A_ROUND
    values = {key: getattr(config, key) for key in keys}
    own = {"data": str(folder / "pairs.jsonl"), "model": policy, "out": folder / "dpo", "seed": config.seed + number}
    return TrainDPOConfig(**values, **own)


def _asked(config: TrainOnlineConfig, number: int) -> Path:
    return config.out / f"round-{number}.jsonl"


def _within(progress: Progress, number: int, config: TrainOnlineConfig) -> Progress:
    def told(done: int, total: int, note: str) -> None:
        progress(number - 1, config.rounds, f"round {number}: step {done}/{total}, {note}")

    return told


def _pairs(manifest: dict[str, Any]) -> int:
    return int(manifest["counts"]["comparisons"]["pairs"])


def _slice(prompts: Sequence[Prompt], size: int | None, number: int) -> Iterator[Prompt]:
    """The prompts of a round: the next ``size``, from the beginning again where they end."""
    if size is None or size >= len(prompts):
        return iter(prompts)
    return islice(cycle(prompts), size * (number - 1), size * number)


def _lines(prompts: Iterator[Prompt]) -> str:
    rows = []
    for prompt in prompts:
        known = {"reference": prompt.reference, "tests": prompt.tests, "verifier": prompt.verifier}
        given = {key: value for key, value in chain(prompt.metadata.items(), known.items()) if value is not None}
        rows.append({"prompt": [m.model_dump() for m in prompt.messages], **given})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _prepare(config: TrainOnlineConfig) -> tuple[OnlineCheck, list[Prompt]]:
    versions = installed()
    prompts = list(islice(read_prompts(config.data), config.limit))
    if not prompts:
        raise InputError(f"{config.data}: no prompts in it.")
    constitution = load_constitution(config.constitution)
    facts = model_facts(config.model_name, config.lora)
    tokens = tokenizer_facts(load_tokenizer(config.model_name), config.model_name)
    if not tokens.chat_template:
        raise InputError(f"{config.model}: has no chat template, by which prompts are laid out; take a chat model.")
    first = config.out / "round-1"
    _generate_config(config, first, config.model, 1, config.max_cost)
    _dpo(config, first, config.model, 1)
    size = min(config.prompts_per_round or len(prompts), len(prompts))
    samples = config.rounds * size * config.sampling.n
    step = f"{size} prompts x {config.sampling.n} samples"
    cap = f"at most {config.max_cost} USD" if config.max_cost is not None else "no max_cost is set"
    content = digest([prompt.model_dump(mode="json") for prompt in prompts])
    report = OnlineCheck(
        data=DataReport(source=config.data, digest=content, rows=len(prompts)),
        model=facts.name,
        rounds=config.rounds,
        prompts_per_round=size,
        samples=samples,
        lines=[
            ("data", f"{config.data}: {len(prompts)} prompts"),
            ("rounds", f"{config.rounds} of {step}, then {config.epochs} epochs of DPO on what was preferred"),
            ("judges", f"{', '.join(m.model for m in config.judge.models)} by {constitution.name}; {cap}"),
            ("model", f"{facts.name}: {facts.architecture}, {facts.parameters / 1e6:.1f} M parameters"),
            versions_line(versions),
        ],
        findings=_findings(config, len(prompts), size),
        versions=versions,
    )
    return report, prompts


def _findings(config: TrainOnlineConfig, prompts: int, size: int) -> list[Finding]:
    found = []
    if size * config.rounds > prompts:
        text = f"{prompts} prompts for {config.rounds} rounds of {size}: some are asked in more than one round."
        found.append(Finding(level="note", text=text))
    if any(m.backend in ("openai", "anthropic") for m in config.judge.models) and config.max_cost is None:
        text = (
            "judges that cost money, and no max_cost; `rlaif generate --dry-run` on one round's config tells a price."
        )
        found.append(Finding(level="warning", text=text))
    return found
