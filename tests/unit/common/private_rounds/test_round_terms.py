"""The terms of a round name what the run spec, the chain of records and the roster say, each in its place."""

import pytest
from support.private_members import digest

from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import MAX_MEMBERS
from pluralllm.common.words.spec import RunSpec

SPEC = RunSpec.model_validate(
    {
        "format": "pluralllm.run/4",
        "embedding": {"model": "m", "dimension": 8},
        "private_rounds": {"colluders": 2},
        "round": {"min_clients": 6, "target_clients": 8},
        "aggregation": {"max_examples": 100},
    }
)


@pytest.mark.parametrize(("number", "places"), [(7, 8), (30, 8), (31, MAX_MEMBERS)], ids=["7", "last", "closing"])
def test_the_terms_are_those_of_the_spec_the_chain_and_the_roster(number: int, places: int) -> None:
    spec, base, record, head = (digest(name) for name in ("spec", "base", "record", "roster"))
    terms = terms_of(
        SPEC,
        federation="values",
        run=RunId("first"),
        number=RoundNumber(number),
        spec_sha256=Digest(spec.hex()),
        base_version=ModelVersion(6),
        base_digest=Digest(base.hex()),
        base_record_sha256=record.hex(),
        roster_head=head,
    )
    assert terms == RoundTerms("values", "first", number, spec, 6, base, record, head, places=places, colluders=2)
