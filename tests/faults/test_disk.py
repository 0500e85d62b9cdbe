"""A full disk: exit 4 and one sentence, everything paid for is kept, and with room again the run goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.sessions import Sessions
from tests.faults.test_kill import AT_ONCE, JUDGES, PROMPTS, REQUESTS, SETTINGS, N, Watch, reference, server
from tests.faults.world import write_project
from tests.servers.fault_server import FaultServer

__all__ = ["reference", "server"]  # fixtures

# Under way when the disk was full, and those sent in the moment before the first of them came back and found no room.
NOT_KEPT = 2 * AT_ONCE * (1 + JUDGES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root can make a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, left: int) -> Path:
    """Leave ``left`` bytes of it."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        room = os.statvfs(place)
        file.write(bytes(max(0, room.f_bavail * room.f_bsize - left)))
    return filler


@pytest.mark.parametrize("left", [0, 100_000, 160_000, 220_000, 280_000])
def test_on_a_full_disk_the_run_ends_with_4_and_goes_on_when_there_is_room(
    left: int, small_disk: Path, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    project = write_project(small_disk / "project", server, prompts=PROMPTS, n=N, settings=SETTINGS)
    server.asked.clear()
    watch = Watch(server, project)
    filler = fill(small_disk, left)
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    watch.session_ended()
    if code != 0:  # where there was enough it has simply ended
        check_sentence(code, session.err)
    filler.unlink()
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    watch.session_ended()
    assert len(watch.asked) == REQUESTS
    assert watch.resent <= NOT_KEPT
    assert project.files() == reference


def test_the_sizes_above_fill_the_disk_at_different_moments(
    small_disk: Path, server: FaultServer, sessions: Sessions
) -> None:
    """What the test above relies on: the run fails before its first request, and between requests."""
    asked = []
    for left in (0, 220_000):
        project = write_project(small_disk / "project", server, prompts=PROMPTS, n=N, settings=SETTINGS)
        server.asked.clear()
        filler = fill(small_disk, left)
        code, session = sessions.run(project.folder, "generate", "config.yaml")
        check_sentence(code, session.err)
        filler.unlink()
        asked.append(len(server.asked))
    assert asked[0] == 0
    assert 0 < asked[1] < REQUESTS


@pytest.mark.parametrize("size", [1_000, 6_000, 20_000, 60_000])
def test_where_files_may_not_grow_it_is_the_same(
    size: int, tmp_path: Path, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    project = write_project(tmp_path, server, prompts=PROMPTS, n=N, settings=SETTINGS)
    server.asked.clear()
    watch = Watch(server, project)
    code, session = sessions.run(project.folder, "generate", "config.yaml", file_size=size)
    check_sentence(code, session.err)
    watch.session_ended()
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    watch.session_ended()
    assert len(watch.asked) == REQUESTS
    assert watch.resent <= NOT_KEPT
    assert project.files() == reference


def test_a_disk_that_is_full_when_a_finished_run_is_made_anew_leaves_its_files(
    small_disk: Path, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    project = write_project(small_disk / "project", server, prompts=PROMPTS, n=N, settings=SETTINGS)
    assert sessions.run(project.folder, "generate", "config.yaml")[0] == 0
    server.asked.clear()
    codes = set()
    for left in (0, 10_000, 40_000):
        filler = fill(small_disk, left)
        code, session = sessions.run(project.folder, "generate", "config.yaml")
        codes.add(code)
        if code != 0:
            check_sentence(code, session.err)
        assert project.files() == reference
        filler.unlink()
    assert 4 in codes
    assert server.asked == []


def check_sentence(code: int, err: str) -> None:
    assert code == 4, err
    lines = [line for line in err.splitlines() if not line.startswith("prompts:")]
    assert len(lines) == 1, err
    assert lines[0].startswith("rlaif: ")
    assert "disk" in lines[0] or "cannot be written" in lines[0]
    assert "run again" in lines[0] or "running again" in lines[0]
