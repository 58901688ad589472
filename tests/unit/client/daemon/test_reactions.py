"""The fate of a task after each error of the tree, and after each bare status code of gRPC."""

import pytest
from support.errors_to_raise import EVERY_BARE_CODE, EVERY_LEAF, Case

from pluralllm.client.daemon.reactions import Outcome, outcome_of

DROPPED = {"LeaseLost", "RoundClosed"}
REFUSED = {  # only what the partner, or the run's owner, must change
    "AggregateDiffers",
    "AlreadyCommitted",
    "AnswersProtected",
    "ConsentNeeded",
    "DigestMismatch",
    "EmbeddingMismatch",
    "EmbeddingUnusable",
    "ExtraMissing",
    "HistoryDiverged",
    "InvalidArgument",
    "InvalidConfig",
    "InvalidData",
    "InvalidSpec",
    "LedgerBroken",
    "LedgerDiverged",
    "ModelUnavailable",
    "NoisedFileLost",
    "NoiseDemanded",
    "NormTooLarge",
    "NotFinite",
    "NotReleased",
    "OverLimit",
    "PeerKeyDiffers",
    "PluginBroken",
    "PluginMissing",
    "PolicyForbids",
    "RecordInvalid",
    "RosterDiverged",
    "RunNotShared",
    "SpecMismatch",
    "TermTooLong",
    "TooFewKnown",
    "TooFewQuestions",
    "WrongBase",
    "WrongLayout",
}
INTERRUPTED = {
    "WrongStep",
    *("LinkTooSlow", "ProxyFailed", "StreamSilent", "WrongPort"),
    *("Unreachable", "Busy", "ForeignAnswer", "StaleSession", "SessionReplaced", "ProtocolUnsupported", "Unidentified"),
    *("AwaitingApproval", "IdentityMismatch", "RoleForbids", "TooManyAttempts", "TooManyCalls"),
    *("CertificateExpired", "CertificateForeign", "CertificateInvalid", "CertificateNotYetValid"),
    *("CertificateRevoked", "CertificateUnknown", "CertificateWrongUse"),
}


@pytest.mark.parametrize("case", EVERY_LEAF, ids=str)
def test_only_these_errors_cost_the_client_its_task_or_its_run(case: Case) -> None:
    expected = Outcome.FAILED
    for names, outcome in (
        (DROPPED, Outcome.DROPPED),
        (REFUSED, Outcome.REFUSED),
        (INTERRUPTED, Outcome.INTERRUPTED),
    ):
        if case.name in names:
            expected = outcome
    assert outcome_of(case.error) is expected


@pytest.mark.parametrize("case", EVERY_BARE_CODE, ids=str)
def test_a_status_code_that_is_not_ours_costs_neither_task_nor_run(case: Case) -> None:
    assert outcome_of(case.error) is Outcome.INTERRUPTED


def test_an_error_that_nobody_expected_costs_one_try() -> None:
    assert outcome_of(KeyError("x")) is Outcome.FAILED
    assert outcome_of(OSError(28, "full")) is Outcome.FAILED
