"""Principles that would explain labelled pairs, as a model proposes them.

One grammar reads a reply. It must have ended normally; each line of it that is not blank is

    line       = [ bullet or number ] question
    question   = "Which response " ... "?", 5 to 40 words on one line, with this one question mark, of printable
                 characters other than < > { } [ ] | \\ ` #

and any other line is counted with its reason and never used. A question whose words stand in what was asked, a text
that was shown or our own example, is not used either ("copied"): data proposes no principle. What gets through is only
a candidate. It is tested in both orders on pairs that nobody has read, so an order to the judge hidden in it has
nothing to win there.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.clients.base import Client, request_key
from rlaif.data_doctor.similar import words
from rlaif.errors import RequestError, TransientError
from rlaif.hashing import derived_seed, uniform
from rlaif.judges.reply import refused, unfinished
from rlaif.judging.gold import GoldPair
from rlaif.learning.labelled import other, preferred
from rlaif.templates import load_template
from rlaif.types import ChatReply, ChatRequest, Principle

VARIABLES = ("pairs", "most")
LONGEST = 1500  # characters of a text that are shown: what tells two responses apart is seldom beyond
MOST_LINES = 3
UNANSWERED = "provider_error"  # begins the reason of a request that was never answered

_LINE = re.compile(r"(?:[-*•]\s+|\d{1,2}[.)]\s+)?(Which response [^?\n]+\?)")
_FORBIDDEN = re.compile(r"[<>{}\[\]|\\`#]")
_COPIED = 4  # words in a row, after "Which response": a shorter one is anybody's


@dataclass(frozen=True)
class Proposal:
    """What one request brought: the ``questions``, and why each other line was ``refused``."""

    number: int
    shown: tuple[str, ...]
    questions: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    request_key: str | None = None

    def row(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "shown": list(self.shown),
            "questions": list(self.questions),
            "refused": list(self.refused),
            "request_key": self.request_key,
        }


class Proposer:
    """A model that is shown labelled pairs, ``at_once`` with each request, and proposes what explains them."""

    def __init__(
        self, client: Client, template: str, *, at_once: int, temperature: float, max_tokens: int, seed: int
    ) -> None:
        self.client, self.at_once, self.seed = client, at_once, seed
        self.temperature, self.max_tokens = temperature, max_tokens
        self.template = load_template(template, variables=VARIABLES, must_use=VARIABLES)

    async def propose(self, number: int, pairs: Sequence[GoldPair]) -> Proposal:
        """Proposal ``number``, from pairs drawn for it."""
        drawn = sorted(pairs, key=lambda pair: uniform("shown", self.seed, number, pair.id))[: self.at_once]
        shown = [_shown(pair) for pair in drawn]
        request = ChatRequest(
            messages=self.template.render(pairs=shown, most=MOST_LINES),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=derived_seed("propose", self.seed, number),
            sample_index=number,
        )
        key, ids = request_key(self.client.identity, request), tuple(pair.id for pair in drawn)
        try:
            reply = await self.client.complete(request)
        except (RequestError, TransientError) as error:
            return Proposal(number, ids, refused=(f"{UNANSWERED}: {error}",), request_key=key)
        questions, why = read_proposals(reply, [m.content for m in request.messages])
        return Proposal(number, ids, questions, why, key)


def read_proposals(reply: ChatReply, asked: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The questions in a reply, and the reason for each line that is none, by the grammar above."""
    if (failed := unfinished(reply) or refused(reply.text.strip())) is not None:
        return (), (failed.reason,)
    said = " ".join(f" {' '.join(words(text))} " for text in asked)
    questions: list[str] = []
    why: list[str] = []
    for line in filter(None, (line.strip() for line in reply.text.split("\n"))):
        match = _LINE.fullmatch(line)
        if match is None or not line.isprintable() or _FORBIDDEN.search(line):
            why.append("no question of the form asked for")
        elif not 5 <= len(match[1].split()) <= 40:
            why.append("too short or too long")
        elif len(own := words(match[1])[2:]) >= _COPIED and f" {' '.join(own)} " in said:
            why.append("copied from what was asked")
        elif len(questions) == MOST_LINES:
            why.append("more than were asked for")
        else:
            questions.append(" ".join(match[1].split()))
    return tuple(questions), tuple(why) or (() if questions else ("empty",))


def _shown(pair: GoldPair) -> dict[str, Any]:
    conversation = [{"role": m.role, "content": _shortened(m.content)} for m in pair.comparison.prompt.messages]
    return {
        "conversation": conversation,
        "preferred": _shortened(preferred(pair)),
        "other": _shortened(other(pair)),
    }


def _shortened(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n[...]\n{text[-half:]}"


# ------------------------------------------------------------------------------------------------------- duplicates

# What a question is about is in its other words.
_FILLER = frozenset(
    words(
        "which response a an the is are be was it its in on of to for with by at as and or that this than does do has"
        " have user person people request question answer prompt s"
    )
)
# One of these makes of two questions that are otherwise alike two opposite ones.
_DIRECTION = frozenset(
    words(
        "more less fewer most least no not never without avoid avoids longer shorter better worse higher lower lacks"
        " omits refuses instead rather"
    )
)
ALIKE = 0.8  # words in common, of all that either has


@dataclass(frozen=True)
class Wording:
    """A candidate: ``principle`` in the words most often used, and how many proposals said so in these or others."""

    principle: Principle
    proposed: int


def merge(proposals: Iterable[Proposal]) -> list[Wording]:
    """The different questions, those of most proposals first.

    Alike are questions that have the same words of content, or nearly so, and point the same way. (Sketches of 5-grams,
    as data doctor uses them, want longer texts than a sentence.)"""
    groups: list[tuple[frozenset[str], Counter[str], set[int]]] = []
    for proposal in proposals:
        for question in proposal.questions:
            content = _content(question)
            group = next((g for g in groups if _alike(g[0], content)), None)
            if group is None:
                groups.append(group := (content, Counter(), set()))
            group[1][question] += 1
            group[2].add(proposal.number)
    groups.sort(key=lambda group: -len(group[2]))  # stable: of equals the first proposed
    ids: Counter[str] = Counter()
    found = []
    for content, spelt, numbers in groups:
        question = spelt.most_common(1)[0][0]
        stem = _slug(question, content)
        ids[stem] += 1
        id_ = stem if ids[stem] == 1 else f"{stem}-{ids[stem]}"
        found.append(Wording(Principle(id=id_, compare=question), len(numbers)))
    return found


def _content(question: str) -> frozenset[str]:
    return frozenset(word for word in words(question) if word not in _FILLER)


def _alike(one: frozenset[str], two: frozenset[str]) -> bool:
    apart = one ^ two
    return not apart & _DIRECTION and len(one & two) >= ALIKE * len(one | two)


def _slug(question: str, content: frozenset[str]) -> str:
    """Its first words of content."""
    telling = [word for word in words(question) if word in content and word.isascii()]
    return "-".join(telling[:4]) or "principle"
