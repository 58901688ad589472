"""The rounds of an experiment whose updates are terms of sums: the clients' answers, and the service's solver."""

from collections.abc import Collection, Mapping

import numpy as np
import torch

from pluralllm.client.work.sums import GroupTerms
from pluralllm.common.predictor.architecture import finds_subspace, update_layout, version_layout
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.sums.solver import Solver, next_values, summed
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.ring_sums import RingSums
from pluralllm.experiment.stacked import Flat
from pluralllm.server.rounds import events as ev


class SumsRounds:
    """The clients of a run of kernel-sums/1, with the solver's state. In an experiment every round makes a version."""

    steps_of_round = 1

    def __init__(self, spec: RunSpec, trainers: dict[ClientId, GroupData], device: torch.device) -> None:
        assert spec.sums is not None
        self._spec, self._features, self._rank = spec, spec.sums.features, spec.sums.group_rank
        self._terms = {client: GroupTerms(spec, data, device) for client, data in trainers.items()}
        self._ring = None if spec.private_rounds is None else RingSums(spec)
        self._solver: Solver | None = None
        self._version = 0

    def train_round(
        self, base: Flat, number: RoundNumber, cohort: Collection[ClientId] | None = None
    ) -> tuple[Mapping[ClientId, Flat], dict[ClientId, float | None]]:
        """Returns each client's answer to the version `base`, and no distances.

        number: the round's number. cohort: the clients of the round; None: all clients.
        """
        self._version = number - 1
        prior, projection = base[-self._features :], base[: -self._features].reshape(self._rank, -1)
        members = {client: terms for client, terms in self._terms.items() if cohort is None or client in cohort}
        if finds_subspace(self._spec, self._version):
            answers = {client: terms.of_projection(prior, projection).ravel() for client, terms in members.items()}
        else:
            answers = {client: terms.of_prior(prior)[0] for client, terms in members.items()}
        return answers, dict.fromkeys(answers)

    def next_version(self, base: Flat, average: ev.Average, deltas: Mapping[ClientId, Flat]) -> Flat:
        """Returns the values of the next model version, and keeps the solver's state."""
        values = base[-version_layout(self._spec, self._version).values :]
        if self._ring is not None:
            total = self._ring.answers(RoundNumber(self._version + 1), average.receipts, deltas)
        else:
            members = [(receipt.client, receipt.examples) for receipt in average.receipts]
            answers, size = (deltas[client] for client, _ in members), update_layout(self._spec, self._version).values
            total = summed(answers, members, size, self._spec.aggregation.max_examples)
        made, self._solver = next_values(self._spec, self._version, values, total, self._solver)
        return np.concatenate([np.zeros(base.size - made.size, np.float32), made])

    def moved_bytes(self, number: RoundNumber) -> int:
        """Returns how many bytes of model and update one client moves in a round."""
        layouts = version_layout(self._spec, number - 1), update_layout(self._spec, number - 1)
        return sum(layout.size_bytes for layout in layouts)


def without_projection(spec: RunSpec, values: Flat) -> Flat:
    """Returns the values of model version 0, whose projection is 0: (V,), V values of all parameters."""
    assert spec.sums is not None
    cleared = values.copy()
    cleared[: -spec.sums.features] = 0
    return cleared
