"""The attacks of benchmarks/privacy_leak.py work on a small group: attacks that fail would show a safety that there is not."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from leak import crafted, made_weights, noised, passive, sums
from leak.replay import Replay, invert
from leak.setting import (
    Flat,
    Shares,
    distance,
    federation,
    of_question,
    predicted,
    shares_of,
    spec_of,
    trained_questions,
    uniform,
    update_of,
)
from support.small_survey import DIMENSION, SUMS, small_group, small_spec

from pluralllm.client.disclosure.differences import differences_of
from pluralllm.client.disclosure.policy import Policy
from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import first_values

SEED, OTHER_SEED = 5, 6
LIKE_THE_PRESET: dict[str, Any] = {
    "rounds": 4,
    "predictor": {"dropout": 0.1},
    "training": {"loss": "alignment", "sharpness_spread": 0.3, "local_steps": 3, "learning_rate": 1e-3},
}
MODEL: dict[str, Any] = {"model": "sentence-transformers/any"}
EMBEDDED = {"embedding": {**MODEL, "dimension": DIMENSION, "templates": ["{question}"]}}
WIDTH = 32  # of one template's vectors; the products of two vectors must be more than the points
TWO_TEMPLATES = {"embedding": {**MODEL, "dimension": 2 * WIDTH}}


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return small_spec(LIKE_THE_PRESET)


def predicted_only(data: GroupData, questions: tuple[int, ...]) -> Shares:
    """Returns the true shares of some questions, and uniform ones of the others."""
    chosen = np.isin(of_question(data), questions)
    return np.where(chosen, shares_of(data), uniform(data))


def misfit(update: Flat, other: Flat) -> float:
    return float(((update - other) ** 2).sum() / (update**2).sum())


def test_only_the_tasks_own_seed_replays_an_update(spec: RunSpec) -> None:
    data, base = small_group(), first_values(spec)
    logs = torch.from_numpy(np.log(shares_of(data)).astype(np.float32))
    update = update_of(spec, base, data, SEED, 2)
    assert misfit(update, Replay(spec, base, data, SEED, 2).delta(logs).detach().numpy()) < 1e-3
    assert misfit(update, Replay(spec, base, data, OTHER_SEED, 2).delta(logs).detach().numpy()) > 0.1


@pytest.mark.slow
def test_an_inversion_needs_the_seed(spec: RunSpec) -> None:
    data, base = small_group(), first_values(spec)
    update = update_of(spec, base, data, SEED, 2)
    replays = {seed: Replay(spec, base, data, seed, 2) for seed in (SEED, OTHER_SEED)}
    targets, start = replays[SEED].targets, predicted(spec, base, data)
    before = distance(data, start, targets)
    with_seed, without = (
        distance(data, invert(replays[seed], update, start, 100)[0], targets) for seed in (SEED, OTHER_SEED)
    )
    assert with_seed < 0.6 * before
    assert without > 0.9 * before


def test_an_adversarial_task_hands_over_every_answer_but_needs_consent() -> None:
    data = small_group()
    settings = crafted.settings_for(data)
    spec = small_spec({**settings, "predictor": {**crafted.SETTINGS["predictor"], "d_model": 512, "layers": 1}})
    base = crafted.without_context(spec, first_values(spec))
    guess = crafted.answers_of(spec, base, update_of(spec, base, data, SEED, 1), data)
    distances = js_distances(guess, shares_of(data), data.offsets[:-1])
    assert (distances < 0.02).sum() == len(data.questions) - 1, "all but the one in the context"
    asked = {
        difference.field for difference in differences_of(Policy(), spec_of(("a", "b", "c"), "attention", **settings))
    }
    assert {
        "training.optimizer",
        "training.local_steps",
        "predictor.share_scale",
        "training.episodes.max_context",
    } <= asked


def group_of_two_templates() -> GroupData:
    """Returns a group whose questions and options have unit vectors of their own, as the default preset reads them."""
    rng, questions, embedded = np.random.default_rng(0), [], []
    for number in range(240):
        vectors = rng.normal(size=(1 + int(rng.integers(2, 6)), WIDTH))
        question, *options = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        shares = tuple(rng.dirichlet(np.ones(len(options))).tolist())
        questions.append(Question(f"question {number}", tuple(map(str, range(len(options)))), shares))
        embedded.append(np.array([np.concatenate([question, option]) for option in options], np.float32))
    return group_data("a", questions, embedded)


@pytest.mark.parametrize("preset", ["default", "attention"])
def test_made_weights_make_the_presets_update_a_linear_system_and_need_no_consent(preset: str) -> None:
    """It shows what docs/security.md says: the settings of a run do not bound what a dishonest coordinator gets."""
    two = preset == "default"
    data, changes = (group_of_two_templates(), TWO_TEMPLATES) if two else (small_group(), EMBEDDED)
    spec = spec_of(("a", "b", "c"), preset, evaluation={"holdout_share": 0.2}, **changes)
    assert [one.field for one in differences_of(Policy(), spec) if not one.field.startswith("embedding")] == []
    base, first_step = (
        made_weights.tiny_weights(spec, first_values(spec)),
        (spec.rounds - 1) * spec.training.local_steps,
    )
    gradients = made_weights.gradients_of(spec, base, update_of(spec, base, data, SEED, spec.rounds), data)
    shares, _ = made_weights.shares_behind(data, gradients / made_weights.step_weights(spec, data, first_step)[0])
    steps = Replay(spec, base, data, SEED, spec.rounds).steps
    distances = js_distances(shares, shares_of(data), data.offsets[:-1])
    alone = set(steps[0].episode.targets) - {question for step in steps[1:] for question in step.episode.targets}
    uniformly = js_distances(uniform(data), shares_of(data), data.offsets[:-1])
    assert alone
    assert distances[sorted(alone)].mean() < 0.5 * uniformly[sorted(alone)].mean()


def test_a_sum_hands_over_the_answers_of_one_client_and_those_that_one_of_several_has_alone() -> None:
    data, others = small_group("a", 40), small_group("b", 60, seed=2)
    predictor = {**SUMS["predictor"], "features": 512}
    spec = small_spec({**SUMS, "predictor": predictor, "evaluation": {"holdout_share": 0.0}})
    first = sums.sent(spec, data)
    assert distance(data, sums.answers_of(data, sums.public_features(spec, data), first)) < 0.001
    public = sums.public_features(spec, others)
    total = first + sums.sent(spec, others)
    own = sums.of_one_group([data, others])
    numbers = [number for number, question in enumerate(others.questions) if question.id in own]
    assert len(numbers) == 20
    assert distance(others, sums.answers_of(others, public, total), numbers) < 0.001


def test_from_a_partner_with_noised_answers_a_sum_recovers_the_noised_file_and_nothing_nearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = small_group("a", 40)
    chance = random.Random(3)
    partner = noised.noised(data, 1.0, lambda numbers, sigma: [round(chance.gauss(n, sigma)) for n in numbers])
    predictor = {**SUMS["predictor"], "features": 512}
    spec = small_spec({**SUMS, "predictor": predictor, "evaluation": {"holdout_share": 0.0}})
    monkeypatch.setattr(sums, "spec_of_sums", lambda _: spec)
    guess = noised.from_sums(partner)
    lost = distance(data, shares_of(partner))
    assert lost > 0.02
    assert distance(partner, guess) < 0.001
    assert distance(data, guess) > lost - 0.001
    assert distance(data, noised.from_sums(data)) < 0.001, "without noise the attack recovers the true answers"


def test_passive_figures_are_distances_and_chances(spec: RunSpec) -> None:
    groups = {name: small_group(name, seed=number) for number, name in enumerate("abc")}
    spec = spec.model_copy(update={"groups": spec.groups.model_copy(update={"train": tuple(groups)})})
    *rounds, last = federation(spec, groups, 2)
    data = groups["a"]
    direction = passive.own_direction(rounds, "a")
    assert 0 < np.abs(direction).max() < 1
    guesses = passive.from_all_updates(spec, last.base, direction, data)
    assert all(0 < distance(data, guess) < 0.83 for guess in guesses)
    before, after = predicted(spec, rounds[0].base, data), predicted(spec, rounds[0].base + rounds[0].deltas["a"], data)
    trained = trained_questions(spec, data)
    assert 0 <= passive.membership_of_update(data, before, after, trained[:20], trained) <= 1
    learned = predicted_only(data, trained[:20])
    assert passive.membership_of_update(data, uniform(data), learned, trained[:20], trained) == 1
    assert 0 <= passive.membership_of_run(spec, data, after) <= 1
