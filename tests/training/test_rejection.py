import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.train.rejection import TrainRejectionConfig
from rlaif.errors import InputError, QualityError
from rlaif.training.rejection import check_rejection, train_rejection
from tests.training.tiny import write_jsonl

Make = Callable[..., TrainRejectionConfig]
NO_SFT = importlib.util.find_spec("rlaif.training.sft") is None


@pytest.fixture
def make(ending_model: Path, tmp_path: Path) -> Make:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Say {i}"} for i in range(6)])

    def made(**changes: Any) -> TrainRejectionConfig:
        values = {
            "data": str(data),
            "model": str(ending_model),
            "out": str(tmp_path / "out"),
            "device": "cpu",
            "reward": {"verifier": "regex", "options": {"pattern": "[a-zA-Z]"}},
            "n": 6,
            "max_new_tokens": 16,
            "temperature": 1.0,
            "batch_size": 2,
            "lora": {"r": 2},
        }
        return TrainRejectionConfig.model_validate(values | changes)

    return made


def test_the_check_counts_samples_and_refuses_a_threshold_that_nothing_or_everything_passes(make: Make) -> None:
    assert check_rejection(make()).samples == 36
    with pytest.raises(InputError, match="threshold 2 is outside of the reward's range, 0 to 1"):
        check_rejection(make(threshold=2.0))
    with pytest.raises(InputError, match="threshold 0 is outside"):
        check_rejection(make(threshold=0.0))


@pytest.mark.slow
def test_where_nothing_is_good_enough_it_says_so_and_trains_nothing(make: Make) -> None:
    config = make(reward={"verifier": "regex", "options": {"pattern": "never said by anybody"}})
    with pytest.raises(QualityError, match=r"no completion of 6 prompts has a reward of at least 1 \(\d+ of 36"):
        train_rejection(config)
    assert not (config.out / "best.jsonl").exists()
    assert (config.out / "ledger.sqlite").is_file()


@pytest.mark.slow
@pytest.mark.skipif(NO_SFT, reason="needs rlaif.training.sft")
def test_the_best_answers_are_what_it_is_fine_tuned_on(make: Make) -> None:
    config = make()
    result = train_rejection(config)
    rows = [json.loads(line) for line in (config.out / "best.jsonl").read_text().splitlines()]
    assert 1 <= len(rows) <= 6
    assert all(row["reward"] == 1.0 and any(c.isalpha() for c in row["completion"][0]["content"]) for row in rows)
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    assert result.manifest["kept"] == len(rows)
    tuned = config.out / "sft" / "model" / "model.safetensors"
    assert (result.model / "model.safetensors").read_bytes() == tuned.read_bytes()
    assert train_rejection(config).manifest == result.manifest
