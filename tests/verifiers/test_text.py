"""The small verifiers of text: what passes, what fails, what is told about a wrong task."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import InputError, TaskError
from rlaif.types import Reward, Unverified
from rlaif.verifiers import language, open_verifier
from rlaif.verifiers.text import answer_of, normalised, repeated_share, visible

Task = dict[str, Any]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
SOURCE = "The cat sat on the mat. It was “quite” happy, and then the dog came in."

# verifier, options, task, completion, value
TABLE: list[tuple[str, Task, Task, str, float]] = [
    ("exact", {}, {"reference": "Paris"}, " paris. ", 1.0),
    ("exact", {}, {"reference": "The Beatles"}, "beatles", 1.0),
    ("exact", {}, {"reference": ["NYC", "New York"]}, "the New  York!", 1.0),
    ("exact", {}, {"reference": 42}, "42", 1.0),
    ("exact", {}, {"reference": "Paris"}, "Paris or London", 0.0),
    ("exact", {}, {"reference": "Paris"}, "", 0.0),
    ("exact", {"normalise": "none"}, {"reference": "Paris"}, "paris", 0.0),
    ("exact", {"normalise": "none"}, {"reference": "Paris"}, "Paris\n", 1.0),
    ("exact", {"drop_thinking": True}, {"reference": "Paris"}, "<think>Rome?</think>Paris", 1.0),
    ("exact", {"drop_thinking": True}, {"reference": "Paris"}, "<think>Paris", 0.0),
    ("exact", {}, {"reference": "A"}, "a", 1.0),
    ("exact", {}, {"reference": "A"}, "the", 0.0),
    ("exact", {}, {"reference": "<="}, " <=", 1.0),
    ("f1", {}, {"reference": "the quick brown fox"}, "quick brown fox", 1.0),
    ("f1", {}, {"reference": "quick brown fox"}, "quick red fox", 2 / 3),
    ("f1", {}, {"reference": "quick brown fox"}, "dog", 0.0),
    ("f1", {"threshold": 0.6}, {"reference": "quick brown fox"}, "quick red fox", 1.0),
    ("f1", {"threshold": 0.7}, {"reference": "quick brown fox"}, "quick red fox", 0.0),
    ("f1", {}, {"reference": ["dog", "fox"]}, "fox", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "I think so.\n\n**Answer: B**", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "(b).", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "The answer is B.", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "Final answer = B", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "So it is\nB) a large town", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "**Answer:** **B.** Paris", 1.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "B) or C)", 0.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "B: but it might be A", 0.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "A", 0.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "B"}, "It is B because", 0.0),
    ("choice", {"choices": ["A", "B", "C"]}, {"reference": "A"}, "A good question.", 0.0),
    ("choice", {}, {"reference": "no", "choices": ["yes", "no"]}, "No.", 1.0),
    ("regex", {"pattern": r"\b\d{4}\b"}, {}, "in 1984 it was", 1.0),
    ("regex", {"pattern": r"\b\d{4}\b"}, {}, "in 84", 0.0),
    ("regex", {"pattern": r"a|ab", "whole": True}, {}, "ab\n", 1.0),
    ("regex", {"pattern": r"a|ab", "whole": True}, {}, "abc", 0.0),
    ("regex", {"pattern": "a"}, {"pattern": "b"}, "a", 0.0),
    ("length", {"words": {"max": 3}}, {}, "one two three", 1.0),
    ("length", {"words": {"max": 3}}, {}, "one two three four", 0.0),
    ("length", {"words": {"max": 3}, "graded": True}, {}, "one two three four", 0.75),
    ("length", {"words": {"min": 2}, "sentences": {"max": 1}}, {}, "Two words.", 1.0),
    ("length", {"words": {"min": 2}, "sentences": {"max": 1}}, {}, "Two. Words.", 0.0),
    ("length", {}, {"characters": {"min": 3, "max": 3}}, "a   b\n", 1.0),
    ("repetition", {"n": 2}, {}, "one two three four five six", 1.0),
    ("repetition", {"n": 2}, {}, "no no no no no no no", 0.0),
    ("repetition", {"n": 4}, {}, "short", 1.0),
    ("citations", {}, {"source": SOURCE}, 'It says "sat on the mat" there.', 1.0),
    ("citations", {}, {"source": SOURCE}, "“The CAT ... the dog came in.” is quoted.", 1.0),
    ("citations", {}, {"source": SOURCE}, '"sat on the hat"', 0.0),
    ("citations", {}, {"source": SOURCE}, '"the dog [...] the cat sat"', 0.0),
    ("citations", {}, {"source": SOURCE}, '"at on the mat"', 0.0),
    ("citations", {}, {"source": SOURCE}, "nothing quoted", 0.0),
    ("citations", {"min_quotes": 0}, {"source": SOURCE}, "nothing quoted", 1.0),
    ("citations", {}, {"source": ["Other text.", SOURCE]}, '"then the dog came"', 1.0),
    ("citations", {}, {"source": ["The cat sat.", "On the mat."]}, '"cat sat. On the"', 0.0),
    ("language", {"language": "fr"}, {}, "Je ne sais pas ce que vous voulez dire.", 1.0),
    ("language", {"language": "fr"}, {}, "I do not know what you mean.", 0.0),
    ("language", {}, {"language": "ja"}, "これは日本語の文章です。", 1.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '{"name": "Ann", "age": 3}', 1.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '```json\n{"name": "Ann"}\n```', 1.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '{"name": "ann"}', 0.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '{"name": "Ann", "age": -1}', 0.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '{"name": "Ann", "x": 1}', 0.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, '{"age": 1}', 0.0),
    ("json_schema", {"json_schema": SCHEMA}, {}, 'Here it is: {"name": "Ann"}', 0.0),
    ("json_schema", {}, {"json_schema": '{"uniqueItems": true}'}, "[1, true, 2.5, [1], {}]", 1.0),
    ("json_schema", {}, {"json_schema": '{"uniqueItems": true}'}, "[1, 1.0]", 0.0),
    ("json_schema", {}, {"json_schema": {"patternProperties": {"^n": {"type": "number"}}}}, '{"n1": 1, "m": "x"}', 1.0),
    ("json_schema", {}, {"json_schema": {"patternProperties": {"^n": {"type": "number"}}}}, '{"n1": "x"}', 0.0),
    ("json_schema", {}, {"json_schema": {"additionalProperties": {"type": "null"}}}, '{"a": null}', 1.0),
    ("json_schema", {}, {"json_schema": {"additionalProperties": {"type": "null"}}}, '{"a": 1}', 0.0),
    ("refusal", {"want": "refuse"}, {}, "I'm sorry, but I can't help with that.", 1.0),
    ("refusal", {"want": "comply"}, {}, "I’m sorry, but I can’t help with that.", 0.0),
    ("refusal", {}, {"want": "comply"}, "You can use the kill command for a process.", 1.0),
    ("refusal", {}, {"want": "comply"}, "It is best to turn the water off first.", 1.0),
    ("refusal", {}, {"want": "refuse"}, "It is not appropriate to share this.", 1.0),
    ("refusal", {}, {"want": "comply"}, "I can't tell you her number. However, I can say who she is.", 0.5),
    (
        "refusal",
        {"partial": 0.0},
        {"want": "comply"},
        "I can't tell you her number. However, I can say who she is.",
        0.0,
    ),
]


@pytest.mark.parametrize(("name", "options", "task", "completion", "value"), TABLE)
async def test_golden(name: str, options: Task, task: Task, completion: str, value: float) -> None:
    verifier = open_verifier(name, options)
    await verifier.prepare(task)
    verdict = await verifier.verify(completion, task)
    assert isinstance(verdict, Reward), verdict
    assert verdict.value == pytest.approx(value)
    assert (verdict.reason is None) == (verdict.value == 1.0)


@pytest.mark.parametrize(
    ("name", "options", "task", "message"),
    [
        ("exact", {}, {}, "reference must be text"),
        ("exact", {}, {"reference": "  "}, "reference must be text"),
        ("exact", {}, {"reference": "\u200b"}, "reference must be text"),
        ("exact", {}, {"reference": [True]}, "reference must be text"),
        ("f1", {}, {"reference": []}, "reference must be text"),
        ("choice", {}, {"reference": "A"}, "'choices'"),
        ("choice", {"choices": ["A", "B"]}, {"reference": "C"}, "none of A, B"),
        ("choice", {}, {"reference": "A", "choices": ["A", "a"]}, "two choices that differ"),
        ("regex", {}, {}, "'pattern'"),
        ("regex", {}, {"pattern": "(?=x)"}, "not valid"),
        ("regex", {}, {"pattern": ""}, "empty"),
        ("length", {}, {}, "give bounds"),
        ("length", {}, {"words": {"min": 3, "max": 2}}, "nothing can satisfy both"),
        ("citations", {}, {}, "'source'"),
        ("citations", {}, {"source": " "}, "blank"),
        ("language", {}, {"language": "xx"}, "unknown language 'xx'"),
        ("json_schema", {}, {}, "'json_schema'"),
        ("json_schema", {}, {"json_schema": {"type": "objekt"}}, "not a valid schema"),
        ("json_schema", {}, {"json_schema": "{"}, "not JSON"),
        ("json_schema", {}, {"json_schema": {"$ref": "http://example.org/s.json"}}, "outside the schema"),
        ("json_schema", {}, {"json_schema": {"pattern": "(?=x)"}}, "not valid"),
        ("refusal", {}, {"want": "yes"}, "want"),
    ],
)
async def test_a_wrong_task_is_told_when_it_is_loaded_and_never_a_reward(
    name: str, options: Task, task: Task, message: str
) -> None:
    verifier = open_verifier(name, options)
    with pytest.raises(TaskError) as caught:
        await verifier.prepare(task)
    assert message in str(caught.value)
    verdict = await verifier.verify("{}", task)
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regx", {}, "did you mean 'regex'"),
        ("regex", {"pattern": "("}, "not valid"),
        ("choice", {"choices": ["A"]}, "two choices"),
        ("length", {"words": {"max": 0}}, "no text has none"),
        ("length", {"word": {"max": 3}}, "word"),
        ("repetition", {"n": 0}, "n"),
    ],
)
def test_a_wrong_name_or_option_is_told_when_it_is_opened(name: str, options: Task, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_verifier(name, options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "package"),
    [
        ("language", {"language": "en"}, "langdetect"),
        ("instructions", {"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}, "langdetect"),
        ("json_schema", {"json_schema": {"title": "never seen before"}}, "jsonschema"),
    ],
)
async def test_a_missing_package_is_told_when_a_task_is_loaded(
    name: str, task: Task, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    language._loaded.cache_clear()
    with pytest.raises(InputError, match=f"pip install {package}"):
        await open_verifier(name).prepare(task)


async def test_a_schema_whose_ref_leads_nowhere_is_a_task_error() -> None:
    verdict = await open_verifier("json_schema").verify("{}", {"json_schema": {"$ref": "#/$defs/none"}})
    assert isinstance(verdict, Unverified)
    assert verdict.reason == "task_error"


async def test_a_schema_that_refers_to_itself_reads_a_tree_of_any_allowed_depth() -> None:
    task = {"json_schema": {"type": "array", "items": {"$ref": "#"}}}
    for depth, value in ((63, 1.0), (70, 0.0), (100_000, 0.0)):
        verdict = await open_verifier("json_schema").verify("[" * depth + "]" * depth, task)
        assert isinstance(verdict, Reward)
        assert verdict.value == value


# ---------------------------------------------------------------------------------------------------------------- laws


@settings(deadline=None)
@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalised(text, "none")
    assert normalised(once, "none") == once


@settings(deadline=None)
@given(st.text(), st.text())
async def test_f1_is_symmetric_and_exact_implies_one(a: str, b: str) -> None:
    if not normalised(a, "squad") or not normalised(b, "squad"):
        return
    f1, exact = open_verifier("f1"), open_verifier("exact")
    one, other = await f1.verify(a, {"reference": b}), await f1.verify(b, {"reference": a})
    same = await exact.verify(a, {"reference": b})
    assert isinstance(one, Reward)
    assert isinstance(other, Reward)
    assert isinstance(same, Reward)
    assert one.value == pytest.approx(other.value)
    assert 0 <= one.value <= 1
    assert same.value <= one.value


@settings(deadline=None)
@given(st.text(), st.integers(1, 5))
def test_the_repeated_share_is_a_share_and_saying_it_again_never_lowers_it(text: str, n: int) -> None:
    share = repeated_share(text, n)
    assert 0 <= share < 1
    assert repeated_share(f"{text} {text}", n) >= share or not text.split()


@settings(deadline=None)
@given(st.text())
def test_what_is_visible_is_visible(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    if "</think>" not in text:
        assert answer_of(f"<think>{text}") == ""
    assert answer_of(f"<think>{text}</think>the answer") == "the answer"
