from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import contract_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ending_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, changed to end about every third answer after a token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("ending")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        hidden = model.model(torch.arange(3, 60)[None]).last_hidden_state[0].mean(0)
        model.lm_head.weight[1] += 5.0 * hidden / hidden.norm() ** 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", contract_rows(12))
