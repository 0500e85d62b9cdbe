"""Configs: every mistake becomes one sentence with file, line and nearest key; no YAML crashes the reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from rlaif.config.base import Config, apply_overrides, parse_yaml, read_yaml, validate
from rlaif.errors import InputError


class Judge(Config):
    models: list[str]
    orders: str = "both"


class Run(Config):
    name: str
    n: int = Field(4, gt=0)
    judge: Judge | None = None
    weights: dict[str, float] = {}

    @model_validator(mode="after")
    def _cross_rule(self) -> "Run":
        if self.name == "forbidden":
            raise ValueError("'forbidden' is no name; take another.")
        return self


def mistakes(text: str, *overrides: str, hints: dict[str, str] | None = None) -> str:
    """What is said about a file that must be refused."""
    said = refusal(lambda: load(text, *overrides, hints=hints))
    assert said is not None
    return said


def refusal(call: Callable[[], object]) -> str | None:
    try:
        call()
    except InputError as error:
        return str(error)
    return None


def load(text: str, *overrides: str, hints: dict[str, str] | None = None) -> Run:
    document = parse_yaml(text, "run.yaml")
    apply_overrides(document, overrides)
    return validate(Run, document, lambda key: (hints or {}).get(key))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml: the file is empty."),
        ("# only a comment\n", "run.yaml: the file is empty."),
        ("- a\n", "run.yaml:1: expected keys and values (`key: value`) at the top level."),
        ("name: a\n\tn: 1\n", "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token."),
        ("name: a\n---\nname: b\n", "run.yaml:2: not valid YAML: but found another document."),
        ("name: a\nn: 1\nname: b\n", "run.yaml:3: the key 'name' is already given on line 1."),
        ("name: a\njudge:\n  models: []\n  models: []\n", "run.yaml:4: the key 'models' is already given on line 3."),
        ("name: a\nb: \x07\n", "run.yaml:2: not valid YAML: the character U+0007."),
        ("2024-01-01: a\n", "run.yaml:1: the key 2024-01-01 is not text; write it in quotes."),
        ("2024-99-01: a\n", "run.yaml:1: not a valid value: month must be in 1..12."),
        (
            "name: !secret a\n",
            "run.yaml:1: not a valid value: could not determine a constructor for the tag '!secret'.",
        ),
        ("name: !!set {a}\n", "run.yaml:1: !!set is not supported here; write text, a number, true or false."),
        ('name: "\\ud800"\n', "run.yaml:1: not a valid value: half of a surrogate pair is no character."),
        ("name: &a\n  b: *a\n", "run.yaml:1: nested too deeply or too large; does an anchor (&) contain itself?"),
        ("name: " + "[" * 3000, "run.yaml: nested too deeply."),
    ],
)
def test_what_is_no_usable_yaml_is_named_with_its_line(text: str, message: str) -> None:
    assert mistakes(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n: 1\n", "run.yaml:1: the key 'name' is missing."),
        ("name: a\nn: 0\n", "run.yaml:2: n: must be greater than 0 (found 0)."),
        ("name: a\nn: many\n", "run.yaml:2: n: expected a whole number (found 'many')."),
        ("name: no\n", "run.yaml:1: name: expected text (found false; put it in quotes)."),
        ("name: 1.10\n", "run.yaml:1: name: expected text (found 1.1; put it in quotes)."),
        ("name:\n", "run.yaml:1: name: expected text (found nothing)."),
        ("name: a\n\njudge: x\n", "run.yaml:3: judge: expected keys and values (models, orders) (found 'x')."),
        ("name: a\njudge:\n  orders: ab\n", "run.yaml:2: the key 'judge.models' is missing."),
        ("name: a\njudge:\n  models: x\n", "run.yaml:3: judge.models: expected a list (found 'x')."),
        ("name: a\njudge:\n models:\n - x\n - {}\n", "run.yaml:5: judge.models.1: expected text."),
        ("name: a\nweights: {x: heavy}\n", "run.yaml:2: weights.x: expected a number (found 'heavy')."),
        ("name: a\nweights: {x: .nan}\n", "run.yaml:2: weights.x: must be a finite number (found nan)."),
        ("name: forbidden\n", "run.yaml:1: 'forbidden' is no name; take another."),
        ("name: a\nnmae: b\n", "run.yaml:2: unknown key 'nmae'; did you mean 'name'?"),
        ("name: a\njudge:\n models: []\n model: x\n", "run.yaml:4: unknown key 'judge.model'; did you mean 'models'?"),
        ("name: a\nzzz: b\n", "run.yaml:2: unknown key 'zzz'; known keys here: judge, n, name, weights."),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_named_with_line_and_nearest_key(text: str, message: str) -> None:
    assert mistakes(text) == message


def test_every_mistake_is_listed_at_once() -> None:
    assert mistakes("nam: a\nn: x\njudge: {models: 3}\n").split("\n") == [
        "run.yaml:1: the key 'name' is missing.",
        "run.yaml:2: n: expected a whole number (found 'x').",
        "run.yaml:3: judge.models: expected a list (found 3).",
        "run.yaml:1: unknown key 'nam'; did you mean 'name'?",
    ]


def test_a_hint_says_what_replaced_a_removed_key() -> None:
    message = mistakes("name: a\nsamples: 3\n", hints={"samples": "it is called 'n' now."})
    assert message == "run.yaml:2: unknown key 'samples'; it is called 'n' now."


def test_a_missing_file_a_folder_and_other_encodings_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    for path, said in (
        (tmp_path / "none.yaml", "no such file."),
        (tmp_path, "is a folder"),
        (tmp_path / "latin.yaml", "UTF-8"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_byte_order_mark_and_windows_lines_change_nothing() -> None:
    assert load("\ufeffname: a\r\nn: 7\r\n") == Run(name="a", n=7)


def test_anchors_and_merges_work_and_a_mappings_own_keys_win() -> None:
    text = "name: a\nweights: &base {x: 1, y: 2}\njudge: {models: []}\n"
    assert parse_yaml(text + "more:\n  <<: *base\n  y: 3\n", "f").data["more"] == {"x": 1, "y": 3}
    assert parse_yaml("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\n", "f").data["c"] == {"x": 1, "y": 2}
    with pytest.raises(InputError, match="f:2: `<<` needs an anchored mapping"):
        parse_yaml("a: &a [1]\nb: {<<: *a}\n", "f")
    with pytest.raises(InputError, match="anchor"):
        parse_yaml("a: &a {<<: *a}\n", "f")


def test_anchors_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match="too large"):
        parse_yaml("\n".join(lines), "f")


# ------------------------------------------------------------------------------------------------------- overrides


def test_settings_reach_keys_that_are_there_and_keys_that_are_not() -> None:
    base = "name: a\njudge: {models: [x, y]}\n"
    assert load(base, "n=8", "judge.models.1=z", "judge.orders=ab", "weights.k=2") == Run(
        name="a", n=8, judge=Judge(models=["x", "z"], orders="ab"), weights={"k": 2.0}
    )
    assert load("name: a\njudge:\n", "judge.models=[x]").judge == Judge(models=["x"])


def test_a_later_setting_wins() -> None:
    assert load("name: a\n", "n=2", "n=3").n == 3
    assert load("name: a\n", "weights.k=2", "weights={j: 1}").weights == {"j": 1.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n", "--set n: expected KEY=VALUE, such as --set policy.n=8."),
        ("judge..x=1", "--set judge..x=1: expected KEY=VALUE, such as --set policy.n=8."),
        ("n=[", "--set n=[: the value is not valid YAML."),
        ("n=2024-99-99", "--set n=2024-99-99: the value is not valid YAML."),
        ("name.x=1", "--set name.x=1: 'name' is 'a', which has no keys."),
        ("judge.models.5=x", "--set judge.models.5=x: '5' is no index of a list of 1."),
        ("judge.models.first=x", "--set judge.models.first=x: 'first' is no index of a list of 1."),
        ("n=x", "--set n=x: n: expected a whole number (found 'x')."),
        ("nn=1", "--set nn=1: unknown key 'nn'; did you mean 'n'?"),
        ("judge.models={a: 1}", "--set judge.models={a: 1}: judge.models: expected a list."),
    ],
)
def test_a_wrong_setting_is_named_itself_not_the_line_it_replaced(setting: str, message: str) -> None:
    assert mistakes("name: a\nn: 1\njudge: {models: [x]}\n", setting) == message


# ------------------------------------------------------------------------------------------------------------ laws

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4).filter(bool))
def test_data_written_as_yaml_comes_back(data: dict[str, Any]) -> None:
    assert parse_yaml(yaml.safe_dump(data), "f").data == data


@given(st.text(alphabet=st.sampled_from(list("ab:-?[]{}&*!|>'\"#%@,<\n\t 012~\\\u2028\ufeffé\ud800")), max_size=40))
@settings(max_examples=500)
def test_no_text_crashes_the_reader(text: str) -> None:
    said = refusal(lambda: validate(Run, parse_yaml(text, "f")))
    assert said is None or all(line.startswith("f:") for line in said.split("\n"))


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_setting_crashes(key: str, value: str) -> None:
    document = parse_yaml("name: a\njudge: {models: [x]}\n", "f")
    said = refusal(lambda: apply_overrides(document, [f"{key}={value}"]))
    assert said is None or said.startswith("--set ")
