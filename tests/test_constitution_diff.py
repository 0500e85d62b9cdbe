"""What differs between two constitutions, as a reader sees it."""

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli.constitution import constitution as command
from rlaif.constitution import constitution_from_text
from rlaif.constitution_diff import differences, marked, told
from rlaif.types import Constitution

BASE = """\
name: house
principles:
  - {id: honest, compare: 'Which response is more honest about what it does not know?', weight: 2}
  - {id: kind, compare: 'Which response is kinder?', critique: Say what is unkind., revise: Be kinder.}
  - {id: short, check: {words: {max: 80}}}
"""


def of(text: str) -> Constitution:
    return constitution_from_text(text, "c.yaml")


def lines(before: str, after: str) -> list[str]:
    return list(told(differences(of(before), of(after))))[1:]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "more honest about what it does not know?",
            "more candid about what it does not know?",
            [
                "",
                "honest: reworded",
                "  compare     Which response is more [-honest-] {+candid+} about what it does not know?",
            ],
        ),
        ("weight: 2", "weight: 6", ["", "honest: weight", "  weight      2 (50% of draws) -> 6 (75% of draws)"]),
        ("max: 80", "max: 40", ["", "short: another check", "  check       words: at most 80 -> words: at most 40"]),
        (
            "revise: Be kinder.}",
            "revise: Be kinder., applies_to: {kind: chat}}",
            ["", "kind: applies to others", "  applies_to  (none) -> kind: chat"],
        ),
        ("id: kind", "id: kindness", ["", "kind -> kindness: renamed"]),
        (
            "revise: Be kinder.}",
            "revise: Be kinder still.}",
            ["", "kind: revise", "  revise      Be [-kinder.-] {+kinder still.+}"],
        ),
        ("name: house", "name: home", ["The principles are the same."]),
        (
            "  - {id: short, check: {words: {max: 80}}}\n",
            "",
            ["", "short: removed", "  check       words: at most 80", "  weight      1"],
        ),
        (
            "max: 80}}}\n",
            "max: 80}}}\n  - {id: calm, compare: 'Which is calmer?'}\n",
            ["", "calm: added", "  compare     Which is calmer?", "  weight      1"],
        ),
    ],
)
def test_one_edit_is_told_in_a_line_or_two(old: str, new: str, said: list[str]) -> None:
    assert BASE.count(old) == 1
    assert lines(BASE, BASE.replace(old, new)) == said


def test_the_order_of_principles_is_no_difference() -> None:
    head, *principles = BASE.rstrip().split("\n  - ")
    turned = "\n  - ".join([head, *principles[::-1]]) + "\n"
    assert lines(BASE, turned) == ["The principles are the same, in another order."]


def test_weights_alone_are_known_as_such() -> None:
    assert differences(of(BASE), of(BASE.replace("weight: 2", "weight: 3"))).only_weights
    assert not differences(of(BASE), of(BASE.replace("kinder?", "nicer?"))).only_weights


@given(
    st.lists(st.sampled_from("abcd"), unique=True, min_size=1),
    st.lists(st.sampled_from("abcd"), unique=True, min_size=1),
)
def test_changes_made_undone_are_the_same_changes(one: list[str], two: list[str]) -> None:
    def made(ids: list[str]) -> Constitution:
        return of("name: n\nprinciples:\n" + "".join(f"  - {{id: {i}, compare: 'Which is more {i}?'}}\n" for i in ids))

    there, back = differences(made(one), made(two)), differences(made(two), made(one))
    assert {(c.id, c.kind) for c in there.changes} == {
        (c.id, {"added": "removed", "removed": "added"}[c.kind]) for c in back.changes
    }
    assert {c.id for c in there.changes} == set(one) ^ set(two)


@given(st.lists(st.sampled_from(["so", "it", "is"])), st.lists(st.sampled_from(["so", "it", "is"])))
def test_a_marked_text_holds_both(one: list[str], two: list[str]) -> None:
    text = marked(" ".join(one), " ".join(two))
    old = re.sub(r"\{\+.*?\+\}", "", text).replace("[-", "").replace("-]", "")
    new = re.sub(r"\[-.*?-\]", "", text).replace("{+", "").replace("+}", "")
    assert old.split() == one
    assert new.split() == two


def test_the_command_prints_it_and_its_json() -> None:
    said = CliRunner().invoke(command, ["diff", "brief", "thorough"], catch_exceptions=False).output
    assert said.startswith("brief, version 1 (digest ")
    assert "few-words: removed" in said
    found = json.loads(CliRunner().invoke(command, ["diff", "brief", "brief", "--json"]).output)
    assert found["changes"] == []
