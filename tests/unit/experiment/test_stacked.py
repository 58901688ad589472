"""Clients that are trained in one batched pass get the results of `client.train` for each client alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_survey import KERNEL, small_group, small_spec, write_version_0

from pluralllm.client.keeping.drafts import next_state
from pluralllm.client.work.train import train
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import Episode, make_batch
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.weights.chunks import HashingReader
from pluralllm.common.weights.layout import flat_values, tensors_of
from pluralllm.common.weights.update_format import SliceReader, update_format
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import UpdateEncoding
from pluralllm.experiment.alone import centralize, train_alone
from pluralllm.experiment.federated import LocalTraining, first_values
from pluralllm.experiment.passes import MOST_ON_A_GPU, clients_per_pass
from pluralllm.experiment.stacked import StackedPredictors, clip_each
from pluralllm.server.rounds.cohort import task_seed

pytestmark = pytest.mark.seconds

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "learning_rate": 0.05, "local_steps": 3}
TRANSFORMER = {"share_scale": 5.0}
CASES: dict[str, dict[str, Any]] = {
    "gaussian": SGD,
    "cross_entropy": {**SGD, "loss": "cross_entropy"},
    "alignment with sharpened and softened answers": {
        **SGD,
        "loss": "alignment",
        "sharpness_spread": 0.3,
        "target_temperature": 1.2,
    },
    "clipped": {**SGD, "gradient_clip_norm": 0.01},
    "proximal": {**SGD, "proximal_mu": 3.0},
    "several episodes": {**SGD, "batch_episodes": 2},
    "cosine": {**SGD, "schedule": "cosine", "cosine_steps": 4},
    "adam": {"optimizer": "adam", "learning_rate": 1e-3, "local_steps": 3},
    "adam that remembers": {
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "local_steps": 3,
        "keep_optimizer_state": True,
    },
}


def quietly(_done: int, _all: int) -> None:
    pass


@pytest.mark.parametrize(
    ("case", "predictor"),
    [
        *((case, TRANSFORMER) for case in CASES),
        ("cross_entropy", KERNEL),
        ("several episodes", KERNEL),
        ("adam", KERNEL),
    ],
)
def test_one_batched_pass_gives_what_clients_give_one_by_one(
    case: str, predictor: dict[str, Any], tmp_path: Path
) -> None:
    """Trains two rounds from one base; the second shows whether the moments are kept or forgotten."""
    spec = small_spec({"rounds": 2, "training": CASES[case], "predictor": predictor})
    groups = {ClientId(name): small_group(name, questions=count) for name, count in (("a", 30), ("b", 24), ("c", 36))}
    base = write_version_0(tmp_path / "base", spec)
    layout = layout_for(spec)
    start = np.array(flat_values(base, layout))
    together = LocalTraining(spec, groups, start, CPU)
    for number in (RoundNumber(1), RoundNumber(2)):
        deltas, distances = together.train_round(start, number)
        for client, data in groups.items():
            out, moments = tmp_path / "delta", tmp_path / f"moments-{client}"
            seed, first_step = task_seed(spec.seed, number, client), (number - 1) * spec.training.local_steps
            done = train(base, out, spec, data, seed, first_step, CPU, moments, tmp_path / "residual", quietly)
            assert distances[client] == pytest.approx(done.base_distance, abs=1e-4)
            if spec.training.keep_optimizer_state:
                next_state(moments).replace(moments)
            alone = np.array(flat_values(out, layout))
            assert np.linalg.norm(alone) > 1e-4
            # Rounding noise moves Adam's parameters without a gradient: few numbers, but each by a whole step.
            tolerance = 1e-3 if spec.training.optimizer == "sgd" else 0.02
            assert np.linalg.norm(deltas[client] - alone) < tolerance * np.linalg.norm(alone)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_updates_travel_in_an_experiment_as_they_do_from_a_client(encoding: UpdateEncoding, tmp_path: Path) -> None:
    """Trains two rounds: the rounding error of the first is in the second. A few values may be rounded the other way."""
    spec = small_spec({"rounds": 2, "training": SGD, "updates": {"encoding": encoding}})
    client, data = ClientId("a"), small_group()
    base = write_version_0(tmp_path / "base", spec)
    start = np.array(flat_values(base, layout_for(spec)))
    together = LocalTraining(spec, {client: data}, start, CPU)
    form, out, residual = update_format(layout_for(spec), encoding), tmp_path / "delta", tmp_path / "residual"
    for number in (RoundNumber(1), RoundNumber(2)):
        deltas, _ = together.train_round(start, number)
        seed, first_step = task_seed(spec.seed, number, client), (number - 1) * spec.training.local_steps
        train(base, out, spec, data, seed, first_step, CPU, tmp_path / "moments", residual, quietly)
        next_state(residual).replace(residual)
        read = np.empty(form.layout.values, np.float32)
        with HashingReader(out) as file:
            file.read_into(np.empty(len(form.header), np.uint8))
            SliceReader(form, file.read_into).read(read)  # one slice holds the whole update
        assert np.linalg.norm(read - deltas[client]) < 0.01 * np.linalg.norm(read)
    assert np.linalg.norm(np.fromfile(residual, "<f4")) > 0, "nothing was rounded"


@pytest.mark.parametrize("predictor", [{}, KERNEL], ids=["tnp-d/1", "fourier-kernel/1"])
def test_a_stack_of_one_predicts_what_the_predictor_predicts(predictor: dict[str, Any]) -> None:
    spec, data = small_spec({"predictor": predictor}), small_group()
    start = first_values(spec)
    batch = make_batch([(data, Episode((0, 3, 5), (1, 2))), (data, Episode((4,), (7, 8, 9)))])
    model = new_predictor(spec.predictor, spec.embedding).eval()
    stack = StackedPredictors(spec, [start], CPU)
    assert np.array_equal(stack.flat()[0], start)
    named = {name: np.zeros(shape, np.float32) for name, shape in layout_for(spec).tensors}
    at = 0
    for name, shape in layout_for(spec).tensors:
        named[name] = start[at : at + int(np.prod(shape))].reshape(shape)
        at += int(np.prod(shape))
    load_weights(model, named)
    with torch.no_grad():
        one = model(batch.context, batch.context_shares, batch.targets)
        other = stack(batch, training=False)
    real = batch.targets.is_real
    assert torch.allclose(one.mean[real], other.mean[real], atol=1e-5)
    assert torch.allclose(one.log_std[real], other.log_std[real], atol=1e-5)


def test_each_client_of_a_pass_drops_features_of_its_own() -> None:
    spec, data = small_spec({"predictor": {**KERNEL, "dropout": 0.5}}), small_group()
    batch = make_batch([(data, Episode((0, 3, 5), (1, 2)))] * 2)
    stack = StackedPredictors(spec, [first_values(spec)] * 2, CPU)
    one, other = stack(batch, training=True).mean
    assert not torch.allclose(one, other, atol=1e-3)
    one, other = stack(batch, training=False).mean
    assert torch.allclose(one, other, atol=1e-6)


def test_the_first_values_of_an_experiment_are_version_0_of_the_service(tmp_path: Path) -> None:
    spec = small_spec()
    stored = tensors_of(write_version_0(tmp_path / "v0", spec))
    whole = np.concatenate([np.asarray(stored[name]).ravel() for name, _ in layout_for(spec).tensors])
    assert np.array_equal(first_values(spec), whole)


def test_each_client_has_its_own_gradient_clipped() -> None:
    gradients = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
    clip_each(gradients, 1.0)
    assert torch.allclose(gradients[0], torch.tensor([[0.6, 0.8], [0.3, 0.4]]), atol=1e-5)


def test_a_cpu_pass_takes_fewer_clients_of_larger_episodes_and_a_gpu_all() -> None:
    small, large = (
        small_spec({"training": {"episodes": {"max_context": most, "max_targets": most}}}) for most in (40, 400)
    )
    assert clients_per_pass(small, CPU, 8) > clients_per_pass(large, CPU, 8) >= 1
    assert clients_per_pass(large, torch.device("cuda"), 8) == 8
    assert clients_per_pass(large, torch.device("cuda"), 100_000) == MOST_ON_A_GPU


@pytest.mark.parametrize("over", [{"sharpness_spread": 0.5}, {"batch_episodes": 2}])
def test_central_and_lone_training_take_the_episodes_that_clients_would(over: dict[str, Any]) -> None:
    groups = {name: small_group(name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    taken = {"train": ["a", "b"]}
    plain, other = (small_spec({"groups": taken, "training": {**SGD, **more}}) for more in ({}, over))
    for models in (
        [list(centralize(spec, 3, 3, groups, CPU))[-1].values for spec in (plain, other)],
        [list(train_alone(spec, first_values(spec), 3, 3, groups, CPU))[-1][1]["a"] for spec in (plain, other)],
    ):
        assert not np.allclose(models[0], models[1], atol=1e-6)
    assert list(centralize(other, 3, 3, groups, CPU))[-1].episodes == 3 * 2 * other.training.batch_episodes
