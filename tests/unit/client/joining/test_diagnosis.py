"""The error that explains why a call failed, from the call's own error and the cause that a diagnosis has found."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from pluralllm.client.joining import diagnosis
from pluralllm.client.joining.diagnosis import Cause, diagnose, explained
from pluralllm.common.errors.membership import CertificateExpired, CertificateRevoked
from pluralllm.common.errors.tree import ForeignAnswer, PluralError, ProxyFailed, Unreachable, WrongPort

TYPED = Unreachable(address="x:1", problem="refused")
TLS = Unreachable(address="x:1", problem="TLS: ALERT")
OTHER_PORT = Unreachable(address="x:2", problem="refused")
PROXY = ProxyFailed(proxy="p:1", address="x:1", problem="it answers 403")
PROXY_OF_OTHER_PORT = ProxyFailed(proxy="p:1", address="x:2", problem="it answers 403")
REVOKED = CertificateRevoked(name="ann", revoked="today")
WRONG = WrongPort(address="x:2", wanted="enrolment port", problem="y")
FOREIGN = ForeignAnswer(address="x:1", code="UNAVAILABLE", problem="y")


@pytest.mark.parametrize(
    ("failure", "cause", "explanation"),
    [
        (TYPED, None, TYPED),
        (TYPED, OTHER_PORT, TYPED),
        (TYPED, PROXY_OF_OTHER_PORT, TYPED),
        (PROXY, OTHER_PORT, PROXY),
        (TYPED, PROXY, PROXY),
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


DAY_S = 86_400.0


def member(days_left: float) -> Any:
    now_s = time.time()
    facts = SimpleNamespace(name="ann", not_before_s=now_s - DAY_S, not_after_s=now_s + days_left * DAY_S)
    names = SimpleNamespace(coordinator="x:1", enrolment="x:2")
    return SimpleNamespace(membership=names, facts=facts, authority_pem=b"", proxies=None, credentials=None)


@pytest.mark.parametrize(
    ("main", "days_left", "cause"),
    [
        (True, 1, PROXY_OF_OTHER_PORT),  # the main port is well, so `explained` leaves this out
        (False, 1, PROXY_OF_OTHER_PORT),
        (False, -1, CertificateExpired),
        (TYPED, 1, TYPED),
        (TYPED, -1, CertificateExpired),
    ],
)
def test_the_main_port_is_tried_also_if_the_enrolment_port_does_not_answer(
    main: bool | PluralError, days_left: float, cause: PluralError | type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PROXY_OF_OTHER_PORT

    def shaken(*_: object) -> SimpleNamespace:
        if isinstance(main, PluralError):
            raise main
        return SimpleNamespace(kept=main)

    monkeypatch.setattr(diagnosis, "check_enrolment_port", refused)
    monkeypatch.setattr(diagnosis, "handshake", shaken)
    diagnosed = diagnose(member(days_left))
    assert diagnosed is not None
    assert diagnosed.error is cause or type(diagnosed.error) is cause
    assert not diagnosed.final
