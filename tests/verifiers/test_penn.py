"""Sentences and tokens as NLTK counts them."""

import json
from pathlib import Path

import pytest

from rlaif.verifiers.penn import capital_words, count_sentences
from tests.verifiers.recorded import MODELS, ifeval, needs_data


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("  \n ", 0),
        ("no full stop", 1),
        ("One. Two! Three? Four", 4),
        ("one. two without capitals. three", 3),
        ("Very bad acting!!! I promise.", 2),
        ("Dr. Smith met Mr. Jones at 5 p.m. on Jan. 5.", 1),
        ("He lives in the U.S. The weather is fine.", 2),
        ("He lives in the U.S. with Ann.", 1),
        ("There J. Smith came.", 1),
        ("A. Introduction\nB. Methods", 3),
        ("1. One thing\n2. Another thing", 3),
        ("Wait... what?", 1),
        ("Wait... The end.", 2),
        ('"Hello!" she said. "Bye."', 3),
        ("It is done.)", 1),
        ("Bold.**", 2),
        ("version 3.5 of example.org is out", 1),
        ("Many, e.g. this one.", 2),
    ],
)
def test_sentences_end_where_punkt_ends_them(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("I saw NASA's rocket", 2),
        ("IT'S", 2),
        ("DON'T", 2),
        ("CANNOT", 2),
        ("A4 and B-52 and a4", 2),
        ("STATE-OF-THE-ART", 1),
        ("U.S.A. is (VERY) big!", 2),
        ("HELLO,WORLD", 2),
        ("12:30PM", 1),
    ],
)
def test_capital_tokens_are_the_treebank_ones(text: str, tokens: int) -> None:
    assert capital_words(text) == tokens


@needs_data
def test_the_counts_are_those_of_nltk_on_recorded_answers() -> None:
    # [sentences, capital tokens] of each answer, by NLTK 3.10.4 with punkt_tab.
    counts = json.loads((Path(__file__).parent / "nltk_counts.json").read_text())
    answers = [row["response"] for model in MODELS for row in ifeval(model)]
    expected = [count for model in MODELS for count in counts[model]]
    sentences = sum(count_sentences(text) != n for text, (n, _) in zip(answers, expected, strict=True))
    capitals = sum(capital_words(text) != n for text, (_, n) in zip(answers, expected, strict=True))
    assert (sentences, capitals) <= (7, 0)  # of 1,081
    assert capitals == 0
