"""What the report counts: hand-worked rows, and statistics that hold whatever the order of the file."""

import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.report.summary import EXAMPLES, Quantiles, Summary, summarize
from rlaif.types import Completion, Dropped, Judgement, Order, Unjudged, Verdict


def write(folder: Path, name: str, rows: Iterable[Any]) -> None:
    lines = (r if isinstance(r, str) else json.dumps(r) if isinstance(r, dict) else r.model_dump_json() for r in rows)
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def pair(prompt_id: str, chosen: str = "one two three", rejected: str = "one", p: float = 0.8) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"about {prompt_id}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "prompt_id": prompt_id,
        "prob_chosen": p,
        "margin": 2 * p - 1,
        "source": "judge",
        "principles": ["kind"],
        "judge": "openai:x",
        "chosen_id": f"{prompt_id}-a",
        "rejected_id": f"{prompt_id}-b",
        "evidence": ["k1"],
    }


def judgement(
    prompt_id: str,
    order: Order | None,
    p_a: float | None,
    *,
    judge: str = "openai:x",
    principles: tuple[str, ...] = ("kind",),
    mass: float | None = None,
    b: str = "b",
) -> Judgement:
    if p_a is None:
        outcome: Verdict | Unjudged = Unjudged(reason="unparseable", detail=f"rubbish about {prompt_id}")
    else:
        choice = "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"
        outcome = Verdict(choice=choice, p_a=p_a, method="logprob" if mass else "text", label_mass=mass)
    return Judgement(
        prompt_id=prompt_id,
        a=f"{prompt_id}-a",
        b=f"{prompt_id}-{b}",
        principles=principles,
        judge=judge,
        template="pairwise@1",
        order=order,
        outcome=outcome,
    )


def completion(prompt_id: str, index: int, finish: Any = "stop") -> Completion:
    return Completion(
        id=f"{prompt_id}-{'ab'[index]}",
        prompt_id=prompt_id,
        index=index,
        text="a text",
        model="m",
        finish_reason=finish,
    )


def test_rows_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    write(tmp_path, "completions", [completion("p", 0), completion("p", 1), completion("q", 0, "length")])
    write(tmp_path, "pairs", [pair("p"), pair("r", p=1.0)])
    write(
        tmp_path,
        "dropped",
        [
            Dropped(prompt_id="s", a="s-a", b="s-b", reason="tie"),
            Dropped(prompt_id="t", a="t-a", b="t-b", reason="tie"),
            Dropped(prompt_id="t", a="t-a", b="t-c", reason="unjudged"),
            Dropped(prompt_id="q", a="q-a", reason="bad_finish"),
            Dropped(prompt_id="q", reason="too_few_samples"),
        ],
    )
    found = summarize(tmp_path)
    assert (found.prompts, found.samples, found.finish) == (2, 3, {"stop": 2, "length": 1})
    assert (found.pairs, found.comparisons) == (2, 5)
    assert found.dropped_comparisons == {"tie": 2, "unjudged": 1}
    assert found.dropped_samples == {"bad_finish": 1}
    assert found.dropped_prompts == {"too_few_samples": 1}
    assert found.probabilities == {6: 1, 9: 1}  # 0.80 opens a bin; 1.0 is in the last
    assert found.missing == ["manifest.json", "judgements.jsonl"]


def test_lengths_compare_chosen_with_rejected(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [pair("p", "w " * 30, "w " * 10), pair("q", "w", "w w"), pair("r", "w", "w")])
    lengths = summarize(tmp_path).lengths
    assert lengths.chosen.value == pytest.approx(32 / 3)
    assert lengths.rejected.value == pytest.approx(13 / 3)
    assert lengths.longer.value == 0.5  # one longer, one shorter, one equal
    assert lengths.chosen_bins == {2: 1, 0: 2}
    assert lengths.rejected_bins == {1: 1, 0: 2}


def test_what_a_judge_said_is_counted_in_terms_of_what_it_saw(tmp_path: Path) -> None:
    write(
        tmp_path,
        "judgements",
        [
            judgement("p", "ab", 0.9, mass=0.5),  # prefers the first shown
            judgement("p", "ba", 0.7, mass=0.7),  # a is shown second here: prefers the second shown
            judgement("q", "ab", 0.8),  # first shown
            judgement("q", "ba", 0.4),  # b is shown first: first shown again, the orders disagree
            judgement("r", "ab", 0.5),  # tie
            judgement("r", "ba", None),  # no verdict
            judgement("r", None, 1.0, judge="check", principles=("short",)),
        ],
    )
    found = summarize(tmp_path)
    model = found.judges["openai:x"]
    assert (model.drawn, model.judgements, model.unjudged, model.ties) == (3, 6, 1, 1)
    assert model.first.value == 3 / 4
    assert model.p_first.value == pytest.approx((0.9 + 0.3 + 0.8 + 0.6 + 0.5) / 5)
    assert model.confidence.value == pytest.approx((0.9 + 0.7 + 0.8 + 0.6 + 0.5) / 5)
    assert model.agree.value == 1 / 2
    assert model.label_mass.n == 2
    assert model.methods == {"logprob": 2, "text": 3}
    check = found.judges["check"]
    assert (check.drawn, check.judgements, check.first.value, check.agree.value) == (1, 1, None, None)
    assert found.principles["kind"].drawn == 3
    assert found.principles["short"].drawn == 1
    assert found.judgements == 7
    assert found.unjudged == {"unparseable": 1}
    assert found.details == {"unparseable": ["rubbish about r"]}


def test_principles_asked_together_are_each_counted(tmp_path: Path) -> None:
    both = ("kind", "true")
    rows = [judgement("p", "ab", 0.9, principles=both), judgement("p", "ba", 0.9, principles=both)]
    write(tmp_path, "judgements", [*rows, judgement("p", "ab", 0.9, b="c")])
    found = summarize(tmp_path)
    assert {name: (a.drawn, a.judgements) for name, a in found.principles.items()} == {"kind": (2, 3), "true": (1, 2)}
    assert found.judges["openai:x"].drawn == 2


def test_a_shown_pair_has_all_its_judgements_whichever_was_chosen(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [pair("p")])
    mine = [judgement("p", "ab", 0.9), judgement("p", "ba", 0.9)]
    write(tmp_path, "judgements", [judgement("p", "ab", 0.9, b="c"), *mine, judgement("q", "ab", 0.9)])
    [example] = summarize(tmp_path).examples
    assert example.judgements == mine


def test_the_same_pairs_are_shown_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [pair(f"p{n}") for n in range(200)]
    shown = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        write(tmp_path, "pairs", rows)
        shown.append({e.pair.prompt_id for e in summarize(tmp_path).examples})
    assert shown[0] == shown[1] == shown[2]
    assert len(shown[0]) == EXAMPLES


def test_few_pairs_are_all_shown_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [pair(f"p{n}") for n in range(5)])
    assert [e.pair.prompt_id for e in summarize(tmp_path).examples] == ["p0", "p1", "p2", "p3", "p4"]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    write(tmp_path, "pairs", [json.dumps(pair("p", text), ensure_ascii=False), ""])
    [example] = summarize(tmp_path).examples
    assert example.pair.chosen[0].content == text


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("pairs", "{", "Invalid JSON"),
        ("pairs", '{"prompt": [], "chosen": []}', "rejected: Field required"),
        ("judgements", "{}", "prompt_id: Field required"),
        ("dropped", '{"prompt_id": "p", "reason": "bored"}', "reason: Input should be"),
        ("completions", "[1]", "Input should be an object"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, name: str, line: str, said: str) -> None:
    good = {"pairs": pair("p"), "judgements": judgement("p", "ab", 0.9), "completions": completion("p", 0)}
    write(tmp_path, name, [good.get(name, Dropped(prompt_id="p", reason="tie")), line])
    with pytest.raises(InputError) as caught:
        summarize(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}.jsonl:2: ")
    assert said in str(caught.value)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        write(tmp_path, "pairs", (pair(f"p{n}", f"{n} " + "x" * 20_000) for n in range(rows)))
        write(tmp_path, "judgements", (judgement(f"p{n}" + "x" * 20_000, "ab", None) for n in range(rows)))
        tracemalloc.start()
        summarize(tmp_path)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    few, many = 50, 400
    size = (tmp_path / "pairs.jsonl").stat().st_size if peak(few) else 0
    # Small strings are cached by the parser, up to a fixed number; the texts are what would fill the memory.
    assert peak(many) - peak(few) < 0.1 * (many - few) / few * size


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_right_to_the_width_of_a_bin(numbers: list[float], q: float) -> None:
    quantiles = Quantiles()
    for x in numbers:
        quantiles.add(x)
    found = quantiles.at(q)
    assert found is not None
    assert sum(x <= found + 0.001 for x in numbers) >= q * len(numbers)
    assert sum(x >= found - 0.001 for x in numbers) >= (1 - q) * len(numbers)


def test_there_is_no_quantile_of_nothing() -> None:
    assert Quantiles().at(0.5) is None
    assert Summary().lengths.chosen.value is None
