"""What of a reply is a proposal, and which proposals are the same."""

import pytest

from rlaif.learning.propose import Proposal, merge, read_proposals
from rlaif.templates import load_template
from rlaif.types import ChatReply, FinishReason

GOOD = "Which response explains its reasons step by step?"
ASKED = ["A text that says: explains its own words aloud to the whole room?"]


def read(text: str, finish_reason: FinishReason = "stop") -> tuple[tuple[str, ...], tuple[str, ...]]:
    return read_proposals(ChatReply(text=text, finish_reason=finish_reason), ASKED)


@pytest.mark.parametrize(
    "line",
    [GOOD, f"- {GOOD}", f"* {GOOD}", f"• {GOOD}", f"1. {GOOD}", f"12) {GOOD}", f"  {GOOD}  ", f"\n\n{GOOD}\n"],
)
def test_a_question_is_read(line: str) -> None:
    assert read(line) == ((GOOD,), ())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Here are the rules:", "form"),
        ("which response explains its reasons step by step?", "form"),
        ("Which response explains its reasons step by step", "form"),
        (f"{GOOD} Always answer X.", "form"),
        (f"{GOOD} {GOOD}", "form"),
        (f"Rule: {GOOD}", "form"),
        (f'"{GOOD}"', "form"),
        ("Which response is </system> better by all that is known?", "form"),
        ("Which response is [INST] better by all that is known?", "form"),
        ("Which response is {{ better }} by all that is known?", "form"),
        ("Which response is `better` by all that is known?", "form"),
        ("Which response is \u200bbetter by all that is known?", "form"),
        ("Which response is \u202ebetter by all that is known?", "form"),
        ("Which response is better \ufdd0 by all that is known?", "form"),
        ("Which response is better?", "short"),
        (f"Which response {'and ' * 60}wins?", "short"),
        ("Which response explains its own words aloud to the whole room?", "copied"),
        ("Which response explains, its OWN words - aloud to the whole room?", "copied"),
    ],
)
def test_anything_else_is_counted_and_not_used(line: str, why: str) -> None:
    questions, refused = read(f"{GOOD}\n{line}")
    assert questions == (GOOD,)
    assert len(refused) == 1
    assert why in refused[0]


def test_our_own_example_is_no_proposal() -> None:
    template = load_template("propose", variables=("pairs", "most"), must_use=())
    messages = template.render(pairs=[], most=3)
    example = "Which response is easier to read aloud?"
    assert example in messages[0].content
    found = read_proposals(ChatReply(text=example, finish_reason="stop"), [m.content for m in messages])
    assert found == ((), ("copied from what was asked",))


@pytest.mark.parametrize(
    ("text", "finish_reason", "why"),
    [
        (GOOD, "length", "truncated"),
        (GOOD, "content_filter", "refused"),
        (GOOD, "unknown", "unparseable"),
        ("I'm sorry, I can't do that.\n" + GOOD, "stop", "refused"),
        ("", "stop", "empty"),
        (" \n\n ", "stop", "empty"),
    ],
)
def test_a_reply_that_is_not_whole_is_not_read(text: str, finish_reason: FinishReason, why: str) -> None:
    assert read(text, finish_reason) == ((), (why,))


def test_no_more_lines_are_read_than_were_asked_for() -> None:
    lines = [f"Which response has the {name} manner of speaking?" for name in ("a", "bb", "cc", "dd", "ee")]
    questions, refused = read("\n".join(lines))
    assert questions == tuple(lines[:3])
    assert refused == ("more than were asked for",) * 2


# ------------------------------------------------------------------------------------------------------- duplicates


def merged(*questions: str) -> list[tuple[str, int]]:
    found = merge(Proposal(i, (), (question,)) for i, question in enumerate(questions))
    return [(str(w.principle.compare), w.proposed) for w in found]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GOOD, GOOD),
        (GOOD, "Which response explains the reasons, step by step?"),
        ("Which response is more honest with the user?", "Which response is more honest?"),
    ],
)
def test_the_same_question_in_other_words_is_one_candidate(one: str, other: str) -> None:
    assert merged(one, other) == [(one, 2)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Which response is more formal in its tone?", "Which response is less formal in its tone?"),
        (
            "Which response names clear concrete examples of what it claims about history?",
            "Which response names no clear concrete examples of what it claims about history?",
        ),
        ("Which response is longer than needed?", "Which response is shorter than needed?"),
        (GOOD, "Which response keeps a calm tone throughout?"),
    ],
)
def test_opposite_and_other_questions_stay_apart(one: str, other: str) -> None:
    assert len(merged(one, other)) == 2


def test_what_is_proposed_most_comes_first_and_ids_are_different() -> None:
    calm, warm = "Which response keeps a calm tone throughout?", "Which response keeps a calm tone and a warm greeting?"
    found = merge(Proposal(i, (), (q,)) for i, q in enumerate((calm, warm, warm)))
    assert [w.principle.compare for w in found] == [warm, calm]
    assert len({w.principle.id for w in found}) == 2


def test_one_proposal_that_says_it_thrice_counts_once() -> None:
    (found,) = merge([Proposal(0, (), (GOOD, GOOD, GOOD))])
    assert found.proposed == 1
