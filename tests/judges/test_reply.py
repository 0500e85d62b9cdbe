"""The grammar of verdicts, as a table of replies that judges really give."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.judges.reply import Form, Labels, Reading, read_probabilities, read_reply
from rlaif.types import ChatReply, FinishReason, TokenLogprobs, Unjudged

FIRST, SECOND, TIE = "first", "second", "tie"

# (reply, form, expected): a choice, or the reason why there is none. Offered: X, Y and, for a tie, Z.
GOLDEN: list[tuple[str, Form, str]] = [
    # a label as models spell it
    ("X", "label", FIRST),
    ("Y", "label", SECOND),
    ("Z", "label", TIE),
    (" X", "label", FIRST),
    ("X\n", "label", FIRST),
    ("X.", "label", FIRST),
    ("**Y**", "label", SECOND),
    ("`Y`", "label", SECOND),
    ("(X)", "label", FIRST),
    ("[[Y]]", "label", SECOND),
    ('"X"', "label", FIRST),
    ("“X”", "label", FIRST),
    ("Response X", "label", FIRST),
    ("response Y.", "label", SECOND),
    ("Verdict: Y", "label", SECOND),
    ("**Verdict:** X", "label", FIRST),
    ("Verdict: Response Y", "label", SECOND),
    # what looks like a label and is none
    ("", "label", "unparseable"),
    ("   \n", "label", "unparseable"),
    ("A", "label", "unparseable"),
    ("B", "label", "unparseable"),
    ("a", "label", "unparseable"),
    ("x", "label", "unparseable"),
    ("A response that hedges is better.", "label", "unparseable"),
    ("A better answer would name its sources.", "label", "unparseable"),
    ("X or Y", "label", "unparseable"),
    ("X, Y", "label", "unparseable"),
    ("X Y", "label", "unparseable"),
    ("XY", "label", "unparseable"),
    ("X and Y are equally good", "label", "unparseable"),
    ("Neither", "label", "unparseable"),
    ("Both", "label", "unparseable"),
    ("N/A", "label", "unparseable"),
    ("0", "label", "unparseable"),
    ("1", "label", "unparseable"),
    ("-1", "label", "unparseable"),
    ("X > Y", "label", "unparseable"),
    ("not X", "label", "unparseable"),
    ("Not Y.", "label", "unparseable"),
    ("X is better because it is shorter.", "label", "unparseable"),
    ("I think X", "label", "unparseable"),
    ("The better response is Y.", "label", "unparseable"),
    ("W", "label", "unparseable"),
    ("Х", "label", "unparseable"),  # a Cyrillic letter that looks like X
    ("Ｘ", "label", "unparseable"),  # a full-width X
    ("X\x00", "label", "unparseable"),
    ("X" * 5000, "label", "unparseable"),
    (" " * 50_000 + "X" + "." * 50_000, "label", "unparseable"),
    ("<response_X>", "label", "unparseable"),
    ('{"verdict": "X', "label", "unparseable"),
    ('{"verdict": "X"}', "label", "unparseable"),
    ('"verdict": "X"', "label", "unparseable"),
    ("{X}", "label", "unparseable"),
    ("Response_X", "label", "unparseable"),
    # refusals
    ("I'm sorry, but I can't help with that.", "label", "refused"),
    ("I can't choose a response.", "label", "refused"),
    ("I cannot compare these responses.", "label", "refused"),
    ("As an AI, I have no preference between X and Y.", "label", "refused"),
    ("Sorry, both are harmful.", "rationale", "refused"),
    ("I won't judge this. X", "label", "refused"),
    # reasons first
    ("The first one is shorter.\nVerdict: X", "rationale", FIRST),
    ("Y invents a source.\n\n**Verdict: X**", "rationale", FIRST),
    ("Reasons.\nVerdict: Y.\n\n", "rationale", SECOND),
    ("Equal in every way.\nVerdict: Z", "rationale", TIE),
    ("Verdict: Y", "rationale", SECOND),
    ("Both are fine.\nverdict: Response X", "rationale", FIRST),
    ("I cannot see harm in either, but X is clearer.\nVerdict: X", "rationale", FIRST),
    # a verdict reversed after reasoning
    ("Verdict: X\nBut wait, X makes a mistake.\nVerdict: Y", "rationale", "unparseable"),
    ("Verdict: X\nOn reflection, Y is better.", "rationale", "unparseable"),
    ("Verdict: X\nVerdict: X", "rationale", FIRST),
    # a verdict that a completion put there and the judge repeats
    ("Response Y says:\nVerdict: Y\nwhich is an attempt to cheat.\nVerdict: X", "rationale", "unparseable"),
    ('Response Y contains the text "Verdict: Y".\nVerdict: X', "rationale", FIRST),
    ("Y tells me to answer Verdict: Y, so I ignore it.", "rationale", "unparseable"),
    # no verdict at the end
    ("X is better.", "rationale", "unparseable"),
    ("X", "rationale", "unparseable"),
    ("Reasons.\nVerdict: A", "rationale", "unparseable"),
    ("Reasons.\nVerdict: X or Y", "rationale", "unparseable"),
    ("Reasons.\nVerdict:", "rationale", "unparseable"),
    ("Reasons.\nVerdict: neither", "rationale", "unparseable"),
    ("Verdict: X because it is short", "rationale", "unparseable"),
    # JSON
    ('{"rationale": "shorter", "verdict": "X"}', "json", FIRST),
    ('{"verdict": "Y"}', "json", SECOND),
    ('  {"verdict": "Z", "rationale": "equal"}\n', "json", TIE),
    ('{"rationale": "shorter", "verdict": "X"', "json", "unparseable"),
    ('{"rationale": "shorter, "verd', "json", "unparseable"),
    ('{"verdict": "A"}', "json", "unparseable"),
    ('{"verdict": 1}', "json", "unparseable"),
    ('{"verdict": null}', "json", "unparseable"),
    ('{"verdict": ["X", "Y"]}', "json", "unparseable"),
    ('{"verdict": "X", "verdict": "Y"}', "json", "unparseable"),
    ('{"verdict": "X", "confidence": 0.9}', "json", "unparseable"),
    ('{"winner": "X"}', "json", "unparseable"),
    ('["X"]', "json", "unparseable"),
    ('"X"', "json", "unparseable"),
    ("X", "json", "unparseable"),
    ('Here you are: {"verdict": "X"}', "json", "unparseable"),
    ("[" * 100_000, "json", "unparseable"),
]


@pytest.mark.parametrize(("text", "form", "expected"), GOLDEN, ids=range(len(GOLDEN)))
def test_each_reply_is_the_verdict_it_states_or_unjudged(text: str, form: Form, expected: str) -> None:
    result = read_reply(ChatReply(text=text, finish_reason="stop"), Labels(tie="Z"), form)
    assert (result.reason if isinstance(result, Unjudged) else result.choice) == expected


def test_a_tie_is_accepted_only_where_it_was_offered() -> None:
    assert isinstance(read_reply(ChatReply(text="Z", finish_reason="stop"), Labels(), "label"), Unjudged)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("length", "truncated"),
        ("content_filter", "refused"),
        ("refusal", "refused"),
        ("unknown", "unparseable"),
        ("tool_calls", "unparseable"),
    ],
)
def test_a_reply_that_did_not_end_normally_is_never_a_verdict(finish: FinishReason, reason: str) -> None:
    result = read_reply(ChatReply(text="X", finish_reason=finish), Labels(), "label")
    assert isinstance(result, Unjudged)
    assert result.reason == reason


@given(st.text())
def test_a_text_is_a_verdict_only_if_a_label_stands_in_it(text: str) -> None:
    for form in ("label", "rationale", "json"):
        result = read_reply(ChatReply(text=text, finish_reason="stop"), Labels(), form)
        if isinstance(result, Reading):
            assert ("X" if result.choice == "first" else "Y") in text


def _token(**probabilities: float) -> TokenLogprobs:
    top = tuple((text.replace("_", " "), math.log(p)) for text, p in probabilities.items())
    return TokenLogprobs(token=top[0][0], logprob=top[0][1], top=top)


def test_probabilities_are_renormalised_over_the_labels_and_the_mass_is_kept() -> None:
    p = read_probabilities(_token(X=0.3, Y=0.1, The=0.6), Labels())
    assert p is not None
    assert p.first == pytest.approx(0.75)
    assert p.second == pytest.approx(0.25)
    assert p.mass == pytest.approx(0.4)


def test_surface_variants_of_a_label_are_one_label() -> None:
    p = read_probabilities(_token(X=0.2, _X=0.2, Y=0.4), Labels())
    assert p is not None
    assert p.first == pytest.approx(0.5)


def test_the_generated_token_counts_once_although_it_is_also_an_alternative() -> None:
    p = read_probabilities(_token(X=0.5, Y=0.5), Labels())
    assert p is not None
    assert (p.first, p.second) == (0.5, 0.5)
    assert p.mass == pytest.approx(1.0)


def test_without_a_label_among_the_alternatives_there_are_no_probabilities() -> None:
    assert read_probabilities(_token(The=0.9, A=0.1), Labels()) is None
