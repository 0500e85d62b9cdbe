"""The choice of a tier: tried, told, and never a weaker one in silence."""

import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from rlaif.errors import InputError
from rlaif.verifiers.sandbox import probe
from rlaif.verifiers.sandbox.base import Limits, Tier
from rlaif.verifiers.sandbox.probe import Trial, open_sandbox, survey
from rlaif.verifiers.sandbox.unsafe import UnsafeLauncher


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the two tiers would say on another machine: empty for one that holds."""
    says = {"ns": "", "lsm": ""}
    monkeypatch.setattr(probe, "_try", lambda tier: Trial(tier, says[tier]))
    return says


def best_here() -> Tier:
    try:
        return survey().tier
    except InputError as error:
        pytest.skip(str(error))


async def test_the_best_tier_that_holds_here_runs_a_program_and_says_its_name() -> None:
    launcher = open_sandbox(min_tier=best_here(), workers=1)
    process = await launcher.launch(Limits())
    await process.aclose()
    await launcher.aclose()
    assert launcher.tier == best_here()


def test_the_report_is_plain_data_for_a_manifest() -> None:
    best_here()
    report = json.loads(json.dumps(survey().as_json()))
    assert report["tier"] == best_here()
    assert {"missing", "landlock_abi", "kernel", "arch", "python", "notes"} < set(report)


@pytest.mark.parametrize("tier", probe.LOCAL)
def test_the_trial_passes_where_a_tier_holds(tier: Tier) -> None:
    trial = probe._try(tier)
    if not trial.holds:
        assert not trial.why.startswith("it does not hold"), trial.why
        pytest.skip(trial.why)


def test_the_trial_catches_a_tier_that_isolates_nothing() -> None:
    """The same attempts in a process with nothing around it reach nearly everything."""
    code = "import os, sys; sys.path.insert(0, sys.argv[1]); import _escapes; _escapes.main(0, 1)"
    with probe._bait() as bait:
        command = [sys.executable, "-c", code, str(probe._ESCAPES.parent)]
        done = subprocess.run(command, input=json.dumps(bait).encode(), capture_output=True, check=True, timeout=30)
    reached = json.loads(done.stdout)
    assert {"read a file of the host", "see the host's environment", "open a connection", "start a process"} < set(
        reached
    )
    assert len(reached) >= 12


SURVEY = """
import json
from rlaif.verifiers.sandbox.probe import survey
print(json.dumps(survey().as_json()))
"""


def surveyed_inside(setup: str) -> dict[str, Any]:
    """What is chosen in a container of one user, after ``setup`` (of the shell)."""
    inside = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        f'{setup} exec "$0" "$@"',
        sys.executable,
        "-c",
        SURVEY,
    ]
    try:
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.stderr.startswith("unshare:"):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_root_of_a_container_of_one_user_has_the_best_tier() -> None:
    if best_here() != "ns":
        pytest.skip("no namespaces here")
    report = surveyed_inside("")
    assert report["tier"] == "ns"
    assert "user 0 without capabilities" in report["notes"][0]


def test_where_namespaces_are_refused_the_next_tier_is_taken_and_the_cure_is_said() -> None:
    if not probe._try("lsm").holds:
        pytest.skip("no Landlock here")
    report = surveyed_inside("echo 0 > /proc/sys/user/max_user_namespaces;")
    assert report["tier"] == "lsm"
    assert "user namespace" in report["missing"]["ns"]
    assert "sysctl user.max_user_namespaces" in report["missing"]["ns"]


def test_a_weaker_tier_is_taken_with_a_warning_that_says_why(
    machine: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    machine["ns"] = "user namespaces are refused"
    with caplog.at_level(logging.INFO):
        assert open_sandbox().tier == "lsm"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no ns: user namespaces are refused" in record.getMessage()
    assert survey().missing == {"ns": "user namespaces are refused"}


def test_less_than_the_least_tier_is_refused(machine: dict[str, str]) -> None:
    machine["ns"] = "user namespaces are refused"
    with pytest.raises(InputError, match="user namespaces are refused"):
        open_sandbox(min_tier="ns")
    machine["lsm"] = "no Landlock"
    with pytest.raises(InputError, match=r"ns: user namespaces.*lsm: no Landlock"):
        open_sandbox()
    with pytest.raises(InputError, match=r"'unsafe' is less than the 'lsm'"):
        open_sandbox(min_tier="lsm", allow_unsafe=True)


def test_a_tier_by_name_is_that_one_or_an_error(machine: dict[str, str]) -> None:
    assert open_sandbox(tier="lsm").tier == "lsm"
    machine["lsm"] = "no Landlock"
    with pytest.raises(InputError, match="tier 'lsm' does not hold on this machine: lsm: no Landlock"):
        open_sandbox(tier="lsm")
    with pytest.raises(InputError, match="there is no tier 'docker'"):
        open_sandbox(tier="docker")  # type: ignore[arg-type]


def test_unsafe_is_taken_only_where_it_is_asked_for_and_with_a_warning(
    machine: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert open_sandbox(allow_unsafe=True).tier == "ns"  # better is there
    with pytest.raises(InputError, match="allow_unsafe"):
        open_sandbox(tier="unsafe")
    machine.update(ns="refused", lsm="refused")
    launcher = open_sandbox(allow_unsafe=True)
    assert isinstance(launcher, UnsafeLauncher)
    assert "WITHOUT isolation" in caplog.text
    assert survey(allow_unsafe=True).as_json()["tier"] == "unsafe"


def test_the_cure_is_said_with_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    setting = os.path.join(tmp_path, "setting")  # noqa: PTH118
    with open(setting, "w") as file:  # noqa: PTH123
        file.write("1\n")
    monkeypatch.setattr(probe, "_HELD_BACK", ((setting, "1", "sysctl this=0"),))
    assert "as root: sysctl this=0" in probe._explained("new user namespace: Operation not permitted")
    assert probe._explained("fork: no") == "fork: no"
