"""A generate run: prompts -> completions -> judgements -> pairs, in one run folder. Knows every stage.

Prompts stream through: each is sampled, judged and paired on its own, at most ``prompts_in_flight`` at once (as many as
fill a batch, with ``transport: batch``), and written in the file's order. The ledger is the only durable state;
everything else is computed from (config, prompts, ledger), so running again goes on where a run stopped, and sends
nothing that was answered before.
"""

import asyncio
import contextlib
import json
import pickle
import platform
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rlaif.clients.base import Client
from rlaif.config.dataset import DatasetConfig
from rlaif.config.generate import GenerateConfig
from rlaif.config.models import ModelConfig
from rlaif.constitution import load_constitution
from rlaif.data_doctor import Removal, find_removals, read_benchmarks
from rlaif.data_folder import write_data
from rlaif.dataset import preference_record
from rlaif.engine import Budget, open_client
from rlaif.engine.ledger import Ledger
from rlaif.engine.stored import open_stored
from rlaif.engine.votes import read_votes
from rlaif.errors import QualityError, TaskError
from rlaif.judges import Judge, judge_comparisons, make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.judges.stats import JudgingStats
from rlaif.judging.card import CARD, CheckConfig, gate
from rlaif.judging.gold import read_gold
from rlaif.pairing import Rewards, decide_by_rewards, pair, plan_comparisons, with_revisions
from rlaif.prompts import PromptFile, check_prompts, read_prompts, read_samples
from rlaif.revision import Reviser
from rlaif.rewards import PartsMonitor, Scored, open_run_reward, rejection_sample
from rlaif.runs import LEDGER, RowFiles, check_answered, on_disk, open_run, write_manifest
from rlaif.sampling import given, is_usable, sample, with_system
from rlaif.types import (
    Comparison,
    Completion,
    Constitution,
    Dropped,
    Judgement,
    PreferencePair,
    Prompt,
    RewardRow,
    Unjudged,
)
from rlaif.verifiers import Task, task_of

FILES = ("completions", "judgements", "pairs", "dropped")
REWARD_FILES = ("rewards", "best")  # where verifiers are asked
STAGES = ("sample", "revise", "judge")  # who is asked
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Counts:
    """The run's health report. ``comparisons == pairs + the dropped ones``, and so for samples."""

    prompts: int = 0
    samples: int = 0
    usable: int = 0
    comparisons: int = 0
    pairs: int = 0
    verdicts: int = 0
    dropped_comparisons: Counter[str] = field(default_factory=Counter)
    dropped_samples: Counter[str] = field(default_factory=Counter)
    dropped_prompts: Counter[str] = field(default_factory=Counter)
    unjudged: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    voted: int = 0  # comparisons that people voted on, and their votes
    votes: int = 0
    cost: str = ""  # what was spent so far, for a reader; empty where nothing costs anything

    @property
    def judgements(self) -> int:
        return self.verdicts + self.unjudged.total()

    @property
    def share_unjudged(self) -> float:
        """Of the judgements a model was asked for."""
        asked = self.judgements - self.methods["check"]
        return self.unjudged.total() / asked if asked else 0.0

    def add(self, result: "PromptResult") -> None:
        self.prompts += 1
        usable = sum(map(is_usable, result.completions))
        self.usable += usable
        self.pairs += len(result.pairs)
        self.voted += len(result.votes)
        self.votes += sum(map(len, result.votes.values()))
        for d in result.dropped:
            if d.b is not None:
                self.dropped_comparisons[d.reason] += 1
            elif d.reason in ("too_few_samples", "task_error"):
                self.dropped_prompts[d.reason] += 1
            else:
                self.dropped_samples[d.reason] += 1
        self.samples = self.usable + self.dropped_samples.total()
        self.comparisons = self.pairs + self.dropped_comparisons.total()
        for j in result.judgements:
            if isinstance(j.outcome, Unjudged):
                self.unjudged[j.outcome.reason] += 1
            else:
                self.verdicts += 1
                self.methods[j.outcome.method] += 1

    def take_out(self, dropped: Dropped) -> None:
        """One pair becomes a dropped comparison."""
        self.pairs -= 1
        self.dropped_comparisons[dropped.reason] += 1

    def report(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "prompts_without_comparisons": dict(sorted(self.dropped_prompts.items())),
            "samples": {
                "made": self.samples,
                "usable": self.usable,
                "dropped": dict(sorted(self.dropped_samples.items())),
            },
            "comparisons": {
                "planned": self.comparisons,
                "pairs": self.pairs,
                "dropped": dict(sorted(self.dropped_comparisons.items())),
            },
            "judgements": {
                "made": self.judgements,
                "verdicts": dict(sorted(self.methods.items())),
                "unjudged": dict(sorted(self.unjudged.items())),
                "share_unjudged": round(self.share_unjudged, 6),
            },
            **({"human": {"comparisons": self.voted, "votes": self.votes}} if self.voted else {}),
        }


class PromptResult(NamedTuple):
    """All rows of one prompt."""

    prompt: Prompt
    completions: list[Completion]
    judgements: list[Judgement]
    pairs: list[PreferencePair]
    dropped: list[Dropped]
    scored: dict[str, Scored] = {}  # by completion id, where the reward has a task in the prompt
    comparisons: Sequence[Comparison] = ()
    rewards: Rewards | None = None
    votes: dict[tuple[str, str], tuple[str, ...]] = {}  # of people, by comparison


@dataclass(frozen=True)
class GenerateResult:
    """Where the run is, and what it made. ``manifest`` is the content of manifest.json."""

    out: Path
    manifest: dict[str, Any]


Progress = Callable[[Counts, int], None]  # called with the counts so far and the number of prompts, after each prompt


def generate(
    config: GenerateConfig,
    *,
    limit: int | None = None,
    fresh: bool = False,
    reparse: bool = False,
    progress: Progress | None = None,
) -> GenerateResult:
    """Run ``config`` to its end in ``config.out``, going on from what is there (``fresh``: from nothing).

    ``limit``: only the first that many prompts. ``reparse``: send nothing and need no key; every file is made anew from
    the replies in the ledger, and what is not there becomes a row that says so. Raises InputError before anything is
    spent, ProviderError when the provider refuses or the disk is full, and QualityError when a judge is below
    ``judge.min_kappa`` (only the labelled pairs were judged by then), or, with everything written, when too many
    verdicts are missing or no pair came out.
    """
    constitution = load_constitution(config.constitution)
    samples = config.policy.completions
    found = check_prompts(str(samples or config.prompts), samples=samples is not None)
    read_benchmarks(config.dataset.against, config.dataset.ngram)  # one that is none is told before anything is spent
    if config.judge.gold is not None and not reparse:
        read_gold(config.judge.gold)  # wrong labels are told before --fresh forgets anything
    if reparse:
        check_answered(config.out)
    with open_run(config.out, config, fresh=fresh and not reparse) as ledger:
        run = _Run(config, constitution, ledger, found, limit, progress, reparse)
        return asyncio.run(run.main())


def generate_beside(
    config: GenerateConfig,
    ledger: Ledger,
    *,
    limit: int | None = None,
    reparse: bool = False,
    progress: Progress | None = None,
) -> GenerateResult:
    """What a run would have made of the same samples by another ``config`` (its constitution, its pairing), in
    ``config.out``, a folder of its own. Nothing is sampled: what no sample is stored for stays without one. Judges and
    revisers are asked, through the ``ledger`` of that run, only what it holds no reply to (``reparse``: nothing).

    Raises what `generate` does."""
    samples = config.policy.completions
    found = check_prompts(str(samples or config.prompts), samples=samples is not None)
    constitution = load_constitution(config.constitution)
    run = _Run(config, constitution, ledger, found, limit, progress, reparse, asks=("revise", "judge"))
    return asyncio.run(run.main())


def recall(config: GenerateConfig, out: Path) -> None:
    """Write into the folder ``out`` the rows that the replies stored so far in ``config.out`` make. Sends nothing, runs
    no verifier, and leaves the run folder as it is: a run may be going on in it.

    Raises InputError where the ledger, the prompts or the constitution cannot be read."""
    constitution = load_constitution(config.constitution)
    samples = config.policy.completions
    found = check_prompts(str(samples or config.prompts), samples=samples is not None)
    elsewhere = config.model_copy(update={"out": out, "reward": None, "dataset": DatasetConfig(drop=())})
    with Ledger.open(config.out / LEDGER, read_only=True) as ledger, contextlib.suppress(QualityError):
        asyncio.run(_Run(elsewhere, constitution, ledger, found, None, None, True).main())


class _Run:
    def __init__(
        self,
        config: GenerateConfig,
        constitution: Constitution,
        ledger: Ledger,
        found: PromptFile,
        limit: int | None,
        progress: Progress | None,
        reparse: bool,
        asks: Collection[str] = STAGES,
    ) -> None:
        self.config, self.constitution, self.ledger = config, constitution, ledger
        self.found, self.limit, self.progress, self.reparse = found, limit, progress, reparse
        self.asks = () if reparse else asks  # the other stages are answered from the ledger alone
        self.counts = Counts()
        self.budget = Budget(None if reparse else config.max_cost, ledger)
        self.policy: Client | None = None
        self.reviser: Reviser | None = None
        self.judges: list[Judge] = []
        self.judging = JudgingStats(config.judge, config.seed)
        self.measured: list[dict[str, Any]] = []  # of each judge, where there are labelled pairs
        self.votes = read_votes(ledger)
        self.weights = {p.id: p.weight for p in constitution.principles}
        self.verifying = _Verifying(config) if config.reward is not None else None
        self.started = time.monotonic()

    async def main(self) -> GenerateResult:
        config = self.config
        async with AsyncExitStack() as stack:
            if config.policy.model is not None:
                self.policy = self._open(config.policy.model, "sample")
                stack.push_async_callback(self.policy.aclose)
            if config.revision is not None and (model := config.revision.model or config.policy.model):
                client = self._open(model, "revise")
                stack.push_async_callback(client.aclose)
                self.reviser = Reviser(client, config.revision, self.constitution)
            clients = []
            for model in config.judge.models:
                clients.append(self._open(model, "judge"))
                stack.push_async_callback(clients[-1].aclose)
            if self.verifying is not None:
                stack.push_async_callback(self.verifying.aclose)
            self.budget.check()  # before the first request: some judges are asked a question when they are resolved
            await self._measure_judges()
            for client in clients:
                self.judges.append(make_judge(client, config.judge, await resolve_labels(client, config.judge)))
            with RowFiles(config.out, FILES + (REWARD_FILES if self.verifying else ())) as files:
                total = min(self.found.prompts, self.limit or self.found.prompts)
                # A preference is known when the last verdict is there; the rows wait for it on disk.
                later = Spool[PromptResult](config.out) if config.judge.calibrate != "none" else None
                async with aclosing(ordered(self._work(), self._one_prompt, config.window)) as results:
                    async for result in results:
                        self.judging.add(result.judgements)
                        if self.verifying:
                            self.verifying.count(result)
                        decided = self._decided(result, result.judgements)
                        self.counts.add(decided)
                        if later is None:
                            self._write(files, decided)
                        else:
                            later.put(result)
                        if self.progress:
                            self.counts.cost = self.budget.note()
                            self.progress(self.counts, total)
                if later is not None:
                    self._pair_again(later, files)
                self._clean(files)
        return self._finish()

    async def _measure_judges(self) -> None:
        """Measure each judge on the labelled pairs. Raises QualityError for one below ``judge.min_kappa``."""
        judge, config = self.config.judge, self.config
        for number, model in enumerate(judge.models if judge.gold is not None and "sample" in self.asks else ()):
            check = CheckConfig(
                data=str(judge.gold),
                judge=judge.model_copy(update={"models": [model], "panel": "mean"}),
                constitution=config.constitution,
                modes=(),  # what hostile text can do is no part of kappa, and `rlaif judge check` measures it
                seed=config.seed,
                out=config.out / f"judge-{number}",
                in_flight=config.prompts_in_flight,
            )
            card = await gate(check, self.ledger, judge.min_kappa, budget=self.budget)
            figures = {key: card.report[key] for key in ("judge", "pairs", "kappa", "kappa_low", "kappa_high")}
            self.measured.append(figures | {"card": f"judge-{number}/{CARD}"})

    def _open(self, model: ModelConfig, stage: str) -> Client:
        if stage in self.asks:
            return open_client(model, self.ledger, stage, self.budget)
        client = open_stored(model, self.ledger, stage)
        self.budget.wrap(client, model, stage)  # for what earlier sessions spent
        return client

    def _work(self) -> Iterator[tuple[Prompt, tuple[str, ...] | None]]:
        config = self.config
        source: Iterator[tuple[Prompt, tuple[str, ...] | None]]
        if config.policy.completions is not None:
            source = read_samples(str(config.policy.completions))
        else:
            prompts = read_prompts(str(config.prompts))
            source = ((with_system(prompt, config.policy.system), None) for prompt in prompts)
        for number, item in enumerate(source):
            if self.limit is not None and number >= self.limit:
                return
            yield item

    async def _one_prompt(self, item: tuple[Prompt, tuple[str, ...] | None]) -> PromptResult:
        prompt, texts = item
        config = self.config
        task = await self.verifying.task(prompt) if self.verifying else None
        if isinstance(task, Dropped):
            return PromptResult(prompt, [], [], [], [task])
        if texts is not None:
            completions, dropped = given(prompt, texts, f"file:{Path(str(config.policy.completions)).name}")
        else:
            assert self.policy is not None
            completions, dropped = await sample(prompt, self.policy, config.policy, config.seed)
        usable = [c for c in completions if is_usable(c)]
        comparisons, identical = plan_comparisons(prompt, usable, disjoint=config.judge.comparisons == "disjoint")
        if self.reviser is not None:
            revised = await self.reviser.revise_all(prompt, usable, config.seed)
            planned = with_revisions(prompt, (comparisons, identical), [(r.draft, r.final) for r in revised if r.final])
            comparisons, identical = planned
            completions += [version for r in revised for version in r.versions]
            usable += [r.final for r in revised if r.final]
            dropped += [r.failed for r in revised if r.failed]
        scored, rewards, left = {}, None, comparisons
        if self.verifying and task is not None:
            scored = await self.verifying.score(usable, task)
            rewards = self.verifying.rewards(scored)
            left = [c for c in comparisons if decide_by_rewards(c, rewards) is None]
        judgements = await judge_comparisons(left, self.constitution, self.judges, config.seed)
        votes = self.votes.on(comparisons)
        dropped += identical
        return PromptResult(prompt, completions, judgements, [], dropped, scored, comparisons, rewards, votes)

    def _decided(self, result: PromptResult, judgements: Sequence[Judgement]) -> PromptResult:
        """``result`` with the pairs that these judgements make; its own are kept as they are."""
        config, rewards = self.config, result.rewards
        pairs, undecided = pair(
            result.comparisons, judgements, self.weights, config.pairing, rewards, config.judge.panel, result.votes
        )
        return result._replace(pairs=pairs, dropped=result.dropped + undecided)

    def _pair_again(self, results: "Spool[PromptResult]", files: RowFiles) -> None:
        """Pair by the judgements without each judge's preference for a position. The rows keep the raw ones."""
        self.counts = Counts(cost=self.counts.cost)
        for result in results:
            decided = self._decided(result, self.judging.position.correct(result.judgements))
            self.counts.add(decided)
            self._write(files, decided)

    def _write(self, files: RowFiles, result: PromptResult) -> None:
        by_id = {c.id: c for c in result.completions}
        for completion in result.completions:
            files.write("completions", completion)
        for judgement in result.judgements:
            files.write("judgements", judgement)
        for made in result.pairs:
            files.write("pairs", preference_record(made, result.prompt, by_id, self.constitution))
        for dropped in result.dropped:
            files.write("dropped", dropped)
        if self.verifying:
            for name, row in self.verifying.rows(result):
                files.write(name, row)

    def _clean(self, files: RowFiles) -> None:
        """Take out of the pairs what `dataset.drop` names; each becomes a dropped one."""
        config = self.config.dataset
        if not self.counts.pairs or not config.dropped:
            return
        pairs = files.so_far("pairs")
        found = find_removals(pairs, config.dropped, against=config.against, gram=config.ngram)
        for dropped in _taken_out(pairs, found.removed):
            files.write("dropped", dropped)
            self.counts.take_out(dropped)
        if found.removed:
            files.take_out("pairs", found.removed)

    def _finish(self) -> GenerateResult:
        out, counts = self.config.out, self.counts
        manifest = self._manifest()
        with on_disk(out):
            report = write_data(out, manifest, self.config.dataset)
            manifest["data"] = report.summary() if report else None
            write_manifest(out, manifest)
        if counts.share_unjudged > self.config.max_unjudged:
            raise QualityError(
                f"{out}: {counts.unjudged.total()} judgements have no verdict"
                f" ({counts.share_unjudged:.0%} of those a model was asked for; max_unjudged is"
                f" {self.config.max_unjudged:.0%}); by reason: {_listed(counts.unjudged)}. Everything is kept;"
                " judgements.jsonl has the details."
            )
        if self.verifying:
            self.verifying.monitor.check(final=True)
        if counts.pairs == 0:
            reasons = counts.dropped_comparisons + counts.dropped_samples + counts.dropped_prompts
            raise QualityError(f"{out}: no preference pair came out of {counts.prompts} prompts ({_listed(reasons)}).")
        return GenerateResult(out, manifest)

    def _templates_of_revision(self) -> set[str]:
        return {self.reviser.critique.version, self.reviser.revise.version} if self.reviser else set()

    def _manifest(self) -> dict[str, Any]:
        config, c = self.config, self.constitution
        return {
            "versions": {"rlaif": version("rlaif"), "python": platform.python_version(), **_sdk_versions(config)},
            "constitution": {"name": c.name, "version": c.version, "digest": c.digest},
            "prompts": {
                "source": config.prompts or str(config.policy.completions),
                "digest": self.found.digest,
                "different": self.found.prompts,
                "repeats_left_out": self.found.repeats,
                "limit": self.limit,
            },
            "templates": sorted({j.template.version for j in self.judges} | self._templates_of_revision()),
            "models": {
                "policy": str(self.policy.identity) if self.policy else f"file:{config.policy.completions}",
                **({"reviser": str(self.reviser.client.identity)} if self.reviser else {}),
                "judges": [str(j.client.identity) for j in self.judges],
            },
            "labels": {str(j.client.identity): j.labels for j in self.judges},
            **({"gold": self.measured} if self.measured else {}),
            **self.judging.report(),
            "seed": config.seed,
            "counts": self.counts.report(),
            **({"rewards": self.verifying.report()} if self.verifying else {}),
            "cost": self.budget.report(),
            "ledger": self.ledger.stats().model_dump(mode="json"),
            "seconds": round(time.monotonic() - self.started, 3),
        }


class _Verifying:
    """What a run asks its verifiers: the task of each prompt, then the reward of each usable completion."""

    def __init__(self, config: GenerateConfig) -> None:
        assert config.reward is not None
        self._config = config
        self._reward = open_run_reward(config.reward)
        self._low, self._high = config.reward.bounds
        # A right answer is one above all wrong ones, though the shaping took something off it.
        self._right = self._high - (config.reward.shaping.budget if config.reward.shaping else 0.0)
        self._tiers: set[str] = set()
        self.monitor = PartsMonitor()

    async def task(self, prompt: Prompt) -> Task | Dropped | None:
        """The checked task of ``prompt``; None where it has none and its completions are for the judge alone. A wrong
        one drops the prompt before anything is sampled."""
        task = task_of(prompt)
        try:
            await self._reward.prepare(task)
        except TaskError as error:
            if prompt.reference is None and prompt.tests is None and prompt.verifier is None:
                return None
            return Dropped(prompt_id=prompt.id, reason="task_error", detail=str(error))
        return task

    async def score(self, completions: Sequence[Completion], task: Task) -> dict[str, Scored]:
        scored = await self._reward.score_many([c.text for c in completions], [task] * len(completions))
        return {c.id: s for c, s in zip(completions, scored, strict=True)}

    def rewards(self, scored: Mapping[str, Scored]) -> Rewards:
        who = ", ".join(self._reward.identities.values())
        return Rewards({id_: s.value for id_, s in scored.items()}, self._high - self._low, who)

    def rows(self, result: PromptResult) -> Iterator[tuple[str, RewardRow | dict[str, Any]]]:
        """(file, row): the reward of each completion, and the best ones as data for supervised fine-tuning."""
        prompt, scored = result.prompt, result.scored
        for id_, s in scored.items():
            yield (
                "rewards",
                RewardRow(
                    prompt_id=prompt.id, completion_id=id_, value=s.value, parts=s.parts, masked=s.masked, why=s.why
                ),
            )
        rejection = self._config.rejection
        threshold = self._right if rejection.threshold is None else rejection.threshold
        kept = [c for c in result.completions if c.id in scored]
        values = [scored[c.id] for c in kept]
        texts = [c.text for c in kept]
        for place in rejection_sample(texts, values, threshold=threshold, keep=rejection.keep, seed=self._config.seed):
            yield (
                "best",
                {
                    "prompt": [m.model_dump() for m in prompt.messages],
                    "completion": [{"role": "assistant", "content": texts[place]}],
                    "prompt_id": prompt.id,
                    "completion_id": kept[place].id,
                    "reward": values[place].value,
                },
            )

    def count(self, result: PromptResult) -> None:
        self.monitor.add_all(result.scored.values())
        self.monitor.check()

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {"verifiers": self._reward.identities, "sandbox": sorted(self._tiers), **self.monitor.report()}

    async def aclose(self) -> None:
        tiers = [getattr(v, "tier", None) for v in self._reward.verifiers.values()]  # while they are open
        self._tiers.update(tier for tier in tiers if tier is not None)
        await self._reward.aclose()


class Spool(Generic[Item]):
    """Objects of this process that wait on disk, read back in the order they came. The file has no name: whatever ends
    the process, nothing of it stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with on_disk(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as the object)

    def put(self, item: Item) -> None:
        with on_disk(self._folder):
            pickle.dump(item, self._file)

    def __iter__(self) -> Iterator[Item]:
        with on_disk(self._folder):
            self._file.seek(0)
        while True:
            try:
                yield pickle.load(self._file)
            except EOFError:
                return


def _taken_out(pairs: Path, removed: Mapping[int, Removal]) -> Iterator[Dropped]:
    """The pairs of these lines as dropped ones."""
    others = {removal.other for removal in removed.values()}
    ids = {number: _ids(row) for number, row in _numbered(pairs) if number in others}
    for number, row in _numbered(pairs):
        if (removal := removed.get(number)) is not None:
            assert removal.reason != "unusable"  # a pair that was just made is not
            why = ids[removal.other] if removal.other is not None else removal.detail
            yield Dropped(
                prompt_id=row["prompt_id"],
                a=row["chosen_id"],
                b=row["rejected_id"],
                reason=removal.reason,
                detail=f"{_ids(row)}; {removal.reason} of {why}" if removal.other else f"{_ids(row)}; {why}",
            )


def _numbered(pairs: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with pairs.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield number, json.loads(line)


def _ids(row: Mapping[str, Any]) -> str:
    return f"{row['chosen_id']} over {row['rejected_id']}"


async def ordered(
    items: Iterator[Item], work: Callable[[Item], Awaitable[Result]], in_flight: int
) -> AsyncGenerator[Result]:
    """``work`` on every item, at most ``in_flight`` at once, results in the items' order.

    Finished results wait for slower ones before them, at most 4 * in_flight of them, so memory is bounded. The first
    exception cancels what is under way and is raised.
    """
    slots = asyncio.Semaphore(in_flight)
    waiting: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue(maxsize=4 * in_flight)
    under_way: set[asyncio.Task[Result]] = set()
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def one(item: Item) -> Result:
        try:
            return await work(item)
        finally:
            slots.release()

    def done(task: asyncio.Task[Result]) -> None:
        under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
            failed.set_exception(error)

    async def feed() -> None:
        try:
            for item in items:
                await slots.acquire()
                task = asyncio.create_task(one(item))
                under_way.add(task)
                task.add_done_callback(done)
                await waiting.put(task)
        finally:
            await waiting.put(None)

    feeder = asyncio.create_task(feed())
    try:
        while (task := await waiting.get()) is not None:
            watched: list[asyncio.Future[Any]] = [task, failed]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            yield task.result()
        await feeder
    finally:
        left = [feeder, *under_way]
        for unfinished in left:
            unfinished.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        failed.cancel()


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _sdk_versions(config: GenerateConfig) -> dict[str, str]:
    """Versions of the packages behind the models of this run."""
    packages = {
        "openai": ("openai",),
        "anthropic": ("anthropic",),
        "vllm": ("vllm", "torch"),
        "local": ("transformers", "torch"),
    }
    models = [*([config.policy.model] if config.policy.model else []), *config.judge.models]
    found = {}
    for package in sorted({p for m in models for p in packages.get(m.backend, ())}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
