"""DPOTrainer of TRL 1.16, fed with pairs that are tokenized and checked already.

What it does otherwise than a plain ``DPOTrainer``, each for a reason:

* pairs of like length are computed together inside one optimizer step (the same step, less padding);
* the log-probs of the reference are computed once, before training (a reference never changes);
* on a CPU a pair is one row in which the prompt stands once, and logits are computed for completion tokens only
  (`rlaif.training.losses.share_prompts`): the same loss to rounding, checked against TRL's own on the shortest pair
  before it is used;
* a loss that is no number ends the training before it reaches the weights.

Not covered: several machines, DeepSpeed and FSDP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from rlaif.config.train import TrainDPOConfig
from rlaif.training.diverged import stop_if_diverged
from rlaif.training.losses import SharedPromptRow, completion_logps, dpo_losses, share_prompts
from rlaif.training.model import adapter_config
from rlaif.training.plan import Plan
from rlaif.training.tokens import TokenPair
from rlaif.training.trl_adapter.shared import Leaves, like_lengths, load_model, row_arguments

# Two ways to the same sum of log-probs differ by rounding only; a model that looks elsewhere is off by whole nats.
_SAME_LOGPS = 0.01


def make_trainer(
    config: TrainDPOConfig,
    plan: Plan,
    train: Sequence[TokenPair],
    evaluate: Sequence[TokenPair],
    tokenizer: Any,
    model_path: str,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> "PairTrainer":
    """A trainer ready for ``train()``; the reference log-probs are computed by then. Raises InputError when the model
    cannot be loaded."""
    model = load_model(model_path, plan)
    trainer = PairTrainer(
        plan=plan,
        soft=config.labels == "soft",
        model=model,
        args=_arguments(config, plan, checkpoints, bool(evaluate)),
        train_dataset=_data_set(train),
        eval_dataset=_data_set(evaluate) if evaluate else None,
        processing_class=tokenizer,
        peft_config=adapter_config(config.lora) if config.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: TrainDPOConfig, plan: Plan, checkpoints: Path, evaluate: bool) -> Any:
    return row_arguments(
        trl.DPOConfig,
        config,
        plan,
        checkpoints,
        beta=config.beta,
        precompute_ref_log_probs=True,
        eval_strategy="epoch" if evaluate else "no",
        prediction_loss_only=True,
    )


def _data_set(pairs: Sequence[TokenPair]) -> Any:
    columns = {"prompt_ids": "prompt", "chosen_ids": "chosen", "rejected_ids": "rejected"}
    tokens = {column: [list(getattr(p, field)) for p in pairs] for column, field in columns.items()}
    return Dataset.from_dict({**tokens, "prob_chosen": [p.prob_chosen for p in pairs]})


class PairTrainer(Leaves, trl.DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on token ids. ``train_dataset`` has prompt_ids, chosen_ids and rejected_ids of each pair."""

    def __init__(self, *, plan: Plan, soft: bool = False, **kwargs: Any) -> None:
        self.plan = plan
        self.data_collator: Any = None
        self.shares_prompts = False  # until it has been shown to give the same log-probs
        self.soft = soft
        super().__init__(**kwargs)
        if soft:
            self.data_collator = WithLabels(self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "prob_chosen" not in self._signature_columns:
            self._signature_columns.append("prob_chosen")

    # --------------------------------------------------------------------------------- data, before training

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # tokenized by rlaif.training.tokens, as TRL would

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Add the columns ref_chosen_logps and ref_rejected_logps. (TRL's own writes them to a cache on disk.)"""
        order = sorted(range(len(dataset)), key=lambda i: _length(dataset[i]))
        if name == "train" and self.plan.share_prompts:
            self._try_shared_prompts(dataset[order[0]])
        logps: dict[int, tuple[float, float]] = {}
        self.model.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self._prepare_inputs(self.data_collator([dataset[i] for i in rows]))
            chosen, rejected = self.compute_ref_log_probs(self.model, batch)
            logps |= zip(rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True)
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        columns = {"ref_chosen_logps": 0, "ref_rejected_logps": 1}
        for column, side in columns.items():
            dataset = dataset.add_column(column, [logps[i][side] for i in range(len(dataset))])
        return dataset

    def _try_shared_prompts(self, example: dict[str, Any]) -> None:
        ordinary = self.data_collator
        expected = torch.stack(self.compute_ref_log_probs(self.model, self._prepare_inputs(ordinary([example]))))
        self.shares_prompts, self.data_collator = True, SharedPromptCollator()
        try:
            batch = self._prepare_inputs(self.data_collator([example]))
            found = torch.stack(self.compute_ref_log_probs(self.model, batch))
            same = bool(torch.allclose(found, expected, rtol=1e-4, atol=_SAME_LOGPS))
        except (TypeError, ValueError, RuntimeError):  # a model that takes no positions or no such mask
            same = False
        if not same:
            self.shares_prompts, self.data_collator = False, ordinary

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = self.train_dataset if train_dataset is None else train_dataset
        return like_lengths(self, [_length(row) for row in data])

    # -------------------------------------------------------------------------------------------- the loss

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        if not self.shares_prompts:
            return super().compute_ref_log_probs(model, inputs)
        was_training = model.training
        model.eval()
        with torch.no_grad(), _without_adapter(self.accelerator.unwrap_model(model)), self.accelerator.autocast():
            logps_B2 = _row_logps(model, inputs)
        model.train(was_training)
        return logps_B2.unbind(dim=1)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        prob_B = inputs.pop("prob_chosen", None)
        if self.shares_prompts or self.soft:
            loss = self._pair_loss(model, inputs, prob_B)
        else:
            loss = super()._compute_loss(model, inputs, return_outputs)
        stop_if_diverged(self, loss, inputs)
        return loss

    def _pair_loss(self, model: Any, inputs: dict[str, Any], prob_B: torch.Tensor | None) -> torch.Tensor:
        logps_B2 = _row_logps(model, inputs) if self.shares_prompts else _padded_logps(model, inputs)
        reference_B2 = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], dim=1)
        loss = dpo_losses(logps_B2, reference_B2, self.beta, prob_B if self.soft else None).mean()
        rewards_B2 = self.beta * (logps_B2.detach() - reference_B2)
        margins_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["rewards/chosen"].append(rewards_B2[:, 0].mean().item())
        metrics["rewards/rejected"].append(rewards_B2[:, 1].mean().item())
        metrics["rewards/margins"].append(margins_B.mean().item())
        metrics["rewards/accuracies"].append((margins_B > 0).float().mean().item())
        return loss


def _row_logps(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Log-probs (B, 2) of the completions in a row of `share_prompts`."""
    output = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        attention_mask=inputs["attention_mask"],
        logits_to_keep=inputs["predict_N"],
        use_cache=False,
    )
    return completion_logps(output.logits[0], inputs["labels_N"], inputs["completion_N"])


def _padded_logps(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Log-probs (B, 2) of the completions in TRL's batch: all chosen rows, then all rejected ones."""
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        fused_lm_head=True,  # TRL's: in pieces, and zero where there is no label
        use_cache=False,
    )
    return torch.stack(output.log_probs.sum(dim=1).chunk(2), dim=1)


def _without_adapter(model: Any) -> Any:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else torch.no_grad()


class WithLabels:
    """A collator of TRL, with the ``prob_chosen`` of each row."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {**self.inner(rows), "prob_chosen": torch.tensor([r["prob_chosen"] for r in rows])}


class SharedPromptCollator:
    """Rows of the data set to the inputs of one forward pass (see `SharedPromptRow`)."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        row: SharedPromptRow = share_prompts(
            [TokenPair(tuple(r["prompt_ids"]), tuple(r["chosen_ids"]), tuple(r["rejected_ids"])) for r in rows]
        )
        # Added to the attention scores: unlike a boolean mask it means the same to every attention implementation.
        hidden = torch.zeros(row.mask.shape).masked_fill(~row.mask, torch.finfo(torch.float32).min)
        batch = {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "attention_mask": hidden,
            "predict_N": row.predict_N,
            "labels_N": row.labels_N,
            "completion_N": row.completion_N,
        }
        for column in ("ref_chosen_logps", "ref_rejected_logps", "prob_chosen"):
            if column in rows[0]:
                batch[column] = torch.tensor([r[column] for r in rows])
        return batch


def _length(row: dict[str, Any]) -> int:
    return len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


__all__ = ["PairTrainer", "SharedPromptCollator", "make_trainer"]
