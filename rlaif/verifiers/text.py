"""Small verifiers of text, and what they share.

===============  ====================================================================================================
name             a completion passes when
===============  ====================================================================================================
``exact``        it equals ``reference`` (or one of several), after the normalisation below
``f1``           its words overlap those of ``reference``; the value is the F1 of SQuAD
``choice``       it names one of ``choices``, and that is ``reference``
``regex``        ``pattern`` is found in it (RE2: linear time; no look-around, no back references)
``length``       its words, sentences or characters are in bounds
``repetition``   few of its n-grams were there before
``citations``    what it puts in quotation marks stands in ``source``
===============  ====================================================================================================

A task's own column comes before the option of the same name, so one config serves rows that differ.

Normalisation of ``exact`` and ``f1`` (SQuAD's, in this order): Unicode NFKC, invisible characters removed, small
letters, ASCII punctuation removed, the articles "a", "an", "the" removed, white space folded; a step that would leave
nothing is left out ("A", "+"). ``normalise: none`` compares the text itself, only without white space around it.
"""

import asyncio
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from rlaif.checks import count_sentences, count_words, degree, regex_problem
from rlaif.config.base import Config
from rlaif.errors import TaskError
from rlaif.types import Bounds, Check, Reward, Unverified
from rlaif.verifiers.base import Task

_LONG = 20_000  # characters from which a completion is read in a thread, so that the loop goes on


class TextOptions(Config):
    """What every verifier of text can be told. ``max_characters``: a longer completion is a reward of 0 ("resource"),
    unread. ``drop_thinking``: what stands before the last ``</think>`` is not part of the answer."""

    max_characters: int = Field(1_000_000, gt=0)
    drop_thinking: bool = False


OptionsT = TypeVar("OptionsT", bound=TextOptions)
GoalT = TypeVar("GoalT")


class TextVerifier(Generic[OptionsT, GoalT]):
    """Base of verifiers that need nothing but the text: no process, no connection.

    A subclass says what a task wants (`goal`) and whether a text is that (`decide`); both are pure, and raise TaskError
    for a task that is wrong.
    """

    identity: str

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def goal(self, task: Task) -> GoalT:
        raise NotImplementedError

    def decide(self, text: str, goal: GoalT) -> Reward:
        raise NotImplementedError

    async def prepare(self, task: Task) -> None:
        self.goal(task)

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        if (failed := unreadable(completion, self.options.max_characters)) is not None:
            return failed
        text = answer_of(completion) if self.options.drop_thinking else completion
        try:
            goal = self.goal(task)
            if len(text) < _LONG:
                return self.decide(text, goal)
            return await asyncio.to_thread(self.decide, text, goal)
        except TaskError as error:
            return Unverified(reason="task_error", detail=str(error))

    async def aclose(self) -> None:
        return None

    def setting(self, task: Task, name: str, kind: Any) -> Any:
        """The task's column ``name``, or else the option of that name, checked to be a ``kind``. Raises TaskError."""
        given = task.get(name)
        if given is None:
            if (own := getattr(self.options, name, None)) is None:
                raise TaskError(f"{self.identity}: the row has no {name!r}; add the column or set the option.")
            return own
        return checked(kind, given, f"{self.identity}: {name}")


def unreadable(completion: str, max_characters: int) -> Reward | None:
    """The reward of a completion that is too long to read, else None."""
    if len(completion) <= max_characters:
        return None
    return Reward(
        value=0.0, reason="resource", detail=f"{len(completion):,} characters; at most {max_characters:,} count"
    )


def answer_of(completion: str) -> str:
    """What follows the last ``</think>``; nothing if ``<think>`` is never closed."""
    answer = completion.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: Any, value: Any, where: str) -> Any:
    """``value`` as a ``kind`` (any type pydantic knows), or TaskError."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise TaskError(f"{where}{'.' + at if at else ''}: {reason[:1].lower()}{reason[1:]}.") from None


def passed(ok: bool, detail: str = "") -> Reward:
    """1.0, or 0.0 because the answer is wrong. ``detail`` is told with a failure only."""
    return Reward(value=1.0) if ok else Reward(value=0.0, reason="wrong", detail=detail)


def excerpt(text: str, length: int = 80) -> str:
    """``text`` on one line, shortened, safe to print and to store."""
    text = " ".join(text[: 4 * length].split()).encode("utf-8", "replace").decode()
    return repr(text if len(text) <= length else text[: length - 3] + "...")


# ----------------------------------------------------------------------------------------------------- normalisation

Normalise = Literal["squad", "none"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def visible(text: str) -> str:
    """``text`` without characters that nobody sees: format characters such as zero-width spaces and soft hyphens."""
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def normalised(text: str, how: Normalise) -> str:
    """``text`` as ``exact`` and ``f1`` compare it (see the header)."""
    if how == "none":
        return text.strip()
    text = visible(unicodedata.normalize("NFKC", text)).lower()
    for shorter in (text.translate(_PUNCTUATION), _ARTICLES.sub(" ", text.translate(_PUNCTUATION))):
        text = shorter if shorter.strip() else text
    return " ".join(text.split())


_References = str | int | float | list[str] | tuple[str, ...]


def _references(verifier: TextVerifier[Any, Any], task: Task, how: Normalise) -> tuple[str, ...]:
    given = task.get("reference")
    listed = given if isinstance(given, list | tuple) else [given]
    texts = [str(r) for r in listed if isinstance(r, str | int | float) and not isinstance(r, bool)]
    wanted = tuple(normalised(text, how) for text in texts)
    if not wanted or len(texts) < len(listed) or not all(wanted):
        raise TaskError(f"{verifier.identity}: reference must be text, or a list of texts, that is not blank.")
    return wanted


# ---------------------------------------------------------------------------------------------------- exact, F1, choice


class ExactOptions(TextOptions):
    normalise: Normalise = "squad"


class ExactVerifier(TextVerifier[ExactOptions, tuple[str, ...]]):
    """The completion is the reference (see the header)."""

    identity = "exact@1"
    Options = ExactOptions

    def goal(self, task: Task) -> tuple[str, ...]:
        return _references(self, task, self.options.normalise)

    def decide(self, text: str, goal: tuple[str, ...]) -> Reward:
        return passed(normalised(text, self.options.normalise) in goal, f"{excerpt(text)} is not the reference")


class F1Options(TextOptions):
    """``threshold``: None gives the F1 itself; a number passes at that F1 or above."""

    threshold: float | None = Field(None, gt=0, le=1)


class F1Verifier(TextVerifier[F1Options, tuple[str, ...]]):
    """The F1 of the completion's words against the reference's, as in SQuAD; of several references the best."""

    identity = "f1@1"
    Options = F1Options

    def goal(self, task: Task) -> tuple[str, ...]:
        return _references(self, task, "squad")

    def decide(self, text: str, goal: tuple[str, ...]) -> Reward:
        said = Counter(normalised(text, "squad").split())
        best = max(_f1(said, Counter(reference.split())) for reference in goal)
        if best == 1.0 or (self.options.threshold is not None and best >= self.options.threshold):
            return Reward(value=1.0)
        value = best if self.options.threshold is None else 0.0
        return Reward(value=value, reason="wrong", detail=f"F1 {best:.3f}")


def _f1(said: Counter[str], reference: Counter[str]) -> float:
    common = (said & reference).total()
    return 2 * common / (said.total() + reference.total()) if common else 0.0


class ChoiceOptions(TextOptions):
    """``choices``: the labels there are. ``prefixes``: what may stand before the label."""

    choices: tuple[str, ...] | None = None
    prefixes: tuple[str, ...] = ("answer", "answer is", "the answer is", "final answer", "option", "choice")

    @field_validator("choices")
    @classmethod
    def _differ(cls, choices: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return choices if choices is None else _distinct(choices)


def _distinct(choices: Sequence[str]) -> tuple[str, ...]:
    folded = [normalised(c, "none").casefold() for c in choices]
    if len(choices) < 2 or not all(folded) or len(set(folded)) < len(folded):
        raise ValueError("give at least two choices that differ, none blank")
    return tuple(choices)


class ChoiceVerifier(TextVerifier[ChoiceOptions, tuple[tuple[str, ...], str]]):
    """The last line that is not blank names one choice: "B", "(B)", "**B.**", "Answer: B", or "B) and its text".

    A line that names two ("A or B"), or a sentence that happens to hold the label, is no answer.
    """

    identity = "choice@1"
    Options = ChoiceOptions

    def goal(self, task: Task) -> tuple[tuple[str, ...], str]:
        choices = self.setting(task, "choices", tuple[str, ...])
        try:
            choices = tuple(c.strip() for c in _distinct(choices))
        except ValueError as error:
            raise TaskError(f"{self.identity}: choices: {error}.") from None
        reference = str(task.get("reference") or "").strip().casefold()
        if reference not in [c.casefold() for c in choices]:
            raise TaskError(f"{self.identity}: reference {task.get('reference')!r} is none of {', '.join(choices)}.")
        return choices, reference

    def decide(self, text: str, goal: tuple[tuple[str, ...], str]) -> Reward:
        choices, reference = goal
        line = text.strip().rsplit("\n", 1)[-1]
        named = self._named(line, choices)
        if named is None:
            return Reward(value=0.0, reason="unparseable", detail=f"names no choice: {excerpt(line)}")
        return passed(named == reference, f"chose {excerpt(named)}")

    def _named(self, line: str, choices: tuple[str, ...]) -> str | None:
        if len(line) > 500 + max(map(len, choices)):
            return None
        line = self._without_prefix(visible(unicodedata.normalize("NFKC", line)).strip())
        folded = {choice.casefold(): choice for choice in choices}
        for candidate in (line, line.strip("*_`\"' ()[]{}.:")):
            if candidate.casefold() in folded:
                return candidate.casefold()
        # "B) Paris": in its own case, so that "a" is a word, and no other label in the rest.
        label, mark, rest = re.match(r"[*_(\s]*(.*?)([).:][*_]*\s|$)(.*)", line).groups()  # type: ignore[union-attr]
        if mark and label in choices and not any(re.search(rf"(?<!\w){re.escape(c)}(?!\w)", rest) for c in choices):
            return str(label.casefold())
        return None

    def _without_prefix(self, line: str) -> str:
        bare = line.lstrip("*_# ")
        for prefix in sorted(self.options.prefixes, key=len, reverse=True):
            rest = bare[len(prefix) :]
            if bare.casefold().startswith(prefix.casefold()) and re.match(r"[*_]*\s*[:=]|[*_]*\s", rest):
                return rest.lstrip("*_ :=")
        return line


# ------------------------------------------------------------------------------------------- regex, length, repetition


class RegexOptions(TextOptions):
    """``whole``: the pattern must match the whole text, white space around it aside."""

    pattern: str | None = Field(None, min_length=1)
    whole: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None and (problem := regex_problem(pattern)):
            raise ValueError(problem)
        return pattern


class RegexVerifier(TextVerifier[RegexOptions, Check]):
    """``pattern`` is found in the completion, by RE2."""

    identity = "regex@1"
    Options = RegexOptions

    def goal(self, task: Task) -> Check:
        pattern = self.setting(task, "pattern", str)
        if not pattern or (problem := regex_problem(pattern)):
            raise TaskError(f"{self.identity}: {problem if pattern else 'the pattern is empty'}.")
        return Check(regex=rf"\A(?:{pattern})\z" if self.options.whole else pattern)

    def decide(self, text: str, goal: Check) -> Reward:
        return passed(degree(goal, text.strip() if self.options.whole else text) == 1.0, "the pattern is not there")


class LengthOptions(TextOptions):
    """Inclusive bounds; words and sentences are counted as `rlaif.checks` says, characters are visible code points
    after white space is folded. ``graded``: out of bounds, the value is how near it comes instead of 0."""

    words: Bounds | None = None
    sentences: Bounds | None = None
    characters: Bounds | None = None
    graded: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for name in ("words", "sentences", "characters"):
            if (bounds := getattr(self, name)) is not None and bounds.max == 0:
                raise ValueError(f"{name}: no text has none; raise max")
        return self


class LengthVerifier(TextVerifier[LengthOptions, dict[str, Bounds]]):
    """The completion is as long as it should be. Padding with invisible characters or white space adds nothing."""

    identity = "length@1"
    Options = LengthOptions

    def goal(self, task: Task) -> dict[str, Bounds]:
        bounds = {
            name: self.setting(task, name, Bounds)
            for name in ("words", "sentences", "characters")
            if task.get(name) is not None or getattr(self.options, name) is not None
        }
        if not bounds:
            raise TaskError(f"{self.identity}: give bounds for words, sentences or characters, as option or column.")
        return bounds

    def decide(self, text: str, goal: dict[str, Bounds]) -> Reward:
        text = visible(text)
        count = {"words": count_words, "sentences": count_sentences, "characters": _characters}
        nearness, missed = 1.0, []
        for name, bounds in goal.items():
            n = count[name](text)
            near = _nearness(n, bounds)
            if near < 1.0:
                missed.append(f"{n:,} {name}")
            nearness = min(nearness, near)
        if not missed:
            return Reward(value=1.0)
        return Reward(value=nearness if self.options.graded else 0.0, reason="wrong", detail=", ".join(missed))


def _characters(text: str) -> int:
    return len(" ".join(text.split()))


def _nearness(count: int, bounds: Bounds) -> float:
    if bounds.max is not None and count > bounds.max:
        return bounds.max / count
    return count / bounds.min if bounds.min is not None and count < bounds.min else 1.0


class RepetitionOptions(TextOptions):
    """``n``: words of an n-gram. ``max_share``: up to which share of n-grams may have been there before."""

    n: int = Field(4, ge=1, le=20)
    max_share: float = Field(0.2, ge=0, lt=1)


class RepetitionVerifier(TextVerifier[RepetitionOptions, None]):
    """Passes when at most ``max_share`` of the completion's n-grams repeat an earlier one; no column is needed.

    Words are compared without case and invisible characters. One word of more than 200 characters counts by its pieces
    of 20, so that "hahaha..." without a space is seen; so do scripts without spaces, by their letters.
    """

    identity = "repetition@1"
    Options = RepetitionOptions

    def goal(self, task: Task) -> None:
        return None

    def decide(self, text: str, goal: None) -> Reward:
        share = repeated_share(text, self.options.n)
        return passed(share <= self.options.max_share, f"{share:.0%} of its {self.options.n}-grams repeat")


_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)


def repeated_share(text: str, n: int) -> float:
    """The share, in [0, 1), of the text's n-grams of words that stand earlier in it too; 0 for a shorter text."""
    words: list[str] = []
    for word in _UNSPACED.findall(visible(text).casefold()):
        words += [word] if len(word) <= 200 else [word[i : i + 20] for i in range(0, len(word), 20)]
    total = len(words) - n + 1
    if total < 1:
        return 0.0
    return 1.0 - len(set(zip(*(words[i:] for i in range(n)), strict=False))) / total


# --------------------------------------------------------------------------------------------------------- citations


class CitationsOptions(TextOptions):
    """``min_quotes``: how many quotations there must be. ``min_words``: a shorter one is a word mentioned, and need not
    be in the source; it does not count either."""

    min_quotes: int = Field(1, ge=0)
    min_words: int = Field(3, ge=1)


_QUOTED = re.compile(r'"([^"\n]++)"|“([^”\n]++)”|«([^»\n]++)»|„([^“”\n]++)[“”]')
_ELLIPSIS = re.compile(r"\s*(?:\[\s*)?(?:\.{3,}|…)(?:\s*\])?\s*")


class CitationsVerifier(TextVerifier[CitationsOptions, str]):
    """Every quotation stands word for word in the column ``source`` (a text or a list of texts).

    White space, case, invisible characters and the kind of quotation marks do not count; "..." or "[...]" may leave
    something out, as long as the parts have two words or more and follow in order within one source. A full stop or
    comma set inside the closing mark is not the source's. A mark that is never closed fails: what it quotes cannot be
    checked.
    """

    identity = "citations@1"
    Options = CitationsOptions

    def goal(self, task: Task) -> str:
        given = task.get("source")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise TaskError(f"{self.identity}: the row needs 'source', a text or a list of texts.")
        folded = "\0".join(filter(None, map(_folded, texts)))
        if not folded:
            raise TaskError(f"{self.identity}: the source is blank.")
        return folded

    def decide(self, text: str, goal: str) -> Reward:
        text = visible(text)
        quotes = [next(filter(None, found)) for found in _QUOTED.findall(text)]
        if '"' in _QUOTED.sub("", text) or "“" in _QUOTED.sub("", text):
            return Reward(value=0.0, reason="wrong", detail="a quotation mark is never closed on its line")
        checked_quotes = [q for q in quotes if len(q.split()) >= self.options.min_words]
        if len(checked_quotes) < self.options.min_quotes:
            return Reward(
                value=0.0,
                reason="unparseable",
                detail=f"{len(checked_quotes)} quotations of {self.options.min_words} words or more;"
                f" at least {self.options.min_quotes} wanted",
            )
        for quote in checked_quotes:
            if not any(_in_order(quote, source) for source in goal.split("\0")):
                return passed(False, f"not in the source: {excerpt(quote)}")
        return Reward(value=1.0)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", visible(text)).casefold()
    text = text.replace("\0", " ").translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})
    return " ".join(text.split())


def _in_order(quote: str, source: str) -> bool:
    parts = [p for p in map(_folded, _ELLIPSIS.split(quote)) if p.strip(string.punctuation + " ")]
    at = 0
    if not parts or (len(parts) > 1 and any(len(part.split()) < 2 for part in parts)):
        return False  # single words with "..." between them could say anything
    for part in parts:
        found = _find_words(source, part.rstrip(".,;:!? "), at)
        if found < 0:
            return False
        at = found + 1
    return True


def _find_words(source: str, part: str, start: int) -> int:
    """Where ``part`` stands in ``source`` as whole words, or -1."""
    at = source.find(part, start)
    while at >= 0:
        end = at + len(part)
        if not (_within_word(source, at) or _within_word(source, end)):
            return at
        at = source.find(part, at + 1)
    return -1


def _within_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()
