"""The README's examples are true: the configs load, the commands exist, the names can be imported."""

import re
from pathlib import Path

import click
import pytest
import yaml

from rlaif.cli import rlaif
from rlaif.config.base import parse_yaml, validate
from rlaif.config.generate import GenerateConfig
from rlaif.config.train import TrainDPOConfig
from rlaif.constitution import constitution_from_text, shipped_names

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^rlaif [^\n#]+?(?=\s*(?:#|$|&&))", README, re.MULTILINE)))


def only(text: str) -> str:
    found: str
    (found,) = [block for block in YAML if text in block]
    return found


def test_the_generate_config_loads() -> None:
    config = validate(GenerateConfig, parse_yaml(only("prompts: prompts.jsonl"), "README.md"))
    assert config.policy.n == 4


def test_the_training_config_loads() -> None:
    config = validate(TrainDPOConfig, parse_yaml(only("lora:"), "README.md"))
    assert config.lora is not None


def test_the_constitution_loads() -> None:
    constitution = constitution_from_text(only("principles:\n"), "README.md")
    assert [p.id for p in constitution.principles] == ["honest", "short"]


def test_models_in_the_long_form_load() -> None:
    found = re.findall(r"`(\{model: [^`]+\})`", README)
    assert len(found) >= 2
    for text in found:
        values = {"constitution": "brief", "out": "x", "prompts": "p.jsonl", "judge": {"models": ["local:smollm2"]}}
        GenerateConfig.model_validate({**values, "policy": {"model": yaml.safe_load(text)}})


def test_every_shipped_constitution_is_named() -> None:
    for name in shipped_names():
        assert f"`{name}`" in README


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_exists(line: str) -> None:
    words = line.split()[1:]
    command: click.Command = rlaif
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, line
        command = found
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_RESULT\b|\bSHIPPED\b", README)
