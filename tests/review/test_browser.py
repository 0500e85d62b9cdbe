"""The page in a real browser, from a real server."""

import http.server
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlaif.engine import Ledger
from rlaif.engine.votes import VoteBook, read_votes
from tests import running
from tests.review.texts import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPT = "What does <script>window.owned = 1</script> do?\n\n# No heading"
# Whatever Chromium would look up by itself is no part of the test, and most machines that run it have no sandbox.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


class Served:
    """A run on its page, by the command that people use."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        running.write_prompts(folder, [PROMPT, "And this?", "And that?"])
        policy = {"model": "scripted:tests.review.texts:policy", "n": 3}
        judge = {"models": ["scripted:tests.review.texts:judge"], "rationale": True, "ties": False}
        config = running.config(folder, policy_settings=policy, judge_settings=judge, pairing={"strategy": "all"})
        with ThreadPoolExecutor(1) as thread:  # playwright has an event loop in this one
            thread.submit(running.generate, config).result()
        command = [sys.executable, "-m", "rlaif", "review", str(self.run), "--no-browser", "--name", "anna"]
        self.server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.server.stdout.readline()
        self.url = self.server.stdout.readline().strip()

    def votes(self) -> VoteBook:
        with Ledger.open(self.run / "ledger.sqlite", read_only=True) as ledger:
            return read_votes(ledger)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path)
    yield found
    found.server.kill()
    found.server.wait()


@pytest.fixture
def page(browser: "Browser", served: Served) -> Iterator["Page"]:
    """Open, with everything that went wrong in it, or out of it, as a failure."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    found, wrong = context.new_page(), []
    found.on("request", lambda r: None if r.url.startswith(served.url) else wrong.append(f"request {r.url}"))
    found.on("pageerror", lambda e: wrong.append(f"error {e}"))
    found.on("console", lambda m: wrong.append(f"console {m.text}") if m.type in ("error", "warning") else None)
    found.on("dialog", lambda d: wrong.append("dialog"))
    found.goto(served.url)
    found.wait_for_selector("#comparison:not([hidden])")
    yield found
    if not found.is_closed():  # by a test that expects the browser to complain
        assert wrong == []
        context.close()


def texts(page: "Page") -> tuple[str, str]:
    left, right = (page.text_content(f"#{side} .text") or "" for side in ("left", "right"))
    return left, right


def better(page: "Page") -> str:
    left, right = map(running.quality, texts(page))
    return "1" if left > right else "2"


def has_text(page: "Page", selector: str, text: str, *, other: bool = False) -> None:
    """Waits until it has (until it has another)."""
    from playwright.sync_api import expect  # not `wait_for_function`, which the page's policy forbids

    found = expect(page.locator(selector))
    (found.not_to_have_text if other else found.to_have_text)(text)


def vote(page: "Page", key: str) -> None:
    page.keyboard.press(key)
    page.wait_for_selector("#revealed:not([hidden])")


def go_on(page: "Page") -> None:
    page.keyboard.press("Enter")
    page.wait_for_selector("#revealed", state="hidden")


def test_votes_by_keyboard_are_blind_then_revealed_and_agreement_moves(page: "Page", served: Served) -> None:
    assert page.inner_text("#progress") == "0 of 9"
    assert page.inner_text("#rate").strip() == "–"
    rates = []
    for number in range(9):
        shown = page.inner_text("body")
        assert "scripted:" not in shown
        assert "chosen" not in shown
        assert "Rationale" not in shown
        assert page.is_hidden("#revealed")
        key = better(page)
        vote(page, key if number % 3 else {"1": "2", "2": "1"}[key])
        assert ("You agree with the judge" in page.inner_text("#verdict")) == (number % 3 > 0)
        assert "scripted:tests.review.texts:policy" in page.inner_text("#left h2")
        has_text(page, "#progress", f"{number + 1} of 9")
        rates.append(page.inner_text("#rate"))
        go_on(page)
    assert page.is_visible("#empty")
    assert [rate.split(" (")[0] for rate in rates] == [f"{x} %" for x in (0, 50, 67, 50, 60, 67, 57, 63, 67)]
    assert len(served.votes()) == 9
    assert all(v.blind for s in served.votes().subjects for v in served.votes().votes(s))


def test_every_key_does_what_its_button_says(page: "Page", served: Served) -> None:
    said = {"1": "left is better", "2": "right is better", "3": "tie", "4": "both bad", "s": "skip", "u": "undo"}
    buttons = [button.inner_text() for button in page.query_selector_all("#votes button")]
    assert all(f"{key} {told}" in buttons for key, told in said.items())
    actions = []
    for key in ("3", "b", "t", "4"):
        vote(page, key)
        book = served.votes()
        last = book.last("anna")
        assert last is not None
        actions.append(last.action)
        go_on(page)
    assert actions == ["tie", "both_bad", "tie", "both_bad"]
    before = texts(page)
    page.keyboard.press("s")
    has_text(page, "#left .text", before[0], other=True)
    page.keyboard.press("u")  # of the skip
    has_text(page, "#left .text", before[0])
    assert len(served.votes()) == 4
    page.keyboard.press("u")
    page.wait_for_selector("#revealed:not([hidden])")
    has_text(page, "#progress", "3 of 9")
    assert len(served.votes()) == 3
    page.click("button[data-vote=left]")  # a correction: after the reveal, so not blind
    page.wait_for_selector("#left.picked")
    assert "does not count in the agreement" in page.inner_text("#revealed")


def test_a_key_too_many_changes_nothing(page: "Page", served: Served) -> None:
    vote(page, "1")
    for key in ("2", "3", "2"):
        page.keyboard.press(key)
    page.wait_for_selector("#message:not([hidden])")
    assert "Enter goes on" in page.inner_text("#message")
    page.keyboard.down("2")
    page.keyboard.up("2")
    assert sum(len(served.votes().votes(s)) for s in served.votes().subjects) == 1
    go_on(page)
    page.focus("input[name=margin_from]")
    page.keyboard.press("1")  # typed, not voted
    page.keyboard.press("Control+1")
    assert len(served.votes()) == 1
    page.wait_for_timeout(100)
    assert page.is_hidden("#revealed")
    # What the browser logs of the refused votes is expected.
    page.context.close()


def test_model_text_is_text(page: "Page", served: Served) -> None:
    for _ in range(9):
        assert all(hostile in text for text in texts(page) for hostile in HOSTILE)
        vote(page, better(page))
        assert HOSTILE[0] in page.inner_text("#revealed")
        for block in page.query_selector_all("#revealed details"):
            block.evaluate("block => { block.open = true; }")
        inside = page.evaluate("[...new Set([...document.querySelectorAll('main *')].map(e => e.tagName))]")
        assert not {"SCRIPT", "IMG", "SVG", "STYLE", "A", "B", "I", "EM", "STRONG", "IFRAME"} & set(inside)
        go_on(page)
    assert page.title() == "Review: run"
    assert page.evaluate("window.owned") is None


def test_the_browser_itself_would_refuse_inline_scripts_and_markup(page: "Page") -> None:
    refused = """() => {
        try { document.getElementById('prompt').innerHTML = '<b>x</b>'; return 'set'; } catch (e) { return e.name; }
    }"""
    assert page.evaluate(refused) == "TypeError"  # trusted types
    page.context.close()  # with the browser's complaints of it


def test_filters_by_mouse_and_what_was_voted_is_found_again(page: "Page", served: Served) -> None:
    vote(page, {"1": "2", "2": "1"}[better(page)])
    voted = texts(page)
    page.select_option("select[name=show]", "voted")
    page.select_option("select[name=disagreement]", "people")
    has_text(page, "#progress", "1 of 1")
    page.wait_for_selector("#revealed:not([hidden])")
    has_text(page, "#left .text", voted[0])
    page.select_option("select[name=disagreement]", "orders")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.is_disabled("button[data-vote=left]")
    page.select_option("select[name=disagreement]", "")
    page.select_option("select[name=show]", "open")
    page.wait_for_selector("#comparison:not([hidden])")
    has_text(page, "#left .text", voted[0], other=True)
    page.reload()
    has_text(page, "#progress", "1 of 9")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (800, 600)])
def test_it_fits_the_window_and_can_be_read(
    browser: "Browser", served: Served, scheme: Any, width: int, height: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(served.url)
    page.wait_for_selector("#comparison:not([hidden])")
    for _ in range(2):  # blind, then revealed
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.scrollHeight") <= height
        for button in page.query_selector_all("#votes button"):
            box = button.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height
            assert box["x"] + box["width"] <= width
        left, right = (page.query_selector(f"#{side} .text") for side in ("left", "right"))
        assert left is not None
        assert right is not None
        boxes = left.bounding_box(), right.bounding_box()
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert min(box["width"] for box in boxes if box) > width / 3
        assert min(box["y"] for box in boxes if box) < height / 2
        for selector in ("#left .text", "#questions", "#progress", "#votes button", "#filters label"):
            size, contrast = page.evaluate(READABLE, selector)
            assert size >= 11
            assert contrast >= 4.5, (selector, contrast)
        if page.is_hidden("#revealed"):
            page.keyboard.press("1")
            page.wait_for_selector("#revealed:not([hidden])")
    context.close()


# The size of an element's text in pixels, and its contrast (WCAG 2) with what is behind it.
READABLE = """selector => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const linear = x => x <= .04045 * 255 ? x / 255 / 12.92 : ((x / 255 + .055) / 1.055) ** 2.4;
    const light = text => {
        const [r, g, b] = rgb(text).map(linear);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const element = document.querySelector(selector), style = getComputedStyle(element);
    let behind = element;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const both = [light(style.color), light(getComputedStyle(behind).backgroundColor)].sort((x, y) => y - x);
    return [parseFloat(style.fontSize), (both[0] + .05) / (both[1] + .05)];
}"""


def test_another_site_in_the_same_browser_can_neither_vote_nor_frame_the_page(
    browser: "Browser", served: Served, tmp_path: Path
) -> None:
    """Even one that knows the whole address."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "index.html").write_text(f"<iframe src='{served.url}'></iframe>", encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    evil = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *a: Quiet(*a, directory=str(tmp_path / "evil")),
    )
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    try:
        vote_once(browser, served)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{evil.server_port}/")
        tried = """async ([url, type, mode]) => {
            const headers = { 'content-type': type }, body = '{}';
            const asked = { method: 'POST', mode, headers, body };
            try { return (await fetch(url, asked)).type; } catch (e) { return e.name; }
        }"""
        for type_, mode in (("application/json", "cors"), ("text/plain", "cors"), ("text/plain", "no-cors")):
            found = page.evaluate(tried, [served.url + "undo", type_, mode])
            assert found in ("TypeError", "opaque")
        assert page.evaluate("url => fetch(url).then(() => 'read', e => e.name)", served.url + "next") == "TypeError"
        assert "Review" not in page.frames[1].content()
        page.close()
    finally:
        evil.shutdown()
    assert len(served.votes()) == 1  # and not undone


def vote_once(browser: "Browser", served: Served) -> None:
    page = browser.new_page()
    page.goto(served.url)
    page.wait_for_selector("#comparison:not([hidden])")
    vote(page, "1")
    page.close()


def test_a_server_that_ended_is_told_and_a_new_one_has_the_votes(page: "Page", served: Served) -> None:
    vote(page, "1")
    served.server.send_signal(signal.SIGINT)
    assert served.server.wait(timeout=20) == 0
    page.keyboard.press("Enter")
    page.wait_for_selector("#message:not([hidden])")
    assert "run `rlaif review` again" in page.inner_text("#message")
    assert re.fullmatch(r"\d+", str(len(served.votes())))
    assert len(served.votes()) == 1
    page.context.close()  # with the browser's complaints of the connection
