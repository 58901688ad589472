"""The terms of a round name what the run spec, the chain of records and the roster say, each in its place."""

from support.private_members import digest

from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import RunSpec

SPEC = RunSpec.model_validate(
    {
        "embedding": {"model": "m", "dimension": 8},
        "private_rounds": {"colluders": 2},
        "round": {"min_clients": 6, "target_clients": 8},
        "aggregation": {"max_examples": 100},
    }
)


def test_the_terms_are_those_of_the_spec_the_chain_and_the_roster() -> None:
    spec, base, record, head = (digest(name) for name in ("spec", "base", "record", "roster"))
    terms = terms_of(
        SPEC,
        federation="values",
        run=RunId("first"),
        number=RoundNumber(7),
        spec_sha256=Digest(spec.hex()),
        base_version=ModelVersion(6),
        base_digest=Digest(base.hex()),
        base_record_sha256=record.hex(),
        roster_head=head,
    )
    assert terms == RoundTerms("values", "first", 7, spec, 6, base, record, head, places=8, colluders=2)
