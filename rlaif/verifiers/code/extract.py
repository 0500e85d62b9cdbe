"""The program in a chat answer.

An answer may be a fenced block among prose, prose with a bare program in it, a bare program, or the rest of a function
whose head was the prompt. What it *is* only the compiler knows, and the compiler runs in the sandbox (a hostile text
can crash it): so this module gives the ways to read the answer, most literal first, and the guest takes the first that
is valid Python.
"""

import ast
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

Blocks = Literal["last", "first", "all"]

_FENCE = re.compile(r"( {0,12}|\t{0,3})(`{3,}|~{3,})[ \t]*([\w+#.-]*)")
_PYTHON = frozenset(("python", "py", "python3", "py3"))
_CODE_LINE = re.compile(r"(?:async def|def|class|import|from|@|if|for|while|try:|with)\b|@\w|[A-Za-z_]\w*\s*(?:=|\()")
_START_LINE = re.compile(r"(?:async def|def|class|import) \w|from [\w.]+ import |@\w")


def programs(text: str, names: Iterable[str] = (), prompt: str = "", blocks: Blocks = "last") -> tuple[str, ...]:
    """The ways to read an answer as a program, most literal first; none where there is no answer.

    ``names``: what it should define, which tells its block from an example's. ``prompt``: Python that the answer goes
    on from, or repeats ("" for none). ``blocks``: which of several that may be meant; "all" joins them.
    """
    text = without_thinking(text)
    fenced = list(fenced_blocks(text))
    readings = [_chosen(fenced, tuple(names), blocks)] if fenced else [text, *_without_prose(text)]
    return tuple(dict.fromkeys(p for reading in readings if reading.strip() for p in _programs(reading, prompt)))


def program_in(text: str, languages: Collection[str], blocks: Blocks = "last") -> tuple[str, ...]:
    """An answer's program in another language: its fenced block, or all of the text; () where there is none.
    ``languages``: what such a block is called."""
    text = without_thinking(text)
    fenced = list(fenced_blocks(text))
    code = _chosen(fenced, (), blocks, languages) if fenced else text
    return (code,) if code.strip() else ()


def _programs(code: str, prompt: str) -> Iterator[str]:
    if prompt:
        head = prompt if prompt.endswith("\n") else prompt + "\n"
        yield head + code
        yield _signature(head) + code  # its indentation is not the docstring's
        yield head + textwrap.indent(textwrap.dedent(code.strip("\n")), "    ")  # a body that lost its indentation
        yield head + "    " + code.lstrip()  # its first line only did
    yield code
    if code[:1] in " \t":
        yield textwrap.dedent(code)


def _signature(prompt: str) -> str:
    """The prompt without the docstring at its end."""
    try:
        last = ast.parse(prompt).body[-1]
    except (SyntaxError, ValueError, RecursionError, MemoryError, IndexError):
        return prompt
    if isinstance(last, ast.FunctionDef) and ast.get_docstring(last) is not None and len(last.body) == 1:
        return "".join(prompt.splitlines(keepends=True)[: last.body[0].lineno - 1])
    return prompt


def without_thinking(text: str) -> str:
    """The text after the model's thoughts: nothing where they do not end."""
    _, closed, rest = text.rpartition("</think>")
    if closed:
        text = rest
    return text.partition("<think>")[0]


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language in lower case, content) of every fenced block. One that is not closed goes to the end."""
    fence: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if fence is None:
            fence = _FENCE.match(line)
            lines = []
        elif _closes(line, fence[2]):
            yield fence[3].lower(), _unindented(lines, fence[1])
            fence = None
        else:
            lines.append(line)
    if fence is not None:
        yield fence[3].lower(), _unindented(lines, fence[1])


def _closes(line: str, fence: str) -> bool:
    line = line.strip()
    return len(line) >= len(fence) and set(line) == {fence[0]}


def _unindented(lines: list[str], indent: str) -> str:
    return "\n".join(line.removeprefix(indent) for line in lines) + "\n"


def _chosen(
    fenced: Sequence[tuple[str, str]], names: tuple[str, ...], blocks: Blocks, languages: Collection[str] = _PYTHON
) -> str:
    """The language's own blocks before others; those that define what is asked for before those that do not."""
    contents = [code for language, code in fenced if language in languages]
    contents = contents or [code for language, code in fenced if not language] or [code for _, code in fenced]
    if blocks == "all":
        return "\n".join(contents)
    if names:
        defines = re.compile(
            rf"^[ \t]*(?:async\s+def|def|class)\s+(?:{'|'.join(map(re.escape, names))})\b", re.MULTILINE
        )
        contents = [code for code in contents if defines.search(code)] or contents
    return contents[-1 if blocks == "last" else 0]


def _without_prose(text: str) -> Iterator[str]:
    """From the first line that begins a program; then also up to the last line that can belong to one."""
    lines = text.replace("\r\n", "\n").split("\n")
    start = next((i for i, line in enumerate(lines) if _START_LINE.match(line)), None)
    if start is None:
        return
    lines = lines[start:]
    yield "\n".join(lines) + "\n"
    while lines and not (lines[-1][:1] in (" ", "\t") and lines[-1].strip()) and not _CODE_LINE.match(lines[-1]):
        lines.pop()
    yield "\n".join(lines) + "\n"
