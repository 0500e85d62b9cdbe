"""Running a trainer of transformers, with what goes wrong while it writes told in one sentence."""

from pathlib import Path
from typing import Any

from rlaif.errors import InputError
from rlaif.training.folder import last_checkpoint


def run(trainer: Any, checkpoint: Path | None) -> None:
    """``trainer.train()``, from ``checkpoint`` on if there is one. Raises InputError where a checkpoint cannot be
    written (a full disk): the one before stays as it is, for it is removed only after the next is whole."""
    from safetensors import SafetensorError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, SafetensorError) as error:
        raise _unwritten(trainer, error) from None
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):  # what torch.save says
            raise
        raise _unwritten(trainer, error) from None


def _unwritten(trainer: Any, error: Exception) -> InputError:
    folder = Path(trainer.args.output_dir)
    last = last_checkpoint(folder)
    kept = f"{last.name} is whole: make room and go on with --resume" if last else "make room and start again"
    return InputError(f"{folder}: a checkpoint cannot be written ({str(error).splitlines()[0]}); {kept}.")
