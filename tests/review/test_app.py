"""The page over HTTP: who may ask, what a reviewer is told before and after a vote, filters and figures."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rlaif.engine.votes import VoteTable
from rlaif.errors import InputError, ProviderError
from rlaif.review.figures import wilson
from tests import running
from tests.review.runs import ALL, COMPARISONS, PROMPTS, Page, made, page

ASSETS = ("", "review.js", "review.css", "icon.svg")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read, not voted on."""
    return made(tmp_path_factory.mktemp("run"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return made(tmp_path)


# -------------------------------------------------------------------------------------------------- who may ask


async def test_everything_needs_the_token_assets_too(run: Path) -> None:
    async with page(run) as p:
        for path in (*ASSETS, "next"):
            assert (await p.http.get(path)).status_code == 200
            for url in (
                "/",
                "/" + path,
                f"/wrong/{path}",
                p.review.url[:-2] + f"/{path}",
                p.review.url[:-1] + f"x/{path}",
            ):
                refused = await p.http.get(httpx2.URL(p.review.url).join(url))
                assert (refused.status_code, refused.headers["content-type"][:10]) == (404, "text/plain")
        assert (await p.http.get(p.review.url[:-1])).headers["location"] == httpx2.URL(p.review.url).path
        wrong = httpx2.URL(p.review.url).join("/wrong/vote")
        assert (await p.http.post(wrong, json={"key": "k", "vote": "left"})).status_code == 404


def test_the_token_is_long_and_another_each_time(run: Path) -> None:
    tokens = set()
    for _ in range(3):

        async def main() -> str:
            async with page(run) as p:
                return httpx2.URL(p.review.url).path.strip("/")

        tokens.add(asyncio.run(main()))
    assert len(tokens) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) for token in tokens)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""])
async def test_another_host_name_is_refused_whatever_it_resolves_to(run: Path, host: str) -> None:
    async with page(run) as p:
        port = httpx2.URL(p.review.url).port
        assert (await p.http.get("", headers={"host": host.format(port=port)})).status_code == 400
        assert (await p.http.get("", headers={"host": f"localhost:{port}"})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://127.0.0.1:{port}"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"origin": "http://127.0.0.1:{port}", "sec-fetch-site": "same-origin"}, 200),
    ],
)
async def test_another_page_in_the_same_browser_cannot_vote(own: Path, headers: dict[str, str], status: int) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        port = str(httpx2.URL(p.review.url).port)
        sent = {name: value.replace("{port}", port) for name, value in headers.items()}
        reply = await p.http.post("vote", json={"key": key, "vote": "tie"}, headers=sent)
        assert reply.status_code == status
        assert (await p.next())["done"] == (status == 200)


async def test_nothing_changes_by_get_and_no_other_file_is_served(own: Path) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        for path in ("vote", "undo"):
            assert (await p.http.get(path, params={"key": key, "vote": "tie"})).status_code in (404, 405)
        for path in ("app.py", "..%2fapp.py", "page.html.jinja", "comparison/none", "static/x"):
            assert (await p.http.get(path)).status_code == 404
        for body in (b"", b"[]", b"{", b'{"key": "x"}', b"x" * 20_000, b'{"key": {}, "vote": []}'):
            reply = await p.http.post("vote", content=body, headers={"content-type": "application/json"})
            assert reply.status_code == 400
        assert (await p.next())["done"] == 0


async def test_every_answer_forbids_what_the_page_does_not_need(run: Path) -> None:
    async with page(run) as p:
        for reply in [await p.http.get(path) for path in (*ASSETS, "next", "no")] + [await p.http.get("/")]:
            policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
            assert reply.headers["cache-control"] == "no-store"
            assert "unsafe" not in str(reply.headers)
            assert "access-control-allow-origin" not in reply.headers


async def test_the_page_loads_nothing_from_outside_and_has_nothing_inline(run: Path) -> None:
    async with page(run) as p:
        texts = [(await p.http.get(path)).text for path in ("", "review.js", "review.css")]
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", "".join(texts))
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=", texts[0])
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", texts[1])


async def test_names_in_the_page_are_escaped(tmp_path: Path) -> None:
    run = (await asyncio.to_thread(made, tmp_path)).rename(tmp_path / "<script>x")
    async with page(run, "<b>anna") as p:
        html = (await p.http.get("")).text
    assert "<script>x" not in html
    assert "<b>anna" not in html
    assert "&lt;script&gt;x" in html


# ------------------------------------------------------------------------------------------------------- blindness


async def test_before_the_vote_nothing_tells_who_wrote_what_or_what_the_judge_said(own: Path) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        shown = await p.comparison(key)
        assert set(shown) == {"key", "prompt", "left", "right", "questions", "vote", "blind"}
        assert shown["questions"] == ["Which response is better?"]
        voted = await p.vote(key, "left")
        assert voted == shown | {"vote": "left", "blind": True, "revealed": voted["revealed"]}
        assert voted["revealed"]["judge"] == await p.better(key)
        assert voted["revealed"]["models"] == dict.fromkeys(("left", "right"), "scripted:tests.fakes:policy")
        assert (await p.comparison(key))["revealed"] == voted["revealed"]


async def test_left_and_right_are_drawn_and_stay(run: Path) -> None:
    async with page(run, "anna") as p, page(run, "ben") as other:
        keys = await _keys(p)
        sides = [(await p.better(key), await other.better(key)) for key in keys]
        assert [await p.better(key) for key in keys] == [side for side, _ in sides]
    assert len(keys) == COMPARISONS
    assert {side for side, _ in sides} == {"left", "right"}
    assert len(set(sides)) > 2  # and by reviewer


async def test_evidence_is_what_the_ledger_holds(own: Path) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        shown = await p.vote(key, "left")
        looks = shown["revealed"]["judgements"]
        assert {look["first"] for look in looks} == {"left", "right"}
        for look in looks:
            (evidence,) = look["evidence"]
            asked = evidence["asked"][-1]["content"]
            first = shown[look["first"]].split("\n")[0]
            assert asked.index(first) < asked.index(
                shown["right" if look["first"] == "left" else "left"].split("\n")[0]
            )
            assert (evidence["reply"]["text"] == "X") == (look["said"] == look["first"])
            assert look["p_left"] == (look["said"] == "left")


async def test_a_reveal_without_a_vote_is_kept_in_mind(own: Path) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        assert "revealed" in await p.vote(key, "reveal")
        assert (await p.next())["done"] == 0
        voted = await p.vote(key, "left")
        assert voted["blind"] is False
        assert (await p.next())["figures"]["you"]["votes"] == 0


async def test_a_second_vote_on_the_same_needs_an_undo_first(own: Path) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]
        await p.vote(key, "left")
        again = await p.http.post("vote", json={"key": key, "vote": "right"})
        assert again.status_code == 409
        assert "u takes the vote back" in again.text
        assert (await p.comparison(key))["vote"] == "left"
        assert await p.undo() == key
        assert (await p.vote(key, "right"))["vote"] == "right"


# ----------------------------------------------------------------------------------------------- queue and figures


async def test_the_queue_shows_each_comparison_once_and_comes_back_to_what_was_passed_over(own: Path) -> None:
    async with page(own) as p:
        keys = await _keys(p)
        assert len(set(keys)) == COMPARISONS
        assert (await p.next())["key"] == keys[0]
        await p.vote(keys[1], "tie")
        assert (await p.next(after=keys[0]))["key"] == keys[2]
        assert (await p.next(after=keys[-1]))["key"] == keys[0]
        assert (await p.next(after=keys[2], back="1"))["key"] == keys[0]
        assert (await p.next(after=keys[0], back="1"))["key"] is None
        assert (await p.next(show="voted"))["key"] == keys[1]
        await p.vote(keys[2], "skip")
        found = await p.next()
        assert (found["done"], found["shown"], found["within"]) == (2, COMPARISONS - 2, COMPARISONS)


async def test_two_reviewers_see_the_same_order_and_each_other_after_the_vote(own: Path) -> None:
    async with page(own, "anna") as p, page(own, "ben") as other:
        keys = await _keys(p)
        assert keys == await _keys(other)
        better = [await p.better(key) for key in keys]
        for key, side in zip(keys, better, strict=True):
            await p.vote(key, side)
        assert (await other.comparison(keys[0]))["vote"] is None
        shown = await other.vote(keys[0], "tie")
        assert shown["revealed"]["others"] == [{"reviewer": "anna", "vote": await other.better(keys[0]), "blind": True}]
        figures = (await other.next())["figures"]
        assert figures["you"]["votes"] == 1
        assert figures["all"]["reviewers"] == 2
        assert figures["all"]["votes"] == COMPARISONS
        assert figures["all"]["alpha"] is not None


async def test_agreement_moves_with_each_vote(own: Path) -> None:
    async with page(own) as p:
        keys = await _keys(p)
        rates = []
        for number, key in enumerate(keys):
            better = await p.better(key)
            await p.vote(key, better if number % 4 else {"left": "right", "right": "left"}[better])
            rates.append((await p.next())["figures"]["you"])
        right = [number % 4 > 0 for number in range(len(keys))]
        for number, figures in enumerate(rates, 1):
            assert figures["votes"] == number
            assert figures["rate"] == pytest.approx(sum(right[:number]) / number)
            assert figures["rate_low"] < figures["rate_high"]
        assert rates[-1]["kappa"] == pytest.approx(0.5, abs=0.12)
        assert rates[-1]["kappa_low"] < rates[-1]["kappa"] < rates[-1]["kappa_high"]


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"), [(1.0, 1, 0.2065, 1.0), (0.5, 10, 0.2366, 0.7634), (0.8, 50, 0.6696, 0.8876)]
)
def test_wilson_is_as_published(rate: float, n: int, low: float, high: float) -> None:
    assert wilson(rate, n) == pytest.approx((low, high), abs=1e-4)


async def test_filters(tmp_path: Path) -> None:
    models = ["scripted:tests.fakes:judge", "scripted:tests.fakes:judge_always_first"]
    two = running.CONSTITUTION + "  - id: other\n    compare: Which is other?\n"
    settings = {"models": models, "panel": "mean", "ties": True}
    run = await asyncio.to_thread(made, tmp_path, constitution=two, judge_settings=settings)
    async with page(run) as p:
        by_principle = {name: (await p.next(principle=name))["within"] for name in ("better", "other", "none")}
        assert by_principle["better"] + by_principle["other"] == COMPARISONS
        assert min(by_principle["better"], by_principle["other"]) > 0 == by_principle["none"]
        # One judge is right and one always says the first: its orders differ, and the mean is three quarters.
        within: Counter[str] = Counter()
        for name, asked in {
            "orders": {"disagreement": "orders"},
            "judges": {"disagreement": "judges"},
            "people": {"disagreement": "people"},
            "half": {"margin_from": "0.4", "margin_to": "0.6"},
            "wide": {"margin_from": "0.6"},
            "no number": {"margin_from": "x"},
            "pairs": {"outcome": "pair"},
            "dropped": {"outcome": "dropped"},
            "ties": {"outcome": "tie"},
        }.items():
            within[name] = (await p.next(**asked))["within"]
        everything = dict.fromkeys(("orders", "half", "no number", "pairs"), COMPARISONS)
        assert within == Counter(everything | {"judges": 0, "people": 0, "wide": 0, "dropped": 0, "ties": 0})
        key = (await p.next())["key"]
        worse = "left" if await p.better(key) == "right" else "right"
        await p.vote(key, worse)
        assert (await p.next(disagreement="people", show="voted"))["key"] == key


# --------------------------------------------------------------------------------------------- folders of all kinds


async def test_an_unfinished_run_is_read_from_its_replies_and_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ProviderError):
        await asyncio.to_thread(made, tmp_path, judge="judge_without_key")
    run = tmp_path / "run"
    before = {path.name for path in run.iterdir()}
    assert "pairs.jsonl" not in before
    async with page(run) as p:
        assert "not finished" in (await p.http.get("")).text
        found = await p.next()
        assert 0 < found["within"] <= COMPARISONS
        shown = await p.comparison(found["key"])
        assert shown["prompt"][0]["content"] in PROMPTS
        voted = await p.vote(found["key"], await p.better(found["key"]))
        assert voted["revealed"]["outcome"] == "unjudged"
    assert {path.name for path in run.iterdir()} == before
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match=r"run: the run is not finished, .* no such file.* finish the run\."):
        async with page(run):
            pass


async def test_a_page_loaded_again_shows_what_a_run_has_made_since(own: Path, tmp_path: Path) -> None:
    async with page(own) as p:
        first = (await p.next())["key"]
        await p.vote(first, "left")
        shown = await p.comparison(first)
        await asyncio.to_thread(running.run, tmp_path, ["One more?", *PROMPTS], **ALL)
        assert (await p.next())["within"] == COMPARISONS
        assert await p.comparison(first) == shown  # not what stands in its place in the new files
        await p.http.get("")
        found = await p.next()
        assert (found["within"], found["done"]) == (COMPARISONS + 3, 1)
        assert (await p.comparison(first))["revealed"]["source"] == "human"


async def test_without_the_file_of_prompts_they_come_from_the_run_itself(own: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").unlink()
    (own / "pairs.jsonl").write_text("", encoding="utf-8")
    async with page(own) as p:
        shown = await p.comparison((await p.next())["key"])
        assert shown["prompt"][0]["content"] in PROMPTS
    (tmp_path / "constitution.yaml").unlink()
    async with page(own) as p:
        assert (await p.comparison((await p.next())["key"]))["questions"] == ["better"]


async def test_text_travels_as_it_is(tmp_path: Path) -> None:
    texts = {"quality 1\n<script>alert(1)</script> **bold** \u202e\u2028\x00", "quality 2\n</textarea> &amp;"}
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "<img src=x>", "completions": sorted(texts)}) + "\n")
    (tmp_path / "constitution.yaml").write_text(running.CONSTITUTION, encoding="utf-8")
    values: dict[str, Any] = running.config(tmp_path).model_dump(mode="json", exclude={"prompts", "policy"})
    config = running.GenerateConfig.model_validate(values | {"policy": {"completions": str(samples)}})
    await asyncio.to_thread(running.generate, config)
    async with page(tmp_path / "run") as p:
        shown = await p.comparison((await p.next())["key"])
        assert {shown["left"], shown["right"]} == texts
        assert shown["prompt"] == [{"role": "user", "content": "<img src=x>"}]


async def test_a_vote_that_cannot_be_stored_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with page(own) as p:
        key = (await p.next())["key"]

        def full(*_: object) -> None:
            raise ProviderError("ledger.sqlite: the disk is full; free some space.")

        monkeypatch.setattr(VoteTable, "cast", full)
        reply = await p.http.post("vote", json={"key": key, "vote": "left"})
        assert reply.status_code == 503
        assert reply.json() == {"error": "ledger.sqlite: the disk is full; free some space."}
        assert (await p.comparison(key))["vote"] is None


async def _keys(p: Page) -> list[str]:
    found: list[str] = []
    while (key := (await p.next(show="all", after=found[-1] if found else ""))["key"]) is not None:
        found.append(key)
    return found
