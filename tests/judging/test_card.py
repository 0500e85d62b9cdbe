"""The judge card of judges whose truth is known: each must get exactly its own figures."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import main
from rlaif.cli.judge import judge as command
from rlaif.engine import Ledger
from rlaif.errors import InputError, ProviderError, QualityError
from rlaif.judging import Card, CheckConfig, check, read_pairs, verdict_figures
from rlaif.judging.card import gate
from rlaif.judging.robustness import load_injections
from tests.judging import judges

# Every pair of different qualities 1 to 9: the better one is the label.
QUALITIES = [(a, b) for a in range(1, 10) for b in range(1, 10) if a != b]


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{a}-{b}",
            "prompt": f"Q{a}{b}",
            "a": f"quality {a}",
            "b": f"quality {b}",
            "label": "a" if a > b else "b",
        }
        for a, b in QUALITIES
    ]


def write(path: Path, data: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def run(tmp_path: Path, name: str, data: list[dict[str, Any]] | None = None, **settings: Any) -> Card:
    file = write(tmp_path / "data.jsonl", rows() if data is None else data)
    model = {"model": f"scripted:tests.judging.judges:{name}", "logprobs": settings.pop("logprobs", None)}
    call = {key: settings.pop(key) for key in ("limit", "min_kappa", "fresh") if key in settings}
    config = {"data": str(file), "judge": {"models": [model], **settings.pop("judge", {})}, "modes": []} | settings
    return check(CheckConfig.model_validate({"out": tmp_path / "card"} | config), **call)


# ------------------------------------------------------------------------------------------------- agreement and bias


def test_a_judge_that_is_always_right_has_a_perfect_card(tmp_path: Path) -> None:
    card = run(tmp_path, "right").report
    assert (card["pairs"], card["looks"]) == (72, 144)
    for name in ("accuracy", "accuracy_ab", "accuracy_ba", "kappa", "alpha", "swap_consistency", "both_right"):
        assert card[name] == 1.0, name
    assert card["first_position_rate"] == 0.5
    assert card["invalid_rate"] == 0.0
    assert card["calibration"]["ece"]["value"] is None  # it states labels, no probabilities


def test_a_judge_with_a_known_position_bias_gets_exactly_that(tmp_path: Path) -> None:
    card = run(tmp_path, "leans_first").report
    even = sum((a + b) % 2 == 0 for a, b in QUALITIES)
    odd = len(QUALITIES) - even
    assert card["first_position_rate"] == pytest.approx((2 * even + odd) / (2 * len(QUALITIES)))
    assert card["swap_consistency"] == pytest.approx(odd / len(QUALITIES))
    assert card["accuracy"] == pytest.approx((even + 2 * odd) / (2 * len(QUALITIES)))
    assert card["accuracy_averaged"] == pytest.approx((0.5 * even + odd) / len(QUALITIES))
    assert card["position"]["mean_p_first"] == pytest.approx(card["first_position_rate"])


def test_a_judge_that_takes_the_longer_is_reported_as_such(tmp_path: Path) -> None:
    data = rows()
    for i, row in enumerate(data):
        row["ab"[i % 4 == 0]] += " and many more words"  # b is the longer in every fourth pair
    card = run(tmp_path, "longer", data).report
    labels = sum((row["label"] == "b") == (i % 4 == 0) for i, row in enumerate(data)) / len(data)
    assert card["bias_pairs"]["longer"] == len(data)
    assert card["bias"]["longer_rate"]["value"] == 1.0
    assert card["bias"]["longer_rate_label"]["value"] == pytest.approx(labels)
    assert card["bias"]["longer_bias"]["value"] == pytest.approx(1 - labels)
    assert card["bias"]["verbosity_bias"]["value"] == 1.0


def test_refusals_and_rubbish_are_counted_apart_and_are_never_right(tmp_path: Path) -> None:
    card = run(tmp_path, "refuses_some").report
    refused = sum(5 in pair for pair in QUALITIES)
    rubbish = sum(6 in pair and 5 not in pair for pair in QUALITIES)
    assert card["no_verdict"]["by_reason"] == {"refused": 2 * refused, "unparseable": 2 * rubbish}
    assert card["no_verdict"]["refusal_rate"] == pytest.approx(refused / len(QUALITIES))
    assert card["invalid_rate"] == pytest.approx((refused + rubbish) / len(QUALITIES))
    assert card["accuracy"] == pytest.approx(1 - (refused + rubbish) / len(QUALITIES))


def test_stated_probabilities_are_held_against_what_came_true(tmp_path: Path) -> None:
    card = run(tmp_path, "states_seventy", logprobs=True).report
    assert card["labels"] == "logprob"
    assert card["accuracy"] == 1.0
    assert card["calibration"]["ece"]["value"] == pytest.approx(0.3, abs=1e-6)  # says 0.7, is always right
    bins = {round(b["low"], 2): b for b in card["calibration"]["bins"] if b["n"]}
    assert bins.keys() <= {0.65, 0.7}
    assert sum(b["n"] for b in bins.values()) == 144


def test_preferring_its_own_answers_is_seen_where_the_data_names_their_authors(tmp_path: Path) -> None:
    data = rows()
    own = "scripted:tests.judging.judges:right"
    for row in data:
        row |= {"model_a": own, "model_b": "somebody/else"}
    card = run(tmp_path, "right", data).report
    assert card["bias_pairs"]["self"] == 72
    assert card["bias"]["self_rate"]["value"] == card["bias"]["self_rate_label"]["value"] == 0.5
    assert card["bias"]["self_bias"]["value"] == 0.0


def test_several_annotators_are_measured_against_one_another_and_the_judge(tmp_path: Path) -> None:
    data = rows()
    for i, row in enumerate(data):
        right = row.pop("label")
        wrong = "b" if right == "a" else "a"
        row["labels"] = [right, right, wrong if i % 2 else right]
    found = run(tmp_path, "right", data).report
    assert found["accuracy"] == 1.0  # the label is what most of them say
    people = found["annotators"]
    assert people["pairs"] == 72
    assert people["agreement"] == pytest.approx((1 + 1 / 3) / 2)
    assert people["judge_agreement"] == pytest.approx((1 + 2 / 3) / 2)
    assert people["alpha"] < people["alpha_with_judge"] < 1


def test_principles_that_a_program_decides_ask_no_model_and_count_in_each_order_beside_those_that_do(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.yaml").write_text(
        'name: c\nversion: "1"\nprinciples:\n  - {id: short, check: {words: {max: 2}}}\n', encoding="utf-8"
    )
    judges.SENT.clear()
    card = run(tmp_path, "right", constitution=str(tmp_path / "c.yaml")).report
    assert not judges.SENT
    assert card["looks"] == card["pairs"] == 72
    assert card["tie_rate"] == 1.0
    assert card["swap_consistency"] is None
    with (tmp_path / "c.yaml").open("a", encoding="utf-8") as file:
        file.write("  - {id: good, compare: 'Which is better?', weight: 3.0}\n")
    judge = {"principles": "all"}
    mixed = run(tmp_path, "right", constitution=str(tmp_path / "c.yaml"), judge=judge, out=tmp_path / "2").report
    assert len(judges.SENT) == 144
    assert mixed["accuracy"] == mixed["swap_consistency"] == 1.0
    assert mixed["calibration"]["ece"]["value"] == pytest.approx(0.125)  # a tie, and three certainties


def test_a_judge_that_grades_single_responses_has_a_card_without_orders(tmp_path: Path) -> None:
    card = run(tmp_path, "grades", judge={"type": "score"}, modes=["text"]).report
    assert card["looks"] == card["pairs"] == 72
    assert card["accuracy"] == card["kappa"] == 1.0
    assert card["swap_consistency"] is card["accuracy_ba"] is None
    assert card["calibration"]["ece"]["value"] > 0  # one grade apart is stated as 0.73, and is always right
    hostile = card["robustness"]["modes"]["text"]
    kept = sum(i.where != "replace" for i in load_injections() if i.kind != "control")
    assert hostile["flip_rate"] == 0.0
    assert hostile["looks"] >= kept


def test_the_recorded_verdicts_give_the_same_figures_again(tmp_path: Path) -> None:
    card = run(tmp_path, "leans_first")
    again = verdict_figures(read_pairs(card.out / "verdicts.jsonl")).report()
    assert again == {name: card.report[name] for name in again}
    assert json.loads((card.out / "card.json").read_text(encoding="utf-8")) == card.report


def test_chosen_and_rejected_are_shown_in_both_places_so_that_a_judge_cannot_win_by_place(tmp_path: Path) -> None:
    data = [
        {
            "prompt": f"Q{a}{b}",
            "chosen": f"quality {max(a, b)}",
            "rejected": [{"role": "assistant", "content": "quality 0"}],
        }
        for a, b in QUALITIES
    ]
    card = run(tmp_path, "right", data).report
    assert card["accuracy"] == card["kappa"] == 1.0
    assert 20 < card["data"]["labels"]["a"] < 52


# --------------------------------------------------------------------------------------------------------- the folder


def test_a_second_run_sends_nothing_and_a_larger_one_only_what_is_new(tmp_path: Path) -> None:
    judges.SENT.clear()
    first = run(tmp_path, "right", limit=10)
    assert len(judges.SENT) == 20
    assert run(tmp_path, "right", limit=10).report["accuracy"] == first.report["accuracy"]
    assert len(judges.SENT) == 20
    run(tmp_path, "right", limit=12)
    assert len(judges.SENT) == 24
    run(tmp_path, "right", limit=1, fresh=True)
    assert len(judges.SENT) == 26


def test_what_is_asked_besides_may_change_in_one_folder_and_what_is_asked_may_not(tmp_path: Path) -> None:
    judges.SENT.clear()
    run(tmp_path, "right", limit=3)
    assert run(tmp_path, "right", limit=3, modes=["text"]).report["robustness"]["bases"] == 3
    assert run(tmp_path, "right", limit=3, in_flight=2).report["robustness"] is None
    with pytest.raises(InputError, match=r"another config \(different: judge\.ties\)"):
        run(tmp_path, "right", limit=3, judge={"ties": True})


def test_the_budget_stops_the_check_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", rows())
    price = {"input": 1_000_000, "output": 1_000_000}  # a dollar a token
    model = {"model": "scripted:tests.judging.judges:right", "price": price}
    settings = {"data": str(file), "judge": {"models": [model], "max_tokens": 1}, "modes": [], "out": tmp_path / "card"}
    with pytest.raises(ProviderError, match="budget"):
        check(CheckConfig.model_validate(settings | {"max_cost": 3000}))
    judges.SENT.clear()
    card = check(CheckConfig.model_validate(settings)).report
    assert 0 < len(judges.SENT) < 144
    assert card["usd_per_1000"] == pytest.approx(card["cost"]["usd"] / 72 * 1000)


def test_a_judge_below_the_bound_fails_the_gate_and_everything_is_kept(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"the kappa of scripted:.* is .* pairs\), less than the 0\.5 asked for"):
        run(tmp_path, "random_label", min_kappa=0.5)
    assert (tmp_path / "card" / "card.html").exists()
    assert run(tmp_path, "random_label", min_kappa=-1).kappa is not None


def test_the_page_is_self_contained_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    data = [{"prompt": "<script>", "a": "quality 2", "b": "quality 1", "label": "a", "id": "<b>"}]
    file = write(tmp_path / "<img src=x>.jsonl", data)
    model = {"model": "scripted:tests.judging.judges:right"}
    out = check(
        CheckConfig.model_validate({"data": str(file), "judge": {"models": [model]}, "out": tmp_path / "c"})
    ).out
    page = (out / "card.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;img" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") == page.count("</svg>") > 10


def test_a_gate_asks_into_the_ledger_of_its_run_and_again_for_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", rows())
    settings = {"data": str(file), "judge": {"models": ["scripted:tests.judging.judges:right"]}, "modes": []}
    config = CheckConfig.model_validate(settings | {"out": tmp_path / "run" / "judge"})
    judges.SENT.clear()
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert asyncio.run(gate(config, ledger, min_kappa=0.9)).kappa == 1.0
        assert {stage.stage for stage in ledger.stats().stages} == {"gold"}
        assert asyncio.run(gate(config, ledger)).kappa == 1.0
    assert len(judges.SENT) == 144
    assert (tmp_path / "run" / "judge" / "card.html").exists()


# --------------------------------------------------------------------------------------------------- what is no data


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "a": "x", "b": "y"}, r"data\.jsonl:1: a labelled pair needs 'chosen' and 'rejected', or"),
        ({"prompt": "Q", "a": "x", "b": "y", "label": "A"}, r"'label' must be one of a, b, tie \(found 'A'\)"),
        ({"prompt": "Q", "a": "x", "b": "y", "labels": []}, r"'labels' must be a list of labels"),
        ({"prompt": "Q", "a": "x", "b": "y", "labels": ["a", 1]}, r"'labels' must be one of a, b, tie"),
        ({"prompt": "Q", "chosen": 1, "rejected": "y"}, r"'chosen' must be a text"),
        ({"chosen": "x", "rejected": "y"}, r"data\.jsonl:1: no prompt in this row"),
    ],
)
def test_each_mistake_of_the_data_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, "right", [row])
    assert not (tmp_path / "card").exists()


def test_an_id_given_twice_an_empty_file_and_two_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl:2: the id '1-2' was there before"):
        run(tmp_path, "right", [rows()[0], rows()[0]])
    with pytest.raises(InputError, match="no labelled pairs"):
        run(tmp_path, "right", [])
    with pytest.raises(InputError, match="a card is about one judge"):
        run(tmp_path, "right", judge={"models": ["local:smollm2", "local:smollm2"]})


# ------------------------------------------------------------------------------------------------------- the command


def test_where_no_pair_is_decided_the_command_says_that_hostile_text_was_not_tried(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [{"prompt": "Q", "a": "quality 2", "b": "quality 2", "label": "tie"}])
    line = ["check", "--judge", "scripted:tests.judging.judges:leans_first", "--data", str(data)]
    told = CliRunner().invoke(command, [*line, "--out", str(tmp_path / "card")])
    assert told.exit_code == 0, told.output
    assert "hostile text: not tried" in told.output


def test_the_command_writes_the_card_and_prints_it(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", rows())
    arguments = ["check", "--judge", "scripted:tests.judging.judges:right", "--data", str(file), "--limit", "20"]
    done = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "card"), "--injections", "none", "--json"])
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    assert card["pairs"] == 20
    assert card["kappa"] == 1.0
    told = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "card"), "--injections", "none"])
    assert "20 pairs, 40 verdicts" in told.stdout
    wrong = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "x"), "--set", "judge.max_tokns=5"])
    assert isinstance(wrong.exception, InputError)
    assert "did you mean 'max_tokens'" in str(wrong.exception)


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--min-kappa", "0.5"), 0), (("--min-kappa", "1.5"), 3)])
def test_the_exit_codes_are_those_of_the_contract(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    file = write(tmp_path / "data.jsonl", rows())
    line = ["judge", "check", "--judge", "scripted:tests.judging.judges:right", "--data", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--out", str(tmp_path / "card"), "--injections", "none", *arguments])
    assert ended.value.code == code
    assert (tmp_path / "card" / "card.json").exists()


@pytest.mark.parametrize("line", [("check", "--judge", "no:model", "--data"), ("stats",)])
def test_wrong_input_exits_with_2_in_one_sentence(
    tmp_path: Path, line: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as ended:
        main(["judge", *line, str(tmp_path / "data.jsonl")])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
