"""The command `pluralllm-client join` and the receipts of an earlier membership."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile.evil_records import CLIENT, RUN, chain_of, own_update, train_task

from pluralllm.client import daemon_commands as command
from pluralllm.client.disclosure.policy import load_policy
from pluralllm.client.joining import joining
from pluralllm.client.keeping.history import History
from pluralllm.common.errors.tree import InvalidArgument, InvalidData


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the part of `join` that calls the coordinator. The list gets the invites that were used."""
    used: list[str] = []

    def join(invite: str, *_: Any) -> tuple[Any, bool]:
        used.append(invite)
        return SimpleNamespace(), False

    monkeypatch.setattr(joining, "join", join)
    monkeypatch.setattr(joining, "read_invite", lambda invite: invite)
    monkeypatch.setattr(joining, "joined_text", lambda *_, **__: "joined")
    return used


def test_a_private_file_with_problems_is_refused_before_the_invite_is_used(tmp_path: Path, joins: list[str]) -> None:
    (tmp_path / "answers.jsonl").write_text("no JSON\n")
    with pytest.raises(InvalidData):
        command.join_federation("x.invite", None, tmp_path, tmp_path / "answers.jsonl")
    assert joins == []


def test_a_partner_joins_with_noise_unless_it_says_otherwise(
    tmp_path: Path, joins: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "answers.jsonl"
    data.write_text('{"question": "Q?", "options": ["a", "b"], "shares": [0.5, 0.5]}\n')
    for name, without_noise in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        command.join_federation("x.invite", None, tmp_path / name, data, without_noise)
        assert (load_policy(tmp_path / name / "policy.toml").privacy is None) == without_noise
        assert "Without noise" in capsys.readouterr().out
    assert len(joins) == 2
    with pytest.raises(InvalidArgument, match="asks for noise; remove its table"):
        command.join_federation("x.invite", None, tmp_path / "one", data, without_noise=True)
    assert len(joins) == 2
    (tmp_path / "two" / "policy.toml").write_text("min_cohort = 5\n")
    command.join_federation("x.invite", None, tmp_path / "two", data)
    assert (tmp_path / "two" / "policy.toml").read_text() == "min_cohort = 5\n", "the policy is the partner's"


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


def test_the_policy_that_a_configuration_names_is_written_when_the_partner_joins(
    tmp_path: Path, joins: list[str]
) -> None:
    """deploy/examples/client.toml names one."""
    config = tmp_path / "client.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\npolicy = "{tmp_path}/allowed/policy.toml"\n')
    command.join_federation("x.invite", config)
    assert load_policy(tmp_path / "allowed" / "policy.toml").privacy is not None
    assert not (tmp_path / "state" / "policy.toml").exists()
    assert len(joins) == 1


@pytest.mark.parametrize(
    ("config", "state_dir", "data", "typed"),
    [
        (None, None, None, "pluralllm-client run --data FILE"),
        (None, "my state", None, "pluralllm-client run --state-dir 'my state' --data FILE"),
        ("client.toml", None, None, "pluralllm-client run --config client.toml"),
        ("client.toml", "s", "a.jsonl", "pluralllm-client run --config client.toml --state-dir s --data a.jsonl"),
    ],
)
def test_the_next_command_has_the_options_that_joining_was_typed_with(
    config: str | None, state_dir: str | None, data: str | None, typed: str
) -> None:
    paths = [None if text is None else Path(text) for text in (config, state_dir, data)]
    assert command._next_command(*paths) == typed
