from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.rewards import Scored, best_of_n, rejection_sample

ROWS = st.lists(
    st.tuples(st.text(alphabet="ab \n", max_size=4), st.sampled_from([None, 0.0, 0.5, 1.0])), min_size=1, max_size=8
)


def split(rows: list[Any]) -> tuple[list[str], list[Scored]]:
    return [text for text, _ in rows], [Scored(value=value) for _, value in rows]


def test_the_best_is_taken_and_the_masked_are_not_zeros() -> None:
    texts, scored = split([("a", None), ("b", -1.0), ("c", -0.5), ("d", None)])
    assert best_of_n(texts, scored) == 2
    assert best_of_n(*split([("a", None)])) is None
    assert best_of_n([], []) is None


def test_rejection_sampling_keeps_what_passes_once() -> None:
    rows = [("right", 1.0), ("right\n", 1.0), ("also right", 1.0), ("half", 0.5), ("broken", None)]
    texts, scored = split(rows)
    kept = rejection_sample(texts, scored, threshold=1.0, keep=5)
    assert sorted(texts[i].strip() for i in kept) == ["also right", "right"]
    assert rejection_sample(texts, scored, threshold=1.0) == kept[:1]
    assert rejection_sample(texts, scored, threshold=2.0) == []
    assert texts[rejection_sample(texts, scored, threshold=0.0, keep=5)[-1]] == "half"


def test_ties_are_broken_by_hash_and_not_by_place() -> None:
    chosen = {best_of_n(*split([(f"{i} a", 1.0), (f"{i} b", 1.0)])) for i in range(20)}
    assert chosen == {0, 1}
    first = [best_of_n(*split([(f"{i} a", 1.0), (f"{i} b", 1.0)]), seed=1) for i in range(20)]
    assert first != [best_of_n(*split([(f"{i} a", 1.0), (f"{i} b", 1.0)]), seed=2) for i in range(20)]


@given(ROWS, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 4))
def test_the_order_of_completions_changes_nothing(rows: list[Any], random: Any, threshold: float, keep: int) -> None:
    # The same text has the same reward here, as from a verifier.
    rows = list({" ".join(text.split()): (text, value) for text, value in rows}.values())
    mixed = random.sample(rows, len(rows))

    def chosen(rows: list[Any]) -> list[Any]:
        texts, scored = split(rows)
        best = best_of_n(texts, scored)
        kept = rejection_sample(texts, scored, threshold=threshold, keep=keep)
        assert len(kept) <= keep
        assert all((scored[i].value or 0) >= threshold for i in kept)
        return [None if best is None else texts[best], [texts[i] for i in kept]]

    assert chosen(rows) == chosen(mixed)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 completions, 1 rewards"):
        best_of_n(["a", "b"], [Scored(value=1.0)])
