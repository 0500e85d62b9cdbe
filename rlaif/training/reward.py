"""`rlaif train reward`: preference pairs and a model in, a reward model out, in one folder (see folder.py).

Success is declared after the model on disk has been read back and gives the scores that it gave in training."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.config.train import TrainRewardConfig
from rlaif.embedded import keep_buffers
from rlaif.errors import InputError, QualityError
from rlaif.preferences import Pair, Preferences, counted, read_preferences
from rlaif.runs import write_text
from rlaif.training.check import (
    ModelReport,
    PairsCheck,
    cost_lines,
    cost_report,
    installed,
    labelled,
    model_lines,
    need_template,
    note,
    pairs_findings,
    pairs_lines,
    pairs_report,
    setting_reports,
    versions_line,
)
from rlaif.training.folder import CHECKPOINTS, Progress, StopAsked, Trained, TrainResult, train_in_folder
from rlaif.training.model import load_tokenizer, model_facts, tokenizer_facts
from rlaif.training.plan import Plan, Setting, Work, decide, held_out, pair_load, start_notes, this_machine
from rlaif.training.reward_model import POLICY, RewardModel, ScorePolicy, model_folder, render
from rlaif.training.reward_report import RewardReport, make_report
from rlaif.training.tokens import TokenizedPairs, TokenPair

_SAME_SCORES = 1e-3  # of a standard deviation (and of 1): merging an adapter and writing weights only rounds


@dataclass(frozen=True)
class Tokenized:
    """A pair with its token ids: ``ids.prompt`` is what both sides begin with."""

    pair: Pair
    ids: TokenPair

    @property
    def prompt(self) -> str:
        return repr(self.pair.prompt)


@dataclass(frozen=True)
class Prepared:
    """A training ready to begin: the report, and what it was made from."""

    report: PairsCheck
    plan: Plan
    policy: ScorePolicy
    tokenizer: Any
    model_path: str
    train: list[Tokenized]
    evaluate: list[Tokenized]
    eval_too_long: int


def check_reward(config: TrainRewardConfig) -> PairsCheck:
    """What ``train_reward(config)`` would do. Raises InputError when it could not: no pairs, data of another kind, no
    such model, no chat template for conversational pairs, not enough memory."""
    return prepare(config).report


def prepare(config: TrainRewardConfig) -> Prepared:
    """All of a training that needs no weights. Raises as `check_reward`."""
    data = read_preferences(config.data, config.limit)
    digest = labelled(data, config.labels)
    _margins_given(config, data)
    versions = installed()
    tokenizer = load_tokenizer(config.model_name)
    tokens = tokenizer_facts(tokenizer, config.model_name)
    need_template(data.format, data.source, tokens, config)
    facts = model_facts(config.model_name, config.lora, "score")
    ends = [tokenizer.eos_token_id, *(end for end in tokens.end_ids if end != tokenizer.eos_token_id)]
    policy = ScorePolicy(form=data.format, end_ids=ends, max_length=config.max_length)
    found, dropped, longest = _tokenized(data.pairs, tokenizer, policy)
    if not found:
        raise InputError(
            f"{data.source}: no pair is left at max_length {config.max_length} ({counted(dropped)});"
            f" the longest needs {longest} tokens."
        )
    train, evaluate, too_long, overlap = _held_out(config, found, tokenizer, policy)
    machine = this_machine(config.device)
    notes: list[Setting] = []
    share = machine.device == "cpu"
    start_notes(config, facts, machine, notes)
    notes += _own_settings(config, tokens, share)
    loads = [[pair_load(row.ids, share, ends=True) for row in side] for side in (train, evaluate)]
    work = Work("pair", loads[0], loads[1], config.epochs, measured_once=True)
    plan = decide(config, facts, machine, work, notes, share_prompts=share)
    as_tokens = TokenizedPairs(tuple(row.ids for row in found), dropped, 0, longest, 2 * len(found), 0)
    pairs, cost = pairs_report(data, as_tokens, digest), cost_report(config, plan, machine)
    model = ModelReport(
        name=facts.name,
        architecture=facts.architecture,
        parameters=facts.parameters,
        trained=facts.trained,
        chat_template=tokens.chat_template,
        eos=tokens.eos,
        pad=tokens.pad,
        ends_in_eos=1.0,
    )
    report = PairsCheck(
        data=pairs,
        model=model,
        cost=cost,
        lines=[
            *pairs_lines(pairs),
            *model_lines(model, "texts"),
            ("held out", f"{len(evaluate)} pairs, of {config.eval_data or 'data'}; {overlap} prompts also in training"),
            *cost_lines(cost, "pairs"),
            versions_line(versions),
        ],
        settings=setting_reports(plan.settings),
        findings=[
            *pairs_findings(data, tokens, plan, facts, min(config.max_length, longest)),
            *([] if evaluate else [note("no pair is held out: it will be measured on what it was trained on.")]),
        ],
        versions=versions,
    )
    return Prepared(report, plan, policy, tokenizer, facts.path, train, evaluate, too_long)


def _margins_given(config: TrainRewardConfig, data: Preferences) -> None:
    if config.margins and (lacking := [pair for pair in data.pairs if pair.margin is None]):
        raise InputError(
            f"{data.source}: {lacking[0].row} has no margin ({len(lacking)} of {len(data.pairs)} pairs have none);"
            " 'margins: true' needs a number in every row."
        )


def _own_settings(config: TrainRewardConfig, tokens: Any, share: bool) -> list[Setting]:
    once = "a pair is one row with its prompt once, nothing padded; used if the model's states stay the same"
    pad = f"pad and eos are both {tokens.eos}: " if tokens.pad == tokens.eos else ""
    return [
        Setting("labels", config.labels, "config" if config.labels == "soft" else "the chosen answer is better"),
        Setting("score read at", tokens.eos, f"{pad}the end of the answer, found by length and never by padding"),
        Setting("shared prompts", share, once if share else "on a GPU two padded rows are faster"),
        Setting("pairs of like length", "together", "inside one optimizer step: the same step with less padding"),
    ]


def _tokenized(pairs: Sequence[Pair], tokenizer: Any, policy: ScorePolicy) -> tuple[list[Tokenized], Counter[Any], int]:
    """Pairs with their token ids, why others have none, and the tokens of the longest text."""
    kept: list[Tokenized] = []
    dropped: Counter[Any] = Counter()
    longest = 0
    for pair in pairs:
        try:
            chosen, rejected = (render(tokenizer, policy, pair.prompt, side) for side in (pair.chosen, pair.rejected))
        except InputError as error:
            raise InputError(f"{pair.row}: {error}") from None
        longest = max(longest, len(chosen), len(rejected))
        if max(len(chosen), len(rejected)) > policy.max_length:
            dropped["too_long"] += 1
        elif chosen == rejected:
            dropped["identical"] += 1
        else:
            kept.append(Tokenized(pair, _split(chosen, rejected, pair)))
    return kept, dropped, longest


def _split(chosen: Sequence[int], rejected: Sequence[int], pair: Pair) -> TokenPair:
    """All that both begin with is computed once; each side keeps one token at least."""
    end = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(end) if chosen[i] != rejected[i]), end)
    prob = 1.0 if pair.prob_chosen is None else pair.prob_chosen
    return TokenPair(tuple(chosen[:shared]), tuple(chosen[shared:]), tuple(rejected[shared:]), prob, pair.margin or 0.0)


def _held_out(
    config: TrainRewardConfig, found: list[Tokenized], tokenizer: Any, policy: ScorePolicy
) -> tuple[list[Tokenized], list[Tokenized], int, int]:
    """(train, evaluate, held-out pairs that are too long, prompts in both)."""
    if config.eval_data is None:
        train, evaluate = held_out(found, config.eval_fraction, config.seed)
        if not train:
            raise InputError(f"{config.data}: all of its {len(evaluate)} pairs were held out; lower eval_fraction.")
        return train, evaluate, 0, 0
    other = read_preferences(config.eval_data)
    if other.format != policy.form:
        raise InputError(
            f"{other.source}: is {other.format}, and {config.data} is {policy.form}; a reward model reads one form."
        )
    evaluate, dropped, _ = _tokenized(other.pairs, tokenizer, policy)
    if not evaluate:
        raise InputError(f"{other.source}: no pair is left at max_length {config.max_length} ({counted(dropped)}).")
    known = {row.prompt for row in found}
    overlap = sum(row.prompt in known for row in evaluate)
    return found, evaluate, dropped["too_long"], overlap


# -------------------------------------------------------------------------------------------------------- training


def train_reward(
    config: TrainRewardConfig,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, note: None,
    on_check: Callable[[PairsCheck], None] = lambda report: None,
) -> TrainResult:
    """Train a reward model on the pairs of ``config.data`` and leave it in ``config.out``, where `RewardModel.load`
    finds it.

    ``on_check`` gets the report of `check_reward` before anything is computed. A folder that holds this training
    finished already is returned as it is. ``resume`` continues from the last checkpoint, exactly.

    Raises InputError for what `check_reward` refuses, for a folder made with another config or other data, and for an
    unfinished one without ``resume``; QualityError when the loss is no longer a number, and when the model read back
    from disk gives other scores; KeyboardInterrupt after Ctrl-C, once the step in progress is done and its checkpoint
    written (at once when pressed again).
    """
    prepared = prepare(config)
    on_check(prepared.report)

    def train(checkpoint: Path | None, stop: StopAsked) -> Trained:
        return _train(config, prepared, checkpoint, stop, progress)

    manifest = prepared.report.manifest("train reward", config)
    return train_in_folder(config, manifest, train, steps=prepared.plan.steps, resume=resume)


def _train(
    config: TrainRewardConfig, prepared: Prepared, checkpoint: Path | None, stop: StopAsked, progress: Progress
) -> Trained:
    from transformers import set_seed

    from rlaif.training.callbacks import make_callbacks
    from rlaif.training.saving import run
    from rlaif.training.trl_adapter.reward import make_trainer

    if prepared.plan.device == "cpu":
        keep_buffers()
    set_seed(config.seed)  # the adapter's first weights are drawn
    trainer = make_trainer(
        config,
        prepared.plan,
        [row.ids for row in prepared.train],
        prepared.tokenizer,
        prepared.model_path,
        config.out / CHECKPOINTS,
        make_callbacks(progress, prepared.plan, stop),
    )
    run(trainer, checkpoint)
    if stop.asked:  # a checkpoint is written; what follows takes long
        return Trained(lambda folder: None, None, {})
    scorer = RewardModel(trainer.model, prepared.tokenizer, prepared.policy)
    measured = _measured(scorer, prepared, progress)
    policy = prepared.policy.model_copy(update={"mean": measured.mean, "std": measured.std})
    sample = [side for row in (prepared.evaluate or prepared.train)[:16] for side in _sides(row)]
    expected = scorer.score_ids(sample)

    def save_model(folder: Path) -> None:
        model = trainer.trained_model()
        model.config.pad_token_id = _unused_pad(prepared)
        model.save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)
        write_text(folder / POLICY, policy.model_dump_json(indent=2) + "\n")
        _same_scores(folder, sample, expected, policy, prepared.plan)

    facts = {
        "shared_prompts": trainer.shares_prompts,
        "reward": measured.model_dump(mode="json"),
        "summary": _summary(measured, bool(prepared.evaluate)),
        "curve": _curve(trainer.state.log_history),
    }
    return Trained(save_model, trainer.save_adapter if config.lora else None, facts)


def _sides(row: Tokenized) -> tuple[list[int], list[int]]:
    return [*row.ids.prompt, *row.ids.chosen], [*row.ids.prompt, *row.ids.rejected]


def _measured(scorer: RewardModel, prepared: Prepared, progress: Progress) -> RewardReport:
    """On the held-out pairs; without any, on the training pairs (the manifest says which: ``eval_rows``)."""
    rows = prepared.evaluate or prepared.train
    progress(prepared.plan.steps, prepared.plan.steps, f"measuring {len(rows)} held-out pairs")
    scores = scorer.score_ids([side for row in rows for side in _sides(row)])
    pairs = [row.pair for row in rows]
    train = [row.pair for row in prepared.train]
    return make_report(pairs, scores[::2], scores[1::2], train, prepared.eval_too_long)


def _summary(measured: RewardReport, held_out: bool) -> str:
    one = measured.accuracy
    words = f", a bag of words {measured.bag_of_words.value:.1%}" if measured.bag_of_words else ""
    return (
        f"{measured.pairs} {'held-out' if held_out else 'training'} pairs: {one.value:.1%} in the right order"
        f" ({one.low:.1%} to {one.high:.1%}); the longer answer {measured.longer_wins.value:.1%}{words}"
    )


def _unused_pad(prepared: Prepared) -> int | None:
    """A special token that ends no answer, for the config of the model. Others find a score at the last token that is
    not padding: with eos as padding they would read it one token early. None where there is no such token; they then
    refuse batches instead."""
    rows = [*prepared.train, *prepared.evaluate]
    used = {token for row in rows for part in (row.ids.prompt, row.ids.chosen, row.ids.rejected) for token in part}
    special = sorted(prepared.tokenizer.all_special_ids)
    return next((token for token in special if token not in used and token not in prepared.policy.end_ids), None)


def _same_scores(
    folder: Path, sample: Sequence[Sequence[int]], expected: Sequence[float], policy: ScorePolicy, plan: Plan
) -> None:
    """Raises QualityError where the model in ``folder`` does not give the scores of the trained one."""
    reloaded = RewardModel.load(model_folder(folder), device=plan.device)
    assert isinstance(reloaded, RewardModel)
    found = reloaded.score_ids(sample)
    worst = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    allowed = _SAME_SCORES * max(1.0, policy.std) * (50 if plan.device == "cuda" else 1)  # bf16 rounds to 3 digits
    if not worst <= allowed:
        raise QualityError(
            f"the reward model that was written scores otherwise than the one that was trained (by up to {worst:.3g});"
            " the checkpoints are kept."
        )


_LOGGED = {
    "loss": "loss",
    "margin": "margin",
    "accuracy": "accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """For each step: the loss, the mean difference in score, the share of pairs in the right order, the learning rate
    and the norm of the gradient."""
    return [
        {"step": entry["step"], **{name: float(entry[key]) for key, name in _LOGGED.items() if key in entry}}
        for entry in log_history
        if "loss" in entry
    ]


__all__ = ["Prepared", "check_reward", "prepare", "train_reward"]
