"""Prompt templates: Jinja files in prompts/, one chat each, checked when they are loaded.

A template has the blocks ``system`` and ``user``; each becomes one message. The system block holds what is the same for
many requests and the user block the row, so that providers can cache the first. Text under judgement goes through the
``fence`` filter, which no text can close.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, cast

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif.errors import InputError
from rlaif.shipped import shipped
from rlaif.types import Message

_BLOCKS = ("system", "user")
_INVISIBLE = "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]*"
_FENCES = ("turn_", "response")  # <turn_user>, <turn_assistant>, <response_X>, ...
_OPENERS = "<＜﹤‹⟨〈"

# What could end a fence of ours or a turn of the chat: the "<" before one of our tags (even spelt with invisible
# characters or look-alike brackets), and the control tokens of the common chat templates.
_TAG = re.compile(
    rf"[{_OPENERS}](?=(?:\s|/|{_INVISIBLE[:-1]})*(?:{'|'.join(_INVISIBLE.join(name) for name in _FENCES)}))",
    re.IGNORECASE,
)
_CONTROL = re.compile(
    r"<(?=\|[^<>\n]{1,64}\|>|/?s>|bos>|eos>|pad>|unk>|start_of_turn>|end_of_turn>|<SYS>>|</SYS>>|｜)|\[(?=/?INST\])"
)


def neutralise(text: str) -> str:
    """``text`` with every closing or opening of our fences, and every chat control token, made harmless."""
    text = _TAG.sub("&lt;", text)
    return _CONTROL.sub(lambda m: "&#91;" if m[0] == "[" else "&lt;", text)


def fence(text: str, name: str) -> str:
    """``text`` between ``<name>`` and ``</name>``, on lines of their own; nothing inside can close it."""
    return f"<{name}>\n{neutralise(text)}\n</{name}>"


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, autoescape=False
    )
    env.filters["fence"] = fence
    return env


class Template:
    """A chat template. ``version`` changes with its text ("pairwise@1f3a9c0e")."""

    def __init__(self, name: str, source: str, variables: Collection[str]) -> None:
        env = _environment()
        try:
            found = meta.find_undeclared_variables(env.parse(source))
            self._template = env.from_string(source)
        except TemplateSyntaxError as error:
            raise InputError(f"{name}:{error.lineno}: not a valid template: {error.message}.") from None
        if unknown := sorted(found - set(variables)):
            raise InputError(
                f"{name}: unknown variable {', '.join(unknown)}; this template may use {', '.join(sorted(variables))}."
            )
        if "user" not in self._template.blocks or set(self._template.blocks) - set(_BLOCKS):
            raise InputError(f"{name}: a template has a block 'user' and may have a block 'system', and no others.")
        self.name = name
        self.version = f"{Path(name).stem}@{hashlib.sha256(source.encode()).hexdigest()[:8]}"

    def render(self, **values: Any) -> tuple[Message, ...]:
        """The chat with ``values`` filled in; every variable the template uses must be given."""
        messages = []
        for block in (b for b in _BLOCKS if b in self._template.blocks):
            try:
                text = "".join(self._template.blocks[block](self._template.new_context(values))).strip()
            except TemplateError as error:
                raise InputError(f"{self.name}: cannot be filled in: {error}.") from None
            if text:
                messages.append(Message(role=cast(Literal["system", "user"], block), content=text))
        return tuple(messages)


def load_template(name_or_path: str, *, variables: Collection[str], must_use: Collection[str]) -> Template:
    """A shipped template by name, or a file by path. Raises InputError for an unknown name, a syntax error, a variable
    the caller does not fill in, or one of ``must_use`` that is not used."""
    path = Path(name_or_path)
    if path.suffix != ".jinja" and len(path.parts) == 1:
        path = shipped("prompts") / f"{name_or_path}.jinja"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        names = ", ".join(sorted(p.stem for p in shipped("prompts").glob("*.jinja")))
        raise InputError(
            f"template '{name_or_path}': no such file; give the path of a .jinja file or one of: {names}."
        ) from None
    template = Template(name_or_path, source, variables)
    used = meta.find_undeclared_variables(_environment().parse(source))
    if missing := sorted(set(must_use) - used):
        raise InputError(f"{name_or_path}: the template must use {', '.join(missing)}.")
    return template
