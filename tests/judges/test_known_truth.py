"""Judges whose truth is known and of whose replies one in twenty is rubbish, through every mode and panel.

No rubbish becomes a label, the labels are the ones that the truth predicts, and the counts add up.
"""

from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from rlaif.clients.base import Identity, request_key
from rlaif.errors import QualityError
from rlaif.hashing import uniform
from rlaif.panel import decisive
from rlaif.types import ChatReply, ChatRequest, Judgement, Unjudged
from tests import fakes
from tests.judges import modes
from tests.running import dropped, judgements, quality, rows, run

SHARE = 0.05
SPOILED: set[str] = set()  # the keys of the requests that were answered with rubbish
PROMPTS = [f"Question {i}: what, why: and how?" for i in range(12)]
ALL = 6 * len(PROMPTS)  # comparisons

TEXTS = ("", "I can't say.", "10/10", "7", "X > X", "yes, no", "K", "P(A)=0.5", "A", "X or Y", "Verdict: W", "X\u200b")


def rubbish(request: ChatRequest, right: str | ChatReply, draw: float) -> ChatReply:
    """What no grammar reads: other words, right ones that were cut off or filtered, no probabilities or hardly any."""
    if isinstance(right, str):
        texts = [ChatReply(text=text, finish_reason="stop") for text in (*TEXTS, f"{right} or so", f"{right}\ufeff")]
        ended = [ChatReply(text=right, finish_reason=end) for end in ("length", "content_filter", "unknown")]
        replies = [*texts, *ended]
    else:
        replies = [
            right.model_copy(update={"logprobs": None}),
            right.model_copy(update={"logprobs": (modes.token({"The": 0.9}),)}),
            right.model_copy(update={"logprobs": (modes.token({"The": 0.9, request.labels[0]: 0.01}),)}),
            right.model_copy(update={"finish_reason": "content_filter"}),
            right.model_copy(update={"finish_reason": "refusal"}),
        ]
    return replies[int(draw * len(replies))]


def spoiling(name: str, judge: Callable[[ChatRequest], str | ChatReply]) -> Callable[[ChatRequest], str | ChatReply]:
    """``judge``, of whose replies one in twenty is rubbish, as ``scripted:tests.judges.test_known_truth:NAME``."""
    identity = Identity(backend="scripted", model=f"{__name__}:{name}")

    def script(request: ChatRequest) -> str | ChatReply:
        right = judge(request)
        key = request_key(identity, request)
        if uniform("rubbish", key) >= SHARE:
            return right
        SPOILED.add(key)
        return rubbish(request, right, uniform("which", key))

    return script


def noisy(name: str, right: float, p: float = 0.9) -> Callable[[ChatRequest], ChatReply]:
    """Prefers the better response of a share ``right`` of the pairs, in either order, with a probability of ``p``."""

    def judge(request: ChatRequest) -> ChatReply:
        fakes.SENT.append(request)
        first, second = modes.pair_of(request)
        errs = uniform(name, *sorted((first, second))) >= right
        p_first = p if (first > second) != errs else 1 - p
        return modes.said({"X": 0.9 * p_first, "Y": 0.9 * (1 - p_first), "The": 0.1})

    return judge


def half_sure(request: ChatRequest) -> ChatReply:
    """Sure of six pairs in ten, and of these right in nine of ten; of the others it says 0.55, rightly or not."""
    pair = sorted(modes.pair_of(request))
    return noisy("half sure", 0.9, 0.97 if uniform("sure", *pair) < 0.6 else 0.55)(request)


one = spoiling("one", noisy("one", 0.8))
two = spoiling("two", noisy("two", 0.8))
three = spoiling("three", noisy("three", 0.8))
cheap = spoiling("cheap", half_sure)
strong = spoiling("strong", noisy("strong", 0.95))
by_gap = spoiling("by_gap", modes.cheap)
in_words = spoiling("in_words", fakes.judge)
score = spoiling("score", modes.score)
rubric = spoiling("rubric", modes.rubric)
ranking = spoiling("ranking", modes.ranking)


@pytest.fixture(autouse=True)
def nothing_spoiled() -> Iterator[None]:
    SPOILED.clear()
    yield
    assert SPOILED  # or the test has shown nothing


def go(folder: Path, *names: str, prompts: int = 12, constitution: str = "", **judge: Any) -> dict[str, Any]:
    logprobs = judge.pop("logprobs", False)
    models = [{"model": f"scripted:{__name__}:{name}", "logprobs": logprobs} for name in names]
    more = {"constitution": constitution} if constitution else {}
    settings = {"models": models, "ties": False, **judge}
    return run(
        folder, PROMPTS[:prompts], judge_settings=settings, pairing={"strategy": "all"}, max_unjudged=1.0, **more
    ).manifest


Pairs = set[tuple[str, str]]


def qualities(folder: Path) -> dict[str, int]:
    return {c["id"]: quality(c["text"]) for c in rows(folder, "completions")}


def spoiled(judgement: Judgement) -> bool:
    return not SPOILED.isdisjoint(judgement.request_keys)


def checked(folder: Path, manifest: dict[str, Any], *, panel: Any = "mean") -> tuple[Pairs, Pairs]:
    """The laws of every run; the pairs (chosen, rejected), and all comparisons that no rubbish decides."""
    by_comparison: dict[tuple[str, str], list[Judgement]] = {}
    for j in judgements(folder):
        assert isinstance(j.outcome, Unjudged) == spoiled(j), j
        by_comparison.setdefault((j.a, j.b), []).append(j)
    clean = {ids for ids, found in by_comparison.items() if not any(map(spoiled, decisive(panel, found)))}
    gone = [d for d in dropped(folder) if d.b is not None]
    assert {(d.a, d.b) for d in gone if d.reason == "unjudged"} == set(by_comparison) - clean
    pairs = rows(folder, "pairs")
    for pair in pairs:
        assert SPOILED.isdisjoint(pair["evidence"])
        assert pair["evidence"]
    counts = manifest["counts"]
    made, judged = counts["comparisons"], counts["judgements"]
    assert made["planned"] == len(by_comparison) == made["pairs"] + sum(made["dropped"].values())
    assert made["pairs"] == len(pairs)
    assert sum(made["dropped"].values()) == len(gone)
    assert judged["made"] == sum(judged["verdicts"].values()) + sum(judged["unjudged"].values())
    assert sum(judged["unjudged"].values()) == sum(map(spoiled, judgements(folder)))
    return {(p["chosen_id"], p["rejected_id"]) for p in pairs}, clean


def expected(folder: Path, clean: Pairs, worth: Callable[[int], float] = float) -> Pairs:
    """The labels of a judge that is never wrong and sees no more than ``worth`` of a quality."""
    of = {id_: worth(q) for id_, q in qualities(folder).items()}
    return {(a, b) if of[a] > of[b] else (b, a) for a, b in clean if of[a] != of[b]}


def accuracy(folder: Path, pairs: Pairs) -> float:
    of = qualities(folder)
    return sum(of[chosen] > of[rejected] for chosen, rejected in pairs) / len(pairs)


def near(share: float, n: int) -> Any:
    """Within three and a half standard deviations of a share of n."""
    return pytest.approx(share, abs=3.5 * sqrt(share * (1 - share) / n))


# ---------------------------------------------------------------------------------------------------------- panels


@pytest.mark.parametrize("panel", ["mean", "majority"])
def test_three_judges_are_as_right_as_three_independent_votes(tmp_path: Path, panel: str) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "one", "two", "three", panel=panel, logprobs=True))
    assert len(clean) / ALL == near((1 - SHARE) ** 6, ALL)
    assert accuracy(tmp_path, pairs) == near(0.8**3 + 3 * 0.8**2 * 0.2, len(pairs))
    assert len(pairs) == len(clean)


def test_a_veto_leaves_what_both_prefer(tmp_path: Path) -> None:
    manifest = go(tmp_path, "one", "two", panel="veto", logprobs=True)
    pairs, clean = checked(tmp_path, manifest)
    agree = 0.8**2 + 0.2**2
    assert len(pairs) / len(clean) == near(agree, len(clean))
    assert accuracy(tmp_path, pairs) == near(0.8**2 / agree, len(pairs))
    assert manifest["counts"]["comparisons"]["dropped"]["vetoed"] == len(clean) - len(pairs)


def test_after_rubbish_of_the_cheap_judge_the_strong_one_decides(tmp_path: Path) -> None:
    manifest = go(tmp_path, "cheap", "strong", panel="escalate", logprobs=True)
    pairs, clean = checked(tmp_path, manifest, panel="escalate")
    assert pairs
    assert len(pairs) == len(clean)
    of_cheap = {(j.a, j.b) for j in judgements(tmp_path) if j.judge.endswith("cheap") and spoiled(j)}
    of_strong = {(j.a, j.b) for j in judgements(tmp_path) if j.judge.endswith("strong")}
    assert of_cheap
    assert of_cheap <= of_strong
    assert of_cheap & {ids for pair in pairs for ids in (pair, pair[::-1])}
    decided = 0.6 * (1 - SHARE) ** 2  # by the cheap one
    assert len(of_strong) / ALL == near(1 - decided, ALL)
    assert accuracy(tmp_path, pairs) == near(decided * 0.9 + (1 - decided) * 0.95, len(pairs))


# --------------------------------------------------------------------------------------------------- one and modes


def test_where_a_first_look_suffices_the_labels_are_those_of_the_truth(tmp_path: Path) -> None:
    manifest = go(tmp_path, "by_gap", orders="auto", audit=0.2, logprobs=True)
    pairs, clean = checked(tmp_path, manifest)
    of = qualities(tmp_path)
    # Where the two are near, it prefers a position, and two looks say nothing.
    assert pairs == {(a, b) for a, b in expected(tmp_path, clean) if of[a] - of[b] > 300}
    found = manifest["orders"]
    assert 0 < found["asked_twice"] < found["questions"]


def test_in_words_both_orders_give_the_labels_of_the_truth(tmp_path: Path) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "in_words", ties=True))
    assert pairs == expected(tmp_path, clean)
    assert len(clean) / ALL == near((1 - SHARE) ** 2, ALL)


def test_grades_in_words_give_the_labels_of_their_tenths(tmp_path: Path) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "score", type="score", labels="text"))
    assert pairs == expected(tmp_path, clean, lambda q: q // 100)
    assert len(clean) / ALL == near((1 - SHARE) ** 2, ALL)


def test_grades_by_probability_give_the_labels_of_the_truth(tmp_path: Path) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "score", type="score", labels="logprob", logprobs=True))
    assert pairs == expected(tmp_path, clean)


RUBRIC = """
name: thresholds
version: "1"
principles:
  - {id: low, compare: "above 300?"}
  - {id: high, compare: "above 600?", weight: 2.0}
"""


@pytest.mark.parametrize(
    ("settings", "second"),
    [
        ({"principles": "each"}, 2),
        ({"principles": "each", "logprobs": True}, 2),
        ({"principles": "all"}, 2),
        ({"rubric": "generated"}, 1),
    ],
)
def test_a_rubric_gives_the_labels_of_what_is_met(tmp_path: Path, settings: dict[str, Any], second: int) -> None:
    manifest = go(tmp_path, "rubric", type="rubric", constitution=RUBRIC, **settings)
    pairs, clean = checked(tmp_path, manifest)
    assert pairs == expected(tmp_path, clean, lambda q: (q >= 300) + second * (q >= 600))


def test_a_ranking_gives_the_labels_of_the_truth(tmp_path: Path) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "ranking", type="ranking"))
    assert pairs == expected(tmp_path, clean)


def test_a_tournament_lets_no_rubbish_in_and_is_mostly_right(tmp_path: Path) -> None:
    pairs, clean = checked(tmp_path, go(tmp_path, "ranking", type="ranking", group=2, rounds=3))
    assert accuracy(tmp_path, pairs) > 0.9
    assert len(pairs) <= len(clean)


def test_where_all_is_rubbish_there_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SHARE", 1.0)
    with pytest.raises(QualityError, match="no preference pair"):
        go(tmp_path, "one", "two", panel="veto", logprobs=True, prompts=3)
    assert rows(tmp_path, "pairs") == []
    assert {d.reason for d in dropped(tmp_path)} == {"unjudged"}
    assert all(isinstance(j.outcome, Unjudged) for j in judgements(tmp_path))
