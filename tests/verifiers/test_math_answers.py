"""How two answers are compared: a golden table, laws, and what the parser refuses."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.verifiers.math.compare import Exactly, Undecided, equal
from rlaif.verifiers.math.parse import TooComplex, Unreadable, parse
from rlaif.verifiers.math.pool import Decided, Pool
from tests.verifiers.math_rows import ALGEBRA, EXACT


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pytest.importorskip("math_verify")
    made = Pool(seconds=30)
    yield made
    made.close()


@pytest.mark.parametrize(("gold", "pred", "expected"), EXACT)
def test_exact_rows_are_decided_in_process_in_both_directions(gold: str, pred: str, expected: bool) -> None:
    assert equal(parse(gold), parse(pred), Exactly()) is expected
    assert equal(parse(pred), parse(gold), Exactly()) is expected


@pytest.mark.parametrize(("gold", "pred", "expected"), ALGEBRA)
def test_algebra_rows_are_decided_by_a_worker_in_both_directions(
    gold: str, pred: str, expected: bool | None, pool: Pool
) -> None:
    for one, other in ((gold, pred), (pred, gold)):
        decided = pool.ask(one, other)
        assert decided == Decided(expected) if expected is not None else decided != Decided(True)


# ----------------------------------------------------------------------------------------------------------- laws

rationals = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


def spellings(value: Fraction) -> list[str]:
    """Ways to write one rational."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    written = [
        f"{sign}{top}/{bottom}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{sign}{7 * top}}}{{{7 * bottom}}}",
        rf"$\left({sign}\frac{{{top}}}{{{bottom}}}\right)$",
        f"x = {sign}{top}/{bottom}",
        f"{sign.replace('-', '−')}{top}/{bottom}",
    ]
    if top > bottom > 1:
        written.append(rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
    if bottom == 1:
        written += [f"{value.numerator:,}", f"{value}.0", rf"\${value}", f"{value} apples"]
        written.append("".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in str(value)))  # full width
    if 10**6 % bottom == 0:
        scaled = str(abs(value) * 10**6).zfill(7)
        written.append(f"{sign}{scaled[:-6]}.{scaled[-6:]}")
    return written


@given(rationals, st.data())
def test_a_rational_is_equal_to_itself_in_every_spelling(value: Fraction, data: st.DataObject) -> None:
    a, b = data.draw(st.sampled_from(spellings(value))), data.draw(st.sampled_from(spellings(value)))
    assert equal(parse(a), parse(b), Exactly()), (a, b)


@given(rationals, rationals, st.data())
def test_different_rationals_are_never_equal_in_any_spelling(x: Fraction, y: Fraction, data: st.DataObject) -> None:
    if x == y:
        y += Fraction(1, 999_983)
    a, b = data.draw(st.sampled_from(spellings(x))), data.draw(st.sampled_from(spellings(y)))
    assert not equal(parse(a), parse(b), Exactly()), (a, b)


@given(rationals, st.integers(15, 27), st.data())
def test_a_very_near_value_is_another_value(value: Fraction, places: int, data: st.DataObject) -> None:
    near = value + Fraction(1, 10**places)  # a finite decimal where value is one, so that no rounding is meant
    a, b = data.draw(st.sampled_from(spellings(value))), f"{near.numerator}/{near.denominator}"
    assert not equal(parse(a), parse(b), Exactly()), (a, b)


answers = st.sampled_from([text for row in EXACT + ALGEBRA for text in row[:2]])


def _verdict(a: str, b: str) -> bool | str:
    try:
        return equal(parse(a), parse(b), Exactly())
    except Undecided:
        return "undecided"


@given(answers)
def test_every_answer_is_equal_to_itself(answer: str) -> None:
    assert equal(parse(answer), parse(answer), Exactly())


@given(answers, answers)
@settings(max_examples=400)
def test_equality_is_symmetric(a: str, b: str) -> None:
    assert _verdict(a, b) == _verdict(b, a)


_SOUP = (
    *"0123456789+-*/^_=(){}[],.;:!%$&|<>'\" \nabxyzABn\\½√−²٤４\ud800\x00",
    *("\\frac", "\\sqrt", "\\left(", "\\right)", "\\{", "\\}", "\\pm", "\\cup", "\\in", "\\le", "\\infty", "\\pi"),
    *("\\text{", "\\text{ or }", "\\begin{pmatrix}", "\\\\", "\\end{pmatrix}", "\\boxed{", "\\int", "\\sum", "\\binom"),
    *("\\ldots", " and ", " or ", "1,000", "0.333333", "10^", "\\overline{", "(B)", "apples", "million", "\\$"),
)
soup = st.lists(st.sampled_from(_SOUP), max_size=30).map("".join)


@given(soup)
@settings(max_examples=600, deadline=2000)
def test_soup_is_an_answer_or_is_refused_and_equals_itself(text: str) -> None:
    try:
        answer = parse(text)
    except (Unreadable, TooComplex):
        return
    assert equal(answer, answer, Exactly())


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=2000)
def test_any_text_is_an_answer_or_is_refused(text: str) -> None:
    try:
        parse(text)
    except (Unreadable, TooComplex):
        return


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("text", ["", " ", "...", r"\ldots", "$$", "{}", "\u200b", "--", r"\left(\right)"])
def test_nothing_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}x",
        r"\dfrac{5^{5^{5^{5^5}}}}{16}",
        "(10^8)!",
        "100!!!!",
        "123456!",
        r"\sum_{k=1}^{1000000000} k",
        r"\sum_{k=1}^{10^9} k",
        r"\binom{1000000000}{500000000}",
        "(" * 200 + "1" + ")" * 200,
        r"\frac{1}{" * 60 + "1" + "}" * 60,
        "9" * 100_000,
        "x^{1000000000}",
    ],
)
def test_what_only_asks_for_work_is_refused(text: str) -> None:
    with pytest.raises(TooComplex):
        parse(text)
