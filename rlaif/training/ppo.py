"""`rlaif train ppo`: prompts, a model and a reward in, a tuned model out, in one folder (see folder.py).

A step (0-based in the code, counted from 1 for people):

1. sample completions of the step's prompts from the policy (rollout.py); their rewards are asked for as they end;
2. while judges and verifiers work: log-probs of policy and reference, and the values, in one pass each;
3. rewards by text (ppo_reward.py); a completion without one is taken out here, before anything is computed from it;
4. per-token rewards, advantages, and the optimizer steps (ppo_losses.py).

Everything random is a hash of (seed, step, row): no generator runs on, so a checkpoint needs none, and a resumed
training is the same training. One process, one device; the forward pass is that of one module, which can be wrapped.

Not covered: several GPUs, rollouts by vLLM, packing.
"""

import json
import logging
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rlaif.config.train import TrainPPOConfig
from rlaif.embedded import keep_buffers
from rlaif.errors import InputError, ProviderError, QualityError, RlaifError
from rlaif.hashing import uniform
from rlaif.runs import write_text
from rlaif.training.check import CheckReport
from rlaif.training.folder import (
    CHECKPOINTS,
    Progress,
    StopAsked,
    Trained,
    TrainResult,
    in_one_piece,
    keep_samples,
    train_in_folder,
)
from rlaif.training.ppo_check import PreparedPPO, Task, minibatches, order, prepare_ppo
from rlaif.training.ppo_reward import Answers, FailureLimit, TextReward, open_text_reward, value_scale
from rlaif.training.watch import Alarm, Watch, text_figures

_logger = logging.getLogger(__name__)

STATE, NUMBERS, BROKEN, SAMPLES = "state.pt", "trainer_state.json", "failed_batch.jsonl", "samples.jsonl"


def train_ppo(
    config: TrainPPOConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[CheckReport], None] = lambda report: None,
) -> TrainResult:
    """Train ``config.model`` on the prompts of ``config.data`` and leave the tuned model in ``config.out``.

    ``on_check`` gets the report of `check_ppo` before anything is computed. A folder that holds this training finished
    already is returned as it is. ``resume`` continues from the last checkpoint, exactly.

    Raises InputError for what `check_ppo` refuses, a wrong reward or task, a folder made with another config or other
    data, and an unfinished one without ``resume``; QualityError when too many completions have no reward or the loss is
    no longer a number; ProviderError when a judge's provider refuses, ``max_cost`` is reached or the disk is full
    (after any of these, ``resume`` goes on); KeyboardInterrupt after
    Ctrl-C, once the step in progress is done and its checkpoint written.
    """
    prepared = prepare_ppo(config)
    on_check(prepared.report)

    def train(checkpoint: Path | None, stop: StopAsked) -> Trained:
        with ExitStack() as stack:
            reward = open_text_reward(config, stack)
            return _train(config, prepared, reward, checkpoint, stop, progress)

    manifest = prepared.report.manifest("train ppo", config)
    return train_in_folder(config, manifest, train, steps=config.steps, resume=resume)


def _train(
    config: TrainPPOConfig,
    prepared: PreparedPPO,
    reward: TextReward,
    checkpoint: Path | None,
    stop: StopAsked,
    progress: Progress,
) -> Trained:
    from transformers import set_seed

    from rlaif.training.ppo_model import load_models

    plan = prepared.plan
    if plan.device == "cpu":
        keep_buffers()
    set_seed(config.seed)  # the adapters' first weights are drawn
    models = load_models(
        prepared.model_path,
        config.lora,
        config.value,
        plan.value_path,
        value_scale=value_scale(config, plan.value_path),
        device=plan.device,
        dtype=plan.dtype,
        autocast=plan.autocast,
        gradient_checkpointing=plan.gradient_checkpointing,
    )
    trainer = PPOTrainer(config, prepared, models, reward)
    keep_samples(config.out / SAMPLES, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    if checkpoint is not None:
        trainer.load(checkpoint)
    trainer.run(stop, progress)

    def save_model(folder: Path) -> None:
        policy = models.policy.merge_and_unload() if config.lora else models.policy
        policy.save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)

    def save_adapter(folder: Path) -> None:
        models.policy.save_pretrained(folder)

    facts = {"curve": trainer.curve, "alarms": [a._asdict() for a in trainer.alarms], **reward.report()}
    return Trained(save_model, save_adapter if config.lora else None, facts)


@dataclass(frozen=True)
class Rollout:
    """B completions of a step with a reward each; T is the longest. ``rows``: their numbers in the step."""

    rows: list[int]
    prompts: list[tuple[int, ...]]
    completions: list[tuple[int, ...]]
    texts: list[str]
    mask_BT: Any
    logps_BT: Any  # of the policy that sampled
    reference_BT: Any
    values_BT: Any
    rewards_B: Any

    def where(self, keep: Sequence[int]) -> "Rollout":
        """Those rows alone, padded as before."""
        picked = {
            field.name: [value[i] for i in keep]
            if isinstance(value := getattr(self, field.name), list)
            else value[keep]
            for field in fields(self)
        }
        return Rollout(**picked)


class PPOTrainer:
    """``models``: a `rlaif.training.ppo_model.PolicyAndValue`. ``step``: how many steps are done."""

    def __init__(self, config: TrainPPOConfig, prepared: PreparedPPO, models: Any, reward: TextReward) -> None:
        import torch

        from rlaif.training.ppo_losses import KLController

        self.config, self.prepared, self.plan = config, prepared, prepared.plan
        self.models, self.reward = models, reward
        self.step, self.curve = 0, list[dict[str, float]]()
        self.kl = KLController(config.kl.coefficient, config.kl.target, config.kl.horizon)
        self.failures = FailureLimit(config.max_failed)
        self.watch, self.alarms = Watch(config.watch), list[Alarm]()
        tokenizer = prepared.tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.groups = models.groups()
        rates = [self.plan.learning_rate, self.plan.value_learning_rate]
        # No weight decay: what holds the policy near its beginning is the KL penalty.
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(self.groups, rates, strict=True)], weight_decay=0.0
        )
        self.rates = rates

    # ------------------------------------------------------------------------------------------------- the training

    def run(self, stop: StopAsked, progress: Progress) -> None:
        """All steps that are left, unless ``stop`` is asked for; then a checkpoint is written."""
        progress(self.step, self.config.steps, "sampling")
        saved = self.step
        while self.step < self.config.steps and not stop.asked:
            try:
                rollout, metrics = self.collect()
            except RlaifError:
                if self.step > saved:  # nothing of this step has reached the weights
                    self.save()
                raise
            if rollout is not None:
                metrics |= self.learn(rollout)
            self.step += 1
            self.curve.append({"step": self.step, **metrics})
            progress(self.step, self.config.steps, _note(metrics))
            self._watch_for_hacking()
            if stop.asked or (self.step < self.config.steps and self.step % self.plan.save_every == 0):
                self.save()
                saved = self.step
        if not stop.asked and not any("reward" in point for point in self.curve):
            raise QualityError(f"no completion of {self.config.steps} steps had a reward, so nothing was learned.")

    def _watch_for_hacking(self) -> None:
        """Warns of what the last step newly shows. Raises QualityError, saved, where a rule ends the training."""
        for alarm in self._alarms(self.curve[-1]):
            _logger.warning("step %d: %s", alarm.step, alarm.text)
            if alarm.stop and self.step < self.config.steps:
                self.save()
                raise QualityError(
                    f"stopped after step {self.step}: {alarm.text} (watch.{alarm.rule}); what was learnt is saved in"
                    f" {self.config.out}, and --resume goes on from there."
                )

    def _alarms(self, point: dict[str, float]) -> list[Alarm]:
        found = self.watch.add(int(point["step"]), point | {"cut_off": 1.0 - point["ended"]})
        self.alarms += found
        return found

    # ------------------------------------------------------------------------------------------------- the rollout

    def collect(self) -> tuple[Rollout | None, dict[str, float]]:
        """The completions of this step that have a reward (None: there are none), and figures about all of them.
        Changes no weight; leaves running statistics of the reward as they were if it raises."""
        tasks = [t for t in order(self.config, self.prepared.tasks, self.step) for _ in range(self._each)]
        sampled = self._sample(tasks)
        texts = [self._text(s.ids, s.ended) for s in sampled]
        answers = Answers([task.prompt for task in tasks], texts, [len(s.ids) for s in sampled])
        self.reward.submit(answers)  # judged while the models below run
        everything, entropy_BT = self._look(tasks, sampled, texts)
        rewards = self._score(answers)
        self._write_sample(answers, rewards)
        metrics = _about_all(rewards, sampled, texts) | text_figures(texts) | self.reward.parts
        metrics["sampler_gap"] = _largest_gap(sampled, everything.logps_BT)
        kept = [i for i, reward in enumerate(rewards) if reward is not None]
        if not kept:
            return None, metrics
        for i in kept:
            penalty = 0.0 if sampled[i].ended else self.config.missing_eos_penalty
            everything.rewards_B[i] = float(rewards[i] or 0.0) - penalty
        rollout = everything.where(kept)
        metrics["entropy"] = float(entropy_BT[kept].sum() / rollout.mask_BT.sum())
        return rollout, metrics

    @property
    def _each(self) -> int:
        return self.config.samples_per_prompt

    def _sample(self, tasks: Sequence[Task]) -> list[Any]:
        """A completion for each task; equal ones stand in a row."""
        from rlaif.training.rollout import draws, sample

        seeds = [(self.config.seed, "sample", self.step, row) for row in range(len(tasks))]
        self.models.eval()
        with self.models.precision():
            found: list[Any] = sample(
                self.models.policy,
                [task.ids for task in tasks[:: self._each]],
                draws(seeds, self.config.max_new_tokens),
                end_ids=self.prepared.end_ids,
                pad_id=self.pad_id,
                temperature=self.config.temperature,
            )
        return found

    def _score(self, answers: Answers) -> list[float | None]:
        """Raises QualityError for too many failures, and what the reward raises."""
        before = self.reward.state()
        try:
            rewards = self.reward.score(answers)
            self.failures.add(self.reward.failed, len(rewards), self.reward.example)
        except RlaifError:
            self.reward.load_state(before)
            raise
        return rewards

    def _write_sample(self, answers: Answers, rewards: Sequence[float | None]) -> None:
        """The completions of the step's first prompt, for people to read."""
        asked = answers.prompts[0].messages[-1].content
        with (self.config.out / SAMPLES).open("a", encoding="utf-8") as file:
            for text, reward in list(zip(answers.texts, rewards, strict=True))[: self._each]:
                line = {"step": self.step + 1, "prompt": asked, "completion": text, "reward": reward}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _text(self, ids: Sequence[int], ended: bool) -> str:
        return str(self.prepared.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True))

    def _look(self, tasks: Sequence[Task], sampled: Sequence[Any], texts: list[str]) -> tuple[Rollout, Any]:
        """Every completion as a rollout whose rewards are not known yet, and the entropy of each token (B, T)."""
        import torch

        prompts, completions = [task.ids for task in tasks], [s.ids for s in sampled]
        rows, width, device = len(completions), max(map(len, completions)), self.models.device
        logps_BT, reference_BT, values_BT, entropy_BT = (torch.zeros(rows, width, device=device) for _ in range(4))
        mask_BT = torch.zeros(rows, width, dtype=torch.bool, device=device)
        for chunk in self._micro_batches(range(rows), prompts, completions):
            batch = self._batch(chunk, prompts, completions)
            with torch.no_grad():
                output = self.models(batch, self.config.temperature)
            at = (torch.tensor(chunk, device=device), slice(batch.mask_BT.shape[1]))
            reference_BT[at] = self.models.reference_logps(batch, self.config.temperature)
            logps_BT[at], values_BT[at], entropy_BT[at] = output.logps_BT, output.values_BT, output.entropy_BT
            mask_BT[at] = batch.mask_BT
        unknown_B = torch.full((rows,), math.nan, device=device)
        rollout = Rollout(
            list(range(rows)), prompts, completions, texts, mask_BT, logps_BT, reference_BT, values_BT, unknown_B
        )
        return rollout, entropy_BT

    # -------------------------------------------------------------------------------------------------- the update

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """The optimizer steps of a rollout."""
        import torch

        from rlaif.training.ppo_losses import (
            estimate_advantages,
            explained_variance,
            kl_k1,
            kl_k3,
            token_rewards,
            whiten,
        )

        config, mask_BT = self.config, rollout.mask_BT
        k1_BT = kl_k1(rollout.logps_BT, rollout.reference_BT, mask_BT)
        rewards_BT = token_rewards(rollout.rewards_B, k1_BT, mask_BT, self.kl.coefficient)
        advantages_BT, returns_BT = estimate_advantages(
            rewards_BT, rollout.values_BT, mask_BT, config.gamma, config.lam
        )
        whitened_BT = whiten(advantages_BT, mask_BT)
        kl = float(k1_BT.sum(dim=1).mean())
        metrics = {
            "kl": kl,
            "kl_k3": float(kl_k3(rollout.logps_BT, rollout.reference_BT, mask_BT).sum(dim=1).mean()),
            "kl_coefficient": self.kl.coefficient,
            "score": float(rollout.rewards_B.mean()),
            "value_mean": float(rollout.values_BT[mask_BT].mean()),
            "return_mean": float(returns_BT[mask_BT].mean()),
            "explained_variance": explained_variance(rollout.values_BT, returns_BT, mask_BT),
        }
        self._set_rates()
        sums: dict[str, float] = {}
        for epoch in range(config.ppo_epochs):
            for rows in self._minibatches(rollout.rows, epoch):
                _add(sums, updates=1.0, **self._optimizer_step(rollout, rows, whitened_BT, returns_BT))
        self.kl.update(kl, len(rollout.rows))
        tokens = sums.pop("tokens")
        updates = sums.pop("updates")
        metrics |= {name: total / tokens for name, total in sums.items() if not name.endswith("grad_norm")}
        metrics |= {name: total / updates for name, total in sums.items() if name.endswith("grad_norm")}
        metrics["loss"] = metrics["policy_loss"]
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if not torch.isfinite(torch.tensor(list(metrics.values()))).all():
            self._diverged(rollout, range(len(rollout.rows)), metrics)
        return metrics

    def _optimizer_step(
        self, rollout: Rollout, rows: Sequence[int], advantages_BT: Any, returns_BT: Any
    ) -> dict[str, float]:
        """One step on a minibatch: losses are means over its tokens, whatever the micro-batches. Returns sums."""
        import torch

        from rlaif.training.ppo_losses import policy_losses, value_losses

        config = self.config
        tokens = int(rollout.mask_BT[torch.tensor(rows)].sum())
        self.models.train()
        sums: dict[str, float] = {"tokens": float(tokens)}
        for chunk in self._micro_batches(rows, rollout.prompts, rollout.completions):
            batch = self._batch(chunk, rollout.prompts, rollout.completions)
            at, here = torch.tensor(chunk, device=self.models.device), batch.mask_BT.shape[1]
            old_BT, advantage_BT, return_BT, value_BT = (
                x[at, :here] for x in (rollout.logps_BT, advantages_BT, returns_BT, rollout.values_BT)
            )
            output = self.models(batch, config.temperature)
            policy = policy_losses(output.logps_BT, old_BT, advantage_BT, batch.mask_BT, config.clip)
            value = value_losses(output.values_BT, value_BT, return_BT, batch.mask_BT, config.value_clip)
            weight = config.value_coefficient if config.value == "shared" else 1.0
            loss = (policy.losses_BT.sum() + weight * value.losses_BT.sum()) / tokens
            if not math.isfinite(float(loss.detach())):
                self._diverged(rollout, chunk, {"loss": float(loss.detach())})
            loss.backward()
            _add(
                sums,
                policy_loss=float(policy.losses_BT.detach().sum()),
                value_loss=float(value.losses_BT.detach().sum()),
                clip_fraction=float(policy.clipped_BT.sum()),
                value_clip_fraction=float(value.clipped_BT.sum()),
                approx_kl=float(((output.logps_BT.detach() - old_BT) ** 2).masked_fill(~batch.mask_BT, 0).sum() / 2),
            )
        for name, group in zip(("grad_norm", "value_grad_norm"), self.groups, strict=True):
            norm = float(torch.nn.utils.clip_grad_norm_(group, config.max_grad_norm))
            if not math.isfinite(norm):
                self._diverged(rollout, rows, {name: norm})
            sums[name] = norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    def _set_rates(self) -> None:
        """The learning rates of this step: a function of its number alone."""
        warmup, steps = self.plan.warmup_steps, self.config.steps
        share = min(1.0, (self.step + 1) / (warmup + 1))
        if self.config.schedule == "linear" and self.step >= warmup:
            share = (steps - self.step) / (steps - warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _minibatches(self, rows: Sequence[int], epoch: int) -> Iterator[list[int]]:
        """Places in the rollout, in an order drawn for each epoch, in parts as even as can be."""
        places = sorted(range(len(rows)), key=lambda i: uniform(self.config.seed, "epoch", self.step, epoch, rows[i]))
        parts = minibatches(len(rows), self.config.batch_size)
        for part in range(parts):
            yield places[part * len(rows) // parts : (part + 1) * len(rows) // parts]

    def _micro_batches(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """``rows``, those of like length together, the longest first."""
        longest = sorted(rows, key=lambda i: (-len(prompts[i]) - len(completions[i]), i))
        size = self.plan.micro_batch_size
        for start in range(0, len(longest), size):
            yield longest[start : start + size]

    def _batch(self, rows: Sequence[int], prompts: Sequence[Any], completions: Sequence[Any]) -> Any:
        from rlaif.training.ppo_model import make_batch

        return make_batch([prompts[i] for i in rows], [completions[i] for i in rows], self.pad_id, self.models.device)

    def _diverged(self, rollout: Rollout, rows: Sequence[int], figures: dict[str, float]) -> None:
        """Write out the rows that did it; the last checkpoint stays as it is."""
        lines = [
            {
                "prompt": self.prepared.tokenizer.decode(rollout.prompts[i]),
                "completion": rollout.texts[i],
                "reward": float(rollout.rewards_B[i]),
                "logps": _json(rollout.logps_BT[i][rollout.mask_BT[i]].tolist()),
                "reference_logps": _json(rollout.reference_BT[i][rollout.mask_BT[i]].tolist()),
                "values": _json(rollout.values_BT[i][rollout.mask_BT[i]].tolist()),
            }
            for i in rows
        ]
        file = self.config.out / BROKEN
        write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        name, value = next((n, v) for n, v in figures.items() if not math.isfinite(v))
        raise QualityError(
            f"training diverged in step {self.step + 1}: {name} is {value}; the rows are in {file}; lower learning_rate"
            f" (now {self.plan.learning_rate:g}) and start over; checkpoints before this step are kept."
        )

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write a checkpoint of the steps done, then remove older ones."""
        import torch

        folder = self.config.out / CHECKPOINTS / f"checkpoint-{self.step}"
        numbers = {
            "global_step": self.step,
            "kl_coefficient": self.kl.coefficient,
            "reward": self.reward.state(),
            "failures": self.failures.recent,
            "log_history": self.curve,
        }

        def write(part: Path) -> None:
            trained = {name: p.detach() for name, p in self.models.trained().items()}
            torch.save({"trained": trained, "optimizer": self.optimizer.state_dict()}, part / STATE)
            (part / NUMBERS).write_text(json.dumps(numbers, allow_nan=False), encoding="utf-8")

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            in_one_piece(folder, write)
        except OSError as error:
            raise ProviderError(
                f"{folder}: cannot be written ({error.strerror or error}); earlier checkpoints are kept: make room and"
                " go on with --resume."
            ) from None
        for old in folder.parent.glob("checkpoint-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. Raises InputError for a damaged one."""
        import torch

        try:
            numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
            state = torch.load(folder / STATE, map_location=self.models.device, weights_only=True)
            trained = self.models.trained()
            with torch.no_grad():
                for name, value in state["trained"].items():
                    trained[name].copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.curve = int(numbers["global_step"]), list(numbers["log_history"])
            self.kl.coefficient = float(numbers["kl_coefficient"])
            self.reward.load_state(numbers["reward"])
            self.failures.recent = [(int(failed), int(rows)) for failed, rows in numbers["failures"]]
            for point in self.curve:  # so that what was told before is not told again
                self._alarms(point)
        except (OSError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder}: this checkpoint is damaged ({why}); remove it and resume again.") from None


def _largest_gap(sampled: Sequence[Any], logps_BT: Any) -> float:
    """The largest difference between log-probs as the sampler saw them and as one forward pass gives them."""
    pairs = ((s.logps, row) for s, row in zip(sampled, logps_BT.tolist(), strict=True))
    return float(max(abs(a - b) for seen, row in pairs for a, b in zip(seen, row, strict=False)))


def _json(values: Sequence[float]) -> list[float | str]:
    return [value if math.isfinite(value) else str(value) for value in values]


def _add(sums: dict[str, float], **figures: float) -> None:
    for name, value in figures.items():
        sums[name] = sums.get(name, 0.0) + value


def _about_all(rewards: Sequence[float | None], sampled: Sequence[Any], texts: Sequence[str]) -> dict[str, float]:
    """Figures of a step's completions. Rewards: of those that have one, before any penalty."""
    known = [reward for reward in rewards if reward is not None]
    lengths = [len(s.ids) for s in sampled]
    figures = {
        "masked": 1.0 - len(known) / len(rewards),
        "ended": sum(s.ended for s in sampled) / len(sampled),
        "length_mean": sum(lengths) / len(lengths),
        "length_max": float(max(lengths)),
        "distinct_2": distinct_n(texts, 2),
        "distinct_texts": len(set(texts)) / len(texts),
    }
    if known:
        mean = math.fsum(known) / len(known)
        figures["reward"] = mean
        figures["reward_std"] = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))
    return figures


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words, as a share of all of them (Li et al., arXiv 1510.03055); 1 where there are none."""
    seen: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        seen.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(seen) / seen.total() if seen else 1.0


def _note(metrics: dict[str, float]) -> str:
    if "reward" not in metrics:
        return "no completion had a reward"
    return f"reward {metrics['reward']:.3f}, KL {metrics.get('kl', 0.0):.2f}, {metrics['length_mean']:.0f} tokens"


__all__ = ["PPOTrainer", "Rollout", "train_ppo"]
