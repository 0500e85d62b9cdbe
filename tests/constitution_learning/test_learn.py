"""Learning from pairs with a planted principle: it is found among decoys; where none is planted, none is found."""

import json
from pathlib import Path
from typing import Any


from rlaif.constitution import load_constitution
from rlaif.hashing import uniform
from rlaif.learning import Learned, LearnConfig, learn
from tests.constitution_learning import models
from tests.constitution_learning.models import PROPERTIES


def rows(n: int, planted: str | None, seed: int = 0, noise: float = 0.1) -> list[dict[str, Any]]:
    """Pairs whose two texts have each property or not, by a coin; the planted one is preferred, but for some noise."""

    def text(i: int, side: str) -> str:
        has = [p for p in PROPERTIES if uniform(seed, i, side, p) < 0.5]
        return " ".join([*has, f"number {i}{side}"])

    made = []
    for i in range(n):
        a, b = text(i, "a"), text(i, "b")
        has = [planted in t.split() for t in (a, b)]
        clear = has[0] != has[1] and uniform(seed, i, "noise") >= noise
        first = has[0] if clear else uniform(seed, i, "label") < 0.5
        made.append({"prompt": f"Q {i}", "chosen": a if first else b, "rejected": b if first else a})
    return made


def write(path: Path, data: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def config(folder: Path, data: list[dict[str, Any]] | None = None, **other: Any) -> LearnConfig:
    if data is not None:
        write(folder / "pairs.jsonl", data)
    name, logprobs = other.pop("judge", "judge"), other.pop("logprobs", None)
    values: dict[str, Any] = {
        "data": str(folder / "pairs.jsonl"),
        "model": f"scripted:tests.constitution_learning.models:{other.pop('model', 'proposer')}",
        "judge": {
            "models": [{"model": f"scripted:tests.constitution_learning.models:{name}", "logprobs": logprobs}],
            "ties": True,
        },
        "proposals": 6,
        "out": folder / "mine.yaml",
    }
    return LearnConfig.model_validate(values | other)


def run(folder: Path, data: list[dict[str, Any]] | None = None, **other: Any) -> Learned:
    models.SENT.clear()
    return learn(config(folder, data, **other), command="rlaif constitution learn")


def test_a_planted_principle_is_found_among_decoys(tmp_path: Path) -> None:
    found = run(tmp_path, rows(240, "careful"))
    loaded = load_constitution(found.out)
    assert [p.compare for p in loaded.principles] == [models.question("careful")]
    print(found.out.read_text()); print(json.dumps(found.report, indent=1))
