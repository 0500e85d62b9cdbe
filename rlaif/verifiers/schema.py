"""JSON that follows a schema.

The text is one JSON value as in RFC 8259, strictly: a key given twice, NaN, infinity or a number too large to hold are
no JSON. The schema is any draft that jsonschema knows (2020-12 unless it says ``$schema``), with three differences, so
that no text can make the check slow or reach out: patterns are RE2's (linear time), ``uniqueItems`` takes linear time,
and ``$ref`` points into the schema itself, never to an address.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field

from rlaif.checks import degree, regex_problem
from rlaif.errors import InputError, TaskError
from rlaif.hashing import canonical_json
from rlaif.types import Check, Reward
from rlaif.verifiers.base import Task
from rlaif.verifiers.text import TextOptions, TextVerifier, excerpt, passed

_MAX_DEPTH = 64  # deeper text is no answer anybody asked for, and validating it is recursive
_MAX_DIGITS = 4_000


class JsonSchemaOptions(TextOptions):
    """``json_schema``: the schema, where no column of that name gives one. ``fenced``: one Markdown code fence around
    the whole answer is not part of it."""

    json_schema: dict[str, Any] | bool | None = Field(None)
    fenced: bool = True


class JsonSchemaVerifier(TextVerifier[JsonSchemaOptions, Any]):
    """The completion is JSON, and follows ``json_schema`` (a mapping, or JSON text)."""

    identity = "json_schema@1"
    Options = JsonSchemaOptions

    def goal(self, task: Task) -> Any:
        given = self.setting(task, "json_schema", dict[str, Any] | bool | str)
        if isinstance(given, str):
            try:
                given = parse_json(given)
            except ValueError as error:
                raise TaskError(f"{self.identity}: json_schema is not JSON: {error}.") from None
        try:
            key = canonical_json(given)
        except (TypeError, ValueError, RecursionError) as error:
            raise TaskError(f"{self.identity}: json_schema is not JSON: {error}.") from None
        return _validator(key)

    def decide(self, text: str, goal: Any) -> Reward:
        from referencing.exceptions import Unresolvable

        try:
            value = parse_json(_unfenced(text) if self.options.fenced else text)
        except ValueError as error:
            return Reward(value=0.0, reason="unparseable", detail=str(error))
        try:
            problem = next(goal.iter_errors(value), None)
        except Unresolvable as error:
            raise TaskError(f"{self.identity}: the schema has a $ref that leads nowhere ({error}).") from None
        except RecursionError:
            raise TaskError(f"{self.identity}: the schema refers to itself without end.") from None
        if problem is None:
            return Reward(value=1.0)
        at = "/".join(map(str, problem.absolute_path)) or "the value"
        return passed(False, f"{excerpt(at)}: {excerpt(problem.message, 160)}")


def parse_json(text: str) -> Any:
    """``text`` as one JSON value. Raises ValueError, with the reason, for what RFC 8259 forbids or leaves open."""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refused, parse_int=_whole, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep") from None
    if _deeper_than(value, _MAX_DEPTH):
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError("a number too large to hold")
    return number


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _unfenced(text: str) -> str:
    text = text.strip()
    opening = re.match(r"```(?:json)?[^\S\n]*\n", text, re.IGNORECASE)
    return text[opening.end() : -3] if opening and text.endswith("\n```") else text


# -------------------------------------------------------------------------------------------------------- the schema


@lru_cache(maxsize=256)
def _validator(schema_json: str) -> Any:
    """A jsonschema validator of this schema. Raises TaskError for a schema that is none."""
    try:
        from jsonschema import validators
        from jsonschema.exceptions import SchemaError
        from referencing import Registry
    except ImportError:
        raise InputError("The json_schema verifier needs the package jsonschema: pip install jsonschema.") from None
    schema = json.loads(schema_json)
    base = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        base.check_schema(schema)
    except SchemaError as error:
        raise TaskError(f"json_schema@1: not a valid schema: {excerpt(error.message, 160)}.") from None
    except RecursionError:
        raise TaskError("json_schema@1: the schema is nested too deeply.") from None
    _refuse_what_is_not_safe(schema)
    # Without a registry of its own, jsonschema would fetch a $ref from its address.
    return _linear(base)(schema, registry=Registry())


def _refuse_what_is_not_safe(schema: Any) -> None:
    keys: set[str] = set()
    for node in _nodes(schema):
        keys |= node.keys()
        for name in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(target := node.get(name), str) and not target.startswith("#"):
                raise TaskError(f"json_schema@1: {name} {target!r} is outside the schema; copy it into $defs.")
        patterns = list(p) if isinstance(p := node.get("patternProperties"), dict) else []
        for pattern in [*patterns, node.get("pattern")]:
            if isinstance(pattern, str) and (problem := regex_problem(pattern)):
                raise TaskError(f"json_schema@1: {problem}.")
    if {"patternProperties", "unevaluatedProperties"} <= keys:
        raise TaskError("json_schema@1: patternProperties together with unevaluatedProperties is not supported.")


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
        stack += _children(node)


@lru_cache(maxsize=16)
def _linear(base: Any) -> Any:
    from jsonschema import validators

    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    extend: Any = validators.extend
    return extend(base, {key: check for key, check in own.items() if key in base.VALIDATORS})


def _matches(pattern: str, text: str) -> bool:
    return degree(Check(regex=pattern), text) == 1.0


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and pattern and not _matches(pattern, instance):
        yield _problem(f"{excerpt(instance)} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if not pattern or _matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    patterns = schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in schema.get("properties", {}) or any(not p or _matches(p, key) for p in patterns):
            continue
        if allowed is False:
            yield _problem(f"the key {excerpt(key)} is not one of the schema's")
        else:
            yield from validator.descend(value, allowed, path=key)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[Any]:
    if unique and isinstance(instance, list) and len({_identity(item) for item in instance}) < len(instance):
        yield _problem("two items are equal")


def _identity(value: Any) -> Any:
    """The same for two JSON values exactly when JSON Schema holds them equal: 1 is 1.0, but not true."""
    if isinstance(value, dict):
        return "object", frozenset((key, _identity(item)) for key, item in value.items())
    if isinstance(value, list):
        return "list", tuple(map(_identity, value))
    return "bool" if isinstance(value, bool) else "plain", value


def _problem(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)
