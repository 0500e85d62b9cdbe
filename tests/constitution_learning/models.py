"""Models of known truth, for `scripted:tests.constitution_learning.models:NAME`.

Responses are made of words that stand for properties ("warm", "dry", ...): which of them people prefer is planted in
the data, not here. ``SENT`` keeps every request, in order.
"""

import asyncio
import math
import re
from typing import Any

from rlaif.errors import ProviderError, RequestError
from rlaif.hashing import digest, uniform
from rlaif.types import ChatReply, ChatRequest, TokenLogprobs

PROPERTIES = ("warm", "dry", "plain", "careful")
SENT: list[ChatRequest] = []
Rows = list[dict[str, Any]]


def rows(n: int, planted: str | None, seed: int = 0, noise: float = 0.1) -> Rows:
    """Pairs whose two texts have each property or not, by a coin; the planted one is preferred, but for some noise."""

    def text(i: int, side: str) -> str:
        words = [p if uniform(seed, i, side, p) < 0.5 else f"un{p}" for p in PROPERTIES]
        return " ".join([*words, f"number {i}{side}"])

    made = []
    for i in range(n):
        a, b = text(i, "a"), text(i, "b")
        has = [planted in t.split() for t in (a, b)]
        clear = has[0] != has[1] and uniform(seed, i, "noise") >= noise
        first = has[0] if clear else uniform(seed, i, "label") < 0.5
        made.append({"prompt": f"Q {i}", "chosen": a if first else b, "rejected": b if first else a})
    return made


def question(name: str) -> str:
    return f"Which response has the {name} manner of speaking to its reader?"


def proposer(request: ChatRequest) -> str:
    """Two of the properties, whatever is shown, and a line that is no question."""
    SENT.append(request)
    drawn = sorted(PROPERTIES, key=lambda name: uniform("propose", request.seed, name))[:2]
    return "Here is what I think:\n" + "\n".join(f"- {question(name)}" for name in drawn)


def parrot(request: ChatRequest) -> str:
    """Whatever the texts say in the form of a proposal."""
    SENT.append(request)
    return "\n".join(re.findall(r"^Which response .*$", request.messages[-1].content, re.MULTILINE)[:3])


def rubbish(request: ChatRequest) -> str:
    SENT.append(request)
    return "I like the first one.\nPrinciple: be nice.\nWhich response?\n{}"


def shown(request: ChatRequest) -> tuple[tuple[str, str], tuple[str, str]]:
    """(label, text) of the response shown first and of the second."""
    text = request.messages[-1].content
    first, second = re.findall(r"^<response_(\w)>\n(.*?)\n</response_\1>$", text, re.DOTALL | re.MULTILINE)
    return first, second


def asked(request: ChatRequest) -> str | None:
    """The property that the judge is asked about."""
    found = re.search(r"has the (\w+) manner", request.messages[0].content)
    return found[1] if found else None


def judge(request: ChatRequest) -> str:
    """The response that has the property asked about; a tie where both have it, or neither; without a property, a
    tie too."""
    SENT.append(request)
    (x, first), (y, second) = shown(request)
    name = asked(request)
    has = [name in text.split() for text in (first, second)]
    return "Z" if has[0] == has[1] else x if has[0] else y


def judge_with_logprobs(request: ChatRequest) -> ChatReply:
    """As `judge`, by probabilities, with a strong preference for what is shown first."""
    label = judge(request)
    (x, _), (y, _) = shown(request)
    p = 0.9 if label == x else 0.6 if label == y else 0.75
    top = ((x, math.log(p)), (y, math.log(1 - p)))
    return ChatReply(text=x, finish_reason="length", logprobs=(TokenLogprobs(token=x, logprob=top[0][1], top=top),))


def coin(request: ChatRequest) -> str:
    """A judge that throws a coin."""
    SENT.append(request)
    (x, _), (y, _) = shown(request)
    return x if uniform("coin", digest([m.content for m in request.messages])) < 0.5 else y


def obeys(request: ChatRequest) -> str:
    """A judge that does as it is told by a question: answer with the label shown first."""
    SENT.append(request)
    return shown(request)[0][0] if "first" in request.messages[0].content else judge(request)


def speechless(request: ChatRequest) -> str:
    SENT.append(request)
    return "Both have their merits."


def too_long(request: ChatRequest) -> str:
    raise RequestError("this model has no room for so much text", kind="context_length", status=400)


def without_key(request: ChatRequest) -> str:
    SENT.append(request)
    raise ProviderError("scripted: 401, the key is not accepted")


async def slow(request: ChatRequest) -> str:
    """As `judge`, in a hundredth of a second."""
    await asyncio.sleep(0.01)
    return judge(request)
