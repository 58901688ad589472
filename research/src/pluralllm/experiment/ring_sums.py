"""The sums of private rounds in one process: numbers modulo 2^32, which are added and decoded as in the service.

The masks are left out, because they cancel in the sum. What is left of a private round is what changes the model: each update is
shortened to the spec's clip_norm and rounded at random, and each client computes its own weight. A term of a sum is rounded
alone, and a run with a longer one than the spec allows ends. The service draws the rounding
from a secret of each client and round; here it follows from the seed, so that an experiment can be repeated.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pluralllm.client.work.train import rounding
from pluralllm.common.private_rounds.ring import (
    SLICE,
    MemberTail,
    SumTail,
    check_norm,
    clipping_of,
    decoded_mean,
    decoded_sum,
    quantised,
)
from pluralllm.common.private_rounds.sum_files import ring_of
from pluralllm.common.sums.solver import SummedAnswers, members_digest
from pluralllm.common.weights.update_format import TAIL
from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.common.words.own_weights import own_factor, own_weight
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.stacked import Flat
from pluralllm.server.rounds.cohort import task_seed
from pluralllm.server.rounds.events import Receipt


class RingSums:
    """The sums of one run with private rounds, and what its clients remember of earlier rounds for their weights."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec, self._ring = spec, ring_of(spec, spec.round.target_clients)
        self._mean_distance: float | None = None  # of the last sum
        self._histories: dict[ClientId, float | None] = {}

    def mean(
        self, number: RoundNumber, receipts: tuple[Receipt, ...], deltas: Mapping[ClientId, Flat]
    ) -> NDArray[np.float64]:
        """Returns the weighted mean of a round's updates. receipts: with each client's real number of examples and distance.

        Shapes: deltas (V,), result (V,); V parameter values. Raises SumImplausible or NotFinite as the service does.
        """
        total, tail = self._sum(number, receipts, deltas)
        self._mean_distance = tail.distance
        mean = decoded_mean(total, self._ring, tail.weight)
        check_norm(float(np.linalg.norm(mean)), self._ring)
        return mean

    def answers(
        self, number: RoundNumber, receipts: tuple[Receipt, ...], terms: Mapping[ClientId, Flat]
    ) -> SummedAnswers:
        """Returns the sum of a round's terms, for a run whose updates are terms of sums. Arguments and errors as of `mean`.

        Raises TermTooLong for a term that a client of the service would not send.
        """
        numbers, tail = self._sum(number, receipts, terms)
        total = decoded_sum(numbers, self._ring)
        check_norm(float(np.linalg.norm(total)) / len(receipts), self._ring)
        members = members_digest((receipt.client, tail.weight) for receipt in receipts)
        return SummedAnswers(total, tail.not_zero, tail.weight, members)

    def _sum(
        self, number: RoundNumber, receipts: tuple[Receipt, ...], updates: Mapping[ClientId, Flat]
    ) -> tuple[NDArray[np.uint32], SumTail]:
        tail, total = np.zeros(TAIL, np.uint32), np.zeros(len(updates[receipts[0].client]), np.uint32)
        for receipt in receipts:
            np.add(tail, self._add(number, receipt, updates[receipt.client], total), out=tail)
        most = self._spec.aggregation.max_examples
        return total, SumTail.of(tail.tolist(), len(receipts), self._ring, most)

    def _add(self, number: RoundNumber, receipt: Receipt, delta: Flat, total: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Adds the numbers of one update to `total`, (V,), and returns the update's tail, (64,)."""
        aggregation, client = self._spec.aggregation, receipt.client
        made = own_factor(aggregation, receipt.distance, self._mean_distance, self._histories.get(client))
        self._histories[client] = made.history
        counted, is_term = min(receipt.examples, aggregation.max_examples), self._ring.adds_terms
        weight = counted if is_term else own_weight(aggregation, receipt.examples, made.factor)
        clipping, draws = clipping_of(delta, self._ring), rounding(task_seed(self._spec.seed, number, client))
        for start in range(0, delta.size, SLICE):
            part = slice(start, start + SLICE)
            total[part] += quantised(delta[part], clipping, weight, self._ring, draws)
        return MemberTail(
            weight=weight,
            is_clipped=clipping.is_clipped,
            metric_weight=counted,
            most_metric_weight=aggregation.max_examples,
            distance=receipt.distance,
            distance_weight=aggregation.max_examples if aggregation.is_fair else counted,
            not_zero=is_term and bool(delta.any()),
        ).words()
