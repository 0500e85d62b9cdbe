"""Constitutions published as JSON, turned into ours.

The formats, told apart by their shape:

==================  ================================================================  =================================
format              shape                                                             becomes
==================  ================================================================  =================================
critique-revision   {name: {"prompt": [text, ...], "edit_request": text}}             critique + revise
comparison          [text, ...]                                                       compare
sections            {"sections": [{"name": text, "principles": [text, ...]}]}         compare
huggingface         {"constitutions": [{"critic": text, "revision": text}]}           critique + revise
==================  ================================================================  =================================

critique-revision and comparison are the files of Bai et al. 2022 (arXiv 2212.08073), huggingface is the recipe of
"Constitutional AI with Open LLMs"; their texts keep their words and lose the scaffolding of a base model's prompt
("CritiqueRequest: ... Critique:", "Options:"). What is not carried is named in the notes; nothing is lost silently.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import yaml

from rlaif.constitution import constitution_from_text
from rlaif.errors import InputError

Format = Literal["critique-revision", "comparison", "sections", "huggingface"]
FORMATS = cast(tuple[Format, ...], get_args(Format))

_SHAPES = (
    'critique-revision ({name: {"prompt": [text], "edit_request": text}}), comparison ([text, ...]), '
    'sections ({"sections": [{"name": text, "principles": [text]}]}), '
    'huggingface ({"constitutions": [{"critic": text, "revision": text}]})'
)


class _Entry(NamedTuple):
    """One principle to write; ``section`` becomes a comment above it."""

    id: str
    texts: dict[str, str]
    section: str = ""


@dataclass(frozen=True)
class Imported:
    """``yaml``: a constitution file that `load_constitution` reads. ``notes``: what was not carried, in sentences."""

    format: Format
    yaml: str
    notes: tuple[str, ...]


def import_constitution(path: Path, format: Format | None = None) -> Imported:
    """Convert the JSON file ``path``; without ``format`` its shape decides. Raises InputError for any other shape."""
    data = _read_json(path)
    chosen = format or _detect(data)
    if chosen is None:
        raise InputError(f"{path}: not a constitution in a known JSON shape; known are {_SHAPES}.")
    notes: list[str] = []
    try:
        entries = list(_READERS[chosen](data, notes))
    except _Misfit as misfit:
        raise InputError(f"{path}: not a {chosen} constitution: {misfit}; known shapes are {_SHAPES}.") from None
    if not entries:
        raise InputError(f"{path}: a {chosen} constitution without a single principle.")
    source = data.get("source") if chosen == "sections" else None
    text = _render(path, chosen, entries, notes, source if isinstance(source, str) else "")
    constitution_from_text(text, f"{path} (converted)")  # what we write, we can read
    return Imported(chosen, text, tuple(notes))


class _Misfit(Exception):
    """The data has not the shape of the chosen format."""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice: one of its values would be lost")
    return result


def _detect(data: Any) -> Format | None:
    if isinstance(data, list) and data and all(isinstance(item, str) for item in data):
        return "comparison"
    if not isinstance(data, dict) or not data:
        return None
    if isinstance(data.get("sections"), list):
        return "sections"
    if isinstance(data.get("constitutions"), list):
        return "huggingface"
    if all(isinstance(item, dict) and "prompt" in item and "edit_request" in item for item in data.values()):
        return "critique-revision"
    return None


# ------------------------------------------------------------------------------------------------- the four shapes


def _critique_revision(data: Any, notes: list[str]) -> Iterator[_Entry]:
    for name, item in _mapping(data, "the file").items():
        fields = _fields(item, repr(name), ("prompt", "edit_request"), notes)
        prompts = _list(fields["prompt"], f"'prompt' of {name!r}")
        for n, prompt in enumerate(prompts, start=1):
            critique = _unwrap(_text(prompt, f"'prompt' of {name!r}"), "CritiqueRequest:", "Critique:")
            revise = _unwrap(
                _text(fields["edit_request"], f"'edit_request' of {name!r}"), "RevisionRequest:", "Revision:"
            )
            ident = _slug(name) if len(prompts) == 1 else f"{_slug(name)}-{n}"
            yield _Entry(ident, {"critique": critique, "revise": revise})


def _comparison(data: Any, notes: list[str]) -> Iterator[_Entry]:
    items = _list(data, "the file")
    for n, item in enumerate(items, start=1):
        text = _text(item, f"item {n}")
        if "\n\nHuman:" in text or "\n\nAssistant:" in text:
            raise _Misfit(f"item {n} is a dialogue (a few-shot example), not an instruction")
        yield _Entry(_numbered("comparison", n, len(items)), {"compare": _unwrap(text, "", "Options:")})


def _sections(data: Any, notes: list[str]) -> Iterator[_Entry]:
    known = ("source",) if isinstance(data, dict) and isinstance(data.get("source"), str) else ()
    sections = _fields(data, "the file", ("sections",), notes, known)["sections"]
    for n, section in enumerate(_list(sections, "'sections'"), start=1):
        fields = _fields(section, f"section {n}", ("name", "principles"), notes)
        name = _text(fields["name"], f"'name' of section {n}")
        texts = _list(fields["principles"], f"'principles' of section {n}")
        for m, text in enumerate(texts, start=1):
            compare = _unwrap(_text(text, f"principle {m} of section {n}"), "", "Options:")
            yield _Entry(_numbered(_short_slug(name), m, len(texts)), {"compare": compare}, name)


def _huggingface(data: Any, notes: list[str]) -> Iterator[_Entry]:
    fields = _fields(data, "the file", ("constitutions",), notes, known=("system_chat",))
    chat = fields.get("system_chat")
    if chat:
        size = f"{len(chat)} example chats" if isinstance(chat, list) else "example chats"
        notes.append(
            f"'system_chat' ({size}) was not carried: a constitution holds principles; a few-shot prompt belongs in a"
            " prompt template."
        )
    items = _list(fields["constitutions"], "'constitutions'")
    for n, item in enumerate(items, start=1):
        pair = _fields(item, f"constitution {n}", ("critic", "revision"), notes)
        texts = {
            "critique": _text(pair["critic"], f"'critic' of constitution {n}"),
            "revise": _text(pair["revision"], f"'revision' of constitution {n}"),
        }
        yield _Entry(_numbered("principle", n, len(items)), texts)


_READERS: dict[Format, Callable[[Any, list[str]], Iterator[_Entry]]] = {
    "critique-revision": _critique_revision,
    "comparison": _comparison,
    "sections": _sections,
    "huggingface": _huggingface,
}


# --------------------------------------------------------------------------------------------------- small pieces


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Misfit(f"{what} should be an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Misfit(f"{what} should be a list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Misfit(f"{what} should be a text that is not empty")
    return value.strip()


def _fields(
    value: Any, what: str, needed: tuple[str, ...], notes: list[str], known: tuple[str, ...] = ()
) -> dict[str, Any]:
    fields = _mapping(value, what)
    for key in needed:
        if key not in fields:
            raise _Misfit(f"{what} has no {key!r}")
    notes += [f"{key!r} of {what} was not carried." for key in fields if key not in (*needed, *known)]
    return fields


def _unwrap(text: str, head: str, tail: str) -> str:
    """The instruction alone, without the labels around it that told a base model where it stands."""
    inner = text.strip().removeprefix(head).removesuffix(tail).strip()
    if not inner:
        raise _Misfit(f"{text!r} holds no instruction")
    return inner


def _slug(text: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text)  # CamelCase
    return re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-") or "principle"


# Words that say how a section came about, not what it is about.
_FILLER = {"anthropic", "based", "by", "consideration", "encouraging", "from", "inspired", "principles"}
_FILLER |= {"a", "an", "and", "for", "in", "of", "on", "s", "the", "to"}


def _short_slug(text: str) -> str:
    """At most four telling words of a heading."""
    words = [word for word in _slug(text).split("-") if word not in _FILLER]
    return "-".join(words[:4]) or _slug(text)


def _numbered(stem: str, n: int, total: int) -> str:
    return f"{stem}-{n:0{max(2, len(str(total)))}d}"


# --------------------------------------------------------------------------------------------------------- writing


def _render(path: Path, chosen: Format, entries: list[_Entry], notes: list[str], source: str) -> str:
    head = {
        "name": _slug(path.stem),
        "version": "1",
        "description": f"Imported from {path.name} ({chosen})." + (f" Source: {source}." if source else ""),
    }
    comments = [f"# {line}" for note in notes for line in note.splitlines()]
    lines = [*comments, _dump(head).rstrip(), "principles:"]
    section = ""
    for ident, entry in zip(_unique([e.id for e in entries]), entries, strict=True):
        if entry.section != section:
            section = entry.section
            lines.append(f"\n  # {' '.join(section.split())}")
        block = _dump([{"id": ident, **entry.texts}]).rstrip()
        lines += ["  " + line if line else line for line in block.split("\n")]
    return "\n".join(lines) + "\n"


def _dump(value: Any) -> str:
    # Unescaped, these line separators would come back as spaces.
    plain = not re.search("[\x85\u2028\u2029]", json.dumps(value, ensure_ascii=False))
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=plain, width=110)


def _unique(ids: list[str]) -> list[str]:
    """The ids, later ones of the same name numbered ("harm", "harm-2")."""
    result: list[str] = []
    for wanted in ids:
        ident, n = wanted, 1
        while ident in result:
            n += 1
            ident = f"{wanted}-{n}"
        result.append(ident)
    return result
