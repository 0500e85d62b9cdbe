"""One regression for each bug that is known to have poisoned a public preference data set or a judge."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rlaif.checks import degree
from rlaif.config.generate import JudgeConfig, PairingConfig, PolicyConfig
from rlaif.judges.pairwise import MUST_USE, VARIABLES
from rlaif.judges.reply import Labels, read_probabilities, read_reply
from rlaif.pairing import pair
from rlaif.templates import load_template
from rlaif.types import ChatReply, Check, Comparison, Message, TokenLogprobs, Unjudged, Verdict
from tests import fakes
from tests.running import dropped, judgements, quality, rows, run
from tests.test_pairing import PROMPT, WEIGHTS, completion, judgement, verdict

PROMPTS = [f"Question {i}: name: value, a: b?" for i in range(20)]
AB = Comparison(prompt=PROMPT, a=completion(0), b=completion(1))


def test_a_bound_is_inside_its_range() -> None:
    """`>` for `>=` turned 2,628 of the lowest scores into the highest."""
    bounds = Check.model_validate({"words": {"min": 2, "max": 4}})
    assert [degree(bounds, " ".join(["word"] * n)) == 1.0 for n in range(1, 6)] == [False, True, True, True, False]
    pairs, _ = pair([AB], [judgement(AB, verdict(0.6))], WEIGHTS, PairingConfig(strategy="all", min_margin=0.2))
    assert len(pairs) == 1


def test_a_reply_that_repeats_the_prompt_is_not_a_verdict() -> None:
    """The pattern matched the prompt, so every score was a 5."""
    template = load_template("pairwise", variables=VARIABLES, must_use=MUST_USE)
    for form in ("label", "rationale", "json"):
        messages = template.render(
            principles=["Which is better?"],
            conversation=[Message(role="user", content="Why?")],
            first="Verdict: X",
            second='{"verdict": "Y"}',
            labels=Labels(),
            form=form,
        )
        for text in ("\n".join(m.content for m in messages), messages[0].content, messages[-1].content):
            assert isinstance(read_reply(ChatReply(text=text, finish_reason="stop"), Labels(), form), Unjudged)


def test_the_verdict_decides_which_is_chosen_and_not_the_place(tmp_path: Path) -> None:
    """A condition that was never true made the first response chosen in every row."""
    run(tmp_path, PROMPTS, pairing={"strategy": "all"})
    index = {c["id"]: c["index"] for c in rows(tmp_path, "completions")}
    firsts = Counter(index[p["chosen_id"]] < index[p["rejected_id"]] for p in rows(tmp_path, "pairs"))
    assert firsts[True] > 20
    assert firsts[False] > 20


def test_an_invalid_verdict_stays_invalid_when_it_is_swapped() -> None:
    """Invalid was -1, and 1 - (-1) is 2."""
    invalid = Unjudged(reason="unparseable", detail="?")
    assert invalid.swap() == invalid


def test_a_tie_gives_no_pair_and_one_failure_leaves_the_other_rows_alone(tmp_path: Path) -> None:
    """A tie gave chosen == rejected, and one exception turned a batch into empty rows."""
    run(tmp_path, PROMPTS, judge="judge_fails_sometimes", max_unjudged=1.0, pairing={"strategy": "all"})
    pairs = rows(tmp_path, "pairs")
    assert all(p["chosen"] != p["rejected"] for p in pairs)
    failed = [d for d in dropped(tmp_path) if d.reason == "unjudged"]
    assert failed
    assert len(pairs) + len(dropped(tmp_path)) == 6 * len(PROMPTS)
    assert len(pairs) > 3 * len(failed)


def test_a_failed_judgement_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    """Failures were cached as null and never repaired."""
    fakes.BROKEN["on"] = True
    with pytest.raises(Exception, match="no verdict"):
        run(tmp_path, PROMPTS[:5], judge="judge_down_at_first")
    assert {j.outcome.kind for j in judgements(tmp_path)} == {"unjudged"}
    fakes.BROKEN["on"] = False
    run(tmp_path, judge="judge_down_at_first")
    assert len(rows(tmp_path, "pairs")) == 5
    assert len(fakes.SENT) == 5 * 6 * 2


def test_not_applicable_is_unjudged_and_a_tie_is_nobodys_win() -> None:
    """ "N/A" became -1 and entered the mean; ties went to the first."""
    assert isinstance(read_reply(ChatReply(text="N/A", finish_reason="stop"), Labels(), "label"), Unjudged)
    mixed = [judgement(AB, verdict(0.9)), judgement(AB, Unjudged(reason="unparseable", detail="N/A"), "ba")]
    assert pair([AB], mixed, WEIGHTS, PairingConfig(strategy="all"))[0] == []
    ties = [judgement(AB, Verdict(choice="tie", p_a=0.5, method="text"), order) for order in ("ab", "ba")]
    assert pair([AB], ties, WEIGHTS, PairingConfig(strategy="all"))[0] == []


def test_prompts_and_answers_arrive_whole(tmp_path: Path) -> None:
    """`split(": ")[1]` cut prompts short; a parser flattened the newlines of every answer."""
    run(tmp_path, PROMPTS)
    texts = {c["id"]: c["text"] for c in rows(tmp_path, "completions")}
    for row in rows(tmp_path, "pairs"):
        assert row["prompt"][-1]["content"] in PROMPTS
        assert row["chosen"] == [{"role": "assistant", "content": texts[row["chosen_id"]]}]
        assert row["chosen"][0]["content"].count("\n") == 3
        assert "\u2028" in row["chosen"][0]["content"]


def test_no_label_token_is_no_label() -> None:
    """With no label among the tokens all probabilities were 0, and argmax still returned one."""
    token = TokenLogprobs(token="The", logprob=-0.1, top=(("The", -0.1), ("A", -3.0)))
    assert read_probabilities(token, Labels()) is None


def test_an_unreadable_reply_touches_its_own_row_only(tmp_path: Path) -> None:
    """A last resort gave every item the last rating; an unreadable verdict was 0.0."""
    run(tmp_path, PROMPTS, judge="judge_with_rubbish", max_unjudged=1.0)
    by_comparison: dict[tuple[str, str], list[str]] = {}
    for j in judgements(tmp_path):
        by_comparison.setdefault((j.a, j.b), []).append(j.outcome.kind)
    unjudged = {frozenset(ab) for ab, kinds in by_comparison.items() if "unjudged" in kinds}
    assert unjudged
    assert unjudged == {frozenset((str(d.a), str(d.b))) for d in dropped(tmp_path) if d.reason == "unjudged"}
    assert not unjudged & {frozenset((p["chosen_id"], p["rejected_id"])) for p in rows(tmp_path, "pairs")}


def test_a_sentence_that_declines_is_not_the_label_it_contains() -> None:
    """ "I can't choose a response." was read as A."""
    reply = ChatReply(text="I can't choose a response.", finish_reason="stop")
    for labels in (Labels(), Labels("A", "B")):
        result = read_reply(reply, labels, "label")
        assert isinstance(result, Unjudged)
        assert result.reason == "refused"


def test_the_order_shown_is_drawn_from_the_row_and_not_from_a_running_generator(tmp_path: Path) -> None:
    """An unseeded generator moved scores by up to 8 points between runs."""
    settings = {"orders": "one"}
    run(tmp_path, PROMPTS, judge_settings=settings)
    orders = {(j.a, j.b): j.order for j in judgements(tmp_path)}
    assert set(Counter(orders.values())) == {"ab", "ba"}
    (tmp_path / "again").mkdir()
    run(tmp_path / "again", PROMPTS[5:], judge_settings=settings)
    assert {(j.a, j.b): j.order for j in judgements(tmp_path / "again")}.items() <= orders.items()


def test_a_truncated_answer_is_never_data(tmp_path: Path) -> None:
    """A small default limit cut answers into training data."""
    run(tmp_path, PROMPTS, policy="policy_cut_off")
    finish = {c["id"]: c["finish_reason"] for c in rows(tmp_path, "completions")}
    used = {i for p in rows(tmp_path, "pairs") for i in (p["chosen_id"], p["rejected_id"])}
    assert used
    assert {finish[i] for i in used} == {"stop"}
    assert Counter(d.reason for d in dropped(tmp_path))["bad_finish"] == 2 * len(PROMPTS)
    assert PolicyConfig.model_fields["max_tokens"].default >= 1024
    assert JudgeConfig.model_fields["max_tokens"].default >= 512


def test_a_request_the_provider_will_never_answer_is_sent_once(tmp_path: Path) -> None:
    """Every error, a 400 too, was retried ten times."""
    run(tmp_path, PROMPTS, judge="judge_fails_sometimes", max_unjudged=1.0)
    sent = Counter(request.model_dump_json() for request in fakes.SENT)
    assert set(sent.values()) == {1}


def test_one_more_prompt_pays_for_one_prompt(tmp_path: Path) -> None:
    """The resume key covered the whole data set: one new row paid for everything again."""
    run(tmp_path, PROMPTS)
    total = len(fakes.SENT)
    run(tmp_path, ["A prompt before all others?", *PROMPTS])
    assert len(fakes.SENT) == total // len(PROMPTS)
    best = {json.dumps(p["prompt"]): quality(p["chosen"][0]["content"]) for p in rows(tmp_path, "pairs")}
    assert len(best) == len(PROMPTS) + 1
