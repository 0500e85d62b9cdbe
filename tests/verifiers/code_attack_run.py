"""A program: every attack in one tier, as whoever starts it; prints what each came to as JSON."""

import asyncio
import json
import sys
from typing import Any

from rlaif.errors import InputError
from rlaif.types import Reward
from rlaif.verifiers.code import CodeVerifier
from tests.verifiers.code_attacks import ATTACKS, HONEST, TESTS


async def main(tier: str) -> dict[str, Any]:
    row = {"tests": TESTS, "entry_point": "add"}
    options = {"tier": tier, "self_check": False, "workers": 2, "max_seconds": 3.0}
    verifier = CodeVerifier(CodeVerifier.Options.model_validate(options))
    try:
        answers = {"honest": HONEST} | {attack.name: attack.code for attack in ATTACKS}
        verdicts = await asyncio.gather(*(verifier.verify(answer, row) for answer in answers.values()))
    except InputError as error:
        return {"skip": str(error)}
    finally:
        await verifier.aclose()
    return {
        name: [v.value, v.reason] if isinstance(v, Reward) else [None, v.detail]
        for name, v in zip(answers, verdicts, strict=True)
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
