"""One look or two: what `orders: auto` asks, saves and loses; the clamp; "both are bad"."""

from pathlib import Path
from typing import Any

import pytest

from rlaif.cli.cost import tell_estimate
from rlaif.clients.scripted import Script, ScriptedClient
from rlaif.config.generate import JudgeConfig, PairingConfig
from rlaif.estimate import estimate
from rlaif.judges.orders import is_audited
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.stats import in_words
from rlaif.pairing import pair
from rlaif.types import ChatReply, ChatRequest, Judgement, Unjudged, Verdict
from tests import fakes, running
from tests.judges import modes
from tests.judges.test_pairwise import PRINCIPLE, comparison, probabilities
from tests.judges.test_panel import AB, model, right, said
from tests.running import run
from tests.test_pairing import WEIGHTS

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]


def judge(script: Script, labels: Any = "logprob", **settings: Any) -> PairwiseJudge:
    config = JudgeConfig.model_validate({"models": ["scripted:m:o"], **settings})
    return PairwiseJudge(ScriptedClient(script), config, labels)


async def looks(script: Script, labels: Any = "logprob", **settings: Any) -> list[Judgement]:
    made = judge(script, labels, orders="auto", **settings)
    return await made.judge(comparison(), [PRINCIPLE], seed=0)


async def test_a_sure_verdict_is_not_asked_for_twice() -> None:
    assert len(await looks(probabilities(0.95, 0.02), audit=0)) == 1
    assert len(await looks(probabilities(0.02, 0.95), audit=0)) == 1


async def test_an_unsure_verdict_is() -> None:
    first, second = await looks(probabilities(0.6, 0.3), audit=0)
    assert {first.order, second.order} == {"ab", "ba"}


async def test_so_is_a_sure_one_of_the_audit_sample() -> None:
    assert len(await looks(probabilities(0.95, 0.02), audit=1)) == 2


async def test_a_written_label_is_never_sure() -> None:
    assert len(await looks(lambda request: "X", "text", audit=0)) == 2


async def test_without_a_first_verdict_there_is_nothing_to_pay_a_second_for() -> None:
    (one,) = await looks(probabilities(0.01, 0.01))
    assert isinstance(one.outcome, Unjudged)


def test_both_orders_of_a_pair_are_audited_or_neither() -> None:
    c = comparison()
    for seed in range(50):
        assert is_audited(seed, c, 0.5) == is_audited(seed, c.swap(), 0.5)


def settings(name: str, **judge: Any) -> dict[str, Any]:
    return {
        "judge_settings": {"models": [model(name)], "orders": "auto", "ties": False, **judge},
        "pairing": {"strategy": "all"},
    }


def test_auto_saves_looks_at_no_loss_where_the_sure_judge_is_right(tmp_path: Path) -> None:
    result = run(tmp_path, PROMPTS, **settings("cheap", audit=0.3))
    found = result.manifest["orders"]
    assert found["questions"] == 120
    assert found["looks_saved"] == 120 - found["asked_twice"] > 20
    assert found["audited"] > 20
    assert found["audited_decided_by_one_look"] > 5
    assert found["loss_of_agreement"] == 0
    assert all(right(tmp_path))
    run(tmp_path, **settings("cheap", audit=0.3))
    assert fakes.SENT == []


def test_the_audit_finds_what_a_judge_that_prefers_a_position_costs(tmp_path: Path) -> None:
    manifest = run(tmp_path, PROMPTS, **settings("sure_of_the_first", audit=0.5)).manifest
    found = manifest["orders"]
    assert found["unsure"] == 0
    assert found["loss_of_agreement"] > 0.1
    lost = found["audited_decided_otherwise_by_two"]
    assert f"of {found['audited']} audited, one look would have decided {lost} otherwise" in in_words(manifest)[0]


def test_the_dry_run_counts_the_second_looks_it_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running.write_prompts(tmp_path, PROMPTS)
    planned = estimate(running.config(tmp_path, **settings("cheap", audit=0.1)))
    (calls,) = [s.calls for s in planned.stages if s.stage == "judge"]
    assert calls == pytest.approx(120 * (1 + 0.1 + 0.9 * 0.5), abs=1)
    assert planned.report()["orders"]["one"]["calls"] == 120
    assert planned.report()["orders"]["auto"]["calls"] == calls
    assert planned.report()["orders"]["both"]["calls"] == 240
    tell_estimate(planned)
    assert f"judge.orders: one 120 calls ($0.00), auto about {calls} calls" in capsys.readouterr().out
    run(tmp_path, **settings("cheap", audit=0.1))
    after = estimate(running.config(tmp_path, **settings("cheap", audit=0.1)))
    assert sum(s.answered for s in after.stages) == sum(s.calls for s in after.stages) == len(fakes.SENT)


async def test_the_clamp_holds_back_probabilities_after_reasons_and_leaves_the_choice() -> None:
    def script(request: ChatRequest) -> str | ChatReply:
        return "Because." if request.top_logprobs is None else modes.said({"X": 0.95, "Y": 0.05})

    for clamp, p in ((True, 0.6), (False, 0.95)):
        ab, ba = await judge(script, rationale=True, clamp=clamp).judge(comparison(), [PRINCIPLE], 0)
        assert isinstance(ab.outcome, Verdict)
        assert isinstance(ba.outcome, Verdict)
        assert (ab.outcome.choice, ba.outcome.choice) == ("a", "b")
        assert ab.outcome.p_a == pytest.approx(p)
        assert ba.outcome.p_a == pytest.approx(1 - p)


class TestBothBad:
    async def test_it_is_offered_and_read_as_a_tie_of_its_own_kind(self) -> None:
        made = judge(lambda request: "W", "text", ties=True, both_bad=True)
        ab, ba = await made.judge(comparison(), [PRINCIPLE], 0)
        assert ab.outcome == Verdict(choice="tie", p_a=0.5, method="text", both_bad=True)
        assert ba.outcome == ab.outcome
        assert isinstance(made.client, ScriptedClient)
        assert "W if both are bad" in made.client.requests[0].messages[0].content

    async def test_it_is_not_a_label_where_it_was_not_offered(self) -> None:
        ab, _ = await judge(lambda request: "W", "text", ties=True).judge(comparison(), [PRINCIPLE], 0)
        assert isinstance(ab.outcome, Unjudged)

    def test_such_a_pair_is_dropped_for_that_reason_and_never_trained_on(self) -> None:
        bad = Verdict(choice="tie", p_a=0.5, method="text", both_bad=True)
        for other in (bad, Verdict(choice="a", p_a=1.0, method="text")):
            pairs, gone = pair([AB], [said("x", bad), said("x", other, "ba")], WEIGHTS, PairingConfig(strategy="all"))
            assert (pairs, [d.reason for d in gone]) == ([], ["both_bad"])
