"""What is known of a model before its weights are read: shapes from its config, its tokenizer, where its answers end.

The model is built on torch's meta device, which holds shapes and no numbers: nothing is computed and no weights file
is opened. Imports torch and transformers.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.config.train import LoraConfig
from rlaif.embedded import resolve_model
from rlaif.errors import InputError


@dataclass(frozen=True)
class ModelFacts:
    """``parameters``: all, tied ones once; ``trained``: those that training changes; ``backbone``: weights that each
    token is multiplied by, without embedding and LM head. ``hidden``, ``intermediate``, ``layers``, ``vocabulary``:
    the shapes that decide the memory of activations."""

    name: str
    path: str
    architecture: str
    parameters: int
    trained: int
    backbone: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int | None


@dataclass(frozen=True)
class TokenizerFacts:
    """``end_ids``: the tokens at which the model's generation stops."""

    chat_template: bool
    eos: str
    pad: str | None
    end_ids: tuple[int, ...]


def load_tokenizer(model_name: str) -> Any:
    """The tokenizer of a model (its name without ``local:``). Raises InputError when there is none."""
    return _load(model_name, "tokenizer")


def tokenizer_facts(tokenizer: Any, model_name: str) -> TokenizerFacts:
    """Raises InputError when the tokenizer has no end token: nothing could end an answer."""
    if tokenizer.eos_token is None:
        raise InputError(f"{model_name}: its tokenizer has no eos token; set one in tokenizer_config.json.")
    ends = _generation_ends(model_name) or (tokenizer.eos_token_id,)
    return TokenizerFacts(
        bool(tokenizer.chat_template), str(tokenizer.eos_token), tokenizer.pad_token and str(tokenizer.pad_token), ends
    )


Head = Literal["lm", "score"]  # what stands on the layers: next-token logits, or one score


def model_facts(model_name: str, lora: LoraConfig | None, head: Head = "lm") -> ModelFacts:
    """Raises InputError when the model cannot be found, is no causal language model, or has no layers as named by
    ``lora.target_modules``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _load(model_name, "config")
    if head == "score":
        config.num_labels = 1
    loader: Any = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model: Any = loader.from_config(config)
    except (ValueError, ImportError) as error:
        raise InputError(f"{model_name}: is no language model that can be trained here ({_first(error)}).") from None
    parameters = sum(p.numel() for p in model.parameters())
    if head == "score" and not hasattr(model, "score"):
        raise InputError(
            f"{model_name}: {type(model).__name__} has no score head; take a decoder such as Llama or Qwen."
        )
    embedding, logits = model.get_input_embeddings(), model.get_output_embeddings()
    outside = {id(w): w.numel() for w in (embedding.weight, getattr(logits, "weight", embedding.weight))}
    text = config.get_text_config()
    return ModelFacts(
        name=model_name,
        path=resolve_model(model_name),
        architecture=type(model).__name__,
        parameters=parameters,
        trained=parameters if lora is None else _adapter_parameters(model, model_name, lora, head),
        backbone=parameters - sum(outside.values()),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=int(text.vocab_size),
        positions=getattr(text, "max_position_embeddings", None),
    )


def adapter_config(lora: LoraConfig, head: Head = "lm") -> Any:
    """``lora`` as peft's LoraConfig. A score head is trained and saved with the adapter: peft alone leaves it as it
    was drawn."""
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # any number, whatever its annotation says
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=_below(lora.from_layer),
        task_type="CAUSAL_LM" if head == "lm" else "SEQ_CLS",
        modules_to_save=["score"] if head == "score" else None,
    )


def _below(layer: int) -> str | None:
    """What matches the modules of the layers before ``layer``, whatever a model calls its list of layers."""
    return rf".*\.(?:{'|'.join(map(str, range(layer)))})\..*" if layer else None


def _adapter_parameters(model: Any, model_name: str, lora: LoraConfig, head: Head) -> int:
    import peft
    import torch

    named = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    if isinstance(lora.target_modules, list) and (unknown := [t for t in lora.target_modules if t not in named]):
        raise InputError(
            f"lora.target_modules: {model_name} has no linear layer {', '.join(unknown)};"
            f" it has {', '.join(sorted(named - {'lm_head', 'score'}))}."
        )
    with warnings.catch_warnings():  # peft asks transformers for a name that is going away
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        adapted: Any = peft.get_peft_model(model, adapter_config(lora, head), low_cpu_mem_usage=True)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _generation_ends(model_name: str) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(resolve_model(model_name)).eos_token_id
    except OSError:  # many models have no generation_config.json
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _load(model_name: str, what: str) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    loader: Any = AutoTokenizer if what == "tokenizer" else AutoConfig
    try:
        return loader.from_pretrained(resolve_model(model_name))
    except (OSError, ValueError, KeyError) as error:  # no such model, no such file in it, an unknown model type
        raise InputError(f"{model_name}: its {what} cannot be loaded ({_first(error)}).") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
