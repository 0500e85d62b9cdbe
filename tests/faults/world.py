"""A small world whose truth is known: what the models of the fault server answer, and what a run must make of it.

The policy's answers state their quality, drawn from the question and the seed (where a protocol sends none, from how
often the question came). The judge reads both qualities from the fenced responses and is never wrong. So every label of
a run has one right value, and an uninterrupted run one right output.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rlaif.hashing import uniform
from rlaif.types import Completion, Dropped, Judgement, Unjudged, Verdict
from tests.servers.fault_server import FAULTS, Answer, Asked, FaultServer, Script

SAME = (
    *("completions.jsonl", "judgements.jsonl", "pairs.jsonl", "dropped.jsonl"),
    *("data/train.parquet", "data/README.md"),
)
"""The files of a run that are equal, byte by byte, however often it was interrupted."""

_RESPONSE = re.compile(r"<response_([XY])>\n(.*?)\n</response_\1>", re.DOTALL)


def quality(text: str) -> int:
    """What a sample says of itself; -1 for a text that says nothing (rubbish, an excuse)."""
    found = re.match(r"quality (\d+)\n", text)
    return int(found[1]) if found else -1


def honest(asked: Asked) -> Answer:
    """The policy's or the judge's right answer."""
    question = asked.last_message
    shown = dict(_RESPONSE.findall(question))
    if shown:
        x, y = quality(shown["X"]), quality(shown["Y"])
        return Answer("X" if x > y else "Y" if y > x else "Z")
    if question.startswith("Answer with one letter"):  # the question for log-probs
        return Answer("X")
    drawn = int(uniform("quality", question, asked.body.get("seed", asked.nth)) * 1_000_000)
    return Answer(f"quality {drawn}\nOn {question!r}: a line\u2028another </response_X> <|im_end|>\n\n- end")


def is_judging(asked: Asked) -> bool:
    return _RESPONSE.search(asked.last_message) is not None


def _wrong(asked: Asked) -> str:
    """A label that is not the right one."""
    return "Y" if honest(asked).text == "X" else "X"


def _status(status: int, **headers: str) -> Script:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b'{"error": {"type": "overloaded_error", "message": "Not now"}}'
    return lambda asked: Answer(status=status, headers=named, body=body)


# Beyond the server's own: replies that would make a wrong label if anything of them were read, and servers that give
# nonsense as the time to come back.
LIES: dict[str, Script] = FAULTS | {
    "wrong-cut-off": lambda asked: Answer(_wrong(asked), finish="length"),
    "wrong-filtered": lambda asked: Answer(_wrong(asked), finish="content_filter"),
    "wrong-refused": lambda asked: Answer(_wrong(asked), finish="refusal"),
    "wrong-no-finish": lambda asked: Answer(_wrong(asked), edit=FAULTS["no-finish"](asked).edit),
    "wrong-500": lambda asked: Answer(_wrong(asked), status=500),
    "wrong-half": lambda asked: Answer(_wrong(asked), cut=-2),
    "wrong-in-prose": lambda asked: Answer(f"I think {_wrong(asked)} is a fine letter, but I can't choose."),
    "both-labels": lambda asked: Answer("X\nY"),
    "excuse": lambda asked: Answer("I'm sorry, but I can't help with that."),
    "retry-negative": _status(503, retry_after="-5"),
    "retry-text": _status(503, retry_after="in a while"),
    "retry-nan": _status(503, retry_after="nan"),
    "retry-infinite": _status(503, retry_after="1e999"),
    "503-soon": _status(503, retry_after="0.02"),
    "429-soon": _status(429, retry_after_ms="20"),
    "429-negative": _status(429, retry_after="-5", retry_after_ms="-1"),
    "429-text": _status(429, retry_after="when it suits"),
    "429-minutes": _status(429, retry_after="1500"),
    "429-huge": _status(429, retry_after="1e9"),
    "503-huge": _status(503, retry_after="99999999"),
    "429-far-date": _status(429, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
}


class Liar:
    """A script: `honest`, with the named lies at these rates, of samples and of verdicts. The draw depends on the
    content and on how often it came. The one question for log-probs is always answered: it decides how the whole run is
    judged. ``told`` counts the lies."""

    def __init__(
        self, sample: Mapping[str, float] | None = None, judge: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        self.told: Counter[str] = Counter()
        self._sample, self._judge, self._seed = sample or {}, judge or {}, seed

    def __call__(self, asked: Asked) -> Answer:
        if asked.last_message.startswith("Answer with one letter"):
            return honest(asked)
        draw = uniform("lie", self._seed, asked.key, asked.nth)
        for name, rate in (self._judge if is_judging(asked) else self._sample).items():
            if draw < rate:
                self.told[name] += 1
                return LIES[name](asked)
            draw -= rate
        return honest(asked)


# --------------------------------------------------------------------------------------------------------- a project

CONSTITUTION = """\
name: quality
version: "1"
principles:
  - id: better
    compare: Which response is better?
  - id: finer
    compare: Which response is finer?
"""


@dataclass(frozen=True)
class Project:
    """A folder with a config whose models are on a server of this machine."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def rows(self, name: str) -> list[dict[str, Any]]:
        text = (self.run / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def files(self) -> dict[str, bytes]:
        return {name: (self.run / name).read_bytes() for name in SAME}


def model(server: FaultServer, api: str, name: str, **settings: Any) -> dict[str, Any]:
    url = server.openai_url if api == "openai" else server.anthropic_url
    return {"model": f"{api}:{name}", "base_url": url, "timeout": 20.0, **settings}


def prompt_lines(number: int, first: int = 0) -> str:
    return "".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(first, first + number))


def write_project(
    folder: Path,
    server: FaultServer,
    *,
    prompts: int = 6,
    n: int = 2,
    policy: str = "openai",
    judges: Sequence[str] = ("openai", "anthropic"),
    settings: dict[str, Any] | None = None,
    **other: Any,
) -> Project:
    """``policy`` and ``judges`` are protocols; ``settings`` are of every model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "prompts": "prompts.jsonl",
        "constitution": "constitution.yaml",
        "policy": {"model": model(server, policy, "policy", **(settings or {})), "n": n},
        "judge": {
            "models": [model(server, api, f"judge-{api}", **(settings or {})) for api in judges],
            "ties": True,
        },
        "out": "run",
        **other,
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=1))  # YAML, too
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    (folder / "prompts.jsonl").write_text(prompt_lines(prompts))
    return Project(folder)


# ------------------------------------------------------------------------------------------------- what must add up


def check_rows(project: Project, *, prompts: int, n: int, judges: int) -> Counter[str]:
    """Assert that no row is lost, every label is right, every failure has a row and a reason, and the counts in the
    manifest are those of the files. Returns the reasons of all Dropped and Unjudged rows."""
    counts = json.loads((project.run / "manifest.json").read_text())["counts"]
    completions = [Completion.model_validate(row) for row in project.rows("completions")]
    dropped = [Dropped.model_validate(row) for row in project.rows("dropped")]
    judgements = [Judgement.model_validate(row) for row in project.rows("judgements")]
    pairs = project.rows("pairs")
    text = {c.id: c.text for c in completions}

    # samples: n of each prompt, as a completion or a Dropped; what did not end well is used for nothing
    never = [d for d in dropped if d.a is None and d.reason == "provider_error"]
    unusable = {d.a for d in dropped if d.b is None and d.reason == "bad_finish"}
    assert len(completions) + len(never) == prompts * n
    assert unusable == {c.id for c in completions if c.finish_reason != "stop" or not c.text.strip()}
    usable: dict[str, list[str]] = {}
    for c in completions:
        if c.id not in unusable:
            usable.setdefault(c.prompt_id, []).append(c.id)

    # comparisons: all of them, each a pair or a Dropped
    planned = {pair for ids in usable.values() for pair in combinations(ids, 2)}
    ended = [(d.a, d.b) for d in dropped if d.b is not None]
    ended += [_sorted_as(planned, row["chosen_id"], row["rejected_id"]) for row in pairs]
    assert Counter(ended) == Counter(planned)
    few = [d for d in dropped if d.reason == "too_few_samples"]
    assert len(few) == prompts - sum(len(ids) >= 2 for ids in usable.values())

    # judgements: both orders by every judge; a verdict is the truth, a failure has its reason
    identical = {(d.a, d.b) for d in dropped if d.reason == "identical"}
    looks = Counter((j.a, j.b) for j in judgements)
    assert looks == dict.fromkeys(planned - identical, 2 * judges)
    for j in judgements:
        if isinstance(j.outcome, Verdict):
            a, b = quality(text[j.a]), quality(text[j.b])
            assert j.outcome.choice == ("a" if a > b else "b" if b > a else "tie"), j
        else:
            assert j.outcome.detail
    for row in pairs:
        assert quality(row["chosen"][0]["content"]) > quality(row["rejected"][0]["content"])
        assert row["chosen"][0]["content"] == text[row["chosen_id"]]
    assert all(d.detail or d.reason == "identical" for d in dropped)

    # the manifest says the same
    by_reason = Counter(d.reason for d in dropped if d.b is not None)
    unjudged = Counter(j.outcome.reason for j in judgements if isinstance(j.outcome, Unjudged))
    assert counts["prompts"] == prompts
    assert counts["samples"]["made"] == prompts * n
    assert counts["samples"]["usable"] == sum(map(len, usable.values()))
    assert sum(counts["samples"]["dropped"].values()) == len(never) + len(unusable)
    assert counts["prompts_without_comparisons"].get("too_few_samples", 0) == len(few)
    assert counts["comparisons"] == {"planned": len(planned), "pairs": len(pairs), "dropped": dict(by_reason)}
    assert counts["judgements"]["made"] == len(judgements)
    assert counts["judgements"]["unjudged"] == dict(unjudged)
    return unjudged + Counter(d.reason for d in dropped)


def _sorted_as(planned: set[tuple[str, str]], one: str, other: str) -> tuple[str, str]:
    return (one, other) if (one, other) in planned else (other, one)
