"""Is the judge any good? Its agreement with people, its biases, its price, and what can fool it.

``check`` asks a judge about labelled pairs and writes its card; `rlaif.judging.agreement` has the statistics alone.
"""

from rlaif.judging.agreement import cohen_kappa, krippendorff_alpha, verdict_figures
from rlaif.judging.verdicts import read_pairs

__all__ = ["cohen_kappa", "krippendorff_alpha", "read_pairs", "verdict_figures"]
