"""Requests as tokens, and tokens as text, with a tokenizer's own chat template (for the models of this machine)."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from rlaif.errors import InputError, RequestError
from rlaif.types import Message

# Noncharacters: no text holds them, so one can mark a place in a rendered prompt.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class Chat:
    """A tokenizer with a chat template. Raises InputError when it has none."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"{name}: its tokenizer has no chat template, so it takes no messages; use an instruction-tuned model"
                " or set chat_template in its tokenizer_config.json."
            )
        self._tokenizer = tokenizer
        self._controls = _control_pattern(tokenizer)
        self._labels: dict[str, tuple[int, ...]] = {}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, up to where the answer begins.

        A control token spelled out inside a message ("<|im_end|>" in a text under judgement) is read as plain text: it
        is cut in two, and the parts are tokenized apart. Messages without one give exactly the ids that transformers'
        ``apply_chat_template`` gives. Raises RequestError when the template or the tokenizer refuses the messages.
        """
        contents = [m.content for m in messages]
        mark = next(c for c in _MARKS if not any(c in text for text in contents))
        chat = [
            {"role": m.role, "content": self._controls.sub(lambda found: _cut(found[0], mark), m.content)}
            for m in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            text.encode()
        except TemplateError as error:
            raise RequestError(f"the model's chat template refuses these messages: {error}.", kind="invalid") from None
        except UnicodeEncodeError:
            raise RequestError("a message holds half a character (a lone surrogate).", kind="invalid") from None
        return self._ids(text.split(mark))

    def encode_text(self, text: str) -> list[int]:
        """The token ids of a given answer, where the model's own would stand; control tokens in it are plain text.
        Raises RequestError for a text that is no UTF-8 or has no tokens."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text holds half a character (a lone surrogate).", kind="invalid") from None
        mark = next(c for c in _MARKS if c not in text)
        ids = self._ids(self._controls.sub(lambda found: _cut(found[0], mark), text).split(mark))
        if not ids:
            raise RequestError("the text has no tokens.", kind="invalid")
        return ids

    def _ids(self, parts: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """One token as text, its leading space kept; a part of a character as the vocabulary writes it."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if "\ufffd" in text:
            return piece
        # SentencePiece writes the space as "▁" and decoding a lone token drops it.
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text

    def label_tokens(self, label: str) -> tuple[int, ...]:
        """The tokens that spell ``label`` alone: as it stands and with a leading space, where those are one token."""
        if label not in self._labels:
            vocabulary = self._tokenizer.get_vocab()
            found = {vocabulary[piece] for piece in (f"Ġ{label}", f"▁{label}", label) if piece in vocabulary}
            for text in (label, f" {label}"):
                ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1:
                    found.add(ids[0])
            self._labels[label] = tuple(sorted(found))
        return self._labels[label]

    def eos_tokens(self) -> frozenset[int]:
        eos = self._tokenizer.eos_token_id
        return frozenset() if eos is None else frozenset([int(eos)])


def _cut(control: str, mark: str) -> str:
    return control[0] + mark + control[1:]


def _control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the text of every token that steers a model: special ones, and added ones that look like markup."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {str(t) for t in added if t.special or re.fullmatch(r"<.+>|\[.+\]", str(t))}
    texts |= set(tokenizer.all_special_tokens)
    alternatives = "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True) if len(t) > 1)
    return re.compile(alternatives or r"(?!)")
