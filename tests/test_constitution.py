"""Constitutions: loading with every mistake named, drawing, applying, lint, import from published JSON, and the CLI."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli.constitution import constitution as command
from rlaif.constitution import (
    applies,
    constitution_from_text,
    draw_principle,
    find_constitution,
    lint,
    load_constitution,
    shipped_names,
)
from rlaif.constitution_import import FORMATS, Format, import_constitution
from rlaif.errors import InputError
from rlaif.types import Bounds, Check, Constitution, Message, Principle, Prompt

GOOD = """\
name: house-rules
version: "2"
description: How we answer.
principles:
  - id: honest
    compare: Which response is more honest?
    critique: Point out what is not so.
    revise: Make it so.
    weight: 2
  - id: short
    check: {words: {max: 80}}
    applies_to: {kind: [chat, mail]}
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        constitution_from_text(text, "c.yaml")
    return str(caught.value).split("\n")


def principles(body: str) -> str:
    return f"name: n\nprinciples:\n{body}"


# ----------------------------------------------------------------------------------------------------------- loading


def test_a_file_becomes_a_constitution(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD)
    loaded = load_constitution(path)
    assert loaded == load_constitution(str(path))
    assert (loaded.name, loaded.version, loaded.description) == ("house-rules", "2", "How we answer.")
    assert loaded.principles == (
        Principle(
            id="honest",
            compare="Which response is more honest?",
            critique="Point out what is not so.",
            revise="Make it so.",
            weight=2,
        ),
        Principle(id="short", check=Check(words=Bounds(max=80)), applies_to={"kind": ["chat", "mail"]}),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["c.yaml: the file is empty."]),
        ("name: n\n", ["c.yaml:1: the key 'principles' is missing."]),
        ("name: n\nprinciples: []\n", ["c.yaml:2: principles: a constitution needs at least one principle."]),
        ("name: n\nprinciples:\n", ["c.yaml:2: principles: expected a list (found nothing)."]),
        ("name: ''\nprinciples: []\n", ["c.yaml:1: name: the text is empty; write one or remove the key.",
                                        "c.yaml:2: principles: a constitution needs at least one principle."]),
        ("name: n\nversion: 1.10\nprinciples:\n  - {id: a, compare: q}\n",
         ["c.yaml:2: version: expected text (found 1.1; put it in quotes)."]),
        ("name: n\nprinciple:\n  - {id: a, compare: q}\n",
         ["c.yaml:1: the key 'principles' is missing.",
          "c.yaml:2: unknown key 'principle'; did you mean 'principles'?"]),
        (principles("  - id: a\n    compare: q\n  - id: b\n    compare: r\n  - id: a\n    compare: s\n"),
         ["c.yaml:7: the id 'a' is already used (c.yaml:3); give each its own."]),
        (principles("  - id: a\n    compare: '  '\n"),
         ["c.yaml:4: principles.0.compare: the text is empty; write one or remove the key."]),
        (principles("  - id: a\n    compare: q\n    revise:\n"),
         ["c.yaml:5: principles.0.revise: empty; write something or remove the key."]),
        (principles("  - id: a\n    weight: 2\n"),
         ["c.yaml:3: principles.0: a principle needs at least one of compare, check, critique, revise."]),
        (principles("  - compare: q\n"), ["c.yaml:3: the key 'principles.0.id' is missing."]),
        (principles("  - id: be kind\n    compare: q\n"),
         ["c.yaml:3: principles.0.id: 'be kind' is no id: use letters, digits, '-', '_' and '.', a letter or digit"
          " first; such as 'be-kind'."]),
        (principles("  - id: a\n    comapre: q\n    critique: r\n"),
         ["c.yaml:4: unknown key 'principles.0.comapre'; did you mean 'compare'?"]),
        (principles("  - id: a\n    compare: q\n    weight: 0\n"),
         ["c.yaml:5: principles.0.weight: must be greater than 0 (found 0)."]),
        (principles("  - id: a\n    compare: q\n    weight: '2'\n"),
         ["c.yaml:5: principles.0.weight: expected a number (found '2')."]),
        (principles("  - id: a\n    compare: [q]\n"), ["c.yaml:4: principles.0.compare: expected text."]),
        (principles("  - just text\n"),
         ["c.yaml:3: principles.0: expected keys and values"
          " (applies_to, ask, check, compare, critique, id, opposite, revise, weight) (found 'just text')."]),
        (principles("  - id: a\n    check:\n      regex: '(?=x)'\n"),
         ["c.yaml:5: principles.0.check.regex: the regex '(?=x)' is not valid: invalid perl operator: (?="
          " (RE2 syntax: no look-around, no back references)."]),
        (principles("  - id: a\n    check:\n      words: {min: 9, max: 3}\n"),
         ["c.yaml:5: principles.0.check.words: min 9 is above max 3; nothing can satisfy both."]),
        (principles("  - id: a\n    check: {words: {max: 3}, json: true}\n"),
         ["c.yaml:4: principles.0.check: a check has exactly one of words, sentences, regex, contains, excludes, json"
          " (found words and json; write a principle for each)."]),
        (principles("  - id: a\n    check: {word: {max: 3}}\n"),
         ["c.yaml:4: unknown key 'principles.0.check.word'; did you mean 'words'?"]),
        (principles("  - id: a\n    compare: q\n    applies_to: {kind: {x: 1}}\n"),
         ["c.yaml:5: principles.0.applies_to: 'kind' needs a text, a number, true, false or a list of these"
          " (found {'x': 1})."]),
        (principles("  - id: a\n    compare: q\ndigest: abc\n"),
         ["c.yaml:5: unknown key 'digest'; known keys here: description, name, principles, version."]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_cure(text: str, said: list[str]) -> None:
    assert mistakes(text) == said


def test_every_mistake_is_listed_in_the_order_of_the_lines() -> None:
    text = principles(
        "  - id: a\n    compare: q\n    wieght: 3\n"
        "  - id: a\n    check: {regex: '('}\n"
        "  - id: c\n    critique:\n    weight: -1\n"
    )
    lines = [int(m[1]) for m in (re.match(r"c\.yaml:(\d+): ", line) for line in mistakes(text)) if m]
    assert lines == [5, 6, 7, 9, 10]


@given(st.text(alphabet=st.sampled_from(list("nameidcomprevs:-{}[] \n'\"*&0.1\u2028é#")), max_size=60))
def test_no_text_crashes_the_loader(text: str) -> None:
    try:
        constitution_from_text("name: n\nprinciples:\n- id: a\n  compare: q\n" + text, "c.yaml")
    except InputError as error:
        refused = str(error)
    else:
        return
    assert refused.startswith("c.yaml")


def test_a_whole_number_is_a_version_and_texts_lose_the_space_around_them() -> None:
    loaded = constitution_from_text("name: n\nversion: 3\nprinciples:\n- id: a\n  compare: |\n    Which?\n\n", "c")
    assert loaded.version == "3"
    assert loaded.principles[0].compare == "Which?"
    assert constitution_from_text("name: n\nprinciples:\n- {id: a, compare: q}\n", "c").version == "1"


def test_a_name_means_a_shipped_constitution_and_a_path_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("brief").write_text("not a constitution")
    Path("brief.yaml").write_text(GOOD)
    assert load_constitution("brief").name == "brief"
    assert load_constitution("brief.yaml").name == "house-rules"
    assert load_constitution("./brief.yaml").name == "house-rules"
    assert find_constitution("./brief") == Path("brief")


def test_an_unknown_name_is_told_the_nearest_and_all_names() -> None:
    with pytest.raises(InputError, match=r"'breif' is shipped; did you mean 'brief'\? Shipped: brief, "):
        load_constitution("breif")
    with pytest.raises(InputError, match=r"'zzz' is shipped; Shipped: .*; or give a \.yaml file"):
        load_constitution("zzz")
    with pytest.raises(InputError, match=r"nowhere/brief\.yaml: no such file"):
        load_constitution("nowhere/brief.yaml")


# ------------------------------------------------------------------------------------------------------------ digest


def test_comments_key_order_name_and_version_do_not_change_the_digest() -> None:
    one = constitution_from_text(GOOD, "c")
    other = constitution_from_text(
        """\
# a comment
principles:
  - weight: 2.0
    revise: Make it so.
    compare: >-
      Which response
      is more honest?
    critique: Point out what is not so.
    id: honest
  - applies_to:
      kind: [chat, mail]
    check:
      words:
        max: 80
    id: short
    weight: 1
version: 3
name: other
""",
        "c",
    )
    assert other.digest == one.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("more honest", "most honest"),
        ("id: honest", "id: honesty"),
        ("weight: 2", "weight: 3"),
        ("max: 80", "max: 81"),
        ("[chat, mail]", "[chat]"),
        ("Make it so.", "Make it so!"),
    ],
)
def test_whatever_a_judge_or_a_draw_reads_changes_the_digest(old: str, new: str) -> None:
    assert GOOD.count(old) == 1
    assert constitution_from_text(GOOD.replace(old, new), "c").digest != constitution_from_text(GOOD, "c").digest


def test_the_digest_stays_what_it_was_when_it_was_first_released() -> None:
    # It is written into manifests and data sets: a new optional key must not change it for old files.
    assert constitution_from_text(GOOD, "c").digest == "70aecb7749a36f37"


def test_a_constitution_survives_json() -> None:
    loaded = constitution_from_text(GOOD, "c")
    assert Constitution.model_validate_json(loaded.model_dump_json()) == loaded


# ----------------------------------------------------------------------------------------------------------- applies


def prompt(**metadata: Any) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content="hi"),), metadata=metadata)


@pytest.mark.parametrize(
    ("wanted", "metadata", "expected"),
    [
        ({}, {}, True),
        ({}, {"kind": "mail"}, True),
        ({"kind": "mail"}, {"kind": "mail", "x": 1}, True),
        ({"kind": "mail"}, {"kind": "chat"}, False),
        ({"kind": "mail"}, {}, False),
        ({"kind": ["mail", "chat"]}, {"kind": "chat"}, True),
        ({"kind": ["mail", "chat"]}, {"kind": "note"}, False),
        ({"kind": "mail", "lang": "de"}, {"kind": "mail"}, False),
        ({"kind": "mail", "lang": "de"}, {"kind": "mail", "lang": "de"}, True),
        ({"tags": "code"}, {"tags": ["code", "long"]}, True),
        ({"tags": ["x", "long"]}, {"tags": ["code", "long"]}, True),
        ({"tags": "co"}, {"tags": ["code"]}, False),
        ({"level": 1}, {"level": 1.0}, True),
        ({"level": 1}, {"level": "1"}, False),
        ({"level": 1}, {"level": True}, False),
        ({"safe": True}, {"safe": True}, True),
        ({"safe": False}, {"safe": None}, False),
        ({"safe": False}, {"safe": 0}, False),
    ],
)
def test_a_principle_applies_when_every_key_has_a_wanted_value(
    wanted: dict[str, Any], metadata: dict[str, Any], expected: bool
) -> None:
    assert applies(Principle(id="p", compare="q", applies_to=wanted), prompt(**metadata)) is expected


# ------------------------------------------------------------------------------------------------------------- draws


def principle(ident: str, weight: float = 1.0) -> Principle:
    return Principle(id=ident, compare="q", weight=weight)


many = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,4}", fullmatch=True), st.floats(0.01, 100), min_size=1, max_size=8
).map(lambda weights: [principle(ident, weight) for ident, weight in weights.items()])


@given(many, st.integers(), st.text(max_size=5))
def test_the_order_of_the_principles_does_not_matter(ps: list[Principle], seed: int, row: str) -> None:
    assert draw_principle(ps, seed, row) == draw_principle(ps[::-1], seed, row)


@given(many, st.integers(), st.text(max_size=5))
def test_taking_a_loser_away_changes_no_draw(ps: list[Principle], seed: int, row: str) -> None:
    winner = draw_principle(ps, seed, row)
    for loser in (p for p in ps if p != winner):
        assert draw_principle([p for p in ps if p != loser], seed, row) == winner


@given(many, st.floats(1, 10), st.integers(), st.text(max_size=5))
def test_a_winner_given_more_weight_wins_still(ps: list[Principle], factor: float, seed: int, row: str) -> None:
    winner = draw_principle(ps, seed, row)
    heavier = principle(winner.id, winner.weight * factor)
    assert draw_principle([heavier if p == winner else p for p in ps], seed, row).id == winner.id


def test_an_edited_text_changes_no_draw() -> None:
    before = [principle("a"), principle("b"), principle("c", 2)]
    after = [principle("a"), Principle(id="b", compare="another question"), principle("c", 2)]
    rows = [f"row{n}" for n in range(500)]
    assert [draw_principle(before, 0, r).id for r in rows] == [draw_principle(after, 0, r).id for r in rows]


def test_draws_follow_the_weights() -> None:
    ps = [principle("a", 1), principle("b", 2), principle("c", 7)]
    n = 20_000
    drawn = Counter(draw_principle(ps, 5, f"row{i}").id for i in range(n))
    for ident, share in (("a", 0.1), ("b", 0.2), ("c", 0.7)):
        # Five standard deviations of a binomial share.
        assert abs(drawn[ident] / n - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_seed_and_every_id_change_the_draw() -> None:
    ps = [principle(f"p{n}") for n in range(50)]
    first = [draw_principle(ps, 0, f"r{n}", "a").id for n in range(200)]
    for other in ([draw_principle(ps, 1, f"r{n}", "a").id for n in range(200)],
                  [draw_principle(ps, 0, f"r{n}", "b").id for n in range(200)]):  # fmt: skip
        same = sum(x == y for x, y in zip(first, other, strict=True))
        assert same < 20  # 4 expected by chance


# -------------------------------------------------------------------------------------------------------------- lint


def warnings(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(principles(body))
    found = lint(path)
    assert found.errors == ()
    assert found.constitution is not None
    return [w.replace(str(path), "c.yaml") for w in found.warnings]


def test_lint_says_nothing_about_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    assert (lint(path).errors, lint(path).warnings) == ((), ())


def test_lint_warns_of_near_duplicates(tmp_path: Path) -> None:
    body = """\
  - id: a
    compare: Which of the two responses is kinder to the person who is asking?
  - id: b
    compare: which of the two responses is kinder to the person who was asking?
  - id: c
    compare: Which response is shorter?
"""
    assert warnings(tmp_path, body) == [
        "c.yaml:5: b: says nearly the same as a (line 3), so both count twice."
    ]  # fmt: skip


def test_lint_does_not_take_different_checks_prompts_or_questions_for_duplicates(tmp_path: Path) -> None:
    body = """\
  - {id: a, check: {words: {max: 3}}}
  - {id: b, check: {words: {max: 4}}}
  - {id: c, compare: "Which response has fewer words?"}
  - {id: d, compare: "Which response has more words?"}
  - {id: e, compare: "Which response is kinder?", applies_to: {kind: x}}
  - {id: f, compare: "Which response is kinder?", applies_to: {kind: y}}
"""
    assert warnings(tmp_path, body) == []


def test_lint_warns_of_what_a_judge_cannot_use(tmp_path: Path) -> None:
    body = "".join(f"  - {{id: p{n}, critique: Point {n} out., revise: Mend it {n} times.}}\n" for n in range(7))
    assert warnings(tmp_path, body) == [
        "c.yaml:3: p0, p1, p2, p3, p4 and 2 more: neither compare nor check; critique and revision can use it, a judge"
        " cannot."
    ]


def test_lint_warns_of_keys_that_are_never_read_and_halves_of_a_revision(tmp_path: Path) -> None:
    body = """\
  - id: a
    check: {words: {max: 3}}
    compare: Which response is shorter?
  - id: b
    compare: Which response is kinder?
    critique: Say what is unkind.
  - id: c
    compare: Which response is truer?
    revise: Make it true.
"""
    assert warnings(tmp_path, body) == [
        "c.yaml:5: a: the check decides, so compare is never asked; make it a principle of its own.",
        "c.yaml:8: b: critique without revise; a revision needs both.",
        "c.yaml:11: c: revise without critique; a revision needs both.",
    ]


def test_lint_warns_of_very_long_texts(tmp_path: Path) -> None:
    assert warnings(tmp_path, f"  - id: a\n    compare: {'word ' * 300}\n") == [
        "c.yaml:4: a: compare has 1499 characters; split what it asks into several principles."
    ]


def test_lint_returns_mistakes_instead_of_raising(tmp_path: Path) -> None:
    found = lint(tmp_path / "none.yaml")
    assert found.constitution is None
    assert found.errors == (f"{tmp_path / 'none.yaml'}: no such file.",)


# ----------------------------------------------------------------------------------------------------------- shipped


def test_the_constitutions_people_expect_are_shipped() -> None:
    assert shipped_names() == [
        "brief",
        "code-assistant",
        "customer-support",
        "helpful-harmless",
        "honest",
        "json-output",
        "plain-language",
        "thorough",
    ]


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_constitution_loads_lints_clean_and_tells_its_reader_how_to_edit_it(name: str) -> None:
    found = lint(name)
    assert (found.errors, found.warnings) == ((), ())
    loaded = load_constitution(name)
    assert loaded.name == name
    assert loaded.description
    text = find_constitution(name).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "# To edit:" in text
    for p in loaded.principles:
        assert p.critique, f"{p.id}: a shipped principle can be used for revision too"
        assert p.revise
        assert bool(p.compare) != bool(p.check)
        if p.compare:
            assert p.compare.startswith("Which response ")
            assert p.compare.endswith("?")


def test_brief_and_thorough_pull_in_opposite_directions_by_a_count_that_weighs_most() -> None:
    counted: dict[str, Bounds] = {}
    for name in ("brief", "thorough"):
        heaviest = max(load_constitution(name).principles, key=lambda p: p.weight)
        assert heaviest.check is not None
        assert heaviest.check.words is not None
        counted[name] = heaviest.check.words
    assert counted["brief"].max is not None
    assert counted["thorough"].min is not None
    assert counted["brief"].max < counted["thorough"].min


# ------------------------------------------------------------------------------------------------------------ import

MINIATURES: dict[Format, Any] = {
    "critique-revision": {
        "Rude": {
            "prompt": ["\n\nCritiqueRequest: Say what is rude.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Make it polite.\n\nRevision:",
        },
        "two ways": {
            "prompt": [
                "\n\nCritiqueRequest: Say what is cold.\n\nCritique:",
                "\n\nCritiqueRequest: Say what is curt.\n\nCritique:",
            ],
            "edit_request": "\n\nRevisionRequest: Make it warm.\n\nRevision:",
        },
    },
    "comparison": ["\nChoose the kinder response. Options:", "Which response is truer?"],
    "sections": {
        "source": "A list on a wall",
        "sections": [
            {"name": "Principles Inspired by the House Rules", "principles": ["Choose A.", "Choose B."]},
            {"name": "Other", "principles": ["Choose C."]},
        ],
    },
    "huggingface": {
        "constitutions": [{"critic": "Say what is rude.", "revision": "Make it polite."}],
        "system_chat": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]],
    },
}


def write(tmp_path: Path, data: Any, name: str = "Their Rules.json") -> Path:
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def converted(path: Path, format: Format | None = None) -> dict[str, dict[str, str]]:
    loaded = constitution_from_text(import_constitution(path, format).yaml, "converted")
    return {p.id: p.model_dump(include={"compare", "critique", "revise"}, exclude_none=True) for p in loaded.principles}


def test_critique_and_revision_instructions_lose_their_scaffolding(tmp_path: Path) -> None:
    assert converted(write(tmp_path, MINIATURES["critique-revision"])) == {
        "rude": {"critique": "Say what is rude.", "revise": "Make it polite."},
        "two-ways-1": {"critique": "Say what is cold.", "revise": "Make it warm."},
        "two-ways-2": {"critique": "Say what is curt.", "revise": "Make it warm."},
    }


def test_comparison_instructions_lose_their_scaffolding(tmp_path: Path) -> None:
    assert converted(write(tmp_path, MINIATURES["comparison"])) == {
        "comparison-01": {"compare": "Choose the kinder response."},
        "comparison-02": {"compare": "Which response is truer?"},
    }


def test_sections_become_ids_and_comments_and_the_source_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, MINIATURES["sections"])
    assert converted(path) == {
        "house-rules-01": {"compare": "Choose A."},
        "house-rules-02": {"compare": "Choose B."},
        "other-01": {"compare": "Choose C."},
    }
    text = import_constitution(path).yaml
    assert "  # Principles Inspired by the House Rules\n" in text
    loaded = constitution_from_text(text, "c")
    assert loaded.name == "their-rules"
    assert loaded.description == "Imported from Their Rules.json (sections). Source: A list on a wall."


def test_what_the_recipe_has_beside_principles_is_said_not_lost(tmp_path: Path) -> None:
    path = write(tmp_path, MINIATURES["huggingface"])
    assert converted(path) == {"principle-01": {"critique": "Say what is rude.", "revise": "Make it polite."}}
    imported = import_constitution(path)
    assert len(imported.notes) == 1
    assert "'system_chat' (2 example chats) was not carried" in imported.notes[0]
    assert f"# {imported.notes[0]}" in imported.yaml


def test_keys_that_are_not_carried_are_named(tmp_path: Path) -> None:
    data = {"constitutions": [{"critic": "a", "revision": "b", "mood": "c"}], "author": "me"}
    assert import_constitution(write(tmp_path, data)).notes == (
        "'author' of the file was not carried.",
        "'mood' of constitution 1 was not carried.",
    )


@pytest.mark.parametrize("format", FORMATS)
def test_the_format_is_told_from_the_shape_and_can_be_forced(tmp_path: Path, format: Format) -> None:
    path = write(tmp_path, MINIATURES[format])
    assert import_constitution(path).format == format
    assert converted(path) == converted(path, format)
    for other in FORMATS:
        if other != format:
            with pytest.raises(InputError, match=f"not a {other} constitution: .*known shapes are"):
                import_constitution(path, other)


@pytest.mark.parametrize(
    "data",
    [{}, [], 3, None, "text", [1], {"a": 1}, {"sections": 3}, {"principles": ["a"]}, [{"prompt": "a"}]],
    ids=json.dumps,
)
def test_an_unknown_shape_is_told_the_accepted_ones(tmp_path: Path, data: Any) -> None:
    with pytest.raises(InputError) as caught:
        import_constitution(write(tmp_path, json.dumps(data)))
    assert "\n" not in str(caught.value)
    assert all(format in str(caught.value) for format in FORMATS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n]', r"\.json:2: not valid JSON"),
        ('{"constitutions": [], "constitutions": []}', "a key is given twice"),
        ('{"constitutions": []}', "without a single principle"),
        ('{"constitutions": [{"critic": "a"}]}', "constitution 1 has no 'revision'"),
        ('{"constitutions": [{"critic": "a", "revision": " "}]}', "should be a text that is not empty"),
        ('{"constitutions": [3]}', "constitution 1 should be an object"),
        ('{"sections": [{"name": "n", "principles": "a"}]}', "should be a list"),
        ('{"a": {"prompt": ["\\n\\nCritiqueRequest:  \\n\\nCritique:"], "edit_request": "b"}}', "holds no instruction"),
        ('["Options:"]', "holds no instruction"),
        ('["\\n\\nHuman: hi\\n\\nAssistant: ho"]', "item 1 is a dialogue"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_broken_files_are_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_constitution(write(tmp_path, text))


@given(st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=4))
def test_every_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "rules.json"
    path.write_text(json.dumps({"constitutions": [{"critic": t, "revision": t} for t in texts]}))
    assert [p["critique"] for p in converted(path).values()] == [t.strip() for t in texts]


DATA = Path(os.environ.get("RLAIF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "cai"
PUBLISHED = {
    "CritiqueRevisionInstructions.json": ("critique-revision", 16),
    "RLMadisonInstructions.json": ("comparison", 16),
    "anthropic_constitution_2023_58_principles.json": ("sections", 58),
    "hf_constitution_anthropic.json": ("huggingface", 16),
    "hf_constitution_grok.json": ("huggingface", 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_come_through_whole(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip("the published constitutions are not here (set RLAIF_DATA)")
    format, count = PUBLISHED[name]
    imported = import_constitution(path)
    assert imported.format == format
    loaded = constitution_from_text(imported.yaml, name)
    assert len(loaded.principles) == count
    # Every text of the result stands in the source word for word, and no scaffolding came along.
    source = " ".join(" ".join(strings(json.loads(path.read_text()))).split())
    for p in loaded.principles:
        for text in filter(None, (p.compare, p.critique, p.revise)):
            assert " ".join(text.split()) in source
            assert not re.search(r"Request:|Critique:|Revision:|Options:", text)
    assert bool(imported.notes) == name.startswith("hf_")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


@pytest.mark.parametrize(
    "name",
    ["CritiqueRevisionFewShotPrompts.json", "RLMadisonFewShotPrompts.json", "RLMadisonPrecogFewShotPrompts.json"],
)
def test_published_files_that_are_no_constitutions_are_refused(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip("the published constitutions are not here (set RLAIF_DATA)")
    with pytest.raises(InputError, match="critique-revision"):
        import_constitution(path)


# --------------------------------------------------------------------------------------------------------------- CLI


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_lint_reports_each_file_and_exits_2_when_one_is_wrong(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(GOOD)
    bad.write_text(principles("  - id: a\n    compaer: q\n"))
    result = run("lint", bad, good, "brief")
    assert result.exit_code == 2
    assert f"{bad}:4: unknown key 'principles.0.compaer'; did you mean 'compare'?\n" in result.stdout
    assert f"{good}: OK (2 principles)\n" in result.stdout
    assert "brief: OK (3 principles)\n" in result.stdout


def test_lint_exits_0_with_warnings_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(principles("  - id: a\n    critique: q\n    revise: r\n"))
    result = run("lint", path)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{path}:3: warning: a: neither compare nor check; critique and revision can use it, a judge cannot.\n"
        f"{path}: OK (1 principle)\n"
    )


def test_show_prints_plain_lines_when_piped(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD.replace("more honest?", "more [bold]honest[/bold]?"))
    result = run("show", path)
    assert result.exit_code == 0
    assert result.stdout == (
        f"house-rules, version 2 (digest {load_constitution(path).digest})\n"
        "How we answer.\n"
        "\n"
        "honest (weight 2, 67% of draws)\n"
        "  compare   Which response is more [bold]honest[/bold]?\n"
        "  critique  Point out what is not so.\n"
        "  revise    Make it so.\n"
        "\n"
        "short (weight 1, 33% of draws)\n"
        "  check     words: at most 80 (decided by program)\n"
        "  applies   kind: chat or mail\n"
    )


def test_show_on_a_terminal_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "c.yaml"
    path.write_text(GOOD.replace("more honest?", "more [bold]honest[/bold]?"))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", run("show", path).stdout)
    for piece in ("house-rules, version 2", "Which response is more [bold]honest[/bold]?", "kind: chat or mail"):
        assert piece in shown


def test_show_json_is_the_constitution(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    result = run("show", "--json", path)
    assert Constitution.model_validate(json.loads(result.stdout)) == load_constitution(path)


def test_import_writes_a_new_file_or_prints_and_says_the_rest_on_stderr(tmp_path: Path) -> None:
    source, out = write(tmp_path, MINIATURES["huggingface"]), tmp_path / "rules.yaml"
    printed = run("import", source)
    assert printed.exit_code == 0
    assert yaml.safe_load(printed.stdout)["principles"][0]["revise"] == "Make it polite."
    assert "system_chat" in printed.stderr
    written = run("import", source, "--out", out)
    assert written.exit_code == 0
    assert written.stdout == ""
    assert out.read_text() == printed.stdout
    assert lint(out).errors == ()
    again = run("import", source, "--out", out)
    assert isinstance(again.exception, InputError)
    assert "exists already" in str(again.exception)


def test_import_into_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    result = run("import", write(tmp_path, MINIATURES["comparison"]), "--out", tmp_path / "none" / "c.yaml")
    assert isinstance(result.exception, InputError)
