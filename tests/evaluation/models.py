"""Models whose worth is known, for `scripted:tests.evaluation.models:NAME`."""

from rlaif.errors import RequestError
from rlaif.types import ChatReply, ChatRequest, TokenLogprobs

SENT: list[ChatRequest] = []


def _sum(request: ChatRequest) -> int:
    a, b = request.messages[-1].content.removeprefix("What is ").removesuffix("?").split(" plus ")
    return int(a) + int(b)


def right(request: ChatRequest) -> str | ChatReply:
    SENT.append(request)
    if request.continuation is not None:
        return scored(request, good=-0.5, bad=-2.0)
    return f"quality 900\nThe answer is {_sum(request)}."


def wrong(request: ChatRequest) -> str | ChatReply:
    SENT.append(request)
    if request.continuation is not None:
        return scored(request, good=-2.0, bad=-0.5)
    return f"quality 100\nThe answer is {_sum(request) + 1}."


def sometimes(request: ChatRequest) -> str | ChatReply:
    """Right where the sum is even; says nothing at all of sums that end in 3."""
    if _sum(request) % 10 == 3:
        raise RequestError("scripted: no answer to this", kind="invalid")
    return right(request) if _sum(request) % 2 == 0 else wrong(request)


def scored(request: ChatRequest, good: float, bad: float) -> ChatReply:
    """Texts with "true" in them are likely where ``good`` is high."""
    assert request.continuation is not None
    each = good if "true" in request.continuation else bad
    tokens = tuple(TokenLogprobs(token=w, logprob=each, top=()) for w in request.continuation.split())
    return ChatReply(text="", finish_reason="stop", logprobs=tokens)


def judge(request: ChatRequest) -> str:
    from tests.fakes import judge as by_quality

    SENT.append(request)
    return by_quality(request)
