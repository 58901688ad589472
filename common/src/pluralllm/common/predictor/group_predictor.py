"""One group's predictor, ready for use: the group's few answers are read once, and scoring new answers costs only them.

P: points, one for each (question, option); D: embedding dimension.
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

POINTS_AT_ONCE = 2048  # bounds the memory of a pass, whatever is asked


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """How a group would answer one question."""

    shares: NDArray[np.float32]  # (options,), sum 1
    spreads: NDArray[np.float32]  # (options,) predicted standard deviation of each share
    means: NDArray[np.float32]  # (options,) what the shares are the softmax of


class GroupPredictor:
    """A model version and a group's context, whose keys and values are kept."""

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
        """`context`: the group's own answers. Raises TooFewQuestions below `min_context`, ModelUnavailable, EmbeddingMismatch."""
        if len(context) < max(1, min_context):
            use = "predicting its other answers"
            raise TooFewQuestions(group=group, usable=len(context), needed=max(1, min_context), use=use)
        self._model, self._embedder, self._device = model.to(device).eval(), embedder, device
        points = torch.from_numpy(self._embedded(context)).to(device)[None]  # (1, P, D)
        shares = np.concatenate([np.asarray(question.shares, np.float32) for question in context])  # (P,)
        known = torch.from_numpy(shares).to(device)[None]
        self._context = self._model.encode_context(points, known, torch.ones_like(known, dtype=torch.bool))

    def predict(self, questions: Sequence[Question]) -> list[PredictedAnswer]:
        """Of each question's options; the questions' own shares are not looked at. Raises ModelUnavailable, EmbeddingMismatch."""
        if not questions:
            return []
        return list(self.predict_embedded(self._embedded(questions), [len(question.options) for question in questions]))

    def predict_embedded(self, points: NDArray[np.float32], options: Sequence[int]) -> Iterator[PredictedAnswer]:
        """The same of embeddings (P, D), `options` of them for each question; in passes of bounded size."""
        ends = np.cumsum(options)
        first = done = 0  # question, point
        while first < len(options):
            last = max(first + 1, int(np.searchsorted(ends, done + POINTS_AT_ONCE, side="right")))
            mean, log_std = self._pass(points[done : ends[last - 1]])  # (points of the pass,) twice
            parts = np.cumsum(options[first:last])[:-1]
            for means, spreads in zip(np.split(mean, parts), np.split(np.exp(log_std), parts), strict=True):
                raised = np.exp(means - means.max())
                yield PredictedAnswer(raised / raised.sum(), spreads, means)
            first, done = last, int(ends[last - 1])

    @torch.no_grad()
    def _pass(self, points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        predicted = self._model.predict_targets(self._context, torch.from_numpy(points).to(self._device)[None])
        return predicted.mean[0].cpu().numpy(), predicted.log_std[0].cpu().numpy()

    def _embedded(self, questions: Sequence[Question]) -> NDArray[np.float32]:
        """(P, D)"""
        return np.concatenate(self._embedder.embed_questions(questions, lambda _done, _all: None))
