"""The local transport against a hand-written batched ``generate`` loop, on the embedded model.

    python benchmarks/local_generate.py [--repeats 5] [--prompts 32] [--tokens 32] [--batch 32] [--json]

Both sides run in this process, on the same weights in float32, with the same allocator setting, prompts, batch size,
token limit and temperature, in alternating repeats. The loop is what one would write: sort by length, pad on the left,
``model.generate`` batch by batch. The end token is replaced by one that practically never occurs, so that both sides
make the same number of tokens; the case "natural ends" keeps it. Tokens are counted as generated.

Cases: "distinct prompts" (the plain comparison), "4 samples each" (the prompts of a preference run, each sampled four
times), "natural ends" (rows end where the model ends them).
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlaif.clients.local import LocalClient, embedded_model_dir, keep_buffers
from rlaif.config.models import ModelConfig
from rlaif.types import ChatRequest, Message

TOPICS = (
    "why the sky is blue", "how to boil an egg", "what a prime number is", "the rules of chess", "how bread rises",
    "why we sleep", "the water cycle", "how a bicycle stays upright", "what inflation is", "how to write a letter",
    "why leaves change colour", "how vaccines work", "what a poem is", "how to plan a garden", "why ships float",
    "the phases of the moon", "how to fix a flat tyre", "what a budget is", "how birds fly", "why salt melts ice",
    "how glass is made", "what friction is", "how to study for a test", "why cats purr", "how rivers form",
    "what a haiku is", "how to clean a wool coat", "why the sea is salty", "how a lock works", "what gravity does",
    "how to choose a book", "why metals rust",
)  # fmt: skip
MANNERS = (
    "Explain {}.",
    "In two sentences, tell a curious child {}.",
    "I am preparing a short talk for my neighbours and would like to begin with something simple: {}. Please help.",
    "Write a clear paragraph on {}, with one example from daily life and without any technical words.",
)
TEMPERATURE = 0.8


def make_prompts(count: int) -> list[str]:
    return [MANNERS[i % len(MANNERS)].format(TOPICS[i % len(TOPICS)]) for i in range(count)]


def without_end(folder: Path, target: Path) -> Path:
    """The model with another end token, "<empty_output>", which it was hardly trained on."""
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        settings = json.loads((folder / name).read_text())
        settings[key] = "<empty_output>" if key == "eos_token" else 16
        (target / name).unlink()
        (target / name).write_text(json.dumps(settings))
    return target


def loop_side(folder: Path, batch: int) -> Callable[[list[str], int], int]:
    """The hand-written loop; returns how many tokens it made."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id

    def run(prompts: list[str], tokens: int) -> int:
        chats = [[{"role": "user", "content": p}] for p in prompts]
        ids = sorted(tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False), key=len)
        made = 0
        for start in range(0, len(ids), batch):
            inputs = tokenizer.pad({"input_ids": ids[start : start + batch]}, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(
                    **inputs, max_new_tokens=tokens, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0
                )
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                made += row.index(ends) + 1 if ends in row else len(row)
        return made

    return run


def client_side(folder: Path, batch: int) -> Callable[[list[str], int], int]:
    client = LocalClient(ModelConfig(model=f"local:{folder}", options={"batch_size": batch}))
    seed = 0

    async def ask(prompts: list[str], tokens: int) -> int:
        nonlocal seed
        requests = []
        for prompt in prompts:
            seed += 1
            message = Message(role="user", content=prompt)
            requests.append(ChatRequest(messages=(message,), max_tokens=tokens, temperature=TEMPERATURE, seed=seed))
        replies = await asyncio.gather(*map(client.complete, requests))
        return sum(reply.usage.output_tokens for reply in replies)

    return lambda prompts, tokens: asyncio.run(ask(prompts, tokens))


def compare(name: str, folder: Path, prompts: list[str], tokens: int, batch: int, repeats: int) -> dict[str, Any]:
    sides = {"loop": loop_side(folder, batch), "client": client_side(folder, batch)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for run in sides.values():  # load and warm up
        run(prompts[:4], 4)
    for repeat in range(repeats):
        for side in sorted(sides, reverse=repeat % 2 == 0):
            begun = time.perf_counter()
            made = sides[side](prompts, tokens)
            rates[side].append(made / (time.perf_counter() - begun))
    median = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "case": name,
        "ratio": round(median["client"] / median["loop"], 3),
        **{f"{s}_tokens_per_s": round(median[s], 1) for s in sides},
        **{f"{s}_range": [round(min(rates[s]), 1), round(max(rates[s]), 1)] for s in sides},
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, value in (("--repeats", 5), ("--prompts", 32), ("--tokens", 32), ("--batch", 32)):
        parser.add_argument(flag, type=int, default=value)
    parser.add_argument("--case", choices=["distinct prompts", "4 samples each", "natural ends"], action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    keep_buffers()
    embedded, prompts = embedded_model_dir(), make_prompts(args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        endless = without_end(embedded, Path(folder))
        grouped = [p for p in prompts[: max(1, args.prompts // 4)] for _ in range(4)]
        cases = {
            "distinct prompts": (endless, prompts, args.tokens),
            "4 samples each": (endless, grouped, args.tokens),
            "natural ends": (embedded, prompts, 3 * args.tokens),
        }
        for name in args.case or cases:
            model, texts, tokens = cases[name]
            result = compare(name, model, texts, tokens, args.batch, args.repeats)
            if args.json:
                print(json.dumps(result), flush=True)
            else:
                client, loop = result["client_range"], result["loop_range"]
                print(
                    f"{name}: client {result['client_tokens_per_s']} tokens/s ({client[0]}-{client[1]}), loop"
                    f" {result['loop_tokens_per_s']} ({loop[0]}-{loop[1]}), ratio {result['ratio']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
