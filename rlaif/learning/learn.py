"""`learn`: propose, test, choose, measure, write.

All requests and replies are in the ledger of a folder beside the constitution (``mine.learn`` for ``mine.yaml``), with
``learned.json`` (every figure), ``candidates.jsonl``, ``proposals.jsonl`` and ``judgements.jsonl``. They and the
constitution are computed from (config, data, ledger): running again goes on, and pays nothing twice.
"""

import asyncio
import json
import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import Field

from rlaif.clients.base import Client
from rlaif.config.base import Config
from rlaif.config.generate import JudgeConfig
from rlaif.config.models import ModelConfig, ModelRef
from rlaif.constitution import load_constitution
from rlaif.engine import Budget, Ledger, open_client
from rlaif.errors import InputError, ProviderError, QualityError
from rlaif.hashing import digest
from rlaif.judges import Judge, make_judge
from rlaif.judges.ask import resolve_labels
from rlaif.judges.program import judge_by_check
from rlaif.judging.flow import in_flight
from rlaif.judging.gold import GoldPair, data_digest
from rlaif.learning.labelled import Labelled, Parts, parts, read_labelled
from rlaif.learning.programs import programs
from rlaif.learning.propose import UNANSWERED, Proposal, Proposer, Wording, merge
from rlaif.learning.votes import Choice, Figures, KeepRule, beats_chance, chance, choose, figures, together, turned
from rlaif.learning.writing import constitution_yaml
from rlaif.panel import together as opinion
from rlaif.runs import RowFiles, on_disk, open_run, write_text
from rlaif.types import Check, Judgement, Principle, Unjudged

REPORT = "learned.json"
PROPOSED = "proposed"
NONE = Principle(id="none", compare="Which response is better?")  # what a judge knows without any constitution

Progress = Callable[[int, int, str], None]  # done, of how many, a note


class LearnConfig(Config):
    """``model`` is shown ``shown`` pairs at once and asked ``proposals`` times; the ``candidates`` proposed most often
    are tested by ``judge``, and so are the principles of the constitutions in ``given``. ``keep``: how few of them are
    chosen. ``out``: the constitution to write. ``in_flight``: pairs judged at once. ``max_unjudged``: with a larger
    share of missing verdicts nothing counts as learned."""

    data: str
    model: ModelRef
    judge: JudgeConfig
    proposals: int = Field(20, ge=0)
    shown: int = Field(4, gt=0)
    candidates: int = Field(20, gt=0)
    given: tuple[str, ...] = ()
    temperature: float = Field(0.8, ge=0)
    max_tokens: int = Field(512, gt=0)
    template: str = "propose"
    keep: KeepRule = KeepRule()
    max_unjudged: float = Field(0.1, ge=0, le=1)
    seed: int = 0
    out: Path
    max_cost: Decimal | None = Field(None, ge=0)
    in_flight: int = Field(64, gt=0)

    @property
    def folder(self) -> Path:
        """Where everything but the constitution goes."""
        return self.out.with_suffix(".learn")


@dataclass(frozen=True)
class Learned:
    """``out``: the constitution. ``report``: the content of learned.json."""

    out: Path
    report: dict[str, Any]


def learn(
    config: LearnConfig,
    *,
    limit: int | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Learned:
    """Learn a constitution and write it to ``config.out``, going on from what its folder holds (``fresh``: anew).

    ``limit``: only the first that many pairs. ``command``: what was typed, for the file's head. Raises InputError
    before anything is spent, ProviderError when the provider refuses or the budget is reached, and QualityError (with
    everything written, and the file saying so) when nothing explains the labels better than chance.
    """
    labelled, divided = prepared(config, limit)
    with open_run(config.folder, config, fresh=fresh) as ledger:
        run = Learning(config, labelled, divided, ledger, progress)
        return asyncio.run(run.main(command))


def prepared(config: LearnConfig, limit: int | None) -> tuple[Labelled, Parts]:
    """The pairs and their parts. Raises InputError for everything that can be wrong before anything is spent."""
    if len(config.judge.models) != 1:
        raise InputError(f"judge.models: one judge tests the principles (found {len(config.judge.models)} models).")
    for name in config.given:
        load_constitution(name)
    if not config.proposals and not config.given:
        raise InputError("proposals: 0 leaves no wording to test; name constitutions in 'given', or ask for proposals.")
    check_out(config)
    labelled = read_labelled(config.data, limit)
    return labelled, parts(labelled, config.seed)


def check_out(config: LearnConfig) -> None:
    """Raises InputError where ``config.out`` holds something that was not learned there, or was edited since."""
    out = config.out
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: a constitution is a .yaml file.")
    if not out.exists():
        return
    ours = _written(config)
    if _content(out) not in ours:
        what = "was edited since it was learned" if ours else "was not learned here"
        raise InputError(f"{out}: {what} and would be overwritten; move it away or give another --out.")


def _written(config: LearnConfig) -> list[str]:
    """Hashes of what this folder wrote to ``config.out`` last, and before that: between the report and the constitution
    a run may be killed."""
    try:
        found = json.loads((config.folder / REPORT).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


def _content(file: Path) -> str:
    return digest(file.read_text(encoding="utf-8", errors="replace"))


@dataclass
class Candidate:
    """A principle on trial. ``whence``: "program", the constitution it was given in, or "proposed", by so many
    proposals (``proposed``). ``by_chance``: how likely the best of all candidates does as well on shuffled labels.
    ``held_out`` is None where it was not measured."""

    principle: Principle
    whence: str
    proposed: int
    choosing: Figures | None = None
    by_chance: float = 1.0
    held_out: Figures | None = None

    def row(self) -> dict[str, Any]:
        return {
            "id": self.principle.id,
            "principle": self.principle.model_dump(mode="json", exclude_defaults=True),
            "whence": self.whence,
            "proposed": self.proposed,
            "by_chance": self.by_chance,
            "choosing": self.choosing.report() if self.choosing else None,
            "held_out": self.held_out.report() if self.held_out else None,
        }


@dataclass
class Learning:
    """One run: asks, then tells. ``judgements``: all that the judge said."""

    config: LearnConfig
    labelled: Labelled
    parts: Parts
    ledger: Ledger
    progress: Progress | None = None
    judgements: list[Judgement] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        self.budget = Budget(self.config.max_cost, self.ledger)

    async def main(self, command: str) -> Learned:
        config, (model,) = self.config, self.config.judge.models
        async with AsyncExitStack() as stack:
            proposers = [self._open(config.model, "propose")] if config.proposals else []
            for writer in proposers:
                stack.push_async_callback(writer.aclose)
            client = self._open(model, "judge")
            stack.push_async_callback(client.aclose)
            self.budget.check()
            labels = await resolve_labels(client, config.judge)
            judge = make_judge(client, config.judge, labels)
            proposals = [proposal for writer in proposers for proposal in await self._propose(writer)]
            wordings = merge(proposals)
            found = await self._test(judge, wordings[: config.candidates])
        report = self._report(judge, proposals, len(wordings), found)
        return self._write(report, proposals, found, command)

    def _open(self, model: ModelConfig, stage: str) -> Client:
        return open_client(model, self.ledger, stage, self.budget)

    # ----------------------------------------------------------------------------------------------------- asking

    async def _propose(self, client: Client) -> list[Proposal]:
        config = self.config
        proposer = Proposer(
            client,
            config.template,
            at_once=config.shown,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
        )

        async def one(number: int) -> Proposal:
            proposal = await proposer.propose(number, self.parts.read)
            self._tell(config.proposals, "proposals")
            return proposal

        self.done = 0
        at_once = max(config.in_flight, config.model.requests_at_once)
        found = await in_flight(range(config.proposals), one, at_once)
        failed = [why for proposal in found for why in proposal.refused if why.startswith(UNANSWERED)]
        if len(failed) == len(found):
            raise ProviderError(f"{config.model.model} answers no request for proposals; {failed[0]}")
        return found

    async def _test(self, judge: Judge, wordings: Sequence[Wording]) -> "Found":
        """Choose on one part, then measure on the other what was kept, and what it must be compared with."""
        config, pairs = self.config, self.parts.choosing
        candidates = self._candidates(wordings)
        by_id = {c.principle.id: c.principle for c in candidates}
        votes = await self._votes(judge, list(by_id.values()), pairs, "tests")
        prompts = [p.comparison.prompt.id for p in pairs]
        by_chance = chance(votes, prompts, config.seed)
        by_program = frozenset(id_ for id_, principle in by_id.items() if principle.check)
        choice = choose(votes, by_chance, by_program, config.keep)
        for c in candidates:
            c.choosing = figures(votes[c.principle.id], prompts, interval=False)
            c.by_chance = by_chance[c.principle.id]
        best = [_best(c for c in candidates if bool(c.principle.check) == program) for program in (False, True)]
        measured = [p for id_, p in by_id.items() if id_ in choice.names or id_ in by_program or id_ in best]
        return await self._measure(judge, candidates, measured, choice, best)

    def _candidates(self, wordings: Sequence[Wording]) -> list[Candidate]:
        """Programs, then what was given, then what was proposed; ids are made different, and the same principle does
        not stand trial twice."""
        texts = [c.text for p in self.parts.choosing for c in (p.comparison.a, p.comparison.b)]
        offered = [(p, "program", 0) for p in programs(texts)]
        offered += [(p, name, 0) for name in self.config.given for p in _given(name)]
        offered += [(w.principle, PROPOSED, w.proposed) for w in wordings]
        found: dict[tuple[str | None, Check | None], Candidate] = {}
        ids = {NONE.id}
        for principle, whence, proposed in offered:
            compare = None if principle.check else principle.compare  # a check decides alone
            key = (compare, principle.check)
            if key not in found:
                alone = Principle(id=_free(principle.id, ids), compare=compare, check=principle.check)
                ids.add(alone.id)
                found[key] = Candidate(alone, whence, proposed)
        return list(found.values())

    async def _measure(
        self,
        judge: Judge,
        candidates: list[Candidate],
        measured: Sequence[Principle],
        choice: Choice,
        best: Sequence[str | None],
    ) -> "Found":
        held = await self._votes(judge, [*measured, NONE], self.parts.held_out, "held-out tests")
        prompts = [p.comparison.prompt.id for p in self.parts.held_out]
        for c in candidates:
            if (id_ := c.principle.id) in held:
                c.held_out = figures(held[id_], prompts, interval=id_ in choice.names or id_ in best)
        whole = together([held[name] for name in choice.names])
        return Found(
            candidates=candidates,
            kept=choice.kept,
            best_wording=best[0],
            best_program=best[1],
            together=figures(whole, prompts) if whole else None,
            flipped=figures(turned(whole), prompts) if whole else None,
            none=figures(held[NONE.id], prompts),
        )

    async def _votes(
        self, judge: Judge, principles: Sequence[Principle], pairs: Sequence[GoldPair], what: str
    ) -> dict[str, list[float | None]]:
        """The votes of each principle on each pair. A program is asked here and now, a judge many times at once."""
        asked = [p for p in principles if p.check is None]
        work = [(principle, pair) for principle in asked for pair in pairs]
        self.done = 0

        async def one(item: tuple[Principle, GoldPair]) -> list[Judgement]:
            principle, pair = item
            answers = await judge.judge_all([pair.comparison], [principle], self.config.seed)
            self._tell(len(work), what)
            return answers

        at_once = max(self.config.in_flight, -(-self.config.judge.models[0].requests_at_once // 2))
        found: dict[str, list[float | None]] = {
            p.id: [vote(pair, [judge_by_check(pair.comparison, p)]) for pair in pairs] if p.check else []
            for p in principles
        }
        for (principle, pair), answers in zip(work, await in_flight(work, one, at_once), strict=True):
            found[principle.id].append(vote(pair, answers))
            self.judgements += answers
        return found

    def _tell(self, total: int, what: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, total, ", ".join(filter(None, (what, self.budget.note()))))

    # ---------------------------------------------------------------------------------------------------- telling

    def _report(self, judge: Judge, proposals: Sequence[Proposal], wordings: int, found: "Found") -> dict[str, Any]:
        config = self.config
        unjudged = Counter(j.outcome.reason for j in self.judgements if isinstance(j.outcome, Unjudged))
        share = unjudged.total() / len(self.judgements) if self.judgements else 0.0
        return {
            "data": {
                "source": config.data,
                "digest": data_digest(self.labelled.pairs),
                "pairs": len(self.labelled.pairs),
                "left_out": dict(sorted(self.labelled.left_out.items())),
                "read": len(self.parts.read),
                "choosing": len(self.parts.choosing),
                "held_out": len(self.parts.held_out),
            },
            "proposed_by": config.model.model,
            "judge": str(judge.client.identity),
            "labels": judge.labels,
            "templates": sorted({judge.template.version}),
            "proposals": {
                "asked": len(proposals),
                "questions": sum(len(p.questions) for p in proposals),
                "different": wordings,
                "tested": sum(c.whence == PROPOSED for c in found.candidates),
                "refused": dict(sorted(Counter(why.partition(":")[0] for p in proposals for why in p.refused).items())),
            },
            "programs": sum(c.whence == "program" for c in found.candidates),
            "given": list(config.given),
            "keep": config.keep.model_dump(),
            **found.report(),
            "unjudged": {"by_reason": dict(sorted(unjudged.items())), "share": round(share, 6)},
            "finding": finding(found, share, config.max_unjudged),
            "learned": learned(found, share, config.max_unjudged),
            "cost": self.budget.report(),
            "versions": {"rlaif": version("rlaif"), "python": platform.python_version()},
            "seed": config.seed,
        }

    def _write(self, report: dict[str, Any], proposals: Sequence[Proposal], found: "Found", command: str) -> Learned:
        config = self.config
        by_id = {c.principle.id: c.principle for c in found.candidates}
        text = constitution_yaml(config.out.stem, report, [by_id[name] for name, _ in found.kept], command)
        report = {"files": [digest(text), *_written(config)[:1]], "command": command, **report}
        with RowFiles(config.folder, ("proposals", "candidates", "judgements")) as files:
            for proposal in proposals:
                files.write("proposals", proposal.row())
            for candidate in found.candidates:
                files.write("candidates", candidate.row())
            for judgement in self.judgements:
                files.write("judgements", judgement)
        with on_disk(config.folder):
            # The report first: it says that the file is ours.
            write_text(config.folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            write_text(config.out, text)
        if not report["learned"]:
            raise QualityError(f"{config.out}: {report['finding']} Everything is kept in {config.folder}.")
        return Learned(config.out, report)


@dataclass(frozen=True)
class Found:
    """What testing brought. ``kept``: names, each with right - wrong on the choosing part of all kept so far.
    ``together``: all kept on the held-out part, ``flipped`` their opposite; ``none``: the judge without principles."""

    candidates: list[Candidate]
    kept: tuple[tuple[str, int], ...]
    best_wording: str | None
    best_program: str | None
    together: Figures | None
    flipped: Figures | None
    none: Figures

    def of(self, name: str | None) -> Candidate | None:
        return next((c for c in self.candidates if c.principle.id == name), None)

    def report(self) -> dict[str, Any]:
        return {
            "kept": [{**row.row(), "lead": lead} for name, lead in self.kept if (row := self.of(name)) is not None],
            "together": self.together.report() if self.together else None,
            "flipped": self.flipped.report() if self.flipped else None,
            "none": self.none.report(),
            "best_wording": row.row() if (row := self.of(self.best_wording)) else None,
            "best_program": row.row() if (row := self.of(self.best_program)) else None,
        }


def vote(pair: GoldPair, judgements: Sequence[Judgement]) -> float | None:
    """The probability that the preferred text is better, both orders together; None without a verdict."""
    found = opinion("mean", judgements, {p: 1.0 for j in judgements for p in j.principles})
    if isinstance(found, Unjudged):
        return None
    return found.p_a if pair.label == "a" else 1 - found.p_a


def learned(found: Found, unjudged: float, max_unjudged: float) -> bool:
    """Whether the constitution explains the held-out labels better than chance, by verdicts that are mostly there."""
    return found.together is not None and beats_chance(found.together) and unjudged <= max_unjudged


def finding(found: Found, unjudged: float, max_unjudged: float) -> str:
    """What came out, in sentences."""
    missing = f"{unjudged:.0%} of the verdicts are missing"
    if found.together is None:
        why = f" ({missing})" if unjudged > max_unjudged else ""
        said = f"nothing explains the labels better than chance would{why}: no principle was kept."
        return f"{said} {_beside_programs(found)}".strip()
    said = f"{len(found.kept)} principles together decide {_rate(found.together)} of the held-out pairs as labelled"
    said = said.replace("1 principles together decide", "1 principle decides")
    if unjudged > max_unjudged:
        return f"{said}, but {missing}, too many to believe it."
    if not learned(found, unjudged, max_unjudged):
        return f"{said}: no better than chance, whatever they did on the pairs they were chosen on."
    return f"{said}. {_beside_programs(found)}"


def _beside_programs(found: Found) -> str:
    wording, program = found.of(found.best_wording), found.of(found.best_program)
    if program is None or program.held_out is None:
        return ""
    by_program = f"the program {program.principle.id!r} alone {_rate(program.held_out)}"
    if wording is None or wording.held_out is None:
        return f"There was no wording to test; {by_program}."
    said = f"the best wording alone decides {_rate(wording.held_out)} as labelled, {by_program}"
    if program.held_out.right - program.held_out.wrong >= wording.held_out.right - wording.held_out.wrong:
        return f"A program explains the labels as well as any wording: {said}."
    return f"Of single principles {said}."


def _rate(f: Figures) -> str:
    a = f.accuracy
    if a.value is None or a.low is None or a.high is None:
        return "none"
    return f"{a.value:.1%} ({a.low:.1%} to {a.high:.1%})".replace("%", " %")


def _best(candidates: Iterable[Candidate]) -> str | None:
    """The one with the best score on the choosing part."""

    def score(c: Candidate) -> tuple[float, int, str]:
        right, wrong = (c.choosing.right, c.choosing.wrong) if c.choosing else (0, 0)
        return ((right - wrong) / (right + wrong) ** 0.5 if right + wrong else 0.0, right + wrong, c.principle.id)

    best = max(candidates, key=score, default=None)
    return None if best is None else best.principle.id


def _given(name: str) -> list[Principle]:
    """The principles of a constitution that can be tested on any pair."""
    return [p for p in load_constitution(name).principles if (p.compare or p.check) and not p.applies_to]


def _free(id_: str, taken: Collection[str]) -> str:
    """``id_``, or the first of ``id_``-2, -3, ... that is not taken."""
    return next(name for name in chain([id_], (f"{id_}-{n}" for n in count(2))) if name not in taken)
