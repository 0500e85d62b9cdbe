"""The doctor's summary as a section of a data set's card (README.md)."""

import re
from pathlib import Path

from rlaif.data_doctor.report import Report
from rlaif.errors import InputError

BEGIN, END = "<!-- rlaif data doctor -->", "<!-- /rlaif data doctor -->"


def card_of(path: Path) -> Path:
    """The card of a run folder's data set, or of a data set folder. Raises InputError where there is none."""
    for card in (path / "data" / "README.md", path / "README.md"):
        if card.is_file():
            return card
    raise InputError(f"{path}: no card there (data/README.md or README.md); give a run folder or a data set folder.")


def section(report: Report) -> str:
    """Markdown: the figures in a line each, then the findings as a table. It quotes no text of the data."""
    lines = [BEGIN, "## What the data doctor found", "", f"{report.rows:,} rows, {report.pairs:,} usable pairs.", ""]
    if baseline := report.figures.get("longer_wins_characters"):
        low, high = baseline["low"], baseline["high"]
        told = f"right in {baseline['accuracy']:.1%} of pairs (95 % interval {low:.1%} to {high:.1%})"
        lines.append(f'* "Take the longer answer" is {told}.')
    if refusals := report.figures.get("refusals"):
        chosen, rejected = refusals["chosen_share"], refusals["rejected_share"]
        lines.append(f"* Refusals: {chosen:.1%} of chosen, {rejected:.1%} of rejected answers.")
    for name in ("languages", "source"):
        if shares := report.figures.get(name):
            lines.append(f"* {name.capitalize()}: {', '.join(f'{key} {n:,}' for key, n in shares.items())}.")
    lines.append("")
    if report.findings:
        lines += ["| severity | rows | share | that |", "|---|---|---|---|"]
        lines += [f"| {f.severity} | {f.count:,} | {f.share:.1%} | {f.text} |" for f in report.findings]
    else:
        lines.append("Nothing to complain about.")
    return "\n".join([*lines, END, ""])


def write_section(report: Report, card: Path) -> None:
    """Put the section at the end of ``card``, in place of an earlier one."""
    text = card.read_text(encoding="utf-8")
    text = re.sub(rf"\n*{BEGIN}.*?{END}\n?", "\n", text, flags=re.DOTALL)
    card.write_text(f"{text.rstrip()}\n\n{section(report)}", encoding="utf-8")
