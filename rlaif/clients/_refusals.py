"""What exactly a provider refuses a request for, read from its error: shared by the transports that send to one.

From an error's code and parameter where it has them, else from the wording of OpenAI, Anthropic and vLLM. Wordings
change: what is not recognised is an "invalid" request, which drops one row with the provider's own words.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["context_length", "unsupported", "invalid"]

_QUOTED = 300  # characters of the provider's own words in a message


@dataclass(frozen=True)
class Problem:
    """What an error's body says, in whichever of the usual shapes."""

    message: str
    code: str = ""
    param: str = ""


def read_problem(text: str) -> Problem:
    """Read OpenAI's ``{error: {message, type, code, param}}``, Anthropic's ``{error: {type, message, details}}``,
    FastAPI's ``{detail}``, a bare ``{message}``, or text."""
    try:
        data = json.loads(text)
    except ValueError:
        return Problem(shorten(text))
    if not isinstance(data, dict):
        return Problem(shorten(text))
    error = data.get("error") or data
    if not isinstance(error, dict):
        return Problem(shorten(str(error)))
    details = error.get("details")
    codes = (error.get("code"), details.get("error_code") if isinstance(details, dict) else None, error.get("type"))
    message = error.get("message") or error.get("detail") or text
    return Problem(
        message=shorten(message if isinstance(message, str) else json.dumps(message)),
        code=" ".join(str(code) for code in codes if code),
        param=str(error.get("param") or ""),
    )


_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum (context|model) length|context (length|window|limit)|prompt is too long"
    r"|too many (input )?tokens|max_model_len|request_too_large|string_above_max_length|longer than the maximum",
    re.IGNORECASE,
)
# OpenAI says this also when the minute's tokens are merely used up; only a request above the limit can never pass.
_ABOVE_RATE = re.compile(r"Request too large.*?Limit[: ]*(\d+), Requested[: ]*(\d+)", re.IGNORECASE | re.DOTALL)
_REFUSES = re.compile(
    r"unsupported|not support|n't support|not (be )?(permitted|allowed|enabled|available|compatible|implemented)"
    r"|deprecated|cannot both be specified|unrecognized|unknown (parameter|argument|field)|unexpected keyword"
    r"|only the default|greater than max allowed|extra_forbidden|invalid schema|not a valid schema"
    r"|grammar error|into a grammar|invalid (json )?grammar",
    re.IGNORECASE,
)
# In this order: "top_p" before "temperature", because a model that refuses both together can still be sent the second.
_PARAMETERS = {
    "json_schema": r"response_format|output_config|output_format|json[_ ]schema|structured[_ ]outputs?|grammar",
    "logprobs": r"top_logprobs|log_?probs",
    "top_p": r"top_p",
    "temperature": r"temperature",
    "max_tokens": r"max_tokens|max_completion_tokens|max_output_tokens",
    "seed": r"seed",
    "stop": r"stop_sequences|stop",
    "system": r"messages\[\d+\]\.role|system (role|message|prompt)s?|[\"'`]system[\"'`]|role[: ]+system",
}


def classify(problem: Problem) -> tuple[Kind, str | None]:
    """What a refused request was refused for: RequestError's ``kind`` and ``parameter``.

    From the error's code and parameter where it has them, else from the wording of OpenAI, Anthropic and vLLM.
    """
    above = _ABOVE_RATE.search(problem.message)
    if above and int(above[2]) > int(above[1]):
        return "context_length", None
    if _TOO_LONG.search(f"{problem.code} {problem.message}"):
        return "context_length", None
    if _REFUSES.search(f"{problem.code} {problem.message}"):
        for text in (problem.param, problem.message):
            for name, pattern in _PARAMETERS.items():
                if re.search(rf"(?<![\w.])(?:{pattern})(?!\w)", text, re.IGNORECASE):
                    return "unsupported", name
    return "invalid", None


def shorten(text: str, length: int = _QUOTED) -> str:
    """``text`` on one line, cut to ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
