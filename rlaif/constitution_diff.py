"""What differs between two constitutions, principle by principle, and what it means for what was judged already. Pure.

Principles are the same when their ids are; one that only has another id is renamed. The order of principles, names,
versions and descriptions change no judgement.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.checks import describe
from rlaif.constitution import TEXTS
from rlaif.types import Constitution, Principle

Kind = Literal["added", "removed", "renamed", "changed"]
FIELDS = (*TEXTS, "check", "applies_to", "weight")


@dataclass(frozen=True)
class Change:
    """What became of one principle. ``before`` is None where it was added, ``after`` where it was removed. ``fields``:
    what changed in it."""

    kind: Kind
    before: Principle | None
    after: Principle | None
    fields: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Of the principle; of a renamed one the new id."""
        principle = self.after or self.before
        assert principle is not None
        return principle.id

    @property
    def what(self) -> str:
        """In a word or two: "added", "reworded", "weight", ..."""
        if self.kind != "changed":
            return self.kind
        names = {"compare": "reworded", "applies_to": "applies to others", "check": "another check"}
        return ", ".join(names.get(field, field) for field in self.fields)

    def report(self) -> dict[str, Any]:
        def of(principle: Principle | None) -> dict[str, Any] | None:
            return None if principle is None else principle.model_dump(mode="json", exclude_defaults=True)

        return {
            "id": self.id,
            "kind": self.kind,
            "fields": list(self.fields),
            "before": of(self.before),
            "after": of(self.after),
        }


@dataclass(frozen=True)
class Differences:
    """Of ``after`` from ``before``. ``changes``: in the order of ``after``, then what was removed."""

    before: Constitution
    after: Constitution
    changes: tuple[Change, ...]

    @property
    def only_weights(self) -> bool:
        """Whether nothing but weights changed, so that every question a judge was asked stays the same."""
        return all(change.fields == ("weight",) for change in self.changes)

    def report(self) -> dict[str, Any]:
        """For JSON."""
        named = ("name", "version", "digest")
        return {
            "before": {key: getattr(self.before, key) for key in named},
            "after": {key: getattr(self.after, key) for key in named},
            "changes": [change.report() for change in self.changes],
        }


def differences(before: Constitution, after: Constitution) -> Differences:
    """What was done to ``before`` to make ``after`` of it."""
    old = {p.id: p for p in before.principles}
    new = {p.id: p for p in after.principles}
    gone = {id_: p for id_, p in old.items() if id_ not in new}
    found = []
    for id_, principle in new.items():
        if id_ in old:
            if fields := tuple(f for f in FIELDS if getattr(old[id_], f) != getattr(principle, f)):
                found.append(Change("changed", old[id_], principle, fields))
            continue
        same = next((p for p in gone.values() if p.model_copy(update={"id": id_}) == principle), None)
        if same is None:
            found.append(Change("added", None, principle))
        else:
            del gone[same.id]
            found.append(Change("renamed", same, principle))
    found += [Change("removed", principle, None) for principle in gone.values()]
    return Differences(before, after, tuple(found))


def told(difference: Differences) -> Iterator[str]:
    """The differences as lines for a reader."""
    a, b = difference.before, difference.after
    yield f"{_titled(a)} -> {_titled(b)}"
    if not difference.changes:
        same = a.digest == b.digest
        yield "The principles are the same." if same else "The principles are the same, in another order."
    for change in difference.changes:
        yield ""
        if change.kind == "renamed":
            assert change.before is not None
            yield f"{change.before.id} -> {change.id}: renamed"
            continue
        yield f"{change.id}: {change.what}"
        if change.kind != "changed":
            principle = change.after or change.before
            assert principle is not None
            yield from (f"  {name:<10}  {value}" for name in FIELDS if (value := shown(principle, name)))
            continue
        assert change.before is not None
        assert change.after is not None
        for name in change.fields:
            one, two = (shown(p, name) or "(none)" for p in (change.before, change.after))
            if name == "weight":
                one, two = f"{one} ({_share(a, change.before)})", f"{two} ({_share(b, change.after)})"
            yield f"  {name:<10}  {marked(one, two) if name in TEXTS else f'{one} -> {two}'}"


def shown(principle: Principle, field: str) -> str:
    """A field of a principle in one line; empty where it is not set."""
    value = getattr(principle, field)
    if field == "weight":
        return f"{value:g}"
    if field == "check":
        return describe(value) if value else ""
    if field == "applies_to":
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return " ".join((value or "").split())


def marked(before: str, after: str) -> str:
    """Both texts in one, word by word: what went out in [-...-], what came in in {+...+}."""
    one, two = (re.findall(r"\S+", text) for text in (before, after))
    parts = []
    for tag, i, j, k, m in difflib.SequenceMatcher(a=one, b=two, autojunk=False).get_opcodes():
        if tag == "equal":
            parts.append(" ".join(one[i:j]))
            continue
        parts += [f"[-{' '.join(one[i:j])}-]"] if i < j else []
        parts += [f"{{+{' '.join(two[k:m])}+}}"] if k < m else []
    return " ".join(parts)


def _titled(c: Constitution) -> str:
    return f"{c.name}, version {c.version} (digest {c.digest})"


def _share(c: Constitution, principle: Principle) -> str:
    return f"{principle.weight / sum(p.weight for p in c.principles):.0%} of draws"
