"""An administrator reads answers from scores: with many runs, nested sets of questions, and models made for the purpose."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hostile.evil_administrator import (
    MeasuringWorker,
    asked,
    mean_distance,
    padded,
    read_answers,
    rounding_error,
    victim,
)
from hostile.evil_tasks import EvilCoordinator, Victim
from numpy.typing import NDArray
from support.coordinator_harness import Served, serving
from support.open_policy import open_policy
from support.process_harness import WIDTH, tiny_embedding_model
from support.tasks import task_of

from pluralllm.client.daemon.models import Models
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.disclosure.budgets import Budgets
from pluralllm.client.disclosure.differences import differences_of
from pluralllm.client.disclosure.held_share import HeldShare
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.outgoing import reported_metrics, reported_scores
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.disclosure.seeds import load_seeds
from pluralllm.client.link.tasks import Scores
from pluralllm.client.work.orders import Evaluate
from pluralllm.client.work.worker_limits import WorkerLimits
from pluralllm.common.errors.tree import PolicyForbids
from pluralllm.common.predictor.architecture import initial_values, parameters
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.words.ids import Digest, RunId, TaskId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.questions import HoldOut, Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.v1 import resources_pb2 as rpb

pytestmark = [pytest.mark.timeout(300)]
SURVEY = sample_groups(8, 240, 0)
VICTIM, *OTHERS = SURVEY.values()
SHARE = 0.2
SCORED = [question for question in VICTIM if HoldOut(SHARE).includes(question)]
MODEL = {"model": "sentence-transformers/tiny", "dimension": 2 * WIDTH}
RUNS = 200 if os.environ.get("PLURALLLM_FAULTS") == "all" else 40  # the day's budget stops both after ten


def spec_of(seed: int = 0, **changes: Any) -> RunSpec:
    """Returns the spec of an ordinary run of the preset attention, with the changes of the administrator."""
    ordinary = {"seed": seed, "embedding": MODEL, "round": {"min_clients": 3, "target_clients": 3}}
    return RunSpec.model_validate(merge(merge(preset_values("attention"), ordinary), changes))


def prior_of(questions: list[Question]) -> NDArray[np.float64]:
    """Returns the mean answers of the other groups to each question: what the administrator knows before the attack."""
    answers: dict[str, list[tuple[float, ...]]] = {}
    for group in OTHERS:
        for question in group:
            answers.setdefault(question.id, []).append(question.shares)
    even = {question.id: [(1 / len(question.options),) * len(question.options)] for question in questions}
    return padded([np.mean(answers.get(q.id, even[q.id]), axis=0).tolist() for q in questions])


PRIOR = prior_of(SCORED)

# Runs


def adversarial(number: int) -> RunSpec:
    """Returns the spec of an adversarial run: most vary the seed of the first version, which anybody can compute."""
    tricks: dict[int, dict[str, Any]] = {
        0: {"evaluation": {"holdout_share": share_of_first(1 + number // 20)}},  # a question more each time
        1: {"predictor": {"share_scale": 1e-30}},  # the context has no influence
        2: {"evaluation": {"context_questions": 1}},
        3: {"evaluation": {"draws": 1}},
        4: {"evaluation": {"holdout_share": 0.1}},  # after the first run with 0.2
    }
    return spec_of(number, **tricks.get(number % 20 - 10, {}))


@pytest.mark.slow
async def test_the_runs_of_an_administrator_learn_next_to_nothing_and_the_log_says_what_stopped_them(
    tmp_path: Path,
) -> None:
    model = tiny_embedding_model(tmp_path / "model")
    scores: dict[int, rpb.GroupEvaluation] = {}
    refusals: dict[str, int] = {}
    async with serving(tmp_path / "server", SystemClock()) as served:
        for name in ("eve", "mallory"):  # members of the administrator, so that a round has enough clients
            await served.client(name)
        with structlog.testing.capture_logs() as logs:
            async with victim(tmp_path / "ann", VICTIM, served, model=model):
                for number in range(RUNS):
                    answer = await asked(served, f"run-{number}", adversarial(number))
                    if isinstance(answer, str):
                        reason = answer.split(" is ")[0]
                        refusals[reason] = refusals.get(reason, 0) + 1
                    else:
                        scores[number] = answer
    assert len(scores) == Policy().max_runs_a_day
    over_budget = refusals.pop("POLICY_FORBIDS: This partner's policy forbids it: max_runs_a_day")
    assert over_budget == RUNS - len(scores) - 5 * RUNS // 20
    assert all(reason.startswith("CONSENT_NEEDED") for reason in refusals), refusals
    assert sum(refusals.values()) == 5 * RUNS // 20
    failures = [line["problem"] for line in logs if line["event"] == "task.failed"]
    assert len(failures) == RUNS - len(scores)
    assert any("max_runs_a_day is 11, allowed is at most 10 new runs a day (UTC)" in problem for problem in failures)
    for score in scores.values():
        assert score.questions == len(SCORED) >= Policy().min_questions_behind
        for reported_number in (score.alignment_score, score.wasserstein_score):
            assert reported_number == round(reported_number, 2)
    predictions = np.stack([predicted(adversarial(number), model, tmp_path / "cache") for number in scores])
    seen = [score.alignment_score for score in scores.values()]
    guess = read_answers(predictions, seen, PRIOR, rounding_error(0.01))
    assert mean_distance(PRIOR, SCORED) - mean_distance(guess, SCORED) <= 0.02
    assert mean_distance(guess, SCORED) > 0.15


def predicted(spec: RunSpec, model: Path, cache: Path) -> NDArray[np.float64]:
    """Returns what the run's first version predicts for the scored questions, from another group's answers as its context."""
    predictor = new_predictor(spec.predictor, spec.embedding)
    shapes = parameters(spec.predictor, spec.embedding.dimension)
    load_weights(predictor, {shape.name: initial_values(shape, spec.seed) for shape in shapes})
    context = [question for question in OTHERS[0] if not HoldOut(SHARE).includes(question)][:20]
    cpu = torch.device("cpu")
    embedder = Embedder(spec.embedding, model, cache, cpu)
    answers = GroupPredictor(predictor, embedder, "another", context, cpu, 10).predict(SCORED)
    embedder.close()
    return padded([answer.shares.tolist() for answer in answers])


# What the coordinator and the log say


@contextlib.asynccontextmanager
async def measured(folder: Path, worker: MeasuringWorker, policy: Policy) -> AsyncIterator[Served]:
    """Runs a coordinator with three members: the victim with this worker, and two of the administrator."""
    async with serving(folder / "server", SystemClock()) as served:
        for name in ("eve", "mallory"):
            await served.client(name)
        async with victim(folder / "ann", VICTIM, served, policy=policy, worker=worker):
            yield served


def of_event(logs: Sequence[MutableMapping[str, Any]], event: str) -> MutableMapping[str, Any]:
    (line,) = [line for line in logs if line["event"] == event]
    return line


async def test_a_score_of_too_few_questions_stays_and_coordinator_and_log_say_why(tmp_path: Path) -> None:
    worker = MeasuringWorker(MeasuredScores(0.71234, 0.81234, 29, 29, 0.02))
    with structlog.testing.capture_logs() as logs:
        async with measured(tmp_path, worker, Policy()) as served:
            answer = await asked(served, "r", spec_of())
    assert isinstance(answer, rpb.GroupEvaluation)
    assert answer.not_reported == rpb.NOT_REPORTED_TOO_FEW_QUESTIONS
    assert (answer.alignment_score, answer.alignment_score_base2, answer.questions) == (0, 0, 0)
    line = of_event(logs, "evaluation.not_reported")
    assert (line["reason"], line["key"], line["limit"]) == ("too_few_questions", "min_questions_behind", 30)


async def test_a_spent_budget_is_answered_before_anything_is_computed_and_the_log_names_the_key(tmp_path: Path) -> None:
    worker = MeasuringWorker(MeasuredScores(0.71234, None, 44, 0, 0.02))
    policy = Policy(max_scores_per_question=1 / 44)
    with structlog.testing.capture_logs() as logs:
        async with measured(tmp_path, worker, policy) as served:
            first = await asked(served, "r", spec_of(1))
            orders = len(worker.orders)
            second = await asked(served, "s", spec_of(2))
    assert isinstance(first, rpb.GroupEvaluation)
    assert isinstance(second, rpb.GroupEvaluation)
    assert (first.alignment_score, first.not_reported) == (0.71, rpb.NOT_REPORTED_UNSPECIFIED)
    assert second.not_reported == rpb.NOT_REPORTED_BUDGET_SPENT
    assert len(worker.orders) == orders, "nothing is computed"
    line = of_event(logs, "evaluation.not_reported")
    assert (line["reason"], line["key"]) == ("budget_spent", "max_scores_per_question")


async def test_the_first_run_fixes_the_share_and_a_run_with_another_one_waits_for_consent(tmp_path: Path) -> None:
    worker = MeasuringWorker(MeasuredScores(0.7, None, 44, 0, 0.02))
    async with measured(tmp_path, worker, Policy()) as served:
        assert isinstance(await asked(served, "r", spec_of()), rpb.GroupEvaluation)
        orders = len(worker.orders)
        refused = await asked(served, "s", spec_of(evaluation={"holdout_share": 0.1}))
        assert isinstance(await asked(served, "t", spec_of(1)), rpb.GroupEvaluation)
    assert isinstance(refused, str)
    assert refused.startswith("CONSENT_NEEDED")
    assert "evaluation.holdout_share is 0.1, allowed is 0.2" in refused
    assert len(worker.orders) == orders + 2, "nothing is computed for the run with another share"
    assert worker.limits == WorkerLimits.of(Policy())


async def test_rewards_from_few_questions_are_refused_with_the_key(tmp_path: Path) -> None:
    """A reward that is predicted from one answer shows this answer."""
    rewards = {"source": "runs/s/models/0", "model_digest": "a" * 64, "context_questions": 29}
    model: dict[str, Any] = {"base_version": 0, "base_digest": "a" * 64}
    coordinator = EvilCoordinator(spec_of(rewards=rewards), TaskKind.REWARD, **model)
    async with Victim(tmp_path / "state", Policy(allow_rewards=True), coordinator) as partner:
        reason, message, permanent = await partner.refusal()
    assert (reason, permanent) == ("POLICY_FORBIDS", True)
    assert "min_questions_behind is 29, allowed is at least 30" in message
    assert partner.worker.orders == []


async def test_work_without_end_is_stopped_and_refused_with_the_key(tmp_path: Path) -> None:
    worker = MeasuringWorker(MeasuredScores(0.7, None, 44, 0, 0.02), takes_s=1_000)
    async with measured(tmp_path, worker, Policy(max_task_minutes=0.5 / 60)) as served:
        answer = await asked(served, "r", spec_of())
    assert isinstance(answer, str)
    assert answer.startswith("POLICY_FORBIDS: This partner's policy forbids it: max_task_minutes is more than")


async def test_a_download_without_end_is_stopped_and_refused_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models, "fetch", lambda *_: asyncio.sleep(1_000))
    worker = MeasuringWorker(MeasuredScores(0.7, None, 44, 0, 0.02))
    async with measured(tmp_path, worker, Policy(max_task_minutes=0.5 / 60)) as served:
        answer = await asked(served, "r", spec_of())
    assert isinstance(answer, str)
    assert answer.startswith("POLICY_FORBIDS: This partner's policy forbids it: max_task_minutes is more than")


async def test_a_restarted_daemon_draws_the_same_contexts_and_the_administrator_does_not_know_them(
    tmp_path: Path,
) -> None:
    """The daemon is stopped in the middle of an evaluation, and gets the task again."""
    drawn = []
    async with serving(tmp_path / "server", SystemClock()) as served:
        for name in ("eve", "mallory"):
            await served.client(name)
        await served.create("r", spec_of())
        for _ in range(2):
            worker = MeasuringWorker(MeasuredScores(0.7, None, 44, 0, 0.02), takes_s=1_000)
            async with victim(tmp_path / "ann", VICTIM, served, worker=worker):
                drawn.append((await worker.first(Evaluate)).context_seed)
    assert drawn[0] == drawn[1] != spec_of().seed


async def test_a_run_that_comes_back_with_another_spec_is_refused(tmp_path: Path) -> None:
    """After a restart of the daemon a coordinator could show another spec under the name of a run that the partner knows."""
    worker = MeasuringWorker(MeasuredScores(0.7, None, 44, 0, 0.02))
    Budgets(tmp_path / "ann" / "state" / "disclosure" / "runs", Policy()).open_for([])
    Budgets(tmp_path / "ann" / "state" / "disclosure" / "runs", Policy()).join(RunId("r"), Digest("5" * 64))
    async with measured(tmp_path, worker, Policy()) as served:
        answer = await asked(served, "r", spec_of())
    assert isinstance(answer, str)
    assert answer.startswith("SPEC_MISMATCH")
    assert worker.orders == []


# Nested sets of questions


def share_of_first(count: int) -> float:
    """Returns a share that withholds exactly so many of the victim's questions, those with the smallest hashes."""
    hashes = sorted(int(hashlib.sha256(f"holdout/{q.key}".encode()).hexdigest()[:8], 16) for q in VICTIM)
    return (hashes[count - 1] + 0.5) / 2**32


def test_no_two_sets_of_questions_that_differ_in_one_are_scored(tmp_path: Path) -> None:
    """A difference of two scores would be the score of one question."""
    held, policy = HeldShare(tmp_path / "share.json"), Policy()
    sets = [spec_of(evaluation={"holdout_share": share_of_first(count)}) for count in (1, 2, 51, 52, 53)]
    sizes = [sum(map(spec.held_out.includes, VICTIM)) for spec in sets]
    assert sizes == [1, 2, 51, 52, 53]
    for first_run in (None, spec_of()):
        if first_run is not None:
            held.fix(first_run)
        assert [len(list(held.differences(policy, spec))) for spec in sets] == [1] * 5
    assert list(held.differences(policy, spec_of())) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"predictor": {"share_scale": 1e-30}},
        {"predictor": {"share_scale": 1_000.0}},
        {"evaluation": {"context_questions": 1}},
        {"evaluation": {"context_questions": 21}},
        {"evaluation": {"draws": 1}},
        {"evaluation": {"draws": 1_000}},
    ],
)
def test_settings_that_make_single_answers_count_need_consent(changes: dict[str, Any]) -> None:
    assert differences_of(Policy(), spec_of(**changes))


# Models that were made for the attack


def reported(folder: Path, policy: Policy, predictions: NDArray[np.float64]) -> list[float | None]:
    """Returns the scores that leave for a chain of models, spread over runs of 40 models: None where none leaves.

    Shapes: M models, Q questions, K options; predictions (M, Q, K) -> M numbers.
    """
    budgets = Budgets(folder / "runs", policy)
    budgets.open_for(())
    scores: list[float | None] = []
    for number, guess in enumerate(predictions):
        run = RunId(f"r-{number // 40}")
        task = task_of(spec_of(), TaskKind.EVALUATE, run=run, base_digest=Digest(f"{number:064}"))
        try:
            budgets.join(run, task.spec_sha256)
        except PolicyForbids:
            scores.append(None)
            continue
        answer = budgets.answer(task)
        if answer is None:
            exact = 1 - mean_distance(guess, SCORED)
            answer = reported_scores(policy, MeasuredScores(exact, None, len(SCORED), 0, 0.02))
            if isinstance(answer, Scores):
                budgets.keep(task, answer)
        scores.append(answer.alignment_score if isinstance(answer, Scores) else None)
    return scores


def chosen_models(count: int) -> NDArray[np.float64]:
    """Returns predictions of models that are sure of one random option of each question: each score is then an equation."""
    rng, made = np.random.default_rng(1), np.zeros((count, *PRIOR.shape))
    for row in made:
        for question, options in zip(row, SCORED, strict=True):
            question[rng.integers(len(options.options))] = 1
    return made


def test_even_models_that_were_made_for_it_show_few_answers_within_the_budgets(tmp_path: Path) -> None:
    """Members and a coordinator who work together choose every weight, and so every prediction, of 400 models in one day."""
    predictions = chosen_models(400)
    scores = reported(tmp_path / "default", Policy(), predictions)
    left = [number for number, score in enumerate(scores) if score is not None]
    assert len(left) == len(SCORED) == 52
    guess = read_answers(predictions[left], [scores[number] or 0.0 for number in left], PRIOR, rounding_error(0.01))
    assert mean_distance(PRIOR, SCORED) - mean_distance(guess, SCORED) < 0.03  # docs/security.md has the figures
    # Without the budgets the same attack succeeds, so it is the budgets that stop it.
    scores = reported(tmp_path / "open", open_policy(), predictions)
    assert None not in scores
    guess = read_answers(predictions, [score or 0.0 for score in scores], PRIOR, rounding_error(0.01))
    assert mean_distance(guess, SCORED) < 0.08


def test_one_version_has_one_score_however_often_it_is_asked_for(tmp_path: Path) -> None:
    budgets = Budgets(tmp_path / "runs", Policy())
    budgets.open_for(())
    task = task_of(spec_of(), TaskKind.EVALUATE)
    budgets.join(task.run, task.spec_sha256)
    budgets.keep(task, Scores(0.71, 0.6, None, 44))
    again = [replace(task, seed=seed, name=TaskId(f"{task.name}-{seed}")) for seed in range(100)]
    assert {budgets.answer(one) for one in again} == {Scores(0.71, 0.6, None, 44)}


# Numbers of trainings


def test_a_training_on_few_questions_shows_no_number_and_a_large_loss_is_cut() -> None:
    few = MeasuredTraining(loss=1.0, base_distance=0.5, target_questions=10, first_target_questions=10)
    assert reported_metrics(Policy(), few) == {}
    large = MeasuredTraining(loss=602_214.0768, base_distance=0.5, target_questions=50, first_target_questions=29)
    assert reported_metrics(Policy(), large) == {"loss": 10.0}


def test_nobody_who_knows_the_runs_seed_knows_what_a_training_or_an_evaluation_draws(tmp_path: Path) -> None:
    """A coordinator that knows the seed of a training can repeat the training, and read answers from the update."""
    task = task_of(spec_of(), TaskKind.TRAIN)
    seeds = load_seeds(tmp_path, shared=False)
    drawn = {seeds.of_training(task.run, TaskId(f"{task.name}-{seed}"), seed) for seed in range(1_000)}
    assert len(drawn) == 1_000
    assert drawn.isdisjoint(range(1_000))
    assert seeds.of_contexts(task.run, 0) not in drawn
