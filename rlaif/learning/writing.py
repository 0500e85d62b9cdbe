"""The constitution as YAML, with what was measured of each principle as a comment above it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlaif.checks import describe
from rlaif.types import Principle


def constitution_yaml(stem: str, report: Mapping[str, Any], kept: Sequence[Principle], command: str) -> str:
    """The file. Without a principle it is one that no command accepts, so that nobody uses it unread."""
    data = report["data"]
    title = "Learned from labelled pairs" if report["learned"] else "NOTHING WAS LEARNED"
    head = [
        f"{title}: {report['finding']}",
        f"{data['pairs']} pairs of {data['source']} (digest {data['digest']}): {data['read']} read by"
        f" {report['proposed_by']}, {data['choosing']} to choose on, {data['held_out']} held out.",
        *_baselines(report),
        *([f"Made by: {command}"] if command else []),
    ]
    values: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "learned",
        "version": "1",
        "description": _line(f"Learned from {data['pairs']} labelled pairs; tested by {report['judge']}."),
    }
    lines = [f"# {_line(line)}" for line in head] + [_dump(values).rstrip()]
    if not kept:
        return "\n".join([*lines, "principles: []", ""])
    lines.append("principles:")
    for principle, measured in zip(kept, report["kept"], strict=True):
        lines.append("")
        lines += [f"  # {_line(comment)}" for comment in _comments(principle, measured)]
        block = _dump([principle.model_dump(mode="json", exclude_defaults=True, by_alias=True)])
        lines += ["  " + line for line in block.rstrip().split("\n")]
    return "\n".join(lines) + "\n"


def _baselines(report: Mapping[str, Any]) -> list[str]:
    if report["together"] is None:
        return []
    said = [
        ("all principles together", report["together"]),
        ("the opposite of all", report["flipped"]),
        ('the judge without any ("Which response is better?")', report["none"]),
    ]
    return [f"Held out: {name}: {_figures(f)}." for name, f in said]


def _comments(principle: Principle, measured: Mapping[str, Any]) -> list[str]:
    times = "once" if measured["proposed"] == 1 else f"{measured['proposed']} times"
    whence = {"program": "A program", "proposed": f"Proposed {times}"}.get(
        measured["whence"], f"From {measured['whence']}"
    )
    what = f" ({describe(principle.check)})" if principle.check else ""
    return [
        f"Held out: {_figures(measured['held_out'])}.",
        f"{whence}{what}; where it was chosen: {_figures(measured['choosing'])},"
        f" by chance in {_percent(measured['by_chance'])} of shuffled labels.",
    ]


def _figures(f: Mapping[str, Any]) -> str:
    a, decided = f["accuracy"], f["right"] + f["wrong"]
    if a["value"] is None:
        return f"decides none of {f['pairs']} pairs"
    interval = f" ({_percent(a['low'])} to {_percent(a['high'])})" if a["low"] is not None else ""
    missing = f", {f['unjudged']} without a verdict" if f["unjudged"] else ""
    return f"{_percent(a['value'])} as labelled{interval} of the {decided} of {f['pairs']} pairs it decides{missing}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _line(text: str) -> str:
    """One line of what YAML can hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
