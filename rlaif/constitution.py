"""Constitutions: read from YAML with the file and line of every mistake, applied to prompts, drawn from by weight.

A constitution is found by the name of a shipped one or by path. Its ``digest`` is a hash of its principles and of
nothing else: comments, key order, name, version and description change no judgement and so not the digest.
"""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from rlaif.checks import regex_problem
from rlaif.config.base import Config, Document, parse_yaml, read_yaml, validate
from rlaif.errors import InputError
from rlaif.hashing import digest, uniform
from rlaif.shipped import shipped
from rlaif.types import Constitution, Principle, Prompt, Text

TEXTS = ("compare", "opposite", "ask", "critique", "revise")  # the keys of a principle that a model reads
LONG_TEXT = 1000  # characters, about 250 tokens, paid again with every judgement
NEAR_DUPLICATE = 0.9  # share of words in common, in order

# A bare `version: 2` is as clear as "2"; a float is not (1.10 would become 1.1), and stays an error.
_Version = Annotated[Text, BeforeValidator(lambda v: str(v) if type(v) is int else v)]


class _File(Config):
    """The YAML file: a `Constitution` without its digest."""

    name: Text
    version: _Version = "1"
    description: str = ""
    principles: tuple[Principle, ...]

    @field_validator("principles")
    @classmethod
    def _some(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        if not principles:
            raise ValueError("a constitution needs at least one principle")
        return principles


# ------------------------------------------------------------------------------------------------------- loading


def load_constitution(name_or_path: str | Path) -> Constitution:
    """The constitution of that shipped name, or in that file. Raises one InputError that lists every mistake."""
    return _constitution(read_yaml(find_constitution(name_or_path)))


def constitution_from_text(text: str, name: str) -> Constitution:
    """As `load_constitution`, for YAML already read; ``name`` stands for the file in messages."""
    return _constitution(parse_yaml(text, name))


def find_constitution(name_or_path: str | Path) -> Path:
    """The file meant: a path when it looks like one (a folder in it, or .yaml / .yml), else a shipped name."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or Path(text).name != text or text.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    names = shipped_names()
    if text in names:
        return shipped("constitutions") / f"{text}.yaml"
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"no constitution {text!r} is shipped; {cure}Shipped: {', '.join(names)}; or give a .yaml file.")


def shipped_names() -> list[str]:
    """The names of the shipped constitutions, in order."""
    return sorted(path.stem for path in shipped("constitutions").glob("*.yaml"))


def constitution_digest(principles: Sequence[Principle]) -> str:
    """Content hash of what a run reads of them. Keys left at their default do not count, so that a new optional key
    leaves the digests of older files as they are."""
    return digest([p.model_dump(mode="json", exclude_defaults=True) for p in principles])


def _constitution(document: Document) -> Constitution:
    mistakes = list(_cross_mistakes(document))
    try:
        file = validate(_File, document)
    except InputError as error:
        mistakes += str(error).split("\n")
    if mistakes:
        raise InputError("\n".join(sorted(dict.fromkeys(mistakes), key=_line_of)))
    return Constitution(
        name=file.name,
        version=file.version,
        description=file.description.strip(),
        principles=file.principles,
        digest=constitution_digest(file.principles),
    )


def _line_of(sentence: str) -> int:
    found = re.search(r":(\d+): ", sentence)
    return int(found[1]) if found else 0


def _cross_mistakes(document: Document) -> Iterator[str]:
    """What the types cannot see: ids given twice, keys left empty, patterns that RE2 refuses."""
    principles = document.data.get("principles")
    first: dict[str, int] = {}
    for i, principle in enumerate(principles if isinstance(principles, list) else []):
        if not isinstance(principle, dict):
            continue
        at = ("principles", i)
        for key in (*TEXTS, "check"):
            if key in principle and principle[key] is None:
                yield f"{document.where((*at, key))}: principles.{i}.{key}: empty; write something or remove the key."
        name = principle.get("id")
        if isinstance(name, str) and name in first:
            there = document.where(("principles", first[name], "id"))
            yield f"{document.where((*at, 'id'))}: the id {name!r} is already used ({there}); give each its own."
        elif isinstance(name, str):
            first[name] = i
        yield from _pattern_mistakes(document, (*at, "check", "regex"), principle.get("check"))


def _pattern_mistakes(document: Document, at: tuple[str | int, ...], check: Any) -> Iterator[str]:
    pattern = check.get("regex") if isinstance(check, dict) else None
    if isinstance(pattern, str) and pattern and (problem := regex_problem(pattern)):
        yield f"{document.where(at)}: {'.'.join(map(str, at))}: {problem}."


# --------------------------------------------------------------------------------------------- which principles


def applies(principle: Principle, prompt: Prompt) -> bool:
    """Whether the prompt's metadata has, for each key of ``applies_to``, the value or one of the values wanted there.

    A prompt whose metadata holds a list under that key (tags, say) needs one of its items to match.
    """
    return all(_matches(prompt.metadata.get(key), wanted) for key, wanted in principle.applies_to.items())


def _matches(found: Any, wanted: Any) -> bool:
    have = found if isinstance(found, list | tuple) else [found]
    want = wanted if isinstance(wanted, list | tuple) else [wanted]
    # In Python True == 1; in a YAML file they are not the same value.
    return any(h == w and isinstance(h, bool) == isinstance(w, bool) for h in have for w in want)


def draw_principle(principles: Sequence[Principle], seed: int, *ids: str) -> Principle:
    """One principle, each with probability proportional to its weight; decided by ``seed`` and ``ids`` alone.

    Weighted rendezvous hashing: each principle gets the waiting time -log(u)/weight of an exponential clock, with u
    from its own id, and the first to ring wins. So the order of the principles does not matter, and adding, editing or
    removing one changes only the draws which that one wins or loses.
    """
    return min(principles, key=lambda p: (-math.log(uniform(seed, *ids, p.id)) / p.weight, p.id))


# ---------------------------------------------------------------------------------------------------------- lint


@dataclass(frozen=True)
class Lint:
    """What `lint` found: ``constitution`` is None exactly when there are ``errors``; both kinds name file and line."""

    constitution: Constitution | None
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def lint(name_or_path: str | Path) -> Lint:
    """Every mistake in a constitution, or, when there is none, what looks unintended. Raises nothing for a bad file."""
    try:
        document = read_yaml(find_constitution(name_or_path))
        constitution = _constitution(document)
    except InputError as error:
        return Lint(None, errors=tuple(str(error).split("\n")))
    found = [*_no_compare(document, constitution), *_per_principle(document, constitution)]
    found += _near_duplicates(document, constitution)
    return Lint(constitution, warnings=tuple(sorted(found, key=_line_of)))


def _no_compare(document: Document, constitution: Constitution) -> Iterator[str]:
    unusable = [i for i, p in enumerate(constitution.principles) if not (p.compare or p.check)]
    if unusable:
        ids = [constitution.principles[i].id for i in unusable]
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        yield (
            f"{document.where(('principles', unusable[0]))}: {shown}: neither compare nor check; critique and revision"
            " can use it, a judge cannot."
        )


def _per_principle(document: Document, constitution: Constitution) -> Iterator[str]:
    for i, p in enumerate(constitution.principles):
        at = ("principles", i)
        if p.check and p.compare:
            where = document.where((*at, "compare"))
            yield f"{where}: {p.id}: the check decides, so compare is never asked; make it a principle of its own."
        if (p.critique is None) != (p.revise is None):
            has, lacks = ("critique", "revise") if p.critique else ("revise", "critique")
            yield f"{document.where((*at, has))}: {p.id}: {has} without {lacks}; a revision needs both."
        for key in TEXTS:
            text = getattr(p, key) or ""
            if len(text) > LONG_TEXT:
                where = document.where((*at, key))
                yield f"{where}: {p.id}: {key} has {len(text)} characters; split what it asks into several principles."


def _near_duplicates(document: Document, constitution: Constitution) -> Iterator[str]:
    principles = constitution.principles
    words = [" ".join(getattr(p, key) or "" for key in TEXTS).lower().split() for p in principles]
    for j, later in enumerate(principles):
        matcher = difflib.SequenceMatcher(b=words[j], autojunk=False)
        for i, earlier in enumerate(principles[:j]):
            if earlier.applies_to != later.applies_to or earlier.check != later.check:
                continue
            matcher.set_seq1(words[i])
            if _alike(matcher):
                where, line = document.where(("principles", j)), document.lines[("principles", i)]
                yield f"{where}: {later.id}: says nearly the same as {earlier.id} (line {line}), so both count twice."
                break


def _alike(matcher: "difflib.SequenceMatcher[str]") -> bool:
    # Cheapest bound first: most pairs fail on their lengths.
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(ratio() >= NEAR_DUPLICATE for ratio in bounds)
