"""Does `rlaif train ppo` learn? The embedded model, a verifiable reward, held-out prompts before and after.

    OMP_NUM_THREADS=1 python benchmarks/ppo_learns.py --out /tmp/ppo_learns --seeds 0 1 2

The task: sums of two digits in five wordings. The reward is half "the last number in the answer is the sum" and half
"at most two words", and an answer that does not end within 10 tokens loses a half. Pairs of digits are held out with
all their wordings. SmolLM2-135M answers such questions in a sentence, mostly a wrong or an unfinished one.

Each seed trains anew and writes a folder; the figures are printed as a table and written as ppo_learns.json. CPU
seconds are of this process (os.times), so they hold on a busy machine.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.train import TrainPPOConfig
from rlaif.hashing import uniform

WORDINGS = (
    "What is {a} + {b}?",
    "Calculate {a} + {b}.",
    "{a} plus {b} equals what?",
    "Add {a} and {b}.",
    "{a} + {b} =",
)
NEW_TOKENS = 10
HELD_OUT = 48  # prompts
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
    return sides[0], sorted(sides[1], key=lambda row: uniform(row["prompt"]))[:HELD_OUT]


def config(data: Path, out: Path, seed: int, steps: int) -> TrainPPOConfig:
    return TrainPPOConfig.model_validate(
        {
            "data": str(data),
            "out": str(out),
            "seed": seed,
            "steps": steps,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "batch_size": 8,
            "ppo_epochs": 2,
            "max_new_tokens": NEW_TOKENS,
            "reward": REWARD,
            "missing_eos_penalty": 0.5,
            "value": "shared",
            "learning_rate": 2.5e-4,
            "value_learning_rate": 1e-3,
            "kl": {"coefficient": 0.05},
            "device": "cpu",
        }
    )


def measure(model_path: str, held_out: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of greedy answers: the share whose last number is right, that are nothing but the right number, that ended."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlaif.training.rollout import draws, sample

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
        for row in held_out
    ]
    found = sample(
        model,
        prompts,
        draws([("held out", i) for i in range(len(prompts))], NEW_TOKENS),
        end_ids=[tokenizer.eos_token_id],
        pad_id=tokenizer.eos_token_id,
        temperature=1e-3,  # as good as greedy
    )
    texts = [tokenizer.decode(s.ids, skip_special_tokens=True).strip() for s in found]
    n = len(texts)
    pairs = list(zip(texts, held_out, strict=True))
    return {
        "right": sum(re.search(row["pattern"], text) is not None for text, row in pairs) / n,
        "only the number": sum(text.rstrip(".") == row["reference"] for text, row in pairs) / n,
        "ended": sum(s.ended for s in found) / n,
        "words": sum(len(text.split()) for text in texts) / n,
    }


def one_seed(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    from rlaif.embedded import resolve_model
    from rlaif.training.ppo import train_ppo

    training, held_out = rows()
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in training), encoding="utf-8")
    before = measure(resolve_model("smollm2"), held_out)
    started = os.times()
    result = train_ppo(
        config(data, folder / f"seed-{seed}", seed, steps),
        progress=lambda done, total, note: print(f"seed {seed}: {done}/{total} {note}", flush=True),
    )
    ended = os.times()
    curve = result.manifest["curve"]
    return {
        "seed": seed,
        "train_prompts": len(training),
        "held_out_prompts": len(held_out),
        "before": before,
        "after": measure(str(result.model), held_out),
        "cpu_seconds": round(ended.user + ended.system - started.user - started.system),
        "curve": curve,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"{results[0]['held_out_prompts']} held-out prompts, greedy; before -> after, by seed"]
    for name in results[0]["before"]:
        cells = [f"{r['before'][name]:.2f} -> {r['after'][name]:.2f}" for r in results]
        lines.append(f"{name:>16}  " + "   ".join(cells))
    for name in ("reward", "kl", "entropy", "length_mean"):
        cells = [f"{_mean(r, name, 0):.2f} -> {_mean(r, name, -5):.2f}" for r in results]
        lines.append(f"{name:>16}  " + "   ".join(cells) + "   (first and last 5 steps, sampled)")
    lines.append(f"{'CPU seconds':>16}  " + "   ".join(str(r["cpu_seconds"]) for r in results))
    return "\n".join(lines)


def _mean(result: dict[str, Any], name: str, start: int) -> float:
    points = result["curve"][start : start + 5 if start == 0 else None]
    return float(sum(point[name] for point in points) / len(points))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in options.seeds:
        results.append(one_seed(options.out, seed, options.steps))
        (options.out / "ppo_learns.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
