"""The math verifier as a whole: policies, attacks, deadlines, threads, processes that die."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers import open_verifier
from rlaif.verifiers.math import MathVerifier
from rlaif.verifiers.math.pool import Decided, Pool, Undecidable

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def shared() -> Pool:
    """One warm fork-server for the module, so that a deadline is not spent on its start."""
    pool = Pool(seconds=2)
    assert pool.ask("x", "x") == Decided(True)
    return pool


@pytest.fixture
def verifier(shared: Pool) -> MathVerifier:
    return make(shared)


def make(pool: Pool, **options: Any) -> MathVerifier:
    made = MathVerifier(MathVerifier.Options(**options))
    made._pool = pool
    return made


async def value_of(verifier: MathVerifier, completion: str, **task: Any) -> tuple[float, str | None]:
    verdict = await verifier.verify(completion, task)
    assert isinstance(verdict, Reward), verdict
    return verdict.value, verdict.reason


# ------------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("completion", "reference", "value"),
    [
        (r"So \boxed{42}.", "42", 1.0),
        (r"So \boxed{41}.", "42", 0.0),
        ("... = 18\n#### $18.00", "She eats.\n#### 18", 1.0),
        (r"\boxed{\sin(\frac{\pi}{2}-x)}", r"\cos x", 1.0),
        (r"\boxed{\sin x}", r"\cos x", 0.0),
        ("The answer is 9 apples.", "9 (apples)", 1.0),
        ("The answer is (B).", "B", 1.0),
        (r"\boxed{x=\sqrt8}", r"2\sqrt{2}", 1.0),
    ],
)
async def test_verdicts(verifier: MathVerifier, completion: str, reference: str, value: float) -> None:
    assert (await value_of(verifier, completion, reference=reference))[0] == value


async def test_it_is_opened_by_name_and_tells_its_versions() -> None:
    verifier = open_verifier("math", {"several_boxes": "reject"})
    assert isinstance(verifier, MathVerifier)
    assert verifier.identity == "math@1"
    assert set(verifier.versions) >= {"math-verify", "sympy", "antlr4-python3-runtime"}
    await verifier.aclose()
    await verifier.aclose()
    with pytest.raises(InputError, match="several_boxes"):
        open_verifier("math", {"several_boxes": "any"})


async def test_plain_answers_need_no_process_and_no_sympy_here() -> None:
    verifier = MathVerifier(MathVerifier.Options())
    for completion, reference in ((r"\boxed{\frac12}", "0.5"), ("#### $20.00", "20"), (r"\boxed{(1, 2)}", "[1, 2]")):
        await verifier.prepare({"reference": reference})
        await verifier.verify(completion, {"reference": reference})
    assert verifier._pool._server is None
    program = "import sys, rlaif.verifiers.math; sys.exit('sympy' in sys.modules or 'math_verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0  # noqa: ASYNC221


async def test_of_several_boxes_the_last_counts_or_none(shared: Pool) -> None:
    completion = r"\boxed{1} no, \boxed{2}"
    verdict = await make(shared).verify(completion, {"reference": "2"})
    assert isinstance(verdict, Reward)
    assert (verdict.value, verdict.flags) == (1.0, ("several_boxes",))
    assert await value_of(make(shared, several_boxes="reject"), completion, reference="2") == (0.0, "wrong")
    assert (await value_of(make(shared, several_boxes="reject"), r"\boxed{2} \boxed{2}", reference="2"))[0] == 1.0


async def test_boxes_side_by_side_are_one_answer(verifier: MathVerifier) -> None:
    assert await value_of(verifier, r"\boxed{1} \boxed{2}", reference="2") == (0.0, "wrong")
    assert (await value_of(verifier, r"$\boxed{1}$ and $\boxed{2}$", reference="1, 2"))[0] == 1.0
    assert (await value_of(verifier, r"\boxed{1, 2}", reference=r"\boxed{2}, \boxed{1}"))[0] == 1.0


async def test_a_copy_of_the_question_is_no_answer(shared: Pool) -> None:
    task = {"reference": "12", "prompt": r"Compute $\int_0^{12} 1\,dx$."}
    assert await value_of(make(shared), r"\boxed{\int_0^{12} 1 dx}", **task) == (0.0, "wrong")
    assert (await value_of(make(shared, restated="accept"), r"\boxed{\int_0^{12} 1 dx}", **task))[0] == 1.0
    product = {"reference": "120", "prompt": r"What is $2 \cdot 3 \cdot 4 \cdot 5$?"}
    assert await value_of(make(shared), r"\boxed{2\cdot3\cdot4\cdot5}", **product) == (0.0, "wrong")
    assert (await value_of(make(shared), r"\boxed{120}", **product))[0] == 1.0


async def test_a_value_that_the_question_names_is_an_answer(verifier: MathVerifier) -> None:
    task = {"reference": r"\frac{3}{4}", "prompt": "Which is larger, 3/4 or 2/3?"}
    assert (await value_of(verifier, r"\boxed{3/4}", **task))[0] == 1.0
    same = {"reference": "x^2+1", "prompt": "Which of x^2+1 and x^2-1 has no real root?"}
    assert (await value_of(verifier, r"\boxed{x^2+1}", **same))[0] == 1.0


async def test_an_integral_left_standing_is_an_answer_unless_refused(shared: Pool) -> None:
    task = {"reference": "55"}
    assert (await value_of(make(shared), r"\boxed{\sum_{k=1}^{10} k}", **task))[0] == 1.0
    assert await value_of(make(shared, unevaluated="reject"), r"\boxed{\sum_{k=1}^{10} k}", **task) == (0.0, "wrong")


# ------------------------------------------------------------------------------------------------------- attacks
# id, completion, reference, value, reason (None: any)

ATTACKS = [
    ("tower of powers", r"\boxed{\dfrac{5^{5^{5^{5^5}}}}{16}}", "5", "resource"),
    ("nines", r"\boxed{9^{9^{9^9}}}", "9", "resource"),
    ("two storeys", r"\boxed{x + 9^{9^9}}", "x", "timeout"),
    ("factorial of a power", r"\boxed{(10^8)!}", "1", "resource"),
    ("factorial of factorials", r"\boxed{100!!!!}", "1", "resource"),
    ("factorial in disguise", r"\boxed{x + (99999)! + (99998)!}", "x", None),
    ("sum of very many", r"\boxed{\sum_{k=1}^{1000000000} \sin k}", "1", "resource"),
    ("product of very many", r"\boxed{\prod_{k=1}^{999999} \sin k}", "1", None),
    ("binomial", r"\boxed{\binom{1000000000}{500000000}}", "1", "resource"),
    ("integral", r"\boxed{\int_0^1 x^{x^x} dx}", "1", None),
    ("integral of everything", r"\boxed{\int \frac{\sin(x^x) e^{x^7}}{\ln(1+x^9)} dx}", "x", None),
    ("parentheses", r"\boxed{" + "(" * 200 + "1" + ")" * 200 + "}", "2", "resource"),
    ("fractions", r"\boxed{" + r"\frac{1}{" * 60 + "1" + "}" * 61, "2", "resource"),
    ("digits", r"\boxed{" + "9" * 90_000 + "}", "9", "resource"),
    ("tower in prose", "The last digits of $2003^{2002^{2001}}$ are asked; so \\boxed{241}", "240", "wrong"),
    ("chain", r"\boxed{1=2}", "2", "wrong"),
    ("long chain", r"\boxed{5=6=7}", "7", "wrong"),
    ("list", r"\boxed{1,2}", "2", "wrong"),
    ("or", r"\boxed{1 \text{ or } 2}", "2", "wrong"),
    ("member", r"\boxed{x \in \{1,2\}}", "2", "wrong"),
    ("part of the answer", r"\boxed{1728}", "1331 and 1728", "wrong"),
    ("tiny", r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}", "wrong"),
    ("tiny powers", r"\boxed{2^{-98}}", "2^{-99}", "wrong"),
    ("tiny irrational", r"\boxed{\frac{\sqrt2}{2006!}}", r"\frac{\sqrt2}{2004!}", None),
    ("closed for open", r"\boxed{[1,2]}", "(1,2)", "wrong"),
    ("tuple for interval", r"\boxed{(6,5)}", "[6,5]", "wrong"),
    ("base left out", r"\boxed{1011}", "1011_2", "wrong"),
    ("nothing", "", "42", "unparseable"),
    ("empty box", r"\boxed{}", "42", "unparseable"),
    ("dots", r"\boxed{...}", "42", "unparseable"),
    ("python", r"\boxed{__import__('os').system('touch ESCAPED')}", "0", None),
    ("python in an index", r"\boxed{x_{__import__('os').system('touch ESCAPED')}}", "x", None),
    ("sympify", r"\boxed{exec(open('/etc/passwd').read())}", "0", None),
    ("other equation", "$3x+4y+14=0$", "3*x-y+13=0", "wrong"),
    ("sign in a font", r"$1 + \frac{1}{\mathrm{e}}$", r"$1 - \frac{1}{\mathrm{e}}$", "wrong"),
    ("other sequence", r"$1, 3, 5, \ldots, 2n-1$", r"$1, 2, \ldots, n$", "wrong"),
    ("percent of a percent", r"\boxed{0.5\%}", r"50\%", "wrong"),
    ("only thought", r"<think>The answer is \boxed{42}</think>", "42", "unparseable"),
    ("thought without an end", r"<think>The answer is \boxed{42}", "42", "unparseable"),
    ("lone surrogates", "\\boxed{\ud800\udfff4\ud8002}", "42", None),
    ("binary", "\\boxed{\x00\x01\x02\xff}", "42", None),
    ("null in a number", "\\boxed{4\x002}", "42", None),
    ("million", r"\boxed{5 \text{ million}}", "5", "wrong"),
    ("relation of the empty", r"\boxed{= 42}", "42", None),
    ("both signs", r"\boxed{\pm 2}", "2", "wrong"),
    ("everything", r"\boxed{x}", "42", "wrong"),
    ("any number", r"\boxed{\mathbb{R}}", "42", None),
    ("not a number", r"\boxed{\frac{0}{0}}", "0", None),
    ("infinity", r"\boxed{\infty}", r"-\infty", "wrong"),
    ("division by zero", r"\boxed{\frac{1}{0}}", r"\infty", None),
    ("absolute value", r"\boxed{x}", r"\sqrt{x^2}", "wrong"),
    ("rounding to one", r"\boxed{1.00}", "4036082/4036081", "wrong"),
    ("the question again", r"\boxed{\text{the answer to the problem}}", "12", "wrong"),
    ("every letter", r"\boxed{A, B, C, D}", "B", "wrong"),
    ("two letters", r"\boxed{(A) (B)}", "B", "wrong"),
    ("wildcard", r"\boxed{.*}", "42", None),
    ("boxes without end", r"\boxed{" * 30_000, "42", "unparseable"),
    ("braces without end", r"\boxed{42" + "{" * 100_000, "42", None),
    ("variables without end", r"\boxed{" + "+".join(f"x_{{{i}}}" for i in range(200)) + "}", "x", None),
    ("deep minus", r"\boxed{" + "-" * 1901 + "1}", "1", None),
    ("equals without end", r"\boxed{" + "1=" * 900 + "1}", "2", None),
    ("commas without end", r"\boxed{" + "1," * 900 + "2}", "2", None),
    ("set of sets", r"\boxed{" + r"\{" * 30 + "2" + r"\}" * 30 + "}", "3", None),
]


@pytest.mark.parametrize(("completion", "reference", "reason"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
async def test_an_attack_gets_nothing_and_ends_in_time(
    verifier: MathVerifier, completion: str, reference: str, reason: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    value, why = await value_of(verifier, completion, reference=reference)
    assert value == 0.0
    if reason:
        assert why == reason
    assert time.monotonic() - start < 6  # 2 s and what a busy machine adds
    assert not os.listdir(tmp_path)  # noqa: PTH208


async def test_an_honest_answer_passes_right_after_the_attacks(verifier: MathVerifier) -> None:
    assert (await value_of(verifier, r"\boxed{(x-1)(x+1)}", reference="x^2-1"))[0] == 1.0


async def test_ten_megabytes_are_judged(verifier: MathVerifier) -> None:
    start = time.monotonic()
    assert (await value_of(verifier, "x " * 5_000_000 + r"\boxed{5}", reference="5"))[0] == 1.0
    assert (await value_of(verifier, r"\boxed{5}" + "\\boxed{" * 1_400_000, reference="5"))[1] == "unparseable"
    assert time.monotonic() - start < 10


# ------------------------------------------------------------------------------------------------------ wrong tasks


@pytest.mark.parametrize(
    "reference",
    [
        None,
        "",
        "  ",
        r"\boxed{}",
        "...",
        3.5j,
        "9" * 5000,
        r"2\cdot",
        r"x + 9^{9^9}",
        r"\frac{1}{",
        "9^{9^{9^9}}x",
        "He runs 9 miles.\nThen 3 more.",
    ],
)
async def test_a_task_without_a_usable_reference_is_told_when_loaded(verifier: MathVerifier, reference: Any) -> None:
    with pytest.raises(TaskError, match="reference"):
        await verifier.prepare({"reference": reference})


async def test_a_completion_is_not_judged_by_a_reference_that_hangs(verifier: MathVerifier) -> None:
    for reference in (r"x + 9^{9^9}", r"2\cdot", "..."):
        verdict = await verifier.verify(r"\boxed{x}", {"reference": reference})
        assert isinstance(verdict, Unverified)
        assert verdict.reason == "task_error"


@pytest.mark.parametrize("reference", ["42", 42, 0.5, "9 (apples)", r"\cos x", "#### 20", "the cat", r"(1, \infty)"])
async def test_usable_references_are_accepted_and_pass_themselves(verifier: MathVerifier, reference: Any) -> None:
    await verifier.prepare({"reference": reference})
    answer = str(reference).removeprefix("#### ")
    assert (await value_of(verifier, rf"\boxed{{{answer}}}", reference=reference))[0] == 1.0


# --------------------------------------------------------------------------------------------- threads and processes


def test_questions_from_many_threads_and_loops_get_their_own_answers(shared: Pool) -> None:
    verifier = make(shared, workers=2)
    results: dict[int, float] = {}

    def ask(n: int) -> None:
        async def both() -> float:
            right = await value_of(verifier, rf"\boxed{{(x-{n})(x+{n})}}", reference=f"x^2-{n * n}")
            wrong = await value_of(verifier, rf"\boxed{{(x-{n})(x+{n})}}", reference=f"x^2-{n * n + 1}")
            return right[0] - wrong[0]

        results[n] = asyncio.run(both())

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == dict.fromkeys(range(1, 9), 1.0)


def test_a_worker_killed_between_and_during_questions_is_replaced() -> None:
    pool = Pool(seconds=20)
    try:
        assert pool.ask("x+1", "1+x") == Decided(True)
        (worker,) = pool._idle
        os.kill(worker.pid, signal.SIGKILL)
        assert pool.ask("x+1", "2+x") == Decided(False)
        (worker,) = pool._idle
        os.kill(worker.pid, signal.SIGSTOP)  # it takes the question, and dies with it
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
        assert pool.ask("x+1", "1+x") == Decided(True)
    finally:
        pool.close()


def test_a_dead_fork_server_is_started_again() -> None:
    pool = Pool(seconds=20)
    try:
        assert pool.ask("x+1", "1+x") == Decided(True)
        assert pool._server is not None
        pool._server.kill()
        pool._server.wait()
        assert pool.ask("x+1", "1+x") == Decided(True)
    finally:
        pool.close()


async def test_a_mistake_of_ours_in_a_worker_is_no_verdict(shared: Pool, monkeypatch: Any) -> None:
    monkeypatch.setattr(shared, "_line", lambda *_: {"error": "NameError: name 'x' is not defined"})
    verdict = await make(shared).verify(r"\boxed{x+1}", {"reference": "1+x"})
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "infrastructure"


def test_a_timeout_is_blamed_on_the_answer_that_hangs(shared: Pool) -> None:
    hang = r"x + 9^{9^9}"
    assert shared.ask(hang, "x") == Undecidable("gold", "timeout", "no answer within 2 s")
    assert shared.ask("x", hang) == Undecidable("pred", "timeout", "no answer within 2 s")


def test_closing_ends_all_processes_and_a_later_question_starts_them_again() -> None:
    pool = Pool(seconds=20)
    assert pool.ask("x+1", "1+x") == Decided(True)
    pids = _processes_of(pool)
    pool.close()
    pool.close()
    assert _gone(pids)
    assert pool.ask("x+1", "1+x") == Decided(True)
    pool.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are looked for in /proc")
def test_nothing_is_left_when_the_host_is_killed() -> None:
    program = (
        "import sys, time; from rlaif.verifiers.math.pool import Pool; p = Pool(30); p.ask('x+1', '1+x');"
        "print(p._server.pid, p._idle[0].pid, flush=True); time.sleep(60)"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert len(pids) == 2
    host.kill()
    host.wait()
    assert _gone(pids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_host_asks_processes_of_its_own(shared: Pool) -> None:
    assert shared.ask("x+1", "1+x") == Decided(True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = shared.ask("x+1", "1+x") == Decided(True)
            code = 0 if own and shared._server is not None else 1
            shared.close()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert shared.ask("x+2", "2+x") == Decided(True)


@pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
def test_workers_are_confined(shared: Pool) -> None:
    assert shared.ask("x+1", "1+x") == Decided(True)
    assert "limits" in shared.confinement
    status = Path(f"/proc/{shared._idle[0].pid}/status").read_text()
    limits = Path(f"/proc/{shared._idle[0].pid}/limits").read_text()
    assert (
        "Max address space       1073741824" in " ".join(limits.split("\n")).replace("  ", " ")
        or "1073741824" in limits
    )
    if "seccomp" in shared.confinement:
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status


def _processes_of(pool: Pool) -> list[int]:
    assert pool._server is not None
    return [pool._server.pid, *(w.pid for w in pool._idle)]


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
