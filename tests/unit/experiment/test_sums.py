"""An experiment plays a run of sums with the client's and the service's functions, and counts its bytes stage by stage."""

import itertools

import numpy as np
import pytest
import torch
from support.small_survey import SUMS, small_group, small_spec

from pluralllm.client.work.sums import GroupTerms
from pluralllm.common.errors.private_rounds import TermTooLong
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.predictor.architecture import update_layout, version_layout
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.sums.solver import RIDGE
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.scoring import Scorer, alignment, own_episode, predictor_of
from pluralllm.experiment.spec import Data, Experiment, Method
from pluralllm.experiment.stacked import Flat

CPU = torch.device("cpu")
FEATURES, RANK, ROUNDS = 24, 3, 40
BOUND = 864.0  # as the preset has it
GROUPS = {name: small_group(name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
SPEC = small_spec(
    {
        **SUMS,
        "rounds": ROUNDS,
        "groups": {"train": list(GROUPS)},
        "round": {"min_clients": 3, "target_clients": 3},
        "aggregation": {"weighting": "uniform", "max_delta_norm": 1e6},
    }
)


def test_the_prior_is_the_exact_solution_and_the_projection_holds_the_groups_own_vectors() -> None:
    points = list(federate(SPEC, GROUPS, CPU))
    terms = [GroupTerms(SPEC, data, CPU) for data in GROUPS.values()]
    h = np.concatenate([block for one in terms for block in one._blocks()]).astype(np.float64)
    logs = np.concatenate([one._logs for one in terms])
    exact = np.linalg.solve(h.T @ h + RIDGE * np.eye(FEATURES), h.T @ logs)
    solution = points[ROUNDS - 2].values[-FEATURES:]
    assert np.linalg.norm(solution - exact) < 1e-3 * np.linalg.norm(exact)
    own = [one._own_vector(points[-1].values[-FEATURES:]) for one in terms]
    likeness = sum(np.outer(vector, vector) for vector in own) / 3
    projection = points[-1].values[:-FEATURES].reshape(RANK, FEATURES).astype(np.float64)
    assert np.linalg.norm(projection.T @ projection - likeness) < 1e-3 * np.linalg.norm(likeness)


def test_every_version_is_a_usable_model_and_costs_what_its_files_have() -> None:
    points = list(federate(SPEC, GROUPS, CPU))
    assert [point.rounds for point in points] == [point.gradient_steps for point in points] == list(range(ROUNDS + 1))
    assert not points[ROUNDS - 3].values[:-FEATURES].any(), "the first stage has no projection"
    assert points[ROUNDS - 2].values[:-FEATURES].any()
    moved = [after.moved_bytes - before.moved_bytes for before, after in itertools.pairwise(points)]
    for base, cost in enumerate(moved):
        layouts = version_layout(SPEC, base), update_layout(SPEC, base)
        assert cost == 3 * sum(layout.size_bytes for layout in layouts)
    for point in (points[0], points[5], points[-1]):
        assert predictor_of(SPEC, point.values) is not None
        assert np.isfinite(point.values).all()


def test_rounding_in_private_rounds_changes_the_solution_and_every_score_by_almost_nothing() -> None:
    aggregation = {"weighting": "uniform", "max_delta_norm": BOUND, "max_examples": 1024}
    values = SPEC.model_dump(mode="json") | {"aggregation": aggregation}
    spec, ringed = (RunSpec.model_validate(values | more) for more in ({}, {"private_rounds": {"colluders": 0}}))
    plain, private = ([point.values for point in federate(one, GROUPS, CPU)] for one in (spec, ringed))
    assert not np.array_equal(private[1], plain[1]), "terms are rounded"
    assert [point.values.tobytes() for point in federate(ringed, GROUPS, CPU)] == [one.tobytes() for one in private]
    solutions = [values[ROUNDS - 2][-FEATURES:] for values in (plain, private)]
    assert np.linalg.norm(solutions[1] - solutions[0]) < 1e-4 * np.linalg.norm(solutions[0])
    for data in GROUPS.values():
        scores = [score_of(spec, values[-1], data) for values in (plain, private)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_a_term_that_no_client_would_send_ends_an_experiment_with_private_rounds() -> None:
    aggregation = {"weighting": "uniform", "max_delta_norm": 1.0, "max_examples": 1024}
    values = SPEC.model_dump(mode="json") | {"aggregation": aggregation, "private_rounds": {"colluders": 0}}
    with pytest.raises(TermTooLong, match="the run allows 1;"):
        list(federate(RunSpec.model_validate(values), GROUPS, CPU))


def score_of(spec: RunSpec, values: Flat, data: GroupData) -> float:
    scorer = Scorer(spec, values, data, CPU)
    return alignment(scorer.score(own_episode(spec, data, "train", 6, draw)) for draw in range(3))


def experiment(**method: object) -> Experiment:
    data = Data(file="x.csv", train=("a", "b", "c"), test=("d",))
    return Experiment(data=data, methods=(Method(name="sums", preset="sums", **method),))


@pytest.mark.parametrize("method", [{"kind": "centralized"}, {"kind": "local"}, {"adapt_steps": 3}])
def test_sums_are_solved_by_rounds_only(method: dict[str, object]) -> None:
    played = experiment(**method)
    with pytest.raises(InvalidSpec, match="kernel-sums/1 is solved by rounds: set kind = fedavg"):
        played.run_spec(played.methods[0], 0)


def test_the_quick_form_has_rounds_for_both_stages() -> None:
    quick = experiment(spec={"predictor": {"architecture": "kernel-sums/1", "group_rank": 5}}).quick()
    spec = quick.run_spec(quick.methods[0], 0)
    assert spec.sums is not None
    assert (spec.rounds, spec.sums.subspace_rounds, spec.sums.group_rank) == (2, 1, 5)
