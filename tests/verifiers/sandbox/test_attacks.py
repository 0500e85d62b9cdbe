"""Every attack of the list, in each Linux tier, as this user and as one without rights."""

import functools
import json
import sys
from typing import Any

import pytest

from rlaif.verifiers.sandbox.base import SandboxError
from rlaif.verifiers.sandbox.launcher import Server
from tests.verifiers.sandbox.attacks import ATTACKS, ISOLATION, Attack
from tests.verifiers.sandbox.users import HERE, run_as

TIERS = ("ns", "lsm")
USERS = ("self", "nobody")
# Succeed, and do no harm, where nothing stands in their way: so the table can tell a sandbox from none.
UNGUARDED = ("I01", "I04", "I05", "I06", "I07", "I11", "I12", "I13", "I14", "I30", "I39", "I40", "I43", "D20")


@functools.cache
def why_not(tier: str) -> str | None:
    """Why this machine has no such tier."""
    try:
        Server.start(tier, HERE / "tiny_guest.py", sys.executable).stop()
    except SandboxError as error:
        return str(error)
    return None


@functools.cache
def outcomes(tier: str, user: str) -> dict[str, Any]:
    name, _, version = tier.partition("@")
    if reason := why_not(name):
        pytest.skip(reason)
    chosen = [a.id for a in (ISOLATION if version else ATTACKS)]
    results: dict[str, Any] = json.loads(run_as(user, "attacks.py", tier, *chosen))
    return results


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.id)
def test_an_attack_is_contained_and_the_server_goes_on(attack: Attack, tier: str, user: str) -> None:
    outcome = outcomes(tier, user)["attacks"][attack.id]
    assert "ESCAPED" not in outcome["out"]
    assert outcome["ending"] in attack.ends, outcome
    if outcome["ending"] == "exited" and attack.id not in ("D14", "D17o"):
        assert "contained" in outcome["out"], outcome
    assert outcome["harm"] == []
    assert outcome["seconds"] < attack.seconds + 3  # of a busy machine
    assert outcome["honest"], "an honest program after it failed"
    assert outcome["same server"]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("tier", TIERS)
def test_after_all_attacks_nothing_is_left(tier: str, user: str) -> None:
    results = outcomes(tier, user)
    assert results["after"] == results["before"]


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "tier", ["ns@0", "lsm@1", *(pytest.param(t, marks=pytest.mark.slow) for t in ("lsm@3", "lsm@5"))]
)
def test_older_kernels_hold_too(tier: str, user: str) -> None:
    """Without the newer rights of Landlock (or, in namespaces, without Landlock) the other walls are enough."""
    results = outcomes(tier, user)["attacks"]
    assert {a.id: results[a.id]["out"] for a in ISOLATION if "ESCAPED" in results[a.id]["out"]} == {}
    assert {a.id: results[a.id]["harm"] for a in ISOLATION if results[a.id]["harm"]} == {}


def test_the_attacks_succeed_where_there_is_no_sandbox() -> None:
    said = json.loads(run_as("self", "attacks.py", "none", *UNGUARDED))["attacks"]
    assert [name for name in UNGUARDED if "ESCAPED" not in said[name]] == []
