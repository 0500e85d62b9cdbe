"""The run folder: what a generate run leaves, and how it is written so that a crash leaves nothing half done."""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import yaml
from pydantic import BaseModel, ValidationError

from rlaif.clients._http import public_url
from rlaif.dataset import json_line
from rlaif.engine import Ledger
from rlaif.engine.store import EmptyLedger
from rlaif.errors import InputError, ProviderError

CONFIG, MANIFEST, LEDGER, REPORT = "config.yaml", "manifest.json", "ledger.sqlite", "report.html"
ROWS = ("completions", "judgements", "pairs", "dropped", "rewards", "best")

# What may change between two runs into one folder: it is computed anew from the ledger, or sends only what is new.
# Any other difference means another experiment, which gets another folder.
MAY_CHANGE = (
    "pairing",
    "dataset",
    "reward",
    "rejection",
    "max_unjudged",
    "max_cost",
    "prompts_in_flight",
    "judge.min_label_mass",
    "judge.calibrate",
    "judge.gold",
    "judge.min_kappa",
    "out",
    "modes",
    "in_flight",
    "proposals",
    "candidates",
    "given",
    "keep",
    "tasks",
    "choose_by",
)
# Of a model: how it is reached and what it costs, not what it answers.
MODEL_MAY_CHANGE = ("api_key_env", "batch", "max_concurrency", "price", "rpm", "timeout", "tpm", "transport")

# All there is of a run that was killed as it began.
_BEGUN = frozenset((f"{LEDGER}.lock", f".{CONFIG}.tmp"))
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_run(out: Path, config: BaseModel, *, fresh: bool = False) -> Ledger:
    """Make ``out`` the folder of this config, or go on with it, and open its ledger, which keeps other processes out.

    ``fresh`` removes what an earlier run left. Raises InputError as `check_run` does, when another process works there,
    or when the folder cannot be written to.
    """
    check_run(out, config, fresh=fresh)
    try:
        out.mkdir(parents=True, exist_ok=True)
        ledger = Ledger.open(out / LEDGER, fresh=fresh)
        try:
            if fresh:
                _remove_run(out)
            write_text(out / CONFIG, yaml.safe_dump(_recorded(config), sort_keys=False))
        except BaseException:
            ledger.close()
            raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise disk_error(out, error) from None
        raise InputError(f"{out}: cannot be written to ({error.strerror}).") from None
    return ledger


def check_run(out: Path, config: BaseModel, *, fresh: bool = False) -> None:
    """Raises InputError where ``out`` is no run folder, or belongs to a run whose config has other keys (named) and
    which has been answered at least once; changes nothing."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for the run.")
    known, ledger = out / CONFIG, out / LEDGER
    stored = _stored(known, fresh) if known.exists() and ledger.exists() else None
    if stored is not None and _other_command(stored, type(config)) and _is_answered(ledger):
        # Not even --fresh may forget what another command has paid for.
        raise InputError(f"{out}: this folder belongs to a run of another command; give another with --out.")
    if stored is not None and not fresh:
        old = _completed(stored, type(config))
        differing = [k for k in _differences(old, _recorded(config)) if not _may_change(k)]
        if differing and _is_answered(ledger):
            raise InputError(
                f"{out}: this folder belongs to a run with another config (different: {', '.join(differing)});"
                " give another folder with --out, or start over here with --fresh."
            )
    elif (
        not known.exists()
        and not ledger.exists()
        and out.is_dir()
        and not _BEGUN.issuperset(p.name for p in out.iterdir())
    ):
        raise InputError(f"{out}: this folder is not empty and is no run folder; give another with --out.")


def check_answered(out: Path) -> None:
    """Raises InputError where ``out`` holds no replies yet."""
    if not (out / LEDGER).is_file() or not _is_answered(out / LEDGER):
        raise InputError(f"{out}: no reply is stored there yet, so nothing can be read again; run without --reparse.")


def _is_answered(ledger: Path) -> bool:
    """Whether there is a reply in it. Before the first, a config may still be corrected (a wrong URL, say)."""
    try:
        with Ledger.open(ledger, read_only=True) as found:
            return found.stats().total("stored") > 0
    except EmptyLedger:
        return False


def _may_change(key: str) -> bool:
    of_model = re.match(r"(?:policy\.model|judge\.models\.\d+)\.(\w+)", key)
    return key.startswith(MAY_CHANGE) or (of_model is not None and of_model[1] in MODEL_MAY_CHANGE)


def _recorded(config: BaseModel) -> Any:
    """The config as the run folder keeps it: what a URL may hold besides its place, a password or a key, stays out."""
    return _without_secrets(config.model_dump(mode="json"))


def _stored(config: Path, fresh: bool) -> Any:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        if fresh:
            return None
        raise InputError(
            f"{config}: cannot be read, so nobody can tell whose run this is; give another folder with --out, or start"
            " over here with --fresh."
        ) from None


def _other_command(stored: Any, model: type[BaseModel]) -> bool:
    """Whether a stored config lacks what every config of this command has."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    return isinstance(stored, dict) and not required <= stored.keys()


def _completed(stored: Any, model: type[BaseModel]) -> Any:
    """A stored config with the keys that came after it at their defaults, which is what the run was made with. As it
    stands where it is no config of this version (a key was removed, say): then its differences are named."""
    try:
        return _recorded(model.model_validate(stored))
    except ValidationError:
        return stored


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: public_url(part) if name == "base_url" and isinstance(part, str) else _without_secrets(part)
            for name, part in value.items()
        }
    return [_without_secrets(part) for part in value] if isinstance(value, list) else value


def _remove_run(out: Path) -> None:
    for name in (MANIFEST, REPORT, *(f"{name}.jsonl" for name in ROWS)):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "data", ignore_errors=True)


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [at]
    found = []
    for key in [*new, *(k for k in old if k not in new)]:
        found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a whole file under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    write_text(out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


class RowFiles:
    """The row files of a run, written to temporary names; they appear under their own names only when all is done.

    Used as a context manager: leaving it normally renames them, leaving it by an exception removes them.
    """

    def __init__(self, out: Path, names: tuple[str, ...]) -> None:
        self.out = out
        self._files: dict[str, TextIO] = {}
        self._names = names
        self._stack = ExitStack()

    def __enter__(self) -> "RowFiles":
        with on_disk(self.out):
            for name in self._names:
                file = self.temporary(name).open("w", encoding="utf-8", newline="\n")
                self._files[name] = self._stack.enter_context(file)
        return self

    def temporary(self, name: str) -> Path:
        return self.out / f".{name}.tmp.jsonl"

    def so_far(self, name: str) -> Path:
        """The file that holds the rows of ``name`` written until now."""
        with on_disk(self.out):
            self._files[name].flush()
        return self.temporary(name)

    def take_out(self, name: str, numbers: Collection[int]) -> None:
        """Write the rows of ``name`` anew without those of these numbers, counted from 1."""
        kept = self.temporary(f"{name}-kept")
        with on_disk(self.out):
            try:
                with self.so_far(name).open("rb") as rows, kept.open("wb") as file:
                    file.writelines(row for number, row in enumerate(rows, start=1) if number not in numbers)
                self._files[name].close()
                kept.replace(self.temporary(name))
            finally:
                kept.unlink(missing_ok=True)
            more = self.temporary(name).open("a", encoding="utf-8", newline="\n")
            self._files[name] = self._stack.enter_context(more)

    def write(self, name: str, row: BaseModel | Mapping[str, Any]) -> None:
        value = row.model_dump(mode="json") if isinstance(row, BaseModel) else row
        with on_disk(self.out):
            self._files[name].write(json_line(value))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for file in self._files.values():
                    file.flush()
                    os.fsync(file.fileno())
            self._stack.close()
            for name in self._names:
                if kind is None:
                    self.temporary(name).replace(self.out / f"{name}.jsonl")
                else:
                    self.temporary(name).unlink(missing_ok=True)
        except OSError as failed:
            if kind is None:
                raise disk_error(self.out, failed) from None


@contextmanager
def on_disk(out: Path) -> Iterator[None]:
    """What goes wrong with the disk inside, a full one for instance, as the sentence that says what is kept."""
    try:
        yield
    except OSError as error:
        raise disk_error(out, error) from None


def disk_error(out: Path, error: OSError) -> ProviderError:
    return ProviderError(
        f"{out}: cannot be written ({error.strerror or error}); every reply so far is in the ledger: make room and run"
        " again."
    )
