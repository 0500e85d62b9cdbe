"""Laws of pairing: pure, symmetric, and the sums add up."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.config.generate import PairingConfig
from rlaif.pairing import decide, pair, plan_comparisons
from rlaif.types import (
    Comparison,
    Completion,
    Dropped,
    Judgement,
    Message,
    Order,
    Outcome,
    Prompt,
    Unjudged,
    Verdict,
)

PROMPT = Prompt(id="p-0", messages=(Message(role="user", content="Why?"),))
WEIGHTS = {"p": 1.0, "q": 3.0}


def completion(i: int, text: str | None = None) -> Completion:
    return Completion(id=f"c-{i}", prompt_id="p-0", index=i, text=text or f"text {i}", model="m", finish_reason="stop")


def verdict(p_a: float, method: str = "logprob") -> Verdict:
    choice = "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"
    return Verdict.model_validate({"choice": choice, "p_a": p_a, "method": method})


def judgement(
    c: Comparison, outcome: Outcome, order: Order | None = "ab", principles: tuple[str, ...] = ("p",), judge: str = "j"
) -> Judgement:
    return Judgement(
        prompt_id=c.prompt.id, a=c.a.id, b=c.b.id, principles=principles, judge=judge, template="t", order=order,
        outcome=outcome,
    )  # fmt: skip


probabilities = st.floats(0, 1)
outcomes = probabilities.map(verdict) | st.just(Unjudged(reason="unparseable", detail="?"))


@st.composite
def judged_prompts(draw: st.DrawFn) -> tuple[list[Comparison], list[Judgement]]:
    n = draw(st.integers(2, 5))
    comparisons, _ = plan_comparisons(PROMPT, [completion(i) for i in range(n)])
    judgements = [judgement(c, draw(outcomes), order) for c in comparisons for order in ("ab", "ba")]
    return comparisons, judgements


configs = st.builds(
    PairingConfig,
    strategy=st.sampled_from(["best_worst", "all", "margin"]),
    min_margin=st.sampled_from([0.0, 0.2]),
    require_agreement=st.booleans(),
)


@given(probabilities)
def test_swapping_a_verdict_twice_gives_it_back(p: float) -> None:
    v = verdict(p)
    assert v.swap().swap() == v
    assert v.swap().p_a == pytest.approx(1 - v.p_a)


def test_swapping_a_comparison_twice_gives_it_back() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    assert c.swap().swap() == c
    assert c.swap() != c


@given(judged_prompts(), configs)
def test_every_comparison_ends_as_one_pair_or_one_dropped_row(
    made: tuple[list[Comparison], list[Judgement]], config: PairingConfig
) -> None:
    comparisons, judgements = made
    pairs, dropped = pair(comparisons, judgements, WEIGHTS, config)
    ends = [{p.chosen, p.rejected} for p in pairs] + [{d.a, d.b} for d in dropped]
    assert len(ends) == len(comparisons)
    assert all({c.a.id, c.b.id} in ends for c in comparisons)


@given(judged_prompts(), configs)
def test_a_pair_never_has_a_missing_verdict_behind_it(
    made: tuple[list[Comparison], list[Judgement]], config: PairingConfig
) -> None:
    comparisons, judgements = made
    unjudged = {frozenset((j.a, j.b)) for j in judgements if isinstance(j.outcome, Unjudged)}
    pairs, _ = pair(comparisons, judgements, WEIGHTS, config)
    assert not unjudged & {frozenset((p.chosen, p.rejected)) for p in pairs}


@given(judged_prompts(), configs, st.randoms())
def test_the_order_of_the_rows_changes_nothing(
    made: tuple[list[Comparison], list[Judgement]], config: PairingConfig, random: "object"
) -> None:
    comparisons, judgements = made
    shuffled_c, shuffled_j = list(comparisons), list(judgements)
    random.shuffle(shuffled_c)  # type: ignore[attr-defined]
    random.shuffle(shuffled_j)  # type: ignore[attr-defined]
    first, second = pair(comparisons, judgements, WEIGHTS, config), pair(shuffled_c, shuffled_j, WEIGHTS, config)
    probs = [sorted((p.chosen, p.rejected, p.prob_chosen) for p in made[0]) for made in (first, second)]
    assert (
        probs[0] == pytest.approx(probs[1]) if not probs[0] else [x[:2] for x in probs[0]] == [x[:2] for x in probs[1]]
    )
    assert {(d.a, d.b, d.reason) for d in first[1]} == {(d.a, d.b, d.reason) for d in second[1]}


@given(judged_prompts(), configs)
def test_exchanging_a_and_b_everywhere_exchanges_nothing_in_the_result(
    made: tuple[list[Comparison], list[Judgement]], config: PairingConfig
) -> None:
    comparisons, judgements = made
    exchanged_c = [c.swap() for c in comparisons]
    exchanged_j = [j.model_copy(update={"a": j.b, "b": j.a, "outcome": j.outcome.swap()}) for j in judgements]
    if config.strategy != "all":  # equal gaps are settled by id, which the exchange reorders
        config = config.model_copy(update={"strategy": "all"})
    pairs, _ = pair(comparisons, judgements, WEIGHTS, config)
    again, _ = pair(exchanged_c, exchanged_j, WEIGHTS, config)
    assert {(p.chosen, p.rejected) for p in pairs} == {(p.chosen, p.rejected) for p in again}


def test_both_orders_are_averaged_and_a_pure_position_preference_cancels_to_a_disagreement() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    always_first = [judgement(c, verdict(1.0, "text"), "ab"), judgement(c, verdict(0.0, "text"), "ba")]
    pairs, dropped = pair([c], always_first, WEIGHTS, PairingConfig(strategy="all"))
    assert pairs == []
    assert [d.reason for d in dropped] == ["order_disagreement"]


def test_two_ties_are_a_tie() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    ties = [judgement(c, verdict(0.5, "text"), "ab"), judgement(c, verdict(0.5, "text"), "ba")]
    _, dropped = pair([c], ties, WEIGHTS, PairingConfig(strategy="all"))
    assert [d.reason for d in dropped] == ["tie"]


def test_soft_labels_decide_what_hard_labels_leave_open() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    soft = [judgement(c, verdict(0.9), "ab"), judgement(c, verdict(0.4), "ba")]
    pairs, _ = pair([c], soft, WEIGHTS, PairingConfig(strategy="all"))
    assert {p.chosen: p.prob_chosen for p in pairs} == pytest.approx({"c-0": 0.65})
    _, dropped = pair([c], soft, WEIGHTS, PairingConfig(strategy="all", require_agreement=True))
    assert [d.reason for d in dropped] == ["order_disagreement"]


def test_principles_count_by_their_weight() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    rows = [judgement(c, verdict(1.0), principles=("p",)), judgement(c, verdict(0.0), principles=("q",))]
    decision = decide(c, rows, WEIGHTS)
    assert not isinstance(decision, Dropped)
    assert decision.p_a == pytest.approx(0.25)


def test_several_judges_count_alike() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    rows = [judgement(c, verdict(1.0), judge="one"), judgement(c, verdict(0.4), judge="two")]
    decision = decide(c, rows, WEIGHTS)
    assert not isinstance(decision, Dropped)
    assert decision.p_a == pytest.approx(0.7)
    assert decision.judge == "one, two"


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_best_against_worst_takes_the_pair_furthest_apart(n: int) -> None:
    comparisons, _ = plan_comparisons(PROMPT, [completion(i) for i in range(n)])
    quality = {f"c-{i}": i for i in range(n)}
    rows = [judgement(c, verdict(1 / (1 + math.exp(quality[c.b.id] - quality[c.a.id])))) for c in comparisons]
    pairs, dropped = pair(comparisons, rows, WEIGHTS, PairingConfig(strategy="best_worst"))
    assert [(p.chosen, p.rejected) for p in pairs] == [(f"c-{n - 1}", "c-0")]
    assert [d.reason for d in dropped] == ["not_selected"] * (math.comb(n, 2) - 1)


def test_the_margin_strategy_takes_the_pair_nearest_to_the_wanted_margin() -> None:
    comparisons, _ = plan_comparisons(PROMPT, [completion(i) for i in range(3)])
    rows = [judgement(c, verdict(p)) for c, p in zip(comparisons, (0.95, 0.7, 0.55), strict=True)]
    pairs, _ = pair(comparisons, rows, WEIGHTS, PairingConfig(strategy="margin", margin=0.4))
    assert [p.prob_chosen for p in pairs] == [pytest.approx(0.7)]


def test_a_margin_below_the_least_is_dropped() -> None:
    c = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))
    _, dropped = pair([c], [judgement(c, verdict(0.55))], WEIGHTS, PairingConfig(strategy="all", min_margin=0.2))
    assert [d.reason for d in dropped] == ["low_margin"]


def test_equal_texts_are_never_compared() -> None:
    comparisons, dropped = plan_comparisons(PROMPT, [completion(0, "same"), completion(1, "same "), completion(2)])
    assert [d.reason for d in dropped] == ["identical"]
    assert len(comparisons) == 2


@given(st.integers(0, 6), st.booleans())
def test_planned_comparisons_are_all_pairs_or_each_completion_once(n: int, disjoint: bool) -> None:
    comparisons, dropped = plan_comparisons(PROMPT, [completion(i) for i in range(n)], disjoint=disjoint)
    if n < 2:
        assert [d.reason for d in dropped] == ["too_few_samples"]
    elif disjoint:
        used = [c.id for comparison in comparisons for c in (comparison.a, comparison.b)]
        assert len(used) == len(set(used)) == n - n % 2
    else:
        assert [(c.a.index, c.b.index) for c in comparisons] == list(combinations(range(n), 2))
