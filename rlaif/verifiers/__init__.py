"""The verifiers there are, by the name a config or ``rlaif verify`` uses."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rlaif.config.base import Document, validate
from rlaif.errors import InputError
from rlaif.verifiers.base import Task, Verifier, task_of

__all__ = ["VERIFIERS", "Task", "Verifier", "open_verifier", "task_of"]

# name -> module:class. A class has an ``Options`` model (rlaif.config.base.Config) and is made with one.
VERIFIERS = {
    "math": "rlaif.verifiers.math:MathVerifier",
    "code": "rlaif.verifiers.code:CodeVerifier",
    "instructions": "rlaif.verifiers.instructions:InstructionsVerifier",
    "json_schema": "rlaif.verifiers.schema:JsonSchemaVerifier",
    "regex": "rlaif.verifiers.text:RegexVerifier",
    "choice": "rlaif.verifiers.text:ChoiceVerifier",
    "exact": "rlaif.verifiers.text:ExactVerifier",
    "f1": "rlaif.verifiers.text:F1Verifier",
    "length": "rlaif.verifiers.text:LengthVerifier",
    "repetition": "rlaif.verifiers.text:RepetitionVerifier",
    "citations": "rlaif.verifiers.text:CitationsVerifier",
    "language": "rlaif.verifiers.language:LanguageVerifier",
    "refusal": "rlaif.verifiers.refusal:RefusalVerifier",
    "sql": "rlaif.verifiers.sql:SqlVerifier",
    "reasoning_gym": "rlaif.verifiers.reasoning_gym:ReasoningGymVerifier",
    "judge": "rlaif.verifiers.judged:JudgeVerifier",
    "reward_model": "rlaif.training.reward_model:RewardModelVerifier",
}


def open_verifier(name: str, options: Mapping[str, Any] | None = None, document: Document | None = None) -> Verifier:
    """The verifier of that name: one of `VERIFIERS`, or ``package.module:Class`` of your own.

    Raises InputError for an unknown name or wrong options (with the nearest, and where ``document``, the options as
    they were read, says they stand).
    """
    where = VERIFIERS.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, VERIFIERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(VERIFIERS)}; or module:Class."
        raise InputError(f"verifier {name!r}: there is none of that name; {hint}")
    try:
        made = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"verifier {name!r}: cannot be loaded ({error}).") from None
    written = document or Document(f"verifier {name!r}", dict(options or {}), {})
    verifier: Verifier = made(validate(made.Options, written))
    return verifier
