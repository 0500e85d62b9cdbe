import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.train.sft import TrainSFTConfig
from rlaif.errors import InputError, QualityError
from rlaif.training.demonstrations import read_demonstrations, tokenize
from rlaif.training.sft import check_sft, train_sft
from tests.training.test_dpo import same, stop_after
from tests.training.tiny import contract_rows, save_tiny_model, write_jsonl

USER = {"role": "user", "content": "Name a colour."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chats(n: int) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": f"What is {i} plus {i}?"} for i in range(n)]
    return [{"messages": [turn, said(f"{2 * i}" + "!" * (i % 4))]} for i, turn in enumerate(asked)]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Callable[..., TrainSFTConfig]:
    write_jsonl(tmp_path / "chats.jsonl", chats(12))

    def make(**changes: Any) -> TrainSFTConfig:
        values = {
            "data": str(tmp_path / "chats.jsonl"),
            "model": str(tiny_model),
            "out": str(tmp_path / "out"),
            "batch_size": 4,
            "device": "cpu",
        }
        return TrainSFTConfig.model_validate(values | changes)

    return make


Make = Callable[..., TrainSFTConfig]

# ------------------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [USER, said("Red.")]}, "messages"),
        ({"prompt": [USER], "completion": [said("Red.")]}, "prompt and completion"),
        ({"prompt": [USER], "chosen": [said("Red.")], "rejected": [said("No.")]}, "chosen answers of preferences"),
    ],
)
def test_each_kind_of_data_teaches_the_same_tokens(
    tiny_model: Path, tmp_path: Path, row: dict[str, Any], kind: str
) -> None:
    from rlaif.training.model import load_tokenizer

    data = read_demonstrations(str(write_jsonl(tmp_path / "d.jsonl", [row])))
    tokenizer = load_tokenizer(str(tiny_model))
    (tokens,) = tokenize(data.usable, tokenizer, 100, (1,)).rows
    assert data.kind == kind
    assert tokenizer.decode(tokens.ids) == ("<|begin|>user\nName a colour.<|end|>\n<|begin|>assistant\nRed.<|end|>\n")
    ((begin, end),) = tokens.learned
    assert tokenizer.decode(tokens.ids[begin:end]) == "Red.<|end|>\n"


def test_every_answer_of_a_conversation_is_learned_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    from rlaif.training.model import load_tokenizer

    turns = [USER, said("Red."), {"role": "user", "content": "Another."}, said("Blue.")]
    tokenizer = load_tokenizer(str(tiny_model))
    usable = read_demonstrations(str(write_jsonl(tmp_path / "d.jsonl", [{"messages": turns}]))).usable
    (row,) = tokenize(usable, tokenizer, 100, (1,)).rows
    assert [tokenizer.decode(row.ids[a:b]) for a, b in row.learned] == ["Red.<|end|>\n", "Blue.<|end|>\n"]
    assert [i for i, label in zip(row.ids, row.labels, strict=True) if label != -100] == [
        i for a, b in row.learned for i in row.ids[a:b]
    ]


def test_a_run_folder_gives_its_best_answers_or_else_the_chosen_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", contract_rows(3))
    assert read_demonstrations(str(tmp_path)).kind == "chosen answers of preferences"
    write_jsonl(tmp_path / "best.jsonl", [{"prompt": [USER], "completion": [said("Red.")], "reward": 1.0}])
    best = read_demonstrations(str(tmp_path))
    assert (best.kind, best.rows, best.source) == ("prompt and completion", 1, str(tmp_path / "best.jsonl"))


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "Q:", "completion": " A"}, {"prompt": "R:", "completion": " B"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert [one.text for one in read_demonstrations(str(tmp_path / "d.parquet")).usable] == [("Q:", " A"), ("R:", " B")]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Q", "completion": "A", "label": True}, "rlaif train kto"),
        ({"prompt": [USER]}, "prompts without an answer; `rlaif train rejection`"),
        ({"conversations": [{"from": "human", "value": "Q"}]}, "ShareGPT's form"),
        ({"text": "once upon a time"}, "text, for language modelling"),
        ({"score": 3}, "nothing to learn from"),
        ({"prompt": "Q", "completion": [said("A")]}, "one is text and one is messages"),
        ({"messages": [USER, said(" ")]}, "none of its 1 rows has an answer to learn (1 empty_answer)"),
        ({"messages": [USER]}, "1 no_answer"),
        ({"messages": [said("Hello.")]}, "1 no_prompt"),
        ([1], "expected a row with messages"),
    ],
)
def test_data_of_another_kind_is_told_with_what_fits(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(InputError) as told:
        read_demonstrations(str(write_jsonl(tmp_path / "d.jsonl", [json.dumps(row)])))
    assert complaint in str(told.value)


def test_rows_of_two_kinds_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [USER, said("Red.")]}, {"prompt": "Q", "completion": "A"}]
    with pytest.raises(
        InputError, match=r"d.jsonl:2: this row is prompt and completion, as plain text, the rows before"
    ):
        read_demonstrations(str(write_jsonl(tmp_path / "d.jsonl", rows)))


# ------------------------------------------------------------------------------------------------------- the check


def test_the_check_counts_what_is_cut_and_learned(config: Make, tmp_path: Path) -> None:
    report = check_sft(config(epochs=2))
    assert (report.data.usable, report.cost.steps, report.model.ends_in_eos) == (12, 6, 1.0)
    assert report.data.learned_tokens.max == len("22!!!") + 2
    cut = check_sft(config(max_length=40))
    assert cut.data.cut_at_max_length > 0
    assert "lose their end at max_length 40" in " ".join(f.text for f in cut.findings)
    assert {s.name for s in cut.settings} >= {"packing", "rows of like length", "learned"}
    with pytest.raises(InputError, match=r"no row is left at max_length 16 \(12 answer_beyond_max_length\)"):
        check_sft(config(max_length=16))


def test_conversations_need_a_chat_template(config: Make, tmp_path: Path) -> None:
    bare = save_tiny_model(tmp_path / "bare", chat_template=False)
    with pytest.raises(InputError, match="has no chat template"):
        check_sft(config(model=str(bare)))


# ---------------------------------------------------------------------------------------------------- the training


@pytest.mark.parametrize(("lora", "stopped_at"), [({"r": 2, "dropout": 0.1}, 2), (None, 4)])
def test_a_training_interrupted_and_resumed_gives_the_very_same_weights(
    config: Make, tmp_path: Path, lora: Any, stopped_at: int
) -> None:
    settings = {"lora": lora, "epochs": 2, "learning_rate": 0.01}  # 3 steps an epoch
    whole = train_sft(config(**settings, out=str(tmp_path / "whole")))
    parts = config(**settings, out=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        train_sft(parts, progress=stop_after(stopped_at))
    with pytest.raises(InputError, match=r"unfinished training .*--resume"):
        train_sft(parts)
    result = train_sft(parts, resume=True)
    assert same(result.model, whole.model)
    assert result.manifest["curve"] == whole.manifest["curve"]
    assert result.manifest["curve"][-1]["loss"] < result.manifest["curve"][0]["loss"]
    with pytest.raises(InputError, match=r"different: epochs, max_length\)"):
        train_sft(config(**settings | {"epochs": 3}, max_length=99, out=str(tmp_path / "parts")))


def test_a_whole_training_follows_trls_own(config: Make, tiny_model: Path, tmp_path: Path) -> None:
    """Full batches of one size, so that the order inside a step cannot matter; TRL pads, and computes all logits."""
    import trl
    from datasets import Dataset

    rows = [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in chats(8)]
    data = write_jsonl(tmp_path / "eight.jsonl", rows)
    settings = {"lora": None, "batch_size": 8, "epochs": 3, "learning_rate": 1e-3, "warmup": 0}
    ours = train_sft(config(data=str(data), **settings))
    theirs = trl.SFTTrainer(
        model=str(tiny_model),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", logging_steps=1,
            per_device_train_batch_size=8, num_train_epochs=3, learning_rate=1e-3, lr_scheduler_type="linear",
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    theirs.train()
    expected = [(e["loss"], e["grad_norm"]) for e in theirs.state.log_history if "loss" in e]
    found = [(p["loss"], p["grad_norm"]) for p in ours.manifest["curve"]]
    assert [x for pair in found for x in pair] == pytest.approx([x for pair in expected for x in pair], rel=1e-3)
    padded = train_sft(config(data=str(data), **settings, micro_batch_size=4, out=str(tmp_path / "padded")))
    assert [p["loss"] for p in padded.manifest["curve"]] == pytest.approx([loss for loss, _ in found], rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_training_with_its_batch_written_out(config: Make, tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"diverged at step [23]"):
        train_sft(config(learning_rate=1e30, lora=None, epochs=4, warmup=0))
    assert not (tmp_path / "out" / "model").exists()
    written = json.loads((tmp_path / "out" / "diverged.json").read_text())
    assert "What is" in written["texts"][0]


def test_one_row_can_be_learned(config: Make, tmp_path: Path) -> None:
    result = train_sft(config(data=str(write_jsonl(tmp_path / "one.jsonl", chats(1)))))
    assert len(result.manifest["curve"]) == 1
