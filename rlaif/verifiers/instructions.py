"""Instructions that a program can check: the 25 of IFEval (Zhou et al. 2023, arXiv 2311.07911).

A task has ``instruction_id_list`` ("length_constraints:number_words", ...; a leading "en:" is allowed) and ``kwargs``,
one mapping of arguments for each. Arguments that are None (as in Arrow files) count as not given.

``mode: strict`` looks at the completion as it is. ``loose`` also accepts it without its first line, its last line, or
both, and each of these without asterisks, if any of them follows the instruction.

``rules: official`` gives the verdicts of the official checker, which the published figures rest on, row by row, but for
one thing: asked to count a sign ("#") it draws a random letter; here the sign is counted. Three more differences, on
which no recorded verdict depends: it takes a text without letters for any language, here it is in none; it takes
keywords for patterns, here they are literal; and it has NLTK count sentences (see rlaif/verifiers/penn.py).

The official checker is generous in places and wrong in others, and a policy finds every such place. With
``rules: corrected`` what is told at each function of the second half is repaired.

Not covered: whether the text is any good. "war war war war" follows "use the word war four times"; add `repetition`,
a judge or a reward model. Such a text is flagged "keyword_stuffing".
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from rlaif.checks import count_sentences, count_words, degree
from rlaif.errors import TaskError
from rlaif.types import Check, Reward
from rlaif.verifiers import penn
from rlaif.verifiers.base import Task
from rlaif.verifiers.language import LANGUAGES, detect, load
from rlaif.verifiers.text import TextOptions, TextVerifier, visible


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; there are: {', '.join(LANGUAGES)}")
    return code


Count = Annotated[int, Field(ge=0)]
Relation = Literal["at least", "less than"]
Word = Annotated[str, Field(min_length=1)]
Words = Annotated[list[Word], Field(min_length=1)]
Language = Annotated[str, AfterValidator(_known_language)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]


def _relates(count: int, relation: Relation, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


# ------------------------------------------------------------------------------------------------- the official rules
#
# One function an instruction: the text, then the instruction's own arguments by their official names. Written so that
# each takes linear time on any text.


def keywords_existence(text: str, *, keywords: Words) -> bool:
    return all(_found(word, text) for word in keywords)


def keywords_frequency(text: str, *, keyword: Word, frequency: Count, relation: Relation) -> bool:
    return _relates(len(re.findall(re.escape(keyword), text, re.IGNORECASE)), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Words) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: Letter, let_frequency: Count, let_relation: Relation) -> bool:
    return _relates(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: Language) -> bool:
    return detect(text) == language


def number_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    return _relates(penn.count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """Paragraphs stand between ``***``. Only the first and the last may be blank, and then do not count."""
    blank = [not part.strip() for part in re.split(r"\*\*\*", text)]
    return not any(blank[1:-1]) and blank.count(False) == num_paragraphs


def number_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return _relates(sum(1 for _ in re.finditer(r"\w+", text)), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: Count, nth_paragraph: Count, first_word: Word) -> bool:
    """Paragraphs stand between empty lines; blank ones are not counted, but have their place."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    first = parts[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"[.,?!'\"]", first)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: Count) -> bool:
    return sum(1 for _ in _bracketed(text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: Word) -> bool:
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = patterns.get(postscript_marker) or re.escape(postscript_marker.lower())
    return re.search(pattern, text.lower()) is not None


def number_bullet_lists(text: str, *, num_bullets: Count) -> bool:
    """A bullet is a line that begins with one asterisk, or with a hyphen."""
    return len(_BULLET.findall(text)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in _CONSTRAINED)


def number_highlighted_sections(text: str, *, num_highlights: Count) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(inside.strip()) for inside in single + double) >= num_highlights


def multiple_sections(text: str, *, section_spliter: Word, num_sections: Count) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    try:
        json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A line with something between ``<<`` and ``>>``."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start <= end - 3 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str) -> bool:
    """Two different texts with ``******`` between them; a blank one may stand at either end."""
    parts = text.split("******")
    if not all(part.strip() for part in parts[1:-1]):
        return False
    responses = [part.strip() for part in parts if part.strip()]
    return len(responses) == 2 and responses[0] != responses[1]


def repeat_prompt(text: str, *, prompt_to_repeat: Word) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: Word) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    return _relates(penn.capital_words(text), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and detect(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    return text.islower() and detect(text) in ("en", None)


def no_comma(text: str) -> bool:
    return "," not in text


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# What follows the sign is a part of the bullet, even if it is the next line.
_BULLET = re.compile(r"^[^\S\n]*+(?:\*[^*].*|-.*)$", re.MULTILINE)


def _found(word: str, text: str) -> bool:
    return re.search(re.escape(word), text, re.IGNORECASE) is not None


def _bracketed(text: str) -> list[str]:
    """What stands between "[" and the next "]" of the same line."""
    inside = []
    for line in text.split("\n"):
        at = line.find("[")
        while at >= 0 and (end := line.find("]", at)) >= 0:
            inside.append(line[at + 1 : end])
            at = line.find("[", end)
    return inside


def _unfenced(text: str) -> str:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


# ------------------------------------------------------------------------------------------------ the corrected rules
#
# Only what the official rules get wrong. The text comes without invisible characters.


def whole_keywords_existence(text: str, *, keywords: Words) -> bool:
    """Whole words, or their plural: "war" is not in "toward"."""
    return all(_whole(word, plural=True).search(text) for word in keywords)


def whole_keywords_frequency(text: str, *, keyword: Word, frequency: Count, relation: Relation) -> bool:
    """Whole words, or their plural, as above."""
    return _relates(len(_whole(keyword, plural=True).findall(text)), relation, frequency)


def without_forbidden_words(text: str, *, forbidden_words: Words) -> bool:
    """A word that begins or ends with a sign ("c++") can be found too."""
    return not any(_whole(word).search(text) for word in forbidden_words)


def sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    """As a reader counts: "e.g." ends no sentence, the "1." of a list is none, "**" after a full stop is none, and each
    item of a list is one."""
    # In a text without capitals, a small letter does not tell that a sentence goes on.
    return _relates(count_sentences(text.upper() if text.islower() else text), relation, num_sentences)


def words(text: str, *, num_words: Count, relation: Relation) -> bool:
    """As a reader counts: "don't" and "state-of-the-art" are one word each."""
    return _relates(count_words(text), relation, num_words)


def divided_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """``***emphasis***`` on a line divides nothing."""
    return number_paragraphs(
        re.sub(r"\*{3}(?=[^\s*])[^\n*]*(?<=[^\s*])\*{3}", "-", text), num_paragraphs=num_paragraphs
    )


def first_word_of_paragraph(text: str, *, num_paragraphs: Count, nth_paragraph: Count, first_word: Word) -> bool:
    """Blank paragraphs have no place, and the word may be emphasised ("**Weekend**") or hyphenated."""
    parts = [part for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    return parts[nth_paragraph - 1].split(maxsplit=1)[0].strip("*_#\"'“”‘’.,;:?!()").lower() == first_word.lower()


def placeholders(text: str, *, num_placeholders: Count) -> bool:
    """A placeholder holds a letter and is no link: "[ ]", "[1]" and "[text](address)" are none."""
    text = re.sub(r"\]\(", ")", text)
    return sum(any(map(str.isalpha, inside)) for inside in _bracketed(text)) >= num_placeholders


def written_postscript(text: str, *, postscript_marker: Word) -> bool:
    """Something follows the marker, and "P.S." within "P.P.S." is none."""
    marker = re.escape(postscript_marker.rstrip(".")).replace(r"\.", r"\.\s?")
    return re.search(rf"(?i)(?<![\w.]){marker}\.?[:*_\s,-]*+\w", text) is not None


def bullets(text: str, *, num_bullets: Count) -> bool:
    """ "- item", "* item", "+ item" or "• item": "---", "* * *", "-5" and "*emphasis*" are none, and a sign alone does
    not swallow the next line."""
    return (
        len(re.findall(r"(?m)^[^\S\n]*+(?:[*+-][^\S\n]++|[•‣▪][^\S\n]*+)(?!(?:[*+-]|[^\S\n])*+$)\S", text))
        == num_bullets
    )


def one_constrained_response(text: str) -> bool:
    """Exactly one of the three answers, once: all three in a row are none."""
    return sum(text.count(option) for option in _CONSTRAINED) == 1


def highlights(text: str, *, num_highlights: Count) -> bool:
    """Emphasis begins and ends with a letter or sign: "2 * 3 * 4" has none."""
    found = re.findall(r"(?<![*\w])(\*{1,3})(?=[^\s*])([^\n*]*)(?<=[^\s*])\1(?!\*)", text)
    return len(found) >= num_highlights


def headed_sections(text: str, *, section_spliter: Word, num_sections: Count) -> bool:
    """A section begins a line and each number counts once: "see Section 2" in the text is none."""
    heads = re.findall(rf"(?im)^(?:[#*_>\"'“-]|[^\S\n])*+{re.escape(section_spliter)}\s?(\d+)", text)
    return len(set(heads)) >= num_sections


def strict_json(text: str) -> bool:
    """As in RFC 8259: NaN and a key given twice are none."""
    return degree(Check(json_valid=True), _unfenced(text)) == 1.0


def capital_words(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    """Words of two capitals or more: "I", "A" and the "S" of "IT'S" are none."""
    count = sum(word.isupper() and sum(map(str.isalpha, word)) > 1 for word in re.findall(r"[\w'’-]+", text))
    return _relates(count, capital_relation, capital_frequency)


def all_capitals(text: str) -> bool:
    """langdetect knows no language in capitals: it is asked in small letters."""
    return text.isupper() and _is_english(text)


def all_lowercase(text: str) -> bool:
    return text.islower() and _is_english(text)


def no_comma_at_all(text: str) -> bool:
    """The commas of other scripts count too."""
    return not re.search("[,،、，﹐﹑､]", text)


def filled_quotation(text: str) -> bool:
    """There is something between the marks, and the typographic pair will do."""
    text = text.strip()
    return text[:1] + text[-1:] in ('""', "“”") and any(map(str.isalnum, text[1:-1]))


def _is_english(text: str) -> bool:
    """langdetect's opinion of a few words is worth nothing: there, Latin letters will do."""
    said = re.findall(r"[^\W\d_]+", text)
    return all(map(str.isascii, said)) if len(said) < 10 else detect(text.lower()) == "en"


def _whole(word: str, *, plural: bool = False) -> re.Pattern[str]:
    ending = "(?:e?s)?" if plural else ""
    return re.compile(rf"(?<!\w){re.escape(word.strip())}{ending}(?!\w)", re.IGNORECASE)


# -------------------------------------------------------------------------------------------------------- the tables

Instruction = Callable[..., bool]

OFFICIAL: dict[str, Instruction] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keywords_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
CORRECTED: dict[str, Instruction] = OFFICIAL | {
    "keywords:existence": whole_keywords_existence,
    "keywords:frequency": whole_keywords_frequency,
    "keywords:forbidden_words": without_forbidden_words,
    "length_constraints:number_sentences": sentences,
    "length_constraints:number_paragraphs": divided_paragraphs,
    "length_constraints:number_words": words,
    "length_constraints:nth_paragraph_first_word": first_word_of_paragraph,
    "detectable_content:number_placeholders": placeholders,
    "detectable_content:postscript": written_postscript,
    "detectable_format:number_bullet_lists": bullets,
    "detectable_format:constrained_response": one_constrained_response,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": headed_sections,
    "detectable_format:json_format": strict_json,
    "startend:quotation": filled_quotation,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": all_capitals,
    "change_case:english_lowercase": all_lowercase,
    "punctuation:no_comma": no_comma_at_all,
}
_NEED_LANGDETECT = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
RULES = {"official": OFFICIAL, "corrected": CORRECTED}


class Asked(NamedTuple):
    """One instruction of a task, its arguments checked."""

    name: str
    arguments: dict[str, Any]


class InstructionsOptions(TextOptions):
    """``reward``: "all" is 1 only if every instruction is followed; "share" is the share that is."""

    mode: Literal["strict", "loose"] = "strict"
    reward: Literal["all", "share"] = "all"
    rules: Literal["official", "corrected"] = "official"


class InstructionsVerifier(TextVerifier[InstructionsOptions, tuple[Asked, ...]]):
    """The completion follows its instructions (see the header)."""

    identity = "instructions@1"
    Options = InstructionsOptions

    def goal(self, task: Task) -> tuple[Asked, ...]:
        names, arguments = task.get("instruction_id_list"), task.get("kwargs")
        if not isinstance(names, list | tuple) or not names:
            raise TaskError("instructions@1: the row needs 'instruction_id_list', a list of instruction ids.")
        if not isinstance(arguments, list | tuple) or len(arguments) != len(names):
            raise TaskError(f"instructions@1: 'kwargs' must be a list of {len(names)} mappings, one an instruction.")
        goal = tuple(_asked(name, given) for name, given in zip(names, arguments, strict=True))
        if any(asked.name in _NEED_LANGDETECT for asked in goal):
            load()
        return goal

    def decide(self, text: str, goal: tuple[Asked, ...]) -> Reward:
        if not text.strip():
            return Reward(value=0.0, reason="unparseable", detail="the completion is blank")
        followed = self.followed(text, goal)
        missed = [asked.name for asked, ok in zip(goal, followed, strict=True) if not ok]
        flags = ("keyword_stuffing",) if _is_stuffed(text, goal) else ()
        if not missed:
            return Reward(value=1.0, flags=flags)
        value = 0.0 if self.options.reward == "all" else sum(followed) / len(followed)
        return Reward(value=value, reason="wrong", detail=f"not followed: {', '.join(missed)}", flags=flags)

    def followed(self, text: str, goal: Sequence[Asked]) -> list[bool]:
        """Of each instruction, whether the text follows it."""
        rules = RULES[self.options.rules]
        texts = variants(text) if self.options.mode == "loose" else [text]
        if self.options.rules == "corrected":
            texts = [visible(t) for t in texts]
        texts = [t for t in texts if t.strip()]
        return [any(rules[asked.name](t, **asked.arguments) for t in texts) for asked in goal]


def variants(text: str) -> list[str]:
    """The texts that loose mode accepts in place of ``text``: see the header. Without doubles, ``text`` first."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys(cut + [t.replace("*", "") for t in cut]))


def _asked(name: Any, given: Any) -> Asked:
    bare = name.removeprefix("en:") if isinstance(name, str) else str(name)
    if bare not in OFFICIAL:
        raise TaskError(f"instructions@1: unknown instruction {name!r}; {_nearest(bare, OFFICIAL)}")
    if given is not None and not isinstance(given, Mapping):
        raise TaskError(f"instructions@1: the kwargs of {bare} are {given!r}, not a mapping.")
    arguments = {key: value for key, value in (given or {}).items() if value is not None}
    model = _arguments_of(bare)
    if unknown := sorted(set(arguments) - set(model.model_fields)):
        raise TaskError(
            f"instructions@1: {bare} has no argument {unknown[0]!r}; {_nearest(unknown[0], model.model_fields)}"
        )
    try:
        values = model.model_validate(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise TaskError(f"instructions@1: {bare}, {at}: {first['msg'].removeprefix('Value error, ')}.") from None
    return Asked(bare, {key: getattr(values, key) for key in model.model_fields})


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    tails = {key.partition(":")[2] or key: key for key in known}
    near = difflib.get_close_matches(name, known, 1, 0.5) or [
        tails[t] for t in difflib.get_close_matches(name.rpartition(":")[2], tails, 1, 0.5)
    ]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}." if known else "it takes none."


@lru_cache(maxsize=len(OFFICIAL))
def _arguments_of(name: str) -> type[BaseModel]:
    """The arguments of an instruction as a model: its function's keyword parameters."""
    check = OFFICIAL[name]
    hints = get_type_hints(check, include_extras=True)
    keywords = [p for p in inspect.signature(check).parameters.values() if p.kind is p.KEYWORD_ONLY]
    fields: dict[str, Any] = {p.name: (hints[p.name], ...) for p in keywords}
    return create_model(check.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _is_stuffed(text: str, goal: Sequence[Asked]) -> bool:
    """Whether half of eight words or more are keywords that were asked for."""
    wanted = {w.lower() for a in goal for w in [a.arguments.get("keyword"), *a.arguments.get("keywords", [])] if w}
    if not wanted:
        return False
    said = re.findall(r"\w+", text.lower())
    return len(said) >= 8 and sum(word in wanted for word in said) * 2 >= len(said)
