"""Running a program of these tests as somebody else: as this user, and as one without rights."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent.parent / "rlaif"
NOBODY = 65533


def open_to_all(path: Path) -> bool:
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))


def python_for_nobody() -> str:
    """An interpreter that any user may start."""
    for name in (os.path.realpath(sys.executable), f"/usr/bin/python3.{sys.version_info.minor}"):
        if Path(name).exists() and open_to_all(Path(name).resolve()):
            return name
    pytest.skip("no Python here that a user without rights may start")


def run_as(user: str, script: str, *arguments: str, timeout: float = 150) -> str:
    """What ``script`` (a file beside this one) prints; its first argument is the folder of the package.

    user: "self", or "nobody" (a user without rights; needs root). Skips where that cannot be.
    """
    if user == "self":
        command = [sys.executable, str(HERE / script), str(PACKAGE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    else:
        if os.getuid() != 0:
            pytest.skip("only root can become another user")
        folder = Path(tempfile.mkdtemp(prefix="rlaif-copy-"))
        try:
            _copy(folder)
            command = [python_for_nobody(), str(folder / script), str(folder / "rlaif"), *arguments]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=timeout,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                cwd="/",
                env={"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        finally:
            shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _copy(folder: Path) -> None:
    folder.chmod(0o755)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE / "verifiers" / "sandbox", folder / "rlaif" / "verifiers" / "sandbox", ignore=skip)
    shutil.copy(PACKAGE / "errors.py", folder / "rlaif")
    for script in HERE.glob("*.py"):
        shutil.copy(script, folder)
