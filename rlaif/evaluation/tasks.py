"""The tasks of `rlaif eval`, one class each: what a model is asked, and what the two models' answers measure.

verify       sampled answers -> a verifier's reward
checks       sampled answers -> how nearly a program finds a principle satisfied
win_rate     sampled answers -> which of the two a judge prefers, in both orders
choice       given answers   -> which one is likeliest
perplexity   given answers   -> nats a token
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from statistics import fmean
from typing import Protocol

from rlaif.checks import count_words, degree
from rlaif.config.evaluate import Aim, ChecksTask, ChoiceTask, EvalTask, PerplexityTask, VerifyTask, WinRateTask
from rlaif.constitution import load_constitution
from rlaif.errors import InputError, TaskError
from rlaif.evaluation.asked import Answer, Asked, Lost
from rlaif.evaluation.choices import Question, read_questions
from rlaif.evaluation.paired import Measured
from rlaif.judges import Judge, judge_comparison
from rlaif.judging.bias import length_controlled_win_rate
from rlaif.pairing import Decision, decide
from rlaif.prompts import read_columns, read_prompts
from rlaif.types import Comparison, Completion, Constitution, Message, Prompt, Reward
from rlaif.verifiers import open_verifier, task_of
from rlaif.verifiers.refusal import classify
from rlaif.verifiers.text import repeated_share


class Task(Protocol):
    """``load`` reads and checks ``rows``, what is asked about, before anything is spent; ``ask`` asks one model about
    every row; ``measure`` compares the answers of both, row by row."""

    @property
    def config(self) -> EvalTask: ...

    @property
    def rows(self) -> Sequence[object]: ...

    def load(self) -> None: ...

    async def ask(self, model: Asked) -> list[Answer]: ...

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]: ...


class Sampled:
    """Tasks about sampled answers."""

    def __init__(self, source: str, limit: int | None) -> None:
        self.source, self.limit = source, limit
        self.rows: list[Prompt] = []

    def load(self) -> None:
        self.rows = list(islice(read_prompts(self.source), self.limit))
        if not self.rows:
            raise InputError(f"{self.source}: no prompts in it.")

    async def ask(self, model: Asked) -> list[Answer]:
        return await model.each(self.rows, model.answers)


async def _paired(
    rows: Sequence[object],
    before: Sequence[Answer],
    after: Sequence[Answer],
    value: Callable[[int, Answer], Awaitable[float | Lost]],
) -> tuple[list[tuple[float, float]], Counter[str]]:
    """(value before, value after) of every row that has both, and why the others have none."""

    async def both(i: int) -> tuple[float, float] | Lost:
        values = []
        for side in (before[i], after[i]):
            found = side if isinstance(side, Lost) else await value(i, side)
            if isinstance(found, Lost):
                return found
            values.append(found)
        return values[0], values[1]

    found = await asyncio.gather(*(both(i) for i in range(len(rows))))
    return [f for f in found if not isinstance(f, Lost)], Counter(f.reason for f in found if isinstance(f, Lost))


class Verify(Sampled):
    def __init__(self, config: VerifyTask) -> None:
        super().__init__(config.prompts, config.limit)
        self.config = config
        self.verifier = open_verifier(config.verifier, config.options)

    def load(self) -> None:
        super().load()
        asyncio.run(self._prepare())

    async def _prepare(self) -> None:
        try:
            for prompt in self.rows:
                try:
                    await self.verifier.prepare(task_of(prompt))
                except TaskError as error:
                    raise InputError(f"{self.source}: a task of {self.config.verifier} is wrong: {error}") from None
        finally:
            await self.verifier.aclose()

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]:
        slots = asyncio.Semaphore(16)

        async def value(i: int, answer: Answer) -> float | Lost:
            rewards = []
            for completion in _completions(answer):
                async with slots:
                    verdict = await self.verifier.verify(completion.text, task_of(self.rows[i]))
                if not isinstance(verdict, Reward):
                    return Lost(verdict.reason)
                rewards.append(verdict.value)
            return fmean(rewards)

        try:
            rows, lost = await _paired(self.rows, before, after, value)
        finally:
            await self.verifier.aclose()
        return [Measured(self.config.verifier, self.config.aim or "up", rows, lost)]


class Checks(Sampled):
    def __init__(self, config: ChecksTask) -> None:
        super().__init__(config.prompts, config.limit)
        self.config = config
        self.constitution = load_constitution(config.constitution)
        if not any(p.check for p in self.constitution.principles):
            raise InputError(f"{config.constitution}: has no principle with a check; use the task win_rate for it.")

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]:
        made = []
        for principle in self.constitution.principles:
            if (check := principle.check) is not None:

                async def value(i: int, answer: Answer, check: object = check) -> float | Lost:
                    return fmean(degree(check, c.text) for c in _completions(answer))  # type: ignore[arg-type]

                rows, lost = await _paired(self.rows, before, after, value)
                made.append(Measured(principle.id, self.config.aim or "up", rows, lost))
        return made


class WinRate(Sampled):
    """``judges``: opened by the evaluation, which knows the ledger and the budget."""

    def __init__(self, config: WinRateTask) -> None:
        super().__init__(config.prompts, config.limit)
        self.config = config
        self.constitution: Constitution = load_constitution(config.constitution)
        self.judges: list[Judge] = []
        self.seed = 0

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]:
        slots = asyncio.Semaphore(32)
        weights = {p.id: p.weight for p in self.constitution.principles}
        lost: Counter[str] = Counter()
        wins: list[float] = []
        lengths: list[tuple[int, int]] = []

        async def one(prompt: Prompt, old: Completion, new: Completion) -> float | Lost:
            if old.text.strip() == new.text.strip():
                return 0.5
            if not old.text.strip() or not new.text.strip():
                return Lost("an empty answer")
            comparison = Comparison(prompt=prompt, a=new, b=old)
            async with slots:
                said = await judge_comparison(comparison, self.constitution, self.judges, self.seed)
            found = decide(comparison, said, weights, self.config.judge.panel)
            return found.p_a if isinstance(found, Decision) else Lost(found.reason)

        async def row(i: int) -> None:
            sides = before[i], after[i]
            for side in sides:
                if isinstance(side, Lost):
                    lost[side.reason] += 1
                    return
            olds, news = (_completions(side) for side in sides)
            found = await asyncio.gather(*(one(self.rows[i], o, n) for o, n in zip(olds, news, strict=True)))
            for f in found:
                if isinstance(f, Lost):
                    lost[f.reason] += 1
                    return
            wins.append(fmean(f for f in found if not isinstance(f, Lost)))
            lengths.append((_mean_length(news), _mean_length(olds)))

        await asyncio.gather(*(row(i) for i in range(len(self.rows))))
        return [Measured("win rate", self.config.aim or "up", [(0.5, w) for w in wins], lost, _at_equal(wins, lengths))]


def _at_equal(wins: Sequence[float], lengths: Sequence[tuple[int, int]]) -> str:
    if len(wins) < 10:
        return ""
    found = length_controlled_win_rate(wins, lengths)
    return f"at equal length {found.controlled:.3f} (95 % {found.low:.3f} to {found.high:.3f})"


def _mean_length(completions: Sequence[Completion]) -> int:
    return round(fmean(len(c.text) for c in completions))


class Choice:
    def __init__(self, config: ChoiceTask) -> None:
        self.config = config
        self.rows: list[Question] = []

    def load(self) -> None:
        self.rows = read_questions(self.config.data, self.config.group, self.config.limit)

    async def ask(self, model: Asked) -> list[Answer]:
        async def one(question: Question) -> Answer:
            scored = await asyncio.gather(*(model.log_probs(question.messages, text) for text in question.choices))
            lost = next((s for s in scored if isinstance(s, Lost)), None)
            return lost or [s for s in scored if not isinstance(s, Lost)]

        return await model.each(self.rows, one)

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]:
        async def best(i: int, answer: Answer) -> float | Lost:
            q, sums = self.rows[i], _sums(answer)
            right = [q.best] if q.best is not None else sorted(q.right)
            rest = [s for n, s in enumerate(sums) if n not in q.right]
            return float(max(sums[n] for n in right) > max(rest))

        async def share(i: int, answer: Answer) -> float | Lost:
            q, sums = self.rows[i], _sums(answer)
            top = max(sums)
            odds = [math.exp(s - top) for s in sums]
            return math.fsum(odds[n] for n in q.right) / math.fsum(odds)

        behaviour = all(q.behaviour for q in self.rows)
        aim: Aim = self.config.aim or ("down" if behaviour else "up")
        names = ("shows the behaviour", "probability of it") if behaviour else ("right (MC1)", "probability (MC2)")
        made = []
        for name, value in zip(names, (best, share), strict=True):
            made.append(Measured(name, aim, *await _paired(self.rows, before, after, value)))
        if self.config.group is not None:
            made.append(self._flips(before, after))
        return made

    def _flips(self, before: list[Answer], after: list[Answer]) -> Measured:
        """For each group of rows, the share of them that choose another answer than most of the group."""
        groups: dict[str, list[int]] = {}
        for i, question in enumerate(self.rows):
            groups.setdefault(str(question.group), []).append(i)
        rows, lost = [], Counter[str]()
        for members in groups.values():
            if len(members) < 2:
                lost["alone in its group"] += 1
            elif any(isinstance(side[i], Lost) for side in (before, after) for i in members):
                lost["an answer is missing"] += 1
            else:
                rows.append((self._flipped(before, members), self._flipped(after, members)))
        return Measured("flips with the opinion", "down", rows, lost)

    def _flipped(self, answers: list[Answer], members: Sequence[int]) -> float:
        chosen = Counter[str]()
        for i in members:
            sums = _sums(answers[i])
            chosen[self.rows[i].choices[sums.index(max(sums))]] += 1
        return 1 - max(chosen.values()) / len(members)


def _sums(answer: Answer) -> list[float]:
    assert not isinstance(answer, Lost)
    return [math.fsum(tokens) for tokens in answer if isinstance(tokens, list)]


class Perplexity:
    def __init__(self, config: PerplexityTask) -> None:
        self.config = config
        self.rows: list[tuple[tuple[Message, ...], str]] = []

    def load(self) -> None:
        rows = islice(read_columns(self.config.data), self.config.limit)
        self.rows = [_conversation(where, row) for where, row in rows]
        if not self.rows:
            raise InputError(f"{self.config.data}: no rows in it.")

    async def ask(self, model: Asked) -> list[Answer]:
        async def one(row: tuple[tuple[Message, ...], str]) -> Answer:
            return await model.log_probs(*row)

        return await model.each(self.rows, one)

    async def measure(self, before: list[Answer], after: list[Answer]) -> list[Measured]:
        async def nats(i: int, answer: Answer) -> float | Lost:
            assert not isinstance(answer, Lost)
            return -fmean(token for token in answer if isinstance(token, float))

        rows, lost = await _paired(self.rows, before, after, nats)
        note = ""
        if rows:
            old, new = (math.exp(min(fmean(side), 700.0)) for side in zip(*rows, strict=True))
            note = f"perplexity {old:.2f} to {new:.2f}"
        return [Measured("nats a token", self.config.aim or "down", rows, lost, note)]


def _conversation(where: str, row: dict[str, object]) -> tuple[tuple[Message, ...], str]:
    prompt = row.get("prompt", [])
    answer = row.get("completion", row.get("chosen", []))
    turns: object = row.get("messages")
    if turns is None:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        turns = [*before, *after] if isinstance(before, list) and isinstance(after, list) else None
    try:
        messages = tuple(Message.model_validate(t) for t in turns)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        messages = ()
    if len(messages) < 2 or messages[-1].role != "assistant" or not messages[-1].content:
        raise InputError(
            f"{where}: no conversation that ends in an answer; give messages, prompt with completion, or prompt with"
            f" chosen (columns found: {', '.join(row)})."
        )
    return messages[:-1], messages[-1].content


def _completions(answer: Answer) -> list[Completion]:
    assert not isinstance(answer, Lost)
    return [c for c in answer if isinstance(c, Completion)]


# ------------------------------------------------------------------------------------------- beside every sampled task

_STYLE: dict[str, Callable[[Completion], float]] = {
    "words": lambda c: float(count_words(c.text)),
    "cut off": lambda c: float(c.finish_reason == "length"),
    "repeated trigrams": lambda c: repeated_share(c.text, 3),
    "refuses": lambda c: float(classify(c.text) == "refusal"),
}


async def style(before: list[Answer], after: list[Answer]) -> list[Measured]:
    """What a tuned model may change without anybody asking for it: length, repetition, refusals (English only)."""
    made = []
    for name, of in _STYLE.items():

        async def value(i: int, answer: Answer, of: Callable[[Completion], float] = of) -> float | Lost:
            return fmean(map(of, _completions(answer)))

        made.append(Measured(name, None, *await _paired(before, before, after, value)))
    return made


def open_task(config: EvalTask) -> Task:
    """The task of a config. Raises InputError for names and options that are wrong."""
    match config:
        case VerifyTask():
            return Verify(config)
        case WinRateTask():
            return WinRate(config)
        case ChoiceTask():
            return Choice(config)
        case PerplexityTask():
            return Perplexity(config)
        case ChecksTask():
            return Checks(config)
    raise InputError(f"there is no task of type {type(config).__name__}.")
