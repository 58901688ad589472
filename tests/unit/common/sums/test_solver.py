"""The solver finds the exact solution of its last members' problem, whoever came, left or was late."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from support.small_survey import SUMS, small_spec

from pluralllm.common.sums.solver import (
    RIDGE,
    Solver,
    members_digest,
    next_point,
    next_projection,
    next_values,
    summed,
)
from pluralllm.common.words.spec import RunSpec

FEATURES, RANK, ROUNDS, SUBSPACE = 24, 3, 45, 3
NAMES = ("a", "b", "c", "d")
Floats = NDArray[np.float32]
Exact = NDArray[np.float64]
Members = Callable[[int], Iterable[str]]  # the clients whose answers count, by the number of the base version

SPEC: RunSpec = small_spec(
    {
        **SUMS,
        "rounds": ROUNDS,
        "predictor": {**SUMS["predictor"], "features": FEATURES, "group_rank": RANK, "subspace_rounds": SUBSPACE},
    }
)


class Group:
    """One group's features and answers, with the same meaning as in the client."""

    def __init__(self, name: str) -> None:
        rng = np.random.default_rng(NAMES.index(name))
        self.features = rng.normal(size=(40, FEATURES)) * np.linspace(1, 0.05, FEATURES)
        self.answers = rng.normal(size=40)
        self.own = rng.normal(size=FEATURES)

    def of_prior(self, w: Floats) -> Floats:
        return (self.features.T @ (self.answers - self.features @ w.astype(np.float64))).astype(np.float32)

    def of_projection(self, projection: Floats) -> Floats:
        return np.outer(projection.astype(np.float64) @ self.own, self.own).astype(np.float32)


GROUPS = {name: Group(name) for name in NAMES}


def exact_solution(names: Iterable[str]) -> Exact:
    groups = [GROUPS[name] for name in names]
    features = np.concatenate([group.features for group in groups])
    left = features.T @ features + RIDGE * np.eye(FEATURES)
    solution: Exact = np.linalg.solve(left, sum(g.features.T @ g.answers for g in groups))
    return solution


def members_of(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, 40) for name in sorted(names)]


def following(
    base: int, values: Floats, answers: list[Floats], members: list[tuple[str, int]], solver: Solver | None = None
) -> tuple[Floats, Solver | None]:
    total = summed(answers, members, answers[0].size, SPEC.aggregation.max_examples)
    return next_values(SPEC, base, values, total, solver)


def play(members: Members, rounds: int = ROUNDS) -> list[Floats]:
    """Returns the values of all versions of a run."""
    versions, solver = [np.zeros(FEATURES, np.float32)], None
    for base in range(rounds):
        there = members_of(members(base))
        values, prior = versions[-1], versions[-1][-FEATURES:]
        if values.size == FEATURES:
            answers = [GROUPS[name].of_prior(prior) for name, _ in there]
        else:
            projection = values[:-FEATURES].reshape(RANK, FEATURES)
            answers = [GROUPS[name].of_projection(projection).ravel() for name, _ in there]
        made, solver = following(base, values, answers, there, solver)
        versions.append(made)
    return versions


def distance(values: Floats, solution: Exact) -> float:
    """Returns the relative distance of a version's prior to a solution."""
    return float(np.linalg.norm(values[-FEATURES:] - solution) / np.linalg.norm(solution))


def everybody(_base: int) -> tuple[str, ...]:
    return NAMES


def test_the_solution_of_a_run_with_the_same_members_is_exact() -> None:
    versions = play(everybody)
    assert distance(versions[ROUNDS - SUBSPACE], exact_solution(NAMES)) < 1e-4
    assert [v.size for v in versions[-4:]] == [(RANK + 1) * FEATURES] * 4
    assert versions[-5].size == FEATURES
    assert np.array_equal(versions[-1][-FEATURES:], versions[-4][-FEATURES:]), "the second stage keeps the solution"


def test_every_version_is_nearer_than_the_first_one() -> None:
    solution = exact_solution(NAMES)
    distances = [distance(values, solution) for values in play(everybody)]
    assert distances[0] == 1
    assert max(distances[1:]) <= 1
    assert distances[10] < 0.5


def test_a_member_that_joins_late_is_in_the_solution() -> None:
    versions = play(lambda base: NAMES if base >= 9 else NAMES[:3])
    assert distance(versions[-1], exact_solution(NAMES)) < 1e-3


def test_a_member_that_drops_out_is_not_in_the_solution() -> None:
    versions = play(lambda base: NAMES if base < 9 else NAMES[1:])
    assert distance(versions[-1], exact_solution(NAMES[1:])) < 1e-3
    assert distance(versions[-1], exact_solution(NAMES)) > 0.01


def test_a_member_that_misses_one_round_is_in_the_solution() -> None:
    versions = play(lambda base: NAMES[:3] if base == 12 else NAMES)
    assert distance(versions[-1], exact_solution(NAMES)) < 1e-3


def test_a_change_of_members_keeps_the_point() -> None:
    versions = play(lambda base: NAMES if base < 20 else NAMES[:3])
    before, after = (distance(versions[number], exact_solution(NAMES[:3])) for number in (20, 21))
    assert after < before + 0.01


def test_members_that_change_in_the_last_round_leave_the_point_as_it_is() -> None:
    last = ROUNDS - SUBSPACE
    versions = play(lambda base: NAMES[:3] if base == last - 1 else NAMES)
    assert np.array_equal(versions[last][-FEATURES:], versions[last - 1])


def solver_of(members: list[tuple[str, int]], direction: float = 1.0) -> Solver:
    one = np.ones(FEATURES, np.float32)
    return Solver(one, np.float32(direction) * one, 0.5, members_digest(members))


@pytest.mark.parametrize("at_point", [1.0, 2.0])
def test_directions_begin_anew_at_the_point_if_the_curvature_is_not_positive(at_point: float) -> None:
    """If r(w) = 1 and r(z) >= 1, there is no curvature along the direction."""
    members, point = members_of(NAMES), np.full(FEATURES, 3, np.float32)
    total = at_point + RIDGE * point.astype(np.float64)
    made, kept = next_point(point, total, solver_of(members), members_digest(members), 0.125, is_last=False)
    assert kept is not None
    assert np.allclose(kept.direction, at_point)
    assert np.allclose(kept.residual, at_point)
    assert np.allclose(made, 3 + 0.125 * at_point)


def test_a_step_is_that_of_conjugate_gradients() -> None:
    """A = 2 I, w = 0, r(w) = 1, p = 1 and z = 0.5: r(z) = 0, the step to the solution is 0.5, and nothing is left."""
    members = members_of(NAMES)
    point, total = np.full(FEATURES, 0.5, np.float32), np.full(FEATURES, RIDGE * 0.5)
    made, kept = next_point(point, total, solver_of(members), members_digest(members), 9.0, is_last=False)
    assert kept is not None
    assert kept.step == pytest.approx(0.5)
    assert np.allclose(kept.residual, 0)
    assert np.allclose(made, 0.5)


def test_the_digest_of_members_depends_on_names_and_examples_only() -> None:
    members = members_of(NAMES)
    assert members_digest(members[::-1]) == members_digest(members)
    assert members_digest([(NAMES[0], 41), *members[1:]]) != members_digest(members)
    assert members_digest(members[1:]) != members_digest(members)


def test_a_sum_knows_its_members_their_questions_up_to_the_largest_weight_and_who_answered() -> None:
    answers = [np.array(values, np.float32) for values in ([1, 2], [0, 0], [0.5, -2])]
    members = [("a", 40), ("b", 90), ("c", 7)]
    made = summed(answers, members, 2, 50)
    assert made.total.tolist() == [1.5, 0]
    assert (made.not_zero, made.questions, made.members) == (2, 97, members_digest(members))


def likeness(names: Iterable[str]) -> Exact:
    groups = [GROUPS[name] for name in names]
    return sum((np.outer(g.own, g.own) for g in groups), np.zeros((FEATURES, FEATURES))) / len(groups)


def test_a_projection_is_the_nystroem_approximation_of_the_likeness() -> None:
    exact = likeness(NAMES)
    projection = np.random.default_rng(0).normal(0, 0.02, (RANK, FEATURES)).astype(np.float32)
    made = next_projection(projection, projection.astype(np.float64) @ exact)
    inner = np.linalg.inv(projection @ exact @ projection.T)
    expected = exact @ projection.T @ inner @ projection @ exact
    assert np.allclose(made.T @ made, expected, atol=2e-3 * float(np.abs(expected).max()))


def test_rounds_of_the_second_stage_find_the_likeness_of_the_leading_directions() -> None:
    values, vectors = np.linalg.eigh(likeness(NAMES))
    best = vectors[:, -RANK:] @ np.diag(values[-RANK:]) @ vectors[:, -RANK:].T
    made = play(everybody)[-1][:-FEATURES].reshape(RANK, FEATURES).astype(np.float64)
    assert np.linalg.norm(made.T @ made - best) < 0.15 * np.linalg.norm(best)


def test_fewer_groups_than_dimensions_give_their_likeness() -> None:
    projection = play(lambda _base: NAMES[:2])[-1][:-FEATURES].reshape(RANK, FEATURES).astype(np.float64)
    exact = likeness(NAMES[:2])
    assert np.linalg.norm(projection.T @ projection - exact) < 1e-3 * np.linalg.norm(exact)


def test_answers_of_zeros_do_not_count_in_the_likeness() -> None:
    members, last = members_of(NAMES[:3]), ROUNDS - 1
    values = np.random.default_rng(1).normal(size=(RANK + 1) * FEATURES).astype(np.float32)
    answers = [GROUPS[n].of_projection(values[:-FEATURES].reshape(RANK, FEATURES)).ravel() for n in NAMES[:2]]
    made, _ = following(last, values, answers, members[:2])
    again, _ = following(last, values, [*answers, np.zeros_like(answers[0])], members)
    assert np.array_equal(made, again)
    zeros, _ = following(last, values, [np.zeros_like(answers[0])], members[:1])
    assert np.array_equal(zeros, values), "answers that say nothing change nothing"
