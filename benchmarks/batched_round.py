"""Measures a round of eight clients, trained in batched passes and one by one with the service's own training.

    .venv/bin/python benchmarks/batched_round.py [--preset default] [--device cpu] [--threads 2] [--repeats 5]

The groups are random and have the survey's size (200 questions of 4 or 5 options), so no data file is needed. Training one by
one means `pluralllm.client.work.train.train` with its files, which lie in /dev/shm if the machine has such a folder. Batched
and single training use the same episodes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pluralllm.client.keeping.drafts import next_state
from pluralllm.client.work.train import pick_device, train
from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment.federated import LocalTraining, first_values
from pluralllm.experiment.passes import clients_per_pass
from pluralllm.server.rounds.cohort import task_seed

CLIENTS, QUESTIONS = 8, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    spec = spec_of(arguments.preset)
    groups = {ClientId(name): made_up(name, number, spec) for number, name in enumerate(spec.groups.train)}
    together, alone = [], []
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        folder = Path(name)
        base = folder / "base"
        write_first_version(base, spec)
        start = first_values(spec)
        passes = LocalTraining(spec, groups, start, device)
        for number in map(RoundNumber, range(1, arguments.repeats + 2)):  # the first round warms up and does not count
            began_s = time.perf_counter()
            passes.train_round(start, number)
            together.append(time.perf_counter() - began_s)
            began_s = time.perf_counter()
            for client, data in groups.items():
                seed, first_step = task_seed(spec.seed, number, client), (number - 1) * spec.training.local_steps
                moments, out = folder / f"moments-{client}", folder / f"delta-{client}"
                train(
                    base,
                    out,
                    spec,
                    data,
                    seed,
                    first_step,
                    device,
                    moments,
                    folder / "residual",
                    lambda _done, _all: None,
                )
                if spec.training.keep_optimizer_state:
                    next_state(moments).replace(moments)
            alone.append(time.perf_counter() - began_s)
    ratios = [one / other for one, other in zip(together[1:], alone[1:], strict=True)]
    size = clients_per_pass(spec, device, CLIENTS)
    print(
        f"{arguments.preset}, {device}, {arguments.threads} threads; {CLIENTS} clients, {min(size, CLIENTS)} in a pass"
    )
    print(f"batched    {statistics.median(together[1:]):.3f} s a round (median of {arguments.repeats})")
    print(f"one by one {statistics.median(alone[1:]):.3f} s")
    print(f"ratio      {statistics.median(ratios):.2f} (median of the pairs; {min(ratios):.2f} to {max(ratios):.2f})")


def spec_of(preset: str) -> RunSpec:
    changes = {
        "groups": {"train": [f"group-{number}" for number in range(CLIENTS)]},
        "round": {"min_clients": CLIENTS, "target_clients": CLIENTS},
        "embedding": {"model": "made up"},
    }
    values = merge(preset_values(preset), changes)
    values["embedding"]["dimension"] = 384 * len(values["embedding"]["templates"])
    return RunSpec.model_validate(values)


def made_up(name: str, number: int, spec: RunSpec) -> GroupData:
    rng = np.random.default_rng(number)
    questions, embedded = [], []
    for index in range(QUESTIONS):
        options = int(rng.integers(4, 6))
        labels = tuple(f"option {option}" for option in range(options))
        questions.append(Question(f"question {index}", labels, tuple(rng.dirichlet(np.ones(options)).tolist())))
        vectors = rng.normal(size=(options, spec.embedding.dimension)).astype(np.float32)
        embedded.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return group_data(name, questions, embedded)


if __name__ == "__main__":
    main()
