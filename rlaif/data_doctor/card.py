"""The doctor's summary as a section of a data set's card (README.md)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.data_doctor.balance import STYLE
from rlaif.data_doctor.report import Finding, Report
from rlaif.errors import InputError

BEGIN, END = "<!-- rlaif data doctor -->", "<!-- /rlaif data doctor -->"


def card_of(path: Path) -> Path:
    """The card of a run folder's data set, or of a data set folder. Raises InputError where there is none."""
    for card in (path / "data" / "README.md", path / "README.md"):
        if card.is_file():
            return card
    raise InputError(f"{path}: no card there (data/README.md or README.md); give a run folder or a data set folder.")


def section(report: Report) -> str:
    """Markdown: the figures of the pairs, then the findings as a table. It quotes no text of the data."""
    figures = report.figures
    parts = [
        BEGIN,
        "## What the data doctor found",
        "",
        f"{report.rows:,} rows, {report.pairs:,} usable pairs, {figures['distinct_prompts']:,} different prompts.",
        "",
        *_balance(figures),
        *(f"* {line}" for line in _lines(report)),
        "",
    ]
    if report.findings:
        parts += ["| severity | rows | share | that | the first of them |", "|---|---|---|---|---|"]
        parts += [f"| {f.severity} | {f.count:,} | {f.share:.1%} | {f.text} | {_places(f)} |" for f in report.findings]
    else:
        parts.append("Nothing to complain about.")
    return "\n".join([*parts, END, ""])


def _balance(figures: Mapping[str, Any]) -> Iterator[str]:
    """What the chosen side has more of, and how far that alone would tell which is chosen."""
    yield "| | chosen | rejected | the chosen one has more |"
    yield "|---|---|---|---|"
    for name, kind in (("characters", "longer_wins_characters"), ("words", "longer_wins_words")):
        lean = figures[kind]
        right = f"{lean['accuracy']:.1%} of all (95 % interval {lean['low']:.1%} to {lean['high']:.1%})"
        yield f"| mean {name} | {lean['chosen_mean']:,.1f} | {lean['rejected_mean']:,.1f} | {right} |"
    for name in ("refusals", *STYLE):
        lean = figures[name]
        more = f"{lean['chosen_has_more']:.1%} of {lean['differ']:,} that differ" if lean["differ"] else "none differ"
        shares = f"{lean['chosen_share']:.1%} | {lean['rejected_share']:.1%}"
        yield f"| with {name.replace('_', ' ')} | {shares} | {more} |"
    yield ""
    accuracy = figures["longer_wins_characters"]["accuracy"]
    yield f'* "Take the longer answer", a baseline that reads nothing, is right in {accuracy:.1%} of the pairs.'


def _lines(report: Report) -> Iterator[str]:
    found = {finding.kind: finding for finding in report.findings if finding.kind != "benchmark"}
    for title, kinds in _COUNTED:
        counts = [f"{found[kind].count if kind in found else 0:,} {name}" for kind, name in kinds.items()]
        yield f"{title}: {', '.join(counts)}."
    overlap = [finding.text for finding in report.findings if finding.kind == "benchmark"]
    against = [name.removeprefix("against ") for name in report.figures if name.startswith("against ")]
    if against:
        yield f"Overlap with {', '.join(against)}: {'; '.join(overlap) or 'none'}."
    else:
        yield "Overlap with benchmarks: not looked for, none was named."
    for name in ("languages", "source"):
        if shares := report.figures.get(name):
            of = " (of a sample)" if name == "languages" else ""
            yield f"{name.capitalize()}{of}: {', '.join(f'{key} {n:,}' for key, n in shares.items())}."
    for reason in report.skipped:
        yield f"Skipped {reason}"


_COUNTED = (
    (
        "Repeats",
        {"duplicate": "duplicates", "near_duplicate": "near-duplicates", "contradiction": "contradictions"},
    ),
    ("Secrets and personal data", {"secret": "rows with a key or token", "personal": "rows with personal data"}),
)


def _places(finding: Finding) -> str:
    return ", ".join(map(str, finding.rows))


def write_section(report: Report, card: Path) -> None:
    """Put the section at the end of ``card``, in place of an earlier one."""
    text = card.read_text(encoding="utf-8")
    text = re.sub(rf"\n*{BEGIN}.*?{END}\n?", "\n", text, flags=re.DOTALL)
    card.write_text(f"{text.rstrip()}\n\n{section(report)}", encoding="utf-8")
