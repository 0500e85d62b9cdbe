"""Does `rlaif train grpo` learn? The embedded model, a verifiable reward, held-out prompts before and after.

    OMP_NUM_THREADS=1 python -m benchmarks.grpo_learns --out /tmp/grpo_learns --seeds 0 1 2

The task: sums of two digits in four wordings. The reward is half "the last number in the answer is the sum" and half
"at most two words". Pairs of digits are held out with all their wordings. SmolLM2-135M answers such questions in a
sentence. beta is 0, so nothing holds the model back, and the KL divergence is measured all the same.

Each seed trains anew in a folder of its own; run again, it goes on. The figures are printed as a table and written as
grpo_learns.json. CPU seconds are of this process (os.times), so they hold on a busy machine.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.train.grpo import TrainGRPOConfig
from rlaif.embedded import resolve_model
from rlaif.hashing import uniform

WORDINGS = ("What is {a} + {b}?", "Calculate {a} + {b}.", "{a} plus {b} equals what?", "Add {a} and {b}.")
NEW_TOKENS = 16
REWARD: dict[str, Any] = {
    "weighted_sum": [
        {"verifier": "regex"},  # the pattern is a column of the row
        {"verifier": "length", "options": {"words": {"max": 2}, "graded": True}},
    ]
}


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(for training, held out): a pair of digits is on one side with all its wordings."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for a in range(1, 10):
        for b in range(1, 10):
            side = sides[uniform("held out", a, b) < 0.2]
            for wording in WORDINGS:
                messages = [
                    {"role": "system", "content": "Be brief."},  # shorter than the one the template would add
                    {"role": "user", "content": wording.format(a=a, b=b)},
                ]
                side.append({"prompt": messages, "reference": str(a + b), "pattern": rf"(^|\D){a + b}\D*$"})
    return sides


def config(data: Path, out: Path, seed: int, steps: int) -> TrainGRPOConfig:
    return TrainGRPOConfig.model_validate(
        {
            "data": str(data),
            "out": str(out),
            "seed": seed,
            "steps": steps,
            "prompts_per_step": 4,
            "group_size": 8,
            "max_new_tokens": NEW_TOKENS,
            "reward": REWARD,
            "learning_rate": 5e-4,
            "save_steps": 5,
            "device": "cpu",
        }
    )


def measure(model_path: str, held_out: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of greedy answers: the share whose last number is right, that are nothing but the right number, that ended."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    batch = tokenizer.apply_chat_template(
        [row["prompt"] for row in held_out],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        made = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)[:, batch["input_ids"].shape[1] :]
    texts = [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
    n = len(texts)
    pairs = list(zip(texts, held_out, strict=True))
    return {
        "right": sum(re.search(row["pattern"], text) is not None for text, row in pairs) / n,
        "only the number": sum(text.rstrip(".") == row["reference"] for text, row in pairs) / n,
        "ended": float((made == tokenizer.eos_token_id).any(1).float().mean()),
        "words": sum(len(text.split()) for text in texts) / n,
    }


def one_seed(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    from rlaif.training.grpo import train_grpo

    training, held_out = rows()
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in training), encoding="utf-8")
    before = measure(resolve_model("smollm2"), held_out)
    started = os.times()
    result = train_grpo(
        config(data, folder / f"seed-{seed}", seed, steps),
        resume=True,
        progress=lambda done, total, note: print(f"seed {seed}: {done}/{total} {note}", flush=True),
    )
    ended = os.times()
    return {
        "seed": seed,
        "train_prompts": len(training),
        "held_out_prompts": len(held_out),
        "before": before,
        "after": measure(str(result.model), held_out),
        "cpu_seconds": round(ended.user + ended.system - started.user - started.system),
        "curve": result.manifest["curve"],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"{results[0]['held_out_prompts']} held-out prompts, greedy; before -> after, by seed"]
    for name in results[0]["before"]:
        cells = [f"{r['before'][name]:.2f} -> {r['after'][name]:.2f}" for r in results]
        lines.append(f"{name:>16}  " + "   ".join(cells))
    for name in ("reward", "kl", "kl_sequence", "entropy", "length", "flat_groups"):
        cells = [f"{_mean(r, name, slice(0, 3)):.2f} -> {_mean(r, name, slice(-3, None)):.2f}" for r in results]
        lines.append(f"{name:>16}  " + "   ".join(cells) + "   (first and last 3 steps, sampled)")
    lines.append(f"{'CPU seconds':>16}  " + "   ".join(str(r["cpu_seconds"]) for r in results))
    return "\n".join(lines)


def _mean(result: dict[str, Any], name: str, which: slice) -> float:
    values = [point[name] for point in result["curve"][which]]
    return float(sum(values) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in arguments.seeds:
        results.append(one_seed(arguments.out, seed, arguments.steps))
        (arguments.out / "grpo_learns.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
