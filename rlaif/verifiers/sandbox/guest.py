"""What runs inside of a sandbox: reads one job from a descriptor, does it, and answers on another.

    {"do": "script", "sources": [...]}                 a program of its own: standard input in, standard output out
    {"do": "session", "sources": [...], "nonce": ...}  defines a program, then answers what it is asked about it
    {"do": "tests", ...}                               runs tests whose functions under test live elsewhere: each use of
                                                       one is asked for on the channel

``sources``: ways to read one answer as a program; the first that is valid Python is run.

A session and tests never share a process. The candidate's code owns the process it is in, this file included, so the
other end believes nothing that it says; all that a candidate can do is give other *values*, and these are what is
judged. What lives in the tests' process is the task's own code, this file, and plain values.

Standard library only, and it imports nothing of this package but values.py beside it: fork-servers load both by path.
"""

import ast
import atexit
import builtins
import os
import sys
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

if __package__:
    from rlaif.verifiers.sandbox import values
else:  # in a sandbox: found by path
    import values  # type: ignore[import-not-found, no-redef, unused-ignore]

Message = dict[str, Any]
MAX_TEXT = 500  # of an error's message: for a reader, never for a verdict
MAX_LITERALS = 200


def main(control_in: int, control_out: int) -> None:
    """Do the one job there is. Returns when the host has no more questions; a script ends the process."""
    channel = Channel(control_in, control_out)
    job = channel.read()
    if "random" in sys.modules:
        sys.modules["random"].seed()  # every fork of a server would draw the same numbers
    if job is not None:
        {"script": run_script, "session": run_session, "tests": run_tests}[job["do"]](job, channel)


class Channel:
    """Lines of JSON. Its functions are its own from the start: a candidate that replaces ``os.read`` or ``json.loads``
    by mistake still gets its answers through."""

    def __init__(self, control_in: int, control_out: int) -> None:
        self.control_in, self.control_out = control_in, control_out
        self.buffer = bytearray()
        self.os_read, self.os_write = os.read, os.write

    def read(self) -> Message | None:
        while (end := self.buffer.find(b"\n")) < 0:
            chunk = self.os_read(self.control_in, 1 << 16)
            if not chunk:
                return None
            self.buffer += chunk
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        message: Message = values.loads(line)
        return message

    def write(self, message: Message) -> None:
        data = memoryview(values.dumps(message))
        while data:
            data = data[self.os_write(self.control_out, data) :]


# ------------------------------------------------------------------------------------------- the candidate's program


def compile_first(sources: list[str], filename: str) -> tuple[ast.Module, types.CodeType]:
    """The first of ``sources`` that is Python. Raises what was wrong with the first one."""
    first: BaseException | None = None
    for source in sources:
        try:
            tree = ast.parse(source, filename)
            return tree, compile(tree, filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            first = first or error
    raise first or SyntaxError("there is no program")


def new_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses, enum and typing look their module up
    return module


def open_program(job: Message, channel: Channel) -> types.CodeType | None:
    """Compile the candidate's program and tell what it looks like, before any of it runs."""
    try:
        tree, program = compile_first(job["sources"], "solution.py")
        channel.write({"outline": outline(tree)})
        return program
    except BaseException as error:  # noqa: BLE001
        channel.write({"invalid": f"{type(error).__name__}: {error}"[:MAX_TEXT]})
        return None


def run_script(job: Message, channel: Channel) -> None:
    """A program with its standard streams; its exit code is all it says besides. Ends the process."""
    program = open_program(job, channel)
    code = 1
    sys.argv = ["solution.py"]
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # an interpreter with `site` has them
    try:
        if program is not None:
            exec(program, new_module("__main__").__dict__)
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()  # as an interpreter does: wait for threads nobody joined
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, it ends the program
        traceback.print_exc(limit=-5)
        sys.stderr.flush()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def run_session(job: Message, channel: Channel) -> None:
    """Define a program, then answer questions about it."""
    program = open_program(job, channel)
    if program is None:
        return
    module = new_module("solution")
    reply: Message = {"loaded": True}
    try:
        exec(program, module.__dict__)
    except BaseException as error:  # noqa: BLE001
        reply = described(error)
    channel.write({**reply, "nonce": job["nonce"]})
    objects = Objects(module)
    while (question := channel.read()) is not None:
        channel.write({**objects.answer(question), "nonce": question["nonce"]})


class Objects:
    """The candidate's side of a session: its names, and the objects that were handed out, by number."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.numbers: dict[int, int] = {}  # by id(): one object has one number
        self.handed_out: list[Any] = []  # keeps them alive, so that an id is not used twice

    def answer(self, question: Message) -> Message:
        """Do one of `OPERATIONS`: its value, or what it raised, and its arguments where it changed them."""
        try:
            target = self.decode(question["on"])
            args = [self.decode(a) for a in question["args"]]
            kwargs = {name: self.decode(a) for name, a in question["kwargs"].items()}
            value = OPERATIONS[question["op"]](target, *args, **kwargs)
            return {"value": self.encode(value), **self.changed(question["args"], args)}
        except values.TooLarge as error:
            return {"too_large": str(error)}
        except StopIteration as error:
            return {"end": True} if question["op"] == "next" else described(error)
        except BaseException as error:  # noqa: BLE001 - a session answers, whatever happens in it
            return described(error)

    def changed(self, before: list[Any], args: list[Any]) -> Message:
        if not any(isinstance(a, list | dict) for a in before):
            return {}
        after = [self.encode(a) for a in args]
        return {"args": after} if values.dumps(after) != values.dumps(before) else {}

    def encode(self, value: Any) -> Any:
        return values.encode(value, self.box)

    def box(self, value: Any) -> Message:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.handed_out)
            self.handed_out.append(value)
        return {"object": [number, type(value).__name__[:80]]}

    def decode(self, data: Any) -> Any:
        return values.decode(data, self.unbox)

    def unbox(self, data: Message) -> Any:
        if "object" in data:
            return self.handed_out[data["object"][0]]
        return resolve(self.module, data["name"])


def resolve(module: types.ModuleType, path: str) -> Any:
    """``f``, ``Solution.f`` or ``Solution().f``: a method is taken from a new object of its class."""
    found: Any = None
    for step, part in enumerate(path.split(".")):
        name = part.removesuffix("()")
        if step == 0:
            if name not in module.__dict__:
                raise NameError(f"name {name!r} is not defined")
            found = module.__dict__[name]
        else:
            found = getattr(found() if isinstance(found, type) else found, name)
        if part.endswith("()"):
            found = found()
    return found


# What may be asked about an object. No operators: how a candidate's object compares or adds up must decide no test.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, /, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "bool": bool,
    "len": len,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
    "isinstance": lambda target, value: isinstance(value, target),
}


def described(error: BaseException) -> Message:
    """An exception as plain data: the builtin types it is of (nearest first), its arguments, its text."""
    try:
        text = f"{type(error).__name__}: {error}"[:MAX_TEXT]
    except BaseException:  # noqa: BLE001 - its __str__ is the candidate's
        text = type(error).__name__
    if not isinstance(error, Exception):
        return {"exit": text}
    names = [t.__name__ for t in type(error).__mro__ if t.__module__ == "builtins" and t is not object]
    try:
        args = values.encode(list(error.args))
    except (values.Unencodable, values.TooLarge):
        args = [text]
    return {"raised": names, "with": args, "text": text}


# ---------------------------------------------------------------------------------- what a program looks like, unrun

_SUSPICIOUS_NAMES = {"_getframe": "frames", "f_back": "frames", "gc": "gc", "ctypes": "ctypes", "settrace": "frames"}
_EXITS = frozenset(("exit", "_exit", "quit", "SystemExit", "SkipTest", "abort"))
_CHANCE = frozenset(("random", "secrets", "urandom", "time", "perf_counter", "time_ns"))


def outline(tree: ast.Module) -> Message:
    """Marks of special pleading, and the literals in the code. Telemetry: it decides nothing."""
    flags: set[str] = set()
    literals: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__eq__", "__ne__", "__bool__", "__hash__"):
            flags.add("defines_" + node.name.strip("_"))
        for name in names_in(node):
            if name in _SUSPICIOUS_NAMES:
                flags.add("uses_" + _SUSPICIOUS_NAMES[name])
            elif name in _EXITS:
                flags.add("exits")
            elif name in _CHANCE:
                flags.add("chance")
        if isinstance(node, ast.Constant | ast.List | ast.Tuple | ast.Dict) and len(literals) < MAX_LITERALS:
            literal = literal_text(node)
            if literal:
                literals[literal] = None
    return {"flags": sorted(flags), "literals": list(literals)}


def names_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.alias):
        yield from node.name.split(".")
    elif isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")


def literal_text(node: ast.AST) -> str:
    """A literal of some size as text, the same for equal ones; "" for others."""
    try:
        text = repr(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ""
    return text if 3 <= len(text) <= 200 else ""


# ------------------------------------------------------------------------------------------------------- the tests


def run_tests(job: Message, channel: Channel) -> None:
    """Run tests against a candidate that lives elsewhere, and report; once more, from the start, for every further
    message.

    job: ``given`` (sources that come before: imports, the prompt's own helpers), ``remote`` (names that are the
    candidate's), ``setup`` and ``tests`` (sources), ``entry`` (an expression over these names, or None), ``go_on``
    (after a failed assert: for partial credit).
    """
    while True:
        channel.write({"report": run_tests_once(job, channel)})
        if channel.read() is None:
            return


def run_tests_once(job: Message, channel: Channel) -> Message:
    tally = Tally()
    relay = Relay(channel, tally)
    module = new_module("tests")
    if tally.run(lambda: prepare_space(module.__dict__, job, relay)):
        for source in job["tests"]:
            unit = partial(run_unit, source, job["go_on"], module.__dict__)
            if not tally.run(unit) and not job["go_on"]:
                break
        else:
            run_collected(module, job, relay)
    return tally.report(relay)


def prepare_space(space: dict[str, Any], job: Message, relay: "Relay") -> None:
    space["__tally__"] = relay.tally
    for source in job["given"]:
        exec(compile(source, "given.py", "exec", dont_inherit=True), space)
    solution = new_module("solution")  # for tests that import what they test
    for name in job["remote"]:
        space[name] = Remote(relay, {"name": name})
        setattr(solution, name, space[name])
    if job["entry"] is not None:
        space["candidate"] = eval(job["entry"], space)
    for source in job["setup"]:
        exec(compile(source, "setup.py", "exec", dont_inherit=True), space)


def run_unit(source: str, go_on: bool, space: dict[str, Any]) -> None:
    tree = ast.parse(source, "tests.py")
    tree = ast.fix_missing_locations(Counted(go_on).visit(tree))
    exec(compile(tree, "tests.py", "exec", dont_inherit=True), space)


def run_collected(module: types.ModuleType, job: Message, relay: "Relay") -> None:
    """What the tests have defined: ``check(candidate)``, test functions, unittest classes."""
    tally = relay.tally
    defined = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == "tests"}
    if job["check"]:
        if "check" in job["remote"]:  # then that is what check(candidate) means by the name
            module.__dict__["check"] = Remote(relay, {"name": "check"})
        tally.run(lambda: defined["check"](module.__dict__["candidate"]))
    for name, value in defined.items():
        if name.startswith("test") and isinstance(value, types.FunctionType) and not required(value):
            tally.count(value)
    if "unittest" in sys.modules:
        run_unittest([value for value in defined.values() if isinstance(value, type)], tally)


def required(function: types.FunctionType) -> int:
    """How many arguments it must be given."""
    return function.__code__.co_argcount - len(function.__defaults__ or ())


def run_unittest(classes: list[type], tally: "Tally") -> None:
    import unittest

    class Result(unittest.TestResult):
        """Only a plain success is one: a skipped test has shown nothing."""

        def addSuccess(self, test: unittest.TestCase) -> None:
            tally.passed()

        def addError(self, test: unittest.TestCase, err: Any) -> None:
            tally.failed(err[1])

        def addFailure(self, test: unittest.TestCase, err: Any) -> None:
            tally.failed(err[1])

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:
            tally.failed(AssertionError(f"skipped: {reason}"))

        def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
            tally.passed()

        def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
            tally.failed(AssertionError("an expected failure passed"))

        def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
            if err is not None:
                tally.failed(err[1])

    for case in classes:
        if issubclass(case, unittest.TestCase):
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(Result())


class Tally:
    """How many asserts (and test methods) held, and what was first to fail."""

    def __init__(self) -> None:
        self.held = 0
        self.broken = 0
        self.first: Message = {}

    def passed(self) -> None:
        self.held += 1

    def failed(self, error: BaseException) -> None:
        self.broken += 1
        if not self.first:
            malformed = isinstance(error, values.Malformed)
            asserted = isinstance(error, AssertionError)
            self.first = {
                "why": "malformed" if malformed else "assert" if asserted else "raised",
                "text": describe_failure(error)[:MAX_TEXT],
            }

    def run(self, unit: Callable[[], Any]) -> bool:
        """Whether it ran to its end."""
        try:
            unit()
        except BaseException as error:  # noqa: BLE001 - SystemExit and SkipTest included: they are failures
            self.failed(error)
            return False
        return True

    def count(self, unit: Callable[[], Any]) -> None:
        if self.run(unit):
            self.passed()

    def report(self, relay: "Relay") -> Message:
        return {"held": self.held, "broken": self.broken, "refused": relay.refused, **self.first}


def describe_failure(error: BaseException) -> str:
    """The error, and the line of the tests it came from."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "tests.py"]
    where = f"tests, line {lines[-1].lineno}: " if lines else ""
    text = str(error)
    return f"{where}{type(error).__name__}{': ' if text else ''}{text}"


class Counted(ast.NodeTransformer):
    """Counts every assert that holds; with ``go_on``, counts one that fails and goes on."""

    def __init__(self, go_on: bool) -> None:
        self.go_on = go_on

    def visit_Assert(self, node: ast.Assert) -> Any:
        counted = [node, *ast.parse("__tally__.passed()").body]
        if not self.go_on:
            return [ast.copy_location(statement, node) for statement in counted]
        attempt = ast.parse("try:\n pass\nexcept Exception as error:\n __tally__.failed(error)").body[0]
        assert isinstance(attempt, ast.Try)
        attempt.body = counted
        return ast.copy_location(attempt, node)


# ------------------------------------------------------------------------------ the candidate, as its tests see it


class Relay:
    """Asks the host to ask the candidate."""

    def __init__(self, channel: Channel, tally: Tally) -> None:
        self.channel, self.tally = channel, tally
        self.remotes: dict[int, Remote] = {}
        self.refused = ""

    def ask(self, op: str, on: Message, args: tuple[Any, ...] = (), kwargs: Message | None = None) -> Any:
        encoded = [values.encode(a, self.box) for a in args]
        named = {name: values.encode(a, self.box) for name, a in (kwargs or {}).items()}
        self.channel.write({"op": op, "on": on, "args": encoded, "kwargs": named, "held": self.tally.held})
        reply = self.channel.read()
        if reply is None:
            os._exit(1)
        if "end" in reply:
            raise _End
        for old, new in zip(args, reply.get("args", ()), strict=False):
            write_back(old, values.decode(new, self.unbox))
        if "raised" in reply:
            raise rebuilt(reply)
        return values.decode(reply["value"], self.unbox)

    def box(self, value: Any) -> Message:
        if isinstance(value, Remote):
            return value._on
        raise TypeError(f"a {type(value).__name__} cannot be given to a function that runs in another process")

    def unbox(self, data: Message) -> "Remote":
        number, kind = data["object"]
        if type(number) is not int:
            raise values.Malformed("the number of an object is no int")
        if number not in self.remotes:
            self.remotes[number] = Remote(self, data, str(kind))
        return self.remotes[number]


class _End(Exception):
    """An iterator of the candidate's has ended (a StopIteration would end the wrong one)."""


class Remote:
    """A function, class or object of the candidate's, in the tests' process. Calls, attributes, items and iteration are
    asked for, and come as plain values; ``==`` is identity, and there is neither order nor arithmetic: a candidate's
    own operators must not decide a test."""

    __slots__ = ("_kind", "_on", "_relay")
    _relay: Relay
    _on: Message
    _kind: str

    def __init__(self, relay: Relay, on: Message, kind: str = "") -> None:
        for name, value in (("_relay", relay), ("_on", on), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._relay.ask("call", self._on, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._relay.ask("getattr", self._on, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._relay.ask("setattr", self._on, (name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._relay.ask("getitem", self._on, (key,))

    def __len__(self) -> int:
        length: int = self._relay.ask("len", self._on)
        return length

    def __iter__(self) -> Iterator[Any]:
        iterator = self._relay.ask("iter", self._on)
        if not isinstance(iterator, Remote):
            raise values.Malformed("an iterator that is none")
        return iterator

    def __next__(self) -> Any:
        try:
            return self._relay.ask("next", self._on)
        except _End:
            raise StopIteration from None

    def __str__(self) -> str:
        return str(self._relay.ask("str", self._on))

    def __repr__(self) -> str:
        return str(self._relay.ask("repr", self._on))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._relay.ask("isinstance", self._on, (value,)) is True

    def __bool__(self) -> bool:
        return self._relay.ask("bool", self._on) is True

    def __eq__(self, other: object) -> bool:
        if self is not other:
            self._relay.refused = self._relay.refused or f"they compare an object of type {self._kind or 'function'}"
        return self is other

    __hash__ = object.__hash__


def rebuilt(reply: Message) -> Exception:
    """The candidate's exception as the nearest builtin one, so that tests can expect it. A StopIteration would end a
    loop of the tests early and let the rest count as passed, so it comes as a RuntimeError."""
    text = str(reply["text"])
    for name in reply["raised"]:
        kind = getattr(builtins, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            continue
        if issubclass(kind, StopIteration | StopAsyncIteration):
            return RuntimeError(text)
        try:
            return kind(*values.decode(reply["with"]))
        except TypeError:
            continue
    return Exception(text)


def write_back(old: Any, new: Any) -> None:
    """Change ``old`` in place into ``new``, as a call in the same process would have, keeping inner objects."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            for i, (before, after) in enumerate(zip(old, new, strict=True)):
                old[i] = kept(before, after)
        else:
            old[:] = new
    elif isinstance(old, dict) and isinstance(new, dict):
        merged = {key: kept(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, deque | bytearray) and type(old) is type(new):
        old.clear()
        old.extend(new)


def kept(before: Any, after: Any) -> Any:
    if type(before) is type(after) and isinstance(before, list | dict | set | deque | bytearray):
        write_back(before, after)
        return before
    return after
