"""The connection of a command."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pluralllm.cli import connection
from pluralllm.common.trust.identity import Identity
from pluralllm.operator.remote import Remote


def test_the_log_lines_of_a_renewal_stay_out_of_the_answer_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    renewed: Any = SimpleNamespace()

    def renew() -> Any:
        print("addresses.changed")
        return renewed

    facts: Any = SimpleNamespace(renew_s=0.0, not_after_s=math.inf)
    identity = Identity(Path("me"), cast(Any, None), b"", b"", b"", facts)
    monkeypatch.setattr(connection, "my_identity", lambda _: identity)
    monkeypatch.setattr(connection, "_opened", [])
    monkeypatch.setattr(Remote, "of_member", lambda _: SimpleNamespace(renewed=renew))
    assert connection.remote(None) is renewed
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "addresses.changed\n")
