"""The page: self-contained, safe to open whatever the models wrote, and saying what the files say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.errors import InputError
from rlaif.pages import decimal, printable, share, shorten
from rlaif.report import write_report
from rlaif.report.html import Metric
from rlaif.types import Dropped, Unjudged, Verdict
from tests.report.test_summary import completion, judgement, pair, write
from tests.running import CONSTITUTION, run

HOSTILE = "</div></details><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}{% raw %}&lt;b&gt;<!--"
TAGS = {"html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "div", "span", "b", "bdi"}
TAGS |= {"dl", "dt", "dd", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "code"}
TAGS |= {"svg", "rect", "text", "line", "circle", "polyline"}
VOID = {"meta"}
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "class",
    "scope",
    "title",
    "open",
    "role",
    "aria-label",
}
ATTRIBUTES |= {"viewbox", "x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r", "points"}


class Page(HTMLParser):
    """The page as a browser reads it: fails on a tag or attribute the template does not write, or one left open."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.stack == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)


def page(folder: Path) -> Page:
    return Page(write_report(folder))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run folder as a real run leaves it, with a judge that fails sometimes and a check that decides."""
    rules = CONSTITUTION + "  - id: short\n    check: {words: {max: 14}}\n"
    prompts = [f"Question {i}: what, why?" for i in range(40)]
    run(tmp_path, prompts, judge="judge_with_rubbish", constitution=rules, max_unjudged=1.0)
    return tmp_path / "run"


def test_a_real_run_is_shown_with_the_figures_of_its_manifest(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert write_report(made) == made / "report.html"
    shown = page(made)
    counts = manifest["counts"]
    for figure, what in (
        (counts["prompts"], "prompts sampled"),
        (counts["samples"]["made"], "completions"),
        (counts["comparisons"]["planned"], "comparisons"),
        (counts["comparisons"]["pairs"], "preference pairs"),
    ):
        assert re.search(rf"\b{figure:,} {what}", shown.text)
    for reason, n in (counts["comparisons"]["dropped"] | counts["judgements"]["unjudged"]).items():
        assert re.search(rf"{reason} {n:,}\b", shown.text)
    assert counts["judgements"]["unjudged"]
    assert "quality 1 (" in shown.text
    assert "Which response is better?" in shown.text  # the principle's text, from the constitution of the config
    assert "words: at most 14" in shown.text
    assert "ledger.sqlite" in shown.text
    assert "The manifest counts" not in shown.text


def test_the_page_stands_alone(made: Path) -> None:
    html = write_report(made).read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<iframe|src=|href=|url\(|@import|https?://", html)
    assert "default-src 'none'" in html  # a browser loads and runs nothing, even if something slipped through
    assert "prefers-color-scheme: dark" in html


def test_the_same_folder_gives_the_same_page(made: Path) -> None:
    assert write_report(made).read_bytes() == write_report(made).read_bytes()


def test_no_text_becomes_markup_wherever_it_stands(tmp_path: Path) -> None:
    hostile = pair("p", HOSTILE, HOSTILE + HOSTILE) | {"principles": [HOSTILE], "judge": HOSTILE, "source": HOSTILE}
    hostile |= {"prompt": [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]}
    hostile |= {"evidence": [HOSTILE], "chosen_id": "p-a", "rejected_id": "p-b"}
    write(tmp_path, "pairs", [hostile])
    said = judgement("p", "ab", 0.9, judge=HOSTILE, principles=(HOSTILE,))
    verdict = Verdict(choice="a", p_a=0.9, method="text", rationale=HOSTILE)
    failed = Unjudged(reason="unparseable", detail=HOSTILE)
    write(tmp_path, "judgements", [said.model_copy(update={"outcome": o}) for o in (verdict, failed)])
    write(tmp_path, "dropped", [Dropped(prompt_id=HOSTILE, reason="tie", detail=HOSTILE)])
    manifest: dict[str, Any] = {"constitution": {"name": HOSTILE}, "versions": {HOSTILE: HOSTILE}, "seed": HOSTILE}
    manifest |= {"ledger": {"stages": [{"stage": HOSTILE, "model": HOSTILE, "sent": HOSTILE}]}, HOSTILE: [HOSTILE]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    metric = {"name": HOSTILE, "before": 1, "after": 2, "difference": 1, "low": 0.5, "high": 1.5, "aim": HOSTILE}
    texts = {"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    (tmp_path / "comparison.json").write_text(json.dumps({"metrics": [metric], "examples": [texts], HOSTILE: HOSTILE}))
    shown = page(tmp_path)  # the parser refuses any tag or attribute that is not the template's
    assert shown.text.count("<script>alert(1)</script>") > 15
    assert "{{ 7*7 }}" in shown.text
    assert shown.text.count("49") == 0


@given(st.text(st.characters(), max_size=30))
def test_any_text_gives_a_page_that_parses(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    write(folder, "pairs", [pair("p", text.encode("utf-8", "replace").decode(), "b")])
    (folder / "manifest.json").write_text(json.dumps({"seed": text}))  # may hold a lone surrogate
    html = page(folder)
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]", html.text)


def test_a_folder_that_is_none_and_one_that_is_no_run_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"not a run folder: it has none of manifest\.json, pairs\.jsonl"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "3", "\xff"])
@pytest.mark.parametrize("name", ["manifest.json", "comparison.json"])
def test_a_broken_json_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, "pairs", [pair("p")])
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {
            "counts": 3,
            "models": [],
            "ledger": None,
            "constitution": "x",
            "prompts": None,
            "versions": [],
            "seconds": "",
        },
        {"ledger": {"stages": [{}, 3]}, "counts": {"comparisons": []}, "cost": 1.25, "seconds": 3},
    ],
)
def test_a_manifest_of_another_shape_is_shown_as_it_is(tmp_path: Path, manifest: dict[str, Any]) -> None:
    write(tmp_path, "pairs", [pair("p")])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shown = page(tmp_path)
    if "cost" in manifest:
        assert "1.2500 USD" in shown.text


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "completions", [completion("p", 0)])
    shown = page(tmp_path)
    assert "Not in this folder: manifest.json, pairs.jsonl, judgements.jsonl, dropped.jsonl." in shown.text
    assert "Example pairs" not in shown.text


def test_a_manifest_that_counts_other_than_the_files_is_said(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [pair("p")])
    (tmp_path / "manifest.json").write_text(json.dumps({"counts": {"comparisons": {"planned": 5, "pairs": 2}}}))
    shown = page(tmp_path)
    assert "The manifest counts 2 pairs; pairs.jsonl has 1." in shown.text
    assert "The manifest counts 5 comparisons; pairs and dropped are 1." in shown.text


def test_principle_texts_are_shown_only_while_the_constitution_is_the_runs_own(made: Path) -> None:
    rules = made.parent / "constitution.yaml"
    rules.write_text(rules.read_text().replace("Which response is better?", "Which response is worse?"))
    shown = page(made)
    assert "Which response is worse?" not in shown.text
    assert "Which response is better?" not in shown.text
    rules.unlink()
    assert "better" in page(made).text  # the id is known all the same


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"low": 0.1, "high": 0.5, "aim": "up"}, "moved up, as the constitution asks"),
        ({"low": 0.1, "high": 0.5, "aim": "down"}, "moved up, against the constitution"),
        ({"low": -0.5, "high": -0.1}, "moved down"),
        ({"low": -0.1, "high": 0.5, "aim": "up"}, "no change beyond the noise"),
        ({"low": 0.0, "high": 0.0}, "no change beyond the noise"),
        ({"interval_low": 0.1, "interval_high": 0.5}, "moved up"),
        ({}, "no interval"),
    ],
)
def test_a_difference_is_called_one_only_when_its_interval_leaves_out_zero(
    tmp_path: Path, numbers: dict[str, Any], said: str
) -> None:
    write(tmp_path, "pairs", [pair("p")])
    metric = {"name": "words", "before": 1.0, "after": 1.3, "difference": 0.3, **numbers}
    content = {"metrics": [metric], "examples": [{"prompt": "Hi?", "before": "long", "after": "short"}], "lost": 3}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    shown = page(tmp_path)
    assert said in shown.text
    assert "against" not in shown.text or "against" in said
    assert "lost 3" in shown.text
    assert "before long after short" in shown.text


def test_the_size_of_the_page_does_not_grow_with_the_run(tmp_path: Path) -> None:
    write(tmp_path, "pairs", [pair(f"p{n}", "long " * 10_000) for n in range(30)])
    assert write_report(tmp_path).stat().st_size < 300_000
    assert "(44,000 more characters)" in page(tmp_path).text


def test_figures_are_written_for_readers() -> None:
    assert (share(None), share(0.1234), share(1.0)) == ("–", "12.3 %", "100.0 %")
    assert (decimal(None), decimal(1234.5678), decimal(0.5, 1)) == ("–", "1,234.568", "0.5")
    assert shorten("abc", 2) == "ab… (1 more characters)"
    assert printable("a\x00\ud800b\nc\u2028") == "a\ufffd\ufffdb\nc\u2028"
    assert printable(3) == 3
    assert Metric(name="m", before=0, after=0, difference=0).moved == ""
