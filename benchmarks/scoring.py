"""Measures how many answers the predictor of each preset scores in a second, in three ways.

.venv/bin/python benchmarks/scoring.py [--presets default] [--threads 2] [--questions 4000] [--repeats 5] [--device cuda]

From features: the model has read the texts before, for another group; the features do not depend on the group. From embeddings:
the texts are embedded already. Question by question: from embeddings, one call for each question. The script also measures how
memory grows when ten times as many questions are scored from embeddings. The weights are random; the context has 20 questions of
5 options; an option has a question's and its own vector of 384 numbers. Figures are medians of measurements that
take turns: answers a second, and in brackets answers for each second of CPU time, which other work on the machine moves less.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from timing import seconds

from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.predictors import parse_predictor
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import PRESETS, Embedding, preset_values

OPTIONS, DIMENSION, CONTEXT = 5, 768, 20
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


def measure(name: str, predictor: GroupPredictor, count: int, repeats: int, device: torch.device) -> str:
    """Returns the line of one predictor: answers a second, and how close the three ways are.

    name: shown in the line. count: number of questions. repeats: how often everything is measured.
    """
    rng = np.random.default_rng(1)
    vectors = unit(rng, count * OPTIONS)
    questions = [question_of(number) for number in range(count)]
    features = predictor.features(questions[:100])
    features = features.repeat(-(-count // 100), 1)[: count * OPTIONS]
    list(predictor.predict_embedded(vectors[: 100 * OPTIONS], questions[:100]))
    ways: dict[str, Callable[[], object]] = {
        "features": lambda: list(predictor.predict_features(features, questions)),
        "together": lambda: list(predictor.predict_embedded(vectors, questions)),
        "alone": lambda: list(one_by_one(predictor, vectors, questions)),
    }
    measured: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}  # wall seconds and CPU seconds
    for _ in range(repeats):
        for way, score in ways.items():
            began_s = time.process_time()
            wall_s = seconds(score, device)
            measured[way].append((wall_s, time.process_time() - began_s))
    pairs = zip(predictor.predict_embedded(vectors, questions), one_by_one(predictor, vectors, questions), strict=True)
    difference = max(float(np.abs(one.shares - other.shares).max()) for one, other in pairs)
    rates = {
        way: tuple(count * OPTIONS / statistics.median(column) for column in zip(*taken, strict=True))
        for way, taken in measured.items()
    }
    before_mb = resident_mb()
    for answer in predictor.predict_embedded(np.tile(vectors, (10, 1)), questions * 10):
        assert answer.shares.size == OPTIONS
    grown_mb = max(0.0, resident_mb() - before_mb - 10 * vectors.nbytes / MB**2)
    shown = " | ".join(f"{by_wall:,.0f} ({by_cpu:,.0f})" for by_wall, by_cpu in rates.values())
    return f"| {name} | {shown} | {difference:.1e} | {grown_mb:.0f} MB |"


def question_of(number: int) -> Question:
    return Question(f"question {number}", tuple(f"option {k}" for k in range(OPTIONS)), (1 / OPTIONS,) * OPTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="+", choices=PRESETS, default=PRESETS, help="Presets whose predictors score."
    )
    parser.add_argument("--threads", type=int, help="Threads of the arithmetic; default: those that torch chooses.")
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(
        f"{torch.get_num_threads()} threads, {device}, {arguments.questions * OPTIONS} answers; answers a second (a CPU second):"
    )
    print("| predictor | from features | from embeddings | question by question | shares differ by | memory grows by |")
    print("|---|---|---|---|---|---|")
    contract = Embedding(model="none", dimension=DIMENSION)
    for preset in arguments.presets:
        config = parse_predictor(preset_values(preset)["predictor"])
        embedder = cast("Embedder", RandomVectors(np.random.default_rng(0)))
        context = [question_of(number) for number in range(CONTEXT)]
        predictor = GroupPredictor(new_predictor(config, contract), embedder, "g", context, device)
        print(measure(preset, predictor, arguments.questions, arguments.repeats, device), flush=True)


if __name__ == "__main__":
    main()
