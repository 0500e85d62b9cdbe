"""The models of PPO as one module: the policy, what it must stay near, and what foresees its reward.

With LoRA the reference is the policy with its adapter switched off, and a value model that begins from the policy's
weights shares the frozen ones: one copy in memory. Imports torch, transformers and peft.

The forward pass is the module's own ``forward``, so that a wrapper (accelerate, DDP) may stand around it.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from rlaif.config.train import LoraConfig
from rlaif.errors import InputError
from rlaif.training.model import adapter_config
from rlaif.training.ppo_losses import token_entropy, token_logps
from rlaif.training.reward_model import quiet
from rlaif.training.rollout import positions


@dataclass(frozen=True)
class Batch:
    """B rows as [prompt, padded before | completion, padded after] for one forward pass: all completions begin in the
    same column, so the last T columns are those that predict them. (The last token of a row predicts nothing.)"""

    input_ids: torch.Tensor  # (B, P + T - 1)
    attention_mask: torch.Tensor  # (B, P + T - 1), 1 where there is a token
    labels_BT: torch.Tensor
    mask_BT: torch.Tensor


@dataclass(frozen=True)
class Outputs:
    """Of each completion token (B, T), 0 in the padding: its log-prob, the entropy of the distribution it was drawn
    from, and the value of the state before it."""

    logps_BT: torch.Tensor
    entropy_BT: torch.Tensor
    values_BT: torch.Tensor


def make_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: Any
) -> Batch:
    """Pad no further than the longest prompt and the longest completion here."""
    before, after = max(map(len, prompts)), max(map(len, completions))
    ids = [
        [pad_id] * (before - len(p)) + [*p, *c] + [pad_id] * (after - len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    attention = [
        [0] * (before - len(p)) + [1] * (len(p) + len(c)) + [0] * (after - len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    ids_BL, attention_BL = torch.tensor(ids, device=device), torch.tensor(attention, device=device)
    return Batch(ids_BL[:, :-1], attention_BL[:, :-1], ids_BL[:, before:], attention_BL[:, before:].bool())


class PolicyAndValue(nn.Module):  # type: ignore[misc]
    """``policy``: a causal language model, with an adapter or without. ``reference``: a frozen copy, or None where the
    adapter is switched off instead. ``value_model``: a model without a head, or None where the value head stands on the
    policy's last hidden states."""

    def __init__(
        self, policy: Any, reference: Any | None, value_model: Any | None, value_head: nn.Linear, autocast: bool
    ) -> None:
        super().__init__()
        self.policy, self.value_model, self.value_head = policy, value_model, value_head
        self._reference = [reference]  # in a list: it is no part of this module's parameters
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    def forward(self, batch: Batch, temperature: float) -> Outputs:
        """Gradients flow to log-probs and values, not to the entropy."""
        shared = self.value_model is None
        with self.precision():
            output = _run(self.policy, batch, logits_to_keep=batch.labels_BT.shape[1], output_hidden_states=shared)
            hidden_BLH = output.hidden_states[-1] if shared else _run(self.value_model, batch).last_hidden_state
        logits_NV = output.logits[batch.mask_BT]
        del output
        values_N = self.value_head(hidden_BLH[:, -batch.labels_BT.shape[1] :][batch.mask_BT].float()).squeeze(-1)
        with torch.no_grad():
            entropy_N = token_entropy(logits_NV, temperature)
        logps_N = token_logps(logits_NV, batch.labels_BT[batch.mask_BT], temperature)
        return Outputs(*(_spread(x, batch.mask_BT) for x in (logps_N, entropy_N, values_N)))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def reference_logps(self, batch: Batch, temperature: float) -> torch.Tensor:
        """Log-probs (B, T) under the reference, 0 in the padding."""
        with self.precision(), self._as_reference() as model:
            logits_BTV = _run(model, batch, logits_to_keep=batch.labels_BT.shape[1]).logits
        return _spread(
            token_logps(logits_BTV[batch.mask_BT], batch.labels_BT[batch.mask_BT], temperature), batch.mask_BT
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """What training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(the policy's, the value's own) trained parameters: each group has its learning rate and its clip."""
        own: list[nn.Parameter] = []
        value: list[nn.Parameter] = []
        for name, parameter in self.trained().items():
            (own if name.startswith("policy.") else value).append(parameter)
        return own, value

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if self._reference[0] is not None:
            yield self._reference[0]
        else:
            with self.policy.disable_adapter():
                yield self.policy

    def precision(self) -> Any:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)


def _run(model: Any, batch: Batch, **options: Any) -> Any:
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions(batch.attention_mask),
        use_cache=False,
        **options,
    )


def _spread(values_N: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Token values (N,) at their places in (B, T), 0 elsewhere."""
    return torch.zeros(mask_BT.shape, device=mask_BT.device, dtype=values_N.dtype).masked_scatter(mask_BT, values_N)


# ----------------------------------------------------------------------------------------------------------- loading


def load_models(
    model_path: str,
    lora: LoraConfig | None,
    value: Literal["separate", "shared"],
    value_path: str,
    *,
    value_scale: tuple[float, float] = (1.0, 0.0),
    device: str,
    dtype: str,
    autocast: bool,
    gradient_checkpointing: bool,
) -> PolicyAndValue:
    """``value_path``: what a separate value model begins from; from a reward model's score s it foresees, with
    ``value_scale`` (a, b), a * s + b. A new adapter and a new head are drawn from torch's
    generator. Raises InputError when a folder holds no such model."""
    transformers.utils.logging.disable_progress_bar()  # one bar for loading, another for writing, below ours
    # peft asks transformers for a name that is going away; nobody here can do anything about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable", category=FutureWarning)
    policy = _load(transformers.AutoModelForCausalLM, model_path, dtype)
    reference = None
    value_model = _load(transformers.AutoModel, value_path, dtype) if value == "separate" else None
    if lora is None:
        reference = copy.deepcopy(policy).requires_grad_(False).to(device)
    else:
        if value_model is not None and value_path == model_path:
            _share(policy, value_model)
        policy, value_model = _adapted(policy, lora), value_model and _adapted(value_model, lora)
    hidden = int(policy.config.get_text_config().hidden_size)
    if value_model is not None:
        hidden = int(value_model.config.get_text_config().hidden_size)
    head = _value_head(value_path if value == "separate" else None, hidden, value_scale)
    models = PolicyAndValue(policy, reference, value_model, head, autocast)
    models.to(device)
    for module in [models, *([reference] if reference is not None else [])]:
        _no_dropout(module)
    if gradient_checkpointing:
        for model in (policy, value_model):
            if model is not None:
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return models


def _load(kind: Any, path: str, dtype: str) -> Any:
    try:
        with quiet():  # a reward model's head is left out where its body is loaded
            return kind.from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the model cannot be loaded ({str(error).splitlines()[0]}).") from None


def _share(policy: Any, value_model: Any) -> None:
    """Let the value model's weights, which LoRA never changes, be the policy's."""
    mine = dict(policy.get_decoder().named_parameters())
    for name, parameter in value_model.named_parameters():
        parameter.data = mine[name].data


def _adapted(model: Any, lora: LoraConfig) -> Any:
    import peft

    settings = adapter_config(lora)
    if model.get_output_embeddings() is None:
        settings.task_type = None  # a model without a head
    adapted: Any = peft.get_peft_model(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _value_head(folder: str | None, hidden: int, scale: tuple[float, float]) -> nn.Linear:
    """Foresees 0 everywhere, or, from a reward model's folder, what that would give."""
    head = nn.Linear(hidden, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if folder is not None and (score := _score_weight(Path(folder))) is not None:
        head.weight.data.copy_(scale[0] * score.float())
        head.bias.data.fill_(scale[1])
    return head


def _score_weight(folder: Path) -> torch.Tensor | None:
    """The head of a sequence classifier (1, H), if the folder holds one."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if "score.weight" in weights.keys():  # noqa: SIM118 (no mapping)
                found: torch.Tensor = weights.get_tensor("score.weight")
                return found if found.shape[0] == 1 else None
    return None


def _no_dropout(model: nn.Module) -> None:
    """The ratio of two policies must not be that of two dropout masks."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def same_tokens(folder: str, other: str) -> bool:
    """Whether two model folders have the same tokens under the same ids."""
    files = [Path(path) / "tokenizer.json" for path in (folder, other)]
    if not all(file.is_file() for file in files):
        return False
    one, two = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return all(one.get(key) == two.get(key) for key in ("model", "added_tokens"))
