"""The vocabulary of rewards: one tree, written the same way for `generate`, training and best-of-n.

    reward:
      first_decided:                # the rule; the judge only where the rule abstains
        - math                      # short for {verifier: math}
        - verifier: judge
          options: {model: "openai:gpt-4.1-mini"}

A node is exactly one of

=================  =====================================================================================================
``verifier``       a leaf: a name of `rlaif.verifiers`, or ``package.module:Class`` of your own (a reward model, say)
``weighted_sum``   the mean of its parts by ``weight``
``product``        of parts that range from 0 to 1
``min``            the worst part counts
``gate``           ``then`` counts only where ``condition`` is met; else the lowest value of ``then``
``first_decided``  the first part that decides; it abstains where the completion has no answer that it could read
``route``          by a column of the task
``shaping``        small penalties that never lift a wrong answer above a right one (the law: `rlaif.rewards.shaping`)
``normalise``      by running mean and standard deviation
=================  =====================================================================================================

Every node has a range, known when the config is read; parts that stand for one another must have the same. A key that
would do nothing where it stands (a ``weight`` outside of a sum) is an error.

Not covered: in training, a policy may learn to leave its answer unreadable to the rule because the judge behind it is
kinder. Put a `gate` on the form around `first_decided` where that matters, and watch the judge's share in the logs.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from rlaif.config.base import Config, Path_
from rlaif.types import Identifier

Range = tuple[float, float]
KINDS = ("verifier", "weighted_sum", "product", "min", "gate", "first_decided", "route", "shaping", "normalise")


def _from_name(value: Any) -> Any:
    return {"verifier": value} if isinstance(value, str) else value


NodeRef = Annotated["Node", BeforeValidator(_from_name)]
Nodes = Annotated[list[NodeRef], Field(min_length=1)]


class Gate(Config):
    """``at_least``: the value of ``condition`` from which the gate is open (default: its highest)."""

    condition: NodeRef
    then: NodeRef
    at_least: float | None = None

    @model_validator(mode="after")
    def _can_open_and_close(self) -> Self:
        low, high = self.condition.bounds
        if self.at_least is not None and not low < self.at_least <= high:
            raise ValueError(
                f"at_least {self.at_least:g} is outside of the condition's range, {_shown((low, high))}:"
                " the gate would always be open, or never"
            )
        if any(node.kind in ("normalise", "shaping") for _, node in self.condition.walk()):
            raise ValueError(
                "a condition is neither normalised nor shaped: it is met by what it says of this row alone"
            )
        return self


class Route(Config):
    """``by``: a column of the task; dots lead into mappings (``metadata.kind``). A value without a case takes
    ``default``; without a default, the task is wrong."""

    by: str = Field(min_length=1)
    cases: dict[str, NodeRef] = Field(min_length=1)
    default: NodeRef | None = None


class LengthPenalty(Config):
    """None up to ``free``, then rising evenly, full from ``full`` on."""

    free: int = Field(ge=0)
    full: int = Field(gt=0)
    unit: Literal["words", "characters", "tokens"] = "words"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.free >= self.full:
            raise ValueError(f"free {self.free} must be below full {self.full}")
        return self


class OverlongPenalty(Config):
    """For completions near the length at which they are cut off: none up to ``limit - buffer``, full at ``limit``
    (soft overlong punishment of DAPO, Yu et al., arXiv 2503.14476, eq. 13). ``limit``: max_completion_length."""

    limit: int = Field(gt=0)
    buffer: int = Field(gt=0)
    unit: Literal["words", "characters", "tokens"] = "tokens"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.buffer > self.limit:
            raise ValueError(f"buffer {self.buffer} is above limit {self.limit}")
        return self


class RepetitionPenalty(Config):
    """None while at most ``free`` of the n-grams of words stood before; full when all did."""

    n: int = Field(4, ge=1, le=20)
    free: float = Field(0.2, ge=0, lt=1)


class Shaping(Config):
    """``at_most``: all penalties together, as a share of the range of ``of``. ``among``: penalise only fully correct
    completions (the others are not told to be short as well), or all."""

    of: NodeRef
    length: LengthPenalty | None = None
    overlong: OverlongPenalty | None = None
    repetition: RepetitionPenalty | None = None
    at_most: float = Field(0.1, ge=0.001, le=0.4)
    among: Literal["correct", "all"] = "correct"

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.length or self.overlong or self.repetition):
            raise ValueError("give at least one of length, overlong, repetition")
        if any(node.kind == "normalise" for _, node in self.of.walk()):
            raise ValueError("what is normalised has no right or wrong; put 'normalise' around 'shaping' instead")
        if any(node.kind == "shaping" for _, node in self.of.walk()):
            raise ValueError("shaped twice: no law would hold for both together; put all penalties into one 'shaping'")
        return self

    @property
    def budget(self) -> float:
        """The most that is ever taken off."""
        low, high = self.of.bounds
        return self.at_most * (high - low)


class Normalise(Config):
    """(value - mean) / standard deviation of all values so far, cut off at ``clip`` deviations."""

    of: NodeRef
    clip: float = Field(5.0, gt=0)

    @model_validator(mode="after")
    def _only_once(self) -> Self:
        if any(node.kind == "normalise" for _, node in self.of.walk()):
            raise ValueError("normalised twice; remove the inner one")
        return self


class Node(Config):
    """One node (see the header). ``name``: what it is called in logs (else the verifier, or the key).

    Of a leaf: ``options`` for the verifier; ``range`` of its values, checked (default: 0 to 1); ``seconds`` for a
    verdict, with all retries. Within a sum: ``weight``. Within a sum, product or min: ``required: false`` leaves the
    part out, and shares its weight among the others, where it does not decide; a required part masks the row.
    """

    verifier: str | None = Field(None, min_length=1)
    weighted_sum: Nodes | None = None
    product: Nodes | None = None
    min: Nodes | None = None
    gate: Gate | None = None
    first_decided: Nodes | None = None
    route: Route | None = None
    shaping: Shaping | None = None
    normalise: Normalise | None = None

    name: Identifier | None = None
    options: dict[str, Any] = {}
    range: Range | None = None
    seconds: float = Field(600.0, gt=0)
    weight: float = Field(1.0, gt=0, le=1e6)
    required: bool = True

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: Range | None) -> Range | None:
        if value is not None and not (value[0] < value[1] and max(map(abs, value)) <= 1e9):
            raise ValueError(f"write [lowest, highest], such as [0, 1] (found [{value[0]:g}, {value[1]:g}])")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none"
            raise ValueError(f"a reward has exactly one of {', '.join(KINDS)} ({found})")
        if self.verifier is None:
            for key in ("options", "range", "seconds"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key!r} belongs to a verifier, not to {given[0]!r}")
        return self

    @model_validator(mode="after")
    def _children_fit(self) -> Self:
        children = self.children
        for place, child in children:
            where = ".".join(map(str, place))
            if self.weighted_sum is None:
                _no_key(child, "weight", where, "counts only within a weighted_sum")
            if self.kind not in ("weighted_sum", "product", "min"):
                _no_key(child, "required", where, "counts only within a weighted_sum, product or min")
        ranges = [child.bounds for _, child in children]
        if self.product is not None and (other := next((r for r in ranges if r != (0.0, 1.0)), None)):
            raise ValueError(f"a product multiplies shares: its parts must range from 0 to 1 (found {_shown(other)})")
        same = self.kind in ("min", "first_decided", "route")
        optional = self.weighted_sum is not None and not all(child.required for _, child in children)
        if (same or optional) and len(set(ranges)) > 1:
            why = "a part that may be left out" if optional else f"the parts of {self.kind}"
            shown = " and ".join(sorted({_shown(r) for r in ranges}))
            raise ValueError(f"{why} must have the same range as the others (found {shown})")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def children(self) -> list[tuple[Path_, "Node"]]:
        """The nodes directly below, each with its place."""
        if self.verifier is not None:
            return []
        below = getattr(self, self.kind)
        if isinstance(below, list):
            return [((self.kind, i), child) for i, child in enumerate(below)]
        if isinstance(below, Gate):
            return [(("gate", "condition"), below.condition), (("gate", "then"), below.then)]
        if isinstance(below, Route):
            cases: list[tuple[Path_, Node]] = [(("route", "cases", key), node) for key, node in below.cases.items()]
            return cases + ([(("route", "default"), below.default)] if below.default else [])
        return [((self.kind, "of"), below.of)]

    def walk(self, at: Path_ = ()) -> Iterator[tuple[Path_, "Node"]]:
        """This node and all below, each with its place in the document."""
        yield at, self
        for place, child in self.children:
            yield from child.walk(at + place)

    @property
    def part(self) -> str:
        """What this node is called in logs and saved states."""
        return self.name or (self.verifier or self.kind).rpartition(":")[2]

    @property
    def bounds(self) -> Range:
        """The lowest and highest value there can be; the highest means fully correct."""
        if self.verifier is not None:
            return self.range or (0.0, 1.0)
        if self.weighted_sum is not None:
            parts = [(child.bounds, child.weight) for child in self.weighted_sum]
            if len({bounds for bounds, _ in parts}) == 1:
                return parts[0][0]
            total = sum(weight for _, weight in parts)
            low, high = (sum(bounds[end] * weight for bounds, weight in parts) / total for end in (0, 1))
            return low, high
        if self.gate is not None:
            return self.gate.then.bounds
        if self.shaping is not None:
            low, high = self.shaping.of.bounds
            return (low - self.shaping.budget if self.shaping.among == "all" else low), high
        if self.normalise is not None:
            return -self.normalise.clip, self.normalise.clip
        return self.children[0][1].bounds  # all alike


def _no_key(node: Node, key: str, where: str, why: str) -> None:
    if key in node.model_fields_set:
        raise ValueError(f"{where}: {key!r} {why}; remove it")


def _shown(bounds: Range) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"


def _as_root(root: Node) -> Node:
    _no_key(root, "weight", "reward", "counts only within a weighted_sum")
    _no_key(root, "required", "reward", "counts only within a weighted_sum, product or min")
    parts = [node.part for _, node in root.walk() if node.name or node.kind in ("verifier", "shaping", "normalise")]
    twice = sorted({part for part in parts if parts.count(part) > 1})
    if twice:
        raise ValueError(f"two parts are called {twice[0]!r}; give one of them a 'name' of its own")
    return root


def _as_written(node: Node) -> dict[str, Any]:
    # A key that would do nothing where it stands is an error, and a default that is written is a key.
    return node.model_dump(mode="json", exclude_unset=True)


RewardConfig = Annotated[
    Node, BeforeValidator(_from_name), AfterValidator(_as_root), PlainSerializer(_as_written, when_used="json")
]

for _model in (Gate, Route, Shaping, Normalise, Node):
    _model.model_rebuild()
