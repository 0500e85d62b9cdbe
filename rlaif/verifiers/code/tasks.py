"""A row as a code task: what is asked for, and how an answer is tested.

The shape of the row's tests says how (see `read_task`); nothing is executed here, and an answer that is empty of tests,
or whose tests cannot be read, is a TaskError: there is no task that everybody passes.
"""

import ast
import builtins
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlaif.errors import TaskError
from rlaif.verifiers.code.extract import fenced_blocks
from rlaif.verifiers.sandbox import values

Mode = Literal["auto", "call", "io", "tests"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Calls:
    """Arguments in, values out: (arguments, keyword arguments, expected value), all encoded (sandbox/values.py)."""

    entry: str
    cases: tuple[tuple[list[Any], dict[str, Any], Any], ...]


@dataclass(frozen=True)
class Streams:
    """Standard input in, standard output out. ``checker``: source of ``check(input, output, expected) -> bool``."""

    cases: tuple[tuple[str, str], ...]
    checker: str | None = None


@dataclass(frozen=True)
class Program:
    """Test code, to be run in a process of its own (sandbox/guest.py, `run_tests`)."""

    given: tuple[str, ...]
    remote: tuple[str, ...]
    setup: tuple[str, ...]
    tests: tuple[str, ...]
    entry: str | None
    check: bool


@dataclass(frozen=True)
class CodeTask:
    """``prompt``: Python that answers go on from ("" for none). ``names``: what an answer should define.
    ``literals``: the expected values that are worth noticing in an answer's code."""

    tests: Calls | Streams | Program
    prompt: str = ""
    names: tuple[str, ...] = ()
    reference: str | None = None
    literals: frozenset[str] = field(default_factory=frozenset)


def read_task(row: Row, mode: Mode = "auto") -> CodeTask:
    """The task of a row. Raises TaskError.

    ==========================================================  ==================================================
    ``tests`` (or ``test``, ``test_list``)                      mode
    ==========================================================  ==================================================
    Python source, or a list of it (asserts,                    "tests"; ``test_setup_code`` and ``test_imports``
    ``check(candidate)``, test functions, unittest classes)     come first
    list of ``{args, kwargs?, output}``                         "call" of ``entry_point``
    list of ``{input, output}`` with texts                      "io"; with an ``entry_point``, "call": a line of
                                                                JSON an argument
    ``{inputs: [...], outputs: [...], fn_name?}``               the same, column by column
    ==========================================================  ==================================================

    A text that is a JSON list or object is read as one. ``reference`` (or ``canonical_solution``, ``code``) is an
    answer that passes; ``prompt`` is used where it, or a fenced block in it, is Python that defines the entry
    point.
    """
    tests = _decoded(_first(row, "tests", "test", "test_list"))
    if not tests:
        raise TaskError(
            "the code task has no tests; give `tests`: asserts, check(candidate), or {input, output} pairs."
        )
    if isinstance(tests, Mapping):
        entry = _entry(tests) or _entry(row)
        tests = _zipped(tests)
    else:
        entry = _entry(row)
    prompt = _python_prompt(row.get("prompt"), entry)
    reference = _text(row, "reference", "canonical_solution", "code", "solution")
    found = _shape(tests, entry, row) if mode == "auto" else mode
    if found == "io":
        return CodeTask(_streams(tests, row), reference=reference)
    if found == "call":
        if entry is None:
            raise TaskError("tests of calls need `entry_point`: the name of the function to call.")
        calls = _calls(tests, entry)
        expected = (repr(case["output"]) for case in tests if "output" in case)
        return CodeTask(calls, prompt, (_root(entry),), reference, _noticeable(expected))
    program, literals = _program(tests, entry, prompt, reference, row)
    names = (_root(entry),) if entry else program.remote
    return CodeTask(program, prompt, names, reference, _noticeable(literals))


# ---------------------------------------------------------------------------------------------------- columns


def _first(row: Row, *columns: str) -> Any:
    return next((row[c] for c in columns if row.get(c) is not None), None)


def _text(row: Row, *columns: str) -> str | None:
    found = _first(row, *columns)
    if found is not None and not isinstance(found, str):
        raise TaskError(f"the reference of a code task is source text (found {type(found).__name__}).")
    return found


def _entry(row: Row) -> str | None:
    found = _first(row, "entry_point", "fn_name")
    if found is None or found == "":
        return None
    entry = found.strip() if isinstance(found, str) else ""
    parts = entry.removesuffix("()").replace("().", ".").split(".")
    if not all(part.isidentifier() for part in parts):
        raise TaskError(f"entry_point {found!r} is no name; write `f`, `Class.f` or `Class().f`.")
    return entry


def _root(entry: str) -> str:
    return entry.split(".")[0].removesuffix("()")


def _decoded(tests: Any) -> Any:
    """A list or object that a column of text holds as JSON."""
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(tests)
        except (ValueError, RecursionError):
            pass  # a program may begin with a bracket too
    return tests


def _zipped(tests: Mapping[str, Any]) -> list[dict[str, Any]]:
    inputs, outputs = tests.get("inputs", tests.get("input")), tests.get("outputs", tests.get("output"))
    if not (isinstance(inputs, Sequence) and isinstance(outputs, Sequence) and len(inputs) == len(outputs) > 0):
        raise TaskError("tests given as an object need `inputs` and `outputs`, two lists of one length above 0.")
    return [{"input": i, "output": o} for i, o in zip(inputs, outputs, strict=True)]


def _shape(tests: Any, entry: str | None, row: Row) -> Mode:
    if isinstance(tests, str) or (isinstance(tests, list | tuple) and all(isinstance(t, str) for t in tests)):
        return "tests"
    if not (isinstance(tests, list | tuple) and all(isinstance(t, Mapping) for t in tests)):
        raise TaskError("the tests are neither Python source, nor a list of it, nor a list of {input, output}.")
    asks_for_call = [("args" in t or "kwargs" in t or (entry is not None and "input" in t)) for t in tests]
    return "call" if all(asks_for_call) else "io"


def _python_prompt(prompt: Any, entry: str | None) -> str:
    """The prompt, or a fenced block in it, that is Python and begins the entry point; else ""."""
    if not isinstance(prompt, str) or entry is None or len(prompt) > 100_000:
        return ""
    for code in (prompt, *(block for _, block in fenced_blocks(prompt))):
        for tail in ("", "\n    pass\n"):
            tree = _parsed(code + tail)
            if tree is not None and _root(entry) in _defined(tree):
                return code
    return ""


# ------------------------------------------------------------------------------------------------ call and io


def _streams(tests: Any, row: Row) -> Streams:
    cases = []
    for number, case in enumerate(_cases(tests)):
        given, expected = case.get("input", case.get("stdin", "")), _first(case, "output", "expected", "stdout")
        if not isinstance(given, str) or not isinstance(expected, str):
            raise TaskError(f"test {number}: input and output of a program are texts.")
        try:
            (given + expected).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise TaskError(
                f"test {number}: its text holds half of a character, which no program can be given."
            ) from None
        cases.append((given, expected))
    checker = row.get("checker")
    if checker is not None and not (isinstance(checker, str) and "def check" in checker):
        raise TaskError("`checker` is Python source that defines check(input, output, expected).")
    return Streams(tuple(cases), checker)


def _calls(tests: Any, entry: str) -> Calls:
    cases = []
    for number, case in enumerate(_cases(tests)):
        args = case.get("args", case.get("input", []))
        if isinstance(args, str) and "args" not in case:
            try:
                args = [json.loads(line) for line in args.splitlines() if line.strip()]
            except ValueError:
                raise TaskError(f"test {number}: input of a call is a line of JSON for each argument.") from None
        kwargs = case.get("kwargs", {})
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            raise TaskError(f"test {number}: args is a list and kwargs an object.")
        if not ("output" in case or "expected" in case):
            raise TaskError(f"test {number}: no `output` to expect.")
        expected = case["output"] if "output" in case else case["expected"]
        if isinstance(expected, str) and isinstance(case.get("input"), str):
            expected = _decoded_value(expected)
        try:
            named = {str(name): values.encode(value) for name, value in kwargs.items()}
            cases.append((values.encode(list(args)), named, values.encode(expected)))
        except (values.Unencodable, values.TooLarge) as error:
            raise TaskError(f"test {number}: a value that cannot cross into a sandbox ({error}).") from None
    return Calls(entry, tuple(cases))


def _decoded_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _cases(tests: Any) -> Sequence[Row]:
    if not (isinstance(tests, list | tuple) and tests and all(isinstance(t, Mapping) for t in tests)):
        raise TaskError("these tests are a list of objects, such as [{input: ..., output: ...}].")
    return tests


# --------------------------------------------------------------------------------------------------- programs

_FROM_MODULE = {
    "typing": "Any Callable Dict Generator Iterable Iterator List Optional Sequence Set Tuple Union",
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "reduce",
    "itertools": "chain combinations permutations product",
    "math": "ceil floor gcd inf isclose pi sqrt",
}
_MODULES = {
    *("bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools"),
    *("json", "math", "operator", "random", "re", "statistics", "string", "sys", "time", "typing", "unittest"),
}
_FROM = {name: module for module, names in _FROM_MODULE.items() for name in names.split()}


def _program(
    tests: Any, entry: str | None, prompt: str, reference: str | None, row: Row
) -> tuple[Program, Iterable[str]]:
    sources = [tests] if isinstance(tests, str) else list(tests)
    setup = [*_lines(row.get("test_imports")), *_lines(_first(row, "test_setup_code", "setup"))]
    if not all(isinstance(s, str) for s in sources) or not any(s.strip() for s in sources):
        raise TaskError("the tests are empty.")
    trees = [_required(source) for source in [*setup, *sources]]
    given = [prompt + ("" if _parsed(prompt) else "\n    pass\n")] if prompt else []
    own = {name for source in given for name in _defined(_required(source))}
    asked = {_root(entry)} if entry else set()
    asked |= {name for tree in trees for name in _imported_from_solution(tree)}
    theirs = asked | (_reference_names(reference, prompt) - own)
    imports, remote = [], sorted(asked)
    for name in sorted(_free(trees) - asked):
        if name in theirs:
            remote.append(name)
        elif name in own or hasattr(builtins, name) or (name == "candidate" and entry):
            continue
        elif name in _MODULES:
            imports.append(f"import {name}")
        elif name in _FROM:
            imports.append(f"from {_FROM[name]} import {name}")
        else:
            remote.append(name)
    check = any(_checks(tree) for tree in trees)
    if check and "check" in theirs - asked:
        remote.append("check")  # a function under test that has the name of the tests' own
    if not remote and len(names := _called_by_every_assert(trees)) == 1:
        remote = sorted(names)  # a function under test that has the name of a known one: gcd, sum
        imports = [line for line in imports if line.split()[-1] not in names]
    if not remote:
        raise TaskError("the tests use nothing that an answer defines; give `entry_point`, the name of the function.")
    if not any(_can_fail(node) for tree in trees for node in ast.walk(tree)):
        raise TaskError("the tests have no assert, no test function and no unittest.TestCase.")
    if own_code := sorted(_free(trees) & {"eval", "exec"}):
        # What it evaluates may be an answer's text, and that must not run where the verdict is made.
        raise TaskError(f"the tests call {own_code[0]}(), which could run an answer's text in the tests' own process.")
    if check and entry is None:
        raise TaskError("tests that define check(candidate) need `entry_point`: the name of the function.")
    program = Program(("\n".join(imports), *given), tuple(remote), tuple(setup), tuple(sources), entry, check)
    return program, _expected_literals(trees)


def _lines(column: Any) -> list[str]:
    """A column of source, or of a list of sources."""
    if column is None:
        return []
    sources = [column] if isinstance(column, str) else column
    if not isinstance(sources, list | tuple) or not all(isinstance(s, str) for s in sources):
        raise TaskError("the setup of the tests is source text, or a list of it.")
    return [s for s in sources if s.strip()]


def _required(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in somebody's texts
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(f"the tests are not Python ({type(error).__name__}: {str(error)[:100]}).") from None


def _parsed(source: str) -> ast.Module | None:
    try:
        return _required(source)
    except TaskError:
        return None


def _defined(tree: ast.Module) -> set[str]:
    """Names that a program gives to functions, classes and values of its own at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def _reference_names(reference: str | None, prompt: str) -> set[str]:
    if reference is None:
        return set()
    tree = _parsed(prompt + reference) or _parsed(reference)
    return _defined(tree) if tree else set()


def _imported_from_solution(tree: ast.Module) -> Iterator[str]:
    """What tests take from a module ``solution``, as many say it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "solution":
            yield node.attr


def _free(trees: Iterable[ast.Module]) -> set[str]:
    """Names that the tests use and nowhere bind."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
    return used - bound


def _called_by_every_assert(trees: Iterable[ast.Module]) -> set[str]:
    asserts = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    calls = [
        {n.func.id for n in ast.walk(a) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} for a in asserts
    ]
    return set.intersection(*calls) if calls else set()


def _checks(tree: ast.Module) -> bool:
    """Whether it defines check() and leaves it to us to call it."""
    calls = [n.value.func for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    called = any(isinstance(f, ast.Name) and f.id == "check" for f in calls)
    return not called and any(isinstance(n, ast.FunctionDef) and n.name == "check" for n in tree.body)


def _can_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        return any(isinstance(b, ast.Name | ast.Attribute) and "TestCase" in ast.unparse(b) for b in node.bases)
    return isinstance(node, ast.Assert) or (isinstance(node, ast.FunctionDef) and node.name.startswith("test"))


def _expected_literals(trees: Iterable[ast.Module]) -> Iterable[str]:
    for node in (node for tree in trees for node in ast.walk(tree)):
        for comparator in node.comparators if isinstance(node, ast.Compare) else ():
            try:
                yield repr(ast.literal_eval(comparator))
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue


def _noticeable(literals: Iterable[str]) -> frozenset[str]:
    return frozenset(text for text in literals if 3 <= len(text) <= 200 and text not in ("True", "False", "None"))
