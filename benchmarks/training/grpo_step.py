"""One GRPO update, here and in TRL: the same completions and rewards, CPU seconds and peak memory of each.

    OMP_NUM_THREADS=1 python -m benchmarks.training.grpo_step [--small] [--repeats 5] [--flat 0 0.5]

Completions are given (lengths drawn once, between 4 and 64 tokens), so sampling, which is TRL's own on both sides, is
not in the figures; everything else of a step is: reference log-probs (only here: KL is measured at beta 0, TRL has none
there), advantages, forward and backward passes. ``--flat``: the share of groups whose rewards are all equal.

Sides: TRL at its defaults (gradient checkpointing, 8 completions at once), TRL with its best documented flags (no
checkpointing, as many at once as here), and `rlaif train grpo`. All hold the same allocator settings and LoRA. Each is
built in this process, one after the other, each step repeated and the sides in turn; medians are of CPU seconds
(os.times), which hold on a busy machine. The gradients of all sides are compared. ``--small``: instead of the embedded
model a Llama of random weights with its tokenizer (8 layers of 256), for a machine that has other things to do.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.train.grpo import TrainGRPOConfig
from rlaif.embedded import keep_buffers

PROMPTS, GROUP, LONGEST = 4, 8, 64


class Given:
    """The completions and rewards of the step, the same on every side."""

    def __init__(self, vocabulary: int, end: int, flat: float) -> None:
        draw = random.Random(0)
        lengths = [draw.randint(4, LONGEST) for _ in range(PROMPTS * GROUP)]
        self.ids = [[draw.randrange(100, vocabulary) for _ in range(n - 1)] + [end] for n in lengths]
        signal = [i >= round(flat * PROMPTS) for i in range(PROMPTS)]
        self.rewards = [draw.random() if signal[i // GROUP] else 0.5 for i in range(PROMPTS * GROUP)]


def ours(config: TrainGRPOConfig, given: Given) -> Any:
    from rlaif.rewards import Scored
    from rlaif.training.group_reward import GroupReward
    from rlaif.training.groups import prepare_groups
    from rlaif.training.trl_adapter.grpo import make_trainer

    class Told(GroupReward):
        def submit(self, *_: Any) -> None:
            pass

        def __call__(self, *_: Any, **__: Any) -> list[float | None]:
            self.scored = [Scored(value=value) for value in given.rewards]
            return [row.value for row in self.scored]

    ready = prepare_groups(config, "grpo")
    reward = Told(config.reward, ready.tasks, group_size=GROUP, max_failed=1.0, max_flat=None)
    return make_trainer(
        config, ready.plan, ready.prompts, reward, ready.tokenizer, ready.model_path, config.out / "ours", []
    )


def theirs(config: TrainGRPOConfig, given: Given, micro: int, *, checkpointing: bool) -> Any:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, set_seed

    import rlaif.training.trl_adapter  # noqa: F401  (before trl: no telemetry)
    from rlaif.training.groups import prepare_groups
    from rlaif.training.model import adapter_config

    assert config.lora is not None
    ready = prepare_groups(config, "grpo")
    set_seed(config.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(ready.model_path, dtype="float32")
    arguments = trl.GRPOConfig(
        output_dir=str(config.out / "theirs"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=PROMPTS * GROUP // micro,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        gradient_checkpointing=checkpointing,
        seed=config.seed,
        max_steps=1,
        report_to="none",
    )
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda **_: given.rewards,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ready.prompts}),
        processing_class=ready.tokenizer,
        peft_config=adapter_config(config.lora),
    )


class Side:
    """A trainer before its first step."""

    def __init__(self, name: str, trainer: Any, given: Given) -> None:
        self.name, self.trainer = name, trainer
        trainer._generate_single_turn = lambda *_: (given.ids, None)
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        trainer.model.train()
        rows = [trainer.train_dataset[i] for i in range(PROMPTS) for _ in range(GROUP)]
        self.rows = rows
        self.cpu: list[float] = []

    def step(self) -> Any:
        """The gradient of one optimizer step; its CPU seconds are kept."""
        import torch

        trainer = self.trainer
        torch.manual_seed(0)
        trainer._step = 0
        trainer.model.zero_grad(set_to_none=True)
        before = os.times()
        for _ in range(trainer.args.gradient_accumulation_steps):
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(self.rows)).backward()
            trainer._step += 1
        after = os.times()
        self.cpu.append(after.user + after.system - before.user - before.system)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def small_model(folder: Path) -> str:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlaif.embedded import embedded_model_dir

    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model_dir())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(model: str, flat: float, repeats: int, folder: Path) -> dict[str, Any]:
    data = folder / "prompts.jsonl"
    rows = [{"prompt": f"What is {i} plus {i}, and why? Explain it in a few words to a child."} for i in range(PROMPTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "data": str(data),
        "model": model,
        "out": str(folder / "out"),
        "reward": "length",
        "steps": 1,
        "prompts_per_step": PROMPTS,
        "group_size": GROUP,
        "max_new_tokens": LONGEST,
        "device": "cpu",
    }
    values["reward"] = {"verifier": "length", "options": {"words": {"max": 50}}}
    config = TrainGRPOConfig.model_validate(values)
    keep_buffers()
    from rlaif.training.model import load_tokenizer

    tokenizer = load_tokenizer(config.model_name)
    given = Given(len(tokenizer), tokenizer.eos_token_id, flat)
    mine = ours(config, given)
    micro = mine.args.per_device_train_batch_size
    sides = [
        Side("TRL, defaults", theirs(config, given, 8, checkpointing=True), given),
        Side("TRL, best flags", theirs(config, given, micro, checkpointing=False), given),
        Side("rlaif", mine, given),
    ]
    gradients = [side.step() for side in sides]  # the first step of each is not counted
    scale = float(gradients[0].abs().max())
    differ = [float((gradient - gradients[0]).abs().max()) / scale for gradient in gradients]
    for side in sides:
        side.cpu.clear()
    for _ in range(repeats):
        for side in sides:
            side.step()
    return {
        "flat": flat,
        "micro_batch": micro,
        "cpu_seconds": {side.name: round(statistics.median(side.cpu), 2) for side in sides},
        "all": {side.name: [round(s, 2) for s in side.cpu] for side in sides},
        "gradients differ by": dict(zip((s.name for s in sides), differ, strict=True)),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    lines = [f"{PROMPTS} x {GROUP} completions of 4 to {LONGEST} tokens, CPU seconds of one update, medians"]
    for result in found:
        seconds = result["cpu_seconds"]
        mine = seconds["rlaif"]
        lines.append(f"{result['flat']:.0%} of groups flat, {result['micro_batch']} completions at once here")
        lines += [f"  {name:<16} {value:6.2f}   {value / mine:.2f} x" for name, value in seconds.items()]
        lines.append(f"  gradients differ by at most {max(result['gradients differ by'].values()):.1e} of the largest")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flat", type=float, nargs="+", default=[0.0, 0.5])
    arguments = parser.parse_args()
    found = []
    for flat in arguments.flat:
        with tempfile.TemporaryDirectory() as folder:
            model = small_model(Path(folder) / "model") if arguments.small else "local:smollm2"
            found.append(measure(model, flat, arguments.repeats, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
