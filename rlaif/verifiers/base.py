"""What a verifier is: a program that decides how good a completion is.

A verifier gets a completion and its task: the row the completion belongs to, as a mapping of columns (``reference``,
``tests``, ``entry_point``, ``instruction_id_list``, ...). The same mapping is a line of a ``rlaif verify`` file, the
columns of a training data set, or a `Prompt`'s reference, tests and metadata.

Two rules hold for all of them:

* **What is about the candidate is a `Reward`; what is about the checker is `Unverified`.** A program that never ends,
  an expression built to hang its reader, a missing answer: a `Reward` of 0.0 with its reason (masking it instead would
  pay a policy for hanging its judge). A task without tests, a sandbox that does not start: `Unverified`, which masks
  the row and is never a zero.
* **A task that is wrong is told when it is loaded** (`prepare`), not in the middle of a training run.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from rlaif.types import Prompt, Reward, Unverified

Task = Mapping[str, Any]


class Verifier(Protocol):
    """Decides about completions. Any object with these members is one; methods may run at the same time.

    ``identity``: name and version ("math@1"); the version changes whenever a verdict may.
    """

    identity: str

    async def prepare(self, task: Task) -> None:
        """Check the task itself, once. Raises TaskError."""
        ...

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        """The verdict. Never raises because of the completion or the task: a wrong task is `Unverified`."""
        ...

    async def aclose(self) -> None:
        """Stop helpers (processes, connections); may be called twice."""
        ...


def task_of(prompt: Prompt) -> Task:
    """A prompt as a verifier sees it. ``prompt`` is the last user message, ``verifier`` the prompt's own choice."""
    asked = next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
    known = {"prompt": asked, "reference": prompt.reference, "tests": prompt.tests, "verifier": prompt.verifier}
    return {**prompt.metadata, **known}
