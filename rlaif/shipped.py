"""Where the constitutions and prompt templates that ship with the package lie: the one place that knows."""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: Literal["constitutions", "prompts"]) -> Path:
    """The folder of shipped files: inside an installed wheel, or at the root of a checkout."""
    installed = _PACKAGE / "_shipped" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind
