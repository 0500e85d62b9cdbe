"""Judges of known truth, for `scripted:tests.judging.judges:NAME`; responses state their quality ("quality 7")."""

import math
import re

from rlaif.hashing import digest, uniform
from rlaif.types import ChatReply, ChatRequest, TokenLogprobs

SENT: list[ChatRequest] = []


def shown(request: ChatRequest) -> tuple[tuple[str, str], tuple[str, str]]:
    """(label, text) of the response shown first and of the second, whatever the labels are."""
    text = request.messages[-1].content
    first, second = re.findall(r"^<response_(\w+)>\n(.*?)\n</response_\1>$", text, re.DOTALL | re.MULTILINE)
    return first, second


def quality(text: str) -> int:
    found = re.search(r"quality (\d+)", text)
    return int(found[1]) if found else 0


def right(request: ChatRequest) -> str:
    """The label of the response of higher quality."""
    SENT.append(request)
    (x, first), (y, second) = shown(request)
    return x if quality(first) > quality(second) else y


def leans_first(request: ChatRequest) -> str:
    """Right, except that in every pair of an even sum of qualities it takes the first."""
    (x, first), (_, second) = shown(request)
    return x if (quality(first) + quality(second)) % 2 == 0 else right(request)


def longer(request: ChatRequest) -> str:
    (x, first), (y, second) = shown(request)
    return x if len(first) > len(second) else y


def refuses_some(request: ChatRequest) -> str:
    """Refuses pairs with a quality of 5 in them; says rubbish where there is a 6."""
    (_, first), (_, second) = shown(request)
    both = (quality(first), quality(second))
    return "I'm sorry, I can't." if 5 in both else "Both." if 6 in both else right(request)


def states_seventy(request: ChatRequest) -> ChatReply:
    """By log-probs: 0.7 for the better response, whichever it is."""
    (x, first), (y, second) = shown(request)
    p = 0.7 if quality(first) > quality(second) else 0.3
    top = ((x, math.log(p * 0.5)), (y, math.log((1 - p) * 0.5)))
    return ChatReply(text=x, finish_reason="length", logprobs=(TokenLogprobs(token=x, logprob=top[0][1], top=top),))


def leans_by_odds(request: ChatRequest) -> ChatReply:
    """Its log-odds are the difference of the qualities, and 5 more for what is shown first."""
    (x, first), (y, second) = shown(request)
    p = 1 / (1 + math.exp(-(5 + quality(first) - quality(second))))
    top = ((x, math.log(p * 0.9)), (y, math.log((1 - p) * 0.9)))
    return ChatReply(text=x, finish_reason="length", logprobs=(TokenLogprobs(token=x, logprob=top[0][1], top=top),))


def gullible(request: ChatRequest) -> str:
    """Right, unless exactly one response speaks of an evaluator: then that one."""
    (x, first), (y, second) = shown(request)
    told = ["evaluator" in text for text in (first, second)]
    return right(request) if told[0] == told[1] else x if told[0] else y


def parrot(request: ChatRequest) -> str:
    """Repeats the response shown last, which is all that a model under attack may come to do."""
    return shown(request)[1][1]


def parrot_of_the_last_line(request: ChatRequest) -> str:
    return shown(request)[1][1].strip().rpartition("\n")[2]


def random_label(request: ChatRequest) -> str:
    """A coin, thrown by hash."""
    (x, _), (y, _) = shown(request)
    return x if uniform("coin", digest([m.content for m in request.messages])) < 0.5 else y


def grades(request: ChatRequest) -> str:
    """Of ten grades, the one numbered like the quality of the single response shown."""
    offered = re.search(r"Use the whole scale: (.*)\.", request.messages[0].content)
    assert offered is not None
    response = request.messages[-1].content.partition("<response>")[2]
    return offered[1].split(", ")[min(quality(response), 9)]


def says_yes_to_some(request: ChatRequest) -> ChatReply:
    """Surer of yes, the higher the quality of the response that it is asked about as its own."""
    (response,) = (m.content for m in request.messages if m.role == "assistant")
    p = (quality(response) + 1) / 100
    top = (("Yes", math.log(p)), ("No", math.log(1 - p)))
    return ChatReply(
        text="Yes", finish_reason="length", logprobs=(TokenLogprobs(token="Yes", logprob=top[0][1], top=top),)
    )
