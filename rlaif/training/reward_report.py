"""How good a reward model is on held-out pairs, beside what takes no model: preferring the longer answer, and a bag of
words trained on the same pairs. Imports torch where the bag of words is fitted."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif.config.base import Config
from rlaif.data_doctor.report import wilson
from rlaif.judging.calibration import Stated, expected_calibration_error, reliability
from rlaif.preferences import Pair

if TYPE_CHECKING:
    import torch


class Share(Config):
    """A share with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float


class CalibrationBin(Config):
    """Pairs whose preferred side the model holds better with nearly the same probability: how many, the mean
    probability, and how often it is right."""

    n: int
    confidence: float
    accuracy: float


class RewardReport(Config):
    """``accuracy``: share of held-out pairs whose chosen answer has the higher score, ties counting a half. ``loss``:
    mean of -log sigmoid(chosen - rejected). ``ece``: mean distance of sigmoid(difference) from how often it is right.
    ``length_correlation``: Pearson, of a score with the characters of its answer. ``longer_wins``, ``bag_of_words``:
    the accuracy of two floors on the same pairs. ``too_long``: held-out pairs that were left out."""

    pairs: int
    too_long: int
    accuracy: Share
    loss: float
    ece: float | None
    reliability: list[CalibrationBin]
    length_correlation: float | None
    longer_wins: Share
    bag_of_words: Share | None
    mean: float
    std: float


def make_report(
    held_out: Sequence[Pair], chosen: Sequence[float], rejected: Sequence[float], train: Sequence[Pair], too_long: int
) -> RewardReport:
    """``chosen``, ``rejected``: the scores of each held-out pair. ``train``: what a bag of words may learn from."""
    differences = [c - r for c, r in zip(chosen, rejected, strict=True)]
    stated = [Stated(_sigmoid(x), "a") for x in differences]
    scores = [*chosen, *rejected]
    lengths = [len(p.chosen_text) for p in held_out] + [len(p.rejected_text) for p in held_out]
    return RewardReport(
        pairs=len(held_out),
        too_long=too_long,
        accuracy=_share(differences),
        loss=statistics.fmean(max(0.0, -x) + math.log1p(math.exp(-abs(x))) for x in differences),
        ece=expected_calibration_error([[s] for s in stated]).value,
        reliability=[
            CalibrationBin(n=b.n, confidence=b.confidence, accuracy=b.accuracy)
            for b in reliability(stated)
            if b.confidence is not None and b.accuracy is not None
        ],
        length_correlation=_correlation(scores, lengths),
        longer_wins=_share([len(p.chosen_text) - len(p.rejected_text) for p in held_out]),
        bag_of_words=_share(bag_of_words(train, held_out)) if len(train) >= 20 else None,
        mean=statistics.fmean(scores),
        std=statistics.pstdev(scores) or 1.0,
    )


def _share(differences: Sequence[float]) -> Share:
    right = sum(0.5 if x == 0 else float(x > 0) for x in differences)
    low, high = wilson(right, len(differences))
    return Share(value=right / len(differences), low=low, high=high)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None where one of them is constant."""
    if len(one) < 2 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return statistics.correlation(one, other)


_WORD = re.compile(r"\w+|[^\w\s]")
_WORDS, _PENALTY = 5000, 1.0


def bag_of_words(train: Sequence[Pair], test: Sequence[Pair]) -> list[float]:
    """Differences in score, chosen minus rejected, of each pair of ``test``: a logistic regression on the differences
    in log(1 + count) of the ``_WORDS`` most frequent words of the answers of ``train``."""
    import torch

    counts: Counter[str] = Counter()
    for pair in train:
        counts.update({*_words(pair.chosen_text), *_words(pair.rejected_text)})
    columns = {word: i for i, (word, n) in enumerate(counts.most_common(_WORDS)) if n > 1}
    if not columns:
        return [0.0] * len(test)
    features = _differences(train, columns)
    weights = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.softplus(-(features @ weights)).sum() + _PENALTY * weights.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    return (_differences(test, columns) @ weights.detach()).tolist()  # type: ignore[no-any-return]


def _differences(pairs: Sequence[Pair], columns: dict[str, int]) -> "torch.Tensor":
    import torch

    found = torch.zeros(len(pairs), len(columns), dtype=torch.float64)
    for row, pair in enumerate(pairs):
        for text, sign in ((pair.chosen_text, 1.0), (pair.rejected_text, -1.0)):
            for word, n in Counter(_words(text)).items():
                if word in columns:
                    found[row, columns[word]] += sign * math.log1p(n)
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
