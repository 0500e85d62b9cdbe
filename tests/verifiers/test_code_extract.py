"""Which program is meant by an answer, what its output is compared to, and what a row asks for."""

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import TaskError
from rlaif.verifiers.code.compare import Compare, difference
from rlaif.verifiers.code.extract import fenced_blocks, programs, without_thinking
from rlaif.verifiers.code.tasks import Calls, Program, Streams, read_task

ADD = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 0\n"
PROMPT = 'import math\n\ndef add(a, b):\n    """The sum of a and b."""\n'


def first_valid(sources: tuple[str, ...]) -> str:
    """As the sandbox chooses."""
    for source in sources:
        try:
            compile(source, "x", "exec")
        except SyntaxError:
            continue
        return source
    return ""


def added(text: str, **options: Any) -> Any:
    """What the answer's add(2, 3) gives. These answers are this file's own, so they may run here."""
    space: dict[str, Any] = {}
    exec(first_valid(programs(text, ("add",), **options)), space)
    return space["add"](2, 3)


@pytest.mark.parametrize(
    "text",
    [
        ADD,
        f"```python\n{ADD}```",
        f"Sure!\n\n```py\n{ADD}```\nIt adds.",
        f"~~~\n{ADD}~~~",
        f"````python\n{ADD}\n````",
        f"```\n{ADD}```",
        f"```Python\n{ADD}",
        "1. Here:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```",
        f"```bash\npip install x\n```\n```python\n{ADD}```\nOutput:\n```\n5\n```",
        f"```python\n{ADD}```\nExample:\n```python\nprint(add(1, 2)); raise ValueError\n```",
        f"```python\n{WRONG}```\nNo, that is wrong:\n```python\n{ADD}```",
        f"Here is the function:\n{ADD}",
        f"Here is the function:\n{ADD}\nIt returns the sum of its arguments.",
        f"<think>\n```python\n{WRONG}```\n</think>\n{ADD}",
        f"I think so.\n```python\n{WRONG}```\n</think>\n```python\n{ADD}```",
        ADD.replace("\n", "\r\n"),
        f"```python\r\n{ADD}```",
        "import math\n" + ADD,
        "from functools import *\n\n@lru_cache\n" + ADD,
    ],
)
def test_the_program_is_found(text: str) -> None:
    assert added(text) == 5


@pytest.mark.parametrize(
    "text",
    [
        "    return a + b\n",
        "\treturn a + b",
        "  return a + b",
        "return a + b",
        "c = a + b\n    return c",
        "    c = a\n    return c + b\n",
        "```python\n    return a + b\n```",
        "```python\nreturn a + b\n```",
        ADD,
        PROMPT + "    return a + b\n",
        f"```python\n{PROMPT}    return math.floor(a + b)\n```",
        "```python\ndef add(a, b):\n    return math.floor(a + b)\n```",
    ],
)
def test_an_answer_may_go_on_from_the_prompt_or_repeat_it(text: str) -> None:
    assert added(text, prompt=PROMPT) == 5


@pytest.mark.parametrize("text", ["", "  \n", "<think>" + ADD, "```python\n```", f"<think>\n{ADD}\n</think>\n"])
def test_no_answer_is_no_program(text: str) -> None:
    assert programs(text) == ()


def test_prose_is_no_program() -> None:
    assert first_valid(programs("I would add the two numbers.")) == ""


def test_which_of_several_blocks_is_a_choice() -> None:
    text = f"```python\nK = 1\n{WRONG}```\nor\n```python\n{ADD}```"
    assert added(text) == 5
    assert added(text, blocks="first") == 0
    assert first_valid(programs(text, blocks="all")).count("def add") == 2


def test_thoughts_that_do_not_end_hold_no_answer() -> None:
    assert without_thinking("a<think>b") == "a"
    assert without_thinking("b</think>c") == "c"
    assert without_thinking("<think>b</think>c<think>d</think>e") == "e"


@given(st.text(alphabet="`~ \nab<think>/", max_size=200))
def test_no_text_breaks_reading_it(text: str) -> None:
    assert all(isinstance(p, str) for p in programs(text, ("add",), PROMPT))


def test_a_long_answer_is_read_in_linear_time() -> None:
    for piece in ("```\n", "x = 1\n", "`" * 99 + "\n", " " * 99 + "\n", "<think>"):
        list(fenced_blocks(piece * (500_000 // len(piece))))
        programs(piece * (500_000 // len(piece)), ("add",))


# --------------------------------------------------------------------------------------------------------- compare


@pytest.mark.parametrize(
    ("expected", "printed", "same_in"),
    [
        ("1 2\n3\n", "1 2\n3\n", "exact tokens floats"),
        ("1 2\n3", "1 2\n3\n", "exact tokens floats"),
        ("1 2\r\n3\r\n", "1 2\n3\n", "exact tokens floats"),
        ("1 2\n3\n", "1  2 \n3\n\n", "tokens floats"),
        ("1 2\n3\n", "1 2 3\n", ""),
        ("1 2\n3\n", "1 2\n", ""),
        ("1 2\n3\n", "1 2\n3\n4\n", ""),
        ("1\n\n2\n", "1\n2\n", ""),
        ("\n1\n", "1\n", ""),
        ("0.3333333", "0.33333333", "floats"),
        ("1e-7", "0.0", "floats"),
        ("1000000.0", "1000000.5", "floats"),
        ("1.0", "1.001", ""),
        ("1", "1.0", "floats"),
        ("1000000000", "1000000001", ""),
        ("nan", "nan", "exact tokens floats"),
        ("nan", "NaN", ""),
        ("inf", "1e999", ""),
        ("1_0.0", "10.0", ""),
        ("YES", "yes", ""),
        ("é", "é", "exact tokens floats"),
        ("", "", "exact tokens floats"),
        ("", "x", ""),
    ],
)
def test_output_is_compared_by_lines_and_words(expected: str, printed: str, same_in: str) -> None:
    modes: tuple[Compare, ...] = ("exact", "tokens", "floats")
    same = {how for how in modes if difference(expected, printed.encode(), how, 1e-6) is None}
    assert same == set(same_in.split())


def test_a_difference_names_its_line() -> None:
    assert difference("1\n2\n", b"1\n3\n", "tokens", 0) == "line 2: '3', expected '2'"


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"tests": "assert add(1, 2) == 3"}, Program),
        ({"test_list": ["assert add(1, 2) == 3"], "code": ADD}, Program),
        ({"tests": '["assert add(1, 2) == 3"]'}, Program),
        ({"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"}, Program),
        ({"tests": [{"input": "1", "output": "2"}]}, Streams),
        ({"tests": '[{"input": "1", "output": "2"}]'}, Streams),
        ({"tests": {"inputs": ["1"], "outputs": ["2"]}}, Streams),
        ({"tests": '{"inputs": [[1]], "outputs": [2], "fn_name": "f"}'}, Calls),
        ({"tests": [{"args": [1, 2], "output": 3}], "entry_point": "add"}, Calls),
        ({"tests": [{"input": [1, 2], "output": 3}], "entry_point": "add"}, Calls),
        ({"tests": [{"input": "1\n2", "output": "3"}], "entry_point": "Solution.add"}, Calls),
    ],
)
def test_the_shape_of_the_tests_says_how_they_are_run(row: dict[str, Any], kind: type) -> None:
    assert isinstance(read_task(row).tests, kind)


def test_lines_of_json_are_arguments() -> None:
    task = read_task({"tests": [{"input": '[1, 2]\n"a"', "output": "[3]"}], "entry_point": "f"}).tests
    assert isinstance(task, Calls)
    assert task.cases == (([[1, 2], "a"], {}, [3]),)


def test_what_the_tests_use_is_the_answers_unless_it_is_known_otherwise() -> None:
    tests = "import os\nn = 3\nassert math.isclose(area(n), pi * 9) and len(str(shape)) and Counter('a')"
    task = read_task({"tests": tests, "reference": "import math\ndef area(r): return math.pi * r * r\nshape = 1"}).tests
    assert isinstance(task, Program)
    assert sorted(task.remote) == ["area", "shape"]
    given = ast.unparse(ast.parse(task.given[0]))
    assert given.split("\n") == ["from collections import Counter", "import math", "from math import pi"]


@pytest.mark.parametrize("prompt", [PROMPT, f"Complete this:\n```python\n{PROMPT}```\nReturn only code."])
def test_the_python_in_a_prompt_is_what_answers_go_on_from(prompt: str) -> None:
    row = {"tests": "assert add(1, 2) == 3", "entry_point": "add"}
    assert read_task({**row, "prompt": prompt}).prompt == PROMPT
    assert read_task({**row, "prompt": "Write add(a, b)."}).prompt == ""
    assert read_task({**row, "prompt": "def subtract(a, b):\n"}).prompt == ""


def test_a_name_of_a_builtin_is_the_answers_if_the_reference_defines_it() -> None:
    row = {"test_list": ["assert sum(10, 15) == 6"], "code": "def sum(a, b): return 6"}
    task = read_task(row).tests
    assert isinstance(task, Program)
    assert task.remote == ("sum",)


@pytest.mark.parametrize(
    "row",
    [
        {"tests": "assert add(1)", "entry_point": 3},
        {"tests": "assert add(1)", "reference": 3},
        {"tests": "x = add(1)", "entry_point": "add"},
        {"tests": ["assert add(1)", 2]},
        {"tests": "assert add(1)", "setup": 3},
        {"tests": "def check(candidate):\n    assert candidate(1) == f()"},
        {"tests": [{"input": 1, "output": "2"}]},
        {"tests": [{"input": "1", "output": 2}]},
        {"tests": [{"input": "1", "output": "2"}], "checker": "lambda: True"},
        {"tests": [{"input": "{", "output": "2"}], "entry_point": "f"},
        {"tests": "(" * 100_000},
        {"tests": "x = '\0'"},
    ],
    ids=lambda row: str(row)[:60],
)
def test_a_wrong_row_is_told_when_it_is_read(row: dict[str, Any]) -> None:
    with pytest.raises(TaskError) as told:
        read_task(row)
    assert str(told.value).endswith(".")
