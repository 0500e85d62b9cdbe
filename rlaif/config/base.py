"""What all configs share: strict models, read from YAML with the file and line of every mistake."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rlaif.errors import InputError

Path_ = tuple[str | int, ...]  # a place in a YAML document: keys and list indices from the root
M = TypeVar("M", bound=BaseModel)


class Config(BaseModel):
    """Base of all configs: immutable, unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Document:
    """A YAML file's data, with the line each key stands on.

    Unlike ``yaml.safe_load`` it refuses a key written twice: YAML would keep the last silently.
    """

    def __init__(self, name: str, data: Any, lines: dict[Path_, int]) -> None:
        self.name, self.data, self.lines = name, data, lines

    def where(self, loc: Sequence[str | int]) -> str:
        """``file:line`` of the deepest part of ``loc`` that was written in the file."""
        path = tuple(loc)
        while path not in self.lines and path:
            path = path[:-1]
        line = self.lines.get(path)
        return f"{self.name}:{line}" if line else self.name


def read_yaml(path: Path) -> Document:
    """Read a YAML file whose root is a mapping. Raises InputError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """As `read_yaml`, for text already read; ``name`` stands for the file in messages."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{at}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {error}.") from None
    if node is None:
        raise InputError(f"{name}: the file is empty.")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(
            f"{name}:{node.start_mark.line + 1}: expected keys and values (`key: value`) at the top level."
        )
    lines: dict[Path_, int] = {}
    data = _build(node, (), lines, name)
    return Document(name, data, lines)


def _build(node: yaml.Node, at: Path_, lines: dict[Path_, int], name: str) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = yaml.SafeLoader("").construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"{name}:{line}: the key {key!r} is not text; write it in quotes.")
            if key in result:
                raise InputError(f"{name}:{line}: the key {key!r} is already given on line {lines[(*at, key)]}.")
            lines[(*at, key)] = line
            result[key] = _build(value_node, (*at, key), lines, name)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*at, i), lines, name) for i, child in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name}:{node.start_mark.line + 1}: not a valid value: {error}.") from None


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Apply ``key.sub=value`` settings (values are YAML) to the document's data, in order."""
    for item in overrides:
        key, sep, text = item.partition("=")
        path = tuple(key.split("."))
        if not sep or not all(path):
            raise InputError(f"--set {item}: expected KEY=VALUE, such as --set policy.n=8.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {item}: the value is not valid YAML.") from None
        place = document.data
        for part in path[:-1]:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[path[-1]] = value
        document.lines = {at: n for at, n in document.lines.items() if at[: len(path)] != path}


def validate(model: type[M], document: Document, hints: Callable[[str], str | None] = lambda key: None) -> M:
    """The document as a ``model``. Raises one InputError that lists every mistake with file, line and nearest key.

    ``hints``: for an unknown key, a better sentence than "did you mean" (what replaced a removed key, say).
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise InputError("\n".join(dict.fromkeys(_sentence(model, document, e, hints) for e in found)))


def _sentence(model: type[BaseModel], document: Document, e: ErrorDetails, hints: Callable[[str], str | None]) -> str:
    loc = [part for part in e["loc"] if not (isinstance(part, str) and part.startswith(("function-", "tagged-")))]
    keys = [part for part in loc if _written(document.data, loc, part)] or loc
    where, dotted = document.where(keys), ".".join(str(part) for part in keys)
    if e["type"] == "extra_forbidden":
        key = str(e["loc"][-1])
        near = difflib.get_close_matches(key, _fields_at(model, e["loc"][:-1]), n=1, cutoff=0.5)
        known = _fields_at(model, e["loc"][:-1])
        cure = hints(key) or (
            f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}." if known else "remove it."
        )
        return f"{where}: unknown key {dotted!r}; {cure}"
    if e["type"] == "missing":
        return f"{document.where(e['loc'][:-1])}: the key {'.'.join(map(str, e['loc']))!r} is missing."
    message = e["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = "" if isinstance(e["input"], dict | list) or e["type"] == "value_error" else f" (found {e['input']!r})"
    end = "" if message.endswith((".", "?")) and not shown else "."
    return f"{where}: {dotted + ': ' if dotted else ''}{message}{shown}{end}"


def _written(data: Any, loc: list[str | int], part: str | int) -> bool:
    """Whether ``part`` of a pydantic location is a key of the document (union branches put type names between)."""
    place = data
    for step in loc:
        if isinstance(place, dict) and step in place:
            place = place[step]
        elif isinstance(place, list) and isinstance(step, int) and step < len(place):
            place = place[step]
        else:
            if step == part:
                return False
            continue
        if step == part:
            return True
    return False


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys allowed at ``loc`` below ``model``."""
    current: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        following: list[type[BaseModel]] = []
        for m in current:
            for name, field in m.model_fields.items():
                if part in (name, field.alias):
                    following += _models_in(field.annotation)
            if m.__name__ == part:
                following.append(m)
        current = following or current
    return sorted({field.alias or name for m in current for name, field in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]
