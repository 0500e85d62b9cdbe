"""What may pass is asked again, what never will is not."""

from typing import Any

import pytest

from rlaif.clients.scripted import ScriptedClient
from rlaif.engine.retry import ATTEMPTS, RetryingClient
from rlaif.errors import ProviderError, RequestError, TransientError
from rlaif.types import ChatRequest
from tests.engine.virtual import ask

FINE = "fine"


def transient(kind: Any, retry_after: float | None = None) -> TransientError:
    return TransientError(f"{kind} trouble", kind=kind, retry_after=retry_after)


def play(answers: list[Any], **options: Any) -> tuple[RetryingClient, ScriptedClient, list[float]]:
    """A client that meets ``answers`` in turn, and the list of its waits."""

    def script(request: ChatRequest) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    inner = ScriptedClient(script)
    return RetryingClient(inner, sleep=sleep, **options), inner, waits


SERVER, LOST, LATE, BROKEN = (transient(kind) for kind in ("server", "connection", "timeout", "bad_reply"))


@pytest.mark.parametrize(
    ("answers", "sent"),
    [
        ([FINE], 1),
        ([SERVER, FINE], 2),
        ([LOST, LATE, BROKEN, FINE], 4),
        ([SERVER] * (ATTEMPTS - 1) + [FINE], ATTEMPTS),
        ([transient("rate_limit", 0.0)] * 50 + [FINE], 51),  # "not yet" is no failed attempt, however often
        ([SERVER, transient("rate_limit", 0.0)] * (ATTEMPTS - 1) + [FINE], 2 * ATTEMPTS - 1),
    ],
)
async def test_what_passes_in_time_is_answered(answers: list[Any], sent: int) -> None:
    client, inner, _ = play(list(answers))
    assert (await client.complete(ask())).text == FINE
    assert len(inner.requests) == sent
    assert set(inner.requests) == {ask()}


@pytest.mark.parametrize(
    ("answers", "raised", "sent"),
    [
        ([SERVER] * 9, SERVER, ATTEMPTS),
        ([LATE, LOST, LATE, LOST, BROKEN, FINE], BROKEN, ATTEMPTS),
        ([RequestError("too long", kind="context_length"), FINE], RequestError, 1),
        ([RequestError("no seed here", kind="unsupported", parameter="seed"), FINE], RequestError, 1),
        ([ProviderError("wrong key"), FINE], ProviderError, 1),
        ([SERVER, ProviderError("no money left"), FINE], ProviderError, 2),
        ([SERVER, RequestError("bad", kind="invalid"), FINE], RequestError, 2),
        ([KeyError("a bug"), FINE], KeyError, 1),
    ],
)
async def test_what_does_not_pass_is_raised(answers: list[Any], raised: Any, sent: int) -> None:
    client, inner, _ = play(list(answers))
    with pytest.raises(raised if isinstance(raised, type) else type(raised)) as error:
        await client.complete(ask())
    assert len(inner.requests) == sent
    if not isinstance(raised, type):
        assert error.value is raised


async def test_waits_double_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for _ in range(200):
        client, _, waits = play([SERVER] * 8 + [FINE], attempts=9)
        await client.complete(ask())
        seen.append(waits)
    for n, expected in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30]):
        column = [waits[n] for waits in seen]
        assert 0.5 * expected <= min(column) < 0.65 * expected
        assert 1.35 * expected < max(column) <= 1.5 * expected


async def test_a_retry_after_is_waited_for_in_full() -> None:
    client, _, waits = play([transient("server", 17.0), transient("rate_limit", 45.5), transient("rate_limit"), FINE])
    await client.complete(ask())
    assert waits == [17.0, 45.5, 1.0]


async def test_a_model_in_this_process_is_not_waited_for() -> None:
    client, _, waits = play([SERVER] * 4 + [FINE], first_wait=0.0)
    await client.complete(ask())
    assert waits == [0.0] * 4
