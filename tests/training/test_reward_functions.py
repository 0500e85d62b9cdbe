import asyncio
import copy
import gc
import inspect
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.base import Config
from rlaif.errors import InputError, ProviderError, QualityError, RlaifError, TaskError
from rlaif.rewards import PartsMonitor
from rlaif.training.reward_functions import RewardFunction, question_of, tasks_of, text_of
from rlaif.types import Reward, Unverified
from rlaif.verifiers import Task
from tests.rewards.scripts import reward_of

HERE = "tests.training.test_reward_functions"


class Told:
    """Does what the completion says: "sleep 0.1 0.5", "block 0.1 0.5" (without awaiting), "break", "abstain",
    "refuse", or the reward itself."""

    identity = "told@1"
    asked: list[str] = []  # by all of them, of this process
    threads: set[str] = set()
    closed: list[int] = []

    class Options(Config):
        pass

    def __init__(self, options: Options) -> None:
        pass

    async def prepare(self, task: Task) -> None:
        if "reference" not in task:
            raise TaskError("the row has no reference.")

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        self.asked.append(completion)
        self.threads.add(threading.current_thread().name)
        order, *numbers = completion.split()
        if order == "sleep":
            await asyncio.sleep(float(numbers[0]))
        if order == "block":
            time.sleep(float(numbers[0]))  # noqa: ASYNC251 - what a careless verifier does
        if order == "break":
            return Unverified(reason="infrastructure", detail="no sandbox")
        if order == "abstain":
            return Unverified(reason="abstained", detail="not mine")
        if order == "refuse":
            raise ProviderError("the key is refused.")
        return Reward(value=float((numbers or [order])[-1]))

    async def aclose(self) -> None:
        await asyncio.to_thread(self.closed.append, os.getpid())


TOLD = reward_of(f"{HERE}:Told")


@pytest.fixture(autouse=True)
def nothing_was_asked() -> None:
    for record in (Told.asked, Told.threads, Told.closed):
        record.clear()


@pytest.fixture
def reward() -> Iterator[RewardFunction]:
    function = RewardFunction(TOLD)
    yield function
    function.close()


def call(function: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    result: list[float | None] = function(prompts=["q"] * len(completions), completions=completions, **columns)
    return result


# --------------------------------------------------------------------------------------------------- TRL's signature


def test_plain_and_conversational_completions_are_the_same_to_the_real_math_verifier() -> None:
    function = RewardFunction(reward_of("math"), name="math")
    texts = ["so \\boxed{20}", "\\boxed{21}", "no idea", "\\boxed{20}"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    reference = ["20", "20", "20", None]
    assert function.__name__ == "math"
    assert call(function, texts, reference=reference, trainer_state=object()) == [1.0, 0.0, 0.0, None]
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12 + 8?"}]] * 4
    assert function(prompts, messages, [[1, 2]] * 4, reference=reference) == [1.0, 0.0, 0.0, None]
    function.close()


def test_a_message_may_hold_blocks_and_what_is_no_text_is_none() -> None:
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}]
    assert text_of(blocks) == "ab"
    assert text_of([{"role": "assistant", "content": "x"}, {"role": "tool", "content": "y"}]) == "x"
    assert text_of([{"role": "assistant", "content": None, "tool_calls": []}]) == ""
    assert text_of([]) == ""
    assert question_of([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}]) == "2"


def test_columns_become_the_task_and_empty_cells_are_no_columns() -> None:
    columns = {
        "reference": ["1", None],
        "tests": [None, ["assert f()"]],
        "metadata": [{"kind": "m", "level": None}, {"reference": "from metadata"}],
        "trainer_state": object(),
        "log_metric": print,
    }
    first, second = tasks_of(["q1", [{"role": "user", "content": "q2"}]], ["a", "b"], columns)
    assert first == {"prompt": "q1", "reference": "1", "kind": "m", "metadata": columns["metadata"][0]}  # type: ignore[index]
    assert second["prompt"] == "q2"
    assert second["reference"] == "from metadata"
    assert second["tests"] == ["assert f()"]


@pytest.mark.parametrize("columns", [{"reference": ["1"]}, {"reference": "12"}, {"completion_ids": [[1]]}])
def test_columns_of_another_length_are_refused_not_shifted(reward: RewardFunction, columns: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the reward function got 2 completions"):
        call(reward, ["1", "0"], **columns)


def test_a_config_that_cannot_run_is_told_before_training() -> None:
    with pytest.raises(InputError, match="did you mean 'math'"):
        RewardFunction(reward_of("mth"))
    with pytest.raises(TaskError, match="no reference"):
        RewardFunction(TOLD).prepare([{"reference": "1"}, {}])


def test_every_part_is_logged_with_what_it_did_not_decide(reward: RewardFunction) -> None:
    extra: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    call(reward, ["1", "abstain", "0"], log_extra=extra.__setitem__, log_metric=metrics.__setitem__)
    assert extra == {"Told": [1.0, None, 0.0]}
    assert metrics == {"parts/Told/mean": 0.5, "parts/masked": pytest.approx(1 / 3)}


def test_penalties_count_the_tokens_that_trl_counted() -> None:
    tree = {"shaping": {"of": f"{HERE}:Told", "overlong": {"limit": 10, "buffer": 5}}}
    function = RewardFunction(reward_of(tree))
    assert function(["q", "q"], ["1", "1"], [[7] * 5, [7] * 10]) == [1.0, 0.9]
    function.close()


def test_running_statistics_learn_each_batch_and_travel_with_a_checkpoint() -> None:
    config = reward_of({"normalise": {"of": f"{HERE}:Told"}})
    first, second = RewardFunction(config), RewardFunction(config)
    assert call(first, ["0", "1"]) == [-1.0, 1.0]
    second.load_state(first.state())
    expected = pytest.approx([0.8164966, 0.8164966, -1.2247449])
    assert call(second, ["1", "1", "0"]) == expected
    assert call(pickle.loads(pickle.dumps(first)), ["1", "1", "0"]) == expected
    assert call(first, ["1", "1", "0"]) == expected
    first.close()
    second.close()


# ------------------------------------------------------------------------------------------------- threads and order


def test_verdicts_are_made_on_a_thread_of_its_own_whoever_calls(reward: RewardFunction) -> None:
    with ThreadPoolExecutor(4) as pool:
        batches = [[f"sleep 0.0{j} {(i + j) % 5 / 4}" for j in range(5)] for i in range(8)]
        results = list(pool.map(lambda batch: call(reward, batch), batches))
    assert results == [[float(text.split()[-1]) for text in batch] for batch in batches]
    assert Told.threads == {"rlaif-reward"}
    assert reward.monitor.rows == 40


def test_it_may_be_called_where_an_event_loop_runs(reward: RewardFunction) -> None:
    async def main() -> list[float | None]:
        return call(reward, ["1", "0"])

    assert asyncio.run(main()) == [1.0, 0.0]


def test_the_async_form_is_known_to_trl_as_one_and_keeps_its_loop_free(reward: RewardFunction) -> None:
    function = reward.as_async()
    assert inspect.iscoroutinefunction(function.__call__)
    assert function.__name__ == reward.__name__

    async def main() -> tuple[Any, int]:
        work = asyncio.create_task(function(prompts=["q"], completions=["sleep 0.2 1"], completion_ids=[[1]]))
        turns = 0
        while not work.done():
            await asyncio.sleep(0.01)
            turns += 1
        return work.result(), turns

    rewards, turns = asyncio.run(main())
    assert rewards == [1.0]
    assert turns >= 5


def test_what_is_submitted_early_is_under_way_and_asked_only_once(reward: RewardFunction) -> None:
    texts = [f"sleep 0.3 {i / 4}" for i in range(4)]
    reward.submit(["q"] * 4, texts)
    time.sleep(0.5)  # the reference model's forward pass
    began = time.monotonic()
    assert call(reward, texts) == [0.0, 0.25, 0.5, 0.75]
    assert time.monotonic() - began < 0.25
    assert sorted(Told.asked) == sorted(texts)
    call(reward, texts[:1])  # collected is collected: another call asks again
    assert len(Told.asked) == 5


def test_another_column_is_another_row(reward: RewardFunction) -> None:
    reward.submit(["q"], ["1"], reference=["1"])
    call(reward, ["1"], reference=["2"])
    assert len(Told.asked) == 2


def test_equal_completions_of_a_group_are_asked_once_and_each_get_their_reward(reward: RewardFunction) -> None:
    assert call(reward, ["1", "0.5", "1", "1"]) == [1.0, 0.5, 1.0, 1.0]
    assert sorted(Told.asked) == ["0.5", "1"]


def test_the_queue_is_bounded_and_what_is_never_collected_is_forgotten() -> None:
    function = RewardFunction(TOLD, waiting=4)
    began = time.monotonic()
    function.submit(["q"] * 8, [f"sleep 0.2 0.{i}" for i in range(8)])
    assert 0.15 < time.monotonic() - began < 2  # it waited for the first four
    function.submit(["q"] * 4, [f"0.{i}" for i in range(4)])
    assert len(function._early) == 4
    assert call(function, ["1"] * 20) == [1.0] * 20
    function.close()


# ------------------------------------------------------------------------------------------------- failing and ending


def test_what_broke_is_none_and_too_much_of_it_ends_the_training() -> None:
    function = RewardFunction(TOLD, monitor=PartsMonitor())
    function.reward.backoff = 0.0
    assert call(function, ["1", "break", "abstain"]) == [1.0, None, None]
    with pytest.raises(QualityError, match=r"infrastructure failed on 2 of 100 rows.*no sandbox") as caught:
        call(function, ["break"] + [str(i / 100) for i in range(96)])
    assert caught.value.exit_code == 3
    function.close()


def test_a_provider_that_refuses_ends_the_call_at_once(reward: RewardFunction) -> None:
    began = time.monotonic()
    with pytest.raises(ProviderError, match="key"):
        call(reward, ["refuse", "sleep 30 1"])
    assert time.monotonic() - began < 5
    assert call(reward, ["1"]) == [1.0]


@pytest.mark.parametrize("hang", ["sleep 30 1", "block 3 1"])
def test_a_call_ends_at_its_deadline_even_if_a_verifier_blocks_its_thread(hang: str) -> None:
    function = RewardFunction(TOLD, seconds=0.3, waiting=2)
    function.monitor.max_infrastructure = 1.0
    began = time.monotonic()
    assert call(function, ["1", hang, "0.5", "0.25"])[1] is None
    assert time.monotonic() - began < 2
    assert call(function, ["1", "0"]) == [1.0, 0.0]  # on another thread
    function.close()


def test_closing_ends_a_call_that_waits_and_a_later_call_starts_again(reward: RewardFunction) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, reward, ["sleep 30 1"])
        while not Told.asked:
            time.sleep(0.01)
        reward.close()
        with pytest.raises(RlaifError, match="closed while it scored"):
            waiting.result(timeout=5)
    reward.close()
    assert Told.closed == [os.getpid()]
    assert call(reward, ["1"]) == [1.0]


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.1])
def test_closing_in_the_middle_of_a_batch_leaves_nobody_waiting(delay: float) -> None:
    function = RewardFunction(TOLD, waiting=2)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call, function, [f"sleep 0.0{i} 0.{j}{i}" for i in range(9)]) for j in range(2)]
        time.sleep(delay)
        function.close()
        for waiting in calls:  # told, or done where it came first or after
            error = waiting.exception(timeout=10)
            assert error is None or "closed while it" in str(error)
    function.close()


def test_dropping_it_ends_its_thread_and_its_verifiers() -> None:
    gc.collect()
    Told.closed.clear()
    function = RewardFunction(TOLD)
    call(function, ["1"])
    engine = function._running
    assert engine is not None
    del function
    gc.collect()
    engine.thread.join(timeout=5)
    assert not engine.thread.is_alive()
    assert Told.closed == [os.getpid()]


def test_a_copy_or_pickle_scores_on_its_own(reward: RewardFunction) -> None:
    reward.monitor.max_infrastructure = 0.5
    call(reward, ["1"])
    for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert other.__name__ == reward.__name__
        assert other._running is None
        assert (other.monitor.max_infrastructure, other.monitor.rows) == (0.5, 0)
        assert call(other, ["1", "abstain"]) == [1.0, None]
        other.close()
    assert call(reward, ["0"]) == [0.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_its_own_thread(reward: RewardFunction) -> None:
    assert call(reward, ["1"]) == [1.0]
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs must not outlive the test
        os._exit(0 if call(reward, ["0.5"]) == [0.5] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert call(reward, ["1"]) == [1.0]


def test_python_ends_while_verdicts_are_under_way() -> None:
    code = (
        "from rlaif.training.reward_functions import RewardFunction\n"
        "from tests.training.test_reward_functions import TOLD\n"
        "f = RewardFunction(TOLD); print(f(['q'], ['1'])); f.submit(['q'], ['sleep 60 1'])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[1.0]", "")


# ------------------------------------------------------------------------------------------------------ a real trainer

VOCABULARY = ("<|begin|>", "<|end|>", "what", "is", "it", "?", "\\boxed{20}", "\\boxed{21}", "so", "hm")


class Moody:
    """Abstains about completions that say hm."""

    identity = "moody@1"
    Options = Told.Options

    def __init__(self, options: Told.Options) -> None:
        pass

    async def prepare(self, task: Task) -> None:
        pass

    async def verify(self, completion: str, task: Task) -> Reward | Unverified:
        return Unverified(reason="abstained", detail="hm") if "hm" in completion else Reward(value=1.0)

    async def aclose(self) -> None:
        pass


def tiny_policy() -> tuple[Any, Any]:
    """A Llama of random weights whose ten words are enough to be right, wrong and moody."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="hm"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model: Any = LlamaForCausalLM(config)
    return model, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_grpo_step_learns_from_the_rewards_and_not_from_the_masked_rows(form: str, tmp_path: Path) -> None:
    pytest.importorskip("rlaif.training.trl_adapter")  # before trl: it switches the telemetry off
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tree = {"weighted_sum": [{"verifier": "math", "weight": 3}, f"{HERE}:Moody"]}
    reward = RewardFunction(reward_of(tree), name="composite")
    seen: list[dict[str, Any]] = []

    class Watched(GRPOTrainer):  # type: ignore[misc]
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
            rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
            seen.append({"inputs": inputs, "completions": completions, "rewards": rewards[:, 0].tolist()})
            return rewards

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            seen[-1]["advantages"] = batch["advantages"].tolist()
            return batch

    model, tokenizer = tiny_policy()
    before = [p.detach().clone() for p in model.parameters()]
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=4,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        seed=1,
    )
    rows = [{"prompt": "what is it ?", "reference": "20"}, {"prompt": "what is so ?", "reference": None}]
    trainer = Watched(
        model=model,
        reward_funcs=reward if form == "sync" else reward.as_async(),
        args=arguments,
        train_dataset=Dataset.from_list(rows * 4),
        processing_class=tokenizer,
    )
    trainer.train()
    reward.close()

    decided = 0
    for batch in seen:
        for row, text, value in zip(batch["inputs"], batch["completions"], batch["rewards"], strict=True):
            if row["reference"] is None or "hm" in text:
                assert math.isnan(value)
            else:
                assert value == (1.0 if _last_box(text) == "20" else 0.25)
                decided += 1
        groups = torch.tensor(batch["rewards"]).view(-1, 8)
        centred = groups - groups.nanmean(dim=1, keepdim=True)  # the baseline is over the rows that count
        advantages = torch.tensor(batch["advantages"]).view(-1, 8)
        assert torch.equal(advantages == 0, centred.isnan() | centred.eq(0))
        assert torch.equal(advantages.sign(), centred.nan_to_num().sign())
    values = [value for batch in seen for value in batch["rewards"]]
    assert {1.0, 0.25} <= set(values), "the seed gives no right and wrong completions"
    assert 0 < decided < len(values)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    logged = [row for row in trainer.state.log_history if "rewards/composite/mean" in row]
    assert logged
    assert "parts/math/mean" in logged[0]
    assert reward.monitor.rows == len(values)


def _last_box(text: str) -> str | None:
    boxes = re.findall(r"boxed\{(\d+)\}", text)
    return boxes[-1] if boxes else None
