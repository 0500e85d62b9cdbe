"""A server that fails or lies in a third of its replies: the run ends, no row is lost without a reason, every label is
right.

Each run is a process with a deadline, against the fault server; `world.check_rows` says what must add up.
"""

import json
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sessions import Session, Sessions
from tests.faults.world import LIES, Liar, Project, check_rows, honest, model, write_project
from tests.servers.fault_server import FaultServer

PROMPTS, N = 6, 3
RATE = 0.3
SECONDS = 60.0  # far more than any of these takes: nothing may hang

# The waits between attempts, a hundredth of what they are; nothing else is changed.
QUICK = {"rlaif.engine:FIRST_WAIT": 0.005, "rlaif.engine.breaker:Breaker.LONGEST_HOLD": 0.02}

NOT_NOW = ("408", "409", "500", "503-soon", "529", "429-soon")
NONSENSE_WAITS = ("retry-negative", "retry-text", "retry-nan", "retry-infinite")
BROKEN = ("drop", "half", "wrong-half", "stall", "drip", "wrong-500")
NO_REPLY = ("truncated-json", "garbage", "nothing", "no-object", "bad-utf8", "no-choices", "error-in-200")
PASSING = (*NOT_NOW, *NONSENSE_WAITS, *BROKEN, *NO_REPLY)  # asked again; what fails five times is a row that says so

CUT_OFF = ("length", "wrong-cut-off")
REFUSED = ("content-filter", "refusal", "wrong-refused", "wrong-filtered", "excuse")
UNREADABLE = ("no-finish", "wrong-no-finish", "rubbish", "empty", "both-labels", "wrong-in-prose")
REPLIES = (*CUT_OFF, *REFUSED, *UNREADABLE)  # well-formed replies, paid for, that must not become a label

REASONS = {
    **{name: {"provider_error"} for name in PASSING},
    **{name: {"truncated", "bad_finish"} for name in CUT_OFF},
    **{name: {"refused", "bad_finish"} for name in REFUSED},
    **{name: {"unparseable", "bad_finish"} for name in UNREADABLE},
}
for name in ("content-filter", "wrong-filtered"):  # no finish reason that Anthropic has
    REASONS[name].add("unparseable")
FOLLOWING = {"not_selected", "unjudged", "too_few_samples", "identical", "tie"}  # what follows from those


def project_of(
    folder: Path,
    server: FaultServer,
    policy: str,
    judge: str,
    *,
    labels: str = "text",
    prompts: int = PROMPTS,
    n: int = N,
) -> Project:
    settings: dict[str, Any] = {"timeout": 0.5, "max_concurrency": 16}
    judging = {"models": [model(server, judge, "judge", **settings)], "ties": True, "labels": labels}
    return write_project(folder, server, prompts=prompts, n=n, policy=policy, settings=settings, judge=judging)


def run(project: Project, sessions: Sessions, *arguments: str) -> tuple[int, Session]:
    return sessions.run(
        project.folder,
        *("generate", "config.yaml", "--set", "max_unjudged=1.0", *arguments),
        seconds=SECONDS,
        constants=QUICK,
    )


def protocols(name: str) -> tuple[str, str]:
    """Who speaks which protocol, policy and judge: one way for every other fault."""
    return ("openai", "anthropic") if sorted(LIES).index(name) % 2 else ("anthropic", "openai")


def at(total: float, *names: str) -> dict[str, float]:
    return dict.fromkeys(names, total / len(names))


@pytest.mark.parametrize("name", [*PASSING, *REPLIES])
def test_at_30_percent_every_row_ends_and_every_label_is_right(name: str, tmp_path: Path, sessions: Sessions) -> None:
    check_one(name, tmp_path, sessions, *protocols(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PASSING, *REPLIES])
def test_the_same_with_the_protocols_exchanged(name: str, tmp_path: Path, sessions: Sessions) -> None:
    check_one(name, tmp_path, sessions, *reversed(protocols(name)))


def check_one(name: str, folder: Path, sessions: Sessions, policy: str, judge: str) -> None:
    liar = Liar(at(RATE, name), at(RATE, name))
    with FaultServer(liar) as server:
        project = project_of(folder, server, policy, judge)
        code, session = run(project, sessions)
    assert code == 0, session.err
    assert liar.told[name] > 5
    reasons = check_rows(project, prompts=PROMPTS, n=N, judges=1)
    assert set(reasons) <= REASONS[name] | FOLLOWING, reasons
    assert project.rows("pairs")


@pytest.mark.parametrize(("policy", "judge"), [("openai", "anthropic"), ("anthropic", "openai")])
@pytest.mark.parametrize(
    ("sample", "verdict"),
    [
        (at(0.3, *PASSING), at(0.3, *PASSING)),
        (at(0.3, *REPLIES), at(0.3, *REPLIES)),
        (at(0.6, *PASSING, *REPLIES), at(0.6, *PASSING, *REPLIES)),
    ],
    ids=["failures", "lies", "everything, 60 percent"],
)
def test_mixed(
    sample: Mapping[str, float],
    verdict: Mapping[str, float],
    policy: str,
    judge: str,
    tmp_path: Path,
    sessions: Sessions,
) -> None:
    liar = Liar(sample, verdict)
    with FaultServer(liar) as server:
        project = project_of(tmp_path, server, policy, judge)
        code, session = run(project, sessions)
    assert code in (0, 3), session.err  # 3: no pair came out
    assert len(liar.told) > 5
    check_rows(project, prompts=PROMPTS, n=N, judges=1)


def test_labels_read_from_log_probs_are_right_under_faults_too(tmp_path: Path, sessions: Sessions) -> None:
    lies = at(0.4, *PASSING, "wrong-refused", "wrong-filtered", "wrong-no-finish", "excuse", "rubbish", "empty")
    with FaultServer(Liar(lies, lies)) as server:
        project = project_of(tmp_path, server, "anthropic", "openai", labels="logprob")
        code, session = run(project, sessions)
    assert code == 0, session.err
    check_rows(project, prompts=PROMPTS, n=N, judges=1)
    methods = {row["outcome"].get("method") for row in project.rows("judgements")}
    assert methods == {"logprob", None}


def test_a_failure_is_never_kept_and_the_next_run_asks_only_for_what_failed(tmp_path: Path, sessions: Sessions) -> None:
    rates = at(0.6, "500", "529", "drop", "half", "wrong-half", "garbage", "no-choices", "wrong-500")
    with FaultServer(Liar(rates, rates)) as server:
        project = project_of(tmp_path, server, "openai", "anthropic")
        run(project, sessions)
        failed = check_rows(project, prompts=PROMPTS, n=N, judges=1)["provider_error"]
        assert failed > 0
        lost = sum(row["reason"] == "provider_error" for row in project.rows("dropped"))
        judged = sum(row["outcome"]["kind"] == "verdict" for row in project.rows("judgements"))
        server.script = honest
        server.asked.clear()
        code, session = run(project, sessions)
        assert code == 0, session.err
        assert not set(check_rows(project, prompts=PROMPTS, n=N, judges=1)) - {"not_selected"}
        assert len(server.asked) == lost + 2 * 3 * PROMPTS - judged


# ------------------------------------------------------------------------------------------------ told to come back


@pytest.mark.parametrize("name", ["429-negative", pytest.param("429-text", marks=pytest.mark.slow)])
def test_told_to_come_back_at_a_time_that_is_none_it_waits_as_it_thinks_fit(
    name: str, tmp_path: Path, sessions: Sessions
) -> None:
    rates = at(0.2, name)
    liar = Liar(rates, rates, seed=2)
    with FaultServer(liar) as server:
        project = project_of(tmp_path, server, "openai", "anthropic", prompts=3, n=2)
        code, session = run(project, sessions)
    assert code == 0, session.err
    assert liar.told[name] > 0
    assert set(check_rows(project, prompts=3, n=2, judges=1)) <= {"not_selected"}  # a 429 never costs a row


@pytest.mark.parametrize("name", ["429-huge", "503-huge", "429-far-date"])
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_told_to_come_back_in_days_the_run_ends_and_says_so(
    name: str, api: str, tmp_path: Path, sessions: Sessions
) -> None:
    liar = Liar(at(0.3, name), at(0.3, name))
    with FaultServer(liar) as server:
        project = project_of(tmp_path, server, api, api)
        code, session = run(project, sessions)
        assert code == 4
        assert re.search(r"It asks for a wait of [\d.]+ hours", session.err)
        assert session.err.strip().count("\n") == 0
        server.script = honest
        code, session = run(project, sessions)
        assert code == 0, session.err
        assert not set(check_rows(project, prompts=PROMPTS, n=N, judges=1)) - {"not_selected"}


def test_told_to_come_back_in_minutes_it_says_that_it_waits(tmp_path: Path, sessions: Sessions) -> None:
    liar = Liar(at(0.3, "429-minutes"))
    with FaultServer(liar) as server:
        project = project_of(tmp_path, server, "openai", "anthropic")
        session = sessions.start(project.folder, "generate", "config.yaml")
        deadline = time.monotonic() + SECONDS
        while "Waiting 1500 s" not in session.err and time.monotonic() < deadline:
            time.sleep(0.02)
        session.signal(signal.SIGINT)
        assert session.wait(10) == 130
    assert session.err.count("Waiting 1500 s") == 1  # not once for each request that was refused
    assert "too many requests (429): Not now" in session.err


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path, sessions: Sessions) -> None:
    with FaultServer(honest) as server:
        project = project_of(tmp_path, server, "openai", "anthropic")
    code, session = sessions.run(
        project.folder,
        *("generate", "config.yaml"),
        constants=QUICK | {"rlaif.engine.breaker:Breaker.FIRST_PATIENCE": 0.5},
    )
    assert code == 4
    assert "no connection" in session.err


def test_a_server_that_only_fails_ends_the_run_and_it_goes_on_when_it_is_back(
    tmp_path: Path, sessions: Sessions
) -> None:
    with FaultServer(Liar(None, at(1.0, "500"))) as server:
        project = project_of(tmp_path, server, "openai", "anthropic")
        code, session = sessions.run(
            project.folder,
            *("generate", "config.yaml"),
            constants=QUICK | {"rlaif.engine.breaker:Breaker.PATIENCE": 0.5},
        )
        assert code == 4
        assert "What was answered is kept" in session.err
        sampled = sum(server.counts.values())
        server.script = honest
        server.asked.clear()
        code, session = run(project, sessions)
        assert code == 0, session.err
        assert len(server.asked) <= PROMPTS * N + PROMPTS * 3 * 2
        assert sampled > 0
        assert json.loads((project.run / "manifest.json").read_text())["counts"]["judgements"]["unjudged"] == {}
