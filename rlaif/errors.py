"""The errors of rlaif, and who catches what.

Policy
------
* **A failure is a type, never a number.** What goes wrong with one row is a row of its own (`Unjudged`, `Dropped`),
  written beside the good ones; it is not an exception that anybody may forget to catch.
* **An exception ends something**, and its class says what:

  ==================  ===========================================================  ====================================
  class               means                                                        who catches it
  ==================  ===========================================================  ====================================
  InputError          the command, a config, a constitution or data is wrong;      the CLI: exit 2
                      raised before anything is spent
  TaskError           a verifier's task is wrong (no tests, a reference that       `Unverified` in a stream of rows; as
                      fails its own tests); a kind of InputError                   an InputError where tasks are loaded
  QualityError        the run finished, but a quality gate failed; all is kept     the CLI: exit 3
  ProviderError       the provider refuses us (key, URL, model, budget): no        the CLI: exit 4
                      further request can succeed
  TransientError      this send failed (429, 5xx, connection, time-out); the       the retry wrapper; when it gives up,
                      same request may succeed later                               the stage that asked
  RequestError        the provider will never answer this request (400, too        the stage that asked: that row is
                      long, refused parameter); others may be fine                 dropped, with its reason
  ==================  ===========================================================  ====================================

* Every message is one sentence or two: what was wrong, where, and what to do. It never holds a key.
* `except Exception` appears only at a boundary with somebody else's code (an SDK, a user's object) and re-raises one of
  these; nothing is swallowed. A traceback is for `--debug`.
"""

from typing import Literal


class RlaifError(Exception):
    """Anything this package raises on purpose. ``exit_code`` is what the CLI returns for it."""

    exit_code = 1


class InputError(RlaifError):
    """The command, config, constitution or data is wrong; nothing was spent."""

    exit_code = 2


class TaskError(InputError):
    """The task of one row is wrong; no completion can be verified with it."""


class QualityError(RlaifError):
    """A quality gate failed; what was made is kept."""

    exit_code = 3


class ProviderError(RlaifError):
    """The provider refuses every request of this run; what was paid for is kept."""

    exit_code = 4


class TransientError(RlaifError):
    """This send failed; the same request may succeed later.

    kind: "rate_limit" (429: not a failed attempt, only "not yet"), "server" (408, 409, 5xx), "connection", "timeout"
    or "bad_reply" (an answer that is no valid reply). retry_after: seconds the provider asked us to wait, or None.
    sent: False where the request surely never reached the server (no connection was made), so cannot be charged.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        kind: Literal["rate_limit", "server", "connection", "timeout", "bad_reply"],
        status: int | None = None,
        retry_after: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.sent = sent


class RequestError(RlaifError):
    """The provider will never answer this request; others may be fine.

    kind: "context_length", "unsupported" (``parameter`` names what the model refuses: temperature, max_tokens,
    logprobs, json_schema, seed, ...) or "invalid".
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        kind: Literal["context_length", "unsupported", "invalid"],
        parameter: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.parameter = parameter
        self.status = status
