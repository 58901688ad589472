"""A predictor for one group. The predictor encodes the group's known answers once, and then predicts the group's other answers.

Shapes: P points (one for each option of each question), D numbers in an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.interface import Points, PreferencePredictor
from pluralllm.common.words.questions import Question

POINTS_AT_ONCE = 2048  # bounds the memory of a pass for any number of questions


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """The predicted answer of a group to one question."""

    shares: NDArray[np.float32]  # (options,), sum 1: the softmax of `means`
    spreads: NDArray[
        np.float32
    ]  # (options,): standard deviation of each share; a constant unless the model predicts_spread
    means: NDArray[np.float32]  # (options,): the model's raw outputs


class GroupPredictor:
    """A model version with one group's context. The object keeps the encoded context for all predictions."""

    @torch.no_grad()
    def __init__(
        self,
        model: PreferencePredictor,
        embedder: Embedder,
        group: str,
        context: Sequence[Question],
        device: torch.device,
        min_context: int = 1,
    ) -> None:
        """Embeds and encodes the context: questions with the group's own answers.

        Raises TooFewQuestions if `context` has fewer than `min_context` questions; ModelUnavailable if the embedding model
        cannot be loaded; EmbeddingMismatch if the embedding model's vectors have another length than the run spec sets.
        """
        if len(context) < max(1, min_context):
            use = "predicting its other answers"
            raise TooFewQuestions(group=group, usable=len(context), needed=max(1, min_context), use=use)
        self._model, self._embedder, self._device = model.to(device).eval(), embedder, device
        points = self._points(self._embedded(context), context)
        shares = np.concatenate([np.asarray(question.shares, np.float32) for question in context])  # (P,)
        self._context = self._model.encode_context(points, torch.from_numpy(shares).to(device)[None])

    def predict(self, questions: Sequence[Question]) -> list[PredictedAnswer]:
        """Predicts the group's answer to each question. The answers that `questions` may contain are ignored.

        Raises ModelUnavailable if the embedding model cannot be loaded; EmbeddingMismatch if the embedding model's vectors
        have another length than the run spec sets.
        """
        if not questions:
            return []
        return list(self.predict_embedded(self._embedded(questions), questions))

    def predict_embedded(
        self, embedded: NDArray[np.float32], questions: Sequence[Question]
    ) -> Iterator[PredictedAnswer]:
        """Yields the group's predicted answers to questions that are embedded already.

        embedded: (P, D) float32, with D numbers in each embedding. The P points are the options of all questions, one question
        after another. The model reads a bounded number of points at once, so memory is bounded for any number of questions.
        """
        for numbers, points in _passes(questions):
            features = self._features(embedded[points], questions[numbers])
            yield from self._pass(features, questions[numbers])

    def features(self, questions: Sequence[Question]) -> Tensor:
        """Returns the questions as the model reads them: (P, d), P options of all questions, d the model's width.

        They do not depend on the group, so `predict_features` of every group of the same model takes them.
        Raises ModelUnavailable or EmbeddingMismatch.
        """
        embedded = self._embedded(questions)
        return torch.cat([self._features(embedded[points], questions[part]) for part, points in _passes(questions)])

    def predict_features(self, features: Tensor, questions: Sequence[Question]) -> Iterator[PredictedAnswer]:
        """Yields the group's predicted answers to questions. features: the result of `features` for these questions."""
        for numbers, points in _passes(questions):
            yield from self._pass(features[points], questions[numbers])

    @torch.no_grad()
    def _features(self, embedded: NDArray[np.float32], questions: Sequence[Question]) -> Tensor:
        return self._model.embed(self._points(embedded, questions))[0]

    def _pass(self, features: Tensor, questions: Sequence[Question]) -> Iterator[PredictedAnswer]:
        """Yields the predicted answers of one call of the model. features: (P, d), P options of all questions."""
        with torch.no_grad():
            predicted = self._model.predict_embedded(self._context, features[None])
        means, spreads = predicted.mean[0].cpu().numpy(), predicted.log_std[0].exp().cpu().numpy()  # (P,) each
        sizes = np.array([len(question.options) for question in questions])  # (Q,)
        ends = np.cumsum(sizes)
        starts = ends - sizes
        raised = np.exp(means - np.repeat(np.maximum.reduceat(means, starts), sizes))  # (P,)
        shares = raised / np.repeat(np.add.reduceat(raised, starts), sizes)  # (P,)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            yield PredictedAnswer(shares[start:end], spreads[start:end], means[start:end])

    def _points(self, embedded: NDArray[np.float32], questions: Sequence[Question]) -> Points:
        """Returns the options of the questions as the only row of a batch. embedded: (P, D)."""
        positions = np.concatenate([np.asarray(question.positions, np.float32) for question in questions])
        number = np.repeat(np.arange(len(questions)), [len(question.options) for question in questions])
        is_real = np.ones(len(number), bool)
        return Points(*(torch.from_numpy(row)[None].to(self._device) for row in (embedded, positions, number, is_real)))

    def _embedded(self, questions: Sequence[Question]) -> NDArray[np.float32]:
        """Returns the embeddings of all options of the questions.

        Shape: (P, D), with P options in all and D numbers in an embedding.
        """
        return np.concatenate(self._embedder.embed_questions(questions, lambda _done, _all: None))


def _passes(questions: Sequence[Question]) -> Iterator[tuple[slice, slice]]:
    """Yields the questions of each call of the model, and their points among the points of all questions."""
    ends = np.cumsum([len(question.options) for question in questions])
    first = done = 0  # number of the next question, and of its first point
    while first < len(questions):
        last = max(first + 1, int(np.searchsorted(ends, done + POINTS_AT_ONCE, side="right")))
        yield slice(first, last), slice(done, int(ends[last - 1]))
        first, done = last, int(ends[last - 1])
