"""A certificate that is due for renewal is renewed when a connection is opened, unless it has expired."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.trust.identity import Identity
from pluralllm.operator import opening
from pluralllm.operator.opening import opened

DUE_S, END_S = 1_000.0, 2_000.0


class Connection:
    problem: Unreachable | None = None

    def renewed(self) -> str:
        if self.problem is not None:
            raise self.problem
        return "renewed"


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    connection = Connection()
    monkeypatch.setattr(opening, "Remote", SimpleNamespace(of_member=lambda _identity: connection))
    return connection


def identity() -> Identity:
    facts: Any = SimpleNamespace(renew_s=DUE_S, not_after_s=END_S)
    return Identity(cast(Any, None), cast(Any, None), b"", b"", b"", facts)


@pytest.mark.parametrize(
    ("now_s", "is_renewed"), [(DUE_S - 1, False), (DUE_S, True), (END_S - 1, True), (END_S, False)]
)
def test_a_certificate_is_renewed_from_the_time_at_which_it_is_due_until_it_expires(
    connection: Connection, now_s: float, is_renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "time", SimpleNamespace(time=lambda: now_s))
    seen: list[Any] = []
    result: Any = opened(identity(), seen.append, lambda error: pytest.fail(str(error)))
    assert (result == "renewed") is is_renewed
    assert seen == [connection, *(["renewed"] if is_renewed else [])]


def test_the_old_certificate_is_used_if_the_renewal_fails(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "time", SimpleNamespace(time=lambda: DUE_S))
    connection.problem = Unreachable(address="there", problem="gone")
    errors: list[Any] = []
    used: Any = opened(identity(), lambda _connection: None, errors.append)
    assert used is connection
    assert errors == [connection.problem]
