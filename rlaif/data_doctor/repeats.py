"""The same or nearly the same prompts, answers and pairs."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.data_doctor.report import Finding, Tally
from rlaif.data_doctor.rows import Row
from rlaif.data_doctor.similar import Sketches, text_hash


class Repeats:
    """The same or nearly the same prompts, answers and pairs."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._prompts, self._chosen, self._rejected = array("Q"), array("Q"), array("Q")
        self._pair_sketches, self._prompt_sketches = Sketches(), Sketches()

    def add(self, row: Row) -> None:
        self._numbers.append(row.number)
        self._prompts.append(text_hash(row.prompt))
        self._chosen.append(text_hash(row.chosen))
        self._rejected.append(text_hash(row.rejected))
        self._pair_sketches.add(row.chosen_words, row.rejected_words)
        self._prompt_sketches.add(row.prompt_words)

    def findings(self, total: int) -> list[Finding]:
        return [f for kind, tally in self._tallies().items() for f in tally.finding(kind, total)]

    def figures(self) -> dict[str, Any]:
        return {"distinct_prompts": len(set(self._prompts))}

    def _tallies(self) -> dict[str, Tally]:
        """A row that counts under one of the first four kinds counts under none that follows."""
        tallies: defaultdict[str, Tally] = defaultdict(Tally)
        rows: list[int] = []
        seen: set[int] = set()
        for i, pair in enumerate(self._keys(self._prompts, self._chosen, self._rejected)):
            if pair in seen:
                tallies["duplicate"].add(self._numbers[i])
            else:
                seen.add(pair)
                rows.append(i)
        rows = self._contradictions(rows, seen, tallies["contradiction"])
        rows = self._circles(rows, tallies["circle"])
        rows = self._both_roles(rows, tallies["both_roles"])
        first: dict[int, int] = {}
        for i in rows:
            if first.setdefault(self._prompts[i], i) != i:
                tallies["repeated_prompt"].add(self._numbers[i])
        self._near(self._pair_sketches, rows, tallies["near_duplicate"])
        self._near(self._prompt_sketches, list(first.values()), tallies["near_prompt"])
        return tallies

    def _contradictions(self, rows: list[int], pairs: set[int], tally: Tally) -> list[int]:
        rest = []
        for i in rows:
            if hash((self._prompts[i], self._rejected[i], self._chosen[i])) in pairs:
                tally.add(self._numbers[i])
            else:
                rest.append(i)
        return rest

    def _circles(self, rows: list[int], tally: Tally) -> list[int]:
        edges = [(hash((self._prompts[i], self._chosen[i])), hash((self._prompts[i], self._rejected[i]))) for i in rows]
        part = _components(edges)
        rest = []
        for i, (chosen, rejected) in zip(rows, edges, strict=True):
            if part[chosen] == part[rejected]:
                tally.add(self._numbers[i])
            else:
                rest.append(i)
        return rest

    def _both_roles(self, rows: list[int], tally: Tally) -> list[int]:
        chosen = {hash((self._prompts[i], self._chosen[i])) for i in rows}
        both = chosen & {hash((self._prompts[i], self._rejected[i])) for i in rows}
        rest = []
        for i in rows:
            if any(hash((self._prompts[i], answers[i])) in both for answers in (self._chosen, self._rejected)):
                tally.add(self._numbers[i])
            else:
                rest.append(i)
        return rest

    def _near(self, sketches: Sketches, rows: list[int], tally: Tally) -> None:
        for group in sketches.groups(rows):
            for i in group[1:]:  # the first is what the others repeat
                tally.add(self._numbers[i])

    @staticmethod
    def _keys(*columns: "array[int]") -> Iterator[int]:
        return (hash(hashes) for hashes in zip(*columns, strict=True))  # of integers: the same in every process


def _components(edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The strongly connected component of each node, named by one of its nodes (Kosaraju)."""
    forward: defaultdict[int, list[int]] = defaultdict(list)
    backward: defaultdict[int, list[int]] = defaultdict(list)
    for one, other in edges:
        forward[one].append(other)
        backward[other].append(one)
    nodes = [node for edge in edges for node in edge]
    part: dict[int, int] = {}
    for node in reversed(list(_finished(nodes, forward))):
        reached = [node]
        while reached:
            if (found := reached.pop()) not in part:
                part[found] = node
                reached += backward[found]
    return part


def _finished(nodes: Sequence[int], forward: Mapping[int, list[int]]) -> Iterator[int]:
    """The nodes as a depth-first search leaves them."""
    seen: set[int] = set()
    for start in nodes:
        path = [] if start in seen else [(start, iter(forward[start]))]
        seen.add(start)
        while path:
            node, ahead = path[-1]
            following = next((other for other in ahead if other not in seen), None)
            if following is None:
                path.pop()
                yield node
            else:
                seen.add(following)
                path.append((following, iter(forward[following])))
