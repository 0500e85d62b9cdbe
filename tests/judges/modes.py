"""Judges of every mode whose truth is known, for `scripted:tests.judges.modes:NAME`: they read the quality that
`tests.fakes.policy` writes into its answers. Of each, ``NAME_with_rubbish`` is wrong in form once in twenty."""

import re
from math import log

from rlaif.hashing import digest, uniform
from rlaif.types import ChatReply, ChatRequest, TokenLogprobs
from tests import fakes

RUBBISH = ("", "I can't say.", "10/10", "7", "Grade: K7 or K8", "X > X", "yes, no", "K", '{"verdict": 7}', "P(A)=0.5")


def token(p: dict[str, float]) -> TokenLogprobs:
    top = tuple((label, log(x)) for label, x in p.items() if x > 0)
    return TokenLogprobs(token=top[0][0], logprob=top[0][1], top=top)


def said(p: dict[str, float]) -> ChatReply:
    return ChatReply(text="?", finish_reason="length", logprobs=(token(p),))


def quality(request: ChatRequest) -> int:
    (found,) = re.findall(r"<response>\nquality (\d+)", request.messages[1].content)
    return int(found)


def rubbish(request: ChatRequest, right: str | ChatReply) -> str | ChatReply:
    key = digest([m.content for m in request.messages])
    if uniform("rubbish", key) >= 0.05:
        return right
    if uniform("cut off", key) < 0.2:
        return ChatReply(text=right if isinstance(right, str) else "", finish_reason="length")
    return RUBBISH[int(uniform("which", key) * len(RUBBISH))]


def grades(request: ChatRequest) -> list[str]:
    (found,) = re.findall(r"Use the whole scale: (.*)\.\n", request.messages[0].content)
    return list(found.split(", "))


def score(request: ChatRequest) -> str | ChatReply:
    fakes.SENT.append(request)
    q = quality(request)
    if request.top_logprobs is not None:
        return said({"9": 0.8 * (q + 1) / 1001, "0": 0.8 * (1000 - q) / 1001, "The": 0.2})
    return grades(request)[q // 100]


def score_with_rubbish(request: ChatRequest) -> str | ChatReply:
    return rubbish(request, score(request))


def reviser(request: ChatRequest) -> str | ChatReply:
    """Criticises, and rewrites into something better or worse; once in twenty it breaks off."""
    fakes.SENT.append(request)
    text, key = request.messages[1].content, digest(request.model_dump(mode="json"))
    if "<response_critique>" not in text:
        return ChatReply(text="It is too", finish_reason="length") if uniform("cut", key) < 0.05 else "It is too long."
    q = min(999, max(0, quality(request) + int(600 * (uniform("change", key) - 0.5))))
    return f"quality {q}\nrevised"


def pair_of(request: ChatRequest) -> tuple[int, int]:
    text = request.messages[1].content
    first, second = re.findall(r"<response_\w+>\nquality (\d+)", text)
    return int(first), int(second)


def cheap(request: ChatRequest) -> str | ChatReply:
    """Sure and right where the two are far apart, and guessing, by position, where they are near."""
    fakes.SENT.append(request)
    first, second = pair_of(request)
    lean = (first - second) / 1000
    p = 0.97 if lean > 0.3 else 0.03 if lean < -0.3 else 0.7
    return said({"X": 0.9 * p, "Y": 0.9 * (1 - p), "The": 0.1})


def strong(request: ChatRequest) -> str | ChatReply:
    """Sure and right always."""
    fakes.SENT.append(request)
    first, second = pair_of(request)
    p = 0.5 if first == second else 0.95 if first > second else 0.05
    return said({"X": 0.9 * p, "Y": 0.9 * (1 - p), "The": 0.1})


strong_too = strong


def contrary(request: ChatRequest) -> str | ChatReply:
    """Sure and wrong always."""
    fakes.SENT.append(request)
    first, second = pair_of(request)
    return said({"X": 0.1, "Y": 0.8} if first > second else {"X": 0.8, "Y": 0.1})


def sure_of_the_first(request: ChatRequest) -> str | ChatReply:
    """Very sure of whatever is shown first, unless the other is far better."""
    fakes.SENT.append(request)
    first, second = pair_of(request)
    p = 0.03 if second > first + 300 else 0.97
    return said({"X": p, "Y": 1 - p})


def rubric(request: ChatRequest) -> str | ChatReply:
    """Criterion "above N?": yes or no by the response's quality."""
    fakes.SENT.append(request)
    system = request.messages[0].content
    if system.startswith("You write the criteria"):
        return "- above 300?\n- above 600?"
    met = [quality(request) >= int(n) for n in re.findall(r"above (\d+)\?", system)]
    if names := re.findall(r"^- (\w+): above", system, re.MULTILINE):
        return "\n".join(f"{name}: {'yes' if m else 'no'}" for name, m in zip(names, met, strict=True))
    if request.top_logprobs is not None:
        return said({"X": 0.8, "Y": 0.1} if met[0] else {"Y": 0.8, "X": 0.1})
    return "X" if met[0] else "Y"


def rubric_with_rubbish(request: ChatRequest) -> str | ChatReply:
    return rubbish(request, rubric(request))


def ranking(request: ChatRequest) -> str:
    fakes.SENT.append(request)
    found = re.findall(r"<response_(\w+)>\nquality (\d+)", request.messages[1].content)
    return " > ".join(name for name, _ in sorted(found, key=lambda item: -int(item[1])))


def ranking_with_rubbish(request: ChatRequest) -> str | ChatReply:
    return rubbish(request, ranking(request))


def ranking_as_shown(request: ChatRequest) -> str:
    """Prefers what stands first, whatever it is."""
    fakes.SENT.append(request)
    return " > ".join(re.findall(r"<response_(\w+)>\nquality", request.messages[1].content))
