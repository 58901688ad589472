"""The orders that the worker carries out on data that it has prepared, and the paths that a run spec must not name."""

import functools
import runpy
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.installed_package import VECTORS, Site, plugin
from support.small_survey import DIMENSION, SUMS, small_group, small_spec, write_version_0

from pluralllm.client.data.answers import sha256_of
from pluralllm.client.data.private_data import write_group
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.work import command_loop, worker
from pluralllm.client.work.embedding_notes import read_notes
from pluralllm.client.work.orders import Evaluate, Prepare, Prepared, Reward, Train
from pluralllm.client.work.sums import GroupTerms, answer_sums
from pluralllm.client.work.train import evaluate, evaluation_episode, reward_context, train
from pluralllm.client.work.worker import LocalWork, PreparedRun, Scorer, check_names_no_path
from pluralllm.common.errors.tree import (
    DataChanged,
    InvalidArgument,
    PluginMissing,
    PluralError,
    PolicyForbids,
    TooFewQuestions,
)
from pluralllm.common.predictor.blindness import Blindness
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import flat_values, rewards_layout, tensors_of
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.questions import HoldOut, Question
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.common.words.spec import GroupRole, RunSpec


def test_a_model_id_that_is_also_a_folder_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_names_no_path("mine/model", None)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(PolicyForbids, match="allowed_embedding_models is mine/model"):
        check_names_no_path("mine/model", None)


def test_a_folder_that_the_partner_has_configured_is_used_whatever_the_id_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    check_names_no_path("mine", tmp_path / "mine")


REWARDS = RewardRun(source="runs/s/models/0", model_digest="0" * 64)
REWARDING = small_spec().model_copy(update={"rewards": REWARDS})


PREPARED = Prepared(60, "cpu", ("the difference between options of some questions",))


class MadeUpEmbedder:
    """An embedding model that makes its vectors up, the same for the same text. It keeps what was asked of it."""

    def __init__(self, *facts: object) -> None:
        self.facts, self.calls = facts, ["open"]
        self.blindness = Blindness(questions=60, alike_questions=2)

    def check_probes(self) -> None:
        self.calls.append("check probes")

    def embed_questions(
        self, questions: Sequence[Question], on_progress: Callable[[int, int], None]
    ) -> list[NDArray[np.float32]]:
        self.calls.append("embed")
        on_progress(1, 2)
        return [
            np.random.default_rng(len(question.options)).normal(size=(len(question.options), DIMENSION)).astype("<f4")
            for question in questions
        ]

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def embedders(monkeypatch: pytest.MonkeyPatch) -> list[MadeUpEmbedder]:
    """Returns the list of the embedding models that the worker opens."""
    opened: list[MadeUpEmbedder] = []

    def embedder(*facts: object) -> MadeUpEmbedder:
        opened.append(MadeUpEmbedder(*facts))
        return opened[-1]

    monkeypatch.setattr(worker, "Embedder", embedder)
    return opened


def order_to_prepare(data: Path, data_sha256: str, spec: RunSpec | None = None, **changes: Any) -> Prepare:
    spec_json = (spec or small_spec()).canonical_json().decode()
    order = Prepare(spec_json, data, data_sha256, "G", GroupRole.TRAIN, data.parent / "cache", None, "cpu", None)
    return replace(order, **changes)


def order_for(
    folder: Path, spec: RunSpec | None = None, questions: Sequence[Question] = small_group().questions, **changes: Any
) -> Prepare:
    """Returns an order to prepare a run with a private file that has these questions."""
    write_group(folder / "answers.jsonl", questions)
    return order_to_prepare(folder / "answers.jsonl", sha256_of(folder / "answers.jsonl"), spec, **changes)


def test_to_prepare_a_run_reads_the_file_checks_the_model_and_embeds_once(
    tmp_path: Path, embedders: list[MadeUpEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    work, steps, order = LocalWork(), [], order_for(tmp_path)
    order.cache.mkdir()
    for _ in range(2):
        assert work.prepare(lambda *step: steps.append(step), order) == PREPARED
    notes = read_notes(order.cache, order.data)
    assert notes is not None
    assert notes.not_seen == PREPARED.not_seen
    assert steps == [("embedding", 1, 2)]
    (embedder,) = embedders
    assert embedder.facts == (small_spec().embedding, None, tmp_path / "cache", torch.device("cpu"))
    assert embedder.calls == ["open", "check probes", "embed", "close"]
    run = work._runs[small_spec().sha256()]
    assert (run.spec, run.data.group, run.role, run.device) == (small_spec(), "G", GroupRole.TRAIN, torch.device("cpu"))
    assert threads == []
    work.prepare(quietly, order_for(tmp_path, REWARDING, threads=3))
    assert threads == [3]
    assert list(work._runs) == [REWARDING.sha256()]


def test_the_embedding_model_stays_open_for_a_run_that_asks_for_rewards_until_the_next_run(
    tmp_path: Path, embedders: list[MadeUpEmbedder]
) -> None:
    work = LocalWork()
    work.prepare(quietly, order_for(tmp_path, REWARDING))
    assert work._embedder is cast(Any, embedders[0])
    work._scorer = Scorer(tmp_path, 7, cast(Any, Guesser()), 40)
    work.prepare(quietly, order_for(tmp_path))
    assert [embedder.calls[-1] for embedder in embedders] == ["close", "close"]
    assert embedders[0].calls.count("close") == 1
    assert [work._embedder, work._scorer] == [None, None]


def few(trained: int, held_out: int) -> list[Question]:
    """Returns so many questions that a training group of `small_spec` trains on, and so many that nobody trains on."""
    share, questions = small_spec().evaluation.holdout_share, small_group().questions
    kinds: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        kinds[HoldOut(share, by_key=False).includes(question)].append(question)
    return [*kinds[False][:trained], *kinds[True][:held_out]]


@pytest.mark.parametrize(
    ("trained", "held_out", "role", "use"),
    [
        (8, 1, GroupRole.TRAIN, None),
        (7, 1, GroupRole.TRAIN, "the run spec's episodes"),
        (8, 0, GroupRole.TRAIN, "an evaluation on questions nobody trains on"),
        (6, 1, GroupRole.HELD_OUT, None),
        (6, 0, GroupRole.HELD_OUT, "an evaluation"),
    ],
)
def test_a_group_with_too_few_questions_for_its_role_is_refused_before_any_work(
    tmp_path: Path, embedders: list[MadeUpEmbedder], trained: int, held_out: int, role: GroupRole, use: str | None
) -> None:
    work, order = LocalWork(), order_for(tmp_path, questions=few(trained, held_out), role=role)
    if use is None:
        assert work.prepare(quietly, order).questions == trained + held_out
        return
    with pytest.raises(TooFewQuestions, match="G "):
        work.prepare(quietly, order)
    assert (work._runs, embedders[0].calls[-1]) == ({}, "close")


@pytest.mark.parametrize("role", GroupRole)
def test_only_a_training_group_of_a_run_of_sums_makes_terms(
    tmp_path: Path, embedders: list[MadeUpEmbedder], role: GroupRole
) -> None:
    for spec, has_terms in ((small_spec(SUMS), role is GroupRole.TRAIN), (small_spec(), False)):
        work = LocalWork()
        work.prepare(quietly, order_for(tmp_path, spec, role=role))
        assert (work._runs[spec.sha256()].terms is not None) == has_terms
    assert len(embedders) == 2


def test_a_run_for_rewards_needs_no_questions_to_train_or_to_evaluate_on(
    tmp_path: Path, embedders: list[MadeUpEmbedder]
) -> None:
    assert LocalWork().prepare(quietly, order_for(tmp_path, REWARDING, few(2, 0))).questions == 2
    assert embedders[0].calls[-1] == "embed"


def test_a_device_that_is_not_here_and_a_model_that_is_a_path_are_refused_before_the_file_is_read(
    tmp_path: Path, embedders: list[MadeUpEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    for device, refusal in (("cuda:99", InvalidArgument), ("cpu", PolicyForbids)):
        with pytest.raises(refusal):
            LocalWork().prepare(quietly, order_to_prepare(tmp_path / "none", "", device=device))
    assert LocalWork().prepare(quietly, order_for(tmp_path, model_path=tmp_path / "m")).questions == 60
    assert [embedder.facts[1] for embedder in embedders] == [tmp_path / "m"]


def test_a_private_file_that_is_not_the_announced_one_is_not_used(tmp_path: Path) -> None:
    write_group(tmp_path / "answers.jsonl", small_group().questions)
    work = LocalWork()
    with pytest.raises(DataChanged):
        work.prepare(quietly, order_to_prepare(tmp_path / "answers.jsonl", "0" * 64))
    assert work._runs == {}


def test_a_run_is_prepared_again_only_if_the_private_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def note(_work: LocalWork, _report: object, order: Prepare) -> PreparedRun:
        read.append(order.data_sha256)
        return PreparedRun(small_spec(), small_group(), GroupRole.TRAIN, torch.device("cpu"))

    monkeypatch.setattr(LocalWork, "_read", note)
    work = LocalWork()
    for data_sha256 in ("a", "a", "b", "b", "a"):
        work.prepare(quietly, order_to_prepare(tmp_path, data_sha256))
    assert read == ["a", "b", "a"]


# Orders on prepared data


class Guesser:
    """A predictor that gives each candidate of a question the same share."""

    def predict(self, questions: Sequence[Question]) -> tuple[PredictedAnswer, ...]:
        even = [np.full(len(question.options), 1 / len(question.options), np.float32) for question in questions]
        return tuple(PredictedAnswer(shares, shares, shares) for shares in even)


def prepared(spec: RunSpec, data: GroupData | None = None) -> tuple[LocalWork, Digest]:
    """Returns a worker that has prepared a run, and the name of the run in orders."""
    work = LocalWork()
    work._runs[spec.sha256()] = PreparedRun(spec, data or small_group(), GroupRole.HELD_OUT, torch.device("cpu"))
    return work, spec.sha256()


def quietly(*_: object) -> None:
    pass


def test_the_contexts_of_an_evaluation_follow_from_the_orders_seed(tmp_path: Path) -> None:
    spec = small_spec()
    work, run = prepared(spec)
    weights = write_version_0(tmp_path / "v0", spec)
    first, again, other = (work.evaluate(quietly, Evaluate(run, weights, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.alignment_score != other.alignment_score
    size = spec.evaluation.context_questions
    assert (first.questions, first.scale_questions) == (60 - size, 60 - size - without_scale(spec, 1))


def test_a_group_of_a_run_of_sums_answers_with_terms_that_it_keeps(tmp_path: Path) -> None:
    spec = small_spec(SUMS)
    work, run, terms = LocalWork(), spec.sha256(), GroupTerms(spec, small_group(), torch.device("cpu"))
    work._runs[run] = PreparedRun(spec, small_group(), GroupRole.TRAIN, torch.device("cpu"), terms)
    base, outs = write_version_0(tmp_path / "v0", spec), [tmp_path / name for name in ("by the worker", "alone")]
    steps: list[tuple[str, int, int]] = []
    order = Train(run, base, outs[0], 7, 1, tmp_path / "moments", tmp_path / "residual")
    done = work.train(lambda stage, did, total: steps.append((stage, did, total)), order)
    alone = answer_sums(base, outs[1], spec, terms, lambda *_: None)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (done.digest, done.examples, done.measured.target_questions) == (
        alone.manifest.digest,
        alone.examples,
        alone.examples,
    )
    assert (done.measured.loss, done.measured.first_target_questions) == (alone.mean_loss, 0)
    assert steps == [("training", 0, 1), ("training", 1, 1)]


@pytest.mark.parametrize("round_number", [1, 3])
def test_the_schedule_of_the_learning_rate_goes_on_over_rounds(tmp_path: Path, round_number: int) -> None:
    spec = small_spec({"rounds": 10, "training": {"schedule": "cosine", "local_steps": 2, "optimizer": "sgd"}})
    work, run = prepared(spec)
    base = write_version_0(tmp_path / "v0", spec)
    outs = [tmp_path / name for name in ("by the worker", "alone")]
    states = tmp_path / "moments", tmp_path / "residual"
    steps: list[tuple[str, int, int]] = []

    def report(stage: str, done: int, total: int) -> None:
        steps.append((stage, done, total))

    done = work.train(report, Train(run, base, outs[0], 7, round_number, *states))
    first_step = 2 * (round_number - 1)
    alone = train(base, outs[1], spec, small_group(), 7, first_step, torch.device("cpu"), *states, lambda *_: None)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (done.digest, done.examples) == (alone.manifest.digest, alone.examples)
    assert done.measured == MeasuredTraining(
        loss=alone.mean_loss,
        base_distance=alone.base_distance,
        target_questions=alone.target_questions,
        first_target_questions=alone.first_target_questions,
    )
    assert done.gpu_memory_bytes == 0
    assert steps == [("training", 0, 2), ("training", 1, 2), ("training", 2, 2)]


def without_scale(spec: RunSpec, seed: int) -> int:
    """Returns how many target questions of a draw have one position on their scale, the same number in each draw."""
    data = small_group()
    draws = [evaluation_episode(spec, data, GroupRole.HELD_OUT, draw, seed).targets for draw in range(2)]
    counts = [sum(len(data.questions[number].options) == 2 for number in targets) for targets in draws]
    return -(-sum(counts) // len(counts))


def test_the_memory_of_a_gpu_is_reported_only_if_the_work_was_done_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, run = prepared(small_spec())
    base = write_version_0(tmp_path / "v0", small_spec())
    order = Train(run, base, tmp_path / "out", 7, 1, tmp_path / "moments", tmp_path / "residual")
    first = train(base, tmp_path / "x", small_spec(), small_group(), 7, 0, torch.device("cpu"), *order_states(order))
    monkeypatch.setattr(worker, "train", lambda *_: first)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device.type == "cuda" else 8)
    assert work.train(quietly, order).gpu_memory_bytes == 0
    work._runs[run] = replace(work._runs[run], device=torch.device("cuda"))
    assert work.train(quietly, order).gpu_memory_bytes == 7


def order_states(order: Train) -> tuple[Path, Path, Callable[[int, int], None]]:
    return order.optimizer_state, order.residual, quietly


def test_an_evaluation_reports_the_scores_for_one_draw_and_its_progress(tmp_path: Path) -> None:
    spec = small_spec()
    work, run = prepared(spec)
    weights, steps = write_version_0(tmp_path / "v0", spec), []
    scores = work.evaluate(lambda *step: steps.append(step), Evaluate(run, weights, 5))
    alone = evaluate(weights, spec, small_group(), GroupRole.HELD_OUT, torch.device("cpu"), quietly, 5)
    assert scores == MeasuredScores(
        alignment_score=alone.alignment.score,
        context_gain=alone.context_gain,
        wasserstein_score=alone.alignment.wasserstein,
        questions=alone.alignment.questions // 2,
        scale_questions=alone.alignment.ordinal_questions // 2,
    )
    assert steps == [("evaluating", 0, 2), ("evaluating", 1, 2), ("evaluating", 2, 2)]


# Rewards


class Overshooting:
    """A predictor whose shares lie outside of 0 and 1, by rounding."""

    def predict(self, questions: Sequence[Question]) -> tuple[PredictedAnswer, ...]:
        shares = np.array([1.7, -0.2, 0.876], np.float32)
        return tuple(PredictedAnswer(shares, shares, shares) for _ in questions)


def rollouts(prompts: int, candidates: int = 3) -> str:
    options = tuple(f"option {number}" for number in range(candidates))
    return write_rollouts([Candidates(f"which {number}?", options) for number in range(prompts)]).decode()


def test_rewards_are_shares_between_0_and_1_and_the_progress_counts_prompts(tmp_path: Path) -> None:
    work, run = prepared(REWARDING)
    work._scorer, steps, out = Scorer(tmp_path, 7, cast(Any, Overshooting()), 4), [], tmp_path / "out"
    done = work.reward(lambda *step: steps.append(step), Reward(run, tmp_path, rollouts(2), out, 7))
    assert flat_values(out, rewards_layout(6)).tolist() == np.array([1, 0, 0.88, 1, 0, 0.88], np.float32).tolist()
    assert (done.digest, done.examples) == (manifest_of(out).digest, 4)
    assert steps == [("scoring", 0, 2), ("scoring", 2, 2)]


def test_more_candidates_than_the_run_allows_are_refused(tmp_path: Path) -> None:
    spec = REWARDING.model_copy(update={"rewards": REWARDS.model_copy(update={"max_candidates": 3})})
    work, run = prepared(spec)
    work._scorer = Scorer(tmp_path, 7, cast(Any, Guesser()), 4)
    work.reward(quietly, Reward(run, tmp_path, rollouts(1, 3), tmp_path / "out", 7))
    with pytest.raises(PluralError):
        work.reward(quietly, Reward(run, tmp_path, rollouts(1, 4), tmp_path / "out", 7))


def test_the_predictor_of_rewards_has_the_orders_weights_and_context_and_is_kept_for_the_same_order(
    tmp_path: Path,
) -> None:
    work, run = prepared(REWARDING)
    embedder = work._embedder = cast(Any, MadeUpEmbedder())
    weights = [write_version_0(tmp_path / str(seed), small_spec({"seed": seed})) for seed in (1, 2)]

    def rewards(number: int, seed: int) -> list[float]:
        work.reward(quietly, Reward(run, weights[number], rollouts(2), tmp_path / "out", seed))
        return list(flat_values(tmp_path / "out", rewards_layout(6)).tolist())

    first, kept = rewards(0, 7), work._scorer
    assert kept is not None
    assert (rewards(0, 7), work._scorer is kept) == (first, True)
    model = new_predictor(REWARDING.predictor, REWARDING.embedding)
    load_weights(model, tensors_of(weights[0]))
    context = reward_context(REWARDING, small_group(), 7)
    alone = GroupPredictor(model, embedder, "a", context, torch.device("cpu"))
    asked = [Candidates(f"which {n}?", ("option 0", "option 1", "option 2")).to_question() for n in range(2)]
    shares = np.concatenate([answer.shares for answer in alone.predict(asked)])
    assert first == shares.round(2).tolist()
    assert kept.context_questions == len(context)
    for number, seed in ((1, 7), (1, 8)):
        rewards(number, seed)
        scorer = work._scorer
        assert scorer is not None
        assert (scorer.weights, scorer.context_seed) == (weights[number], seed)


def test_a_context_with_fewer_questions_than_an_episode_gives_no_rewards(tmp_path: Path) -> None:
    work, run = prepared(REWARDING, small_group(questions=3))
    work._embedder = cast(Any, MadeUpEmbedder())
    weights = write_version_0(tmp_path / "v0", small_spec())
    with pytest.raises(TooFewQuestions):
        work.reward(quietly, Reward(run, weights, rollouts(1), tmp_path / "out", 7))


# The process


@pytest.mark.parametrize(("name", "is_process"), [("__main__", True), ("imported", False)])
def test_the_process_leaves_signals_to_the_daemon_and_answers_its_orders(
    name: str, is_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[int] = []
    commands: list[str] = []
    environment: dict[str, str] = {}

    def note(number: int, handler: object) -> None:
        assert handler is signal.SIG_IGN
        ignored.append(number)

    def answer(*actions: command_loop.Action[Any, Any]) -> None:
        commands.extend(f"{action.command.name} {action.work.__name__}" for action in actions)

    collector: list[str] = []
    for act in ("disable", "freeze", "enable"):
        monkeypatch.setattr(f"gc.{act}", functools.partial(collector.append, act))
    monkeypatch.setattr(signal, "signal", note)
    monkeypatch.setattr("os.putenv", environment.__setitem__)
    monkeypatch.setattr(command_loop, "answer_commands", answer)
    with warnings.catch_warnings(action="ignore"):  # the module is imported already
        runpy.run_module(worker.__name__, run_name=name)
    assert collector == (["disable", "freeze", "enable"] if is_process else []), (
        "garbage is collected after the imports"
    )
    if is_process:
        first, commands[:] = list(commands), []
        environment.clear()
        collector.clear()
        monkeypatch.setattr(worker, "answer_commands", answer)
        worker.main()
        assert commands == first
        assert collector == ["freeze", "enable"]
    assert set(ignored) == ({signal.SIGHUP, signal.SIGTERM, signal.SIGINT} if is_process else set())
    expected = [f"{order} {order}" for order in ("prepare", "train", "mask", "reward", "evaluate")]
    assert commands == (expected if is_process else [])
    assert environment == ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if is_process else {})


def test_rewards_are_sent_in_hundredths_and_follow_from_the_orders_seed(tmp_path: Path) -> None:
    spec = REWARDING
    work, run = prepared(spec)
    batch = write_rollouts([Candidates("which?", ("one", "two", "three"))]).decode()
    weights, out = tmp_path / "weights", tmp_path / "rewards"
    work._scorer = Scorer(weights, 7, cast(Any, Guesser()), 40)
    done = work.reward(quietly, Reward(run, weights, batch, out, 7))
    assert done.examples == 40
    assert flat_values(out, rewards_layout(3)).tolist() == np.full(3, 0.33, np.float32).tolist()
    with pytest.raises(
        AssertionError
    ):  # another context needs another predictor, and this worker has no embedding model
        work.reward(quietly, Reward(run, weights, batch, out, 8))


def test_a_run_whose_vectors_another_package_makes_is_prepared_where_the_package_is_installed(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_spec().model_dump(mode="json")
    spec = RunSpec.model_validate({**values, "embedding": {"plugin": plugin(VECTORS), "dimension": 64}})
    order = order_for(tmp_path, spec)
    with pytest.raises(PluginMissing, match="not installed"):
        LocalWork().prepare(quietly, order)
    site.install("town_hall_methods")
    (tmp_path / VECTORS).mkdir()  # the name of a plug-in is no path
    monkeypatch.chdir(tmp_path)
    work = LocalWork()
    assert work.prepare(quietly, order).questions == 60
    assert work._runs[spec.sha256()].data.embeddings.shape[1] == 64
