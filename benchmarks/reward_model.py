"""A reward model on the HH preferences (Bai et al., arXiv 2204.05862) beside two floors, in its own domain and in the
other one.

    python -m benchmarks.reward_model --out FOLDER [--domains harmless helpful] [--seeds 0 1 2] [--layers 12]

The data is found by RLAIF_DATA. Dialogues become chat messages; the earliest turns of a prompt are left out until the
longer side fits ``--tokens``, and pairs that never fit are dropped and counted. ``--layers N`` takes only the first N
layers of the model (a cheaper model: half the layers, half the time). Each training is an ordinary `rlaif train reward`
folder: stopped by Ctrl-C or SIGTERM, the same command goes on where it was.
"""

import argparse
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.config.train import LoraConfig, TrainRewardConfig
from rlaif.embedded import resolve_model
from rlaif.preferences import Pair, read_preferences
from rlaif.training.reward import train_reward
from rlaif.training.reward_model import RewardModel
from rlaif.training.reward_report import RewardReport, make_report

DATA = Path(os.environ.get("RLAIF_DATA", "../shared/data")) / "preferences"
DOMAINS = ("harmless", "helpful")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--pairs", type=int, help="only so many pairs of the training file")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = first_layers(options.model, options.layers, options.out) if options.layers else options.model
    files = prepared(options.out, options.model, options.tokens)
    for seed in options.seeds:
        for domain in options.domains:
            run(options, model, files, domain, seed)


def run(options: argparse.Namespace, model: str, files: dict[str, Path], domain: str, seed: int) -> None:
    config = TrainRewardConfig(
        data=str(files[f"{domain}_train"]),
        eval_data=str(files[f"{domain}_test"]),
        model=model,
        out=options.out / f"{domain}-{seed}",
        seed=seed,
        epochs=options.epochs,
        learning_rate=options.rate,
        batch_size=16,
        save_steps=10,
        max_length=options.tokens,
        limit=options.pairs,
        lora=LoraConfig(r=16),
        device="auto",
    )
    result = train_reward(config, resume=True, progress=lambda done, total, note: print(done, total, note, flush=True))
    own = RewardReport.model_validate(result.manifest["reward"])
    other = next(name for name in DOMAINS if name != domain)
    across = measured(result.out, files[f"{other}_test"], files[f"{domain}_train"])
    for name, report in ((domain, own), (other, across)):
        print(json.dumps({"trained on": domain, "seed": seed, "tested on": name, **figures(report)}), flush=True)
    print(json.dumps({"trained on": domain, "seconds": result.manifest["seconds"]}), flush=True)


def figures(report: RewardReport) -> dict[str, Any]:
    def shown(share: Any) -> str:
        return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]" if share else "-"

    return {
        "pairs": report.pairs,
        "accuracy": shown(report.accuracy),
        "longer wins": shown(report.longer_wins),
        "bag of words": shown(report.bag_of_words),
        "ece": round(report.ece or 0.0, 3),
        "length correlation": round(report.length_correlation or 0.0, 2),
    }


def measured(folder: Path, test: Path, train: Path) -> RewardReport:
    """The model of ``folder`` on pairs of another file."""
    scorer = RewardModel.load(folder)
    pairs = read_preferences(str(test)).pairs
    both = [scorer.score_where_it_fits([p.prompt for p in pairs], side) for side in sides(pairs)]
    kept = [i for i in range(len(pairs)) if both[0][i] is not None and both[1][i] is not None]
    chosen, rejected = ([float(side[i] or 0.0) for i in kept] for side in both)
    return make_report(
        [pairs[i] for i in kept], chosen, rejected, read_preferences(str(train)).pairs, len(pairs) - len(kept)
    )


def sides(pairs: tuple[Pair, ...]) -> Iterator[list[Any]]:
    yield [pair.chosen for pair in pairs]
    yield [pair.rejected for pair in pairs]


# ------------------------------------------------------------------------------------------------------------ data


def prepared(out: Path, model: str, tokens: int) -> dict[str, Path]:
    """The four files as messages that fit ``tokens``; what was left out is printed."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(model))

    def length(turns: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])

    files = {}
    for name in (f"{domain}_{part}" for domain in DOMAINS for part in ("train", "test")):
        files[name] = out / f"{name}-{tokens}.jsonl"
        rows, read, cut = [], 0, 0
        for row in _rows(DATA / f"hh_{name}.jsonl.gz"):
            read += 1
            chosen, rejected = (_turns(row[side]) for side in ("chosen", "rejected"))
            whole = len(chosen)
            while len(chosen) > 2 and max(length(chosen), length(rejected)) > tokens:
                chosen, rejected = chosen[2:], rejected[2:]
            cut += len(chosen) < whole
            if chosen[:-1] == rejected[:-1] and max(length(chosen), length(rejected)) <= tokens:
                rows.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
        print(f"{name}: {read} pairs, {len(rows)} used, {cut} without their earliest turns", flush=True)
        if not files[name].exists():
            files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _turns(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)
    return [
        {"role": _SPEAKERS[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def first_layers(model: str, layers: int, out: Path) -> str:
    """A folder with the model's first ``layers`` layers."""
    folder = out / f"first-{layers}"
    if not folder.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = resolve_model(model)
        cut: Any = AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=layers)
        cut.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
