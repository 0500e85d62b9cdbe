"""What a run's judging came to besides its verdicts, for the manifest: what ``orders: auto`` saved and lost, how often
each judge of a panel was asked, and which position it prefers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config.generate import JudgeConfig
from rlaif.judges.orders import OrderStats
from rlaif.judges.position import PositionPriors
from rlaif.panel import PROGRAM
from rlaif.types import Judgement


class JudgingStats:
    """Counted from the judgements alone, so that a run computed again from its ledger says the same."""

    def __init__(self, config: JudgeConfig, seed: int) -> None:
        self._config = config
        self.orders = OrderStats(seed, config.sure, config.audit)
        self.position = PositionPriors(config, seed)
        self._comparisons = 0
        self._asked: Counter[str] = Counter()  # by judge: comparisons
        self._requests: Counter[str] = Counter()

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Count one prompt's judgements."""
        self.orders.add(judgements)
        self.position.add(judgements)
        by_model = [j for j in judgements if j.judge != PROGRAM]
        self._comparisons += len({(j.a, j.b) for j in by_model})
        self._asked.update(judge for judge, _, _ in {(j.judge, j.a, j.b) for j in by_model})
        keys = {(j.judge, key) for j in by_model for key in j.request_keys}
        self._requests.update(judge for judge, _ in keys)

    def report(self) -> dict[str, Any]:
        """``orders`` with `orders: auto`, ``panel`` where several models judge, ``position`` where pairs are shown and
        label probabilities read."""
        found: dict[str, Any] = {}
        if position := self.position.report():
            found["position"] = position
        if self._config.orders == "auto":
            found["orders"] = self.orders.report()
        if len(self._config.models) > 1:
            found["panel"] = self._panel()
        return found

    def _panel(self) -> dict[str, Any]:
        """``saved``: of the comparisons, the share each judge was not asked about (with `panel: escalate`); all of them
        where the judges before it were always clear."""
        total = self._comparisons
        names = dict.fromkeys([*(model.model for model in self._config.models), *sorted(self._asked)])
        return {
            "rule": self._config.panel,
            "comparisons": total,
            "asked": {judge: self._asked[judge] for judge in names},
            "requests": {judge: self._requests[judge] for judge in names},
            "saved": {judge: round(1 - self._asked[judge] / total, 6) for judge in names} if total else {},
        }


def in_words(manifest: Mapping[str, Any]) -> list[str]:
    """What `JudgingStats` put into a manifest of what was saved and what that lost, a sentence each."""
    said = []
    if orders := manifest.get("orders"):
        said.append(f"orders: auto showed {orders['asked_twice']} of {orders['questions']} questions twice")
        if audited := orders["audited"]:
            otherwise = orders["audited_decided_otherwise_by_two"]
            said[0] += f"; of {audited} audited, one look would have decided {otherwise} otherwise"
    panel = manifest.get("panel") or {}
    if panel.get("rule") == "escalate":
        for judge, saved in panel["saved"].items():
            asked = f"{judge} was asked about {panel['asked'][judge]} of {panel['comparisons']} comparisons"
            said.append(f"{asked} ({saved:.1%} saved)")
    return said
