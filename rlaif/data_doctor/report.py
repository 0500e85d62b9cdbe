"""What the doctor says: findings, most important first, and figures."""

import math
from typing import Any, Literal, NamedTuple

from rlaif.config.base import Config

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 5


class Kind(NamedTuple):
    """A kind of finding: how bad it is, what it says of rows, and what to do about it."""

    severity: Severity
    what: str
    advice: str


KINDS: dict[str, Kind] = {
    "secret": Kind("error", "hold a key, token or private key", "Remove it and revoke it: a model can recite it."),
    "benchmark": Kind(
        "error", "share a long passage with a benchmark", "Remove them, or figures on that benchmark mean nothing."
    ),
    "contradiction": Kind(
        "error", "stand beside the same pair with the labels swapped", "Decide which label holds, or remove both."
    ),
    "schema": Kind("error", "are no preference pair", "Correct or remove them; training stops at the first."),
    "mixed_format": Kind("error", "have another format than most rows", "Write all rows in one format."),
    "label_range": Kind(
        "error",
        "have a prob_chosen that is no probability or a margin that is no number",
        "Correct the column: soft labels are trained on as they stand.",
    ),
    "identical": Kind("error", "have the same text as chosen and rejected", "Remove them; nothing is preferred."),
    "empty_answer": Kind("error", "have an empty answer", "Remove them; a failure upstream left them."),
    "no_prompt": Kind("error", "have no prompt", "Add the prompt; an answer to nothing teaches style alone."),
    "duplicate": Kind("warning", "repeat an earlier row", "Remove the repeats; they count twice and leak into tests."),
    "near_duplicate": Kind(
        "warning", "are nearly the answers of another row", "Keep one of each group, or split train and test by group."
    ),
    "circle": Kind(
        "warning", "prefer in a circle (A > B > C > A)", "Drop such rows: no reward can agree with all of them."
    ),
    "label_side": Kind(
        "warning", "have a prob_chosen below 0.5", "Swap chosen and rejected there, or correct the column."
    ),
    "tie": Kind("note", "are ties by their own label", "Raise pairing.min_margin, or train on soft labels."),
    "personal": Kind(
        "warning", "hold an e-mail address, phone or card number, IBAN or IP address", "Mask or remove them."
    ),
    "language": Kind("warning", "have chosen and rejected in two languages", "Check that language is meant to decide."),
    "length_bias": Kind(
        "warning", "are decided by length", "Balance the lengths, or compare with this baseline after training."
    ),
    "style_bias": Kind("warning", "are decided by style", "Balance the style, or the model learns it for content."),
    "refusal_bias": Kind(
        "warning", "are decided by which answer refuses", "Intended in harmlessness data; else balance the two sides."
    ),
    "truncated": Kind("note", "have an answer that stops in mid-sentence", "Raise max_tokens upstream, or drop them."),
    "both_roles": Kind(
        "note",
        "have a completion that is chosen in one row and rejected in another of its prompt",
        "Right for rankings (A > B > C); else check the labels.",
    ),
    "repeated_prompt": Kind(
        "note", "have the prompt of an earlier row with other answers", "Split train and test by prompt."
    ),
    "near_prompt": Kind("note", "have nearly the prompt of another row", "Split train and test by such groups."),
    "long": Kind("note", "are longer than the limit", "Check max_length of the training: what is cut is not learned."),
}


class Finding(Config):
    """``count`` rows (or pairs that differ, for a bias) of which ``rows`` are the first few places. ``share`` is of all
    rows, for a bias of the pairs it is about."""

    kind: str
    severity: Severity
    count: int
    share: float
    rows: list[int]
    text: str
    advice: str


class Report(Config):
    """``rows`` read, ``pairs`` of them usable. ``unit``: what the numbers in ``Finding.rows`` count, lines of the file
    or rows. ``skipped``: checks that did not run, and why."""

    source: str
    unit: Literal["line", "row"]
    format: str
    rows: int
    pairs: int
    findings: list[Finding]
    figures: dict[str, Any]
    skipped: list[str]

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps: counts, first places and figures, without the words around them."""
        found = [finding.model_dump(exclude={"text", "advice"}) for finding in self.findings]
        return {"rows": self.rows, "pairs": self.pairs, "findings": found, "figures": self.figures}

    def ok(self, *, strict: bool = False) -> bool:
        return not self.count("error") and not (strict and self.count("warning"))


class Tally:
    """How many rows have a problem, and the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []
        self.kinds: dict[str, int] = {}

    def add(self, row: int, *kinds: str) -> None:
        self.count += 1
        self.rows = sorted([*self.rows, row])[:EXAMPLES]
        for kind in kinds:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def finding(self, kind: str, total: int, *, severity: Severity | None = None, detail: str = "") -> list[Finding]:
        """The finding, or none where no row was counted."""
        if not self.count:
            return []
        detail = detail or ", ".join(f"{n} {name}" for name, n in sorted(self.kinds.items()))
        return [finding(kind, self.count, total, self.rows, severity=severity, detail=detail)]


def finding(
    kind: str, count: int, total: int, rows: list[int], *, severity: Severity | None = None, detail: str = ""
) -> Finding:
    default, what, advice = KINDS[kind]
    return Finding(
        kind=kind,
        severity=severity or default,
        count=count,
        share=count / total,
        rows=rows,
        text=what + (f" ({detail})" if detail else ""),
        advice=advice,
    )


def in_order(findings: list[Finding]) -> list[Finding]:
    """Most important first: by severity, then as in `KINDS`."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind), f.text))


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); half successes, for ties, are allowed."""
    z = 1.959964
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
