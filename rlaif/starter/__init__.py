"""The files that ``rlaif init`` writes, and the writing of them."""

from pathlib import Path

from rlaif.config.models import ModelConfig
from rlaif.errors import InputError

_FILES = ("config.yaml", "constitution.yaml", "prompts.jsonl")


def write_project(folder: Path, model: str) -> list[Path]:
    """A small project in ``folder`` whose policy and judge are ``model``. Raises InputError rather than overwrite."""
    try:
        ModelConfig(model=model)
    except ValueError as error:
        raise InputError(f"--model: {str(error).split('Value error, ')[-1].split(' [type=')[0]}") from None
    paths = [folder / name for name in _FILES]
    if taken := [p for p in paths if p.exists()]:
        raise InputError(f"{taken[0]}: is there already; give another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            text = (Path(__file__).parent / path.name).read_text(encoding="utf-8")
            path.write_text(text.replace("MODEL", model), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}).") from None
    return paths
