"""The examination: one pass over the rows, each given to every check; findings at the end.

Only what a row says, never where it stands, decides what is found: the order of the rows changes no count.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.dataset import GRAM
from rlaif.data_doctor.checks import Balance, Benchmark, Check, Labels, Languages, Long, Sensitive, Truncated
from rlaif.data_doctor.repeats import Repeats
from rlaif.data_doctor.report import Report, in_order
from rlaif.data_doctor.rows import Reading
from rlaif.preferences import describe

MAX_WORDS = 1500  # prompt and the longer answer: about 2,000 tokens of English


def examine(
    source: str | Path,
    *,
    against: Sequence[Path] = (),
    limit: int | None = None,
    gram: int = GRAM,
    max_words: int = MAX_WORDS,
) -> Report:
    """What is wrong with the preference data of a run folder, file or data set folder (its first ``limit`` rows).

    ``against``: benchmark files of which no ``gram`` words in a row may stand in the data. Raises InputError where
    there is no such file, where it holds no pair at all (the message names the kind of data and what fits), or where
    ``against`` cannot be read.
    """
    checks: list[Check] = [Benchmark(path, gram) for path in against]
    languages = Languages()
    checks += [Labels(), Repeats(), Sensitive(), Balance(), Truncated(), Long(max_words), languages]
    reading = Reading(Path(source).expanduser(), limit)
    for row in reading.pairs():
        for check in checks:
            check.add(row)
    findings = reading.findings()
    figures: dict[str, Any] = {}
    for check in checks:
        findings += check.findings(reading.rows)
        figures |= check.figures()
    return Report(
        source=reading.name,
        unit=reading.unit,
        format=describe(reading.shape),
        rows=reading.rows,
        pairs=reading.usable,
        findings=in_order(findings),
        figures=figures,
        skipped=[languages.skipped] if languages.skipped else [],
    )
