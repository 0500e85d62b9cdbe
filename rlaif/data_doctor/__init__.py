"""What is wrong with a preference data set before it is trained on: `rlaif data doctor`.

``examine`` reads the rows as a stream; of each it keeps hashes (less than a kilobyte a row) and never the text.
"""

from rlaif.data_doctor.examine import examine
from rlaif.data_doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
