"""The table [private_rounds]: what fits beside it, and how many members a sum needs."""

import pytest

from pluralllm.common.words.private_rounds import MAX_LENGTH_OF_TERMS, MAX_MEMBERS, MAX_WEIGHT, threshold
from pluralllm.common.words.spec import RunSpec, spec_from_toml

EMBEDDING = {"model": "m", "dimension": 8}
FITTING: dict[str, object] = {
    "embedding": EMBEDDING,
    "private_rounds": {"colluders": 1},
    "round": {"min_clients": 4, "target_clients": 5},
    "aggregation": {"max_examples": MAX_WEIGHT},
}


def test_a_fitting_spec_is_read_and_hashes_unlike_the_same_without_the_table() -> None:
    spec = RunSpec.model_validate(FITTING)
    assert spec.private_rounds is not None
    plain = spec.model_copy(update={"private_rounds": None})
    assert b"private_rounds" not in plain.canonical_json()
    assert RunSpec.model_validate_json(spec.canonical_json()) == spec


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"round": {"min_clients": 3, "target_clients": 5}},
            "round.min_clients to 4 (of 5 clients 1 may then drop out)",
        ),
        ({"round": {"min_clients": 100, "target_clients": MAX_MEMBERS + 1}}, "round.target_clients to at most 128"),
        ({"round": {"min_clients": 2, "target_clients": 2}}, "private_rounds.colluders to at most 0"),
        ({"updates": {"encoding": "int8"}}, "updates.encoding = fp32"),
        ({"aggregation": {"max_examples": MAX_WEIGHT + 1}}, "aggregation.max_examples to at most 16384"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_the_fix(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match="private rounds add masked updates") as caught:
        RunSpec.model_validate(FITTING | values)
    assert says in str(caught.value)


@pytest.mark.parametrize("weighting", ["uniform", "q_fair", "agnostic", "adaptive"])
def test_every_weighting_fits_because_clients_weight_their_updates(weighting: str) -> None:
    aggregation = {"max_examples": 100, "weighting": weighting}
    spec = RunSpec.model_validate(FITTING | {"aggregation": aggregation})
    assert spec.aggregation.is_fair == (weighting != "uniform")


@pytest.mark.parametrize(
    ("members", "colluders", "needed"),
    [(3, 0, 2), (4, 1, 3), (5, 1, 4), (8, 1, 5), (8, 2, 6), (10, 2, 7), (100, 33, 67), (128, 25, 77)],
)
def test_two_different_sums_never_find_enough_answers(members: int, colluders: int, needed: int) -> None:
    assert threshold(members, colluders) == needed
    assert 2 * needed > members + colluders


def of_sums(**aggregation: object) -> RunSpec:
    preset = spec_from_toml('preset = "sums"\n[embedding]\nmodel = "m"\ndimension = 8\n', "test").model_dump(
        mode="json"
    )
    return RunSpec.model_validate({**preset, **FITTING, "aggregation": preset["aggregation"] | aggregation})


def test_terms_of_sums_are_masked_if_their_bound_leaves_fine_steps() -> None:
    spec = of_sums()
    assert spec.private_rounds is not None
    assert spec.aggregation.max_delta_norm == 864
    most = MAX_LENGTH_OF_TERMS // 5
    assert of_sums(max_delta_norm=most).sums is not None
    with pytest.raises(
        ValueError, match=rf"set aggregation\.max_delta_norm to at most {most}, because rounding is coarser"
    ):
        of_sums(max_delta_norm=most + 1)
    RunSpec.model_validate(FITTING | {"aggregation": {"max_examples": 1, "max_delta_norm": 1e9}})
    with pytest.raises(ValueError, match=r"aggregation\.max_examples to at most 16384"):
        of_sums(max_examples=MAX_WEIGHT + 1)
