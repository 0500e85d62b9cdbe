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
    """A YAML file's data, with the line each key stands on, and the places a command line overrode.

    Unlike ``yaml.safe_load`` it refuses a key written twice: YAML would keep the last silently.
    """

    def __init__(self, name: str, data: Any, lines: dict[Path_, int]) -> None:
        self.name, self.data, self.lines = name, data, lines
        self.overrides: dict[Path_, str] = {}

    def where(self, loc: Sequence[str | int]) -> str:
        """``file:line`` (or the ``--set``) of the deepest part of ``loc`` that was written."""
        for end in range(len(loc), -1, -1):
            path = tuple(loc[:end])
            if path in self.overrides:
                return f"--set {self.overrides[path]}"
            if path in self.lines:
                return f"{self.name}:{self.lines[path]}"
        return self.name


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
    except yaml.reader.ReaderError as error:
        at = f"{name}:{text.count(chr(10), 0, error.position) + 1}"
        raise InputError(f"{at}: not valid YAML: the character U+{ord(text[error.position]):04X}.") from None
    except RecursionError:
        raise InputError(f"{name}: nested too deeply.") from None
    if node is None:
        raise InputError(f"{name}: the file is empty.")
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise InputError(f"{name}:{line}: expected keys and values (`key: value`) at the top level.")
    builder = _Builder(name)
    try:
        data = builder.build(node, ())
    except RecursionError:  # a mapping merged into itself
        raise InputError(f"{name}: nested too deeply; does an anchor (&) contain itself?") from None
    return Document(name, data, builder.lines)


_MAP, _SEQ, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "merge"))
_MAX_DEPTH, _MAX_NODES = 50, 200_000  # an anchor may contain itself, or a few of them multiply beyond all memory


class _Builder:
    """Turns a node tree into data, noting the line of each key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path_, int] = {}
        self.nodes = 0
        self.loader = yaml.SafeLoader("")

    def build(self, node: yaml.Node, at: Path_) -> Any:
        self.count(node, at)
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.build(child, (*at, i)) for i, child in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, at: Path_) -> dict[str, Any]:
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                # `<<: *anchor`: what is merged yields to the mapping's own keys, the first merged to the next.
                merged = self.merge(key_node, value_node, at) | merged
        result: dict[str, Any] = {}
        for key_node, value_node in own:
            key, line = self.scalar(key_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise self.error(key_node, f"the key {key!s} is not text; write it in quotes")
            if key in result:
                raise self.error(key_node, f"the key {key!r} is already given on line {self.lines[(*at, key)]}")
            self.lines[(*at, key)] = line
            result[key] = self.build(value_node, (*at, key))
        return merged | result

    def merge(self, key: yaml.Node, node: yaml.Node, at: Path_) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise self.error(key, "`<<` needs an anchored mapping, or a list of them")
            self.count(key, at)
            result = self.mapping(part, at) | result
        return result

    def scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise self.error(node, f"{tag} is not supported here; write text, a number, true or false")
        try:
            value = self.loader.construct_object(node)
        except yaml.MarkedYAMLError as error:
            raise self.error(node, f"not a valid value: {error.problem}") from None
        except ValueError as error:
            raise self.error(node, f"not a valid value: {error}") from None
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise self.error(node, "not a valid value: half of a surrogate pair is no character")
        return value

    def count(self, node: yaml.Node, at: Path_) -> None:
        self.nodes += 1
        if len(at) > _MAX_DEPTH or self.nodes > _MAX_NODES:
            raise self.error(node, "nested too deeply or too large; does an anchor (&) contain itself?")

    def error(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{self.name}:{node.start_mark.line + 1}: {message}{'' if message.endswith('?') else '.'}")


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Apply ``key.sub=value`` settings (values are YAML) to the document's data, in order.

    A list is entered by index (``judge.models.0=...``). Raises InputError for a setting that is none, or that leads
    through a value which has no keys.
    """
    for item in overrides:
        key, sep, text = item.partition("=")
        parts = key.split(".")
        if not sep or not all(parts):
            raise InputError(f"--set {item}: expected KEY=VALUE, such as --set policy.n=8.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {item}: the value is not valid YAML.") from None
        path: Path_ = ()
        place = document.data
        for part in parts[:-1]:
            step = _step(place, part, item)
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place, path = place[step], (*path, step)
            if not isinstance(place, dict | list):
                raise InputError(f"--set {item}: {'.'.join(map(str, path))!r} is {place!r}, which has no keys.")
        last = _step(place, parts[-1], item)
        place[last] = value
        path = (*path, last)
        document.lines = {at: n for at, n in document.lines.items() if at[: len(path)] != path}
        document.overrides = {at: s for at, s in document.overrides.items() if at[: len(path)] != path} | {path: item}


def _step(place: dict[str, Any] | list[Any], part: str, item: str) -> Any:
    if isinstance(place, dict):
        return part
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    raise InputError(f"--set {item}: {part!r} is no index of a list of {len(place)}.")


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
    message = _PLAIN.get(e["type"]) or e["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should", "must")
    if e["type"] == "model_type" and (known := _fields_at(model, e["loc"])):
        message = f"expected keys and values ({', '.join(known)})"
    shown = "" if isinstance(e["input"], dict | list) or e["type"] == "value_error" else _found(e)
    end = "" if message.endswith((".", "?")) and not shown else "."
    return f"{where}: {dotted + ': ' if dotted else ''}{message}{shown}{end}"


# pydantic speaks of Python's types; a reader of YAML knows text, numbers and lists.
_PLAIN = {
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
}


def _found(e: ErrorDetails) -> str:
    value = e["input"]
    if value is None:
        return " (found nothing)"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    # `no`, `on` and 1.10 are not the text they look like.
    cure = "; put it in quotes" if e["type"] == "string_type" else ""
    return f" (found {shown}{cure})"


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
