"""What people said about comparisons, in the ledger of their run.

A vote is about a prompt and two texts, not about ids or places in a run: it counts again wherever the same three meet.
Rows are only ever added; `undo` is a row too. People may vote while a run goes on in another process: each vote is a
transaction of its own, durable when the call returns.

Two tables in the ledger's file, made when somebody first votes there; `--fresh` leaves them as they are (store.py),
because no money buys a person's hour again.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

from rlaif.engine.ledger import Ledger
from rlaif.engine.store import check, connect, dump, load, storage_error, transaction
from rlaif.errors import InputError
from rlaif.hashing import digest
from rlaif.types import Comparison, Message, Row

# Of the two texts in the order of their digests: which is better. "skip" says nothing; "reveal": what the judges said
# was shown to somebody who had not voted.
Choice = Literal["first", "second", "tie", "both_bad"]
Action = Literal["first", "second", "tie", "both_bad", "skip", "reveal", "undo"]
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "both_bad")
VOTED: tuple[Action, ...] = (*CHOICES, "skip")

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS votes (
        row INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, reviewer TEXT NOT NULL, action TEXT NOT NULL,
        blind INTEGER NOT NULL, undoes INTEGER, at TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS voted (subject TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
)


class Subject(NamedTuple):
    """What a vote is about. ``flipped``: the comparison's a is the second text."""

    key: str
    flipped: bool

    def of(self, side: Literal["a", "b"]) -> Choice:
        """The choice that prefers a side of the comparison."""
        return "first" if (side == "a") != self.flipped else "second"

    def side(self, choice: str) -> Literal["a", "b"]:
        """The side of the comparison that "first" or "second" is."""
        return "a" if (choice == "first") != self.flipped else "b"


def subject_of(prompt_id: str, digest_a: str, digest_b: str) -> Subject:
    """The subject of a comparison, from `text_digest` of both texts; the same for (b, a), but for ``flipped``."""
    return Subject(digest("comparison", prompt_id, *sorted((digest_a, digest_b))), digest_a > digest_b)


def text_digest(text: str) -> str:
    return digest(text)


class Texts(Row):
    """A comparison that somebody voted on, whole: what it takes to export the vote, whatever becomes of the run."""

    prompt_id: str
    messages: tuple[Message, ...]
    first: str
    second: str
    models: tuple[str, str] = ("", "")
    metadata: dict[str, Any] = {}
    principles: tuple[str, ...] = ()  # whose question the page put


class Vote(NamedTuple):
    """One row. ``blind``: the reviewer had not seen what the judges said."""

    row: int
    subject: str
    reviewer: str
    action: Action
    blind: bool
    undoes: int | None


class VoteBook:
    """The votes that count: of each reviewer on each subject the last one that was not taken back."""

    def __init__(self, votes: Iterable[Vote] = ()) -> None:
        self.last_row = 0
        self._by_subject: dict[str, dict[str, list[Vote]]] = {}
        self._by_reviewer: dict[str, list[Vote]] = {}
        self._seen: set[tuple[str, str]] = set()  # (subject, reviewer)
        self.add(votes)

    def add(self, votes: Iterable[Vote]) -> None:
        """Rows that came since, in their order."""
        for vote in votes:
            self.last_row = vote.row
            mine = self._by_reviewer.setdefault(vote.reviewer, [])
            if vote.action == "undo":
                taken = [v for v in mine if v.row == vote.undoes]
                for v in taken:
                    mine.remove(v)
                    self._by_subject[v.subject][v.reviewer].remove(v)
                continue
            if vote.action != "skip":
                self._seen.add((vote.subject, vote.reviewer))
            if vote.action in VOTED:
                mine.append(vote)
                self._by_subject.setdefault(vote.subject, {}).setdefault(vote.reviewer, []).append(vote)

    def vote(self, subject: str, reviewer: str) -> Vote | None:
        """What ``reviewer`` says of it, "skip" included; None where that is nothing."""
        found = self._by_subject.get(subject, {}).get(reviewer)
        return found[-1] if found else None

    def votes(self, subject: str) -> list[Vote]:
        """Everyone's, by name; without those who skipped it."""
        found = self._by_subject.get(subject, {})
        return [found[name][-1] for name in sorted(found) if found[name] and found[name][-1].action in CHOICES]

    def has_seen(self, subject: str, reviewer: str) -> bool:
        """Whether the reviewer was ever shown what the judges said: a vote after that is not blind."""
        return (subject, reviewer) in self._seen

    def last(self, reviewer: str) -> Vote | None:
        """The vote that `VoteTable.undo` would take back."""
        mine = self._by_reviewer.get(reviewer)
        return mine[-1] if mine else None

    @property
    def touched(self) -> Collection[str]:
        """The subjects that somebody ever voted on or skipped."""
        return self._by_subject.keys()

    @property
    def subjects(self) -> list[str]:
        """Those with at least one vote, in the order they were first voted on."""
        return [subject for subject in self._by_subject if self.votes(subject)]

    @property
    def reviewers(self) -> list[str]:
        """Everyone with a vote that counts, by name."""
        return sorted(name for name, mine in self._by_reviewer.items() if any(v.action in CHOICES for v in mine))

    def __len__(self) -> int:
        return sum(len(self.votes(subject)) for subject in self._by_subject)

    def on(self, comparisons: Sequence[Comparison]) -> dict[tuple[str, str], tuple[str, ...]]:
        """What people say of the ``comparisons`` that have votes: "a", "b", "tie" or "both_bad", by completion ids."""
        if not self._by_subject:
            return {}
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for c in comparisons:
            subject = subject_of(c.prompt.id, text_digest(c.a.text), text_digest(c.b.text))
            said = [v.action for v in self.votes(subject.key)]
            if said:
                sides = (subject.side(s) if s in ("first", "second") else s for s in said)
                found[c.a.id, c.b.id] = tuple(sides)
        return found


def read_votes(ledger: Ledger) -> VoteBook:
    """The votes in a ledger; none in one where nobody ever voted."""
    if not ledger.read("SELECT 1 FROM sqlite_master WHERE name = 'votes'"):
        return VoteBook()
    return VoteBook(map(_vote, ledger.read(_ROWS_AFTER, 0)))


_ROWS_AFTER = "SELECT row, subject, reviewer, action, blind, undoes FROM votes WHERE row > ? ORDER BY row"


def _vote(row: Sequence[Any]) -> Vote:
    return Vote(row[0], row[1], row[2], cast(Action, row[3]), bool(row[4]), row[5])


class VoteTable:
    """The votes of one run folder, to be added to. Takes no lock on the run: it may be going on. Use as a context
    manager."""

    def __init__(self, path: Path) -> None:
        """``path``: of the ledger. Raises InputError where there is none, or it cannot be written to."""
        if not path.is_file():
            raise InputError(f"{path}: there is no ledger here; is this a run folder?")
        self.path = path
        self._db = check(path, connect(path))
        try:
            with transaction(self._db):
                for statement in _SCHEMA:
                    self._db.execute(statement)
        except sqlite3.Error as error:
            self._db.close()
            raise storage_error(path, error) from None
        self.book = VoteBook()
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def refresh(self) -> VoteBook:
        """`book` with what others added since."""
        try:
            self.book.add(map(_vote, self._db.execute(_ROWS_AFTER, (self.book.last_row,)).fetchall()))
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from None
        return self.book

    def cast(self, subject: str, texts: Texts, reviewer: str, action: Action) -> None:
        """Add a vote, a "skip" or a "reveal"; durable when this returns. Raises ProviderError where it is not."""
        with self._writing():
            self._db.execute("INSERT OR IGNORE INTO voted VALUES (?, ?)", (subject, dump(texts)))
            self._add(subject, reviewer, action, blind=not self.book.has_seen(subject, reviewer))
        self.refresh()

    def undo(self, reviewer: str) -> str | None:
        """Take back the last vote or skip of ``reviewer`` that still counts. Its subject; None where there is none."""
        with self._writing():
            last = self.book.last(reviewer)
            if last is not None:
                self._add(last.subject, reviewer, "undo", undoes=last.row)
        self.refresh()
        return last and last.subject

    def texts(self, subject: str) -> Texts:
        """What a subject that was voted on is."""
        ((body,),) = self._db.execute("SELECT body FROM voted WHERE subject = ?", (subject,))
        return load(Texts, body)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction; `book` is up to date in it."""
        try:
            with transaction(self._db):
                self.refresh()
                yield
        except sqlite3.Error as error:
            raise storage_error(self.path, error) from None

    def _add(
        self, subject: str, reviewer: str, action: Action, *, blind: bool = False, undoes: int | None = None
    ) -> None:
        self._db.execute(
            "INSERT INTO votes (subject, reviewer, action, blind, undoes, at) VALUES (?, ?, ?, ?, ?, ?)",
            (subject, reviewer, action, blind, undoes, datetime.now(UTC).isoformat(timespec="seconds")),
        )
