"""The terms of a round, put together from what the coordinator and each client know by themselves."""

from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.private_rounds import MAX_MEMBERS
from pluralllm.common.words.spec import RunSpec


def terms_of(
    spec: RunSpec,
    *,
    federation: str,
    run: RunId,
    number: RoundNumber,
    spec_sha256: Digest,
    base_version: ModelVersion,
    base_digest: Digest,
    base_record_sha256: str,
    roster_head: bytes,
) -> RoundTerms:
    """Returns the terms of a round of a run with private rounds. Digests and hashes are lower-case hex of 32 bytes."""
    assert spec.private_rounds is not None  # only such a run has private rounds
    return RoundTerms(
        federation=federation,
        run=run,
        round=number,
        spec_sha256=bytes.fromhex(spec_sha256),
        base_version=base_version,
        base_digest=bytes.fromhex(base_digest),
        base_record_sha256=bytes.fromhex(base_record_sha256),
        roster_head=roster_head,
        places=MAX_MEMBERS if spec.is_closing_round(number) else spec.round.target_clients,
        colluders=spec.private_rounds.colluders,
    )
