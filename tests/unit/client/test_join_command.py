"""The command `pluralllm-client join` and the receipts of an earlier membership."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile.evil_records import CLIENT, RUN, chain_of, own_update, train_task

from pluralllm.client import __main__ as command
from pluralllm.client.joining import joining
from pluralllm.client.keeping.history import History


@pytest.mark.parametrize("is_new", [True, False])
def test_a_new_certificate_voids_the_receipts_of_the_open_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """A member that was revoked has lost its update of the open round; a command that is repeated changes nothing."""
    state = tmp_path / "state"
    with History(state / "history", CLIENT).handing_in(train_task(chain_of(1)[1]), *own_update(2)):
        pass
    folder = state / "identity"
    folder.mkdir()
    (folder / "credentials.pem").write_bytes(b"old")

    def join(*_: Any) -> tuple[Any, bool]:
        if is_new:
            (folder / "credentials.pem").write_bytes(b"new")
        return SimpleNamespace(), False

    monkeypatch.setattr(joining, "join", join)
    monkeypatch.setattr(joining, "read_invite", lambda _: None)
    monkeypatch.setattr(joining, "joined_text", lambda *_, **__: "joined")
    command.join_federation("x.invite", None, state)
    (update,) = next(iter(History(state / "history").seen(RUN).own_updates.values()))
    assert update.acknowledged == (not is_new)
