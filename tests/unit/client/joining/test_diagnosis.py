"""The error that explains why a call failed, from the call's own error and the cause that a diagnosis has found."""

import pytest

from pluralllm.client.joining.diagnosis import Cause, explained
from pluralllm.common.errors.membership import CertificateRevoked
from pluralllm.common.errors.tree import ForeignAnswer, PluralError, Unreachable, WrongPort

TYPED = Unreachable(address="x:1", problem="refused")
TLS = Unreachable(address="x:1", problem="TLS: ALERT")
OTHER_PORT = Unreachable(address="x:2", problem="refused")
REVOKED = CertificateRevoked(name="ann", revoked="today")
WRONG = WrongPort(address="x:2", wanted="enrolment port", problem="y")
FOREIGN = ForeignAnswer(address="x:1", code="UNAVAILABLE", problem="y")


@pytest.mark.parametrize(
    ("failure", "cause", "explanation"),
    [
        (TYPED, None, TYPED),
        (TYPED, OTHER_PORT, TYPED),
        (TYPED, TLS, TLS),
        (TYPED, REVOKED, REVOKED),
        (TYPED, WRONG, WRONG),
        (FOREIGN, OTHER_PORT, OTHER_PORT),
    ],
)
def test_an_error_names_the_address_that_was_typed_unless_the_cause_is_another(
    failure: PluralError, cause: PluralError | None, explanation: PluralError
) -> None:
    assert explained(failure, None if cause is None else Cause(cause, final=False)) is explanation
