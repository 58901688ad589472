"""Measures memory and seconds of a federation of virtual clients, and compares the bits of two ways to add its updates.

    .venv/bin/python benchmarks/virtual_clients.py                                # 10^5 clients, cohorts of 1,000, 20 rounds
    .venv/bin/python benchmarks/virtual_clients.py --clients 10000 --cohort 100 --rounds 2

The groups are made up. The model is the preset's, so an update has its true size. With --compare, the run is played again with
narrow slices of the updates in the file; the digest of the last version must be the same. The passes of both have the same cut.
"""

import argparse
import hashlib
import resource
import time
from typing import Any

import numpy as np
import torch

from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, merge, preset_values
from pluralllm.experiment import federated
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.virtual import groups_of_clients


def made_up_group(name: str, questions: int, dimension: int, seed: int) -> GroupData:
    """Returns a group with random answers to the same random questions as the other groups."""
    texts, answers = np.random.default_rng(0), np.random.default_rng(seed)
    asked, embedded = [], []
    for number in range(questions):
        points = texts.normal(size=(4, dimension)).astype(np.float32)
        embedded.append(points / np.linalg.norm(points, axis=1, keepdims=True))
        shares = tuple(answers.dirichlet(np.ones(4)).tolist())
        asked.append(Question(f"question {number}", ("a", "b", "c", "d"), shares, (0.0, 1.0, 2.0, 3.0)))
    return group_data(name, asked, embedded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--compare", action="store_true", help="Play the run again with narrow slices.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[str, Any] = {
        "rounds": options.rounds,
        "round": {"min_clients": options.cohort, "target_clients": options.cohort},
        "training": {"keep_optimizer_state": False},
        "updates": {"encoding": "fp32"},
    }
    usual = preset_values(options.preset)
    values["embedding"] = {"model": "made up", "dimension": 384 * len(usual["embedding"]["templates"])}
    spec = RunSpec.model_validate(merge(usual, values))
    names = [f"group {number}" for number in range(options.groups)]
    groups = {name: made_up_group(name, 300, spec.embedding.dimension, seed) for seed, name in enumerate(names)}
    clients = groups_of_clients(Virtual(clients=options.clients), names, spec.seed)
    for schedule in ("wide slices", "narrow slices") if options.compare else ("wide slices",):
        if schedule != "wide slices":
            federated.VALUES_AT_ONCE //= 8  # other slices of the updates
        start_s = time.process_time()
        for point in federated.federate(spec, groups, torch.device("cpu"), clients):
            seconds = time.process_time() - start_s
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{schedule}: round {point.rounds}, {seconds:.0f} CPU-s, at most {peak_mb:,.0f} MiB", flush=True)
        print(f"{schedule}: last version {hashlib.sha256(point.values.tobytes()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
