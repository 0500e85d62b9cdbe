"""A chat model of ten thousand random weights, and preference data to train it on. Imports torch where it is used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|begin|>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
)


def save_tiny_model(folder: Path, *, chat_template: bool = True, attention: str = "sdpa") -> Path:
    """Write a Llama with byte-level tokens into ``folder``. As in SmolLM2, pad and eos are the same token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|begin|>", END, *letters])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin|>", eos_token=END, pad_token=END)
    if chat_template:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large, so that what a token attends to decides what is predicted
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def _rambling(i: int) -> str:
    return f"That is a good question; it may be {2 * i} " + "or so " * (i % 5)


def contract_rows(n: int) -> list[dict[str, Any]]:
    """Rows of pairs.jsonl: a short answer is preferred to a long one."""
    return [
        {
            "prompt": [{"role": "user", "content": f"What is {i} plus {i}?"}],
            "chosen": [{"role": "assistant", "content": f"{2 * i}."}],
            "rejected": [{"role": "assistant", "content": _rambling(i)}],
            "prompt_id": f"p{i}",
            "prob_chosen": 0.9,
            "margin": 0.8,
            "source": "judge",
            "principles": ["brief"],
            "judge": "scripted:judge",
            "constitution": "brief@0123456789abcdef",
            "chosen_id": f"c{i}",
            "rejected_id": f"r{i}",
            "evidence": ["k1", "k2"],
        }
        for i in range(n)
    ]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path
