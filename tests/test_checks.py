"""Checks: what a program decides about a text, and how near a text comes."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.checks import compare_by_check, count_sentences, count_words, degree, describe, regex_problem
from rlaif.errors import InputError
from rlaif.types import Bounds, Check

# ---------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  \n\t ", 0),
        ("one", 1),
        ("one two\nthree\u00a0four\u3000five", 5),
        ("don't stop: state-of-the-art, e.g. https://example.org/a?b=c", 5),
        ("- a dash — and a bullet • are no words", 8),
        ("3.5 % of 1,000", 3),
        ("**bold** _it_ `code`", 3),
        ("🙂 🙂 hello 🙂", 1),
        ("Straße naïve Ελλάδα мир سلام नमस्ते", 6),
        ("我喜欢你。", 4),
        ("Python入門です", 5),
        ("한국어 문장", 2),
    ],
)
def test_words_are_counted_as_a_reader_counts_them(text: str, words: int) -> None:
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("...", 0),
        ("42.", 1),
        ("no full stop", 1),
        ("One. Two! Three? Four… Five", 5),
        ("What?! No way... Really.", 3),
        ('He said "Hi." Then he left.', 2),
        ("It costs 3.50 euros. See example.org.", 2),
        ("Dr. Smith met J. Doe, e.g. in May. They spoke.", 2),
        ("So do I. You too.", 2),
        ("1. Do this.\n2. Do that.", 2),
        ("Two things:\n- first\n- second", 3),
        ("# Title\n\nA line that\nwraps here.", 2),
        ("你好。你呢？很好！", 3),
        ("هل أنت بخير؟ نعم.", 2),
        ("यह एक वाक्य है। यह दूसरा है।", 2),
    ],
)
def test_sentences_are_counted_as_a_reader_counts_them(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


@given(st.text(), st.text())
def test_counts_never_fall_when_text_is_added_after_a_space(text: str, more: str) -> None:
    assert count_words(f"{text} {more}") >= count_words(text)
    assert count_sentences(f"{text} {more}") >= count_sentences(text)


@given(st.text(alphabet='aB1. !?\n"-*#)。J', max_size=30), st.text(alphabet='aB1. !?\n"-*#)。J', max_size=10))
def test_sentences_never_fall_when_punctuation_is_added(text: str, more: str) -> None:
    assert count_sentences(text + more) >= count_sentences(text)


@given(st.lists(st.sampled_from(["Yes", "no", "déjà", "x1", "don't"]), max_size=20))
def test_words_joined_by_spaces_are_as_many_as_there_are(words: list[str]) -> None:
    assert count_words(" ".join(words)) == len(words)


@given(st.lists(st.sampled_from(["Go home.", "Why?", "Yes!", "It is 3.5 now."]), max_size=10))
def test_sentences_joined_by_spaces_are_as_many_as_there_are(sentences: list[str]) -> None:
    assert count_sentences(" ".join(sentences)) == len(sentences)


HOSTILE = {
    "dots": "." * 200_000 + "x",
    "lines": "\n" * 200_000,
    "spaces": "a" + " " * 200_000,
    "items": "\n - " * 50_000,
    "quotes": '."' * 100_000,
    "han": "我" * 200_000,
    "initials": "aJ. " * 50_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_counting_takes_linear_time_on_hostile_texts(text: str) -> None:
    started = time.monotonic()
    count_sentences(text)
    count_words(text)
    assert time.monotonic() - started < 5  # quadratic would take minutes


# ----------------------------------------------------------------------------------------------------------- degrees

WORDS_100 = "word " * 100


@pytest.mark.parametrize(
    ("check", "text", "expected"),
    [
        ({"words": {"max": 80}}, WORDS_100, 0.8),
        ({"words": {"max": 100}}, WORDS_100, 1.0),
        ({"words": {"min": 100}}, WORDS_100, 1.0),
        ({"words": {"min": 200}}, WORDS_100, 0.5),
        ({"words": {"min": 1, "max": 40}}, "", 0.0),
        ({"words": {"min": 50, "max": 80}}, WORDS_100, 0.8),
        ({"words": {"max": 0}}, "", 1.0),
        ({"words": {"max": 0}}, "one", 0.0),
        ({"sentences": {"max": 2}}, "A b. C d. E f. G h.", 0.5),
        ({"sentences": {"min": 4}}, "A b.", 0.25),
        ({"regex": "^Dear "}, "Dear you", 1.0),
        ({"regex": "^Dear "}, "My Dear you", 0.0),
        ({"regex": "(?i)^dear "}, "DEAR you", 1.0),
        ({"regex": "a.b"}, "a\nb", 0.0),
        ({"regex": "(?s)a.b"}, "a\nb", 1.0),
        ({"regex": "^b$"}, "a\nb\n", 0.0),
        ({"regex": "(?m)^b$"}, "a\nb\n", 1.0),
        ({"contains": ["yes"]}, "Well, YES.", 1.0),
        ({"contains": ["yes", "no"]}, "yes", 0.5),
        ({"contains": ["STRASSE"]}, "Die Straße", 1.0),
        ({"contains": ["caf\u00e9"]}, "cafe\u0301", 1.0),
        ({"excludes": ["sorry"]}, "I am SORRY", 0.0),
        ({"excludes": ["sorry", "alas"]}, "I am sorry", 0.5),
        ({"excludes": ["sorry", "alas"]}, "fine", 1.0),
        ({"json": True}, ' {"a": [1, null, "x"]}\n', 1.0),
        ({"json": True}, "42", 1.0),
        ({"json": True}, "-" + "9" * 10_000, 1.0),
        ({"json": True}, "1e999", 1.0),
        ({"json": True}, "", 0.0),
        ({"json": True}, "NaN", 0.0),
        ({"json": True}, "[-Infinity]", 0.0),
        ({"json": True}, '{"a": 1, "a": 2}', 0.0),
        ({"json": True}, '{"a": {"b": 1, "b": 1}}', 0.0),
        ({"json": True}, '{"a": 1,}', 0.0),
        ({"json": True}, "{'a': 1}", 0.0),
        ({"json": True}, '{"a": 1} // done', 0.0),
        ({"json": True}, '```json\n{"a": 1}\n```', 0.0),
        ({"json": True}, '"line\nbreak"', 0.0),
        ({"json": True}, "\ufeff{}", 0.0),
        ({"json": True}, "[" * 100_000, 0.0),
    ],
)
def test_degree_is_one_when_satisfied_and_nearness_below(check: dict[str, Any], text: str, expected: float) -> None:
    assert degree(Check.model_validate(check), text) == expected


bounds = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda ends: Bounds(min=min(ends), max=max(ends)))
strings = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)
checks = st.one_of(
    st.builds(lambda b: Check(words=b), bounds),
    st.builds(lambda b: Check(sentences=b), bounds),
    st.sampled_from(["a", "^$", r"\w+\s", "(?i)[^a-z]{2}", "é|."]).map(lambda r: Check(regex=r)),
    st.builds(lambda s: Check(contains=s), strings),
    st.builds(lambda s: Check(excludes=s), strings),
    st.just(Check(json_valid=True)),
)
texts = st.text(st.characters(), max_size=60) | st.text(st.characters(categories=["Cs", "Lu", "Po", "Zs"]), max_size=20)


@given(checks, texts)
def test_degree_is_a_share_for_every_text_even_with_lone_surrogates(check: Check, text: str) -> None:
    assert 0.0 <= degree(check, text) <= 1.0


@given(checks, texts, texts)
def test_comparing_is_symmetric_and_follows_the_degrees(check: Check, a: str, b: str) -> None:
    winner = compare_by_check(check, a, b)
    assert compare_by_check(check, b, a) == {"a": "b", "b": "a", "tie": "tie"}[winner]
    assert (winner == "tie") == (degree(check, a) == degree(check, b))
    assert compare_by_check(check, a, a) == "tie"


@given(bounds, st.integers(0, 120), st.integers(0, 120))
def test_the_count_nearer_to_the_range_wins(wanted: Bounds, m: int, n: int) -> None:
    assert wanted.min is not None
    assert wanted.max is not None
    check = Check(words=wanted)
    of_m, of_n = degree(check, "w " * m), degree(check, "w " * n)
    assert (of_m == 1.0) == (wanted.min <= m <= wanted.max)
    if m <= n <= wanted.max:
        assert of_m <= of_n
    if wanted.min <= m <= n:
        assert of_m >= of_n


@given(strings, texts)
def test_a_text_excludes_what_it_does_not_contain(wanted: tuple[str, ...], text: str) -> None:
    assert degree(Check(excludes=wanted), text) == 1.0 - degree(Check(contains=wanted), text)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=10)


@given(st.recursive(scalars, lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x), max_leaves=10))
def test_whatever_json_writes_is_json(value: Any) -> None:
    assert degree(Check(json_valid=True), json.dumps(value)) == 1.0


def test_of_two_texts_that_both_fail_the_nearer_is_preferred() -> None:
    check = Check(words=Bounds(max=40))
    assert compare_by_check(check, "w " * 60, "w " * 61) == "a"
    assert compare_by_check(check, "w " * 10, "w " * 20) == "tie"


# ------------------------------------------------------------------------------------------------------------- regex


def test_a_pattern_that_would_hang_a_backtracking_engine_is_searched_in_linear_time() -> None:
    started = time.monotonic()
    assert degree(Check(regex="^(a+)+$"), "a" * 100_000 + "b") == 0.0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "[z-a]", "a{1001}"])
def test_a_pattern_that_re2_refuses_is_a_sentence(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    problem = regex_problem(pattern)
    assert problem is not None
    assert repr(pattern) in problem
    with pytest.raises(InputError, match="not valid"):
        degree(Check(regex=pattern), "text")
    assert capfd.readouterr() == ("", "")  # RE2 itself would log to stderr


def test_a_good_pattern_has_no_problem() -> None:
    assert regex_problem(r"(?im)^\s*\d{1,3}\b") is None


# ------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({}, "exactly one"),
        ({"words": {"max": 3}, "json": True}, "found words and json"),
        ({"words": {}}, "give min, max or both"),
        ({"words": {"min": 4, "max": 3}}, "min 4 is above max 3"),
        ({"words": {"min": -1}}, "greater than or equal to 0"),
        ({"words": {"max": "3"}}, "valid integer"),
        ({"words": {"max": True}}, "valid integer"),
        ({"contains": []}, "at least 1"),
        ({"contains": [""]}, "at least 1"),
        ({"regex": ""}, "at least 1"),
        ({"json": False}, "True"),
    ],
)
def test_a_check_that_cannot_work_cannot_be_made(check: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Check.model_validate(check)


@given(checks)
def test_a_check_survives_json(check: Check) -> None:
    assert Check.model_validate_json(check.model_dump_json()) == check


@pytest.mark.parametrize(
    ("check", "phrase"),
    [
        ({"words": {"min": 1, "max": 40}}, "words: 1 to 40"),
        ({"words": {"max": 40}}, "words: at most 40"),
        ({"sentences": {"min": 2}}, "sentences: at least 2"),
        ({"regex": "^a"}, "matches the regex ^a"),
        ({"contains": ["a", "b"]}, "contains: 'a', 'b'"),
        ({"excludes": ["a"]}, "excludes: 'a'"),
        ({"json": True}, "is valid JSON"),
    ],
)
def test_a_check_can_be_read_aloud(check: dict[str, Any], phrase: str) -> None:
    assert describe(Check.model_validate(check)) == phrase
