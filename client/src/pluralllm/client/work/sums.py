"""The terms of sums that a client answers in a run of the architecture kernel-sums/1, from its group's training questions.

First stage: the version holds a point w, and the answer is F'(y - F w). It is half of the negative gradient of |y - F w|^2, the
group's part of the problem that the prior solves. Second stage: the version also holds U, and the answer is U M with M = v v'.
v is the group's own vector: the regression of the residuals y - F w on the features.

The features are public. So whoever reads the first answer can compute the answers of the group: see docs/security.md.

How long an answer can be. A row of F has at most the square length 2 FEATURE_POWER, because a cosine is at most 1; centring makes
F no longer, so |F|^2 <= 2 FEATURE_POWER P. The logarithms of one question have at most the square length 65: the sum of
log(1 + share / 0.01)^2 is at most 0.65 times that of share / 0.01, and the shares sum to 1. So for Q questions

    first stage, w = 0:  |F'y| <= sqrt(2 FEATURE_POWER P) sqrt(65 Q)    later, |y - F w| takes the place of sqrt(65 Q)
    second stage:        |v| <= |y - F w| / (2 sqrt(NOISE)),            |U M| <= |U| |v|^2

The first bound is 29,500 for 1,024 questions of four options. The paper's groups give answers that are about fifty times shorter,
so no useful bound follows from the architecture. The run spec states one (aggregation.max_delta_norm), in private rounds as well.
Shapes: P points of the training questions, d features, R = group_rank. Sums are float64, answers are sent as float32.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pluralllm.client.work.train import Progress, Trained
from pluralllm.common.errors.tree import NotFinite, WrongLayout
from pluralllm.common.predictor.architecture import GROUP_PROJECTION, PRIOR, layout_for, version_layout
from pluralllm.common.predictor.data import GroupData, make_points
from pluralllm.common.predictor.fourier_kernel import SHARE_FLOOR
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.layout import layout_of, read_layout, tensors_of, write_weights
from pluralllm.common.words.spec import RunSpec

NOISE = 0.25  # variance of the noise in the group's answers, in the regression of the second stage
LEAST_POINTS = 60  # a group with fewer answers zeros in the second stage: its own vector would be noise
MOST_POINTS = 4096  # of the regression in the second stage, whose memory grows with the square; the first points count
BLOCK_POINTS = 512  # points whose features are computed at a time
KEPT_BYTES = 2**30  # of features that stay in memory between rounds; with more, they are computed anew in each round

Floats = NDArray[np.float64]


class GroupTerms:
    """The features and answers of one group's training questions, and what the group answers to a model version."""

    def __init__(self, spec: RunSpec, data: GroupData, device: torch.device) -> None:
        """Centres the answers. The features are computed when they are needed first."""
        self._data, self._device = data, device
        self._model = new_predictor(spec.predictor, spec.embedding).to(device).eval()
        self._usable, _ = data.split(spec.held_out)
        self._sizes = np.diff(data.offsets)[list(self._usable)]  # options of each question
        shares = data.shares[data.points(self._usable)].astype(np.float64)  # (P,)
        self._logs = centred(np.log(np.maximum(shares, 0) + SHARE_FLOOR), self._sizes)  # (P,)
        self._features: list[NDArray[np.float32]] | None = None
        self._own: tuple[bytes, Floats] | None = None  # the group's own vector, and the prior that it belongs to

    @property
    def questions(self) -> int:
        """Number of questions behind each answer."""
        return len(self._usable)

    def of_prior(self, prior: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Returns the answer of the first stage, (d,), and the mean square of the residuals. prior: w, (d,)."""
        point, answer, squares, start = prior.astype(np.float64), np.zeros(prior.size), 0.0, 0
        for block in self._blocks():
            exact = block.astype(np.float64)  # (points, d)
            residual = self._logs[start : start + len(block)] - exact @ point  # (points,)
            answer += exact.T @ residual
            squares += float(residual @ residual)
            start += len(block)
        return answer.astype(np.float32), squares / max(1, start)

    def of_projection(self, prior: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the answer of the second stage: prior (d,), projection (R, d) -> (R, d)."""
        if self._logs.size < LEAST_POINTS:
            return np.zeros_like(projection)
        key = prior.tobytes()
        if self._own is None or self._own[0] != key:
            self._own = key, self._own_vector(prior)
        own = self._own[1]
        return np.outer(projection.astype(np.float64) @ own, own).astype(np.float32)

    def _own_vector(self, prior: NDArray[np.float32]) -> Floats:
        """Returns F'(F F' + noise I)^-1 (y - F w), (d,): the regression of the group's residuals on the features."""
        blocks, points = [], 0
        for block in self._blocks():
            blocks.append(block)
            points += len(block)
            if points >= MOST_POINTS:
                break
        h = np.concatenate(blocks)  # (P, d)
        residual = self._logs[: len(h)] - h.astype(np.float64) @ prior
        covariance = (h @ h.T).astype(np.float64) + NOISE * np.eye(len(h))  # (P, P)
        vector: Floats = h.T.astype(np.float64) @ np.linalg.solve(covariance, residual)
        return vector

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the centred features of the points in blocks of whole questions, in order: (points, d) each."""
        if self._features is not None:
            yield from self._features
            return
        kept: list[NDArray[np.float32]] | None = []
        for questions in self._question_blocks():
            block = self._centred_features(questions)
            if kept is not None:
                kept.append(block)
                if sum(one.nbytes for one in kept) > KEPT_BYTES:
                    kept = None
            yield block
        self._features = kept

    def _question_blocks(self) -> Iterator[list[int]]:
        block, points = [], 0
        for question, size in zip(self._usable, self._sizes.tolist(), strict=True):
            block.append(question)
            points += size
            if points >= BLOCK_POINTS:
                yield block
                block, points = [], 0
        if block:
            yield block

    @torch.no_grad()
    def _centred_features(self, questions: list[int]) -> NDArray[np.float32]:
        h = self._model.embed(make_points([(self._data, questions)]).to(self._device))[0].cpu().numpy()
        return centred(h, np.diff(self._data.offsets)[questions])


def centred(values: NDArray[np.floating], sizes: NDArray[np.int64]) -> NDArray[np.floating]:
    """Returns values minus their mean over each question: (P,) or (P, n). sizes: number of options of each question."""
    starts = np.cumsum(sizes) - sizes
    counts = sizes.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    return values - np.repeat(np.add.reduceat(values, starts) / counts, sizes, axis=0)


def answer_sums(base: Path, out: Path, spec: RunSpec, terms: GroupTerms, on_step: Progress) -> Trained:
    """Writes the group's answer to the model version in the file `base` to the file `out` (not yet durable).

    on_step: callback (steps done, steps in all); it may raise an error to cancel the work.
    Raises WrongLayout if the version has not the tensors of this run, NotFinite if it has NaN or infinite values, StorageFull, or
    the error that `on_step` raises.
    """
    on_step(0, 1)
    if read_layout(base) not in (layout_for(spec), version_layout(spec, 0)):
        raise WrongLayout(problem="the model version has not the tensors of this run")
    tensors = tensors_of(base)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise NotFinite(tensor=name, count=int((~np.isfinite(values)).sum()))
    answer, mean_square = terms.of_prior(tensors[PRIOR])
    name = PRIOR
    if GROUP_PROJECTION in tensors:
        name, answer = GROUP_PROJECTION, terms.of_projection(tensors[PRIOR], tensors[GROUP_PROJECTION])
    with storage_errors("an update"):
        manifest = write_weights(out, layout_of([(name, answer.shape)]), [answer])
    on_step(1, 1)
    return Trained(manifest, terms.questions, 1, mean_square, 0.0, terms.questions, 0)
