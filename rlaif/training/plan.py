"""What training will do on this machine, decided before it begins: each setting with its value and its reason, and
what it will cost. Shapes and counts in, a plan out; nothing is computed with a model."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from rlaif.config.train import TrainConfig, TrainDPOConfig
from rlaif.errors import InputError
from rlaif.hashing import uniform
from rlaif.training.model import ModelFacts
from rlaif.training.tokens import TokenPair

_GB = 10**9

# To start from with some hundred pairs. With a few dozen and one epoch, SmolLM2-135M needed more to change visibly:
# 5e-4 for LoRA and 2e-5 for all weights shortened its answers by 35 % and 27 % (5 steps of 8 pairs, one seed).
_RATE_ALL_WEIGHTS, _RATE_LORA = 1e-5, 1e-4

# Arithmetic a second that training reaches, in floating point operations. For CPU cores from the CPU time of the
# embedded model in fp32 on one thread (74 G, less a tenth for a second thread); for GPUs about a third of the bf16
# peak, which is not measured.
_FLOPS_PER_CORE = 67e9
_FLOPS_GPU = (("H200", 350e12), ("H100", 350e12), ("A100", 110e12), ("L40", 60e12), ("4090", 60e12))
_FLOPS_OTHER_GPU = 30e12


@dataclass(frozen=True)
class Setting:
    """One decision: what, which value, and why."""

    name: str
    value: str | int | float | bool
    reason: str


@dataclass(frozen=True)
class Machine:
    """Where it runs. ``memory``: bytes that are free there now. ``cores``: those this process may use."""

    device: Literal["cpu", "cuda"]
    name: str
    cores: int
    memory: int
    bf16: bool


@dataclass(frozen=True)
class Plan:
    """A row is what a step counts: a pair, a conversation. ``share_prompts``: whether a pair is computed as one row
    with its prompt once. ``memory`` (bytes, at its peak) and ``seconds`` are estimates; ``basis`` says where they come
    from."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    autocast: bool
    learning_rate: float
    micro_batch_size: int
    gradient_checkpointing: bool
    share_prompts: bool
    train_rows: int
    eval_rows: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    memory: int
    seconds: float
    basis: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Load:
    """What a row costs in one forward pass: ``tokens`` computed, padding included; positions whose logits are
    computed (``scored``; 0 for a model that gives one score); and the pairs of tokens that attention compares."""

    tokens: int
    scored: int
    attention: float


@dataclass(frozen=True)
class Work:
    """What a method computes. ``row``: the word for one; ``train`` and ``evaluate``: the load of each. ``before``:
    forward passes over every row before training (a reference's, say). ``measured_once``: held-out rows are measured
    at the end alone, not after each epoch. ``chunked_logits``: a fused head computes logits in pieces of a fixed
    size."""

    row: str
    train: Sequence[Load]
    evaluate: Sequence[Load]
    epochs: int
    before: int = 0
    measured_once: bool = False
    chunked_logits: bool = False


def this_machine(wanted: Literal["auto", "cpu", "cuda"]) -> Machine:
    """The machine as torch sees it. Raises InputError when a GPU is wanted and none is usable."""
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Machine("cuda", torch.cuda.get_device_name(), _cores(), free, torch.cuda.is_bf16_supported())
    if wanted == "cuda":
        raise InputError("device: cuda, but torch finds no usable GPU; write 'device: auto' or install a CUDA build.")
    import psutil  # type: ignore[import-untyped]  # accelerate brings it

    return Machine("cpu", "CPU", _cores(), psutil.virtual_memory().available, False)


class Prompted(Protocol):
    """A row that knows what prompt it belongs to, as token ids or as text."""

    @property
    def prompt(self) -> tuple[int, ...] | str: ...


P = TypeVar("P", bound=Prompted)


def held_out(rows: Sequence[P], fraction: float, seed: int) -> tuple[list[P], list[P]]:
    """(train, evaluate): each row is held out or not by hash of seed and prompt, so both sides keep out of each
    other, rows of one prompt fall on the same side, and an added row moves no other."""
    train: list[P] = []
    evaluate: list[P] = []
    for row in rows:
        out = uniform(seed, "held out", row.prompt) < fraction
        (evaluate if out else train).append(row)
    return train, evaluate


def make_plan(
    config: TrainDPOConfig,
    facts: ModelFacts,
    machine: Machine,
    train: Sequence[TokenPair],
    evaluate: Sequence[TokenPair],
) -> Plan:
    """The plan of DPO. Raises InputError when the model cannot fit in memory."""
    notes: list[Setting] = []
    share = machine.device == "cpu"
    start_notes(config, facts, machine, notes)
    notes.append(Setting("shared prompts", share, _SHARE_CPU if share else _SHARE_GPU))
    once = "the reference never changes: a forward pass less in each step, and no second model in memory"
    notes.append(Setting("reference log-probs", "once, before training", once))
    loads = [[pair_load(p, share, ends=False) for p in side] for side in (train, evaluate)]
    work = Work("pair", loads[0], loads[1], config.epochs, before=1, chunked_logits=not share)
    return decide(config, facts, machine, work, notes, share_prompts=share)


_SHARE_CPU = "a pair is computed as one row with its prompt once, nothing padded; used if it gives TRL's log-probs"
_SHARE_GPU = "on a GPU TRL's own padded batches are faster: their attention needs no mask of its own"


def pair_load(pair: TokenPair, share: bool, *, ends: bool) -> Load:
    """Of a pair, as one row with the prompt once (``share``) or as two padded ones. ``ends``: one score is read at the
    end of each side, and no logits."""
    if share:
        return Load(pair.length, 0 if ends else len(pair.chosen) + len(pair.rejected), float(pair.length) ** 2)
    each = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
    return Load(2 * each, 0 if ends else 2 * each, float(each) ** 2)


# ------------------------------------------------------------------------------- what every method decides alike


def start_notes(config: TrainConfig, facts: ModelFacts, machine: Machine, notes: list[Setting]) -> None:
    """The first settings of every plan: where it runs, and which weights are trained."""
    notes.append(Setting("device", machine.device, _device_reason(config, machine)))
    share = f"{facts.trained / 1e6:.1f} M of {facts.parameters / 1e6:.1f} M parameters"
    notes.append(
        Setting(
            "trained weights",
            "LoRA" if config.lora else "all",
            f"{share}; lora: null trains all" if config.lora else share,
        )
    )


def decide(
    config: TrainConfig,
    facts: ModelFacts,
    machine: Machine,
    work: Work,
    notes: list[Setting],
    *,
    share_prompts: bool = False,
    schedule: str = "linear to 0",
    schedule_reason: str = "the usual one; the last steps settle",
) -> Plan:
    """Decide every setting that the config leaves open; each is added to ``notes`` with its reason. Raises InputError
    when the model cannot fit in memory."""
    dtype, autocast = precision(config, machine, notes)
    rate = learning_rate(config, notes)
    checkpointing, micro, memory = memory_settings(config, facts, machine, dtype, work, notes)
    per_epoch = math.ceil(len(work.train) / config.batch_size)
    steps = per_epoch * work.epochs
    warmup = _warmup(config, steps)
    said = "config" if config.warmup >= 1 else f"{config.warmup:.0%} of {steps} steps"
    notes.append(Setting("warmup steps", warmup, said))
    notes.append(Setting("schedule", schedule, schedule_reason))
    seconds, basis = _time(facts, machine, work, checkpointing)
    return Plan(
        device=machine.device,
        dtype=dtype,
        autocast=autocast,
        learning_rate=rate,
        micro_batch_size=micro,
        gradient_checkpointing=checkpointing,
        share_prompts=share_prompts,
        train_rows=len(work.train),
        eval_rows=len(work.evaluate),
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=warmup,
        memory=memory,
        seconds=seconds,
        basis=basis,
        settings=tuple(notes),
    )


def _device_reason(config: TrainConfig, machine: Machine) -> str:
    if config.device != "auto":
        return "config"
    return f"{machine.name} is usable" if machine.device == "cuda" else "torch finds no usable GPU"


def precision(
    config: TrainConfig, machine: Machine, notes: list[Setting]
) -> tuple[Literal["float32", "bfloat16"], bool]:
    """(dtype of the weights, whether arithmetic is done in bf16 although they are not)."""
    if machine.device == "cpu":
        notes.append(Setting("dtype", "float32", "bf16 is slower than fp32 on CPUs without matrix units for it"))
        return "float32", False
    if not machine.bf16:
        notes.append(Setting("dtype", "float32", "this GPU has no bf16"))
        return "float32", False
    if config.lora:
        notes.append(Setting("dtype", "bfloat16", "the frozen weights; the adapter itself is kept in fp32"))
        return "bfloat16", True
    why = "steps as small as these vanish when bf16 weights are rounded"
    notes.append(Setting("dtype", "float32 weights, bf16 arithmetic", why))
    return "float32", True


def learning_rate(config: TrainConfig, notes: list[Setting]) -> float:
    if config.learning_rate != "auto":
        rate, why = float(config.learning_rate), "config"
    elif config.lora:
        rate, why = _RATE_LORA, "LoRA learns best at about ten times the rate of all weights"
    else:
        rate, why = _RATE_ALL_WEIGHTS, "all weights are trained"
    notes.append(Setting("learning rate", rate, why))
    return rate


def _warmup(config: TrainConfig, steps: int) -> int:
    # Rounded down, and never more than half: the first step of a warm-up has the rate 0, and in a short training each
    # step that learns nothing is dear.
    asked = config.warmup if config.warmup >= 1 else config.warmup * steps
    return min(int(asked), steps // 2)


# ----------------------------------------------------------------------------------------------------- memory


def memory_settings(
    config: TrainConfig, facts: ModelFacts, machine: Machine, dtype: str, work: Work, notes: list[Setting]
) -> tuple[bool, int, int]:
    """(gradient checkpointing, micro batch size, bytes at the peak)."""
    fixed = fixed_memory(facts, machine, dtype)
    budget = 0.85 * machine.memory - fixed
    loads = [*work.train, *work.evaluate]
    wanted = [config.gradient_checkpointing] if config.gradient_checkpointing != "auto" else [False, True]
    sizes = [config.micro_batch_size] if config.micro_batch_size != "auto" else _sizes(config, machine)
    for checkpointing in wanted:
        for micro in sizes:
            need = _largest(facts, machine, loads, int(micro), bool(checkpointing), work.chunked_logits)
            if need <= budget:
                _say_memory(config, machine, bool(checkpointing), int(micro), work.row, notes)
                return bool(checkpointing), int(micro), int(fixed + need)
    need = _largest(facts, machine, loads, int(sizes[-1]), bool(wanted[-1]), work.chunked_logits)
    raise InputError(
        f"{facts.name}: training needs about {(fixed + need) / _GB:.1f} GB on the {machine.device} and"
        f" {machine.memory / _GB:.1f} GB are free; lower max_length"
        f"{'' if config.lora else ', set lora'} or take a smaller model."
    )


def _sizes(config: TrainConfig, machine: Machine) -> list[int]:
    if machine.device == "cpu":
        return [1]
    return [n for n in range(config.batch_size, 0, -1) if config.batch_size % n == 0]


def _say_memory(
    config: TrainConfig, machine: Machine, checkpointing: bool, micro: int, row: str, notes: list[Setting]
) -> None:
    why = "memory is enough without; it would cost a forward pass more" if not checkpointing else "memory needs it"
    told = "config" if config.gradient_checkpointing != "auto" else why
    notes.append(Setting("gradient checkpointing", checkpointing, told))
    fits = f"one {row} fills the cores, and nothing is padded" if machine.device == "cpu" else "the largest that fits"
    notes.append(Setting("micro batch", micro, "config" if config.micro_batch_size != "auto" else fits))


def fixed_memory(facts: ModelFacts, machine: Machine, dtype: str) -> float:
    """Bytes for the libraries, the weights, and gradient + two Adam moments of what is trained."""
    weights = facts.parameters * (2 if dtype == "bfloat16" else 4)
    adapter = 4 * facts.trained if facts.trained < facts.parameters else 0
    libraries = 0.9 * _GB if machine.device == "cpu" else 0.6 * _GB
    return libraries + weights + adapter + 12 * facts.trained


def _largest(
    facts: ModelFacts, machine: Machine, loads: Sequence[Load], micro: int, checkpointing: bool, chunked: bool
) -> float:
    tokens = micro * max((load.tokens for load in loads), default=0)
    scored = micro * max((load.scored for load in loads), default=0)
    return activations(facts, machine, tokens, scored, checkpointing, chunked)


def activations(
    facts: ModelFacts, machine: Machine, tokens: int, scored: int, checkpointing: bool, chunked_logits: bool = False
) -> float:
    """Bytes that a micro-batch of ``tokens`` keeps for its backward pass, logits at ``scored`` positions included."""
    width = 4 if machine.device == "cpu" else 2
    # Per token and layer: inputs of the norms and of the seven linear layers, and what the gate multiplies.
    layer = 9 * facts.hidden + 5 * facts.intermediate
    kept = layer + facts.hidden * facts.layers if checkpointing else layer * facts.layers
    logits = min(4096, scored) * 32768 * width * 2 if chunked_logits else 3 * scored * facts.vocabulary * 4
    return tokens * kept * width + logits


# -------------------------------------------------------------------------------------------------------- time


def _time(facts: ModelFacts, machine: Machine, work: Work, checkpointing: bool) -> tuple[float, str]:
    # One forward pass is 1; a backward pass is 1 for the activations and 1 for the weights that are trained.
    passes = 3.0 if facts.trained == facts.parameters else 2.0 + 3.0 * facts.trained / facts.parameters
    step = passes + (1.0 if checkpointing else 0.0)
    forward_train, forward_eval = (sum(forward_flops(facts, x) for x in side) for side in (work.train, work.evaluate))
    measured = 1 if work.measured_once else work.epochs
    total = forward_train * (work.before + work.epochs * step) + forward_eval * (work.before + measured)
    rate, basis = speed(machine)
    return total / rate, f"{basis}; {total / 1e12:.1f} T operations"


def forward_flops(facts: ModelFacts, load: Load) -> float:
    """Floating point operations of one forward pass."""
    linear = 2 * facts.backbone * load.tokens + 2 * facts.hidden * facts.vocabulary * load.scored
    return linear + 4 * facts.hidden * facts.layers * load.attention


def speed(machine: Machine) -> tuple[float, str]:
    """Floating point operations a second that training reaches there (an estimate), and what that rests on."""
    if machine.device == "cpu":
        rate = _FLOPS_PER_CORE * machine.cores
        each = f"{_FLOPS_PER_CORE / 1e9:.0f} G operations a second for each of {machine.cores} idle cores"
        return rate, f"{each}, from one thread's CPU time"
    for name, rate in _FLOPS_GPU:
        if name in machine.name:
            return (
                rate,
                f"{rate / 1e12:.0f} T operations a second for {machine.name} (a third of its peak, not measured)",
            )
    return _FLOPS_OTHER_GPU, f"{_FLOPS_OTHER_GPU / 1e12:.0f} T operations a second (a guess for {machine.name})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
