"""The way from a run spec's table [aggregation] to the aggregator of its rounds. The service, `verify` and experiments go it.

An aggregator of another package is checked at each step: what it returns must have the right shape and finite numbers, and
whatever it raises becomes an error that names the package. It gets copies, always of the same COLUMNS values of the model, so
that its bits depend neither on the size of a slice nor on the program that calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.process.plugin_arrays import array_from
from pluralllm.common.process.plugins import AGGREGATORS, blamed, broken, make_plugin
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.plugins import Plugin
from pluralllm.server.aggregation.arithmetic import weighted_mean
from pluralllm.server.aggregation.rules import COLUMNS, add_squared_distances, closest, median, trimmed_mean

Exact = NDArray[np.float64]
Floats = NDArray[np.float32]
# deltas (clients, slice), weights (clients,) -> (slice,)
Combine = Callable[[Floats, Exact], Exact]
# squared distances between the updates (clients, clients), above the diagonal -> the places of the chosen ones, ascending
Choose = Callable[[Exact], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Aggregator:
    """The steps from the updates of a round to their mean delta, or to what takes its place."""

    choose: Choose | None = None  # None: every update counts
    combine: Combine | None = None  # None: the weighted mean, which can be added up in blocks of clients

    def whole(self, deltas: Floats, weights: Exact) -> Exact:
        """Returns the result for updates that are in memory as a whole. It has the bits that files give slice by slice.

        Shapes: deltas (clients, values), weights (clients,), result (values,).
        """
        if self.choose is not None:
            distances = np.zeros((len(deltas), len(deltas)))
            add_squared_distances(distances, deltas)
            chosen = list(self.choose(distances))
            deltas, weights = deltas[chosen], np.ones(len(chosen))
        return (self.combine or weighted_mean)(deltas, weights)


def aggregator(aggregation: Aggregation) -> Aggregator:
    """Returns the aggregator that a run spec asks for.

    Raises PluginMissing or PluginBroken if the spec names an aggregator of another package, and it cannot be used here.
    """
    match aggregation.rule:
        case "mean" | "median_norm_clip":
            return Aggregator()
        case "trimmed_mean":
            return Aggregator(combine=partial(trimmed_mean, trimmed=aggregation.assumed_attackers))
        case "median":
            return Aggregator(combine=median)
        case "multi_krum":
            return Aggregator(choose=partial(closest, attackers=aggregation.assumed_attackers))
        case "plugin":
            assert aggregation.plugin is not None
            return _of_plugin(aggregation.plugin)
        case _:
            assert_never(aggregation.rule)


def _of_plugin(plugin: Plugin) -> Aggregator:
    made = make_plugin(AGGREGATORS, plugin)
    if not isinstance(made, Aggregator):
        raise broken(AGGREGATORS, plugin, f"it returned {type(made).__name__}, not Aggregator")
    return Aggregator(
        choose=None if made.choose is None else partial(_choose, plugin, made.choose),
        combine=None if made.combine is None else partial(_combine, plugin, made.combine),
    )


def _choose(plugin: Plugin, choose: Choose, distances: Exact) -> tuple[int, ...]:
    """Returns the places that a plug-in chooses.

    Raises PluginBroken if it fails, or if it returns something else than some of the places, each once and ascending.
    """
    clients = len(distances)
    own = distances.copy()
    with blamed(AGGREGATORS, plugin):
        places = tuple(int(place) for place in choose(own))
    if not places or list(places) != sorted(set(places)) or not 0 <= places[0] <= places[-1] < clients:
        problem = f"it chose {len(places)} places that are not those of some of {clients} updates, each once, ascending"
        raise broken(AGGREGATORS, plugin, problem)
    return places


def _combine(plugin: Plugin, combine: Combine, deltas: Floats, weights: Exact) -> Exact:
    """Returns what a plug-in makes of a slice, COLUMNS values at a time.

    Shapes: deltas (clients, slice), weights (clients,), result (slice,).
    Raises PluginBroken if it fails, or if a result has another shape or type, or a number that float32 cannot hold.
    """
    result = np.empty(deltas.shape[1])
    for start in range(0, deltas.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        own_deltas, own_weights = np.array(deltas[:, columns]), weights.copy()
        with blamed(AGGREGATORS, plugin):
            combined = combine(own_deltas, own_weights)
        values = array_from(AGGREGATORS, plugin, combined, np.float32, np.float64)
        if problem := _problem_of(values, result[columns].shape):
            raise broken(AGGREGATORS, plugin, problem)
        result[columns] = values
    return result


def _problem_of(values: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> str:
    """Returns why values cannot be used; "" if they can. shape: the one that they must have."""
    if values.shape != shape:
        return f"it returned the shape {values.shape}, not {shape}"
    with np.errstate(over="ignore"):
        bad = int((~np.isfinite(values.astype(np.float32))).sum())
    return f"it returned {bad} numbers that are NaN, infinite or too large for float32" if bad else ""
