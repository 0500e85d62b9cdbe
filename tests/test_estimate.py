"""A dry run: what it says is what the run then sends, and it touches nothing."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif import estimate as estimating
from rlaif.config.generate import GenerateConfig
from rlaif.engine.tokens import estimate_tokens
from rlaif.errors import InputError, ProviderError
from rlaif.estimate import Estimate, StageEstimate, estimate
from rlaif.generation import generate
from rlaif.types import ChatReply, ChatRequest
from tests import fakes, running
from tests.servers.fault_server import Answer, Asked, FaultServer, drawn

PROMPTS = [f"Question {i}: what, why: and how?" for i in range(20)]
PRICE = {"input": 1, "output": 4, "batch_discount": 0.5}
TWO_PRINCIPLES = running.CONSTITUTION + "  - id: kinder\n    compare: Which response is kinder?\n"


def config(folder: Path, prompts: list[str] = PROMPTS, **other: Any) -> GenerateConfig:
    running.write_prompts(folder, prompts)
    return running.config(folder, **other)


def stage(found: Estimate, name: str) -> StageEstimate:
    return next(s for s in found.stages if s.stage == name)


def to_send(found: Estimate) -> int:
    return sum(s.calls - s.answered for s in found.stages)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------ the tokens

# Token counts of OpenAI's o200k_base.
COUNTED = [
    (
        42,
        "The difference between weather and climate is a matter of time: weather is what the atmosphere does over"
        " days, climate how it behaves over decades. One hot summer proves nothing; thirty of them in a row do.",
    ),
    (
        47,
        "Sure! Here's what I'd do: first, talk to your landlord (politely), then write everything down. If that"
        " doesn't help, I'd look for a tenants' union near you - they usually answer within 2-3 days.",
    ),
    (
        55,
        "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
        "    return a\n\n\nprint([fibonacci(i) for i in range(10)])\n",
    ),
    (
        45,
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May. She sold 48+24 = <<48+24=72>>72 clips altogether in April"
        " and May.\n#### 72",
    ),
    (
        67,
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt"
        " und sollen einander im Geiste der Brüderlichkeit begegnen. Jeder hat das Recht auf Leben, Freiheit und"
        " Sicherheit der Person. Niemand darf in Sklaverei oder Leibeigenschaft gehalten werden.",
    ),
    (
        61,
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и"
        " должны поступать в отношении друг друга в духе братства. Каждый человек имеет право на жизнь, на свободу"
        " и на личную неприкосновенность.",
    ),
    (
        62,
        "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。人人有权享有生命、"
        "自由和人身安全。任何人不得使为奴隶或奴役。",
    ),
    (
        51,
        "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을"
        " 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
    ),
]


@pytest.mark.parametrize(("count", "text"), COUNTED)
def test_an_estimate_is_within_a_fifth_of_a_real_count(count: int, text: str) -> None:
    assert 0.8 * count <= estimate_tokens(text) <= 1.2 * count


def test_odd_text_has_an_estimate_too() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("half a pair: \ud800") > 3
    assert estimate_tokens("😀" * 10) > 5


# --------------------------------------------------------------------------------------------- the calls of a run

REASONER = {"model": "scripted:tests.test_estimate:reasoning_judge", "logprobs": True}


def reasoning_judge(request: ChatRequest) -> str | ChatReply:
    if request.top_logprobs is not None:
        return fakes.judge_with_logprobs(request.model_copy(update={"messages": request.messages[:2]}))
    return f"Because.\nVerdict: {fakes.judge(request)}"


SETTINGS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "one order": {"judge_settings": {"orders": "one"}},
    "disjoint comparisons": {"judge_settings": {"comparisons": "disjoint"}, "pairing": {"strategy": "all"}},
    "log-probs": {"judge": "judge_with_logprobs"},
    "reasons": {"judge_settings": {"rationale": True, "models": [REASONER | {"logprobs": False}]}},
    "log-probs after reasons": {"judge_settings": {"rationale": True, "models": [REASONER]}},
    "each principle": {"constitution": TWO_PRINCIPLES, "judge_settings": {"principles": "each"}},
    "all principles at once": {"constitution": TWO_PRINCIPLES, "judge_settings": {"principles": "all"}},
    "a principle drawn": {"constitution": TWO_PRINCIPLES},
    "two samples": {"policy_settings": {"n": 2}},
    "a system message": {"policy_settings": {"system": "Be brief."}},
}


@pytest.mark.parametrize("every", [0, 10**9])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_calls_are_those_that_the_run_makes(
    tmp_path: Path, settings: dict[str, Any], every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating._Dry, "EVERY", every)  # one comparison for all of a prompt's, or each by itself
    found = estimate(config(tmp_path, **settings))
    fakes.SENT.clear()
    generate(config(tmp_path, **settings))
    assert to_send(found) == len(fakes.SENT)
    assert stage(found, "sample").calls == 20 * settings.get("policy_settings", {}).get("n", 4)


def test_a_principle_that_a_program_checks_asks_no_model(tmp_path: Path) -> None:
    constitution = running.CONSTITUTION + "  - id: short\n    check: {words: {max: 5}}\n    weight: 3\n"
    found = estimate(config(tmp_path, [f"{p} {i}" for i in range(10) for p in PROMPTS], constitution=constitution))
    drawn_ = stage(found, "judge").calls / (200 * 12)  # a quarter of the draws, give or take
    assert 0.2 < drawn_ < 0.3


def test_samples_made_elsewhere_are_counted_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completions": ["quality 1\nyes " * 50, "quality 2\nno", "quality 2\nno"]} for p in PROMPTS]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = running.config(tmp_path).model_dump(mode="json")
    settings |= {"prompts": None, "policy": {"completions": str(tmp_path / "samples.jsonl")}}
    found = estimate(GenerateConfig.model_validate(settings))
    assert [s.stage for s in found.stages] == ["judge"]
    fakes.SENT.clear()
    generate(GenerateConfig.model_validate(settings))
    # Two of three pairs, in both orders; the third is of equal texts, so that these two ask the same.
    assert to_send(found) == len(fakes.SENT) == 20 * 2


# ------------------------------------------------------------------------------------------ what is there already


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_a_run_would_still_send_is_exact(tmp_path: Path, settings: dict[str, Any]) -> None:
    generate(config(tmp_path, **settings), limit=12)
    found = estimate(config(tmp_path, **settings))
    fakes.SENT.clear()
    generate(config(tmp_path, **settings))
    assert to_send(found) == len(fakes.SENT) > 0
    after = estimate(config(tmp_path, **settings))
    assert to_send(after) == 0
    assert sum(s.answered for s in after.stages) > 20
    assert after.report()["usd"] == {"low": 0, "expected": 0, "high": 0}


def test_a_request_that_failed_is_to_be_sent_again(tmp_path: Path) -> None:
    generate(config(tmp_path, policy="policy_fails_sometimes"))
    assert stage(estimate(config(tmp_path, policy="policy_fails_sometimes")), "sample").calls == 80
    assert to_send(estimate(config(tmp_path, policy="policy_fails_sometimes"))) >= 20  # and what they lead to


def test_fresh_counts_everything_again(tmp_path: Path) -> None:
    generate(config(tmp_path))
    assert to_send(estimate(config(tmp_path), fresh=True)) == 20 * (4 + 12)


def test_a_limit_counts_only_the_first(tmp_path: Path) -> None:
    assert to_send(estimate(config(tmp_path), limit=5)) == 5 * (4 + 12)


def test_a_small_run_first_makes_the_estimate_good(tmp_path: Path) -> None:
    prompts = [f"{PROMPTS[i % 20]} {'and more ' * (i % 7)}{i}" for i in range(200)]
    generate(config(tmp_path, prompts), limit=20)
    found = estimate(config(tmp_path, prompts))
    before = json.loads((tmp_path / "run" / "manifest.json").read_text())
    generate(config(tmp_path, prompts))
    after = json.loads((tmp_path / "run" / "manifest.json").read_text())
    for made, earlier, s in zip(after["cost"]["models"], before["cost"]["models"], found.stages, strict=True):
        for kind, tokens in (("input_tokens", s.input_tokens), ("output_tokens", s.output_tokens)):
            real = made[kind] - earlier[kind]
            assert tokens.low * 0.98 <= real <= tokens.high * 1.02
            assert 0.9 * real <= tokens.expected <= 1.1 * real


# ------------------------------------------------------------------------------------------- it touches nothing


def test_a_dry_run_sends_nothing_and_leaves_every_file_as_it_was(tmp_path: Path) -> None:
    generate(config(tmp_path), limit=10)
    settings = config(tmp_path)
    before = files(tmp_path)
    fakes.SENT.clear()
    estimate(settings)
    assert fakes.SENT == []
    assert files(tmp_path) == before
    other = settings.model_copy(update={"out": tmp_path / "new"})
    estimate(other)
    assert files(tmp_path) == before


def test_it_works_without_keys_sdks_and_weights(tmp_path: Path) -> None:
    running.write_prompts(tmp_path, PROMPTS)
    (tmp_path / "config.yaml").write_text(
        f"prompts: {tmp_path}/prompts.jsonl\nconstitution: helpful-harmless\nout: {tmp_path}/run\n"
        "policy: {model: 'openai:gpt-4.1-mini'}\n"
        "judge: {models: ['anthropic:claude-haiku-4-5', 'local:/no/such/model', 'openai:gpt-4.1']}\n"
    )
    code = (
        "import sys; from rlaif.cli import main\n"
        "try: main(['generate', sys.argv[1], '--dry-run', '--json'])\n"
        "finally: assert not {'openai', 'anthropic', 'torch', 'transformers'} & set(sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.yaml")], env={}, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    found = json.loads(ran.stdout)
    assert [s["calls"] for s in found["stages"]] == [80, 240, 240, 241]
    assert found["stages"][2]["usd"] == {"low": 0.0, "expected": 0.0, "high": 0.0}
    assert found["usd"]["low"] < found["usd"]["expected"] < found["usd"]["high"]
    half = {name: usd / 2 for name, usd in found["usd"].items()}
    assert found["usd_batch"] == pytest.approx(half, rel=1e-6)
    assert any("log-probs" in note for note in found["notes"])  # of the last model: only asking can tell


def test_what_the_run_would_refuse_the_dry_run_refuses(tmp_path: Path) -> None:
    generate(config(tmp_path))
    with pytest.raises(InputError, match="another config"):
        estimate(config(tmp_path, seed=7))
    with pytest.raises(InputError, match="no such file"):
        estimate(config(tmp_path).model_copy(update={"prompts": str(tmp_path / "none.jsonl")}))


# ---------------------------------------------------------------------------------------------------------- money


def test_the_costs_are_the_tokens_at_the_price(tmp_path: Path) -> None:
    judge = {"models": [{"model": "scripted:tests.fakes:judge", "price": PRICE}]}
    found = estimate(config(tmp_path, judge_settings=judge))
    s = stage(found, "judge")
    assert s.online is not None
    assert s.batch is not None
    for online, batch, tokens_in, tokens_out in zip(s.online, s.batch, s.input_tokens, s.output_tokens, strict=True):
        assert float(online) == pytest.approx((tokens_in + 4 * tokens_out) / 1e6, abs=1e-5)
        assert batch * 2 == online
    assert found.usd() == s.online  # the policy is free


def test_an_unknown_price_is_said_with_what_to_write(tmp_path: Path) -> None:
    judge = {"models": [{"model": "openai:mine", "base_url": "http://127.0.0.1:1/v1", "logprobs": False}]}
    found = estimate(config(tmp_path, judge_settings=judge))
    assert found.usd() is None
    assert found.report()["usd"] is None
    (note,) = found.notes
    assert note.startswith("openai:mine at http://127.0.0.1:1/v1: its price is not known")
    assert "price: {input: USD, output: USD}" in note


# ---------------------------------------------------------------------- a whole run against a server that charges


class Shop:
    """A policy and a judge behind one server; it keeps its own book of what it charged."""

    def __init__(self) -> None:
        self.charged = 0.0
        self.sent = 0

    def __call__(self, asked: Asked) -> Answer:
        self.sent += 1
        if asked.body["model"] == "policy":
            text = f"quality {asked.body['seed'] % 1000}\nThe answer, at some length. " + "Word. " * (asked.order % 40)
        else:
            shown = [int(part.split("\n")[1].removeprefix("quality ")) for part in _shown(asked.last_message)]
            text = "X" if shown[0] > shown[1] else "Y" if shown[1] > shown[0] else "Z"
        tokens_in = sum(len(str(m["content"])) for m in asked.body["messages"]) // 4
        tokens_out = max(1, len(text) // 4)
        self.charged += (tokens_in * PRICE["input"] + tokens_out * PRICE["output"]) / 1e6
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        return Answer(text, edit=lambda reply: {**reply, "usage": usage})


def _shown(message: str) -> Iterator[str]:
    for label in ("X", "Y"):
        yield message.split(f"<response_{label}>")[1].split(f"</response_{label}>")[0]


def paid(folder: Path, server: FaultServer, *, max_cost: float | None = None, out: str = "run") -> GenerateConfig:
    def model(name: str) -> dict[str, Any]:
        return {"model": f"openai:{name}", "base_url": server.openai_url, "logprobs": False, "price": PRICE}

    settings = config(folder).model_dump(mode="json")
    settings["policy"] = {"model": model("policy"), "n": 3, "max_tokens": 100}
    settings["judge"] |= {"models": [model("judge")], "max_tokens": 20}
    return GenerateConfig.model_validate(settings | {"max_cost": max_cost, "out": str(folder / out)})


def test_a_run_stops_at_its_budget_and_goes_on_with_a_higher_one(tmp_path: Path) -> None:
    shop = Shop()
    with FaultServer(shop) as server:
        plain = generate(paid(tmp_path, server, out="plain")).manifest["cost"]
        whole, sent = shop.charged, shop.sent
        assert plain["usd"] == pytest.approx(whole, abs=1e-8)
        shop.charged = shop.sent = 0
        for share in (0.3, 0.6):
            with pytest.raises(ProviderError, match="is reached"):
                generate(paid(tmp_path, server, max_cost=whole * share))
            assert 0.15 * whole < shop.charged <= whole * share
        found = estimate(paid(tmp_path, server))
        assert float(found.spent) == pytest.approx(shop.charged, abs=1e-8)
        assert to_send(found) == sent - shop.sent
        before = shop.charged
        cost = generate(paid(tmp_path, server, max_cost=2 * whole)).manifest["cost"]
    assert shop.sent == sent  # nothing was paid for twice
    assert cost["usd"] == pytest.approx(shop.charged, abs=1e-8)
    assert cost["usd_this_session"] == pytest.approx(shop.charged - before, abs=1e-8)
    assert cost["usd_unanswered"] == 0
    assert [m["price"]["source"] for m in cost["models"]] == ["config", "config"]


def test_under_faults_the_server_never_charges_more_than_the_cap(tmp_path: Path) -> None:
    shop = Shop()
    # What breaks off or is no reply has been charged all the same; a 500 and a 429 have not.
    rates = {"half": 0.05, "truncated-json": 0.05, "500": 0.05, "429-ms": 0.05}

    def charging(asked: Asked) -> Answer:
        answer = faulty(asked)
        if answer.cut is not None:
            shop(asked)
        return answer

    faulty = drawn(shop, rates)
    with FaultServer(charging) as server:
        for cap in (0.005, 0.01, 0.015, 0.02):
            settings = paid(tmp_path, server, max_cost=cap)
            try:
                manifest = generate(settings).manifest
            except ProviderError:
                assert shop.charged <= cap
            else:
                assert shop.charged <= manifest["cost"]["usd"] <= cap
                break
    assert shop.charged > 0.003


def test_an_unknown_price_with_a_cap_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    shop = Shop()
    with FaultServer(shop) as server:
        settings = paid(tmp_path, server, max_cost=1).model_dump(mode="json")
        settings["judge"]["models"][0] |= {"price": None, "logprobs": None}  # it would be asked a question first
        settings["judge"]["models"].insert(0, {"model": "scripted:tests.fakes:judge"})
        with pytest.raises(InputError, match=r"openai:judge at .*its price is not known"):
            generate(GenerateConfig.model_validate(settings))
    assert shop.sent == 0


def test_the_cost_so_far_stands_in_the_progress(tmp_path: Path) -> None:
    notes: list[str] = []
    with FaultServer(Shop()) as server:
        generate(paid(tmp_path, server, max_cost=5), progress=lambda counts, total: notes.append(counts.cost))
        assert "spent (budget $5.00)" in notes[-1]
        generate(paid(tmp_path, server, max_cost=6), progress=lambda counts, total: notes.append(counts.cost))
    assert notes[-1].startswith("$0.00 spent ($0.0")
    assert notes[-1].endswith("with earlier sessions; budget $6.00)")
    generate(config(tmp_path).model_copy(update={"out": tmp_path / "free"}), progress=lambda c, t: notes.append(c.cost))
    assert notes[-1] == ""


def test_the_loop_is_free_again_after_an_estimate(tmp_path: Path) -> None:
    estimate(config(tmp_path))
    asyncio.run(asyncio.sleep(0))
