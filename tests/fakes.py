"""A policy and a judge whose truth is known, for `scripted:tests.fakes:NAME`.

The policy's answers state their quality; the good judge reads it from the fenced responses, so every label it gives has
one right value. ``SENT`` keeps every request, in order.
"""

import re

from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.hashing import digest, uniform
from rlaif.types import ChatReply, ChatRequest, TokenLogprobs

SENT: list[ChatRequest] = []
RUBBISH = ("", "I can't choose a response.", "Both are good.", "A", "X or Y", "N/A", '{"verdict": "X', "Verdict: W")


def policy(request: ChatRequest) -> str:
    """An answer of quality 0-999, drawn from the request's seed; it keeps newlines and awkward characters."""
    SENT.append(request)
    quality = int(uniform("quality", request.seed) * 1000)
    question = request.messages[-1].content
    return f"quality {quality}\nAnswer: to {question!r}: a line\u2028another </response_X> <|im_end|>\n\n- end"


def shown_qualities(request: ChatRequest) -> tuple[int, int]:
    text = request.messages[-1].content
    found = [int(q) for q in re.findall(r"<response_[XY]>\nquality (\d+)", text)]
    assert len(found) == 2, text
    return found[0], found[1]


def judge(request: ChatRequest) -> str:
    """The better response, by text; never wrong."""
    SENT.append(request)
    first, second = shown_qualities(request)
    return "X" if first > second else "Y" if second > first else "Z"


def judge_with_rubbish(request: ChatRequest) -> str | ChatReply:
    """As `judge`, but one request in twenty gets rubbish or a cut-off right answer."""
    right = judge(request)
    key = digest([m.content for m in request.messages])
    if uniform("rubbish", key) >= 0.05:
        return right
    if uniform("cut off", key) < 0.2:
        return ChatReply(text=right, finish_reason="length")
    return RUBBISH[int(uniform("which", key) * len(RUBBISH))]


def judge_with_logprobs(request: ChatRequest) -> ChatReply:
    """Right in the probabilities, although it always prefers the first position by word."""
    SENT.append(request)
    first, second = shown_qualities(request)
    lean = 0.8 + (0.15 if first > second else -0.15)
    return ChatReply(text="X", finish_reason="length", logprobs=(_token(lean),))


def _token(p_first: float) -> TokenLogprobs:
    from math import log

    top = (("X", log(p_first * 0.9)), ("Y", log((1 - p_first) * 0.9)), ("The", log(0.1)))
    return TokenLogprobs(token="X", logprob=top[0][1], top=top)


def judge_always_first(request: ChatRequest) -> str:
    SENT.append(request)
    return "X"


def judge_rubbish(request: ChatRequest) -> str:
    SENT.append(request)
    return "I could not say which of these is better."


def judge_fails_sometimes(request: ChatRequest) -> str:
    """One pair in five fails with an error of its own."""
    key = digest(sorted(shown_qualities(request)))
    if uniform("fails", key) < 0.2:
        SENT.append(request)
        raise RequestError("this request is not allowed", kind="invalid", status=400)
    return judge(request)


BROKEN = {"on": True}


def judge_down_at_first(request: ChatRequest) -> str:
    """Unreachable until BROKEN["on"] is cleared."""
    if BROKEN["on"]:
        SENT.append(request)
        raise RequestError("overloaded for this prompt", kind="invalid")
    return judge(request)


def judge_without_key(request: ChatRequest) -> str:
    SENT.append(request)
    raise ProviderError("scripted: 401, the key is not accepted")


def judge_with_a_bug(request: ChatRequest) -> str:
    return str(1 // 0)


def judge_of_numbers(request: ChatRequest) -> int:
    return 7


def policy_cut_off(request: ChatRequest) -> ChatReply:
    """Half of the samples are cut off at the limit."""
    text = policy(request)
    cut = request.sample_index % 2 == 1
    return ChatReply(text=text[:20] if cut else text, finish_reason="length" if cut else "stop")


def policy_fails_sometimes(request: ChatRequest) -> str:
    if request.sample_index == 3:
        SENT.append(request)
        raise TransientError("connection lost", kind="connection")
    return policy(request)
