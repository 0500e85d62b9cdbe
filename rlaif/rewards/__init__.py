"""One composite reward from verifiers, judges, reward models and shaping: a number, or None (masked).

===============  ==================================================================================================
tree.py          the config's tree as pure functions from verdicts to a value
shaping.py       penalties, and the law that keeps them below correctness
normalise.py     running mean and standard deviation
composite.py     asks the verifiers that the tree needs; retries, checks, masks
monitor.py       what the parts of a reward do over many rows, and what looks wrong about it
selection.py     best-of-n and rejection sampling: pure
===============  ==================================================================================================

A reward model is a verifier of your own (``package.module:Class``, see `rlaif.verifiers.base`) with a ``range``.
"""

from rlaif.rewards.composite import CompositeReward, Scored, open_reward, open_run_reward
from rlaif.rewards.monitor import PartsMonitor
from rlaif.rewards.selection import best_of_n, rejection_sample

__all__ = [
    "CompositeReward",
    "PartsMonitor",
    "Scored",
    "best_of_n",
    "open_reward",
    "open_run_reward",
    "rejection_sample",
]
