"""The properties of work on a GPU: repeatable bits, the CPU's numbers up to rounding, and one pass for all clients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.process_harness import tiny_embedding_model
from support.small_survey import KERNEL, small_group, small_spec, write_version_0

from pluralllm.client.work.train import Trained, evaluate, pick_device, train
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.encoder import Encoder
from pluralllm.common.weights.layout import flat_values
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.experiment.federated import LocalTraining
from pluralllm.server.rounds.cohort import task_seed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = small_spec({"training": {"optimizer": "sgd", "learning_rate": 0.05, "local_steps": 5}})
KERNELS = small_spec({"training": {"local_steps": 30}, "predictor": {**KERNEL, "dropout": 0.1}})
ADAM = small_spec({"training": {"local_steps": 30}, "predictor": {"dropout": 0.1}})
NEAR = 1e-4  # of the delta's length: the GPU adds float32 values in another order


def quietly(_done: int, _all: int) -> None:
    pass


def trained(folder: Path, spec: RunSpec, device: torch.device, seed: int = 5) -> tuple[Trained, NDArray[np.float32]]:
    """Trains one TRAIN task from version 0 and returns the result and the delta."""
    base, out = write_version_0(folder / "base", spec), folder / "delta"
    done = train(base, out, spec, small_group(), seed, 0, device, folder / "moments", folder / "residual", quietly)
    return done, np.array(flat_values(out, layout_for(spec)))


def apart(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_auto_takes_the_gpu() -> None:
    assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize("spec", [ADAM, KERNELS], ids=["tnp-d/1", "fourier-kernel/1"])
def test_the_same_task_gives_the_same_bits_on_a_gpu(spec: RunSpec, tmp_path: Path) -> None:
    (first, one), (second, two) = trained(tmp_path, spec, CUDA), trained(tmp_path, spec, CUDA)
    assert first == second
    assert one.tobytes() == two.tobytes()
    assert not np.array_equal(one, trained(tmp_path, spec, CUDA, seed=6)[1])


def test_a_gpu_trains_what_the_cpu_trains(tmp_path: Path) -> None:
    (there, delta), (here, wanted) = trained(tmp_path, SPEC, CUDA), trained(tmp_path, SPEC, CPU)
    assert there.mean_loss == pytest.approx(here.mean_loss, rel=1e-4)
    assert apart(delta, wanted) < NEAR


def test_a_gpu_scores_what_the_cpu_scores(tmp_path: Path) -> None:
    base = write_version_0(tmp_path / "base", SPEC)
    gpu_result, cpu_result = (
        evaluate(base, SPEC, small_group(), GroupRole.HELD_OUT, device, lambda _done, _all: None).alignment
        for device in (CUDA, CPU)
    )
    assert gpu_result.js_total == pytest.approx(cpu_result.js_total, abs=1e-4)
    assert gpu_result.questions == cpu_result.questions


def test_all_clients_in_one_pass_give_what_each_gives_alone_on_a_gpu(tmp_path: Path) -> None:
    groups = {ClientId(name): small_group(name, questions=count) for name, count in (("a", 30), ("b", 24), ("c", 36))}
    base = write_version_0(tmp_path / "base", SPEC)
    start = np.array(flat_values(base, layout_for(SPEC)))
    deltas, _ = LocalTraining(SPEC, groups, start, CUDA).train_round(start, RoundNumber(1))
    for client, data in groups.items():
        out, seed = tmp_path / "delta", task_seed(SPEC.seed, RoundNumber(1), client)
        train(base, out, SPEC, data, seed, 0, CUDA, tmp_path / "moments", tmp_path / "residual", quietly)
        assert apart(deltas[client], np.array(flat_values(out, layout_for(SPEC)))) < 1e-3


def test_vectors_of_a_gpu_point_where_those_of_the_cpu_do(tmp_path: Path) -> None:
    """A GPU computes vectors in bf16; the probes of a run spec ask for a cosine of 0.999."""
    source = str(tiny_embedding_model(tmp_path))
    texts = ["Tea", "Bus", "How much do you agree or disagree"]
    there, here = (
        {
            text: vector
            for batch, vectors, _ in Encoder(source, "main", 64, device).encode(texts)
            for text, vector in zip(batch, vectors, strict=True)
        }
        for device in (CUDA, CPU)
    )
    for text in texts:
        cosine = there[text] @ here[text] / np.linalg.norm(there[text]) / np.linalg.norm(here[text])
        assert cosine > 0.999
