"""Before and after: two models answer the same held-out prompts with the same seeds, and a program measures both.

The measures are the length and, for each principle with a check, how nearly the answers satisfy it. Differences are
paired by prompt; the intervals are 95 % percentile bootstraps over prompts. Judged measures are not part of it: the
judge that made the training labels would grade its own work.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from pydantic import Field

from rlaif.checks import count_words, degree
from rlaif.clients.base import Client
from rlaif.config.generate import PolicyConfig
from rlaif.errors import QualityError
from rlaif.evaluation.paired import interval
from rlaif.sampling import sample, with_system
from rlaif.types import Completion, Constitution, Dropped, Prompt, Row


class Metric(Row):
    """A measure of the answers: means over all samples, and the paired difference with its 95 % interval."""

    name: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    aim: str | None = None  # the direction the constitution asks for: "up", "down" or None

    @property
    def moved(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.low > 0 or self.high < 0


class Example(Row):
    prompt: str
    before: str
    after: str


class BeforeAfter(Row):
    """The content of comparison.json. ``prompts``: how many both models answered; ``lost``: how many one did not."""

    constitution: str
    prompts: int
    samples_per_prompt: int
    lost: int
    metrics: tuple[Metric, ...] = Field(min_length=1)
    examples: tuple[Example, ...]


async def compare_models(
    before: Client,
    after: Client,
    prompts: Sequence[Prompt],
    constitution: Constitution,
    config: PolicyConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BeforeAfter:
    """Both models on every prompt, ``config.n`` samples each, the same seeds for both.

    An answer that was cut off at ``max_tokens`` counts with the words it has, and the share of such answers is a metric
    of its own. Raises QualityError when no prompt was answered by both.
    """
    answers = []
    for done, client in enumerate((before, after)):
        answers.append(await asyncio.gather(*(_answers(p, client, config, seed) for p in prompts)))
        progress((done + 1) * len(prompts), 2 * len(prompts))
    both = [(p, b, a) for p, b, a in zip(prompts, *answers, strict=True) if b and a]
    if not both:
        raise QualityError("no held-out prompt was answered by both models; there is nothing to compare.")
    metrics = [
        _metric(name, [([measure(c) for c in b], [measure(c) for c in a]) for _, b, a in both], aim, seed)
        for name, measure, aim in _measures(constitution)
    ]
    return BeforeAfter(
        constitution=constitution.name,
        prompts=len(both),
        samples_per_prompt=config.n,
        lost=len(prompts) - len(both),
        metrics=tuple(metrics),
        examples=tuple(
            Example(prompt=p.messages[-1].content, before=b[0].text, after=a[0].text) for p, b, a in both[:10]
        ),
    )


async def _answers(prompt: Prompt, client: Client, config: PolicyConfig, seed: int) -> list[Completion]:
    completions, dropped = await sample(with_system(prompt, config.system), client, config, seed)
    return [] if any(_never_given(d) for d in dropped) else completions


def _never_given(row: Dropped) -> bool:
    return row.reason == "provider_error"


Measure = Callable[[Completion], float]


def _measures(constitution: Constitution) -> Iterable[tuple[str, Measure, str | None]]:
    yield "words", lambda c: float(count_words(c.text)), None
    yield "cut off", lambda c: float(c.finish_reason == "length"), None
    for p in constitution.principles:
        if p.check is not None:
            check = p.check
            yield f"check: {p.id}", lambda c, check=check: degree(check, c.text), "up"  # type: ignore[misc]


def _metric(name: str, rows: Sequence[tuple[list[float], list[float]]], aim: str | None, seed: int) -> Metric:
    pairs = [(mean(b), mean(a)) for b, a in rows]
    differences = [a - b for b, a in pairs]
    low, high = interval(differences, f"{seed} {name}")
    return Metric(
        name=name,
        before=round(mean(b for b, _ in pairs), 4),
        after=round(mean(a for _, a in pairs), 4),
        difference=round(mean(differences), 4),
        low=round(low, 4),
        high=round(high, 4),
        aim=aim,
    )
