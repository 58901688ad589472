"""The predictors and trainings of benchmarks/untried_ideas.py do what their trials say, on small groups."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import untried_ideas
from safetensors.numpy import save_file
from support.small_survey import KERNEL, small_group, small_spec
from tokenizers import Tokenizer, models, pre_tokenizers
from untried import evidence, scoring
from untried.heads import FASTER, AttentionPredictor, CrossOptionPredictor, Keys, kernel_predictor
from untried.learning import Recipe, Steps, adapt, federate, flat, learn, load, loss_of
from untried.static_vectors import TABLE, TokenMeans, with_static_vectors
from untried.trials import PRESET, SMALLER, TRIALS, Trial

from pluralllm.common.predictor.data import Episode, GroupData, make_batch
from pluralllm.common.predictor.fourier_kernel import SHARE_FLOOR, centring
from pluralllm.common.predictor.interface import PreferencePredictor
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec, merge
from pluralllm.experiment.federated import federate as federate_as_experiments_do
from pluralllm.experiment.scoring import Scorer, gain_of, own_episode
from pluralllm.experiment.spec import Scoring
from pluralllm.experiment.stacked import Flat

CPU, PLAIN = torch.device("cpu"), Recipe()
EPISODE = Episode((0, 1, 2, 3), (10, 11, 12))
SCORING = Scoring(contexts=(8,), main_context=8, draws=2)
GROUPS = {"a": small_group("a", seed=1), "b": small_group("b", questions=40, seed=2)}
OVER: dict[str, Any] = {
    "groups": {"train": ["a", "b"]},
    "embedding": {"normalize": True, "templates": ["{question}", "{option}"]},
    "training": {"loss": "alignment", "learning_rate": 3e-3},
}


def kernel_spec(over: dict[str, Any] | None = None) -> RunSpec:
    values = small_spec(merge({"rounds": 2, **OVER}, over or {})).model_dump(mode="json")
    return RunSpec.model_validate({**values, "predictor": KERNEL})


SPEC = kernel_spec()


def means(model: PreferencePredictor, data: GroupData = GROUPS["a"]) -> torch.Tensor:
    batch = make_batch([(data, EPISODE)])
    with torch.no_grad():
        predicted: torch.Tensor = model.eval()(batch.context, batch.context_shares, batch.targets).mean[0]
    return predicted


def versions(recipe: Recipe, groups: dict[str, GroupData]) -> list[Flat]:
    model, values = kernel_predictor(SPEC), [flat(kernel_predictor(SPEC))]
    federate(SPEC, model, groups, recipe, lambda _number, of_round: values.append(of_round))
    assert (flat(model) == values[-1]).all()
    return values


def deltas(recipe: Recipe = PLAIN, spec: RunSpec = SPEC) -> dict[str, Flat]:
    """Returns what each group's client changes in the first round."""
    changes = {}
    for number, (name, data) in enumerate(GROUPS.items()):
        model = kernel_predictor(spec)
        start = flat(model)
        usable = data.split(spec.held_out)[0]
        learn(spec, model, data, usable, RoundNumber(1), ClientId(f"client-{number}"), recipe)
        changes[name] = flat(model) - start
    return changes


def test_plain_training_gives_the_values_of_an_experiment() -> None:
    *_, last = federate_as_experiments_do(SPEC, GROUPS, CPU)
    np.testing.assert_allclose(versions(Recipe(), GROUPS)[-1], last.values, atol=2e-5)


def test_reptile_counts_all_groups_alike_and_fedavg_counts_questions() -> None:
    first, after, *_ = versions(Recipe(reptile=True), GROUPS)
    np.testing.assert_allclose(after - first, (deltas()["a"] + deltas()["b"]) / 2, atol=1e-6)
    first, after, *_ = versions(Recipe(), GROUPS)
    usable = [len(data.split(SPEC.held_out)[0]) for data in GROUPS.values()]
    weighted = (usable[0] * deltas()["a"] + usable[1] * deltas()["b"]) / sum(usable)
    np.testing.assert_allclose(after - first, weighted, atol=1e-6)


def test_the_step_of_reptile_falls_linearly() -> None:
    alone = {"a": GROUPS["a"]}
    averaged, reptile = versions(Recipe(), alone), versions(Recipe(reptile=True), alone)
    np.testing.assert_array_equal(reptile[1], averaged[1])  # the whole step
    np.testing.assert_allclose(reptile[2] - reptile[1], (averaged[2] - averaged[1]) / 2, atol=1e-6)


def test_maml_moves_by_the_gradient_at_the_adapted_point() -> None:
    spec = kernel_spec({"training": {"local_steps": 1, "schedule": "constant"}})
    plain, unmoved = deltas(spec=spec)["a"], deltas(Recipe(inner=Steps(1, 0.0)), spec)["a"]
    np.testing.assert_array_equal(plain, unmoved)
    moved = deltas(Recipe(inner=Steps(2, 5.0)), spec)["a"]
    rate = spec.training.learning_rate
    # Adam's first step has the size of the rate in the direction of the gradient's sign.
    assert np.abs(moved).max() == pytest.approx(rate, rel=1e-3)
    assert 0.02 < np.mean(np.sign(moved) != np.sign(plain)) < 0.5


def test_steps_on_a_context_lower_its_loss_and_move_what_they_name() -> None:
    model, data = kernel_predictor(SPEC).eval(), GROUPS["a"]
    context = tuple(range(12))
    halves = Episode(context[:6], context[6:])
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    first = float(loss_of(model, data, halves, SPEC.training).detach())
    adapt(model, data, context, SPEC.training, Steps(20, 0.05, "head.prior"), np.random.default_rng(0))
    assert float(loss_of(model, data, halves, SPEC.training).detach()) < first
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"head.prior"}
    adapt(model, data, context, SPEC.training, Steps(1, 0.05), np.random.default_rng(0))
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("keys", ["features", "vectors"])
def test_attention_is_a_mean_of_residuals_by_the_cosines(keys: Keys) -> None:
    model = AttentionPredictor(SPEC, keys).eval()
    with torch.no_grad():
        model.prior.normal_(generator=torch.Generator().manual_seed(0))
        model.log_gain.fill_(0.05)
    batch = make_batch([(GROUPS["a"], EPISODE)])
    prior = 0.1 * 24**0.5 * model.prior.detach()
    with torch.no_grad():
        h_c, h_t = model.embedder(batch.context)[0], model.embedder(batch.targets)[0]
    centre_c, centre_t = (centring(points, torch.float32)[0] for points in (batch.context, batch.targets))
    residual = centre_c @ (torch.log(batch.context_shares[0] + SHARE_FLOOR) - h_c @ prior)
    if keys == "features":
        logits = 8 * torch.cosine_similarity((centre_t @ h_t)[:, None], (centre_c @ h_c)[None], dim=-1)
    else:
        q_t, o_t = batch.targets.embeddings[0].chunk(2, dim=-1)
        q_c, o_c = batch.context.embeddings[0].chunk(2, dim=-1)
        apart = batch.targets.positions[0][:, None] - batch.context.positions[0][None]
        logits = 10 * q_t @ q_c.T + 5 * o_t @ o_c.T + 3 * torch.cos(torch.pi * apart)
    expected = h_t @ prior + float(np.exp(FASTER * 0.05)) * torch.softmax(logits, dim=-1) @ residual
    torch.testing.assert_close(means(model), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attends", [True, False])
def test_messages_between_options_start_at_zero_and_stay_within_a_question(attends: bool) -> None:
    model = CrossOptionPredictor(SPEC, 4, attends=attends)
    torch.testing.assert_close(means(model), means(kernel_predictor(SPEC)))
    with torch.no_grad():
        model.write.normal_(generator=torch.Generator().manual_seed(0))
    points = make_batch([(GROUPS["a"], EPISODE)]).targets
    changed = replace(points, embeddings=points.embeddings.clone())
    changed.embeddings[0, 0, 6:] += 1  # the first option of the first question
    with torch.no_grad():
        apart = model.with_messages(changed).embeddings - model.with_messages(points).embeddings
    own = points.question[0] == points.question[0, 0]
    others = own.clone()
    others[0] = False
    assert (apart[0, others, 6:].norm(dim=-1) > 1e-4).all()
    assert (apart[0, ~own] == 0).all()
    assert (apart[..., :6] == 0).all()
    if not attends:  # an option gets no message from itself
        torch.testing.assert_close(apart[0, 0, 6:], torch.ones(6))
        option = points.embeddings[0, :, 6:]
        message = option[others].mean(0) @ model.read["value"].T @ model.write.T
        torch.testing.assert_close(model.with_messages(points).embeddings[0, 0, 6:], option[0] + message)


def test_the_likelihood_is_that_of_the_centred_residuals() -> None:
    model = kernel_predictor(SPEC).eval()
    context, shares = scoring.context_of(GROUPS["a"], EPISODE.context)
    with torch.no_grad():
        h = model.embed(context)
        centre = centring(context, h.dtype)[0].double()
        values, vectors = torch.linalg.eigh(centre)
        basis = vectors[:, values > 0.5]  # of what centring keeps
        scale, noise = model.head.log_scale.exp(), model.head.log_noise.exp() + 1e-4
        group = 32**0.5 * h[0] @ model.head.group_projection.T
        kernel = (scale * h[0] @ h[0].T + group @ group.T).double()
        covariance = basis.T @ kernel @ basis + noise.double() * torch.eye(basis.shape[1])
        residual = basis.T @ torch.log(shares[0] + SHARE_FLOOR).double()  # the prior starts at 0
        expected = -float(residual @ torch.linalg.solve(covariance, residual) + torch.linalg.slogdet(covariance)[1]) / 2
        assert evidence.log_likelihood(model, h, context, shares) == pytest.approx(expected, abs=1e-4)


def test_the_likeliest_noise_is_chosen_and_the_scale_only_if_asked() -> None:
    context, shares = scoring.context_of(GROUPS["a"], EPISODE.context)
    for scales in (False, True):
        model = kernel_predictor(SPEC).eval()
        before = float(model.head.log_scale.detach()), float(model.head.log_noise.detach())
        evidence.choose(model, context, shares, scales=scales)
        with torch.no_grad():
            best = evidence.log_likelihood(model, model.embed(context), context, shares)
            for factor in (0.5, 2.0):
                other = copy.deepcopy(model)
                other.head.log_noise.add_(np.log(factor))
                within = abs(float(other.head.log_noise) - before[1]) < np.log(4.1)
                assert not within or evidence.log_likelihood(other, other.embed(context), context, shares) <= best
        assert (float(model.head.log_scale.detach()) != before[0]) == scales
        assert float(model.head.log_noise.detach()) != before[1]


def test_scores_are_those_of_the_experiments() -> None:
    groups = {**GROUPS, "c": small_group("c", questions=30, seed=3)}
    model = kernel_predictor(SPEC)
    scores = scoring.scores_of(SPEC, model, groups, SCORING, None)
    for name, data in groups.items():
        others = [groups[other] for other in sorted(groups) if other != name]
        episodes = [own_episode(SPEC, data, "validation", 8, draw) for draw in range(2)]
        own, another = gain_of(
            Scorer(SPEC, flat(model), data, CPU),
            episodes,
            others,
            lambda other, draw: own_episode(SPEC, other, "validation", 8, draw).context,
        )
        assert scores.own[name] == pytest.approx(own, abs=1e-6)
        assert scores.another[name] == pytest.approx(another, abs=1e-6)
        assert len(scores.contexts[name]) == 2
    assert scores.worst == min(scores.own.values()) <= scores.mean
    assert scores.mean_another == pytest.approx(np.mean(list(scores.another.values())))


def test_a_model_tuned_for_one_context_is_a_copy() -> None:
    model = kernel_predictor(SPEC)
    before, seen = flat(model), []

    def tune(tuned: PreferencePredictor, data: GroupData, context: tuple[int, ...]) -> None:
        seen.append((data.group, context))
        adapt(tuned, data, context, SPEC.training, Steps(3, 1.0), np.random.default_rng(0))

    plain, tuned = (scoring.scores_of(SPEC, model, GROUPS, SCORING, change) for change in (None, tune))
    assert (flat(model) == before).all()
    assert len(seen) == 4
    assert all(plain.own[name] != tuned.own[name] for name in GROUPS)
    assert all(plain.another[name] != tuned.another[name] for name in GROUPS)


def test_a_tuned_model_predicts_with_its_own_features() -> None:
    other = kernel_predictor(kernel_spec({"seed": 1}))
    model = kernel_predictor(SPEC)
    tuned = scoring.scores_of(SPEC, model, GROUPS, SCORING, lambda copied, _data, _context: load(copied, flat(other)))
    plain = scoring.scores_of(SPEC, other, GROUPS, SCORING, None)
    assert (tuned.own, tuned.another) == (plain.own, plain.another)


def test_differences_have_the_error_of_their_contexts() -> None:
    difference, error = scoring.difference({"a": (0.8, 0.9), "b": (0.7, 0.7)}, {"a": (0.7, 0.7), "b": (0.6, 0.6)})
    assert difference == pytest.approx(0.125)
    assert error == pytest.approx(np.sqrt(0.005 / 2) / 2)


@pytest.fixture
def token_model(tmp_path: Path) -> Path:
    words = {"[UNK]": 0, "the": 1, "cat": 2, "dog": 3, "fish": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    save_file({f"bert.{TABLE}": table}, str(tmp_path / "model.safetensors"))
    return tmp_path


def test_means_of_tokens_are_unit_vectors_of_the_table(token_model: Path) -> None:
    table = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = table[[1, 2, 1]].mean(0)
    vector = TokenMeans(token_model, [], weighted=False).of(["the cat the"])[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_frequent_tokens_count_less_and_common_directions_are_removed(token_model: Path) -> None:
    table = np.random.default_rng(0).normal(size=(5, 6))
    texts = ["the cat", "the dog", "the fish", "the the", "the the"]
    count = {1: 5, 2: 1, 3: 1, 4: 1}  # equal texts count once
    weight = {token: 1e-3 / (1e-3 + times / 8) for token, times in count.items()}
    pairs = [(1, 2), (1, 3), (1, 4), (1, 1)]
    rows = np.array([sum(weight[t] * table[t] for t in pair) / sum(weight[t] for t in pair) for pair in pairs])
    rows -= rows.mean(0)
    direction = np.linalg.svd(rows)[2][0]
    expected = rows[0] - (rows[0] @ direction) * direction
    vector = TokenMeans(token_model, texts, weighted=True).of(["the cat"])[0]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-4)


def test_groups_get_vectors_of_their_questions_and_options(token_model: Path) -> None:
    changed = with_static_vectors(GROUPS, ["a"], token_model, weighted=False)
    data = changed["b"]
    assert data.embeddings.shape == (len(GROUPS["b"].shares), 12)
    question = data.questions[1]
    vector = TokenMeans(token_model, [], weighted=False)
    expected = np.concatenate([vector.of([question.text])[0], vector.of([question.options[0]])[0]])
    np.testing.assert_allclose(data.embeddings[data.offsets[1]], expected, atol=1e-6)


def test_trials_have_names_of_their_own_and_models_that_fit() -> None:
    names = [trial.name for trial in TRIALS]
    assert len(set(names)) == len(names)
    assert names[0] == PRESET
    assert {trial.trained_as for trial in TRIALS} - {""} <= set(names)
    experiment = untried_ideas.experiment_of(Path("x.csv"))
    assert experiment.data.test == ()
    assert experiment.rounds == 30
    sizes = {}
    for trial in TRIALS:
        spec = untried_ideas.spec_of(experiment, trial, 1)
        assert spec.evaluation.holdout_share == 0.1
        assert spec.seed == 1
        if trial.build is not TRIALS[0].build:
            sizes[trial.name] = flat(trial.build(spec)).size
    assert max(sizes.values()) <= 705_154  # the preset's
    assert SMALLER["predictor"]["features"] == 833


def test_a_comparison_goes_on_and_prints_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = untried_ideas.PAPER.data.model_copy(update={"train": ("a", "b"), "validation": ("c", "d"), "test": ()})
    small = untried_ideas.PAPER.model_copy(update={"data": data, "scoring": SCORING})
    groups = {**GROUPS, "c": small_group("c", seed=3), "d": small_group("d", seed=4)}
    base = Trial(PRESET, "-")
    trials = (base, replace(TRIALS[1]), replace(TRIALS[3]))
    monkeypatch.setattr(untried_ideas, "TRIALS", trials)
    monkeypatch.setattr(untried_ideas, "experiment_of", lambda _file: small)
    monkeypatch.setattr(untried_ideas, "spec_of", lambda _experiment, _trial, seed: kernel_spec({"seed": seed}))
    monkeypatch.setattr(untried_ideas, "embedded", lambda *_: {"transformer": groups})
    command = ["untried_ideas.py", "x.csv", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--only", PRESET])
    untried_ideas.main()
    monkeypatch.setattr(sys, "argv", command)
    untried_ideas.main()
    untried_ideas.main()
    results = untried_ideas.results_in(tmp_path)
    assert [result.trial for result in results] == [trial.name for trial in trials]
    assert results[0].values == flat(kernel_predictor(kernel_spec())).size
    assert results[0].gain == pytest.approx(results[0].mean - results[0].another)
    assert results[0].train_s > 0
    assert results[2].train_s == 0
    saved = kernel_predictor(kernel_spec())
    load(saved, np.fromfile(tmp_path / "fourier-0.f32", np.float32))
    assert scoring.scores_of(kernel_spec(), saved, {k: groups[k] for k in "cd"}, SCORING, None).own == results[0].groups
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(
        f"| c | {TRIALS[3].name} | 0 | {results[2].mean:.4f} / {results[2].worst:.4f} | {results[2].gain:+.4f} |"
    )
    assert f"{scoring.difference(results[2].contexts, results[0].contexts)[0]:+.4f}" in last
