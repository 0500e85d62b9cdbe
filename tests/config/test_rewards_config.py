import textwrap

import pytest

from rlaif.config.base import Config, apply_overrides, parse_yaml, validate
from rlaif.config.rewards import Node, RewardConfig
from rlaif.errors import InputError


class Holder(Config):
    """Any config with a reward in it."""

    reward: RewardConfig


def load(text: str, *overrides: str) -> Node:
    document = parse_yaml(textwrap.dedent(text), "run.yaml")
    apply_overrides(document, overrides)
    return validate(Holder, document).reward


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


GOLDEN = """\
reward:
  normalise:
    of:
      gate:
        condition: {verifier: length, options: {words: {max: 500}}}
        then:
          route:
            by: kind
            cases:
              math:
                shaping:
                  of:
                    first_decided:
                      - math
                      - verifier: judge
                        options: {model: "openai:gpt-4.1-mini"}
                        seconds: 60
                  overlong: {limit: 1024, buffer: 256}
                  repetition: {n: 3}
                  at_most: 0.05
              code: {product: [code, {verifier: regex, options: {pattern: "def "}}]}
            default:
              min: [exact, f1]
"""


def test_a_reward_of_every_kind_is_read_with_its_names_and_ranges() -> None:
    reward = load(GOLDEN)
    names = [node.part for _, node in reward.walk() if node.kind in ("verifier", "shaping", "normalise")]
    assert names == ["normalise", "length", "shaping", "math", "judge", "code", "regex", "exact", "f1"]
    assert reward.bounds == (-5.0, 5.0)
    assert reward.normalise is not None
    assert reward.normalise.of.bounds == (0.0, 1.0)
    places = {".".join(map(str, place)): node for place, node in reward.walk()}
    assert places["normalise.of.gate.then.route.cases.math.shaping.of.first_decided.1"].part == "judge"


def test_a_reward_means_the_same_after_being_written_and_read_again() -> None:
    reward = load(GOLDEN)
    assert validate(Holder, parse_yaml(Holder(reward=reward).model_dump_json(), "x")).reward == reward


def test_a_name_alone_is_a_verifier() -> None:
    assert load("reward: math") == load("reward: {verifier: math}")
    assert load("reward: my.models:Preference").part == "Preference"


def test_the_range_of_a_sum_is_that_of_its_parts_weighted() -> None:
    reward = load(
        """
        reward:
          weighted_sum:
            - {verifier: math, weight: 3}
            - {verifier: "my.models:Preference", range: [-4, 4], weight: 1}
        """
    )
    assert reward.bounds == (-1.0, 1.75)


def test_penalties_among_all_widen_the_range_downwards() -> None:
    text = "reward: {shaping: {of: math, length: {free: 1, full: 2}, at_most: 0.25, among: %s}}"
    assert load(text % "all").bounds == (-0.25, 1.0)
    assert load(text % "correct").bounds == (0.0, 1.0)


def test_a_setting_of_the_command_line_reaches_into_the_tree() -> None:
    reward = load("reward: {first_decided: [math, {verifier: judge}]}", "reward.first_decided.1.seconds=5")
    assert [child.seconds for _, child in reward.children] == [600, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward: {first_decided: [math, {verifer: judge}]}", "did you mean 'verifier'?"),
        ("reward: {wieghted_sum: [math]}", "did you mean 'weighted_sum'?"),
        ("reward: {gate: {condition: math, thn: f1}}", "did you mean 'then'?"),
        ("reward: {verifier: math, product: [f1]}", "found verifier and product"),
        ("reward: {options: {}}", "found none"),
        ("reward: {weighted_sum: []}", "at least 1"),
        ("reward: 3", "expected keys and values"),
        ("reward: {weighted_sum: [{verifier: math, weight: 0}]}", "greater than 0"),
        ("reward: {product: [{verifier: math, weight: 2}]}", "'weight' counts only within a weighted_sum"),
        ("reward: {verifier: math, required: false}", "'required' counts only within"),
        ("reward: {first_decided: [math, {verifier: f1, required: false}]}", "'required' counts only within"),
        ("reward: {product: [math], options: {a: 1}}", "'options' belongs to a verifier"),
        ("reward: {verifier: math, range: [1, 0]}", "[lowest, highest]"),
        ("reward: {verifier: math, range: [0, .inf]}", "finite"),
        ("reward: {first_decided: [math, math]}", "two parts are called 'math'"),
        ("reward: {min: [math, {verifier: f1, range: [0, 5]}]}", "0 to 1 and 0 to 5"),
        ("reward: {product: [math, {verifier: f1, range: [0, 5]}]}", "must range from 0 to 1 (found 0 to 5)"),
        (
            "reward: {weighted_sum: [math, {verifier: f1, range: [0, 5], required: false}]}",
            "a part that may be left out must have the same range",
        ),
        ("reward: {gate: {condition: math, then: f1, at_least: 2}}", "always be open, or never"),
        ("reward: {gate: {condition: math, then: f1, at_least: 0}}", "always be open, or never"),
        ("reward: {gate: {condition: {normalise: {of: math}}, then: f1}}", "neither normalised nor shaped"),
        ("reward: {shaping: {of: math}}", "at least one of length, overlong, repetition"),
        ("reward: {shaping: {of: math, length: {free: 5, full: 5}}}", "below full"),
        ("reward: {shaping: {of: math, overlong: {limit: 5, buffer: 6}}}", "above limit"),
        ("reward: {shaping: {of: math, repetition: {}, at_most: 0.5}}", "at_most"),
        (
            "reward: {shaping: {of: {shaping: {of: math, repetition: {}}, name: a}, repetition: {}}}",
            "all penalties into one",
        ),
        ("reward: {shaping: {of: {normalise: {of: math}}, repetition: {}}}", "around 'shaping'"),
        ("reward: {normalise: {of: {normalise: {of: math}, name: a}}}", "normalised twice"),
        ("reward: {route: {by: kind, cases: {}}}", "at least 1"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_a_cure(text: str, message: str) -> None:
    told = error_of(text)
    assert message in told
    assert told.startswith("run.yaml:1: ")


def test_the_line_is_that_of_the_mistake_not_of_the_tree() -> None:
    assert error_of(GOLDEN.replace("limit: 1024", "limit: 10")).startswith("run.yaml:18: ")
    assert error_of(GOLDEN.replace("{n: 3}", "{m: 3}")).startswith("run.yaml:19: unknown key")
