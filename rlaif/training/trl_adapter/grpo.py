"""GRPOTrainer and RLOOTrainer of TRL 1.16, with one composite reward.

What they do otherwise than the plain ones, each for a reason:

* the KL divergence from the model before training is measured at every step, also at beta 0, over the completion
  tokens and without a gradient (LoRA: the same weights with the adapter off; all weights: a frozen copy);
* a completion without a reward (masked) is in no part of the loss. TRL leaves it out of its group's mean and deviation
  and gives it the advantage 0, but its tokens still count in the denominators and, with beta, in the KL term;
* the order of prompts is drawn from (seed, epoch, row), and completions are made anew exactly at each whole round, so
  that a resumed training sees what an uninterrupted one does;
* the reward starts to score while the reference runs, and its running statistics are in every checkpoint;
* micro-batches are sorted and trimmed, and those with nothing to learn get no backward pass (`SpeedConfig`): the same
  loss and gradients. That logits are computed for completion tokens alone is TRL's own doing;
* a loss that is no number ends the training before it reaches the weights.

Not covered: several processes, DeepSpeed and FSDP, vLLM, tools, images.
"""

import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.utils import add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

from rlaif.config.train.grpo import GroupConfig, SpeedConfig, TrainGRPOConfig, TrainRLOOConfig
from rlaif.errors import QualityError
from rlaif.hashing import uniform
from rlaif.training.callbacks import Shown, StopWhenAsked
from rlaif.training.folder import StopAsked
from rlaif.training.group_reward import GroupReward
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.trl_adapter.shared import Leaves, checkpointing, load_model
from rlaif.training.watch import TEXT_FIGURES, Alarm, Watch

REWARD_STATE = "reward_state.json"

_logger = logging.getLogger(__name__)


# A row without a reward is counted and told in our own words; TRL would print the first of every batch whole.
for _name in ("grpo_trainer", "rloo_trainer"):
    logging.getLogger(f"trl.trainer.{_name}").addFilter(lambda record: "returned None" not in record.getMessage())


def make_trainer(
    config: GroupConfig,
    plan: Plan,
    prompts: Sequence[Any],
    reward: GroupReward,
    tokenizer: Any,
    model_path: str,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> "GRPOTrainer | RLOOTrainer":
    """A trainer ready for ``train()``. ``prompts``: messages, or text; the reward is told their places in this list.
    Raises InputError when the model cannot be loaded."""
    model = load_model(model_path, plan)
    made, arguments = _OF[type(config)]
    trainer: GRPOTrainer | RLOOTrainer = made(
        plan=plan,
        config=config,
        reward=reward,
        model=model,
        reward_funcs=[reward],
        args=arguments(config, plan, checkpoints),
        train_dataset=Dataset.from_dict({"prompt": list(prompts), "row": list(range(len(prompts)))}),
        processing_class=tokenizer,
        peft_config=adapter_config(config.lora) if config.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _shared_arguments(config: GroupConfig, plan: Plan, checkpoints: Path) -> dict[str, Any]:
    return {
        "output_dir": str(checkpoints),
        "seed": config.seed,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": plan.warmup_steps,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.micro_batch_size,
        # One generation for each optimizer step (or for num_iterations of them): the only arithmetic there is.
        "gradient_accumulation_steps": config.batch_size // plan.micro_batch_size,
        "steps_per_generation": config.batch_size // plan.micro_batch_size,
        "num_generations": config.group_size,
        "num_iterations": config.num_iterations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "beta": config.beta,
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon_high,
        "use_cpu": plan.device == "cpu",
        "bf16": plan.autocast,
        "dataloader_pin_memory": plan.device != "cpu",
        "save_strategy": "steps",
        "save_steps": save_every(config),
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        checkpointing(trl.GRPOConfig): plan.gradient_checkpointing,
    }


def save_every(config: GroupConfig) -> int:
    """Optimizer steps between checkpoints: whole rounds, for only there is nothing of a round in memory alone."""
    if config.save_steps is not None:
        return config.save_steps
    return config.num_iterations * max(1, 20 // config.num_iterations)


def _grpo_arguments(config: TrainGRPOConfig, plan: Plan, checkpoints: Path) -> Any:
    return trl.GRPOConfig(
        loss_type=config.loss, scale_rewards=config.scale_rewards, **_shared_arguments(config, plan, checkpoints)
    )


def _rloo_arguments(config: TrainRLOOConfig, plan: Plan, checkpoints: Path) -> Any:
    return trl.RLOOConfig(
        normalize_advantages=config.normalize_advantages, **_shared_arguments(config, plan, checkpoints)
    )


@dataclass
class Divergence:
    """Sums over the completions of an optimizer step, from which the estimates of the KL divergence between policy and
    reference are taken (Schulman, "Approximating KL divergence", 2020): k1 = log p/q has no bias and a large variance,
    k3 = q/p - 1 - log q/p has less variance and is never negative."""

    k1: float = 0.0
    k3: float = 0.0
    tokens: float = 0.0
    completions: int = 0

    def add(self, logps_BT: torch.Tensor, reference_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
        log_ratio_BT = (logps_BT.detach() - reference_BT).double()
        mask_BT = mask_BT.double()
        self.k1 += float((log_ratio_BT * mask_BT).sum())
        self.k3 += float(((torch.expm1(-log_ratio_BT) + log_ratio_BT) * mask_BT).sum())
        self.tokens += float(mask_BT.sum())
        self.completions += len(mask_BT)

    def means(self) -> dict[str, float]:
        """``kl`` (k3) and ``kl_k1``: nats a token; ``kl_sequence``: k1 of a whole completion, the √ of which is the
        distance of over-optimisation curves."""
        tokens = max(1.0, self.tokens)
        return {
            "kl": self.k3 / tokens,
            "kl_k1": self.k1 / tokens,
            "kl_sequence": self.k1 / max(1, self.completions),
        }


@dataclass
class _Round:
    """What is known of the completions under way: ids of prompts and completions as they were made, the columns of
    their rows, and the last log-probs that were computed without a gradient."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    reference_BT: torch.Tensor | None = None


class GroupTrainer(Leaves):
    """What both trainers have in common; the other base class is TRL's trainer."""

    # Of TRL and transformers, for whom this is the first base class.
    args: Any
    model: Any
    accelerator: Any
    state: Any
    _metrics: Any
    _step: int
    _tokenizer: Any

    def __init__(self, *, plan: Plan, config: GroupConfig, reward: GroupReward, **kwargs: Any) -> None:
        self.plan, self.config, self.reward = plan, config, reward
        self.speed: SpeedConfig = config.speed
        self.made = _Round()
        self.divergence = Divergence()
        self.rotary = getattr(kwargs["model"].config.get_text_config(), "rope_parameters", None) is not None
        self.logps_BT: torch.Tensor | None = None  # of the policy, as the loss computed them
        # TRL frees itself of a reference at beta 0; the model is copied before it is touched.
        frozen = copy.deepcopy(kwargs["model"]) if config.lora is None and config.beta == 0.0 else None
        super().__init__(**kwargs)
        self.frozen: Any = self._prepared(frozen) if frozen is not None else None

    def _prepared(self, frozen: Any) -> Any:
        add_fused_lm_head(frozen, temperature=self.config.temperature)
        frozen.requires_grad_(False)
        return self.accelerator.prepare_model(frozen, evaluation_mode=True)

    # ----------------------------------------------------------------------------------------------- prompts

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return Rounds(
            prompts=len(self.args and self.train_dataset),  # type: ignore[attr-defined]
            rounds=self.plan.steps // self.config.num_iterations,
            prompts_per_step=self.config.prompts_per_step,
            group_size=self.config.group_size,
            repeats=self.config.num_iterations * self.args.steps_per_generation,
            seed=self.config.seed,
        )

    # ------------------------------------------------------------------------------- completions and rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.made = _Round(inputs=inputs)
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        batch["reference_logps"] = self.made.reference_BT
        self._leave_out_masked(batch)
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)  # type: ignore[misc]
        self.made.prompt_ids, self.made.completion_ids = generated[0], generated[1]
        completions = next(part for part in generated[2:] if isinstance(part, list) and part)
        self.reward.submit([row["row"] for row in self.made.inputs], completions, self.made.completion_ids)
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        # The reward scores meanwhile: `submit` has started it.
        if self.config.beta == 0.0:
            self.made.reference_BT = self._reference_logps()
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, ids)  # type: ignore[misc]
        scored_PG = rewards[:, 0].view(-1, self.config.group_size)
        flat_P = scored_PG.nan_to_num(-math.inf).amax(1) <= scored_PG.nan_to_num(math.inf).amin(1)
        self._metrics["train"]["groups/flat"].append(float(flat_P.float().mean()))
        self._metrics["train"]["groups/masked"].append(float(scored_PG.isnan().all(dim=1).float().mean()))
        self.reward.note_flat(bool(flat_P.all()))
        return rewards

    def _reference_logps(self) -> torch.Tensor:
        """Log-probs (B, T) of the completion tokens under the model before training."""
        pad, device = self._tokenizer.pad_token_id, self.accelerator.device
        prompts = [torch.tensor(ids) for ids in self.made.prompt_ids]
        completions = [torch.tensor(ids) for ids in self.made.completion_ids]
        ids = torch.cat([_padded(prompts, pad, "left"), _padded(completions, pad, "right")], dim=1).to(device)
        ones = [[torch.ones_like(row) for row in side] for side in (prompts, completions)]
        mask = torch.cat([_padded(ones[0], 0, "left"), _padded(ones[1], 0, "right")], dim=1).to(device)
        length = max(len(row) for row in completions)
        model = self.frozen if self.frozen is not None else self.model
        without = nullcontext() if self.frozen is not None else self.accelerator.unwrap_model(model).disable_adapter()
        with torch.no_grad(), without:
            logps, *_ = self._get_per_token_logps_and_entropies(
                model, ids, mask, length, self.args.per_device_train_batch_size
            )
        return logps

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        if kwargs.get("compute_entropy"):
            self.logps_BT = found[0].detach()  # the loss asks
        else:
            self.made.reference_BT = found[0]  # with beta, the last that TRL asks for before the rewards
        return found

    def _leave_out_masked(self, batch: dict[str, Any]) -> None:
        masked_B = torch.tensor(self.reward.masked, device=batch["advantages"].device)
        if not masked_B.any():
            return
        kept_B1 = (~masked_B).to(batch["completion_mask"].dtype).unsqueeze(1)
        mask_BT = batch["completion_mask"] * kept_B1
        batch["tool_mask"] = mask_BT  # TRL's name for the tokens that are no part of the loss
        if "num_items_in_batch" in batch:
            batch["num_items_in_batch"] = mask_BT.sum()
        # Where TRL divides by a number of completions, only those that count should be in it.
        batch["loss_scale"] = torch.tensor(len(masked_B) / max(1, int(kept_B1.sum())), device=masked_B.device)

    # ------------------------------------------------------------------------------------------ micro-batches

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        every = self.args.steps_per_generation * self.config.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            batch = shuffle_sequence_dict(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs: Any = self._micro_batches(batch)
        inputs: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _micro_batches(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        skip = self.speed.skip_flat and self.config.beta == 0.0
        if self.speed.sort or skip:
            flat = (batch["advantages"] == 0).tolist()
            lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
            order = sorted(range(len(flat)), key=lambda i: (skip and flat[i], -lengths[i] if self.speed.sort else 0))
            batch = {k: v if v.ndim == 0 else v[order] for k, v in batch.items()}
        micro = split_tensor_dict(batch, self.args.steps_per_generation)
        if skip:
            micro = [{**m, "flat": not m["advantages"].any()} for m in micro]
        return [trimmed(m, prompts=self.rotary) for m in micro] if self.speed.trim else micro

    # ---------------------------------------------------------------------------------------------- the loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        flat = inputs.get("flat", False)
        with torch.no_grad() if flat else nullcontext():
            loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if flat:  # a gradient of zeros, as TRL would have: no gradient at all would let Adam pass over the weights
            loss = loss.detach() + sum((p * 0.0).sum() for p in model.parameters() if p.requires_grad)
        if "loss_scale" in inputs and self._divides_by_completions():
            loss = loss * inputs["loss_scale"]
        assert self.logps_BT is not None
        self.divergence.add(self.logps_BT, inputs["reference_logps"], inputs["completion_mask"])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise QualityError(
                f"training diverged at step {self.state.global_step + 1}: the loss is {value}; lower learning_rate"
                f" (now {self.args.learning_rate:g}) and start over."
            )
        return loss

    def _divides_by_completions(self) -> bool:
        return getattr(self.config, "loss", "rloo") != "dapo"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.divergence.completions:
            self._metrics["train"] |= {name: [value] for name, value in self.divergence.means().items()}
            self.divergence = Divergence()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------- checkpoints

    def _save_rng_state(self, output_dir: str) -> None:
        # Before trainer_state.json, with which a checkpoint is whole.
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        state = json.dumps(self.reward.state())
        (Path(output_dir) / REWARD_STATE).write_text(state, encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self.reward.load_state(json.loads((Path(checkpoint) / REWARD_STATE).read_text(encoding="utf-8")))


class GRPOTrainer(GroupTrainer, trl.GRPOTrainer):  # type: ignore[misc]
    pass


class RLOOTrainer(GroupTrainer, trl.RLOOTrainer):  # type: ignore[misc]
    pass


_OF: dict[type[GroupConfig], tuple[Any, Any]] = {
    TrainGRPOConfig: (GRPOTrainer, _grpo_arguments),
    TrainRLOOConfig: (RLOOTrainer, _rloo_arguments),
}


class ShownGroups(Shown):
    """Reports each step with what a reader wants to know of it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.last |= logs or {}
        if "loss" in (logs or {}):
            told = {"reward": "reward {:.3f}", "kl_sequence": "KL {:.2f}", "groups/flat": "{:.0%} of groups flat"}
            known = [text.format(value) for key, text in told.items() if (value := self.last.get(key)) is not None]
            self.progress(state.global_step, state.max_steps, ", ".join(known))


class Watching(TrainerCallback):  # type: ignore[misc]
    """Shows every step to ``watch``, warns of what it finds, and ends the training where a rule says so. ``alarms``:
    all of them, those of the steps before a checkpoint too."""

    # what is logged -> what the rules call it
    FIGURES = {"kl_sequence": "kl", "entropy": "entropy", "completions/clipped_ratio": "cut_off"} | dict(
        zip(TEXT_FIGURES, TEXT_FIGURES, strict=True)
    )

    def __init__(self, watch: Watch, reward: GroupReward) -> None:
        self.watch, self.reward = watch, reward
        self.alarms: list[Alarm] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for entry in state.log_history:
            self._add(entry["step"], entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        for alarm in self._add(state.global_step, logs or {}):
            _logger.warning("step %d: %s", alarm.step, alarm.text)
            if alarm.stop:
                self.reward.stopped = f"{alarm.text} (watch.{alarm.rule})"

    def _add(self, step: int, logged: dict[str, Any]) -> list[Alarm]:
        if "loss" not in logged:
            return []
        found = self.watch.add(step, {name: logged[key] for key, name in self.FIGURES.items() if key in logged})
        self.alarms += found
        return found


class StopBetweenRounds(StopWhenAsked):
    """Ends the training at the end of a round: when the user asked for it, or the reward's limits are passed."""

    def __init__(self, stop: StopAsked, num_iterations: int, reward: GroupReward) -> None:
        super().__init__(stop)
        self.num_iterations, self.reward = num_iterations, reward

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        if state.global_step % self.num_iterations:
            return control  # the rest of the round would be lost: it is in memory alone
        if self.reward.ended is not None and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            return control
        super().on_step_end(args, state, control, **others)
        if self.stop.asked:  # at the last step too: the model is not written then
            control.should_save = True
        return control


_PROMPT_SIDE = ("prompt_ids", "prompt_mask")
_COMPLETION_SIDE = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "reference_logps",
)


def trimmed(batch: dict[str, Any], *, prompts: bool = True) -> dict[str, Any]:
    """The micro-batch without the columns that are padding in all of its rows: prompts are padded on the left,
    completions on the right. ``prompts``: not where a token's place is counted from the left, padding included."""
    prompt, completion = (int(batch[mask].sum(1).max()) for mask in ("prompt_mask", "completion_mask"))
    cut = {key: batch[key][:, -prompt:] for key in _PROMPT_SIDE if prompts}
    cut |= {key: batch[key][:, :completion] for key in _COMPLETION_SIDE if key in batch}
    return batch | cut


def _padded(rows: Sequence[torch.Tensor], value: int, side: str) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


class Rounds(Sampler[int]):  # type: ignore[misc]
    """The rows of all rounds, one after the other: ``prompts_per_step`` prompts, each ``group_size`` times, and the
    whole ``repeats`` times, as TRL's trainer wants it. Prompts come in epochs, each in an order drawn from (seed,
    epoch, row); a round may begin in one epoch and end in the next, so no prompt is left out."""

    def __init__(
        self, *, prompts: int, rounds: int, prompts_per_step: int, group_size: int, repeats: int, seed: int
    ) -> None:
        self.prompts, self.rounds, self.prompts_per_step = prompts, rounds, prompts_per_step
        self.group_size, self.repeats, self.seed = group_size, repeats, seed

    def __len__(self) -> int:
        return self.rounds * self.prompts_per_step * self.group_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for _ in range(self.rounds):
            rows = [next(order) for _ in range(self.prompts_per_step)]
            for _ in range(self.repeats):
                yield from (row for row in rows for _ in range(self.group_size))

    def _order(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from sorted(range(self.prompts), key=lambda row: uniform(self.seed, epoch, row))
            epoch += 1


__all__ = ["Divergence", "GRPOTrainer", "RLOOTrainer", "Rounds", "make_trainer", "save_every", "trimmed"]
