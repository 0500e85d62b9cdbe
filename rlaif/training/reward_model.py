"""A reward model in use: texts in, scores out. The same `render` and the same reading of the score in its training, its
evaluation, PPO, GRPO, best-of-n and as a verifier.

    scorer = RewardModel.load("runs/reward")
    scores = scorer.score(prompts, completions)

Where the score is read is stored beside the weights (reward_model.json): at the token that ends the answer, found by
length. (transformers reads it at the last token that is not padding: one token early where pad and eos are the same.)
A text longer than the model was trained for has no score: a text without its end is another text.

Imports torch where a model is loaded or run.
"""

import asyncio
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError

from rlaif.config.base import Config
from rlaif.embedded import weights_digest
from rlaif.errors import InputError, TaskError
from rlaif.preferences import Turn
from rlaif.types import Reward, Unverified

POLICY = "reward_model.json"
Combine = Literal["mean", "worst", "uncertainty"]
Prompt = str | Sequence[Turn]  # text, or the conversation so far
Answer = str | Sequence[Turn]  # text, or the messages that answer


class ScorePolicy(Config):
    """How texts become token ids, and where the score is read. ``form``: whether rows are laid out by the chat template
    or are plain text. ``end_ids``: the tokens that end an answer; the first is added where a text has none.
    ``mean``, ``std``: of its scores after training, for putting several models on one scale."""

    version: Literal[1] = 1
    form: Literal["conversational", "plain"]
    end_ids: list[int] = Field(min_length=1)
    max_length: int
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


def render(tokenizer: Any, policy: ScorePolicy, prompt: Prompt, answer: Answer) -> list[int]:
    """The token ids of a prompt with its answer, ending in an end token: what follows the end (a template's line
    break) is left out, and a missing one is added. Raises InputError where the chat template refuses."""
    ends = set(policy.end_ids)
    if policy.form == "plain":
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise InputError("this reward model was trained on plain text; give prompt and completion as text.")
        ids = list(tokenizer(text=prompt + answer)["input_ids"])
    else:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        try:
            ids = list(tokenizer.apply_chat_template([*before, *after], tokenize=True, return_dict=True)["input_ids"])
        except Exception as error:  # noqa: BLE001  a template is somebody else's program: it may raise anything
            raise InputError(f"the model's chat template refuses this conversation ({error}).") from None
        end = max((i for i, token in enumerate(ids) if token in ends), default=-1)
        if end >= 0 and not tokenizer.decode(ids[end + 1 :]).strip():
            return ids[: end + 1]
    return ids if ids and ids[-1] in ends else [*ids, policy.end_ids[0]]


class Scorer(Protocol):
    """What gives scores: one reward model, or several."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float]: ...

    def score_where_it_fits(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float | None]: ...


class RewardModel:
    """One reward model. ``model``: a transformers model with a ``score`` head (or peft's wrapper around one).
    ``batch_tokens``: padded tokens in one forward pass; rows are sorted by length, so little of them is padding, and a
    row's score does not depend on its batch (but for rounding)."""

    def __init__(self, model: Any, tokenizer: Any, policy: ScorePolicy, *, batch_tokens: int = 4096) -> None:
        self.model, self.tokenizer, self.policy, self.batch_tokens = model, tokenizer, policy, batch_tokens

    @classmethod
    def load(
        cls,
        folder: str | Path | Sequence[str | Path],
        *,
        combine: Combine = "mean",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> "RewardModel | RewardEnsemble":
        """The reward model of a training's folder (or of its ``model/``); of several folders the ensemble. Raises
        InputError where there is none."""
        if not isinstance(folder, str | Path):
            return RewardEnsemble([cls._load(Path(one), device) for one in folder], combine)
        return cls._load(Path(folder), device)

    @classmethod
    def _load(cls, folder: Path, device: Literal["auto", "cpu", "cuda"]) -> "RewardModel":
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        at = model_folder(folder)
        policy = read_policy(at)
        cuda = device != "cpu" and torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise InputError("device: cuda, but torch finds no usable GPU; write 'device: auto'.")
        try:
            loader: Any = AutoModelForSequenceClassification
            dtype = torch.bfloat16 if cuda else torch.float32
            with quiet():
                model = loader.from_pretrained(at, num_labels=1, dtype=dtype).to("cuda" if cuda else "cpu")
            tokenizer = AutoTokenizer.from_pretrained(at)
        except (OSError, ValueError) as error:
            raise InputError(f"{at}: the reward model cannot be loaded ({str(error).splitlines()[0]}).") from None
        return cls(model.eval(), tokenizer, policy)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float]:
        """One score for each completion: higher is better, on a scale of the model's own. Raises InputError naming the
        first that is longer than the model was trained for."""
        scores = self.score_where_it_fits(prompts, completions)
        if long := [row for row, score in enumerate(scores) if score is None]:
            raise InputError(
                f"completion {long[0]} with its prompt is longer than the reward model's {self.policy.max_length}"
                f" tokens ({len(long)} of {len(scores)} are); shorten them, or train it with a higher max_length."
            )
        return [score for score in scores if score is not None]

    def score_where_it_fits(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float | None]:
        """As `score`; None for each that is too long."""
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions; give one of each for a row")
        ids = [render(self.tokenizer, self.policy, *row) for row in zip(prompts, completions, strict=True)]
        fitting = [row for row, tokens in enumerate(ids) if len(tokens) <= self.policy.max_length]
        found = dict(zip(fitting, self.score_ids([ids[row] for row in fitting]), strict=True))
        return [found.get(row) for row in range(len(ids))]

    def score_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The scores of rows that `render` made."""
        import torch

        was_training = self.model.training
        self.model.eval()
        scores = [0.0] * len(rows)
        with torch.inference_mode():
            for batch in _batches([len(row) for row in rows], self.batch_tokens):
                found = end_scores(self.model, [rows[i] for i in batch])
                for i, score in zip(batch, found.tolist(), strict=True):
                    scores[i] = score
        self.model.train(was_training)
        return scores


class RewardEnsemble:
    """Several reward models as one (Coste et al., arXiv 2310.02743). The scores of each are first put on one scale, by
    its own mean and standard deviation after training. ``combine``: their mean; the worst of them; or the mean less
    ``spread_cost`` times their variance."""

    def __init__(self, members: Sequence[RewardModel], combine: Combine, *, spread_cost: float = 1.0) -> None:
        if not members:
            raise InputError("an ensemble needs at least one reward model.")
        self.members, self.combine, self.spread_cost = list(members), combine, spread_cost

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float]:
        """As `RewardModel.score`, in standard deviations."""
        each = [_standard(member, member.score(prompts, completions)) for member in self.members]
        return [self._one(row) for row in zip(*each, strict=True)]

    def score_where_it_fits(self, prompts: Sequence[Prompt], completions: Sequence[Answer]) -> list[float | None]:
        """As `score`; None for each that is too long for one of them."""
        each = [_standard(m, m.score_where_it_fits(prompts, completions)) for m in self.members]
        return [None if None in row else self._one(row) for row in zip(*each, strict=True)]

    def _one(self, scores: Sequence[float]) -> float:
        if self.combine == "worst":
            return min(scores)
        mean = statistics.fmean(scores)
        return mean if self.combine == "mean" else mean - self.spread_cost * statistics.pvariance(scores)


def _standard(member: RewardModel, scores: Sequence[Any]) -> list[Any]:
    mean, std = member.policy.mean, member.policy.std
    return [None if score is None else (score - mean) / std for score in scores]


def end_states(model: Any, batch: Mapping[str, Any]) -> Any:
    """The last hidden states (N, hidden) at ``batch["ends"]``: (row, position) of each of N texts. ``model``: with a
    ``score`` head, or peft's wrapper around one."""
    inner = scored_model(model)
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "position_ids")}
    hidden = getattr(inner, inner.base_model_prefix)(**inputs, use_cache=False).last_hidden_state
    rows, positions = batch["ends"].unbind(dim=-1)
    return hidden[rows, positions]


def scored_model(model: Any) -> Any:
    """The transformers model within peft's wrapper, if there is one; its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def end_scores(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Scores (N,) of rows of token ids, padded on the right, where causal attention cannot see it."""
    import torch

    longest, device = max(map(len, rows)), next(model.parameters()).device
    # Any token would do: it is behind all that is read.
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    ends = torch.tensor([[i, len(row) - 1] for i, row in enumerate(rows)], device=device)
    states = end_states(model, {"input_ids": ids, "attention_mask": mask, "ends": ends})
    return scored_model(model).score(states).squeeze(-1).float()


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``tokens`` tokens with padding (one row at least), shortest rows first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says of a head that is new, or on one device."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def model_folder(folder: Path) -> Path:
    """The folder with the weights: a training's ``model/``, or that folder itself. Raises InputError."""
    for at in (folder / "model", folder):
        if (at / POLICY).is_file():
            return at
    raise InputError(f"{folder}: holds no reward model of `rlaif train reward` (no {POLICY}).")


def read_policy(folder: Path) -> ScorePolicy:
    """Raises InputError."""
    try:
        return ScorePolicy.model_validate_json((folder / POLICY).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise InputError(f"{folder / POLICY}: cannot be read ({str(error).splitlines()[0]}).") from None


# ---------------------------------------------------------------------------------------------- as a verifier


class RewardModelOptions(Config):
    """``model``: the folder of a reward model, or several for an ensemble (``combine``). ``scale``: "probability" is
    sigmoid((score - mean) / std), 0 to 1: how probably it is better than the average answer it was trained on; "raw" is
    the score itself, for which the reward's ``range`` must be set."""

    model: str | list[str]
    combine: Combine = "mean"
    scale: Literal["probability", "raw"] = "probability"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RewardModelVerifier:
    """A reward model as a part of a reward:

        reward: {verifier: reward_model, options: {model: runs/reward}}

    The task's ``prompt`` (text, or messages) is what the completion answers. Completions that are asked about at the
    same time are scored together. A text that is too long for the model is not decided.
    """

    Options = RewardModelOptions

    def __init__(self, options: RewardModelOptions) -> None:
        self.options = options
        folders = [options.model] if isinstance(options.model, str) else options.model
        found = [model_folder(Path(folder).expanduser()) for folder in folders]
        for folder in found:
            read_policy(folder)
        self.identity = "reward_model@" + "+".join(weights_digest(folder)[:12] for folder in found)
        self._folders: list[Path] = found
        self._scorer: Scorer | None = None
        self._asked: list[tuple[Prompt, str, asyncio.Future[float | None]]] = []
        self._busy = asyncio.Lock()

    async def prepare(self, task: Mapping[str, Any]) -> None:
        """Raises TaskError for a task without a prompt."""
        _prompt(task)

    async def verify(self, completion: str, task: Mapping[str, Any]) -> Reward | Unverified:
        prompt = _prompt(task)
        answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._asked.append((prompt, completion, answer))
        async with self._busy:  # whoever comes first scores all that were asked while it waited
            if not answer.done():
                await self._score_asked()
        score = await answer
        if score is None:
            return Unverified(reason="abstained", detail="the text is longer than the reward model's max_length")
        if not math.isfinite(score):
            return Unverified(reason="infrastructure", detail=f"the reward model's score is {score}")
        return Reward(value=score)

    async def _score_asked(self) -> None:
        asked, self._asked = self._asked, []
        try:
            scores = await asyncio.to_thread(self._score, [p for p, _, _ in asked], [c for _, c, _ in asked])
        except Exception as error:  # noqa: BLE001  raised again where each of them waits
            for _, _, answer in asked:
                answer.set_exception(error)
            return
        except BaseException:  # this caller is given up; the others score themselves
            self._asked = [*asked, *self._asked]
            raise
        for (_, _, answer), score in zip(asked, scores, strict=True):
            answer.set_result(score)

    def _score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        if self._scorer is None:
            one = isinstance(self.options.model, str)
            self._scorer = RewardModel.load(
                self._folders[0] if one else self._folders, combine=self.options.combine, device=self.options.device
            )
        scores = self._scorer.score_where_it_fits(prompts, completions)
        if self.options.scale == "raw":
            return scores
        scaled = _standard(self._scorer, scores) if isinstance(self._scorer, RewardModel) else scores
        return [None if score is None else _sigmoid(score) for score in scaled]

    async def aclose(self) -> None:
        self._scorer = None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _prompt(task: Mapping[str, Any]) -> Prompt:
    prompt = task.get("prompt")
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt):
        return prompt
    raise TaskError("a reward model needs the task's prompt, as text or as messages.")


__all__ = ["RewardEnsemble", "RewardModel", "RewardModelVerifier", "ScorePolicy", "Scorer", "render"]
