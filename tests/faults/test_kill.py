"""Exactly once: killed at any moment, a run goes on, ends in the same files, and asks nothing that was answered."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlaif.engine import Ledger
from rlaif.errors import InputError
from rlaif.hashing import digest
from rlaif.types import ChatRequest
from tests.faults import world
from tests.faults.sessions import Sessions
from tests.faults.world import Project, honest, write_project
from tests.servers.fault_server import Asked, FaultServer

PROMPTS, N, JUDGES = 6, 2, 2
REQUESTS = PROMPTS * (N + 2 * JUDGES) + 1  # and the question for log-probs
LATENCY = 0.05
AT_ONCE = 2  # requests of one model
SETTINGS = {"max_concurrency": AT_ONCE}


def content_asked(asked: Asked) -> str:
    """What a request says, whatever its protocol."""
    body = asked.body
    messages = [("system", block["text"]) for block in body.get("system", ())]
    for message in body["messages"]:
        said = message["content"]
        messages.append((message["role"], said if isinstance(said, str) else "".join(block["text"] for block in said)))
    return digest(body["model"], messages, body.get("seed"))


def content_stored(model: str, request: ChatRequest) -> str:
    return digest(model, [(m.role, m.content) for m in request.messages], request.seed)


def stored(project: Project) -> set[str]:
    """The contents of all requests whose reply is in the ledger."""
    path = project.run / "ledger.sqlite"
    if not path.exists():
        return set()
    try:
        ledger = Ledger.open(path, read_only=True)
    except InputError as error:
        if "is empty" in str(error):  # killed while it was made
            return set()
        raise
    found = set()
    with ledger:
        sql = "SELECT key, json_extract(identity, '$.model') FROM requests JOIN sources ON sources.id = source"
        for key, model in ledger.read(sql):
            request = ledger.request(key)
            if ledger.reply(key) is not None and request is not None:
                found.add(content_stored(model, request))
    return found


@dataclass
class Watch:
    """Counts what the server is asked, session by session, against what the ledger held before each of them.

    ``resent``: requests asked again. ``in_flight``: requests under way at the kills, that is asked and not stored."""

    server: FaultServer
    project: Project
    asked: Counter[str] = field(default_factory=Counter)
    may: Counter[str] = field(default_factory=Counter)  # how often each may be asked once more
    stored: set[str] = field(default_factory=set)

    def session_ended(self) -> set[str]:
        """Check one session; returns what it asked."""
        while self.server.open_connections:  # whatever it had sent is read and counted
            time.sleep(0.002)
        contents = [content_asked(asked) for asked in self.server.asked]
        self.server.asked.clear()
        again = self.stored & set(contents)
        assert not again, f"{len(again)} requests were asked although their replies were stored"
        self.asked.update(contents)
        self.stored = stored(self.project)
        for content in set(self.asked) - self.stored:
            self.may[content] += 1
        over = [content for content, times in self.asked.items() if times > 1 + self.may[content]]
        assert not over, f"{len(over)} requests were asked more often than they were under way at a kill"
        return set(contents)

    @property
    def resent(self) -> int:
        return self.asked.total() - len(self.asked)

    @property
    def in_flight(self) -> int:
        return self.may.total()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(honest, latency=LATENCY) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, server: FaultServer) -> Project:
    server.asked.clear()
    return write_project(tmp_path / "killed", server, prompts=PROMPTS, n=N, settings=SETTINGS)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, server: FaultServer, sessions: Sessions) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    project = write_project(tmp_path_factory.mktemp("reference"), server, prompts=PROMPTS, n=N, settings=SETTINGS)
    server.asked.clear()
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    assert len(server.asked) == REQUESTS
    assert not world.check_rows(project, prompts=PROMPTS, n=N, judges=JUDGES)
    return project.files()


def kill_until(
    number: int, folder: Path, server: FaultServer, sessions: Sessions, reference: dict[str, bytes], seed: int
) -> tuple[list[Watch], Counter[str]]:
    """Runs, each killed at random moments until it has ended, until there were ``number`` kills.
    Returns what was watched, and how far the runs were when they were killed."""
    drawn = random.Random(seed)
    watches: list[Watch] = []
    when: Counter[str] = Counter()
    while when.total() < number:
        project = write_project(folder / f"run-{len(watches)}", server, prompts=PROMPTS, n=N, settings=SETTINGS)
        server.asked.clear()
        watch = Watch(server, project)
        watches.append(watch)
        spared = drawn.randint(0, 3)  # kills of a run that has all its answers and only writes its files
        while True:
            session = sessions.start(project.folder, "generate", "config.yaml")
            left = REQUESTS - len(watch.stored)
            if (left or spared) and when.total() < number:
                _random_moment(drawn, server, left)
                code = session.kill()
                spared -= left == 0
            else:
                code = session.wait()
            watch.session_ended()
            if code == 0:
                break
            assert code == -signal.SIGKILL, session.err
            when[_progress(watch)] += 1
        assert len(watch.asked) == REQUESTS
        assert project.files() == reference
    # and once more: nothing is left to ask, and nothing changes
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    assert watch.session_ended() == set()
    assert project.files() == reference
    return watches, when


def _random_moment(drawn: random.Random, server: FaultServer, left: int) -> None:
    """One in three is drawn by the clock; the others by how much has been asked, so that they fall between a request
    and its reply however slow the machine is."""
    end = time.monotonic() + drawn.uniform(0, 1.5)
    if left and drawn.random() < 2 / 3:
        asked, deadline = drawn.randint(1, left), time.monotonic() + 10
        while len(server.asked) < asked and time.monotonic() < deadline:
            time.sleep(0.001)
        end = time.monotonic() + drawn.uniform(0, 1.5 * LATENCY)
    time.sleep(max(0.0, end - time.monotonic()))


def _progress(watch: Watch) -> str:
    if len(watch.stored) == REQUESTS:
        return "all answered"
    return "some answered" if watch.stored else "none answered"


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_output_is_the_same_and_no_stored_reply_is_asked_for_again(
    kills: int,
    tmp_path: Path,
    server: FaultServer,
    sessions: Sessions,
    reference: dict[str, bytes],
) -> None:
    watches, when = kill_until(kills, tmp_path, server, sessions, reference, seed=kills)
    resent, in_flight = sum(w.resent for w in watches), sum(w.in_flight for w in watches)
    print(
        f"{kills} kills in {len(watches)} runs of {REQUESTS} requests ({dict(when)}): {in_flight} requests were under"
        f" way at a kill, {resent} were asked again, none of them stored"
    )
    assert when.total() == kills
    assert resent <= in_flight <= kills * AT_ONCE * (1 + JUDGES)
    assert when["some answered"] > 0


def test_a_real_command_killed_goes_on_too(
    server: FaultServer, project: Project, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    watch = Watch(server, project)
    command = [sys.executable, "-m", "rlaif", "generate", "config.yaml"]
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: len(server.asked) >= REQUESTS // 2)
        running.kill()
    watch.session_ended()
    assert 0 < len(watch.stored) < REQUESTS
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    watch.session_ended()
    assert len(watch.asked) == REQUESTS
    assert project.files() == reference


# ------------------------------------------------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_says_how_to_go_on_exits_130_and_the_run_goes_on(
    times: int, server: FaultServer, project: Project, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    watch = Watch(server, project)
    session = sessions.start(project.folder, "generate", "config.yaml")
    wait_until(lambda: len(server.asked) >= 12)
    for _ in range(times):  # the impatient press it twice
        session.signal(signal.SIGINT)
    assert session.wait(10) == 130
    assert session.err.endswith("rlaif: interrupted; running the same command again goes on from here.\n")
    assert "Traceback" not in session.err
    watch.session_ended()
    assert not (project.run / "pairs.jsonl").exists()
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    watch.session_ended()
    assert len(watch.asked) == REQUESTS
    assert watch.resent <= AT_ONCE * (1 + JUDGES)
    assert project.files() == reference


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_130_or_done_without_a_traceback(
    server: FaultServer, project: Project, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    drawn, watch = random.Random(1), Watch(server, project)
    for _ in range(40):
        session = sessions.start(project.folder, "generate", "config.yaml")
        _random_moment(drawn, server, REQUESTS - len(watch.stored))
        session.signal(signal.SIGINT)
        code = session.wait(10)
        assert code in (0, 130), session.err
        assert "Traceback" not in session.err
        assert "Exception" not in session.err
        watch.session_ended()
    assert sessions.run(project.folder, "generate", "config.yaml")[0] == 0
    watch.session_ended()
    assert len(watch.asked) == REQUESTS
    assert project.files() == reference


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


# ------------------------------------------------------------------------------------------- one folder, one process


def test_a_second_process_is_refused_in_one_sentence_and_the_first_ends_undisturbed(
    server: FaultServer, project: Project, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    first = sessions.start(project.folder, "generate", "config.yaml")
    wait_until(lambda: len(server.asked) >= 5)
    first.signal(signal.SIGSTOP)  # it holds the folder all the same
    for extra in ((), ("--fresh",), ("--reparse",)):
        code, second = sessions.run(project.folder, "generate", "config.yaml", *extra)
        assert code == 2
        assert f"another run (process {first.pid}) is writing to this folder" in second.err
        assert second.err.count("\n") == 1
        assert not (project.run / "report.html").exists()
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.err
    assert len(server.asked) == REQUESTS
    assert project.files() == reference


# ----------------------------------------------------------------------------------------------- only what is new


@pytest.fixture
def finished(project: Project, server: FaultServer, sessions: Sessions) -> Project:
    assert sessions.run(project.folder, "generate", "config.yaml")[0] == 0
    server.asked.clear()
    return project


def test_a_change_of_the_pairing_sends_nothing(finished: Project, server: FaultServer, sessions: Sessions) -> None:
    code, _ = sessions.run(finished.folder, "generate", "config.yaml", "--set", "pairing.strategy=all")
    assert code == 0
    assert server.asked == []
    code, _ = sessions.run(finished.folder, "generate", "config.yaml", "--set", "pairing.min_margin=0.5")
    assert code == 0
    assert server.asked == []


def test_new_prompts_send_only_what_they_need(finished: Project, server: FaultServer, sessions: Sessions) -> None:
    before = finished.rows("pairs")
    (finished.folder / "prompts.jsonl").write_text(
        world.prompt_lines(1, first=100) + world.prompt_lines(PROMPTS) + world.prompt_lines(1, first=200)
    )
    assert sessions.run(finished.folder, "generate", "config.yaml")[0] == 0
    assert len(server.asked) == 2 * (N + 2 * JUDGES)
    assert finished.rows("pairs")[1:-1] == before


def test_an_edited_principle_repays_only_its_own_judgements(
    finished: Project, server: FaultServer, sessions: Sessions
) -> None:
    drawn = Counter(row["principles"][0] for row in finished.rows("judgements"))
    assert set(drawn) == {"better", "finer"}
    finished.edit("constitution.yaml", "Which response is finer?", "Which response is the finer one?")
    assert sessions.run(finished.folder, "generate", "config.yaml")[0] == 0
    assert len(server.asked) == drawn["finer"]
    assert all(world.is_judging(asked) for asked in server.asked)


@pytest.mark.parametrize("damage", ["body", "checksum"])
def test_a_damaged_reply_is_asked_for_once_more(
    damage: str, finished: Project, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    with sqlite3.connect(finished.run / "ledger.sqlite") as db:
        (value,) = db.execute(f"SELECT {damage} FROM replies WHERE id = 7").fetchone()
        db.execute(f"UPDATE replies SET {damage} = ? WHERE id = 7", (value[:-1] + bytes([value[-1] ^ 1]),))
    db.close()
    for _ in range(2):
        assert sessions.run(finished.folder, "generate", "config.yaml")[0] == 0
        assert finished.files() == reference
        assert len(server.asked) == 1


# -------------------------------------------------------------------------------------------------------- --reparse


def test_reparse_makes_every_file_anew_and_sends_nothing(
    finished: Project, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    for name in world.SAME:
        (finished.run / name).unlink()
    code, session = sessions.run(finished.folder, "generate", "config.yaml", "--reparse")
    assert code == 0, session.err
    assert finished.files() == reference
    assert server.asked == []


def test_reparse_needs_no_server_and_no_key(
    finished: Project, server: FaultServer, sessions: Sessions, reference: dict[str, bytes]
) -> None:
    key = ("--set", "policy.model.api_key_env=NO_SUCH_KEY", "--set", "judge.models.1.api_key_env=NO_SUCH_KEY")
    code, session = sessions.run(finished.folder, "generate", "config.yaml", *key)
    assert code == 2
    assert "NO_SUCH_KEY is not set" in session.err
    code, session = sessions.run(finished.folder, "generate", "config.yaml", *key, "--reparse")
    assert code == 0, session.err
    assert finished.files() == reference
    assert server.asked == []


def test_reparse_makes_rows_that_say_so_of_what_is_not_in_the_ledger(
    server: FaultServer, project: Project, sessions: Sessions
) -> None:
    session = sessions.start(project.folder, "generate", "config.yaml")
    wait_until(lambda: len(server.asked) >= REQUESTS * 2 // 3)
    assert session.kill() == -signal.SIGKILL
    watch = Watch(server, project)
    watch.session_ended()
    code, session = sessions.run(project.folder, "generate", "config.yaml", "--reparse", "--set", "max_unjudged=1.0")
    assert code == 0, session.err
    reasons = world.check_rows(project, prompts=PROMPTS, n=N, judges=JUDGES)
    assert reasons["provider_error"] > 0
    failed = [row["detail"] for row in project.rows("dropped") if row["reason"] == "provider_error"]
    failed += [row["outcome"]["detail"] for row in project.rows("judgements") if row["outcome"]["kind"] == "unjudged"]
    assert all("not in the ledger" in detail for detail in failed)
    answered = len(project.rows("completions")) + len(project.rows("judgements"))
    answered -= sum(row["outcome"]["kind"] == "unjudged" for row in project.rows("judgements"))
    assert answered == len(watch.stored) - 1  # the question for log-probs makes no row
    assert watch.session_ended() == set()


def test_reparse_of_a_folder_without_replies_is_refused(project: Project, sessions: Sessions) -> None:
    code, session = sessions.run(project.folder, "generate", "config.yaml", "--reparse")
    assert code == 2
    assert "no reply is stored there yet" in session.err
    assert not project.run.exists()


def test_reparse_and_fresh_exclude_each_other(finished: Project, sessions: Sessions) -> None:
    before = finished.files()
    code, session = sessions.run(finished.folder, "generate", "config.yaml", "--reparse", "--fresh")
    assert code == 2
    assert "exclude each other" in session.err
    assert finished.files() == before


def test_a_folder_that_a_session_was_killed_in_as_it_began_can_be_used_with_any_config(
    project: Project, sessions: Sessions, server: FaultServer, reference: dict[str, bytes]
) -> None:
    project.run.mkdir()
    (project.run / "ledger.sqlite.lock").write_text("123456")
    code, session = sessions.run(project.folder, "generate", "config.yaml")
    assert code == 0, session.err
    # and with --fresh, in the moment between the old ledger and the new
    (project.run / "ledger.sqlite").write_bytes(b"")
    code, session = sessions.run(project.folder, "generate", "config.yaml", "--set", "seed=1")
    assert code == 0, session.err
    assert project.files() != reference
