"""Serving the page, on this machine alone."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.engine.votes import VoteTable
from rlaif.errors import InputError
from rlaif.review.rows import Rows
from rlaif.runs import LEDGER

_LOOPBACK = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}


@dataclass(frozen=True)
class Review:
    """A page that is ready to be served. ``url`` holds the token: whoever knows it may read and vote."""

    url: str
    comparisons: int
    votes: VoteTable
    app: Any
    _socket: socket.socket

    def serve(self) -> None:
        """Until Ctrl-C. Every vote is stored before it is answered, so nothing is lost at any end."""
        import uvicorn

        config = uvicorn.Config(
            self.app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[self._socket])


@contextmanager
def open_review(run: Path, *, reviewer: str = "reviewer", host: str = "127.0.0.1", port: int = 0) -> Iterator[Review]:
    """The page of ``run``, bound to its address (``port`` 0: a free one).

    Raises InputError where ``run`` is no run folder or holds nothing to compare, ``host`` is not this machine's own,
    the port is taken, the name is none, or the extra is not installed.
    """
    if host not in _LOOPBACK:
        raise InputError(
            f"--host {host}: the page is served to this machine alone (127.0.0.1, localhost or ::1); to reach it from"
            " another one, forward the port with ssh -L."
        )
    if not reviewer.strip() or len(reviewer) > 64 or not reviewer.isprintable():
        raise InputError(f"--name {reviewer!r}: a reviewer's name is 1 to 64 printable characters.")
    try:
        import uvicorn  # noqa: F401

        from rlaif.review.app import Application, Guard
    except ImportError:
        raise InputError("rlaif review needs the extra: pip install 'rlaif[review]'.") from None
    with ExitStack() as stack:
        rows = Rows(run)
        if not rows.items:
            rows.close()
            raise InputError(f"{run}: holds no comparison of two different samples, so there is nothing to review.")
        bound = stack.enter_context(_bound(host, port))
        votes = stack.enter_context(VoteTable(run / LEDGER))
        token, port = secrets.token_urlsafe(24), bound.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        names = {name, "localhost", "[::1]" if ":" in host else "127.0.0.1"}
        application = Application(rows, votes, reviewer)
        stack.callback(application.close)
        app = Guard(application.asgi(), token, frozenset(f"{n}:{port}" for n in names))
        yield Review(f"http://{name}:{port}/{token}/", len(rows.items), votes, app, bound)


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=_LOOPBACK[host])
    except OSError as error:
        raise InputError(
            f"--port {port}: cannot be used on {host} ({os.strerror(error.errno or 0)}); choose another."
        ) from None
