"""The same or nearly the same prompts, answers and pairs."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.data_doctor.report import Finding, Tally
from rlaif.data_doctor.rows import Row
from rlaif.data_doctor.similar import PairSketches, Sketches, text_hash


class Repeats:
    """The same or nearly the same prompts, answers and pairs."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._prompts, self._chosen, self._rejected = array("Q"), array("Q"), array("Q")
        self._pair_sketches, self._prompt_sketches = PairSketches(), Sketches()

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
        for i, hashes in enumerate(zip(self._prompts, self._chosen, self._rejected, strict=True)):
            pair = hash(hashes)
            if pair in seen:
                tallies["duplicate"].add(self._numbers[i])
            else:
                seen.add(pair)
                rows.append(i)
        rows = self._contradictions(rows, seen, tallies["contradiction"])
        rows = self._ranked(rows, tallies["circle"], tallies["both_roles"])
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

    def _ranked(self, rows: list[int], circles: Tally, both_roles: Tally) -> list[int]:
        """Completions that are chosen in one row and rejected in another of their prompt: links of a ranking, or of a
        circle."""
        both = {self._node(i, self._chosen) for i in rows} & {self._node(i, self._rejected) for i in rows}
        # Only a row between two such completions can be part of a circle; these few alone become a graph.
        edges: dict[int, tuple[int, int]] = {}
        rest = []
        for i in rows:
            edge = self._node(i, self._chosen), self._node(i, self._rejected)
            if both.issuperset(edge):
                edges[i] = edge
            elif both.isdisjoint(edge):
                rest.append(i)
            else:
                both_roles.add(self._numbers[i])
        part = _components(list(edges.values()))
        for i, (chosen, rejected) in edges.items():
            (circles if part[chosen] == part[rejected] else both_roles).add(self._numbers[i])
        return rest

    def _node(self, i: int, answers: "array[int]") -> int:
        return hash((self._prompts[i], answers[i]))  # of integers: the same in every process

    def _near(self, sketches: Sketches | PairSketches, rows: list[int], tally: Tally) -> None:
        for group in sketches.groups(rows):
            for i in group[1:]:  # the first is what the others repeat
                tally.add(self._numbers[i])


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
