import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from support.small_survey import KERNEL, small_group, small_spec, write_version_0
from torch import Tensor

from pluralllm.client.keeping.drafts import next_state
from pluralllm.client.work.losses import base_distances, gaussian_loss, prediction_loss, softened
from pluralllm.client.work.train import (
    Trained,
    _kept,
    _restore_moments,
    _save_moments,
    draw_episodes,
    evaluate,
    evaluation_episode,
    learning_rate,
    pick_device,
    pull_to_base,
    repeatable,
    reward_context,
    rounding,
    train,
)
from pluralllm.common.errors.tree import InvalidArgument, NotFinite, StorageFull, TooFewQuestions
from pluralllm.common.predictor.architecture import initial_values, layout_for, parameters
from pluralllm.common.predictor.data import Batch, Episode, GroupData, log_softmax_by_question, make_batch, make_points
from pluralllm.common.predictor.interface import Prediction, PreferencePredictor
from pluralllm.common.predictor.metrics import Alignment, js_distance
from pluralllm.common.predictor.model import flat_weights, load_weights, new_predictor
from pluralllm.common.weights.layout import flat_values, read_header, tensors_of, write_weights
from pluralllm.common.weights.update_format import as_read, update_format
from pluralllm.common.words.reward_weights import RewardRun
from pluralllm.common.words.spec import GroupRole, RunSpec, Training, preset_values

CPU = torch.device("cpu")
Loss = Literal["gaussian", "cross_entropy", "alignment"]


def loss_of(model: PreferencePredictor, batch: Batch, kind: Loss, temperature: float = 1.0) -> Tensor:
    """Returns the loss of one client, a scalar."""
    predicted = model(batch.context, batch.context_shares, batch.targets)
    return prediction_loss(predicted, batch, Training(loss=kind, target_temperature=temperature), clients=1)[0]


class Cancelled(Exception):
    pass


def quietly(_done: int, _all: int) -> None:
    pass


def trained(
    folder: Path, spec: RunSpec, data: GroupData, *, base: Path | None = None, seed: int = 5, first_step: int = 0
) -> tuple[Trained, NDArray[np.float32]]:
    """Trains one TRAIN task from `base`, or from version 0; returns the result and the delta."""
    start = base or write_version_0(folder / "base", spec)
    out = folder / "delta"
    done = train(start, out, spec, data, seed, first_step, CPU, folder / "moments", folder / "residual", quietly)
    return done, np.array(flat_values(out, layout_for(spec)))


def predictor(spec: RunSpec) -> PreferencePredictor:
    model = new_predictor(spec.predictor, spec.embedding)
    found = parameters(spec.predictor, spec.embedding.dimension)
    load_weights(model, {p.name: initial_values(p, spec.seed) for p in found})
    return model


def with_other_answers(data: GroupData, numbers: tuple[int, ...]) -> GroupData:
    """Returns the same group with other answers to these questions."""
    questions, shares = list(data.questions), data.shares.copy()
    for q in numbers:
        turned = tuple(reversed(questions[q].shares))
        questions[q] = replace(questions[q], shares=turned)
        shares[data.points([q])] = turned
    return replace(data, questions=tuple(questions), shares=shares)


@pytest.mark.parametrize("architecture", [{}, KERNEL], ids=["tnp-d/1", "fourier-kernel/1"])
def test_the_same_task_gives_the_same_bits(architecture: dict[str, Any], tmp_path: Path) -> None:
    spec, data = small_spec({"predictor": {**architecture, "dropout": 0.1}}), small_group()
    (first, one), (second, two) = trained(tmp_path, spec, data), trained(tmp_path, spec, data)
    assert first == second
    assert one.tobytes() == two.tobytes()
    _, other_seed = trained(tmp_path, spec, data, seed=6)
    assert not np.array_equal(one, other_seed)


def test_delta_is_local_minus_global_in_the_layout_of_the_base(tmp_path: Path) -> None:
    spec, data = small_spec({"training": {"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 1}}), small_group()
    done, delta = trained(tmp_path, spec, data)
    model = predictor(spec)
    usable, _ = data.split(spec.held_out)
    episodes = draw_episodes(spec, data, usable, 0, np.random.default_rng(5))
    loss = loss_of(model, make_batch(episodes), "gaussian")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for _, p in sorted(model.named_parameters())]
    expected = np.concatenate([np.zeros(0) if g is None else -0.1 * g.numpy().ravel() for g in gradients])
    assert np.allclose(delta, expected, atol=1e-7)
    assert (done.steps, done.examples) == (1, len(usable))
    assert done.mean_loss == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize("episodes_a_step", [1, 3])
def test_a_training_counts_its_different_target_questions(tmp_path: Path, episodes_a_step: int) -> None:
    spec, data = small_spec({"training": {"local_steps": 3, "batch_episodes": episodes_a_step}}), small_group()
    done, _ = trained(tmp_path, spec, data)
    usable, _ = data.split(spec.held_out)
    rng = np.random.default_rng(5)
    steps = [draw_episodes(spec, data, usable, step, rng) for step in range(3)]
    targets = [{q for _, episode in episodes for q in episode.targets} for episodes in steps]
    assert (done.first_target_questions, done.target_questions) == (len(targets[0]), len(set().union(*targets)))
    assert done.first_target_questions < done.target_questions < sum(map(len, targets))


def test_one_client_with_one_sgd_step_a_round_is_centralized_sgd(tmp_path: Path) -> None:
    """FedAvg with server rate 1 over one client that takes one step is plain SGD."""
    over = {"training": {"optimizer": "sgd", "learning_rate": 0.05, "local_steps": 1}}
    spec, data, rounds = small_spec(over), small_group(), 8
    layout, base = layout_for(spec), write_version_0(tmp_path / "v0", spec)
    for number in range(1, rounds + 1):
        _, delta = trained(tmp_path, spec, data, base=base, seed=100 + number, first_step=number - 1)
        mean = np.mean([delta.astype(np.float64)], axis=0)
        following = (flat_values(base, layout).astype(np.float64) + 1.0 * mean).astype(np.float32)
        base = tmp_path / f"v{number}"
        write_weights(base, layout, [following])

    central = predictor(spec)
    optimizer = torch.optim.SGD(central.parameters(), lr=0.05)
    usable, _ = data.split(spec.held_out)
    for number in range(1, rounds + 1):
        episodes = draw_episodes(spec, data, usable, number - 1, np.random.default_rng(100 + number))
        optimizer.zero_grad()
        loss_of(central, make_batch(episodes), "gaussian").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moved = np.abs(flat_values(base, layout) - flat_weights(predictor(spec))).max()
    assert moved > 1e-3
    assert np.abs(flat_values(base, layout) - flat_weights(central)).max() < 1e-6


def test_training_lowers_the_loss_and_raises_the_alignment(tmp_path: Path) -> None:
    """The group's answers follow the embedding, so the predictor can learn them."""
    data = small_group(questions=80)
    questions, shares = list(data.questions), data.shares.copy()
    for q, question in enumerate(questions):
        points = data.points([q])
        wanted = np.exp(4 * data.embeddings[points][:, 0].astype(np.float64))
        wanted /= wanted.sum()
        questions[q], shares[points] = replace(question, shares=tuple(wanted.tolist())), wanted
    data = replace(data, questions=tuple(questions), shares=shares)
    spec = small_spec({"training": {"local_steps": 150, "learning_rate": 3e-3}})
    base = write_version_0(tmp_path / "base", spec)
    _, delta = trained(tmp_path, spec, data, base=base)
    local = tmp_path / "local"
    write_weights(local, layout_for(spec), [flat_values(base, layout_for(spec)) + delta])
    before, after = (
        evaluate(path, spec, data, GroupRole.TRAIN, CPU, quietly).alignment.score for path in (base, local)
    )
    assert after > before + 0.05


# Defects of the reference implementation (PAPER) that this code could have; the default has none of them.


def test_defect_1_nothing_of_a_held_out_question_reaches_the_delta_and_only_they_are_scored(tmp_path: Path) -> None:
    spec, data = small_spec({"training": {"local_steps": 12}}), small_group()
    training, held_out = data.split(spec.held_out)
    _, delta = trained(tmp_path, spec, data)
    _, with_others = trained(tmp_path, spec, with_other_answers(data, held_out))
    assert delta.tobytes() == with_others.tobytes()
    _, with_other_training = trained(tmp_path, spec, with_other_answers(data, training))
    assert delta.tobytes() != with_other_training.tobytes()
    for draw in range(spec.evaluation.draws):
        episode = evaluation_episode(spec, data, GroupRole.TRAIN, draw)
        assert episode.targets == held_out
        assert set(episode.context) <= set(training)


def test_defect_2_the_weight_of_an_update_is_the_number_of_training_questions_in_every_round(tmp_path: Path) -> None:
    spec, data = small_spec(), small_group()
    found = {trained(tmp_path, spec, data, seed=seed)[0].examples for seed in range(3)}
    assert found == {len(data.split(spec.held_out)[0])}


def test_defect_3_the_learning_rate_never_climbs() -> None:
    for schedule in ("constant", "cosine"):
        spec = small_spec({"rounds": 30, "training": {"local_steps": 6, "schedule": schedule}})
        rates = [learning_rate(spec, step) for step in range(30 * 6)]
        assert rates[0] == spec.training.learning_rate
        assert rates == sorted(rates, reverse=True)


def test_the_paper_preset_keeps_the_authors_schedule() -> None:
    spec = small_spec({"training": preset_values("paper")["training"]}, preset="paper")
    full = spec.training.learning_rate
    rates = [learning_rate(spec, step) for step in range(201)]
    assert rates[0] == full
    assert rates[50] == pytest.approx(full / 2)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[200] == pytest.approx(full)  # the rate rises again in the reference implementation, not in ours


def test_defect_4_moments_are_fresh_in_every_round(tmp_path: Path) -> None:
    spec, data = small_spec(), small_group()
    _, first = trained(tmp_path, spec, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]
    next_state(tmp_path / "moments").write_bytes(b"not even read")
    (tmp_path / "moments").write_bytes(b"not even read")
    with capture_logs() as logs:
        assert trained(tmp_path, spec, data)[1].tobytes() == first.tobytes()
    assert logs == []


def test_kept_moments_make_two_rounds_of_one_client_one_long_run_of_adam(tmp_path: Path) -> None:
    over = {"training": {"keep_optimizer_state": True, "learning_rate": 1e-2, "schedule": "constant"}}
    spec, data = small_spec(over, preset="paper"), small_group()
    layout, moments = layout_for(spec), tmp_path / "moments"
    base = write_version_0(tmp_path / "v0", spec)
    for number in (1, 2):
        with capture_logs() as logs:
            _, delta = trained(tmp_path, spec, data, base=base, seed=number, first_step=2 * (number - 1))
        assert logs == [], "the first round has no moments, and that is nothing to report"
        _, again = trained(tmp_path, spec, data, base=base, seed=number, first_step=2 * (number - 1))
        assert delta.tobytes() == again.tobytes()  # a repeated task starts from the same moments
        next_state(moments).replace(moments)
        following = flat_values(base, layout) + delta
        base = tmp_path / f"v{number}"
        write_weights(base, layout, [following])

    model = predictor(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    usable, _ = data.split(spec.held_out)
    for number in (1, 2):
        rng = np.random.default_rng(number)
        for step in range(2 * (number - 1), 2 * number):
            episodes = draw_episodes(spec, data, usable, step, rng)
            optimizer.zero_grad()
            loss_of(model, make_batch(episodes), "gaussian").backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, expected in model.named_parameters():
        if name.endswith("weight"):  # some biases cancel out in a softmax; there, Adam's steps follow rounding noise
            assert np.allclose(tensors_of(base)[name], expected.detach().numpy(), atol=1e-6), name


def test_defect_7_evaluation_contexts_are_drawn_by_seed_group_and_draw_alone() -> None:
    spec, data = small_spec(), small_group("a")
    drawn = [evaluation_episode(spec, data, GroupRole.HELD_OUT, draw) for draw in (0, 1)]
    assert [evaluation_episode(spec, data, GroupRole.HELD_OUT, draw) for draw in (0, 1)] == drawn
    assert drawn[0].context != drawn[1].context
    assert evaluation_episode(spec, small_group("b"), GroupRole.HELD_OUT, 0).context != drawn[0].context
    other_seed = small_spec({"seed": 1})
    assert evaluation_episode(other_seed, data, GroupRole.HELD_OUT, 0).context != drawn[0].context
    assert evaluation_episode(spec, data, GroupRole.HELD_OUT, 0, 9).context != drawn[0].context
    assert evaluation_episode(spec, data, GroupRole.HELD_OUT, 0, spec.seed) == drawn[0]
    other_rounds = small_spec({"rounds": 7, "training": {"learning_rate": 0.5}})
    assert evaluation_episode(other_rounds, data, GroupRole.HELD_OUT, 0) == drawn[0]


@pytest.mark.parametrize("kind", ["gaussian", "cross_entropy", "alignment"])
def test_defect_8_the_loss_of_a_padded_batch_is_the_mean_over_the_real_points(kind: Loss) -> None:
    data = small_group()
    data.embeddings[data.points([7])[:1]] = 0  # a real point whose sum is 0
    short, long = Episode((5, 2, 8), (7, 11)), Episode((1, 9, 3, 20, 21, 22), (4, 0, 30, 31, 32))
    model = predictor(small_spec())
    alone = [float(loss_of(model, make_batch([(data, episode)]), kind).detach()) for episode in (short, long)]
    together = float(loss_of(model, make_batch([(data, short), (data, long)]), kind).detach())
    points = [len(data.points(episode.targets)) for episode in (short, long)]
    if kind == "gaussian":
        assert together == pytest.approx(np.average(alone, weights=points), rel=1e-5)
    else:  # the loss has two terms: a mean over questions and a mean over points
        between = sorted([np.average(alone, weights=points), np.average(alone, weights=[2, 5])])
        assert between[0] - 1e-5 <= together <= between[1] + 1e-5


def test_losses_by_hand() -> None:
    data, episode, model = small_group(), Episode((5, 2, 8), (7, 11)), predictor(small_spec())
    batch = make_batch([(data, episode)])
    with torch.no_grad():
        predicted = model(batch.context, batch.context_shares, batch.targets)
        kinds: tuple[Loss, ...] = ("gaussian", "cross_entropy", "alignment")
        gaussian, cross_entropy, alignment = (float(loss_of(model, batch, kind)) for kind in kinds)
    first = len(data.questions[7].options)
    shares = torch.cat([torch.softmax(predicted.mean[0, :first], 0), torch.softmax(predicted.mean[0, first:], 0)])
    y = torch.from_numpy(data.shares[data.points([7, 11])])
    normal = torch.nn.functional.gaussian_nll_loss(shares, y, (2 * predicted.log_std[0]).exp(), full=True)
    assert gaussian == pytest.approx(float(normal), rel=1e-5)
    assert cross_entropy == pytest.approx(float(-(y * shares.log()).sum() / 2 + normal), rel=1e-5)
    distances = [
        js_distance(shares[:first].numpy(), y[:first].numpy()),
        js_distance(shares[first:].numpy(), y[first:].numpy()),
    ]
    assert alignment == pytest.approx(cross_entropy + sum(distances) / 2, abs=1e-4)


def test_softened_answers_are_a_power_of_the_shares_and_teach_softer_predictions() -> None:
    data = small_group()
    # The second episode is padded.
    batch = make_batch([(data, Episode((5, 2, 8), (7, 11))), (data, Episode((5, 2), (3,)))])
    soft = softened(batch, 2.0)
    first = len(data.questions[7].options)
    roots = np.sqrt(data.shares[data.points([7])])
    assert soft[0, :first].numpy() == pytest.approx(roots / roots.sum(), rel=1e-5)
    assert soft.sum(1).tolist() == pytest.approx([2, 1])
    assert torch.isfinite(soft).all()
    assert softened(batch, 1.0) is batch.target_shares
    with torch.no_grad():
        logits = batch.target_shares[:1].log().nan_to_num(neginf=-30)
        alone = make_batch([(data, Episode((5, 2, 8), (7, 11)))])

        def loss(power: float) -> float:
            guess = Prediction(logits * power, torch.zeros_like(logits))
            return float(prediction_loss(guess, alone, Training(loss="alignment", target_temperature=2.0), clients=1))

        assert loss(0.5) < min(loss(1.0), loss(0.25))


def test_the_alignment_loss_has_a_finite_gradient_at_a_perfect_prediction() -> None:
    data, model = small_group(), predictor(small_spec())
    batch = make_batch([(data, Episode((5, 2, 8), (7, 11)))])
    with torch.no_grad():
        means = model(batch.context, batch.context_shares, batch.targets).mean
    shares = log_softmax_by_question(means, batch.targets.question, batch.questions).exp()
    loss = loss_of(model, replace(batch, target_shares=shares), "alignment")
    assert all(
        torch.isfinite(part).all()
        for part in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        if part is not None
    )


def test_sharpened_answers_are_drawn_for_each_episode_and_the_groups_own_stay_as_they_are() -> None:
    data = small_group()
    before = data.shares.copy()
    spec = small_spec({"training": {"sharpness_spread": 0.3, "batch_episodes": 4}})
    usable, _ = data.split(spec.held_out)
    drawn = draw_episodes(spec, data, usable, 0, np.random.default_rng(1))
    plain = draw_episodes(small_spec({"training": {"batch_episodes": 4}}), data, usable, 0, np.random.default_rng(1))
    assert drawn[0][1] == plain[0][1]
    assert len({other.shares.tobytes() for other, _ in drawn}) == 4
    assert np.array_equal(data.shares, before)


@pytest.mark.parametrize("kind", ["gaussian", "cross_entropy", "alignment"])
def test_a_question_of_twice_the_weight_counts_as_two(kind: Loss) -> None:
    data, model = small_group(), predictor(small_spec())
    heavy = replace(
        data, questions=tuple(replace(q, weight=2.0 if n == 7 else 1.0) for n, q in enumerate(data.questions))
    )
    weighted = loss_of(model, make_batch([(heavy, Episode((5, 2, 8), (7, 11)))]), kind)
    repeated = loss_of(model, make_batch([(data, Episode((5, 2, 8), (7, 7, 11)))]), kind)
    assert float(weighted.detach()) == pytest.approx(float(repeated.detach()), rel=1e-5)


def test_cross_entropy_trains_the_predicted_spread_too_and_leaves_the_means_to_itself() -> None:
    model, data = predictor(small_spec()), small_group()
    batch = make_batch([(data, Episode((5, 2, 8), (7,)))])
    head = model.get_parameter("head.1.weight")  # (2, d): one row for the means, one for the log-stds
    (gradient,) = torch.autograd.grad(loss_of(model, batch, "cross_entropy"), head)
    mean = model(batch.context, batch.context_shares, batch.targets).mean
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(mean, batch.target_shares), head)
    assert torch.allclose(gradient[0], expected[0], atol=1e-6)
    assert float(gradient[1].abs().sum()) > 0


def test_the_likelihood_stays_finite_for_a_certain_and_wrong_prediction() -> None:
    loss = gaussian_loss(torch.tensor([1.0]), torch.tensor([-1e4]), torch.tensor([0.0]))
    assert torch.isfinite(loss).all()


def test_gradients_are_clipped_to_the_norm_the_spec_asks_for(tmp_path: Path) -> None:
    over = {"training": {"optimizer": "sgd", "learning_rate": 1.0, "local_steps": 1, "gradient_clip_norm": 0.01}}
    _, delta = trained(tmp_path, small_spec(over), small_group())
    assert np.linalg.norm(delta.astype(np.float64)) == pytest.approx(0.01, rel=1e-3)


def test_a_delta_that_is_not_finite_never_leaves(tmp_path: Path) -> None:
    spec = small_spec({"training": {"optimizer": "sgd", "learning_rate": 1e30, "local_steps": 4}})
    with pytest.raises(NotFinite, match="learning rate"):
        trained(tmp_path, spec, small_group())
    assert not (tmp_path / "delta").exists()


def test_steps_are_told_and_a_cancelled_task_leaves_nothing_behind(tmp_path: Path) -> None:
    spec, data = small_spec({"training": {"local_steps": 3, "keep_optimizer_state": True}}), small_group()
    base, out, moments = write_version_0(tmp_path / "base", spec), tmp_path / "delta", tmp_path / "moments"
    reported_steps: list[tuple[int, int]] = []

    def cancel_at_2(done: int, total: int) -> None:
        reported_steps.append((done, total))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(base, out, spec, data, 5, 0, CPU, moments, tmp_path / "residual", cancel_at_2)
    assert reported_steps == [(0, 3), (1, 3), (2, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not torch.are_deterministic_algorithms_enabled()
    train(base, out, spec, data, 5, 0, CPU, moments, tmp_path / "residual", lambda *step: reported_steps.append(step))
    assert reported_steps[3:] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_held_out_group_is_scored_on_all_but_its_context() -> None:
    spec, data = small_spec(), small_group()
    episode = evaluation_episode(spec, data, GroupRole.HELD_OUT, 0)
    assert len(episode.context) == 6
    assert sorted((*episode.context, *episode.targets)) == list(range(60))


def test_without_held_out_questions_a_training_group_is_scored_on_all_but_its_context() -> None:
    spec, data = small_spec({"evaluation": {"holdout_share": 0.0}}), small_group()
    episode = evaluation_episode(spec, data, GroupRole.TRAIN, 0)
    assert sorted((*episode.context, *episode.targets)) == list(range(60))


def test_an_evaluation_is_the_mean_over_its_draws_of_what_the_model_predicts(tmp_path: Path) -> None:
    spec, data = small_spec({"predictor": {"dropout": 0.3}}), small_group()
    base = write_version_0(tmp_path / "base", spec)
    evaluation = evaluate(base, spec, data, GroupRole.TRAIN, CPU, quietly)
    assert evaluation == evaluate(base, spec, data, GroupRole.TRAIN, CPU, quietly)
    alignment = evaluation.alignment
    expected, model = Alignment(), predictor(spec).eval()
    for draw in range(spec.evaluation.draws):
        episode = evaluation_episode(spec, data, GroupRole.TRAIN, draw)
        shares = torch.from_numpy(data.shares[data.points(episode.context)])[None]
        for q in episode.targets:
            with torch.no_grad():
                context, target = (make_points([(data, questions)]) for questions in (episode.context, [q]))
                mean = model(context, shares, target).mean[0]
            question = data.questions[q]
            expected = expected.add(torch.softmax(mean, 0).numpy(), question.shares, question.scale)
    assert (alignment.questions, alignment.ordinal_questions) == (expected.questions, expected.ordinal_questions)
    assert alignment.score == pytest.approx(expected.score, abs=1e-6)
    assert alignment.wasserstein == pytest.approx(expected.wasserstein, abs=1e-6)


@pytest.mark.parametrize("architecture", [{}, KERNEL], ids=["tnp-d/1", "fourier-kernel/1"])
def test_the_context_gain_is_over_the_score_with_the_same_questions_and_uniform_answers(
    architecture: dict[str, Any], tmp_path: Path
) -> None:
    spec, data = small_spec({"predictor": architecture}), small_group()
    base = write_version_0(tmp_path / "base", spec)
    evaluation = evaluate(base, spec, data, GroupRole.TRAIN, CPU, quietly)
    usable, _ = data.split(spec.held_out)
    silent = data.shares.copy()
    for q in usable:  # contexts are drawn from these; all targets are withheld questions
        silent[data.offsets[q] : data.offsets[q + 1]] = 1 / len(data.questions[q].options)
    disguised = evaluate(base, spec, replace(data, shares=silent), GroupRole.TRAIN, CPU, quietly)
    assert evaluation.uniform == disguised.alignment == disguised.uniform
    assert evaluation.context_gain == evaluation.alignment.score - disguised.alignment.score
    assert disguised.context_gain == 0
    if architecture:
        assert abs(evaluation.context_gain) > 1e-4


def test_an_evaluation_tells_its_draws_and_can_be_cancelled(tmp_path: Path) -> None:
    spec, data, reported_draws = small_spec(), small_group(), []
    base = write_version_0(tmp_path / "base", spec)
    evaluate(base, spec, data, GroupRole.HELD_OUT, CPU, lambda *step: reported_draws.append(step))
    assert reported_draws == [(0, 2), (1, 2), (2, 2)]

    def cancel(_done: int, _all: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(base, spec, data, GroupRole.HELD_OUT, CPU, cancel)


@pytest.mark.parametrize(
    ("role", "evaluation", "expected_text"),
    [
        (GroupRole.HELD_OUT, {"context_questions": 60}, "has 60 usable questions, .* needs 61"),
        (GroupRole.TRAIN, {"context_questions": 60}, r"has \d\d usable questions, .* needs 60"),
        (
            GroupRole.TRAIN,
            {"holdout_share": 1e-9},
            "has 0 usable questions, an evaluation on questions nobody trains on",
        ),
    ],
)
def test_too_few_questions_for_an_evaluation_are_told_with_the_numbers(
    role: GroupRole, evaluation: dict[str, Any], expected_text: str
) -> None:
    with pytest.raises(TooFewQuestions, match=expected_text):
        evaluation_episode(small_spec({"evaluation": evaluation}), small_group(), role, 0)


def test_too_few_questions_for_an_episode_are_told_before_training(tmp_path: Path) -> None:
    over = {"training": {"episodes": {"min_context": 40, "max_context": 40, "min_targets": 20, "max_targets": 20}}}
    with pytest.raises(TooFewQuestions, match=r"has \d\d usable questions, .* needs 60"):
        trained(tmp_path, small_spec(over), small_group())


def test_auto_finds_a_device_and_an_absent_one_is_refused_with_a_reason() -> None:
    assert pick_device("cpu") == CPU
    assert torch.empty(1, device=pick_device("auto")).numel() == 1
    for absent in ("cuda:99", "abacus"):
        with pytest.raises(InvalidArgument, match=absent):
            pick_device(absent)


def test_several_episodes_of_a_batch_are_one_step(tmp_path: Path) -> None:
    over = {"training": {"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 1, "batch_episodes": 3}}
    spec, data = small_spec(over), small_group()
    _, delta = trained(tmp_path, spec, data)
    model, rng = predictor(spec), np.random.default_rng(5)
    usable, _ = data.split(spec.held_out)
    episodes = draw_episodes(spec, data, usable, 0, rng)
    assert len(episodes) == 3
    loss_of(model, make_batch(episodes), "gaussian").backward()  # type: ignore[no-untyped-call]
    bias = model.get_parameter("head.1.bias").grad
    assert bias is not None
    position = [name for name, _ in layout_for(spec).tensors].index("head.1.bias")
    start = sum(math.prod(shape) for _, shape in layout_for(spec).tensors[:position])
    assert np.allclose(delta[start : start + 2], -0.1 * bias.numpy(), atol=1e-7)


def test_fedprox_pulls_towards_the_rounds_base(tmp_path: Path) -> None:
    over = {"training": {"optimizer": "sgd", "learning_rate": 0.05, "local_steps": 6, "batch_episodes": 1}}
    free, data = small_spec(over), small_group()
    pulled = small_spec({**over, "training": {**over["training"], "proximal_mu": 5.0}})
    (_, far), (_, near) = trained(tmp_path, free, data), trained(tmp_path, pulled, data)
    assert np.linalg.norm(near) < 0.8 * np.linalg.norm(far)


def test_fedprox_adds_mu_times_the_distance_to_the_gradient() -> None:
    parameter = torch.tensor([1.0, -2.0], requires_grad=True)
    parameter.grad = torch.tensor([0.5, 0.5])
    pull_to_base([parameter], [torch.tensor([0.0, 1.0])], 0.1)
    assert torch.allclose(parameter.grad, torch.tensor([0.6, 0.2]))


def naive_distance(model: PreferencePredictor, data: GroupData, episode: Episode) -> float:
    """Computes the mean distance question by question, from one batch."""
    batch = make_batch([(data, episode)])
    with torch.no_grad():
        means = model(batch.context, batch.context_shares, batch.targets).mean[0]
    distances, position = [], 0
    for number in episode.targets:
        question = data.questions[number]
        guess = torch.softmax(means[position : position + len(question.options)], 0).tolist()
        distances.append(js_distance(guess, question.shares))
        position += len(question.options)
    return sum(distances) / len(distances)


def test_the_base_distance_is_of_the_weights_before_training_on_the_first_steps_targets(tmp_path: Path) -> None:
    spec, data = small_spec({"training": {"learning_rate": 0.05, "local_steps": 3}}), small_group()
    done, _ = trained(tmp_path, spec, data, seed=5)
    usable, _ = data.split(spec.held_out)
    ((_, episode),) = draw_episodes(spec, data, usable, 0, np.random.default_rng(5))
    assert done.base_distance == pytest.approx(naive_distance(predictor(spec), data, episode), rel=1e-5)


def test_base_distances_of_several_clients_in_one_padded_batch_are_those_of_each_alone() -> None:
    spec, data = small_spec({}), small_group()
    model = predictor(spec)
    episodes = [
        Episode((0, 1, 2), (3, 4, 5)),
        Episode((1, 2), (6,)),
        Episode((5, 3), (0, 1)),
        Episode((7,), (2, 4, 8, 9)),
    ]
    batch = make_batch([(data, episode) for episode in episodes])
    with torch.no_grad():
        predicted = model(batch.context, batch.context_shares, batch.targets)
    alone = [naive_distance(model, data, episode) for episode in episodes]
    assert base_distances(predicted, batch, clients=4) == pytest.approx(alone, rel=1e-5)
    two = [(3 * alone[0] + alone[1]) / 4, (2 * alone[2] + 4 * alone[3]) / 6]  # the mean is over questions
    assert base_distances(predicted, batch, clients=2) == pytest.approx(two, rel=1e-5)


def test_what_rounding_left_counts_only_if_it_is_of_this_model(tmp_path: Path) -> None:
    spec, data = small_spec({"updates": {"encoding": "int8"}}), small_group()
    base, residual = write_version_0(tmp_path / "base", spec), tmp_path / "residual"

    def sent() -> bytes:
        out = tmp_path / "delta"
        train(base, out, spec, data, 5, 0, CPU, tmp_path / "moments", residual, quietly)
        return out.read_bytes()

    without = sent()
    np.zeros(7, np.float32).tofile(residual)  # a residual of another model
    assert sent() == without
    np.full(layout_for(spec).values, 0.01, np.float32).tofile(residual)
    assert sent() != without


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_damaged_residual_counts_as_none_and_is_reported(tmp_path: Path, number: float) -> None:
    values = 5
    np.full(values, 0.01, np.float32).tofile(tmp_path / "residual")
    with capture_logs() as logs:
        assert _kept(tmp_path / "residual", values).tolist() == pytest.approx([0.01] * values)
        assert _kept(tmp_path / "none", values).tolist() == [0.0] * values
        assert logs == []
        np.array([0.01, number, 0, 0, 0], np.float32).tofile(tmp_path / "residual")
        assert _kept(tmp_path / "residual", values).tolist() == [0.0] * values
    assert [line["event"] for line in logs] == ["residual.damaged"]


@pytest.mark.parametrize("damage", ["text", "cut", "another parameter", "another shape", "not finite"])
def test_damaged_moments_begin_anew_and_are_reported(tmp_path: Path, damage: str) -> None:
    model = torch.nn.Linear(2, 3)
    optimizer, path = torch.optim.Adam(model.parameters()), tmp_path / "moments"
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    _save_moments(cast(Any, model), optimizer, path)
    moments = {name: value.clone() for name, value in load_file(path).items()}
    match damage:
        case "text":
            path.write_text("no moments")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "another parameter":
            save_file({"other/exp_avg": torch.zeros(3)}, path)
        case "another shape":
            save_file({**moments, "weight/exp_avg": torch.zeros(3, 3)}, path)
        case _:
            save_file({**moments, "weight/exp_avg": torch.full((3, 2), torch.nan)}, path)
    fresh = torch.optim.Adam(model.parameters())
    with capture_logs() as logs:
        _restore_moments(cast(Any, model), fresh, path)
    assert ([line["event"] for line in logs], dict(fresh.state)) == (["moments.damaged"], {})


@pytest.mark.parametrize("encoding", ["int8", "bf16"])
def test_what_rounding_took_from_each_round_comes_with_the_next_one(tmp_path: Path, encoding: str) -> None:
    """Error feedback: a round sends its delta and the residual of the round before, rounded. The rest is the next residual."""
    spec, data = small_spec({"updates": {"encoding": encoding}}), small_group()
    plain, residual, layout = small_spec(), tmp_path / "residual", layout_for(spec)
    base, learnt, sent = write_version_0(tmp_path / "base", spec), np.zeros(layout.values), np.zeros(layout.values)
    for number in (1, 2, 3, 4):
        _, delta = trained(tmp_path, plain, data, base=base, seed=number)
        out, before = tmp_path / "encoded", np.fromfile(residual, "<f4") if residual.exists() else np.float32(0)
        train(base, out, spec, data, number, 0, CPU, tmp_path / "moments", residual, quietly)
        assert read_layout_of(out) == update_format(layout, spec.updates.encoding).header
        read = as_read(delta + before, spec.updates.encoding, rounding(number))
        next_state(residual).replace(residual)
        assert np.array_equal(np.fromfile(residual, "<f4"), delta + before - read)
        learnt, sent = learnt + delta, sent + read
    assert np.abs(learnt - sent - np.fromfile(residual, "<f4")).max() < 1e-7


def read_layout_of(path: Path) -> bytes:
    """Returns the header of a file of weights."""
    with path.open("rb") as file:
        return read_header(file)


# Near the limits


def test_the_rate_of_each_step_is_that_of_its_number_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, data = small_spec({"training": {"optimizer": "sgd", "local_steps": 3}}), small_group()
    steps: list[int] = []

    def rate(_: RunSpec, step: int) -> float:
        steps.append(step)
        return 0.0 if step < 7 else 0.5

    monkeypatch.setattr("pluralllm.client.work.train.learning_rate", rate)
    _, still = trained(tmp_path, spec, data, first_step=4)
    _, moved = trained(tmp_path, spec, data, first_step=5)
    assert steps == [4, 5, 6, 5, 6, 7]
    assert not still.any()
    assert moved.any()


def test_the_loss_of_a_training_is_the_mean_over_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = small_spec({"training": {"optimizer": "sgd", "local_steps": 3}}), small_group()
    monkeypatch.setattr("pluralllm.client.work.train.learning_rate", lambda *_: 0.0)  # the model stays as it is
    done, _ = trained(tmp_path, spec, data, seed=5)
    usable, _ = data.split(spec.held_out)
    rng, model = np.random.default_rng(5), predictor(spec)
    losses = [
        float(loss_of(model, make_batch(draw_episodes(spec, data, usable, step, rng)), "gaussian").detach())
        for step in range(3)
    ]
    assert done.mean_loss == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("function", ["write_weights", "save_file"])
def test_a_full_disk_is_an_error_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    spec = small_spec({"training": {"keep_optimizer_state": True}}, preset="paper")
    base = write_version_0(tmp_path / "v0", spec)
    monkeypatch.setattr(f"pluralllm.client.work.train.{function}", full)
    with pytest.raises(StorageFull):
        trained(tmp_path, spec, small_group(), base=base)


def test_draws_are_the_same_in_every_release_because_results_are_repeated_with_them() -> None:
    spec, data = small_spec(), small_group("a")
    assert rounding(5).random() == np.random.default_rng([5, 1]).random()
    assert evaluation_episode(spec, data, GroupRole.HELD_OUT, 0).context == (35, 19, 38, 11, 21, 17)
    assert evaluation_episode(spec, data, GroupRole.HELD_OUT, 1, 9).context == (32, 45, 19, 39, 43, 21)
    rewards = RewardRun(source="runs/s/models/0", model_digest="0" * 64, context_questions=5)
    asking = spec.model_copy(update={"rewards": rewards})
    first, other = (7, 17, 23, 25, 56), (3, 10, 15, 33, 38)
    for seed, numbers in ((None, first), (spec.seed, first), (9, other)):
        assert [question.text for question in reward_context(asking, data, seed)] == [
            f"question {number}" for number in numbers
        ]


def test_answers_are_sharpened_as_often_as_flattened() -> None:
    data, usable = small_group(), range(60)
    spec = small_spec({"training": {"sharpness_spread": 1e-9, "batch_episodes": 3}})
    for other, _ in draw_episodes(spec, data, list(usable), 0, np.random.default_rng(1)):
        assert np.allclose(other.shares, data.shares, atol=1e-6)


def test_a_parameter_without_a_gradient_is_not_pulled() -> None:
    parameter = torch.tensor([1.0], requires_grad=True)
    pull_to_base([parameter], [torch.tensor([0.0])], 0.5)
    assert parameter.grad is None


def test_a_group_with_just_enough_questions_is_evaluated() -> None:
    data = small_group()
    for role, size in ((GroupRole.HELD_OUT, 59), (GroupRole.TRAIN, len(data.split(small_spec().held_out)[0]))):
        spec = small_spec({"evaluation": {"context_questions": size}})
        assert len(evaluation_episode(spec, data, role, 0).context) == size
        with pytest.raises(TooFewQuestions):
            evaluation_episode(small_spec({"evaluation": {"context_questions": size + 1}}), data, role, 0)


def test_torch_warns_of_kernels_that_are_not_repeatable_within_a_training_only() -> None:
    before = torch.get_deterministic_debug_mode()
    with repeatable(7, CPU):
        assert torch.get_deterministic_debug_mode() == 1
        first = torch.rand(1)
    assert torch.get_deterministic_debug_mode() == before
    with repeatable(7, CPU):
        assert torch.rand(1) == first


def test_auto_takes_the_fastest_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
