"""How often learning finds a principle that is there, and one that is not: scripted models, labels of known truth.

    python -m benchmarks.constitution_learning        # 100 data sets, about a minute

A model proposes four properties of texts, a judge applies each without error. In the first data sets the labels are
coins; in the others one property was planted, under noise. Beside the four stand some thirty programs.
"""

import json
import tempfile
from pathlib import Path

from rlaif.errors import QualityError
from rlaif.learning import LearnConfig, learn
from tests.constitution_learning.models import question, rows

MODELS = "scripted:tests.constitution_learning.models:"
PLANTED = "careful"


def kept(folder: Path, n: int, planted: str | None, noise: float, seed: int) -> tuple[list[str], bool]:
    """What was kept of ``n`` pairs, and whether the command would have exited with 0."""
    lines = "".join(json.dumps(row) + "\n" for row in rows(n, planted, seed=seed, noise=noise))
    (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")
    config = {
        "data": str(folder / "pairs.jsonl"),
        "model": f"{MODELS}proposer",
        "judge": {"models": [f"{MODELS}judge"], "ties": True},
        "proposals": 4,
        "seed": seed,
        "out": folder / "mine.yaml",
    }
    learned = True
    try:
        learn(LearnConfig.model_validate(config))
    except QualityError:
        learned = False
    report = json.loads((folder / "mine.learn" / "learned.json").read_bytes())
    return [row["principle"].get("compare", row["id"]) for row in report["kept"]], learned


def main() -> None:
    print("pairs  planted  noise  data sets  kept something  exit 0  found the planted  and nothing else")
    for n, planted, noise, seeds in ((70, None, 0.0, 60), (90, PLANTED, 0.1, 20), (150, PLANTED, 0.3, 20)):
        found = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(kept(Path(folder), n, planted, noise, seed))
        names = [names for names, _ in found]
        counts = (
            sum(map(bool, names)),
            sum(learned for _, learned in found),
            sum(question(PLANTED) in one for one in names) if planted else "-",
            sum(one == [question(PLANTED)] for one in names) if planted else "-",
        )
        print(f"{n:5}  {planted or 'nothing':7}  {noise:5}  {seeds:9}  " + "  ".join(map(str, counts)), flush=True)


if __name__ == "__main__":
    main()
