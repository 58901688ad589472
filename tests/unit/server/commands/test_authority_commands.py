"""`init` and `renew-issuer` refuse names that nobody can connect to, before anything is made."""

from pathlib import Path

import pytest

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.server.commands.authority_commands import _passphrase, init, renew_issuer, warn_of_loopback

UNUSABLE = ["0.0.0.0", "::", "1.2.3"]


@pytest.mark.parametrize("host", UNUSABLE)
def test_init_with_a_name_that_nobody_can_connect_to_makes_nothing(tmp_path: Path, host: str) -> None:
    folder = tmp_path / "made"
    with pytest.raises(InvalidArgument, match=f"--host: '{host}'"):
        init(host=["fl.example.org", host], admin_identity=folder / "admin", state_dir=folder / "state")
    assert not folder.exists()


@pytest.mark.parametrize("host", UNUSABLE)
def test_renew_issuer_with_such_a_name_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--host: '{host}'"):
        renew_issuer(host=[host], state_dir=tmp_path)


@pytest.mark.parametrize(
    ("hosts", "warns"),
    [
        (["localhost"], True),
        (["127.0.0.1", "::1"], True),
        (["localhost", "fl.example.org"], False),
        (["10.0.0.1"], False),
    ],
)
def test_names_that_only_this_machine_can_use_are_warned_of(
    hosts: list[str], warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_loopback(hosts)
    shown = capsys.readouterr().err
    assert ("only this machine can connect to" in shown) is warns
    assert ("pluralllm-server renew-issuer --host NAME" in shown) is warns


def test_a_passphrase_that_an_ascii_terminal_gives_has_the_typed_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = "Schlüssel".encode()
    monkeypatch.setattr("typer.prompt", lambda *_, **__: typed.decode("ascii", "surrogateescape"))
    assert _passphrase(Path("-"), confirm=False) == typed
