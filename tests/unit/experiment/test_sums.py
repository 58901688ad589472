"""An experiment plays a run of sums with the client's and the service's functions, and counts its bytes stage by stage."""

import itertools

import numpy as np
import pytest
import torch
from support.small_survey import SUMS, small_group, small_spec

from pluralllm.client.work.sums import GroupTerms
from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.predictor.architecture import update_layout, version_layout
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.private_rounds.ring import MemberTail, Ring, SumTail, clipping_of, decoded_sum, quantised
from pluralllm.common.sums.solver import RIDGE, SummedAnswers, members_digest, next_values
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment import federated
from pluralllm.experiment.federated import federate
from pluralllm.experiment.scoring import Scorer, alignment, own_episode, predictor_of
from pluralllm.experiment.spec import Data, Experiment, Method
from pluralllm.experiment.stacked import Flat
from pluralllm.experiment.sums import SumsRounds
from pluralllm.server.rounds import events as ev

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


class RingRounds(SumsRounds):
    """The same rounds as private ones: answers are rounded to the ring, and only the sum of the examples is known."""

    def next_version(self, base: Flat, average: ev.Average, deltas: dict[ClientId, Flat]) -> Flat:
        spec, rng = self._spec, np.random.default_rng(self._version)
        ring, words = Ring(len(deltas), spec.aggregation.max_delta_norm, 1024, adds_terms=True), np.zeros(64, np.uint32)
        total = np.zeros(next(iter(deltas.values())).size, np.uint32)
        for receipt in average.receipts:
            term = deltas[receipt.client]
            words += MemberTail(receipt.examples, False, 1, 1024, not_zero=bool(term.any())).words()
            total += quantised(term, clipping_of(term, ring), receipt.examples, ring, rng)
        tail = SumTail.of(words.tolist(), len(deltas), ring, 1024)
        members = members_digest((receipt.client, tail.weight) for receipt in average.receipts)
        answers = SummedAnswers(decoded_sum(total, ring), tail.not_zero, tail.weight, members)
        values = base[-version_layout(spec, self._version).values :]
        made, self._solver = next_values(spec, self._version, values, answers, self._solver)
        return np.concatenate([np.zeros(base.size - made.size, np.float32), made])


def test_rounding_in_private_rounds_changes_the_solution_and_every_score_by_almost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = SPEC.model_copy(update={"aggregation": SPEC.aggregation.model_copy(update={"max_delta_norm": BOUND})})
    plain = [point.values for point in federate(spec, GROUPS, CPU)]
    monkeypatch.setattr(federated, "SumsRounds", RingRounds)
    private = [point.values for point in federate(spec, GROUPS, CPU)]
    solutions = [values[ROUNDS - 2][-FEATURES:] for values in (plain, private)]
    assert np.linalg.norm(solutions[1] - solutions[0]) < 1e-4 * np.linalg.norm(solutions[0])
    for data in GROUPS.values():
        scores = [score_of(spec, values[-1], data) for values in (plain, private)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)


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
