"""The status of a run: the members' weights."""

import pytest

from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import Aggregation
from pluralllm.server.runs.overview import weights_in


def version(examples: dict[str, int], weights: tuple[float, ...] = ()) -> VersionRecord:
    updates = tuple((ClientId(name), Digest("u"), number) for name, number in examples.items())
    return VersionRecord(
        *(RunId("r"), ModelVersion(1), RoundNumber(1), Digest("d"), Digest("s"), "p", updates, 0.0), weights=weights
    )


def test_a_member_that_claims_nearly_all_examples_is_shown_with_nearly_all_of_the_model() -> None:
    claims = dict.fromkeys("abcdefg", 200) | {"h": 100_000}
    weights = weights_in(version(claims), Aggregation())
    assert weights[ClientId("h")] == pytest.approx(100_000 / 101_400)
    assert sum(weights.values()) == pytest.approx(1)


def test_the_cap_of_the_run_spec_is_in_the_weights() -> None:
    weights = weights_in(version({"a": 100, "b": 100_000}), Aggregation(max_examples=300))
    assert weights == {"a": 0.25, "b": 0.75}


def test_with_uniform_weighting_the_weights_are_even() -> None:
    weights = weights_in(version({"a": 1, "b": 99}), Aggregation(weighting="uniform"))
    assert weights == {"a": 0.5, "b": 0.5}


def test_weights_on_record_are_shown_as_shares() -> None:
    weights = weights_in(version({"a": 10, "b": 10}, weights=(0.2, 0.6)), Aggregation())
    assert weights == pytest.approx({"a": 0.25, "b": 0.75})


def test_version_0_has_no_weights() -> None:
    assert weights_in(version({}), Aggregation()) == {}
