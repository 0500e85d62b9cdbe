"""`rlaif train ppo --check`: prompts, batch arithmetic, memory and time, before anything is computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.config.base import Config
from rlaif.config.train import TrainPPOConfig
from rlaif.embedded import resolve_model
from rlaif.errors import InputError
from rlaif.hashing import digest, uniform
from rlaif.prompts import read_prompts
from rlaif.training.check import (
    CheckReport,
    DataReport,
    Finding,
    Lengths,
    duration,
    installed,
    lengths,
    setting_reports,
    spread,
    versions_line,
)
from rlaif.training.group_reward import has_judge
from rlaif.training.model import ModelFacts, TokenizerFacts, load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import (
    Load,
    Machine,
    Setting,
    activations,
    fixed_memory,
    forward_flops,
    precision,
    speed,
    start_notes,
    this_machine,
)
from rlaif.training.ppo_reward import check_reward
from rlaif.training.reward_model import model_folder
from rlaif.types import Prompt

_GB = 10**9
# To start from. SmolLM2-135M with LoRA learned at 2.5e-4 from 16 completions a step, and lost its entropy at 5e-4.
_RATE_ALL_WEIGHTS, _RATE_LORA, _VALUE_FASTER = 2e-6, 1e-4, 4.0
_ROW_TOKENS = 512  # computed at once on a CPU: enough for its arithmetic units, little enough for its memory
_SAMPLING = 0.25  # of the arithmetic speed of training: a token at a time reads all weights for little arithmetic


class PromptsReport(DataReport):
    """``rows`` = ``prompts`` + ``too_long`` (longer than max_prompt)."""

    prompts: int
    too_long: int
    prompt_tokens: Lengths


class PolicyReport(Config):
    name: str
    architecture: str
    parameters: int
    trained: int
    eos: str
    reference: str
    value: str


class RolloutCost(Config):
    """``updates``: optimizer steps in all. ``passes``: how often a prompt is used. ``judged``: completions that a judge
    may be asked about, or None."""

    steps: int
    completions_per_step: int
    minibatches: int
    updates: int
    passes: float
    judged: int | None
    memory_gb: float
    memory_free_gb: float
    seconds: float
    basis: str


class PPOCheck(CheckReport):
    """What `rlaif train ppo --check` prints."""

    data: PromptsReport
    model: PolicyReport
    cost: RolloutCost


@dataclass(frozen=True)
class PPOPlan:
    """``warmup_steps``: of all steps. Rates: at their highest."""

    device: str
    dtype: str
    autocast: bool
    learning_rate: float
    value_learning_rate: float
    micro_batch_size: int
    gradient_checkpointing: bool
    warmup_steps: int
    value_path: str
    save_every: int


@dataclass(frozen=True)
class Task:
    """A prompt and its token ids, with the beginning of the answer that the chat template writes."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PreparedPPO:
    """A training ready to begin."""

    report: PPOCheck
    plan: PPOPlan
    tokenizer: Any
    end_ids: tuple[int, ...]
    model_path: str
    tasks: list[Task]


def check_ppo(config: TrainPPOConfig) -> PPOCheck:
    """What ``train_ppo(config)`` would do. Raises InputError when it could not."""
    return prepare_ppo(config).report


def prepare_ppo(config: TrainPPOConfig) -> PreparedPPO:
    """All of a training that needs no weights. Raises as `check_ppo`."""
    prompts = list(islice(read_prompts(config.data), config.limit))
    if not prompts:
        raise InputError(f"{config.data}: no prompts in it.")
    versions = installed()
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    facts = model_facts(config.model_name, config.lora)
    every = [Task(p, prompt_ids(p, tokenizer, tokens, config.model)) for p in prompts]
    tasks = [task for task in every if len(task.ids) <= config.max_prompt]
    if not tasks:
        raise InputError(
            f"{config.data}: every prompt is longer than max_prompt {config.max_prompt} (the shortest has"
            f" {min(len(task.ids) for task in every)} tokens)."
        )
    check_reward(config, [task.prompt for task in tasks])
    machine = this_machine(config.device)
    notes: list[Setting] = []
    value_path, reference, value = _models(config, facts, notes)
    plan, memory = _plan(config, facts, machine, tasks, value_path, notes)
    data = PromptsReport(
        source=config.data,
        digest=digest(sorted(digest(p.model_dump(mode="json")) for p in prompts)),  # verifiers read all columns
        rows=len(every),
        prompts=len(tasks),
        too_long=len(every) - len(tasks),
        prompt_tokens=lengths([len(task.ids) for task in tasks]),
    )
    model = PolicyReport(
        name=facts.name,
        architecture=facts.architecture,
        parameters=facts.parameters,
        trained=facts.trained,
        eos=tokens.eos,
        reference=reference,
        value=value,
    )
    cost = _cost(config, facts, machine, tasks, plan, memory)
    report = PPOCheck(
        data=data,
        model=model,
        cost=cost,
        lines=[*_lines(config, data, model, cost), versions_line(versions)],
        settings=setting_reports(notes),
        findings=_findings(config, facts, data, tokens, cost),
        versions=versions,
    )
    return PreparedPPO(report, plan, tokenizer, tokens.end_ids, facts.path, tasks)


def prompt_ids(prompt: Prompt, tokenizer: Any, tokens: TokenizerFacts, model: str) -> tuple[int, ...]:
    """Token ids of a prompt; a model without a chat template continues plain text. Raises InputError for a conversation
    that such a model cannot lay out, and where the template refuses it."""
    messages = [m.model_dump() for m in prompt.messages]
    if not tokens.chat_template:
        if len(messages) > 1:
            raise InputError(
                f"{model}: has no chat template, and the prompts are conversations; take a chat model, or plain text."
            )
        return tuple(tokenizer(messages[0]["content"])["input_ids"])
    try:
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # noqa: BLE001  (the model's own template, which refuses in many ways)
        raise InputError(f"{model}: its chat template refuses the prompt {prompt.id} ({error}).") from None
    return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


# ---------------------------------------------------------------------------------------------------------- the plan


def _models(config: TrainPPOConfig, facts: ModelFacts, notes: list[Setting]) -> tuple[str, str, str]:
    """(what the value model begins from, what the reference is, what the value model is)."""
    from rlaif.training.ppo_model import same_tokens

    reference = "the policy with its adapter switched off" if config.lora else "a frozen copy of the policy"
    notes.append(Setting("reference", reference, "no second model in memory" if config.lora else "lora: null"))
    if config.value == "shared":
        notes.append(Setting("value", "a head on the policy", "config"))
        return facts.path, reference, "a head on the policy"
    path, why = facts.path, "there is no reward model to begin from"
    if config.value_model is not None:
        path, why = resolve_model(config.value_model.removeprefix("local:")), "config"
        if not same_tokens(path, facts.path):
            raise InputError(f"value_model: {config.value_model} has other tokens than {config.model}.")
    elif config.reward_model is not None:
        rewards = str(model_folder(Path(config.reward_model.path)))
        if same_tokens(rewards, facts.path):
            path, why = rewards, "the reward model knows already what is rewarded"
        else:
            why = "the reward model has other tokens"
    value = "weights of its own" if config.lora is None else "an adapter of its own"
    told = f"{value}, from {path if path != facts.path else 'the policy'}"
    notes.append(Setting("value", told, why))
    return path, reference, told


def _plan(
    config: TrainPPOConfig,
    facts: ModelFacts,
    machine: Machine,
    tasks: Sequence[Task],
    value_path: str,
    notes: list[Setting],
) -> tuple[PPOPlan, int]:
    """The plan, and the bytes it needs at its peak. Raises InputError when they are not there."""
    start_notes(config, facts, machine, notes)
    dtype, autocast = precision(config, machine, notes)
    rate, value_rate = _rates(config, notes)
    checkpointing, micro, memory = _memory(config, facts, machine, dtype, value_path, tasks, notes)
    asked = config.warmup if config.warmup >= 1 else config.warmup * config.steps
    warmup = min(int(asked), config.steps // 2)
    said = "config" if config.warmup >= 1 else f"{config.warmup:.0%} of {config.steps} steps"
    notes.append(Setting("warmup steps", warmup, said))
    notes.append(Setting("schedule", "linear to 0" if config.schedule == "linear" else "constant", "config"))
    save = config.save_steps or max(1, config.steps // 10)
    notes.append(Setting("checkpoint every", f"{save} steps", "config" if config.save_steps else "ten in a training"))
    plan = PPOPlan(
        device=machine.device,
        dtype=dtype,
        autocast=autocast,
        learning_rate=rate,
        value_learning_rate=value_rate,
        micro_batch_size=micro,
        gradient_checkpointing=checkpointing,
        warmup_steps=warmup,
        value_path=value_path,
        save_every=save,
    )
    return plan, memory


def _rates(config: TrainPPOConfig, notes: list[Setting]) -> tuple[float, float]:
    """(of the policy, of the value's own weights)."""
    rate, why = _RATE_LORA if config.lora else _RATE_ALL_WEIGHTS, "RL needs smaller steps than learning from rows"
    if config.learning_rate != "auto":
        rate, why = float(config.learning_rate), "config"
    value, value_why = _VALUE_FASTER * rate, f"{_VALUE_FASTER:g} times that of the policy, which it must keep up with"
    if config.value_learning_rate != "auto":
        value, value_why = float(config.value_learning_rate), "config"
    notes += [Setting("learning rate", rate, why), Setting("value learning rate", value, value_why)]
    return rate, value


def _memory(
    config: TrainPPOConfig,
    facts: ModelFacts,
    machine: Machine,
    dtype: str,
    value_path: str,
    tasks: Sequence[Task],
    notes: list[Setting],
) -> tuple[bool, int, int]:
    """(gradient checkpointing, micro batch size, bytes at the peak)."""
    width = 2 if dtype == "bfloat16" else 4
    fixed = fixed_memory(facts, machine, dtype)
    if config.lora is None:
        fixed += facts.parameters * width  # the reference
    if config.value == "separate":
        own = config.lora is None or value_path != facts.path
        fixed += 16 * facts.trained + (facts.parameters * width if own and config.lora else 0)
    row = max(len(task.ids) for task in tasks) + config.max_new_tokens
    sampling = config.completions_per_step * (row * 2 * facts.layers * facts.hidden * width + facts.vocabulary * 24)
    budget = 0.85 * machine.memory - fixed
    largest = min(config.batch_size, max(1, _ROW_TOKENS // row) if machine.device == "cpu" else config.batch_size)
    sizes = list(range(largest, 0, -1)) if config.micro_batch_size == "auto" else [int(config.micro_batch_size)]
    wanted = [config.gradient_checkpointing] if config.gradient_checkpointing != "auto" else [False, True]
    models = 2 if config.value == "separate" else 1
    need = 0.0
    for checkpointing in wanted:
        for micro in sizes:
            kept = activations(facts, machine, models * micro * row, micro * config.max_new_tokens, bool(checkpointing))
            need = max(sampling, kept)
            if need <= budget:
                why = "config" if config.micro_batch_size != "auto" else f"about {micro * row} tokens at once"
                notes.append(Setting("micro batch", micro, why))
                why = "memory needs it" if checkpointing else "memory is enough without; it would cost a forward pass"
                why = why if config.gradient_checkpointing == "auto" else "config"
                notes.append(Setting("gradient checkpointing", bool(checkpointing), why))
                return bool(checkpointing), micro, int(fixed + need)
    raise InputError(
        f"{facts.name}: training needs about {(fixed + need) / _GB:.1f} GB on the {machine.device} and"
        f" {machine.memory / _GB:.1f} GB are free; lower prompts_per_step or max_new_tokens, write 'value: shared'"
        f"{'' if config.lora else ', set lora'} or take a smaller model."
    )


def minibatches(completions: int, batch_size: int) -> int:
    """How many minibatches of at most ``batch_size``, as even as can be."""
    return math.ceil(completions / batch_size)


def _cost(
    config: TrainPPOConfig, facts: ModelFacts, machine: Machine, tasks: Sequence[Task], plan: PPOPlan, memory: int
) -> RolloutCost:
    parts = minibatches(config.completions_per_step, config.batch_size)
    seconds, basis = _time(config, facts, machine, tasks, plan)
    judges = config.reward is not None and has_judge(config.reward)
    return RolloutCost(
        steps=config.steps,
        completions_per_step=config.completions_per_step,
        minibatches=parts,
        updates=config.steps * config.ppo_epochs * parts,
        passes=config.steps * config.prompts_per_step / len(tasks),
        judged=config.steps * config.completions_per_step if judges else None,
        memory_gb=round(memory / _GB, 2),
        memory_free_gb=round(machine.memory / _GB, 2),
        seconds=round(seconds, 1),
        basis=basis,
    )


def _time(
    config: TrainPPOConfig, facts: ModelFacts, machine: Machine, tasks: Sequence[Task], plan: PPOPlan
) -> tuple[float, str]:
    """An upper bound: every completion as long as max_new_tokens."""
    prompt, new, rows = sum(len(t.ids) for t in tasks) / len(tasks), config.max_new_tokens, config.completions_per_step
    length = prompt + new
    row = forward_flops(facts, Load(int(length), new, length**2))
    headless = forward_flops(facts, Load(int(length), 0, length**2))
    value = headless if config.value == "separate" else 0.0
    passes = 3.0 if config.lora is None else 2.0 + 3.0 * facts.trained / facts.parameters
    passes += 1.0 if plan.gradient_checkpointing else 0.0
    once = 2 * row + value  # old log-probs, reference, values
    step = rows * (once + config.ppo_epochs * passes * (row + value))
    sampling = config.prompts_per_step * headless + rows * forward_flops(facts, Load(new, new, length * new))
    rate, basis = speed(machine)
    total = config.steps * (step + sampling / _SAMPLING)
    return total / rate, f"at most, if every completion has {new} tokens, and without the reward's own; {basis}"


# --------------------------------------------------------------------------------------------------------- the words


def _lines(
    config: TrainPPOConfig, data: PromptsReport, model: PolicyReport, cost: RolloutCost
) -> list[tuple[str, str]]:
    reward = [] if config.reward is None else [f"the parts {', '.join(_leaves(config))}"]
    if config.reward_model is not None:
        reward.append(f"the reward model {config.reward_model.path}")
    lines = [
        ("prompts", f"{data.source}: {data.prompts} usable, {data.too_long} longer than {config.max_prompt}"),
        ("tokens", f"prompt {spread(data.prompt_tokens)} (median / 95 % / largest), completion at most"
         f" {config.max_new_tokens}"),
        ("model", f"{model.name}: {model.architecture}, {model.parameters / 1e6:.1f} M parameters, eos {model.eos}"),
        ("reward", " and ".join(reward)),
        ("a step", f"{config.prompts_per_step} prompts x {config.samples_per_prompt} samples ="
         f" {cost.completions_per_step} completions; {config.ppo_epochs} epochs x {cost.minibatches} minibatches of at"
         f" most {config.batch_size}"),
        ("steps", f"{cost.steps}, {cost.updates} optimizer steps; each prompt is used {cost.passes:.1f} times"),
        ("memory", f"about {cost.memory_gb:.1f} GB of {cost.memory_free_gb:.1f} GB that are free"),
        ("time", f"about {duration(cost.seconds)} ({cost.basis})"),
    ]  # fmt: skip
    return lines


def _leaves(config: TrainPPOConfig) -> list[str]:
    return [] if config.reward is None else [n.part for _, n in config.reward.walk() if n.verifier is not None]


def _findings(
    config: TrainPPOConfig, facts: ModelFacts, data: PromptsReport, tokens: TokenizerFacts, cost: RolloutCost
) -> list[Finding]:
    findings: list[Finding] = []

    def warn(text: str) -> None:
        findings.append(Finding(level="warning", text=text))

    def note(text: str) -> None:
        findings.append(Finding(level="note", text=text))

    longest = data.prompt_tokens.max + config.max_new_tokens
    if facts.positions is not None and longest > facts.positions:
        warn(f"prompt and completion reach {longest} tokens; the model was made for {facts.positions}.")
    if data.too_long:
        warn(f"{data.too_long} prompts are longer than max_prompt {config.max_prompt} and left out.")
    if not tokens.chat_template:
        note("the model has no chat template: it continues the prompts as plain text.")
    if config.kl.coefficient == 0:
        warn("kl.coefficient is 0: nothing holds the policy near its beginning; the KL is measured all the same.")
    if cost.completions_per_step % config.batch_size:
        note(f"{cost.completions_per_step} completions make {cost.minibatches} minibatches of nearly equal size.")
    if cost.judged is not None:
        cap = f"at most {config.max_cost} USD" if config.max_cost is not None else "no max_cost is set"
        note(f"a judge may be asked about {cost.judged:,} completions: {cap}; replies are kept in the ledger.")
    return findings


def order(config: TrainPPOConfig, tasks: Sequence[Task], step: int) -> list[Task]:
    """The prompts of a step (0-based). Each pass over the data has an order of its own, drawn from (seed, pass, id), so
    a step's prompts depend on nothing that happened before it."""
    first, many = step * config.prompts_per_step, len(tasks)
    chosen: list[Task] = []
    for again in range(first // many, (first + config.prompts_per_step - 1) // many + 1):
        shuffled = sorted(tasks, key=lambda task: uniform(config.seed, "pass", again, task.prompt.id))
        begin = max(first, again * many) - again * many
        end = min(first + config.prompts_per_step, (again + 1) * many) - again * many
        chosen += shuffled[begin:end]
    return chosen
