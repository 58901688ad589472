"""Measures how many embedded answers are scored in a second: all together, and in a loop over questions.

.venv/bin/python benchmarks/scoring.py [--questions 4000] [--repeats 5] [--device cuda]

The script also measures how memory grows with the number of questions. The predictor has the paper's size (128 wide, six
layers) and random weights; the context has 20 questions of 5 options, embedded in 384 dimensions. Results are medians of pairs
that are measured one after the other. The two ways must give the same shares.
"""

import argparse
import resource
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from timing import seconds

from pluralllm.client.work.train import pick_device
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor, PredictedAnswer
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.words.predictors import NeuralProcess
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import Embedding

OPTIONS, DIMENSION, CONTEXT = 5, 384, 20
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, rng = pick_device(arguments.device), np.random.default_rng(0)
    torch.manual_seed(0)
    model = new_predictor(NeuralProcess(), Embedding(model="none", dimension=DIMENSION, templates=("{option}",)))
    context = [
        Question(f"q{n}", tuple(f"o{k}" for k in range(OPTIONS)), (1 / OPTIONS,) * OPTIONS) for n in range(CONTEXT)
    ]
    predictor = GroupPredictor(model, cast("Embedder", RandomVectors(rng)), "g", context, device)
    points = unit(rng, arguments.questions * OPTIONS)
    questions = [replace(context[0], text=f"question {number}") for number in range(arguments.questions)]
    list(predictor.predict_embedded(points[: 100 * OPTIONS], questions[:100]))
    together, alone = [], []
    for _ in range(arguments.repeats):
        together.append(seconds(lambda: list(predictor.predict_embedded(points, questions)), device))
        alone.append(seconds(lambda: list(one_by_one(predictor, points, questions)), device))
    pairs = zip(predictor.predict_embedded(points, questions), one_by_one(predictor, points, questions), strict=True)
    difference = max(float(np.abs(one.shares - other.shares).max()) for one, other in pairs)
    ratios = [slow / quick for quick, slow in zip(together, alone, strict=True)]
    answers = arguments.questions * OPTIONS
    print(f"{torch.get_num_threads()} threads, {device}, {answers} answers of {arguments.questions} questions")
    print(
        f"together {answers / statistics.median(together):,.0f} answers/s, question by question "
        f"{answers / statistics.median(alone):,.0f}: ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); shares within {difference:.1e}"
    )
    before_mb = resident_mb()
    for answer in predictor.predict_embedded(np.tile(points, (10, 1)), questions * 10):
        assert answer.shares.size == OPTIONS
    grown_mb = resident_mb() - before_mb - 10 * points.nbytes / MB**2
    print(f"ten times as many: memory grows by {max(0.0, grown_mb):.0f} MB beside the embeddings themselves")


if __name__ == "__main__":
    main()
