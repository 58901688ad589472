"""Alignment of a federation whose updates are added in the ring of private rounds, beside the same federation in plain rounds.

The masks cancel in the sum to the bit (tests/private), so they are left out. What remains is what a private round changes: the
update is limited to clip_norm, weighted by the client itself, and rounded to whole steps.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from preset_trials import CPU, Record, commit, lines_of, read, scores, spec_of

from pluralllm.common.private_rounds.ring import Ring, clipping_of, decoded_mean, quantised
from pluralllm.common.weights.server_optimizer import first_moments, server_optimizer
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import LocalTraining, federate, first_values
from pluralllm.experiment.groups import Groups
from pluralllm.experiment.stacked import Flat

PART = "validation"  # the groups that are scored; the test groups are not read


def federate_in_ring(spec: RunSpec, groups: Groups, clip_norm: float) -> tuple[Flat, int]:
    """Returns the last model of a federation with private rounds, and how many updates were longer than `clip_norm`.

    The clients train as in `federate`, with the same seeds.
    """
    trainers = {ClientId(f"client-{number}"): groups[name] for number, name in enumerate(sorted(spec.groups.train))}
    values, most = first_values(spec), spec.aggregation.max_examples
    training, ring = LocalTraining(spec, trainers, values, CPU), Ring(len(trainers), clip_norm, most)
    weights = {c: min(len(data.split(spec.held_out)[0]), most) for c, data in trainers.items()}
    optimizer, clipped = server_optimizer(spec.aggregation), 0
    moments = np.repeat(np.array(first_moments(spec.aggregation), np.float32)[:, None], values.size, axis=1)
    for number in range(1, spec.rounds + 1):
        deltas, _ = training.train_round(values, RoundNumber(number), sorted(trainers))
        mean, more = ring_mean(dict(deltas), weights, ring, np.random.default_rng([spec.seed, number]))
        values, moments = optimizer(values, mean, moments)
        clipped += more
    return values, clipped


def ring_mean(
    deltas: dict[ClientId, Flat], weights: dict[ClientId, int], ring: Ring, rng: np.random.Generator
) -> tuple[NDArray[np.float64], int]:
    """Returns the weighted mean of deltas as a private round computes it, and how many of them were clipped."""
    total = np.zeros(next(iter(deltas.values())).size, np.uint32)
    clipped = 0
    for client in sorted(deltas):
        clipping = clipping_of(deltas[client], ring)
        clipped += clipping.is_clipped
        total += quantised(deltas[client], clipping, weights[client], ring, rng)
    return decoded_mean(total, ring, sum(weights[client] for client in deltas)), clipped


def measure(data: Path, out: Path, preset: str, clip_norm: float, seeds: list[int], cache: Path) -> None:
    """Appends one line to `out` for each seed that has none yet. data: GlobalOpinionQA, a CSV file."""
    groups: Groups = {}
    for seed in seeds:
        spec = spec_of(preset, {}, seed)
        facts: Record = {"spec_sha256": spec.sha256(), "seed": seed, "preset": preset, "clip_norm": clip_norm}
        if any(facts.items() <= line.items() for line in lines_of(out)):
            continue
        groups = groups or read(data, PART, spec, cache)
        began_s = time.process_time()
        *_, last = federate(spec, groups, CPU)
        private, clipped = federate_in_ring(spec, groups, clip_norm)
        cost = {"clipped": clipped, "longest_update": last.longest_update, "cpu_s": time.process_time() - began_s}
        scored = {name: one for name, one in groups.items() if name not in spec.groups.train}
        made = {name: scores(spec, v, scored, PART) for name, v in (("plain", last.values), ("private", private))}
        line = {"commit": commit(), **facts, **cost, **{name: _short(one) for name, one in made.items()}}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(text_of(line), flush=True)


def _short(scored: Record) -> dict[str, Any]:
    return {key: scored[key] for key in ("mean", "worst", "context_gain")}


def text_of(line: Record) -> str:
    """Returns the printed form of a line."""
    plain, private = line["plain"], line["private"]
    verdict = "within 0.001" if abs(private["mean"] - plain["mean"]) <= 0.001 else "NOT within 0.001"
    return (
        f"seed {line['seed']}: plain {plain['mean']:.4f} / {plain['worst']:.4f}, private {private['mean']:.4f} / "
        f"{private['worst']:.4f}, {verdict}; {line['clipped']} updates clipped, longest {line['longest_update']:.2f}, "
        f"{line['cpu_s']:.0f} CPU s"
    )
