"""`rlaif eval`: two models on the same prompts with the same seeds, every difference with an interval, and a verdict.

The folder is a run folder: every answer is in its ledger, so running again goes on and pays nothing twice, and a task
may be added later. It leaves ``eval.json``, ``eval.html`` and ``answers.jsonl``. One model is open at a time.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlaif.config.evaluate import EvalConfig
from rlaif.config.models import ModelConfig
from rlaif.engine import Budget, Ledger, open_client
from rlaif.errors import QualityError
from rlaif.evaluation.asked import Answer, Asked
from rlaif.evaluation.paired import Figure, Measured, figure
from rlaif.evaluation.tasks import Sampled, Task, WinRate, open_task, style
from rlaif.judges import make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.pages import page
from rlaif.runs import RowFiles, on_disk, open_run, write_text
from rlaif.types import Completion

REPORT, PAGE, ANSWERS = "eval.json", "eval.html", "answers"
BESIDE = "beside"  # the task name of figures that nobody asked for and that fail nothing

Progress = Callable[[int, int, str], None]  # asked, of how many, of whom


@dataclass(frozen=True)
class Evaluation:
    """Where it is, and the content of eval.json. ``best``: the model of ``after`` that the verdict is about."""

    out: Path
    best: str
    report: dict[str, Any]

    @property
    def failed(self) -> list[str]:
        """The figures that are certainly worse than before, by more than their tolerance."""
        failed: list[str] = self.report["verdict"]["failed"]
        return failed

    def check(self) -> None:
        """Raises QualityError where anything failed."""
        if self.failed:
            raise QualityError(f"{self.out}: worse than before: {'; '.join(self.failed)}; see {PAGE}.")


def evaluate(
    config: EvalConfig, *, fresh: bool = False, progress: Progress = lambda done, total, note: None
) -> Evaluation:
    """Compare ``config.before`` with every model of ``config.after``, and write what was found into ``config.out``.

    Raises InputError before anything is spent, ProviderError when a provider refuses or the budget is reached, and
    QualityError when a task has no row that both models answered. Being worse raises nothing: see `Evaluation.check`.
    """
    tasks = {name: open_task(task) for name, task in config.tasks.items()}
    for task in tasks.values():
        task.load()
    with open_run(config.out, config, fresh=fresh) as ledger:
        return asyncio.run(_Evaluation(config, tasks, ledger, progress).main())


class _Evaluation:
    def __init__(self, config: EvalConfig, tasks: Mapping[str, Task], ledger: Ledger, progress: Progress) -> None:
        self.config, self.tasks, self.ledger, self.progress = config, tasks, ledger, progress
        self.budget = Budget(config.max_cost, ledger)
        self.done = 0

    async def main(self) -> Evaluation:
        self.budget.check()
        answers = {}
        for stage, model in self._models().items():
            answers[stage] = await self._answers(stage, model)
        figures = {}
        async with AsyncExitStack() as stack:
            await self._open_judges(stack)
            for stage in answers:
                if stage != "before":
                    figures[stage] = await self._figures(answers["before"], answers[stage])
        return self._finish(answers, figures)

    def _models(self) -> dict[str, ModelConfig]:
        several = len(self.config.after) > 1
        named = {f"after-{n}" if several else "after": model for n, model in enumerate(self.config.after)}
        return {"before": self.config.before, **named}

    async def _answers(self, stage: str, model: ModelConfig) -> dict[str, list[Answer]]:
        async with AsyncExitStack() as stack:
            client = open_client(model, self.ledger, stage, self.budget)
            stack.push_async_callback(client.aclose)
            asked = Asked(
                client, self.config.sampling, self.config.seed, self.config.in_flight, lambda: self._tell(model.model)
            )
            return {name: await task.ask(asked) for name, task in self.tasks.items()}

    def _tell(self, who: str) -> None:
        self.done += 1
        note = ", ".join(filter(None, (who, self.budget.note())))
        self.progress(self.done, self._total, note)

    @property
    def _total(self) -> int:
        return sum(len(task.rows) for task in self.tasks.values()) * (1 + len(self.config.after))

    async def _open_judges(self, stack: AsyncExitStack) -> None:
        for task in self.tasks.values():
            if isinstance(task, WinRate):
                task.seed = self.config.seed
                for model in task.config.judge.models:
                    client = open_client(model, self.ledger, "judge", self.budget)
                    stack.push_async_callback(client.aclose)
                    labels = await resolve_labels(client, task.config.judge)
                    task.judges.append(make_judge(client, task.config.judge, labels))

    async def _figures(self, before: Mapping[str, list[Answer]], after: Mapping[str, list[Answer]]) -> list[Figure]:
        found: list[Figure] = []
        for name, task in self.tasks.items():
            for measured in await task.measure(before[name], after[name]):
                found.append(self._figure(name, measured, task.config.tolerance, task.config.gate))
        sampled = [name for name, answers in before.items() if any(_texts(a) for a in answers)]
        if sampled:
            sides = [[a for name in sampled for a in side[name]] for side in (before, after)]
            found += [self._figure(BESIDE, m, 0.0, False) for m in await style(*sides)]
        return found

    def _figure(self, task: str, measured: Measured, tolerance: float, gate: bool) -> Figure:
        made = figure(task, measured, self.config.seed, tolerance=tolerance, gate=gate)
        if made is None:
            why = ", ".join(f"{n} {reason}" for reason, n in measured.lost.most_common(3)) or "no rows"
            raise QualityError(
                f"{self.config.out}: {task}: no row has a value from both models ({why}); there is nothing to compare."
            )
        return made

    # ------------------------------------------------------------------------------------------------- what it leaves

    def _finish(
        self, answers: Mapping[str, Mapping[str, list[Answer]]], figures: Mapping[str, list[Figure]]
    ) -> Evaluation:
        config, models = self.config, self._models()
        best = max(figures, key=lambda stage: self._merit(figures[stage]))
        failed = [f"{f.task}: {f.name} {f.before:.4g} to {f.after:.4g}" for f in figures[best] if f.fails]
        report = {
            "before": config.before.model,
            "after": [
                {"model": models[stage].model, "figures": [f.model_dump(mode="json") for f in found]}
                for stage, found in figures.items()
            ],
            "best": models[best].model,
            "chosen_by": config.choose_by,
            "verdict": {
                "passed": not failed,
                "failed": failed,
                "better": [f"{f.task}: {f.name}" for f in figures[best] if f.change == "better"],
            },
            "sampling": config.sampling.model_dump(mode="json"),
            "seed": config.seed,
            "cost": self.budget.report(),
            "versions": {"rlaif": version("rlaif")},
        }
        self._write_answers(answers)
        with on_disk(config.out):
            write_text(config.out / REPORT, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            write_text(config.out / PAGE, render(report, self._examples(answers["before"], answers[best])))
        return Evaluation(config.out, models[best].model, report)

    def _merit(self, figures: Sequence[Figure]) -> float:
        """How good a model is by the first figure of ``choose_by``."""
        if self.config.choose_by is None:
            return 0.0
        chosen = next(f for f in figures if f.task == self.config.choose_by)
        return chosen.difference if chosen.aim == "up" else -chosen.difference

    def _write_answers(self, answers: Mapping[str, Mapping[str, list[Answer]]]) -> None:
        with RowFiles(self.config.out, (ANSWERS,)) as files:
            for stage, by_task in answers.items():
                for task, rows in by_task.items():
                    for answer in rows:
                        for completion in _texts(answer):
                            row = {"model": stage, "task": task, **completion.model_dump(mode="json")}
                            files.write(ANSWERS, row)

    def _examples(
        self, before: Mapping[str, list[Answer]], after: Mapping[str, list[Answer]], each: int = 5
    ) -> list[dict[str, str]]:
        made = []
        for name, task in self.tasks.items():
            prompts = task.rows if isinstance(task, Sampled) else ()
            for prompt, old, new in list(zip(prompts, before[name], after[name], strict=False))[:each]:
                if _texts(old) and _texts(new):
                    texts = {"before": _texts(old)[0].text, "after": _texts(new)[0].text}
                    made.append({"task": name, "prompt": prompt.messages[-1].content, **texts})
        return made


def _texts(answer: Answer) -> list[Completion]:
    return [c for c in answer if isinstance(c, Completion)] if isinstance(answer, list) else []


def render(report: Mapping[str, Any], examples: Sequence[Mapping[str, str]]) -> str:
    """The page of an eval.json."""
    return page(Path(__file__).with_name("eval.html.jinja")).render(report=report, examples=examples)
