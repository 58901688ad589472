"""One group's predictor, ready for use: the group's few answers are read once, and scoring new answers costs only them.

P: points, one for each (question, option); D: embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.common.embedding import Embedder
from pluralllm.common.errors import TooFewQuestions
from pluralllm.common.model import PreferencePredictor
from pluralllm.common.questions import Question


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    """How a group would answer one question."""

    shares: NDArray[np.float32]  # (options,), sum 1
    spreads: NDArray[np.float32]  # (options,) predicted standard deviation of each share


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
    ) -> None:
        """`context`: the group's own answers. Raises TooFewQuestions for none, ModelUnavailable, EmbeddingMismatch."""
        if not context:
            raise TooFewQuestions(group=group, usable=0, needed=1, use="predicting its other answers")
        self._model, self._embedder, self._device = model.to(device).eval(), embedder, device
        points = self._embedded(context)  # (1, P, D)
        shares = np.concatenate([np.asarray(question.shares, np.float32) for question in context])  # (P,)
        known = torch.from_numpy(shares).to(device)[None]
        self._context = self._model.encode_context(points, known, torch.ones_like(known, dtype=torch.bool))

    @torch.no_grad()
    def predict(self, questions: Sequence[Question]) -> list[PredictedAnswer]:
        """Of each question's options; the questions' own shares are not looked at. All in one pass."""
        if not questions:
            return []
        predicted = self._model.predict_targets(self._context, self._embedded(questions))
        ends = np.cumsum([len(question.options) for question in questions])[:-1].tolist()
        return [
            PredictedAnswer(torch.softmax(mean, 0).cpu().numpy(), log_std.exp().cpu().numpy())
            for mean, log_std in zip(
                torch.tensor_split(predicted.mean[0], ends), torch.tensor_split(predicted.log_std[0], ends), strict=True
            )
        ]

    def _embedded(self, questions: Sequence[Question]) -> torch.Tensor:
        """(1, P, D)"""
        rows = self._embedder.embed_questions(questions, lambda _done, _all: None)
        return torch.from_numpy(np.concatenate(rows)).to(self._device)[None]
