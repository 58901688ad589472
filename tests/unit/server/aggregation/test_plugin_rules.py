"""An aggregator of another package: the service's bits are those of an experiment, and nothing that it returns is believed."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.installed_package import RULE, Site, plugin

from pluralllm.common.errors.tree import PluginBroken, PluginMissing
from pluralllm.common.process.plugins import AGGREGATORS
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.layout import flat_values, layout_of
from pluralllm.common.weights.update_format import BLOCK, SLICE, update_format, write_update
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.federated import aggregate
from pluralllm.server.aggregation import next_version, update_files
from pluralllm.server.aggregation.aggregator import aggregator
from pluralllm.server.aggregation.next_version import NextVersion, write_next
from pluralllm.server.rounds.events import Average, Receipt
from pluralllm.server.storage.blobs import LocalBlobs

CLIENTS = [ClientId(name) for name in ("ann", "ben", "cem", "dan", "eva")]
EXAMPLES = (10, 30, 20, 25, 15)
SCALES = (1.0, 0.5, 1.0, 1.0, 0.25)
LAYOUT = layout_of([("a", (1_500, 2)), ("b", (77,))])
NOTHING = RunId("r"), ModelVersion(0), RoundNumber(0)
DELTAS = np.random.default_rng(3).normal(size=(5, 2 * BLOCK + 7)).astype(np.float32)
# An aggregator whose number is that of values in its block: it looks at more than single values, which no rule should.
COUNTING = """
import numpy as np
from pluralllm.server.aggregation.aggregator import Aggregator

def make():
    def combine(deltas, weights):
        assert deltas.flags.c_contiguous
        deltas[:] = weights[:] = 0
        return np.full(deltas.shape[1], deltas.size / 1e4)
    return Aggregator(combine=combine)
"""


def rule(**options: str) -> Aggregation:
    return Aggregation.model_validate({"rule": "plugin", "plugin": plugin(RULE, **options)})


def spec() -> RunSpec:
    return RunSpec.model_validate(
        {
            "format": "pluralllm.run/2",
            "round": {"min_clients": 5, "target_clients": 5},
            "aggregation": rule(),
            "embedding": {"model": "m", "dimension": 8},
        }
    )


def made(site: Site, code: str) -> Aggregation:
    """Installs a package whose one aggregator is made by this code."""
    site.install_module(AGGREGATORS, code)
    return rule()


class ARound:
    """Updates of five clients as blobs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(next_version, "layout_for", lambda _: LAYOUT)
        self.folder, self.blobs, self.form = folder, LocalBlobs(folder), update_format(LAYOUT, "fp32")
        self.deltas = {
            client: np.random.default_rng(number).normal(0.0, 0.01, LAYOUT.values).astype(np.float32)
            for number, client in enumerate(CLIENTS)
        }
        self.receipts = [
            Receipt(client, self._keep(self.deltas[client]), examples)
            for client, examples in zip(CLIENTS, EXAMPLES, strict=True)
        ]
        first = self._keep(np.zeros(LAYOUT.values, np.float32))
        self.base = VersionRecord(*NOTHING, first, spec().sha256(), "", (), created_s=0.0)

    def _keep(self, values: NDArray[np.float32]) -> Digest:
        manifest, _ = write_update(self.folder / "draft", self.form, values, np.random.default_rng(0))
        asyncio.run(self.blobs.put(manifest.digest, self.folder / "draft"))
        return manifest.digest

    def average(self) -> tuple[NDArray[np.float32], NextVersion]:
        out = self.folder / "next"
        made = asyncio.run(write_next(self.blobs, spec(), self.base, self.receipts, (), SCALES, out))
        return flat_values(out, LAYOUT), made

    def in_an_experiment(self) -> NDArray[np.float32]:
        average = Average(RoundNumber(1), ModelVersion(0), tuple(self.receipts), scales=SCALES)
        none = np.zeros((0, LAYOUT.values), np.float32)
        return aggregate(spec(), np.zeros(LAYOUT.values, np.float32), none, average, self.deltas)[0]


@pytest.mark.parametrize("counting", [False, True])
def test_service_and_experiment_make_the_same_bits_for_any_size_of_slice(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: bool
) -> None:
    if counting:
        made(site, COUNTING)
    else:
        site.install("town_hall_methods")
    a_round = ARound(tmp_path, monkeypatch)
    expected = a_round.in_an_experiment()
    for at_once, slice_values in ((32, SLICE), (2, 2 * BLOCK), (1, BLOCK)):
        monkeypatch.setattr(update_files, "AT_ONCE", at_once)
        monkeypatch.setattr(update_files, "SLICE", slice_values)
        values, version = a_round.average()
        assert values.tobytes() == expected.tobytes()
        assert version.chosen == ()


def test_the_example_moves_the_ends_to_the_next_number_inside_and_takes_its_options(site: Site) -> None:
    site.install("town_hall_methods")
    deltas, weights = np.array([[-9], [1], [2], [3], [9]], np.float32), np.array([1.0, 1, 2, 1, 1])
    assert aggregator(rule()).whole(deltas, weights).tolist() == [(1 + 1 + 4 + 3 + 3) / 6]
    assert aggregator(rule(clamped="2")).whole(deltas, weights).tolist() == [2.0]


def test_updates_and_weights_are_not_the_plug_ins_to_change(site: Site) -> None:
    whole = aggregator(made(site, COUNTING))
    deltas, weights = DELTAS.copy(), np.ones(5)
    assert whole.whole(deltas, weights).tolist() == [0.512] * (2 * BLOCK) + [0.0035] * 7
    assert deltas.tobytes() == DELTAS.tobytes()
    assert weights.tolist() == [1.0] * 5


HEAD = "import numpy as np\nfrom pluralllm.server.aggregation.aggregator import Aggregator\n"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("deltas.tolist()", "it returned list, not an array of float32 or float64"),
        ("np.ma.masked_invalid(deltas[0] * np.nan)", "it returned MaskedArray, not an array of float32 or float64"),
        ("deltas.sum(0).astype(np.int64)", "it returned int64, not an array"),
        ("deltas", r"it returned the shape \(5, 1024\), not \(1024,\)"),
        ("deltas[0][:-1]", r"it returned the shape \(1023,\), not \(1024,\)"),
        ("deltas[0] * np.nan", "it returned 1024 numbers that are NaN, infinite or too large"),
        ("np.full(deltas.shape[1], 1e39)", "it returned 1024 numbers that are NaN, infinite or too large"),
        ("deltas[7]", "IndexError in line 3 of made.py"),
        ("exit(1)", "SystemExit in line "),
    ],
)
def test_a_result_that_is_no_delta_names_the_package(site: Site, body: str, problem: str) -> None:
    combine = aggregator(made(site, f"{HEAD}def make(): return Aggregator(combine=lambda deltas, weights: {body})"))
    with pytest.raises(PluginBroken, match=rf"clamped-mean of town-hall-methods 1\.0 cannot be used: {problem}"):
        combine.whole(DELTAS, np.ones(5))


def choosing(site: Site, body: str) -> Any:
    return aggregator(made(site, f"{HEAD}def make(): return Aggregator(choose=lambda distances: {body})"))


@pytest.mark.parametrize("places", ["()", "(1, 1)", "(2, 1)", "(-1, 0)", "(0, 5)"])
def test_a_choice_that_is_none_names_the_package(site: Site, places: str) -> None:
    with pytest.raises(PluginBroken, match="places that are not those of some of 5 updates, each once, ascending"):
        choosing(site, places).whole(DELTAS, np.ones(5))


def test_updates_can_be_chosen_by_their_distances_and_the_version_names_whom(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = choosing(site, "[0, 4] if distances[0, 4] > 0 else 'no distances'").whole(DELTAS, np.ones(5))
    assert mean.tolist() == ((DELTAS[0].astype(np.float64) + DELTAS[4]) / 2).tolist()
    assert ARound(tmp_path, monkeypatch).average()[1].chosen == (1.0, 0.0, 0.0, 0.0, 1.0)


def test_a_package_that_looks_at_distances_for_long_keeps_the_coordinators_loop_waiting_for_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "__import__('threading').main_thread()"
    choosing(site, f"[0] if __import__('threading').current_thread() is not {loop} else []")
    assert ARound(tmp_path, monkeypatch).average()[1].chosen == (1.0, 0.0, 0.0, 0.0, 0.0)


def test_what_is_no_aggregator_or_not_there_is_refused(site: Site) -> None:
    with pytest.raises(PluginMissing, match="not installed"):
        aggregator(rule())
    with pytest.raises(PluginBroken, match="it returned function, not Aggregator"):
        aggregator(made(site, "def make(): return make"))
