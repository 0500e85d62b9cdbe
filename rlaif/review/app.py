"""The page and its few requests, as a Starlette application.

Model text is data on its way to a browser that runs scripts, and other pages in that browser can send requests to
loopback addresses. Therefore, in `Guard`, before anything else is looked at:

* Every path begins with a random token, scripts and styles included; compared in constant time. Without it: 404.
* The Host header must be the address that is served (a foreign name that resolves to 127.0.0.1 is refused).
* What changes something is a POST with a JSON body, from this page's own origin if the browser says from where.
* The policy of the page allows its own script and style and requests to itself; nothing from outside, nothing inline.

Model text never becomes HTML: it travels as JSON and the script sets it as text.

The page is blind: until a reviewer has voted, the server tells neither which response is chosen, who wrote it nor what
any judge said. Left and right are drawn by a hash of the comparison and the reviewer.
"""

import asyncio
import hmac
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlaif.engine.ledger import Ledger
from rlaif.engine.votes import CHOICES, Action, Vote, VoteTable
from rlaif.errors import RlaifError
from rlaif.hashing import uniform
from rlaif.review.figures import blind_labels, differs, report
from rlaif.review.rows import Item, Rows
from rlaif.runs import LEDGER
from rlaif.types import ChatReply, ChatRequest, Judgement, Verdict

LONGEST_BODY = 10_000  # bytes of a request
LONGEST_TEXT = 100_000  # characters of one text that are sent to the page
_HERE = Path(__file__).parent
_ASSETS = {"review.js": "text/javascript", "review.css": "text/css", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}

Side = Literal["left", "right"]


class Guard:
    """What every request must pass before the application sees it; see the module."""

    def __init__(self, app: ASGIApp, token: str, addresses: frozenset[str]) -> None:
        """``addresses``: the values of Host that are ours, such as "127.0.0.1:8000"."""
        self._app, self._token, self._addresses = app, token.encode(), addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        token, slash, rest = scope["path"].removeprefix("/").partition("/")
        refusal = self._refusal(scope, token)
        if refusal is None and not slash:
            refusal = RedirectResponse(f"/{token}/")  # the page's own addresses are relative
        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        inside = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode(), "root_path": ""}
        await self._app(inside, receive, with_headers)

    def _refusal(self, scope: Scope, token: str) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._addresses:
            return PlainTextResponse("This page is served at its own address only.\n", 400)
        if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            return PlainTextResponse("Not found. The address is the one that `rlaif review` printed.\n", 404)
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        foreign = origin is not None and origin.removeprefix("http://").lower() not in self._addresses
        if foreign or site not in (None, "same-origin"):
            return PlainTextResponse("Not from another page.\n", 403)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("The body must be JSON.\n", 415)
        return None


class Application:
    """The requests of the page: what is there to vote on, one comparison, a vote, an undo."""

    def __init__(self, rows: Rows, votes: VoteTable, reviewer: str) -> None:
        self.rows, self.votes, self.reviewer = rows, votes, reviewer
        self._filtered: tuple[tuple[str, ...], Rows, list[str]] | None = None  # the last filters, and what they left

    def asgi(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/next", self.following),
                Route("/comparison/{key}", self.comparison),
                Route("/vote", self.vote, methods=["POST"]),
                Route("/undo", self.undo, methods=["POST"]),
                Route("/{name}", self.asset),
            ],
            exception_handlers={RlaifError: _told},
        )

    async def page(self, request: Request) -> Response:
        await self._reload()
        principles = sorted({p for item in self.rows.items for p in item.principles})
        outcomes = sorted({item.outcome for item in self.rows.items} - {"pair"})
        html = _template().render(
            run=self.rows.run.resolve().name,
            reviewer=self.reviewer,
            finished=self.rows.finished,
            principles=principles,
            outcomes=outcomes,
            has_panel=len(self.rows.config.judge.models) > 1,
        )
        return Response(html, media_type="text/html")

    async def _reload(self) -> None:
        """Take in what the run has made since; the rows of an unfinished one are computed, which may take a while."""
        old = self.rows
        self.rows = await asyncio.to_thread(old.reloaded)
        if self.rows is not old:
            old.close()

    def close(self) -> None:
        self.rows.close()

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return PlainTextResponse("Not found.\n", 404)
        return Response((_HERE / name).read_bytes(), media_type=_ASSETS[name])

    async def following(self, request: Request) -> Response:
        """The next comparison after ``after`` (before it, with ``back``) that the filters leave, and the figures."""
        asked, book = request.query_params, self.votes.refresh()
        within = self._within(asked)
        inside = set(within)
        done = {key for key in book.touched if key in inside and book.vote(key, self.reviewer)}
        voted = (self.rows.by_key[key] for key in book.touched if key in inside)
        show, after, back = asked.get("show", "open"), asked.get("after", ""), "back" in asked
        keys = sorted(done) if show == "voted" else within
        hidden = done if show == "open" else set[str]()
        place = bisect_left(keys, after) if back else bisect_right(keys, after)
        following = reversed(keys[:place]) if back else keys[place:]
        # What was passed over comes again at the end.
        again = keys if show == "open" and not back else []
        return _json(
            {
                "key": next((key for key in (*following, *again) if key not in hidden), None),
                "within": len(within),
                "done": len(done),
                "shown": len(keys) - len(hidden),
                "figures": report(voted, book, self.reviewer),
            }
        )

    async def comparison(self, request: Request) -> Response:
        item = self.rows.by_key.get(request.path_params["key"])
        return _json(self._view(item)) if item else PlainTextResponse("No such comparison.\n", 404)

    async def vote(self, request: Request) -> Response:
        """``{"key": ..., "vote": "left" | "right" | "tie" | "both_bad" | "skip" | "reveal"}``."""
        asked = await _body(request)
        item, said = self.rows.by_key.get(str(asked.get("key"))), asked.get("vote")
        if item is None or said not in ("left", "right", "tie", "both_bad", "skip", "reveal"):
            return PlainTextResponse("Not a vote.\n", 400)
        own = self.votes.refresh().vote(item.subject.key, self.reviewer)
        if own is not None and own.action in CHOICES:  # a key too many must not replace a blind vote
            return PlainTextResponse("You voted on this one: Enter goes on, u takes the vote back.\n", 409)
        action = self._place(item, said) if said in ("left", "right") else said
        self.votes.cast(item.subject.key, self.rows.texts(item), self.reviewer, cast(Action, action))
        return _json(self._view(item))

    async def undo(self, request: Request) -> Response:
        await _body(request)
        return _json({"key": self.votes.undo(self.reviewer)})

    # ------------------------------------------------------------------------------------------------ what is shown

    def _place(self, item: Item, side: str) -> str:
        """Which of the subject's texts stands on a side, and the other way round."""
        exchanged = uniform("review", item.subject.key, self.reviewer) < 0.5
        return {
            "left": "second" if exchanged else "first",
            "right": "first" if exchanged else "second",
            "first": "right" if exchanged else "left",
            "second": "left" if exchanged else "right",
        }[side]

    def _side(self, item: Item, choice: str) -> str:
        """Where a or b stands; "tie" and "invalid" as they are."""
        return self._place(item, item.subject.of(choice)) if choice in ("a", "b") else choice  # type: ignore[arg-type]

    def _view(self, item: Item) -> dict[str, Any]:
        """A comparison, blind, or with everything where the reviewer has seen it or voted."""
        book, key = self.votes.refresh(), item.subject.key
        texts = self.rows.texts(item)
        by_place = {"first": texts.first, "second": texts.second}
        own = book.vote(key, self.reviewer)
        blind: dict[str, Any] = {
            "key": key,
            "prompt": [m.model_dump() for m in texts.messages],
            "left": by_place[self._place(item, "left")][:LONGEST_TEXT],
            "right": by_place[self._place(item, "right")][:LONGEST_TEXT],
            "questions": [self.rows.questions.get(p) or p for p in item.principles],
            "vote": own and self._said(item, own),
            "blind": own.blind if own else not book.has_seen(key, self.reviewer),
        }
        open_ = (own is not None and own.action in CHOICES) or book.has_seen(key, self.reviewer)
        return blind | ({"revealed": self._revealed(item)} if open_ else {})

    def _said(self, item: Item, vote: Vote) -> str:
        return self._place(item, vote.action) if vote.action in ("first", "second") else vote.action

    def _revealed(self, item: Item) -> dict[str, Any]:
        models = {
            self._side(item, side): self.rows.completion(id_).model for side, id_ in (("a", item.a), ("b", item.b))
        }
        with Ledger.open(self.rows.run / LEDGER, read_only=True) as ledger:
            judged = [self._judged(item, j, ledger) for j in self.rows.judgements(item)]
        others = [v for v in self.votes.book.votes(item.subject.key) if v.reviewer != self.reviewer]
        own = self.votes.book.vote(item.subject.key, self.reviewer)
        label = blind_labels(self.votes.book, item.subject)
        return {
            "models": models,
            "judge": item.judge and self._side(item, item.judge),
            "p_left": None if item.p_a is None else item.p_a if self._side(item, "a") == "left" else 1 - item.p_a,
            "opposed": item.opposed,
            "split": item.split,
            "outcome": item.outcome,
            "source": item.source,
            "chosen": item.chosen and self._side(item, item.chosen),
            "prob_chosen": item.prob_chosen,
            "principles": list(item.principles),
            "judgements": judged,
            "others": [{"reviewer": v.reviewer, "vote": self._said(item, v), "blind": v.blind} for v in others],
            "differs": bool(own) and differs(item, label),
        }

    def _judged(self, item: Item, j: Judgement, ledger: Ledger) -> dict[str, Any]:
        # A row of judgements.jsonl may be about (b, a): an earlier comparison of the same two texts.
        turned = j.a != item.a
        outcome = j.outcome.swap() if turned else j.outcome
        first = None if j.order is None else ("a" if (j.order == "ab") != turned else "b")
        made: dict[str, Any] = {
            "judge": j.judge,
            "principles": list(j.principles),
            "template": j.template,
            "first": first and self._side(item, first),
            "evidence": [self._evidence(ledger, key) for key in j.request_keys],
        }
        if isinstance(outcome, Verdict):
            scores = outcome.scores and dict(zip(("a", "b"), outcome.scores, strict=True))
            return made | {
                "said": "both_bad" if outcome.both_bad else self._side(item, outcome.choice),
                "p_left": outcome.p_a if self._side(item, "a") == "left" else 1 - outcome.p_a,
                "method": outcome.method,
                "label_mass": outcome.label_mass,
                "scores": scores and {self._side(item, side): value for side, value in scores.items()},
                "rationale": outcome.rationale,
            }
        return made | {"said": "invalid", "reason": outcome.reason, "detail": outcome.detail}

    def _evidence(self, ledger: Ledger, key: str) -> dict[str, Any]:
        """What was asked and the raw reply."""
        request, reply = ledger.request(key), ledger.reply(key)
        return {
            "key": key,
            "asked": [m.model_dump() for m in request.messages] if request else [],
            "settings": _settings(request),
            "reply": None if reply is None else _raw(reply),
        }

    def _within(self, asked: Mapping[str, str]) -> list[str]:
        """The keys of the comparisons that the filters leave, in their order."""
        names = ("outcome", "principle", "margin_from", "margin_to", "disagreement")
        filters = tuple(asked.get(name, "") for name in names)
        if self._filtered is None or self._filtered[:2] != (filters, self.rows):
            keys = [item.subject.key for item in self.rows.items if _is_wanted(item, asked)]
            self._filtered = filters, self.rows, keys
        keys = self._filtered[2]
        if asked.get("disagreement") != "people":
            return keys
        book, by_key = self.votes.book, self.rows.by_key
        labels = {key: blind_labels(book, by_key[key].subject) for key in book.touched if key in by_key}
        return [key for key in keys if key in labels and differs(by_key[key], labels[key])]


def _is_wanted(item: Item, asked: Mapping[str, str]) -> bool:
    outcome, principle = asked.get("outcome", ""), asked.get("principle", "")
    if outcome and (item.outcome == "pair") != (outcome == "pair"):
        return False
    if outcome not in ("", "pair", "dropped") and item.outcome != outcome:
        return False
    if principle and principle not in item.principles:
        return False
    low, high = _number(asked.get("margin_from"), 0.0), _number(asked.get("margin_to"), 1.0)
    if (low > 0 or high < 1) and (item.margin is None or not low <= item.margin <= high):
        return False
    kind = asked.get("disagreement", "")
    return item.opposed if kind == "orders" else item.split if kind == "judges" else True


def _settings(request: ChatRequest | None) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude={"messages"}, exclude_defaults=True) if request else {}


def _raw(reply: ChatReply) -> dict[str, Any]:
    whole = json.dumps(reply.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False)
    return {"text": reply.text, "finish": reply.finish_reason, "model": reply.model, "whole": whole[:LONGEST_TEXT]}


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        return default


def _json(value: Any, status: int = 200) -> Response:
    # Everything beyond ASCII is escaped: a text may hold half a surrogate pair.
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")


async def _body(request: Request) -> dict[str, Any]:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > LONGEST_BODY:
            return {}
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


async def _told(request: Request, error: Exception) -> Response:
    """A vote that cannot be stored (a full disk) is told to the page."""
    return _json({"error": str(error)}, 503)


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_HERE / "page.html.jinja").read_text(encoding="utf-8"))
