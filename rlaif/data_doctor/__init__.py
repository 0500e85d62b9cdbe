"""What is wrong with a preference data set before it is trained on (`rlaif data doctor`), and which rows to take out of
it (`rlaif data clean`).

``examine`` and ``find_removals`` read the rows as a stream; of each they keep hashes (less than a kilobyte a row) and
never the text.
"""

from rlaif.data_doctor.checks import read_benchmarks
from rlaif.data_doctor.examine import examine
from rlaif.data_doctor.removal import Removal, Removals, find_removals
from rlaif.data_doctor.report import Finding, Report

__all__ = ["Finding", "Removal", "Removals", "Report", "examine", "find_removals", "read_benchmarks"]
