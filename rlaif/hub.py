"""`rlaif data push`: a data set into a repository of the Hugging Face Hub (or of the server that HF_ENDPOINT names)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rlaif.data_doctor import Report, examine
from rlaif.data_folder import CARD, DATA
from rlaif.errors import InputError, ProviderError, QualityError, RlaifError
from rlaif.preferences import is_saved
from rlaif.runs import CONFIG, LEDGER, MANIFEST

TOKEN = "HF_TOKEN"

_DATA = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".gz")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Upload(NamedTuple):
    """A file, and its path in the repository."""

    file: Path
    path: str

    @property
    def size(self) -> int:
        return self.file.stat().st_size


class Plan(NamedTuple):
    """What would be pushed, and what the data doctor says of it."""

    uploads: tuple[Upload, ...]
    report: Report


def plan(source: str | Path, name: str) -> Plan:
    """The files of a run folder's data/, or of a data set folder. Sends nothing. Raises InputError for a name that is
    no OWNER/NAME, or a folder that holds no data set."""
    source = Path(source).expanduser()
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise InputError(f"{name!r} is no name of a data set; give OWNER/NAME of letters, digits, '-', '_' and '.'.")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give a run folder or a data set folder.")
    folder = source / DATA if (source / DATA / CARD).is_file() else source
    if folder is source and any((source / name).exists() for name in (CONFIG, LEDGER, MANIFEST)):
        # Its other files are nobody else's: prompts, replies and what they cost.
        raise InputError(f"{source}: this run has no {DATA}/ with a card yet; run `rlaif generate` on it to the end.")
    if is_saved(folder):
        raise InputError(f"{folder}: was written by save_to_disk, which the hub cannot show; write it with to_parquet.")
    uploads = tuple(_uploads(folder))
    if not any(upload.path != CARD for upload in uploads):
        raise InputError(
            f"{folder}: holds no data ({', '.join(_DATA[:-1])}); give a finished run or a data set folder."
        )
    return Plan(uploads, examine(source))


def _uploads(folder: Path) -> Iterator[Upload]:
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in path.parts)
        if file.is_file() and not hidden and (file.name == CARD or file.name.lower().endswith(_DATA)):
            yield Upload(file, path.as_posix())


def push(
    planned: Plan,
    name: str,
    *,
    private: bool = False,
    update: bool = False,
    force: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload to the data set repository ``name`` in one commit; its URL.

    Makes the repository (``update``: puts a new version into one that is there). The token is that of the environment
    (HF_TOKEN) and of nowhere else. Raises QualityError where the doctor found errors (unless ``force``), InputError
    without a token, and ProviderError where the hub cannot be reached or refuses.
    """
    check(planned, force=force)
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise InputError(f"{TOKEN} is not set; put a token with write access to {name.partition('/')[0]} into it.")
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise InputError("Pushing needs the package huggingface_hub: pip install 'rlaif[hub]'.") from None
    disable_progress_bars()
    api = HfApi(endpoint=endpoint, token=token)
    operations = [CommitOperationAdd(path_in_repo=u.path, path_or_fileobj=str(u.file)) for u in planned.uploads]
    url = f"{api.endpoint}/datasets/{name}"
    if not update:
        with _told(name, token, made=False):
            api.create_repo(name, repo_type="dataset", private=private)
    with _told(name, token, made=not update):
        api.create_commit(
            name, operations, commit_message=f"{planned.report.pairs:,} preference pairs", repo_type="dataset"
        )
    return url


def check(planned: Plan, *, force: bool) -> None:
    """Raises QualityError where the data doctor found errors and they are not to be pushed all the same."""
    if errors := [f for f in planned.report.findings if f.severity == "error"]:
        found = "; ".join(f"{f.count:,} rows {f.text}" for f in errors)
        if not force:
            raise QualityError(
                f"{planned.report.source}: not pushed, for {found}. Take them out (`rlaif data clean`), or push all the"
                " same with --force."
            )


@contextmanager
def _told(name: str, token: str, *, made: bool) -> Iterator[None]:
    """What goes wrong with the hub inside, as the sentence that says so. ``made``: the repository was, just now."""
    try:
        yield
    except RlaifError:
        raise
    except Exception as error:  # noqa: BLE001  of the hub's client and of whatever carries its requests
        message = _sentence(error, name)
        if made:
            message += f" The repository {name} was made and is empty: push again with --update."
        raise ProviderError(message.replace(token, "***")) from None


def _sentence(error: Exception, name: str) -> str:
    owner = name.partition("/")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = {
        401: f"The hub does not accept the token in {TOKEN}; make a new one with write access to {owner}.",
        403: f"The token in {TOKEN} may not write to {owner}; give one that may, or another OWNER.",
        404: f"There is no data set {name} that the token in {TOKEN} may write to; push it without --update.",
        409: f"There is a data set {name} already; give another name, or a new version of it with --update.",
        429: "The hub asks for fewer requests; wait and push again.",
    }
    if status in known:
        return known[status]
    if status is not None:
        said = " ".join(str(getattr(error, "server_message", None) or "").split())
        return f"The hub refuses {name} with status {status}{f' ({said})' if said else ''}; nothing more was sent."
    if isinstance(error, ValueError):
        return f"The hub's client refuses {name}: {' '.join(str(error).split())[:300]}."
    return f"The hub cannot be reached ({type(error).__name__}); see that the network is up and push again."
