"""A predictor for one group. The predictor encodes the group's known answers once, and then predicts the group's other answers.

Shapes: P points (one for each option of each question), D numbers in an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.errors.tree import TooFewQuestions
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.model import PreferencePredictor
from pluralllm.common.words.questions import Question

POINTS_AT_ONCE = 2048  # bounds the memory of a pass for any number of questions


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """The predicted answer of a group to one question."""

    shares: NDArray[np.float32]  # (options,), sum 1: the softmax of `means`
    spreads: NDArray[np.float32]  # (options,): predicted standard deviation of each share
    means: NDArray[np.float32]  # (options,): the model's raw outputs


class GroupPredictor:
    """A model version with one group's context. The object keeps the context's attention keys and values for all predictions."""

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
        points = torch.from_numpy(self._embedded(context)).to(device)[None]  # (1, P, D)
        shares = np.concatenate([np.asarray(question.shares, np.float32) for question in context])  # (P,)
        context_shares = torch.from_numpy(shares).to(device)[None]
        self._context = self._model.encode_context(
            points, context_shares, torch.ones_like(context_shares, dtype=torch.bool)
        )

    def predict(self, questions: Sequence[Question]) -> list[PredictedAnswer]:
        """Predicts the group's answer to each question. The answers that `questions` may contain are ignored.

        Raises ModelUnavailable if the embedding model cannot be loaded; EmbeddingMismatch if the embedding model's vectors
        have another length than the run spec sets.
        """
        if not questions:
            return []
        return list(self.predict_embedded(self._embedded(questions), [len(question.options) for question in questions]))

    def predict_embedded(self, points: NDArray[np.float32], options: Sequence[int]) -> Iterator[PredictedAnswer]:
        """Yields the group's predicted answers to questions that are embedded already.

        The model predicts a bounded number of points at once, so memory is bounded for any number of questions.
        Shapes: points (P, D) float32, with D numbers in each embedding. The P points are the options of all questions, one
        question after another. options: the number of options of each question; the sum is P.
        """
        ends = np.cumsum(options)
        first = done = 0  # number of the next question, and of its first point
        while first < len(options):
            last = max(first + 1, int(np.searchsorted(ends, done + POINTS_AT_ONCE, side="right")))
            mean, log_std = self._pass(points[done : ends[last - 1]])  # both (points of the pass,)
            parts = np.cumsum(options[first:last])[:-1]
            for means, spreads in zip(np.split(mean, parts), np.split(np.exp(log_std), parts), strict=True):
                raised = np.exp(means - means.max())
                yield PredictedAnswer(raised / raised.sum(), spreads, means)
            first, done = last, int(ends[last - 1])

    @torch.no_grad()
    def _pass(self, points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predicts the mean and the logarithm of the standard deviation for P points in one call of the model.

        Shapes: points (P, D), with D numbers in each embedding -> means (P,), logarithms (P,).
        """
        predicted = self._model.predict_targets(self._context, torch.from_numpy(points).to(self._device)[None])
        return predicted.mean[0].cpu().numpy(), predicted.log_std[0].cpu().numpy()

    def _embedded(self, questions: Sequence[Question]) -> NDArray[np.float32]:
        """Returns the embeddings of all options of the questions.

        Shape: (P, D), with P options in all and D numbers in an embedding.
        """
        return np.concatenate(self._embedder.embed_questions(questions, lambda _done, _all: None))
