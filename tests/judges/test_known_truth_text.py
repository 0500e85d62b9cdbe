"""Whatever a judge writes, it is read as labels that were offered, in their place, or not at all.

The replies are made of the grammars' own pieces, of fences, look-alike letters and characters without width; what is
read out of them is checked against a second reading, which knows nothing of the first one's patterns.
"""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlaif.judges.ranking import read_ranking
from rlaif.judges.reply import Form, Said, read_label
from rlaif.judges.rubric import read_answers
from rlaif.types import ChatReply, FinishReason, Unjudged

FORMS: tuple[Form, ...] = ("label", "rationale", "json")
OFFERED = ("X", "Y", "Z")
NAMES = ("K1", "K2", "K3")

# Nothing to see, or something else than it looks like. (Python counts none of the first row as white space.)
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066\u180e\u034f\ufe0f\x00"
LOOK_ALIKES = {"X": "\u03a7\u0425\uff38\U0001d417\u2179", "Y": "\u03a5\u04ae\uff39", "Z": "\u0396\uff3a"}
LOOK_ALIKES |= {"K": "\u041a\u212a\uff2b", "1": "\u0661\uff11\u00b9", "s": "\u017f", "yes": "\u0443es"}

PIECES = ["X", "Y", "Z", "W", "K1", "K2", "K3", "K4", "yes", "partly", "no", "YES", "ye\u017f", ">", ":", "Verdict:"]
PIECES += ["Ranking:", "Response ", "**", "_", "`", "```", "```json\n", '"', "'", "\u201c", "(", ")", "[[", "]]", "."]
PIECES += [
    "\n",
    " ",
    "\t",
    "\u2028",
    "\u00a0",
    "\r\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    '"verdict": "X"',
    '{"verdict": "',
    '"}',
]
PIECES += ['"rationale": "r"', '"ranking": ["K1", "K2", "K3"]', '"K1": "yes"', "\\u0058", "<response_X>", "</response>"]
PIECES += ["<|im_end|>", "\nassistant:", "K1 > K2 > K3", "K1: yes", "K2: no", "K3: partly", "\nVerdict: Y", *INVISIBLE]
PIECES += [letter for letters in LOOK_ALIKES.values() for letter in letters]
pieces = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)

labels = st.sampled_from(OFFERED)
answers = st.sampled_from(["yes", "partly", "no"])
rankings = st.permutations(NAMES).map(" > ".join)
rubrics = st.tuples(st.permutations(NAMES), st.tuples(answers, answers, answers)).map(
    lambda made: "\n".join(f"{name}: {answer}" for name, answer in zip(*made, strict=True))
)
objects = st.one_of(
    labels.map(lambda label: json.dumps({"rationale": "r", "verdict": label})),
    st.permutations(NAMES).map(lambda names: json.dumps({"ranking": names})),
    st.tuples(answers, answers, answers).map(lambda said: json.dumps(dict(zip(NAMES, said, strict=True)))),
)
# Mostly right replies, with something before, after or within.
replies = st.one_of(
    pieces,
    st.tuples(pieces, labels | rankings | rubrics | objects | labels.map("Verdict: {}".format), pieces).map("".join),
)


def reply(text: str, finish: FinishReason = "stop") -> ChatReply:
    return ChatReply(text=text, finish_reason=finish)


def bare(text: str) -> str:
    """``text`` without white space and what may stand around a label."""
    return "".join(c for c in text if not c.isspace() and c not in "*_`\"'\u201c\u201d\u2018\u2019()[].")


def verdict_of(line: str) -> str | None:
    """What a verdict line names: "Verdict:" (perhaps "Response") and a word."""
    found = re.fullmatch(r"[Vv]erdict:(?:[Rr]esponse)?(\w+)", bare(line))
    return found[1] if found else None


def parsed(text: str) -> list[tuple[str, object]] | None:
    """The keys and values of one JSON object, none given twice."""
    try:
        found = json.loads(text, object_pairs_hook=list)
    except ValueError:
        return None
    whole = isinstance(found, list) and all(isinstance(item, tuple) for item in found)
    return found if whole and len(dict(found)) == len(found) else None


@given(replies)
@example("X\u200b")
@example("\ufeffX")
@example("```\nX\n```")
@example('{"verdict": "\\u0058"}')
def test_a_label_is_read_only_where_it_is_all_that_is_said(text: str) -> None:
    for form in FORMS:
        found = read_label(reply(text), OFFERED, form)
        if isinstance(found, Unjudged):
            continue
        assert isinstance(found, Said)
        assert found.label in OFFERED
        if form == "label":
            assert re.sub(r"^(?:[Vv]erdict:)?(?:[Rr]esponse)?", "", bare(text)) == found.label
        elif form == "rationale":
            lines = text.strip().split("\n")
            assert verdict_of(lines[-1]) == found.label
            assert not {verdict_of(line) for line in lines} & set(OFFERED) - {found.label}
        else:
            said = parsed(text.strip())
            assert said is not None
            assert dict(said)["verdict"] == found.label


@given(replies)
def test_a_ranking_is_read_only_where_it_names_each_once(text: str) -> None:
    for form in FORMS:
        found = read_ranking(reply(text), NAMES, form)
        if isinstance(found, Unjudged):
            continue
        ranked, _ = found
        assert sorted(ranked) == sorted(NAMES)
        if form == "json":
            said = parsed(text)
            assert said is not None
            assert dict(said)["ranking"] == list(ranked)
        else:
            last = text.strip().split("\n")[-1].removesuffix(".")
            assert re.sub(r"^[Rr]anking:", "", bare(last)).split(">") == list(ranked)


@given(replies)
@example("K1: ye\u017f\nK2: no\nK3: no")
def test_answers_are_read_only_where_each_criterion_has_one(text: str) -> None:
    values = {"yes": 1.0, "partly": 0.5, "no": 0.0}
    for form in FORMS:
        found = read_answers(reply(text), NAMES, form)
        if isinstance(found, Unjudged):
            continue
        given_, _ = found
        assert sorted(given_) == sorted(NAMES)
        if form == "json":
            said = parsed(text)
            assert said is not None
            assert {name: values[str(dict(said)[name])] for name in NAMES} == given_
        else:
            last = [bare(line).split(":") for line in text.split("\n") if line.strip()][-3:]
            assert {name: values[answer.lower()] for name, answer in last} == given_


def right(form: Form, kind: str) -> str:
    """A reply that is read, of each grammar."""
    if form == "json":
        return {
            "label": '{"rationale": "r", "verdict": "X"}',
            "ranking": '{"ranking": ["K1", "K2", "K3"]}',
            "answers": '{"K1": "yes", "K2": "no", "K3": "yes"}',
        }[kind]
    said = {"label": "X", "ranking": "K1 > K2 > K3", "answers": "K1: yes\nK2: no\nK3: yes"}[kind]
    return said if form == "label" else f"Reasons.\n{'Verdict: ' if kind == 'label' else ''}{said}"


def read(text: str, form: Form, kind: str, finish: FinishReason = "stop") -> object:
    if kind == "label":
        return read_label(reply(text, finish), OFFERED, form)
    return (read_ranking if kind == "ranking" else read_answers)(reply(text, finish), NAMES, form)


KINDS = ("label", "ranking", "answers")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_character_nobody_sees_makes_another_word_of_a_label(form: Form, kind: str) -> None:
    text = right(form, kind)
    assert not isinstance(read(text, form, kind), Unjudged)
    start = text.rindex(":" if (form, kind) == ("json", "label") else "X" if kind == "label" else "K3")
    places = [i for i, c in enumerate(text) if i >= start and c.isalnum()]
    for place in places:
        for invisible in INVISIBLE:
            for cut in (place, place + 1):
                assert isinstance(read(text[:cut] + invisible + text[cut:], form, kind), Unjudged), (cut, invisible)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_letter_that_looks_alike_is_another_letter(form: Form, kind: str) -> None:
    text = right(form, kind)
    start = text.rindex("X" if kind == "label" else "K1")
    head, said = text[:start], text[start:]
    for letter, others in LOOK_ALIKES.items():
        for other in others if letter in said and letter != "yes" else ():
            assert isinstance(read(head + said.replace(letter, other), form, kind), Unjudged), other


@pytest.mark.parametrize("finish", ["length", "content_filter", "refusal", "tool_calls", "unknown"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_reply_that_did_not_end_is_none(form: Form, kind: str, finish: FinishReason) -> None:
    assert isinstance(read(right(form, kind), form, kind, finish), Unjudged)


@given(st.sampled_from(KINDS), st.sampled_from(FORMS), st.data())
def test_two_right_replies_in_one_are_none_unless_they_say_the_same(kind: str, form: Form, data: st.DataObject) -> None:
    made = {
        "label": labels.map("Verdict: {}".format) if form != "label" else labels,
        "ranking": rankings,
        "answers": rubrics,
    }
    one, other = data.draw(made[kind]), data.draw(made[kind])
    found = read(f"{one}\n{other}", form, kind)
    if not isinstance(found, Unjudged):
        assert (form, kind) in {("rationale", "label"), ("rationale", "ranking")}
        assert one == other
