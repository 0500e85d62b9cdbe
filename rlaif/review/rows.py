"""What a run folder holds to be reviewed: its comparisons, small enough to filter all of them, and where the rest of
each is found in the files.

A finished run is read from its row files. Of an unfinished one, or one that is going on, the rows are made from the
replies stored so far (rlaif.generation.recall), as files without a name, and read from there.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rlaif.checks import describe
from rlaif.config.base import read_yaml, validate
from rlaif.config.generate import GenerateConfig
from rlaif.constitution import load_constitution
from rlaif.engine.ledger import Ledger
from rlaif.engine.store import EmptyLedger
from rlaif.engine.votes import Subject, Texts, subject_of, text_digest
from rlaif.errors import InputError
from rlaif.generation import recall
from rlaif.judging.agreement import Choice
from rlaif.panel import Opinion, Rule, together
from rlaif.prompts import read_prompts, read_samples
from rlaif.runs import CONFIG, LEDGER
from rlaif.sampling import with_system
from rlaif.types import Completion, Dropped, Judgement, Message, Prompt, Unjudged

NO_PROMPT = Message(role="user", content="(The prompt is neither in this folder nor in the file that it names.)")
ROWS = ("completions", "judgements", "pairs", "dropped")
_EPSILON = 1e-9
_NOT_COMPARED = ("identical",)  # two equal texts: there is nothing to choose

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Item:
    """One comparison. ``judge``: the choice of all judges together (None: none has answered), with ``p_a``, the
    probability that a is better. ``opposed``: some judge chose differently in its two orders; ``split``: some judge
    prefers a and another b. ``outcome``: "pair", or why there is none; ``chosen``: of a pair. ``places``: where its
    judgements begin in judgements.jsonl."""

    subject: Subject
    prompt_id: str
    a: str
    b: str
    judge: Choice | None
    p_a: float | None
    opposed: bool
    split: bool
    principles: tuple[str, ...]
    outcome: str
    source: str
    chosen: Literal["a", "b"] | None
    prob_chosen: float | None
    places: tuple[int, ...]

    @property
    def margin(self) -> float | None:
        return None if self.p_a is None else abs(2 * self.p_a - 1)


class Rows:
    """The comparisons of a run folder, in the order in which everybody is shown them: by a hash of their content, so
    that the first fifty are as good as any fifty, and two people who vote on a few vote on the same."""

    def __init__(self, run: Path) -> None:
        """Raises InputError where ``run`` is no run folder of `generate`, or its files cannot be read."""
        self.run = run
        self.config = _config_of(run)
        self._weights: Mapping[str, float] = defaultdict(lambda: 1.0)
        self.questions: dict[str, str] = {}
        self._read_constitution()
        self._stamp = self._stamp_now()
        self.finished = all((run / f"{name}.jsonl").exists() for name in ROWS)
        self._files: dict[str, IO[bytes]] = {}
        with tempfile.TemporaryDirectory(prefix="rlaif-review-") as temporary:
            folder = run if self.finished else Path(temporary)
            if not self.finished:
                self._recall_into(folder)
            # Kept open: a run that ends meanwhile puts other files in their place, where no row begins at the same
            # byte; and those of a temporary folder need no name any more.
            for name in ROWS:
                self._files[name] = (folder / f"{name}.jsonl").open("rb")
        self._completions = {c.id: (place, text_digest(c.text)) for place, c in self._rows("completions", Completion)}
        self._prompts = dict(self._read_prompts())
        found: dict[str, Item] = {}
        for item in self._read_items():
            found.setdefault(item.subject.key, item)  # two samples of one text make the same comparison twice
        self.items = sorted(found.values(), key=lambda item: item.subject.key)
        self.by_key = {item.subject.key: item for item in self.items}

    def reloaded(self) -> "Rows":
        """The folder read again where it changed, else this."""
        return self if self._stamp == self._stamp_now() else Rows(self.run)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def texts(self, item: Item) -> Texts:
        """The comparison as it is kept with a vote."""
        a, b = (self.completion(id_) for id_ in (item.a, item.b))
        first, second = (b, a) if item.subject.flipped else (a, b)
        prompt = self._prompt(item, (a, b))
        return Texts(
            prompt_id=item.prompt_id,
            messages=prompt.messages,
            first=first.text,
            second=second.text,
            models=(first.model, second.model),
            metadata=prompt.metadata,
            principles=item.principles,
        )

    def completion(self, id_: str) -> Completion:
        return self._row_at("completions", self._completions[id_][0], Completion)

    def judgements(self, item: Item) -> list[Judgement]:
        return [self._row_at("judgements", place, Judgement) for place in item.places]

    # ------------------------------------------------------------------------------------------------------ reading

    def _stamp_now(self) -> tuple[Any, ...]:
        found = [(self.run / f"{name}.jsonl") for name in ROWS]
        if all(path.exists() for path in found):
            return tuple((stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in found))
        try:
            with Ledger.open(self.run / LEDGER, read_only=True) as ledger:
                ((last,),) = ledger.read("SELECT count(*) FROM replies")
        except EmptyLedger:
            last = 0
        if not last:
            raise InputError(f"{self.run}: no reply is stored there yet, so there is nothing to review; run it first.")
        return ("replies", last)

    def _recall_into(self, folder: Path) -> None:
        try:
            recall(self.config, folder)
        except InputError as error:
            raise InputError(
                f"{self.run}: the run is not finished, and without its files its comparisons cannot be made from the"
                f" replies: {error} Start this where `rlaif generate` was started, or finish the run."
            ) from None

    def _read_constitution(self) -> None:
        """Weights and questions, while the constitution can be found; without it, ids say enough, and weigh alike."""
        try:
            constitution = load_constitution(self.config.constitution)
        except InputError:
            return
        self._weights = defaultdict(lambda: 1.0, {p.id: p.weight for p in constitution.principles})
        self.questions = {p.id: p.compare or (describe(p.check) if p.check else "") for p in constitution.principles}

    def _read_prompts(self) -> Iterator[tuple[str, Prompt]]:
        """The prompts by id, from the file that the run names, while it is there."""
        policy = self.config.policy
        source = str(policy.completions or self.config.prompts)
        if source.startswith("hf:") or not Path(source).is_file():
            return
        if policy.completions is not None:
            yield from ((prompt.id, prompt) for prompt, _ in read_samples(source))
        else:
            yield from ((p.id, with_system(p, policy.system)) for p in read_prompts(source))

    def _prompt(self, item: Item, completions: Sequence[Completion]) -> Prompt:
        """Where the file of prompts is gone: from a pair of the same prompt, or the request behind a sample."""
        if found := self._prompts.get(item.prompt_id):
            return found
        messages: tuple[Message, ...] = ()
        if (place := self._pairs.get(item.prompt_id)) is not None:
            messages = tuple(self._row_at("pairs", place, _PairMessages).prompt)
        for completion in completions:
            if not messages and completion.request_key and completion.revised_from is None:
                with Ledger.open(self.run / LEDGER, read_only=True) as ledger:
                    request = ledger.request(completion.request_key)
                messages = request.messages if request else ()
        return Prompt(
            id=item.prompt_id,
            messages=messages
            or (Message(role="user", content="(The prompt is neither in this folder nor in its file.)"),),
        )

    def _read_items(self) -> Iterator[Item]:
        pairs: dict[frozenset[str], _Pair] = {}
        self._pairs: dict[str, int] = {}  # by prompt: where a pair of it begins
        for place, pair in self._rows("pairs", _Pair):
            self._pairs.setdefault(pair.prompt_id, place)
            pairs[frozenset((pair.chosen_id, pair.rejected_id))] = pair
        dropped = {
            (d.a, d.b): d
            for _, d in self._rows("dropped", Dropped)
            if d.a is not None and d.b is not None and d.reason not in _NOT_COMPARED
        }
        # A run that ends at this very moment puts its files in place one after the other.
        pairs = {ids: pair for ids, pair in pairs.items() if ids <= self._completions.keys()}
        seen: set[frozenset[str]] = set()
        for a, b, judged in self._judged():
            if a not in self._completions or b not in self._completions:
                continue
            ids = frozenset((a, b))
            seen.add(ids)
            drop = dropped.get((a, b)) or dropped.get((b, a))
            yield self._item(judged[0][1].prompt_id, a, b, judged, pairs.get(ids), drop)
        for ids, pair in pairs.items():  # decided without a judge
            if ids not in seen:
                seen.add(ids)
                a, b = sorted(ids, key=lambda id_: self._completions[id_][0])
                yield self._item(pair.prompt_id, a, b, [], pair, None)
        for (a_, b_), drop in dropped.items():
            if frozenset((a_, b_)) not in seen and a_ in self._completions and b_ in self._completions:
                assert a_ is not None
                assert b_ is not None
                yield self._item(drop.prompt_id, a_, b_, [], None, drop)

    def _judged(self) -> Iterator[tuple[str, str, list[tuple[int, Judgement]]]]:
        """(a, b, its judgements and where they begin). A run writes prompt by prompt, so the judgements of one prompt
        are all that is held at once."""
        rows = self._rows("judgements", Judgement)
        for _, of_prompt in groupby(rows, key=lambda row: row[1].prompt_id):
            by_comparison: dict[tuple[str, str], list[tuple[int, Judgement]]] = {}
            for place, j in of_prompt:
                by_comparison.setdefault((j.a, j.b), []).append((place, j))
            for (a, b), judged in by_comparison.items():
                yield a, b, judged

    def _item(
        self,
        prompt_id: str,
        a: str,
        b: str,
        judged: Sequence[tuple[int, Judgement]],
        pair: "_Pair | None",
        drop: Dropped | None,
    ) -> Item:
        judgements = [j for _, j in judged]
        rule: Rule = self.config.judge.panel
        found = together(rule, judgements, self._weights) if judgements else None
        opinion = found if isinstance(found, Opinion) else None
        judge: Choice | None = None
        if isinstance(found, Unjudged):
            # While a run goes on, what has no reply is not answered yet: that is no verdict missing.
            judge = None if found.reason == "provider_error" and not self.finished else "invalid"
        elif opinion is not None:
            judge = "tie" if abs(opinion.p_a - 0.5) <= _EPSILON else "a" if opinion.p_a > 0.5 else "b"
        return Item(
            subject=subject_of(prompt_id, self._completions[a][1], self._completions[b][1]),
            prompt_id=prompt_id,
            a=a,
            b=b,
            judge=judge,
            p_a=opinion.p_a if opinion else None,
            opposed=opinion is not None and opinion.opposed,
            split=opinion is not None and opinion.split,
            principles=tuple(dict.fromkeys(p for j in judgements for p in j.principles)),
            outcome="pair" if pair else drop.reason if drop else "unknown",
            source=pair.source if pair else "",
            chosen=None if pair is None else "a" if pair.chosen_id == a else "b",
            prob_chosen=pair.prob_chosen if pair else None,
            places=tuple(place for place, _ in judged),
        )

    def _rows(self, name: str, model: type[M]) -> Iterator[tuple[int, M]]:
        """(where it begins, row) of each line of a file."""
        place, lines = 0, self._files[name]
        lines.seek(0)
        for number, line in enumerate(lines, start=1):  # binary lines end at "\n" only, as texts may hold others
            if line.strip():
                yield place, _row(line, model, f"{self.run}/{name}.jsonl:{number}")
            place += len(line)

    def _row_at(self, name: str, place: int, model: type[M]) -> M:
        file = self._files[name]
        file.seek(place)
        return _row(file.readline(), model, f"{self.run}/{name}.jsonl")


class _PairMessages(BaseModel):
    prompt: list[Message]


class _Pair(BaseModel):
    """Of a row of pairs.jsonl, what is kept of all of them."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    prob_chosen: float
    source: str


def _config_of(run: Path) -> GenerateConfig:
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the run folder of `rlaif generate`.")
    if not (run / CONFIG).is_file() or not (run / LEDGER).is_file():
        raise InputError(f"{run}: is no run folder ({CONFIG} and {LEDGER} are not both there); give one to review.")
    document = read_yaml(run / CONFIG)
    if "policy" not in document.data:
        raise InputError(f"{run}: was not made by `rlaif generate`, so there are no comparisons of samples to review.")
    document.data.pop("reward", None)  # verifiers decided while the run went on; none is asked for a page
    config = validate(GenerateConfig, document)
    return config.model_copy(update={"out": run})


def _row(line: bytes, model: type[M], where: str) -> M:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        try:  # half a surrogate pair, which the standard library alone reads
            return model.model_validate(json.loads(line))
        except ValueError:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{where}: not a row as written by rlaif ({place}: {first['msg']}).") from None
