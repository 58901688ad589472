"""The orders that the worker carries out on data that it has prepared, and the paths that a run spec must not name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.small_survey import SUMS, small_group, small_spec, write_version_0

from pluralllm.client.data.private_data import write_group
from pluralllm.client.disclosure.measurements import MeasuredTraining
from pluralllm.client.work.orders import Evaluate, Prepare, Reward, Train
from pluralllm.client.work.sums import GroupTerms, answer_sums
from pluralllm.client.work.train import evaluation_episode, train
from pluralllm.client.work.worker import LocalWork, PreparedRun, Scorer, check_names_no_path
from pluralllm.common.errors.tree import DataChanged, PolicyForbids
from pluralllm.common.predictor.group_predictor import PredictedAnswer
from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.weights.layout import flat_values, rewards_layout
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.questions import Question
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


def order_to_prepare(data: Path, data_sha256: str) -> Prepare:
    spec_json = small_spec().canonical_json().decode()
    return Prepare(spec_json, data, data_sha256, "G", GroupRole.TRAIN, data.parent / "cache", None, "cpu", None)


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


def prepared(spec: RunSpec) -> tuple[LocalWork, Digest]:
    """Returns a worker that has prepared a run, and the name of the run in orders."""
    work = LocalWork()
    work._runs[spec.sha256()] = PreparedRun(spec, small_group(), GroupRole.HELD_OUT, torch.device("cpu"))
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


def test_rewards_are_sent_in_hundredths_and_follow_from_the_orders_seed(tmp_path: Path) -> None:
    rewards = RewardRun(source="runs/s/models/0", model_digest="0" * 64)
    spec = small_spec().model_copy(update={"rewards": rewards})
    work, run = prepared(spec)
    rollouts = write_rollouts([Candidates("which?", ("one", "two", "three"))]).decode()
    weights, out = tmp_path / "weights", tmp_path / "rewards"
    work._scorer = Scorer(weights, 7, cast(Any, Guesser()), 40)
    done = work.reward(quietly, Reward(run, weights, rollouts, out, 7))
    assert done.examples == 40
    assert flat_values(out, rewards_layout(3)).tolist() == np.full(3, 0.33, np.float32).tolist()
    with pytest.raises(
        AssertionError
    ):  # another context needs another predictor, and this worker has no embedding model
        work.reward(quietly, Reward(run, weights, rollouts, out, 8))
