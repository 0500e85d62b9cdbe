"""What `rlaif train grpo` and `rlaif train rloo` share: prompts, a reward and a model in, a tuned model out.

The folder (see folder.py) also holds ``samples.jsonl``, one group of completions with its rewards for every step, and
``ledger.sqlite`` where the reward asks a judge.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlaif.config.train.grpo import GroupConfig
from rlaif.embedded import keep_buffers
from rlaif.engine import Ledger
from rlaif.errors import InputError, QualityError
from rlaif.hashing import digest
from rlaif.preferences import place, read_rows
from rlaif.prompts import read_prompts
from rlaif.runs import LEDGER, write_text
from rlaif.training.check import (
    CheckReport,
    CostReport,
    DataReport,
    Finding,
    Lengths,
    cost_report,
    duration,
    installed,
    lengths,
    setting_reports,
    spread,
    versions_line,
)
from rlaif.training.folder import CHECKPOINTS, Progress, StopAsked, Trained, TrainResult, keep_samples, train_in_folder
from rlaif.training.group_reward import GroupReward, check_tasks, has_judge, opener
from rlaif.training.model import ModelFacts, TokenizerFacts, load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import Load, Machine, Plan, Setting, Work, decide, start_notes, this_machine
from rlaif.training.watch import TEXT_FIGURES, Watch
from rlaif.types import Prompt
from rlaif.verifiers.base import Task, task_of

Method = Literal["grpo", "rloo"]

SAMPLES, DIVERGED = "samples.jsonl", "diverged.jsonl"

# Sampling a token costs about as much time as so many tokens of a forward pass over whole texts (two CPU cores, 64
# completions at once: 111 tokens/s against 600).
_SAMPLING = 5
_MICRO_TOKENS = 1024  # of a micro-batch on a CPU: more fills the cores no better
_RATE_ALL_WEIGHTS, _RATE_LORA = 1e-6, 2e-5  # to start from; RL needs smaller steps than learning from rows


class PromptsReport(DataReport):
    """``rows`` = ``prompts`` + ``too_long``. ``chat``: whether they are laid out by the model's chat template."""

    prompts: int
    too_long: int
    chat: bool
    prompt_tokens: Lengths


class GroupCheck(CheckReport):
    """What `rlaif train grpo --check` says. ``completions``: of all steps together."""

    data: PromptsReport
    model: str
    parameters: int
    trained: int
    cost: CostReport
    prompts_per_step: int
    group_size: int
    completions: int


@dataclass(frozen=True)
class PreparedGroups:
    """A training ready to begin: the report, and what it was made from. ``prompts`` as the trainer takes them."""

    report: GroupCheck
    plan: Plan
    tokenizer: Any
    model_path: str
    prompts: list[Any]
    tasks: list[Task]


def prepare_groups(config: GroupConfig, method: Method) -> PreparedGroups:
    """All of a training that needs no weights; no judge is asked. Raises InputError: prompts that are none, tasks that
    the reward cannot decide, a reward or model that cannot run, not enough memory."""
    versions = installed()
    found = _read(config, method)
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    shown = [_shown(prompt, tokens, config) for prompt in found]
    sizes = [len(_ids(tokenizer, prompt, config)) for prompt in shown]
    kept = [i for i, size in enumerate(sizes) if size <= config.max_prompt]
    if not kept:
        raise InputError(
            f"{config.data}: every prompt is longer than max_prompt {config.max_prompt} (the shortest has {min(sizes)}"
            " tokens)."
        )
    tasks = [task_of(found[i]) for i in kept]
    check_tasks(config.reward, tasks)
    facts = model_facts(config.model_name, config.lora)
    machine = this_machine(config.device)
    plan = _plan(config, method, facts, machine, [sizes[i] for i in kept])
    data = PromptsReport(
        source=config.data,
        digest=digest([prompt.model_dump(mode="json") for prompt in found]),
        rows=len(found),
        prompts=len(kept),
        too_long=len(found) - len(kept),
        chat=isinstance(shown[kept[0]], list),
        prompt_tokens=lengths([sizes[i] for i in kept]),
    )
    cost = cost_report(config, plan, machine)
    completions = config.batch_size * plan.steps // config.num_iterations
    report = GroupCheck(
        data=data,
        model=facts.name,
        parameters=facts.parameters,
        trained=facts.trained,
        cost=cost,
        prompts_per_step=config.prompts_per_step,
        group_size=config.group_size,
        completions=completions,
        lines=[*_lines(config, data, facts, tokens, cost, completions), versions_line(versions)],
        settings=setting_reports(plan.settings),
        findings=_findings(config, data, facts, plan),
        versions=versions,
    )
    return PreparedGroups(report, plan, tokenizer, facts.path, [shown[i] for i in kept], tasks)


def train_groups(
    config: GroupConfig,
    method: Method,
    *,
    resume: bool,
    progress: Progress,
    on_check: Callable[[CheckReport], None],
) -> TrainResult:
    """See `rlaif.training.grpo.train_grpo`."""
    prepared = prepare_groups(config, method)
    on_check(prepared.report)
    ended: list[str] = []

    def train(checkpoint: Path | None, stop: StopAsked) -> Trained:
        with ExitStack() as stack:
            return _train(config, prepared, checkpoint, stop, progress, stack, ended)

    manifest = prepared.report.manifest(f"train {method}", config)
    result = train_in_folder(config, manifest, train, steps=prepared.plan.steps, resume=resume)
    if ended:
        raise QualityError(f"{ended[0]}; the training was at its end, and its model is kept in {result.model}.")
    return result


def _train(
    config: GroupConfig,
    prepared: PreparedGroups,
    checkpoint: Path | None,
    stop: StopAsked,
    progress: Progress,
    stack: ExitStack,
    ended: list[str],
) -> Trained:
    from transformers import set_seed

    from rlaif.training.diverged import StopWhenBroken
    from rlaif.training.saving import run
    from rlaif.training.trl_adapter.grpo import ShownGroups, StopBetweenRounds, Watching, make_trainer

    if prepared.plan.device == "cpu":
        keep_buffers()
    set_seed(config.seed)  # the adapter's first weights are drawn
    opened, budget = opener(
        config.reward, config.max_cost, lambda: stack.enter_context(Ledger.open(config.out / LEDGER))
    )
    reward = GroupReward(
        config.reward,
        prepared.tasks,
        group_size=config.group_size,
        max_failed=config.max_failed,
        max_flat=config.max_flat,
        opened=opened,
        samples=config.out / SAMPLES,
    )
    stack.callback(reward.function.close)
    watching = Watching(Watch(config.watch), reward)
    keep_samples(config.out / SAMPLES, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    trainer = make_trainer(
        config,
        prepared.plan,
        prepared.prompts,
        reward,
        prepared.tokenizer,
        prepared.model_path,
        config.out / CHECKPOINTS,
        [
            StopWhenBroken(),
            ShownGroups(progress, prepared.plan),
            watching,
            StopBetweenRounds(stop, config.num_iterations, reward),
        ],
    )
    try:
        run(trainer, checkpoint)
    except QualityError:
        write_text(config.out / DIVERGED, reward.last())
        raise
    if reward.ended is not None and trainer.state.global_step < prepared.plan.steps:
        raise QualityError(
            f"stopped after step {trainer.state.global_step}: {reward.ended}; what was learnt is saved in {config.out},"
            " and --resume goes on from there."
        )
    ended += [reward.ended] if reward.ended is not None else []

    def save_model(folder: Path) -> None:
        trainer.trained_model().save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)

    facts = {
        "curve": _curve(trainer.state.log_history),
        "reward": reward.monitor.report(),
        "alarms": [alarm._asdict() for alarm in watching.alarms],
        **({"budget": budget.report()} if budget is not None else {}),
    }
    return Trained(save_model, trainer.save_adapter if config.lora else None, facts)


# What TRL and the adapter log, and what it is called in the manifest.
_LOGGED = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "kl_k1": "kl_k1",
    "kl_sequence": "kl_sequence",
    "entropy": "entropy",
    "groups/flat": "flat_groups",
    "groups/masked": "masked_groups",
    "masked": "masked",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut_off",
    "clip_ratio/region_mean": "clipped",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "step_time": "seconds",
    **{name: name for name in TEXT_FIGURES},
}


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """For each step: loss, mean reward and its standard deviation, KL (`trl_adapter.grpo.Divergence`), entropy in nats
    a token, the share of groups without two different rewards (and of those without any), of completions without a
    reward and of those cut off, mean tokens, the share of ratios clipped. A round's figures stand at its first step."""
    points: list[dict[str, float | None]] = []
    for entry in log_history:
        if "loss" in entry:
            point = {name: entry[key] for key, name in _LOGGED.items() if key in entry}
            point |= {key: value for key, value in entry.items() if key.startswith("parts/")}
            points.append({"step": entry["step"], **point})
    return points


# ----------------------------------------------------------------------------------------------------- before training


def _read(config: GroupConfig, method: Method) -> list[Prompt]:
    path = Path(config.data).expanduser()
    if path.is_dir():
        raise InputError(f"{config.data}: is a folder; give a file of prompts, as `rlaif generate` takes it.")
    if path.is_file():
        name, rows = read_rows(path)
        at, first = next(rows, (1, None))
        if isinstance(first, dict) and (why := _other_kind(first)):
            raise InputError(
                f"{place(name, at)}: this is no file of prompts but {why} (columns found: {', '.join(first)});"
                f" {method} needs prompts, and the columns that its reward reads."
            )
    prompts: list[Prompt] = []
    for prompt in read_prompts(config.data):
        if len(prompts) == config.limit:
            break
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{config.data}: no prompts in it.")
    return prompts


def _other_kind(row: dict[str, Any]) -> str | None:
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return "preference pairs, which `rlaif train dpo` and `rlaif train reward` learn from"
    if row.get("completion") is not None and row.get("label") is not None:
        return "completions with a label, which `rlaif train kto` learns from"
    if row.get("completion") is not None:
        return "prompts with their completion, which `rlaif train sft` learns from"
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        return "conversations, which `rlaif train sft` learns from"
    return None


def _shown(prompt: Prompt, tokens: TokenizerFacts, config: GroupConfig) -> list[dict[str, str]] | str:
    """The prompt as the trainer takes it: messages, or text for a model without a chat template."""
    if tokens.chat_template:
        return [{"role": m.role, "content": m.content} for m in prompt.messages]
    if len(prompt.messages) > 1:
        raise InputError(
            f"{config.model}: has no chat template, and {config.data} holds conversations; take a chat model, or"
            " prompts of plain text."
        )
    return prompt.messages[0].content


def _ids(tokenizer: Any, prompt: list[dict[str, str]] | str, config: GroupConfig) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    try:
        found = tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=True, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001  a template is somebody else's program: it may raise anything
        raise InputError(f"{config.data}: the model's chat template refuses a prompt ({error}).") from None
    return list(found["input_ids"])


def _plan(config: GroupConfig, method: Method, facts: ModelFacts, machine: Machine, sizes: Sequence[int]) -> Plan:
    notes: list[Setting] = []
    steps = _steps(config, len(sizes))
    longest = max(sizes) + config.max_new_tokens
    micro = _micro_batch(config, machine, longest)
    rate = config.learning_rate
    if rate == "auto":
        rate = _RATE_LORA if config.lora else _RATE_ALL_WEIGHTS
    start_notes(config, facts, machine, notes)
    filled = config.model_copy(update={"micro_batch_size": micro, "learning_rate": rate})
    # Beside the update: sampling, the reference, and with RLOO the policy once more.
    before = _SAMPLING + 1 + (method == "rloo")
    load = Load(longest, 0, float(longest) ** 2)
    work = Work("completion", [load] * (steps * config.batch_size), [], 1, before=before, chunked_logits=True)
    plan = decide(filled, facts, machine, work, notes)
    settings = [_own_reason(setting, config, micro) for setting in plan.settings]
    own = [
        Setting("steps", steps, _steps_reason(config, len(sizes))),
        Setting("reference", *_reference(config, facts)),
        Setting("checkpoints", f"every {_save_every(config)} steps", "whole rounds; between them nothing else is kept"),
    ]
    copied = 4 * facts.parameters if config.lora is None else 0
    seen = 2 * facts.layers * facts.hidden * 4 * config.batch_size * longest  # keys and values while sampling
    return dataclasses.replace(plan, memory=plan.memory + copied + seen, settings=(*settings, *own))


def _steps(config: GroupConfig, prompts: int) -> int:
    if config.steps is not None:
        return config.steps
    rounds = max(1, round((config.epochs or 1.0) * prompts / config.prompts_per_step))
    return rounds * config.num_iterations


def _steps_reason(config: GroupConfig, prompts: int) -> str:
    if config.steps is not None:
        return "config"
    rounds = _steps(config, prompts) // config.num_iterations
    again = f", {config.num_iterations} steps on each" if config.num_iterations > 1 else ""
    return f"{config.epochs or 1:g} epochs of {prompts} prompts: {rounds} rounds of {config.prompts_per_step}{again}"


def _micro_batch(config: GroupConfig, machine: Machine, longest: int) -> int | Literal["auto"]:
    if config.micro_batch_size != "auto" or machine.device != "cpu":
        return config.micro_batch_size
    fits = max(1, _MICRO_TOKENS // longest)
    return max(n for n in range(1, config.batch_size + 1) if config.batch_size % n == 0 and n <= fits)


def _own_reason(setting: Setting, config: GroupConfig, micro: int | Literal["auto"]) -> Setting:
    if setting.name == "micro batch" and config.micro_batch_size == "auto" and micro != "auto":
        return dataclasses.replace(setting, reason=f"about {_MICRO_TOKENS} tokens fill the cores")
    if setting.name == "learning rate" and config.learning_rate == "auto":
        return dataclasses.replace(setting, reason="to start from; ten times higher for LoRA than for all weights")
    return setting


def _reference(config: GroupConfig, facts: ModelFacts) -> tuple[str, str]:
    weight = "for the KL divergence, which is only measured at beta 0" if config.beta == 0 else "for the KL divergence"
    if config.lora:
        return "the adapter off", f"{weight}; a forward pass for each completion"
    return "a frozen copy", f"{weight}; {4 * facts.parameters / 1e9:.1f} GB and a forward pass for each completion"


def _save_every(config: GroupConfig) -> int:
    return config.save_steps or config.num_iterations * max(1, 20 // config.num_iterations)


def _lines(
    config: GroupConfig,
    data: PromptsReport,
    facts: ModelFacts,
    tokens: TokenizerFacts,
    cost: CostReport,
    completions: int,
) -> list[tuple[str, str]]:
    shape = "by the chat template" if data.chat else "plain text"
    step = f"{config.prompts_per_step} prompts x {config.group_size} completions = {config.batch_size}"
    return [
        ("data", f"{data.source}: {data.prompts} prompts, {shape}; {data.too_long} longer than {config.max_prompt}"),
        ("tokens", f"prompt {spread(data.prompt_tokens)} (median / 95 % / largest); up to {config.max_new_tokens} new"),
        ("model", f"{facts.name}: {facts.architecture}, {facts.parameters / 1e6:.1f} M parameters, ends {tokens.eos}"),
        ("steps", f"{cost.steps} of {step}, {cost.micro_batch_size} at once; {completions} in all"),
        ("memory", f"about {cost.memory_gb:.1f} GB of {cost.memory_free_gb:.1f} GB that are free"),
        ("time", f"at most {duration(cost.seconds)} ({cost.basis}; if every completion is as long as it may be)"),
    ]


def _findings(config: GroupConfig, data: PromptsReport, facts: ModelFacts, plan: Plan) -> list[Finding]:
    found: list[Finding] = []

    def say(level: Literal["warning", "note"], text: str) -> None:
        found.append(Finding(level=level, text=text))

    if facts.positions is not None and data.prompt_tokens.max + config.max_new_tokens > facts.positions:
        say("warning", f"the model was made for {facts.positions} tokens; lower max_prompt or max_new_tokens.")
    if data.too_long:
        say("warning", f"{data.too_long} prompts are longer than max_prompt {config.max_prompt} and left out.")
    if data.prompts < config.prompts_per_step:
        say("note", f"{data.prompts} prompts for {config.prompts_per_step} a step: each is asked again in one step.")
    if config.group_size < 4:
        say("note", f"groups of {config.group_size}: often all rewards of one are equal, and nothing is learned.")
    if config.beta == 0:
        say("note", "beta 0: nothing holds the model near where it began; watch kl_sequence.")
    if has_judge(config.reward):
        asked = config.batch_size * plan.steps // config.num_iterations
        cap = f"at most {config.max_cost} USD" if config.max_cost is not None else "no max_cost is set"
        say("note", f"the reward asks a judge about up to {asked} completions; {cap}.")
    return found
