"""HTML pages of rlaif: self-contained, without scripts, every text escaped. ``page.html.jinja`` is what all extend."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


@cache
def page(file: Path) -> Template:
    """The template ``file``, with the filters below. Macros of a page that extends another are seen in its blocks."""
    environment = Environment(
        loader=FileSystemLoader([file.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.finalize = printable
    environment.filters |= {"count": count, "share": share, "decimal": decimal, "shorten": shorten}
    return environment.get_template(file.name)


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(value: Any) -> Any:
    """A text without what HTML cannot hold (control characters, lone surrogates); anything else as it is."""
    # A Markup stays one: it is escaped already.
    return type(value)(_CONTROL.sub("\ufffd", value)) if isinstance(value, str) else value


def count(value: Any) -> str:
    """1234567 as "1,234,567"."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def share(value: float | None) -> str:
    """0.123 as "12.3 %"; a dash for None."""
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with that many digits after the point; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


LONGEST_TEXT = 6000  # characters of one text that are shown


def shorten(text: str, limit: int = LONGEST_TEXT) -> str:
    """The first ``limit`` characters, and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"
