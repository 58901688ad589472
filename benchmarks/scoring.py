"""Measures how many answers the predictor of each preset scores in a second, in three ways.

    .venv/bin/python benchmarks/scoring.py [--presets default] [--threads 1] [--processes 2] [--questions 4000] [--repeats 5]

From features: the model has read the texts before, for another group; the features do not depend on the group. From embeddings:
the texts are embedded already. Question by question: from embeddings, one call for each question. A plain product: numpy
multiplies the features with one vector, which is the least that a prediction from them costs. The script also measures how
memory grows when ten times as many questions are scored from embeddings. The weights are random; the context has 20 questions of
5 options; an option has a question's and its own vector of 384 numbers. Figures are medians of measurements that
take turns: answers a second, and in brackets answers for each second of CPU time, which other work on the machine moves less.
Several processes do the same at the same time, each with its own answers, and the last one to end counts.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from timing import seconds

from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import parse_predictor
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import PRESETS, preset_values

OPTIONS, DIMENSION, CONTEXT = 5, 768, 20
FEATURES, PRODUCT = "from features", "a plain product"
EMBEDDINGS, ALONE = "from embeddings", "question by question"
MB = 1024


class RandomVectors:
    """Replacement for an embedder; it returns random vectors, because only the scoring is measured."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def embed_questions(self, questions: list[Question], _: object) -> list[NDArray[np.float32]]:
        return [unit(self._rng, len(question.options)) for question in questions]


def unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=(count, DIMENSION)).astype(np.float32)
    normed: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normed


def one_by_one(
    predictor: GroupPredictor, points: NDArray[np.float32], questions: list[Question]
) -> Iterator[PredictedAnswer]:
    for number, question in enumerate(questions):
        yield from predictor.predict_embedded(points[number * OPTIONS : (number + 1) * OPTIONS], [question])


def resident_mb() -> float:
    """Returns the largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


@dataclass(frozen=True, slots=True)
class Setting:
    """The measurements that each process makes."""

    preset: str
    questions: int
    repeats: int
    threads: int | None  # None: those that torch chooses
    device: str
    only_features: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one process."""

    times: dict[str, list[tuple[float, float]]]  # of each way and repeat: wall seconds and CPU seconds
    difference: float  # largest difference of a share between two ways; NaN if one of them was not measured
    grown_mb: float  # NaN if it was not measured
    threads: int


together: Barrier | None = None  # of all processes, before each measurement; None if there is only one process


def set_barrier(barrier: Barrier) -> None:
    global together  # noqa: PLW0603 - a barrier can be handed to a process at its start only
    together = barrier


def measure(setting: Setting) -> Measured:
    """Measures one predictor in this process."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    count, device = setting.questions, pick_device(setting.device)
    predictor = predictor_of(setting.preset, device)
    rng = np.random.default_rng(1)
    vectors = unit(rng, count * OPTIONS)
    questions = [question_of(number) for number in range(count)]
    features = predictor.features(questions[:100])
    features = features.repeat(-(-count // 100), 1)[: count * OPTIONS]
    plain, vector = features.cpu().numpy(), unit(rng, 2).reshape(-1)[: features.shape[1]]
    list(predictor.predict_embedded(vectors[: 100 * OPTIONS], questions[:100]))
    ways: dict[str, Callable[[], object]] = {
        FEATURES: lambda: list(predictor.predict_features(features, questions)),
        PRODUCT: lambda: plain @ vector,
    }
    if not setting.only_features:
        ways[EMBEDDINGS] = lambda: list(predictor.predict_embedded(vectors, questions))
        ways[ALONE] = lambda: list(one_by_one(predictor, vectors, questions))
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(setting.repeats):
        for way, score in ways.items():
            if together is not None:
                together.wait()
            began_s = time.process_time()
            wall_s = seconds(score, device)
            times[way].append((wall_s, time.process_time() - began_s))
    if setting.only_features:
        return Measured(times, math.nan, math.nan, torch.get_num_threads())
    pairs = zip(predictor.predict_embedded(vectors, questions), one_by_one(predictor, vectors, questions), strict=True)
    difference = max(float(np.abs(one.shares - other.shares).max()) for one, other in pairs)
    return Measured(times, difference, memory_growth_mb(predictor, vectors, questions), torch.get_num_threads())


def memory_growth_mb(predictor: GroupPredictor, vectors: NDArray[np.float32], questions: list[Question]) -> float:
    """Returns the growth of memory, in MB, while ten times as many questions are scored; their own vectors do not count."""
    before_mb = resident_mb()
    for answer in predictor.predict_embedded(np.tile(vectors, (10, 1)), questions * 10):
        assert answer.shares.size == OPTIONS
    return max(0.0, resident_mb() - before_mb - 10 * vectors.nbytes / MB**2)


def predictor_of(preset: str, device: torch.device) -> GroupPredictor:
    """Returns a preset's predictor with random weights and a context."""
    torch.manual_seed(0)
    config = parse_predictor(preset_values(preset)["predictor"])
    embedder = cast("Embedder", RandomVectors(np.random.default_rng(0)))
    context = [question_of(number) for number in range(CONTEXT)]
    model = new_predictor(config, Embedding(model="none", dimension=DIMENSION))
    return GroupPredictor(model, embedder, "g", context, device)


def line_of(setting: Setting, processes: Sequence[Measured]) -> str:
    """Returns the line of one predictor: answers a second of all processes together, and how close the ways are."""
    answers, cells, cpu = len(processes) * setting.questions * OPTIONS, [], {}
    for way in processes[0].times:
        repeats = list(zip(*(process.times[way] for process in processes), strict=True))
        wall_s = statistics.median(max(wall for wall, _ in repeat) for repeat in repeats)
        cpu[way] = statistics.median(sum(taken for _, taken in repeat) for repeat in repeats)
        cells.append(f"{answers / wall_s:,.0f} ({answers / cpu[way]:,.0f})")
    cells.insert(2, f"{cpu[FEATURES] / cpu[PRODUCT]:.1f}")
    if setting.only_features:
        return f"| {setting.preset} | {' | '.join(cells)} |"
    difference = max(process.difference for process in processes)
    grown_mb = max(process.grown_mb for process in processes)
    return f"| {setting.preset} | {' | '.join(cells)} | {difference:.1e} | {grown_mb:.0f} MB |"


def measured_by(processes: int, setting: Setting) -> list[Measured]:
    """Returns the measurements of so many processes, which work at the same time; one process is this one."""
    if processes == 1:
        return [measure(setting)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=set_barrier, initargs=(barrier,)) as pool:
        return list(pool.map(measure, [setting] * processes))


def question_of(number: int) -> Question:
    return Question(f"question {number}", tuple(f"option {k}" for k in range(OPTIONS)), (1 / OPTIONS,) * OPTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="+", choices=PRESETS, default=PRESETS, help="Presets whose predictors score."
    )
    parser.add_argument("--threads", type=int, help="Threads of the arithmetic; default: those that torch chooses.")
    parser.add_argument("--processes", type=int, default=1, help="Processes that score at the same time.")
    parser.add_argument("--only-features", action="store_true", help="Measures nothing from embeddings, which is slow.")
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    heads = ["predictor", FEATURES, PRODUCT, "CPU, features : product"]
    heads += [] if chosen.only_features else [EMBEDDINGS, ALONE, "shares differ by", "memory grows by"]
    for number, preset in enumerate(chosen.presets):
        setting = Setting(preset, chosen.questions, chosen.repeats, chosen.threads, chosen.device, chosen.only_features)
        processes = measured_by(chosen.processes, setting)
        if number == 0:
            print(f"{len(processes)} processes, {processes[0].threads} threads in each, {chosen.device},", end=" ")
            print(f"{chosen.questions * OPTIONS} answers each; answers a second (a CPU second):")
            print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        print(line_of(setting, processes), flush=True)


if __name__ == "__main__":
    main()
