"""Training: one file a method, behind `rlaif.training.check`; only ``trl_adapter/`` imports trl.

``train_dpo`` and ``check_dpo`` are loaded when they are asked for: importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.training.check import CheckReport, check_dpo
    from rlaif.training.dpo import train_dpo
    from rlaif.training.folder import TrainResult

_HOME = {
    "CheckReport": "rlaif.training.check",
    "check_dpo": "rlaif.training.check",
    "TrainResult": "rlaif.training.folder",
    "train_dpo": "rlaif.training.dpo",
}
__all__ = ["CheckReport", "TrainResult", "check_dpo", "train_dpo"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
