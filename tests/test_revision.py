"""Critique and revision: what is asked, what is kept, and that only what beats its draft is chosen."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.revision import RevisionConfig
from rlaif.constitution import constitution_from_text
from rlaif.errors import InputError, RequestError
from rlaif.estimate import estimate
from rlaif.revision import Reviser
from rlaif.types import ChatReply, ChatRequest
from tests import fakes, running
from tests.judges.test_pairwise import PROMPT, comparison
from tests.running import judgements, quality, rows, run

CONSTITUTION = """
name: quality
version: "1"
principles:
  - {id: better, compare: "Which response is better?"}
  - {id: brief, critique: "What is too long?", revise: Shorten it.}
  - {id: kind, critique: "What is unkind?", revise: Make it kinder.}
  - {id: half, critique: "What is half?"}
"""
PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]


def reviser(script: Script, **settings: Any) -> Reviser:
    config = RevisionConfig.model_validate(settings)
    return Reviser(ScriptedClient(script), config, constitution_from_text(CONSTITUTION, "c"))


def numbered(request: ChatRequest) -> str:
    text = request.messages[1].content
    if "<response_critique>" not in text:
        return "Too long."
    return f"version {int(text.split('version ')[1][0]) + 1}"


async def test_every_version_is_kept_and_names_the_one_it_was_made_from() -> None:
    draft = comparison("version 0", "b").a
    made = reviser(numbered, steps=3)
    (found,) = await made.revise_all(PROMPT, [draft, comparison().b], 0)
    assert [v.text for v in found.versions] == ["version 1", "version 2", "version 3"]
    assert [v.revised_from for v in found.versions] == [draft.id, *(v.id for v in found.versions[:-1])]
    assert found.final is not None
    assert found.final.text == "version 3"
    assert len({v.id for v in found.versions}) == 3


async def test_critique_and_revision_of_a_step_follow_one_principle_which_is_drawn_for_each_step() -> None:
    made = reviser(numbered, steps=8)
    await made.revise_all(PROMPT, [comparison("version 0", "b").a], 0)
    assert isinstance(made.client, ScriptedClient)
    sent = [r.messages[1].content for r in made.client.requests]
    principles = []
    for critique, revision in zip(sent[::2], sent[1::2], strict=True):
        one = "long" if critique.endswith("What is too long?") else "unkind"
        assert one == "long" or critique.endswith("What is unkind?")
        assert revision.endswith({"long": "Shorten it.", "unkind": "Make it kinder."}[one])
        principles.append(one)
    assert set(principles) == {"long", "unkind"}


async def test_the_draw_depends_on_nothing_but_seed_and_rows() -> None:
    draft = comparison("version 0", "b").a
    one, two = [(await reviser(numbered, steps=4).revise_all(PROMPT, [draft], 7))[0].versions for _ in range(2)]
    assert one == two


@pytest.mark.parametrize("where", ["critique", "revision"])
@pytest.mark.parametrize("fault", ["length", "content_filter", "empty", "error"])
async def test_a_step_that_fails_ends_the_chain_without_a_revision(where: str, fault: str) -> None:
    def script(request: ChatRequest) -> str | ChatReply:
        is_revision = "<response_critique>" in request.messages[1].content
        if is_revision != (where == "revision") or "version 0" in request.messages[1].content:
            return numbered(request)
        if fault == "error":
            raise RequestError("no", kind="invalid")
        return ChatReply.model_validate(
            {"text": "" if fault == "empty" else "vers", "finish_reason": {"empty": "stop"}.get(fault, fault)}
        )

    (found,) = await reviser(script, steps=3).revise_all(PROMPT, [comparison("version 0", "b").a], 0)
    assert found.final is None
    assert found.failed is not None
    assert found.failed.detail.startswith(f"{where} 2: ")
    assert found.versions[0].text == "version 1"


def test_a_constitution_without_anything_to_revise_by_is_refused() -> None:
    with pytest.raises(InputError, match="both `critique` and `revise`"):
        Reviser(ScriptedClient(numbered), RevisionConfig(), constitution_from_text(running.CONSTITUTION, "c"))


def settings(**revision: Any) -> dict[str, Any]:
    return {
        "constitution": CONSTITUTION,
        "policy_settings": {"n": 1},
        "pairing": {"strategy": "all"},
        "revision": {"model": "scripted:tests.judges.modes:reviser", **revision},
    }


@pytest.mark.parametrize("steps", [1, 3])
def test_a_revision_is_chosen_only_if_it_beats_its_draft_in_both_orders(tmp_path: Path, steps: int) -> None:
    run(tmp_path, PROMPTS, **settings(steps=steps))
    completions = {c["id"]: c for c in rows(tmp_path, "completions")}
    seen = Counter(j.order for j in judgements(tmp_path))
    assert seen["ab"] == seen["ba"] > 10
    better: Counter[bool] = Counter()
    for pair in rows(tmp_path, "pairs"):
        assert pair["source"] == "revision"
        assert quality(pair["chosen"][0]["content"]) > quality(pair["rejected"][0]["content"])
        better[completions[pair["chosen_id"]]["revised_from"] is not None] += 1
    assert better[True] > 2
    assert better[False] > 2
    revised = [c for c in completions.values() if c["revised_from"]]
    assert all(c["revised_from"] in completions for c in revised)
    assert len(revised) > steps * 0.7 * len(PROMPTS)


def test_the_counts_of_a_run_with_revisions_add_up_and_running_again_sends_nothing(tmp_path: Path) -> None:
    other = settings(steps=2, drafts=2) | {"policy_settings": {"n": 3}}
    result = run(tmp_path, PROMPTS, **other)
    counts = result.manifest["counts"]
    made = counts["comparisons"]
    assert made["planned"] == made["pairs"] + sum(made["dropped"].values())
    assert counts["samples"]["made"] == counts["samples"]["usable"] + sum(counts["samples"]["dropped"].values())
    assert {p["source"] for p in rows(tmp_path, "pairs")} == {"judge", "revision"}
    assert result.manifest["models"]["reviser"].startswith("scripted:")
    before = (tmp_path / "run" / "pairs.jsonl").read_bytes()
    run(tmp_path, **other)
    assert fakes.SENT == []
    assert (tmp_path / "run" / "pairs.jsonl").read_bytes() == before


def test_the_dry_run_counts_critiques_revisions_and_their_judgements(tmp_path: Path) -> None:
    running.write_prompts(tmp_path, PROMPTS)
    found = estimate(running.config(tmp_path, **settings(steps=2)))
    assert {s.stage: s.calls for s in found.stages} == {"sample": 20, "revise": 80, "judge": 40}
    run(tmp_path, **settings(steps=2))
    after = estimate(running.config(tmp_path, **settings(steps=2)))
    assert sum(s.answered for s in after.stages) == sum(s.calls for s in after.stages) == len(fakes.SENT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"judge_settings": {"orders": "one"}}, "set judge.orders: both"),
        ({"revision": {"steps": 0}}, "greater than or equal to 1"),
        ({"revision": {"step": 1}}, "Extra inputs"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        running.config(tmp_path, **(settings() | values))


@pytest.mark.slow
async def test_the_embedded_model_revises() -> None:
    from rlaif.clients.local import LocalClient
    from rlaif.config.models import ModelConfig

    client = LocalClient(ModelConfig(model="local:smollm2"))
    made = Reviser(client, RevisionConfig(steps=2, max_tokens=64), constitution_from_text(CONSTITUTION, "c"))
    try:
        (found,) = await made.revise_all(PROMPT, [comparison("Because the sky is blue.", "b").a], 0)
    finally:
        await client.aclose()
    assert found.versions or found.failed is not None
    assert all(v.revised_from and v.request_key for v in found.versions)
