"""Which part of a completion is its answer."""

import time

import pytest

from rlaif.verifiers.math.extract import extract, outside_thinking, reference_answer

ROWS = [  # completion, answer, form
    (r"So \boxed{42}.", "42", "boxed"),
    (r"\boxed{1} then \boxed{2}", "2", "boxed"),
    (r"\boxed{1} \boxed{2}", "1, 2", "boxed"),
    (r"$\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}$", "(2, 2), (6, 2)", "boxed"),
    (r"\boxed{1}, \boxed{2}, and \boxed{3}.", "1, 2, 3", "boxed"),
    ("So \\boxed{5}\n\n$\\boxed{5}$", "5", "boxed"),
    (r"\boxed{1} papers and \boxed{2} bins", "2", "boxed"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),
    (r"\boxed {5}", "5", "boxed"),
    (r"\fbox{5}", "5", "boxed"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
    (r"\boxed{\left\{x\right.}", r"\left\{x\right.", "boxed"),
    (r"\boxed{\boxed{7}}", r"\boxed{7}", "boxed"),
    (r"\boxed{3} and \boxed{unclosed", "3", "boxed"),
    (r"\boxed{3} and }}}", "3", "boxed"),
    (r"{{{ \boxed{3}", "3", "boxed"),
    (r"\boxed{}", "", "boxed"),
    (r"The answer is 5. \boxed{6}", "6", "boxed"),
    (r"\boxed{6} The answer is 5.", "6", "boxed"),
    ("9 * 2 = 18\n#### 18", "18", "hash"),
    ("9 * 2 = 18\n#### $18.00", "$18.00", "hash"),
    ("#### Step 1\nadd\n#### 18\n\n(Note: 3 are left)", "18", "hash"),
    ("#### Each child got 5 books.", "5", "hash"),
    ("The answer is 5.", "5.", "phrase"),
    ("the answer is: 5", "5", "phrase"),
    ("Final Answer: **73**", "73**", "phrase"),
    ("**Answer:** 5 apples", "5 apples", "phrase"),
    ("She pays.\nA: 18", "18", "phrase"),
    ("The answer is B", "B", "phrase"),
    ("The answer is $x=2$. I checked 3 times.", "$x=2$.", "phrase"),
    ("final answer is 2 or 3", "2 or 3", "phrase"),
    ("The answer is 4. No, the answer is 5.", "5.", "phrase"),
    ("The answer to the question is 18 dollars because 9 * 2 = 18 is what she gets", "18", "phrase"),
    ("The final answer is:\n\n12", "12", None),
    ("$4\\sqrt{2}$", "$4\\sqrt{2}$", "bare"),
    ("42", "42", "bare"),
    ("3x + 4y = 5", "3x + 4y = 5", "bare"),
    ("B", "B", "bare"),
    ("First 3, then 4. So she makes 9 * $2 = $18 every day.", "18", "conclusion"),
    ("It is 7 hours (420 minutes) in all, as we saw.", "7", "conclusion"),
    ("We add. Therefore the sum is $x + 5$ in general.", "$x + 5$", None),
    ("The value goes down by 10 to reach -10 degrees", "10", "conclusion"),
    ("The average temperature is -10 degrees.", "-10", "conclusion"),
    ("He has 30 - 5 = 25 left over.", "25", "conclusion"),
    ("He makes $1,234.50 in total over the year.", "1,234.50", "conclusion"),
    ("It rose by 25% over the years.", "25%", "conclusion"),
    ("The bag holds 2600g of candy altogether.", "2600", "conclusion"),
    ("Since 24 fit in a box, they will need 1 box of graham crackers.", "1", "conclusion"),
    ("Out of all of them, 3/4 remain in the end.", "3/4", "conclusion"),
    ("<think>\\boxed{1}</think> \\boxed{2}", "2", "boxed"),
    ("\\boxed{2} <think>\\boxed{1}</think>", "2", "boxed"),
    ("\\boxed{2} <think>\\boxed{1}", "2", "boxed"),
    ("reasoning \\boxed{1}</think>\\boxed{2}", "2", "boxed"),
    ("<think><think>\\boxed{1}</think>\\boxed{3}</think>\\boxed{2}", "2", "boxed"),
]


@pytest.mark.parametrize(("completion", "answer", "form"), ROWS)
def test_the_answer_found(completion: str, answer: str, form: str | None) -> None:
    found = extract(completion)
    assert found is not None
    assert found.text.strip(" $*") == answer.strip(" $*")
    assert form in (None, found.form)


@pytest.mark.parametrize(
    "completion",
    ["", "  \n", "I do not know.", "<think>\\boxed{2}</think>", "<think>The answer is 5.", "No numbers here; sorry."],
)
def test_no_answer_is_found(completion: str) -> None:
    assert extract(completion) is None


def test_only_the_forms_asked_for_are_looked_for() -> None:
    assert extract("The answer is 5", ("boxed",)) is None
    assert extract("The answer is 5", ("boxed", "phrase")) is not None


def test_the_first_form_there_is_decides_even_if_it_is_empty() -> None:
    found = extract("The answer is 5. \\boxed{}")
    assert found is not None
    assert (found.text, found.form) == ("", "boxed")


def test_what_the_question_mentions_is_not_what_a_sentence_states() -> None:
    question = "Kylar wants to buy 16 glasses. One costs $5. How much does he pay?"
    found = extract("We add up. Kylar needs to pay $64 for the 16 glasses.", question=question)
    assert found is not None
    assert found.text == "64"


def test_an_expression_after_the_last_equals_sign_is_no_value() -> None:
    found = extract("He must deliver 160 - (number delivered) = 160 - y red roses by 5 pm.")
    assert found is None or found.text != "160"


def test_other_boxes_are_told() -> None:
    found = extract(r"\boxed{1} no, \boxed{2}. Yes, \boxed{2}")
    assert found is not None
    assert found.rivals == ("1",)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("42", "42"),
        (r"Thus \boxed{\frac12}", r"\frac12"),
        ("She eats 3.\n#### 20", "20"),
        ("#### 5,000", "5,000"),
        ("She sells 9 for $2.\nA: 18", "18"),
        ("A: 18", "A: 18"),
        ("$1331$ and $1728$", "$1331$ and $1728$"),
    ],
)
def test_the_answer_of_a_reference(reference: str, answer: str) -> None:
    assert reference_answer(reference).strip() == answer


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "{", "}", "\\boxed{1}", "<think>", "</think>", "answer is ", "answer to ", "#### ", "$", "\\(", "9",
     "9 ", "= ", "9/", "-", "(", "A:\n", "\n", "1,000", " and ", "<<", "\\", "a. B ", "\\boxed", "**", "9.", "$9"],
)  # fmt: skip
def test_200_000_characters_take_milliseconds(unit: str) -> None:
    completion = unit * (200_000 // len(unit))
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        extract(completion, question=completion[:2000])
        best = min(best, time.process_time() - start)
    assert best < 0.15  # at most 0.05 where nothing else runs


def test_ten_megabytes_of_anything_are_searched() -> None:
    start = time.process_time()
    assert extract("x" * 10_000_000 + r"\boxed{5}") is not None
    assert extract("\\boxed{" * 1_400_000) is None
    outside_thinking("<think>" * 1_400_000)
    assert time.process_time() - start < 5
