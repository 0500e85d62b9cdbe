"""Is the judge any good? Its agreement with people, its biases, its price, and what can fool it.

    from rlaif.judging import CheckConfig, check
    card = check(CheckConfig(data="labelled.jsonl", judge={"models": ["local:smollm2"]}, out="runs/card"))
    card.kappa, card.report["swap_consistency"]

The statistics alone, without a judge: `rlaif.judging.agreement`, `calibration` and `bias`.
"""

from rlaif.judging.agreement import cohen_kappa, krippendorff_alpha, verdict_figures
from rlaif.judging.card import Card, CheckConfig, check
from rlaif.judging.verdicts import read_pairs

__all__ = ["Card", "CheckConfig", "check", "cohen_kappa", "krippendorff_alpha", "read_pairs", "verdict_figures"]
