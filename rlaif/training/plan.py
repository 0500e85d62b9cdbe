"""What training will do on this machine, decided before it begins: each setting with its value and its reason, and
what it will cost. Shapes and counts in, a plan out; nothing is computed with a model."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.config.train import TrainDPOConfig
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
    """``memory`` (bytes, at its peak) and ``seconds`` are estimates; ``basis`` says where they come from."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    autocast: bool
    learning_rate: float
    micro_batch_size: int
    gradient_checkpointing: bool
    share_prompts: bool
    train_pairs: int
    eval_pairs: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    memory: int
    seconds: float
    basis: str
    settings: tuple[Setting, ...]


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


def held_out(pairs: Sequence[TokenPair], fraction: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    """(train, evaluate): each pair is held out or not by hash of seed and content, so both sides keep out of each
    other, equal pairs fall on the same side, and an added pair moves no other."""
    train: list[TokenPair] = []
    evaluate: list[TokenPair] = []
    for pair in pairs:
        out = uniform(seed, "held out", pair.prompt) < fraction
        (evaluate if out else train).append(pair)
    return train, evaluate


def make_plan(
    config: TrainDPOConfig,
    facts: ModelFacts,
    machine: Machine,
    train: Sequence[TokenPair],
    evaluate: Sequence[TokenPair],
) -> Plan:
    """Decide every setting that the config leaves open. Raises InputError when the model cannot fit in memory."""
    notes: list[Setting] = []

    def set_(name: str, value: Any, reason: str) -> Any:
        notes.append(Setting(name, value, reason))
        return value

    cpu = machine.device == "cpu"
    set_("device", machine.device, _device_reason(config, machine))
    dtype, autocast = _precision(config, machine, set_)
    set_("trained weights", "LoRA" if config.lora else "all", _trained_reason(config, facts))
    rate = _learning_rate(config, set_)
    share = set_("shared prompts", cpu, _SHARE_CPU if cpu else _SHARE_GPU)
    set_(
        "reference log-probs",
        "once, before training",
        "the reference never changes: a forward pass less in each step, and no second model in memory",
    )
    checkpointing, micro, memory = _memory_settings(config, facts, machine, dtype, share, [*train, *evaluate], set_)
    per_epoch = math.ceil(len(train) / config.batch_size)
    steps = per_epoch * config.epochs
    warmup = set_(
        "warmup steps",
        _warmup(config, steps),
        "config" if config.warmup >= 1 else f"{config.warmup:.0%} of {steps} steps",
    )
    set_("schedule", "linear to 0", "the usual one for DPO; the last steps settle")
    seconds, basis = _time(config, facts, machine, train, evaluate, share, checkpointing)
    return Plan(
        device=machine.device,
        dtype=dtype,
        autocast=autocast,
        learning_rate=rate,
        micro_batch_size=micro,
        gradient_checkpointing=checkpointing,
        share_prompts=share,
        train_pairs=len(train),
        eval_pairs=len(evaluate),
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=warmup,
        memory=memory,
        seconds=seconds,
        basis=basis,
        settings=tuple(notes),
    )


_SHARE_CPU = "a pair is computed as one row with its prompt once, nothing padded; used if it gives TRL's log-probs"
_SHARE_GPU = "on a GPU TRL's own padded batches are faster: their attention needs no mask of its own"


def _device_reason(config: TrainDPOConfig, machine: Machine) -> str:
    if config.device != "auto":
        return "config"
    return f"{machine.name} is usable" if machine.device == "cuda" else "torch finds no usable GPU"


def _precision(config: TrainDPOConfig, machine: Machine, set_: Any) -> tuple[Literal["float32", "bfloat16"], bool]:
    if machine.device == "cpu":
        set_("dtype", "float32", "bf16 is slower than fp32 on CPUs without matrix units for it")
        return "float32", False
    if not machine.bf16:
        set_("dtype", "float32", "this GPU has no bf16")
        return "float32", False
    if config.lora:
        set_("dtype", "bfloat16", "the frozen weights; the adapter itself is kept in fp32")
        return "bfloat16", True
    set_("dtype", "float32 weights, bf16 arithmetic", "steps as small as DPO's vanish when bf16 weights are rounded")
    return "float32", True


def _trained_reason(config: TrainDPOConfig, facts: ModelFacts) -> str:
    share = f"{facts.trained / 1e6:.1f} M of {facts.parameters / 1e6:.1f} M parameters"
    return f"{share}; lora: null trains all" if config.lora else share


def _learning_rate(config: TrainDPOConfig, set_: Any) -> float:
    if config.learning_rate != "auto":
        return float(set_("learning rate", config.learning_rate, "config"))
    if config.lora:
        return float(set_("learning rate", _RATE_LORA, "LoRA learns best at about ten times the rate of all weights"))
    return float(set_("learning rate", _RATE_ALL_WEIGHTS, "all weights are trained"))


def _warmup(config: TrainDPOConfig, steps: int) -> int:
    # Rounded down, and never more than half: the first step of a warm-up has the rate 0, and in a short training each
    # step that learns nothing is dear.
    asked = config.warmup if config.warmup >= 1 else config.warmup * steps
    return min(int(asked), steps // 2)


# ----------------------------------------------------------------------------------------------------- memory


def _memory_settings(
    config: TrainDPOConfig,
    facts: ModelFacts,
    machine: Machine,
    dtype: str,
    share: bool,
    pairs: Sequence[TokenPair],
    set_: Any,
) -> tuple[bool, int, int]:
    """(gradient checkpointing, micro batch size, bytes at the peak)."""
    fixed = _fixed_memory(facts, machine, dtype)
    budget = 0.85 * machine.memory - fixed
    wanted = [config.gradient_checkpointing] if config.gradient_checkpointing != "auto" else [False, True]
    sizes = [config.micro_batch_size] if config.micro_batch_size != "auto" else _sizes(config, machine)
    for checkpointing in wanted:
        for micro in sizes:
            need = _activations(facts, machine, pairs, int(micro), bool(checkpointing), share)
            if need <= budget:
                _say_memory(config, machine, bool(checkpointing), int(micro), set_)
                return bool(checkpointing), int(micro), int(fixed + need)
    need = _activations(facts, machine, pairs, int(sizes[-1]), bool(wanted[-1]), share)
    raise InputError(
        f"{facts.name}: training needs about {(fixed + need) / _GB:.1f} GB on the {machine.device} and"
        f" {machine.memory / _GB:.1f} GB are free; lower max_length"
        f"{'' if config.lora else ', set lora'} or take a smaller model."
    )


def _sizes(config: TrainDPOConfig, machine: Machine) -> list[int]:
    if machine.device == "cpu":
        return [1]
    return [n for n in range(config.batch_size, 0, -1) if config.batch_size % n == 0]


def _say_memory(config: TrainDPOConfig, machine: Machine, checkpointing: bool, micro: int, set_: Any) -> None:
    why = "memory is enough without; it would cost a forward pass more" if not checkpointing else "memory needs it"
    set_("gradient checkpointing", checkpointing, "config" if config.gradient_checkpointing != "auto" else why)
    fits = "one pair fills the cores, and rows need no padding" if machine.device == "cpu" else "the largest that fits"
    set_("micro batch", micro, "config" if config.micro_batch_size != "auto" else fits)


def _fixed_memory(facts: ModelFacts, machine: Machine, dtype: str) -> float:
    """Bytes for the libraries, the weights, and gradient + two Adam moments of what is trained."""
    weights = facts.parameters * (2 if dtype == "bfloat16" else 4)
    adapter = 4 * facts.trained if facts.trained < facts.parameters else 0
    libraries = 0.9 * _GB if machine.device == "cpu" else 0.6 * _GB
    return libraries + weights + adapter + 12 * facts.trained


def _activations(
    facts: ModelFacts, machine: Machine, pairs: Sequence[TokenPair], micro: int, checkpointing: bool, share: bool
) -> float:
    """Bytes that the largest micro-batch keeps for its backward pass."""
    width = 4 if machine.device == "cpu" else 2
    tokens = micro * max((_tokens(p, share) for p in pairs), default=0)
    scored = micro * max((len(p.chosen) + len(p.rejected) for p in pairs), default=0)
    # Per token and layer: inputs of the norms and of the seven linear layers, and what the gate multiplies.
    layer = 9 * facts.hidden + 5 * facts.intermediate
    kept = layer + facts.hidden * facts.layers if checkpointing else layer * facts.layers
    logits = 3 * scored * facts.vocabulary * 4 if share else min(4096, tokens) * 32768 * width * 2
    return tokens * kept * width + logits


def _tokens(pair: TokenPair, share: bool) -> int:
    return pair.length if share else 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))


# -------------------------------------------------------------------------------------------------------- time


def _time(
    config: TrainDPOConfig,
    facts: ModelFacts,
    machine: Machine,
    train: Sequence[TokenPair],
    evaluate: Sequence[TokenPair],
    share: bool,
    checkpointing: bool,
) -> tuple[float, str]:
    # One forward pass is 1; a backward pass is 1 for the activations and 1 for the weights that are trained.
    passes = 3.0 if config.lora is None else 2.0 + 3.0 * facts.trained / facts.parameters
    step = passes + (1.0 if checkpointing else 0.0)
    forward_train, forward_eval = (sum(_flops(facts, p, share) for p in side) for side in (train, evaluate))
    work = forward_train * (1 + config.epochs * step) + forward_eval * (1 + config.epochs)
    rate, basis = _rate(machine)
    return work / rate, f"{basis}; {work / 1e12:.1f} T operations"


def _flops(facts: ModelFacts, pair: TokenPair, share: bool) -> float:
    """Floating point operations of one forward pass of a pair."""
    tokens = _tokens(pair, share)
    scored = len(pair.chosen) + len(pair.rejected) if share else tokens
    attention = 4 * facts.hidden * facts.layers * tokens * (tokens if share else tokens / 2)
    return 2 * facts.backbone * tokens + 2 * facts.hidden * facts.vocabulary * scored + attention


def _rate(machine: Machine) -> tuple[float, str]:
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
