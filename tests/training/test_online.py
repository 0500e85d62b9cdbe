import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.train.online import TrainOnlineConfig
from rlaif.errors import InputError
from rlaif.training.online import check_online, train_online
from rlaif.types import ChatRequest
from tests.training.tiny import write_jsonl

Make = Callable[..., TrainOnlineConfig]
ASKED: list[str] = []


def shorter(request: ChatRequest) -> str:
    """A judge that prefers the shorter response, and the first of equal ones."""
    text = request.messages[-1].content
    ASKED.append(text)
    found = re.findall(r"<response_(\w)>\n(.*?)\n</response_\1>", text, re.DOTALL)
    return str(min(found, key=lambda response: len(response[1]))[0])


@pytest.fixture
def make(ending_model: Path, tmp_path: Path) -> Make:
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Say {i}"} for i in range(6)])

    def made(**changes: Any) -> TrainOnlineConfig:
        values = {
            "data": str(data),
            "model": str(ending_model),
            "out": str(tmp_path / "out"),
            "device": "cpu",
            "constitution": "brief",
            "judge": {"models": ["scripted:tests.training.test_online:shorter"], "labels": "text"},
            "sampling": {"n": 6, "max_tokens": 16, "temperature": 1.0},
            "rounds": 2,
            "prompts_per_round": 4,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "lora": {"r": 2},
        }
        return TrainOnlineConfig.model_validate(values | changes)

    return made


def test_the_check_says_how_much_is_sampled_and_makes_no_folder(make: Make) -> None:
    report = check_online(make())
    assert (report.rounds, report.prompts_per_round, report.samples) == (2, 4, 48)
    assert any("asked in more than one round" in finding.text for finding in report.findings)
    assert not make().out.exists()
    config = make()
    assert TrainOnlineConfig.model_validate(config.model_dump(mode="json")) == config


def test_what_a_round_would_refuse_is_told_before_the_first(make: Make) -> None:
    with pytest.raises(InputError, match="brif"):
        check_online(make(constitution="brif"))


@pytest.mark.slow
def test_each_round_samples_the_model_of_the_round_before_and_running_again_goes_on(make: Make) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if note.startswith("round 2: step 1"):
            raise Killed

    config = make()
    with pytest.raises(Killed):
        train_online(config, progress=kill)
    asked = len(ASKED)
    result = train_online(config)
    assert len(ASKED) == asked, "what was judged before is not asked again"
    policies = [(config.out / f"round-{k}" / "config.yaml").read_text().split("judge:")[0] for k in (1, 2)]
    assert "round-1/dpo/model" in policies[1]
    assert "dpo" not in policies[0]
    asked_by_round = [(config.out / f"round-{k}.jsonl").read_text().splitlines() for k in (1, 2)]
    questions = [[json.loads(line)["prompt"][0]["content"] for line in lines] for lines in asked_by_round]
    assert questions == [["Say 0", "Say 1", "Say 2", "Say 3"], ["Say 4", "Say 5", "Say 0", "Say 1"]]
    last = config.out / "round-2" / "dpo" / "model" / "model.safetensors"
    assert (result.model / "model.safetensors").read_bytes() == last.read_bytes()
    assert {point["round"] for point in result.manifest["curve"]} == {1, 2}
    assert train_online(config).manifest == result.manifest
    with pytest.raises(InputError, match=r"another config \(different: rounds\)"):
        train_online(make(rounds=3))
