"""Measures the predictor with many virtual groups that are drawn around real ones: alignment, context gain, bytes and seconds.

    .venv/bin/python benchmarks/growth.py OUT.jsonl DATA.csv --embedding-model-path FOLDER --groups 100 1000 10000
    .venv/bin/python benchmarks/growth.py OUT.jsonl --picture growth.png          # draws what OUT.jsonl has

The real groups, the evaluated countries and the method are those of benchmarks/experiments/groups.toml. A virtual group is drawn
around one real group, the next one in turn: it has the group's questions, and its shares of each question come from a Dirichlet
distribution whose mean is the real group's shares and whose concentration is --concentration. At 50, a share of one half varies
by 0.07 (standard deviation), as among 50 people asked anew. So virtual groups bring no opinion that no real group has:
the figures tell what many similar clients do to the training, and not what as many real countries would.

The validation countries are scored, by the rule of the experiments; the test countries are not looked at. Each measurement is one
line of OUT.jsonl, with its commit and seed. One that OUT.jsonl has already is left out, so the same command continues.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import Groups, embed_groups, read_groups
from pluralllm.experiment.scoring import Scorer, episode_of, gain_of, next_groups, own_episode
from pluralllm.experiment.spec import Experiment, Virtual, load_experiment

EXPERIMENT = Path(__file__).parent / "experiments" / "groups.toml"
LEAST_SHARE = 1e-3  # of the mean: an option that nobody of the real group chose may be chosen in a virtual one
SETTINGS = ("commit", "seed", "groups", "real_groups", "cohort", "rounds", "concentration", "draws")
Figures = dict[str, Any]


def drawn_around(real: GroupData, name: str, concentration: float, rng: np.random.Generator) -> GroupData:
    """Returns a virtual group: the real group's questions, with shares from a Dirichlet distribution around the real ones."""
    question = np.repeat(np.arange(len(real.questions)), np.diff(real.offsets))  # (P,), P points of all questions
    counts = np.bincount(question)
    mean = (1 - LEAST_SHARE) * real.shares.astype(np.float64) + LEAST_SHARE / counts[question]  # (P,)
    # Gamma variables, divided by their sum in each question, have a Dirichlet distribution.
    gammas = np.maximum(rng.gamma(concentration * mean), np.finfo(np.float64).tiny)
    shares = (gammas / np.bincount(question, gammas)[question]).astype(np.float32)
    return replace(real, group=name, shares=shares)


def virtual_groups(real: Mapping[str, GroupData], count: int, concentration: float, seed: int) -> Groups:
    """Returns `count` virtual groups around the real ones, each real group in turn. The first ones are the same for any count."""
    names = sorted(real)
    groups = {}
    for number in range(count):
        around = real[names[number % len(names)]]
        groups[f"virtual {number}"] = drawn_around(
            around, f"virtual {number}", concentration, np.random.default_rng([seed, number])
        )
    return groups


def scores(spec: RunSpec, experiment: Experiment, values: Any, validation: Mapping[str, GroupData]) -> Figures:
    """Returns the alignment of the validation countries, with their own context and with another country's."""
    scoring, cpu = experiment.scoring, torch.device("cpu")
    own, another = {}, {}
    for name in sorted(validation):
        data, size = validation[name], scoring.main_context
        episodes = [own_episode(spec, data, "validation", size, draw) for draw in range(scoring.draws)]
        own[name], another[name] = gain_of(
            Scorer(spec, values, data, cpu),
            episodes,
            [validation[other] for other in next_groups(name, validation)],
            lambda other, draw: episode_of(spec, other, "validation", scoring.main_context, draw).context,
        )
    worst = min(own, key=lambda name: own[name])
    mean, foreign = float(np.mean(list(own.values()))), float(np.mean(list(another.values())))
    figures: Figures = {"alignment": mean, "worst": own[worst], "another": foreign, "context_gain": mean - foreign}
    return {"worst_group": worst, **{key: round(value, 5) for key, value in figures.items()}}


def measure(asked: argparse.Namespace, experiment: Experiment, groups: Groups, count: int) -> Figures:
    """Trains with `count` virtual groups. Returns the figures of the last model version."""
    data = experiment.data.model_copy(update={"virtual": Virtual(clients=count)})
    method = experiment.methods[0].model_copy(update={"cohort": asked.cohort})
    spec = experiment.model_copy(update={"data": data}).run_spec(method, asked.seed)
    spec = spec.model_copy(update={"rounds": asked.rounds})
    real = {name: groups[name] for name in experiment.data.train}
    drawn = virtual_groups(real, count, asked.concentration, asked.seed)
    clients = {ClientId(f"client-{number}"): name for number, name in enumerate(drawn)}
    start_s = time.process_time()
    for point in federate(spec, drawn, torch.device("cpu"), clients):
        print(f"{count} groups: round {point.rounds} of {spec.rounds}", file=sys.stderr, flush=True)
    seconds = time.process_time() - start_s
    validation = {name: groups[name] for name in experiment.data.validation}
    return {
        **scores(spec, experiment, point.values, validation),
        "moved_bytes": point.moved_bytes,
        "seconds": round(seconds, 1),  # of this process's CPU, one thread
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def lines_of(out: Path) -> list[Figures]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def draw(lines: Sequence[Figures], picture: Path) -> None:
    """Draws alignment, context gain, bytes and seconds against the number of groups. The newest line of a number counts."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - measuring needs no figures

    newest = {line["groups"]: line for line in lines}
    x = sorted(newest)
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = (
        ("alignment of six countries", {"mean": "alignment", "worst": "worst", "another's context": "another"}, 1.0),
        ("context gain", {"": "context_gain"}, 1.0),
        ("GB moved in all", {"": "moved_bytes"}, 1e-9),
        ("CPU seconds", {"": "seconds"}, 1.0),
    )
    for axes, (title, shown, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for label, key in shown.items():
            axes.plot(x, [newest[count][key] * scale for count in x], marker="o", label=label)
        axes.set_xscale("log")
        axes.set_xlabel("virtual groups")
        axes.set_title(title, fontsize=10)
        if len(shown) > 1:
            axes.legend(fontsize=7)
        else:
            axes.set_ylim(bottom=0)  # a small difference looks small
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.add_argument("data", type=Path, nargs="?", help="The survey's file, as groups.toml reads it.")
    parser.add_argument("--embedding-model-path", type=Path)
    parser.add_argument("--cache", type=Path, help="Folder of embedded texts; default: beside OUT.jsonl.")
    parser.add_argument("--groups", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--cohort", type=int, default=16, help="Groups that train in a round.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concentration", type=float, default=50.0)
    parser.add_argument("--real-groups", type=int, default=87, help="The first so many of groups.toml.")
    parser.add_argument("--draws", type=int, default=5, help="Contexts of each country.")
    parser.add_argument("--picture", type=Path, help="Draw what OUT.jsonl has, and measure nothing.")
    asked = parser.parse_args()
    if asked.picture:
        draw(lines_of(asked.out), asked.picture)
        return
    if asked.data is None:
        parser.error("DATA.csv is missing")
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    experiment = load_experiment(EXPERIMENT)
    data = experiment.data.model_copy(update={"file": asked.data, "train": experiment.data.train[: asked.real_groups]})
    scoring = experiment.scoring.model_copy(update={"draws": asked.draws})
    methods = (experiment.methods[-1].model_copy(update={"groups": None}),)
    experiment = experiment.model_copy(update={"data": data, "scoring": scoring, "methods": methods})
    done = [[line[key] for key in SETTINGS] for line in lines_of(asked.out)]
    groups: Groups = {}
    for count in asked.groups:
        settings = vars(asked) | {"commit": commit, "groups": count}
        line = {key: settings[key] for key in SETTINGS}
        if list(line.values()) in done:
            print(f"{count} groups: measured already", file=sys.stderr)
            continue
        groups = groups or embed_groups(
            experiment.run_spec(methods[0], asked.seed),
            read_groups(experiment),
            asked.embedding_model_path,
            asked.cache or asked.out.parent / "cache",
            torch.device("cpu"),
            lambda *_: None,
        )
        line |= measure(asked, experiment, groups, count)
        with asked.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line))


if __name__ == "__main__":
    main()
