"""The solver of runs whose updates are terms of sums: conjugate gradients for the prior, then steps for the group projection.

The functions are pure. They calculate in float64 and take the clients in sorted order, and use no function whose bits depend on
the processor (no matrix product, no LAPACK), so that `verify` gives the same bits on another machine.

First stage. The problem: w minimises the sum over the clients of |y - F w|^2, plus RIDGE |w|^2. A version holds a point z, and
the sum of the answers is F'(y - F z), so the residual at z is r(z) = sum - RIDGE z. The problem is linear, so with z = w + s p

    A p = (r(w) - r(z)) / s,    r(w + a p) = r(w) - a A p,    a = p'r(w) / p'A p

and one question a round is enough for one step of conjugate gradients. Clients know no direction and no step.
If the members of the sum change, the problem changes with them: the directions begin anew at the point z, whose residual has just
arrived. The solution so far is kept, and no round is wasted. The same is done if the curvature p'A p is not positive.

Second stage. A version holds the solution w and a projection U, and the mean of the answers is U M for a measure of likeness M,
the mean of v v' over the groups. The next projection U' is chosen so that U'' U' is the Nystroem approximation of M from U: the
best that can be said of M after this round. The rows of U' span those of U M, so the rounds are a subspace iteration.

Sources: Hestenes and Stiefel 1952 (conjugate gradients, here with the coefficient of Polak and Ribiere 1969); Gittens and Mahoney
2016, section 2 (Nystroem approximation).
Shapes: d features, R = group_rank.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.predictor.architecture import GROUP_PROJECTION, finds_subspace, initial_values, parameters
from pluralllm.common.words.spec import RunSpec

RIDGE = 0.3
# The first step as a share of 1 / (questions in the sum): small enough that the point stays a reasonable model.
FIRST_STEP = 0.25
JITTER = 1e-6  # of the mean diagonal element; rounded answers need it if there are fewer groups than dimensions

Exact = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Solver:
    """The state of the first stage after a version z: z = w + step * direction. The values are those that a file holds."""

    residual: Floats  # (d,): r(w)
    direction: Floats  # (d,): p
    step: float  # a float32 number
    members: bytes  # `members_digest` of the sum that gave the residual


@dataclass(frozen=True, slots=True, eq=False)
class SummedAnswers:
    """The sum of the answers of one round, and what the solver must know about the members behind it."""

    total: Exact  # (n,), n numbers of an answer
    not_zero: int  # answers that are not all zeros
    questions: int  # behind the sum; at most aggregation.max_examples of each member count
    members: bytes  # `members_digest`


def members_digest(members: Iterable[tuple[str, int]]) -> bytes:
    """Returns the digest of the members of a sum, 32 bytes: the sorted clients with their numbers of examples."""
    return hashlib.sha256(json.dumps(sorted(members)).encode()).digest()


def summed(
    answers: Iterable[Floats], members: Sequence[tuple[str, int]], size: int, max_examples: int
) -> SummedAnswers:
    """Adds the answers, one after the other, so that the sum has a fixed order.

    answers: (size,) each. members: the clients with their numbers of examples. max_examples: as the run spec has it.
    """
    total, not_zero = np.zeros(size), 0
    for answer in answers:
        total += answer
        not_zero += bool(answer.any())
    questions = sum(min(examples, max_examples) for _, examples in members)
    return SummedAnswers(total, not_zero, questions, members_digest(members))


def first_step(questions: int) -> float:
    """Returns the step along the first direction, before any curvature is known. questions: behind the sum."""
    return FIRST_STEP / (RIDGE + questions)


def next_values(
    spec: RunSpec, base_version: int, values: Floats, answers: SummedAnswers, solver: Solver | None
) -> tuple[Floats, Solver | None]:
    """Returns the values of the next version, and the solver's state if the version has one.

    values: of the base version, in file order. answers: to the base version, summed. solver: the state after the base version;
    None at version 0 and in the second stage.
    """
    assert spec.sums is not None
    features = spec.sums.features
    if finds_subspace(spec, base_version):
        projection, prior = np.split(values, [values.size - features])  # in file order, the projection comes first
        shape = (spec.sums.group_rank, features)
        mean = answers.total / max(1, answers.not_zero)  # groups with too few points answer zeros
        following = next_projection(projection.reshape(shape), mean.reshape(shape))
        return np.concatenate([following.ravel(), prior]), None
    is_last = finds_subspace(spec, base_version + 1)
    step = first_step(answers.questions)
    point, kept = next_point(values, answers.total, solver, answers.members, step, is_last=is_last)
    if not is_last:
        return point, kept
    drawn = {p.name: initial_values(p, spec.seed) for p in parameters(spec.sums, spec.embedding.dimension)}
    return np.concatenate([drawn[GROUP_PROJECTION].ravel(), point]), None


def next_point(
    point: Floats, total: Exact, solver: Solver | None, members: bytes, step: float, *, is_last: bool
) -> tuple[Floats, Solver | None]:
    """Returns the point that the next version holds, and the solver's state; no state if the stage ends.

    point: z, (d,), the base version. total: sum of the clients' answers, (d,). solver: None at version 0.
    step: the step along a first direction. is_last: whether the next version is the solution.
    """
    z = point.astype(np.float64)
    at_point = total - RIDGE * z  # r(z)
    advanced = None if solver is None or solver.members != members else _advance(z, at_point, solver)
    w, residual, direction, length = advanced or (z, at_point, at_point, step)
    if is_last:
        return w.astype(np.float32), None
    kept = Solver(residual.astype(np.float32), direction.astype(np.float32), float(np.float32(length)), members)
    return (w + kept.step * kept.direction.astype(np.float64)).astype(np.float32), kept


def _advance(z: Exact, at_point: Exact, solver: Solver) -> tuple[Exact, Exact, Exact, float] | None:
    """Returns w, r(w), the next direction and the next step after one step; None if the curvature is not positive."""
    before, p = solver.residual.astype(np.float64), solver.direction.astype(np.float64)
    image = (before - at_point) / solver.step  # A p
    curvature, slope, square = _dot(p, image), _dot(p, before), _dot(before, before)
    if not (curvature > 0 and slope > 0 and math.isfinite(slope / curvature)):
        return None
    length = slope / curvature
    residual = before - length * image
    turn = max(0.0, (_dot(residual, residual) - _dot(residual, before)) / square)
    return z - solver.step * p + length * p, residual, residual + turn * p, length


def next_projection(projection: Floats, mean: Exact) -> Floats:
    """Returns the next projection: projection U (R, d), mean of the answers U M (R, d) -> (R, d).

    Returns the projection unchanged if the answers say nothing, because all are 0.
    """
    exact, rank = projection.astype(np.float64), len(projection)
    inner = np.array([[_dot(row, other) for other in exact] for row in mean])  # (R, R): U M U'
    inner = (inner + inner.T) / 2
    level = float(sum(inner[number, number] for number in range(rank))) / rank
    if not level > 0:
        return projection
    lower = _cholesky(inner, JITTER * level)
    rows: list[Exact] = []
    for number in range(rank):  # solves lower @ rows = mean
        row = mean[number].copy()
        for other in range(number):
            row -= lower[number][other] * rows[other]
        rows.append(row / lower[number][number])
    return np.stack(rows).astype(np.float32)


def _cholesky(matrix: Exact, jitter: float) -> list[list[float]]:
    """Returns the lower triangular factor of matrix + jitter I; a pivot below the jitter counts as the jitter."""
    size = len(matrix)
    lower = [[0.0] * size for _ in range(size)]
    for row in range(size):
        for column in range(row + 1):
            rest = float(matrix[row, column]) - sum(lower[row][k] * lower[column][k] for k in range(column))
            if row == column:
                lower[row][row] = math.sqrt(max(rest + jitter, jitter))
            else:
                lower[row][column] = rest / lower[column][column]
    return lower


def _dot(a: Exact, b: Exact) -> float:
    return float(np.add.reduce(a * b))
