"""Learn a constitution from labelled pairs: which principles explain what people chose?

    from rlaif.learning import LearnConfig, learn
    learned = learn(LearnConfig(data="labelled.jsonl", model="local:smollm2", judge={"models": ["local:smollm2"]},
                                out="mine.yaml"))
    learned.report["together"]["accuracy"]

A model reads some of the pairs and proposes principles (inverse constitutional AI: Findeis et al. 2024, arXiv
2406.06560); beside them stand checks that a program can decide. Each is tested as the judge will use it, on pairs that
the proposing model has not seen; few are kept, and these are measured on pairs that decided nothing.
"""

from rlaif.learning.learn import LearnConfig, Learned, learn
from rlaif.learning.votes import KeepRule

__all__ = ["KeepRule", "LearnConfig", "Learned", "learn"]
