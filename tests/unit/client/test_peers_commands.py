"""The owner sees the roster with its whole digest, and pins members by the one line of the walk."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pluralllm.client import peers_view
from pluralllm.client.__main__ import app
from pluralllm.client.doctor import PROBES
from pluralllm.client.link.tasks import RosterPage
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds.pins import load_pins, save_pins
from pluralllm.client.private_rounds.roster_watch import FILE, SeenRoster
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.errors.tree import InvalidArgument, Unreachable
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry
from pluralllm.common.trust.certificates import spoken

KEYS = {"ann": "a" * 64, "ben": "b" * 64}
ENTRIES = tuple(
    RosterEntry(at, name, "S. Korea", key, RosterChange.ADDED) for at, (name, key) in enumerate(KEYS.items(), 1)
)
DIGEST = Roster().extended(ENTRIES).head.hex()


def peers(state: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["peers", *words, "--state-dir", str(state)], env={"COLUMNS": "120"})


def seen(state: Path, seen_roster: SeenRoster) -> None:
    (state / FILE).write_text(json.dumps(asdict(seen_roster)))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of a client in plain text that has seen a roster of two members."""
    seen(tmp_path, SeenRoster(ENTRIES))
    return tmp_path


def test_the_whole_digest_is_shown_in_groups_of_four(state: Path) -> None:
    shown = peers(state)
    assert shown.exit_code == 0
    assert spoken(DIGEST) in shown.output
    assert spoken(DIGEST).replace(" ", "") == DIGEST
    assert len(spoken(DIGEST).split()) == 16
    assert "not pinned: ann, ben" in shown.output
    assert "S. Korea" in shown.output


def test_the_line_of_the_walk_pins_those_who_were_present(state: Path) -> None:
    pinned = peers(state, "pin", "--roster", spoken(DIGEST), "--names", "ann, ben")
    assert pinned.exit_code == 0, pinned.output
    assert load_pins(state / "peers.toml") == KEYS
    assert "not pinned" not in peers(state).output


def test_the_digest_alone_can_be_copied(state: Path, tmp_path: Path) -> None:
    assert peers(state, "--digest").output == f"{DIGEST}\n"
    empty = peers(tmp_path / "new", "--digest")
    assert isinstance(empty.exception, InvalidArgument)
    assert "Start the daemons first" in str(empty.exception)


def test_a_client_that_has_not_looked_since_others_connected_looks_before_it_pins(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    async def look(_identity: object, folder: Path) -> str:
        looks.append(folder)
        seen(state, SeenRoster(ENTRIES))
        return ""

    monkeypatch.setattr(peers_view, "_identity", lambda _paths: object())
    monkeypatch.setattr(peers_view, "_follow", look)
    monkeypatch.setattr(peers_view, "_check_own_key", lambda *_: None)
    seen(state, SeenRoster(ENTRIES[:1]))
    pinned = [peers(state, "pin", "--roster", spoken(DIGEST), "--names", "ann,ben") for _ in range(2)]
    assert [result.exit_code for result in pinned] == [0, 0]
    assert load_pins(state / "peers.toml") == KEYS
    assert looks == [state], "the second time it has the roster already"


def test_nobody_is_pinned_by_a_part_of_the_digest_or_without_a_key(state: Path) -> None:
    for words in (("--roster", DIGEST[:60], "--names", "ann"), ("--roster", DIGEST, "--names", "ann,cat")):
        assert isinstance(peers(state, "pin", *words).exception, InvalidArgument)
    assert not (state / "peers.toml").exists()


def test_a_pinned_member_with_another_key_is_shown_until_it_is_pinned_again(state: Path) -> None:
    save_pins(state / "peers.toml", {"ann": "f" * 64, "cat": "c" * 64})
    members = {row["name"]: row["pinned"] for row in json.loads(peers(state, "--json").output)["members"]}
    assert members == {"ann": "another key", "ben": "no", "cat": "no key now"}
    pinned = peers(state, "pin", "--roster", DIGEST, "--names", "ann")
    assert "pinned ann; another key than before: ann" in pinned.output
    assert "2 members are pinned" in pinned.output
    assert load_pins(state / "peers.toml") == {"ann": KEYS["ann"], "cat": "c" * 64}


def test_the_log_of_a_command_that_asks_the_coordinator_is_not_among_its_json(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        async def roster(self, after: int) -> RosterPage:
            raise Unreachable(address="127.0.0.1:1", problem="it is away")

        async def close(self) -> None: ...

    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(peers_view, "configure_logs", lambda *, form, level: configured.append((form, level)))
    monkeypatch.setattr(Transport, "of_member", lambda _: Silent())
    identity: Any = SimpleNamespace(membership=SimpleNamespace(name="ann"), folder=state)
    assert "it is away" in asyncio.run(peers_view._follow(identity, state))
    assert configured == [("console", "WARNING")]


def test_a_roster_that_has_diverged_is_said_and_pins_nobody(state: Path) -> None:
    seen(state, replace(SeenRoster(ENTRIES), complaint="it goes back", complained="2026-11-29T00:00:00+00:00"))
    for words in ((), ("--json",), ("--digest",), ("pin", "--roster", DIGEST, "--names", "ann")):
        shown = peers(state, *words)
        assert isinstance(shown.exception, RosterDiverged)
        assert "it goes back (seen on 2026-11-29" in str(shown.exception)
    assert not (state / "peers.toml").exists()


def test_before_the_first_daemon_the_roster_is_empty(tmp_path: Path) -> None:
    shown = peers(tmp_path)
    assert shown.exit_code == 0
    assert "The roster is empty" in shown.output
    assert json.loads(peers(tmp_path, "--json").output)["entries"] == 0


def test_doctor_counts_the_pins_and_names_a_changed_key_or_a_roster_that_has_diverged(state: Path) -> None:
    config = ClientConfig(data=state / "answers.jsonl", state_dir=state)
    shown = PROBES["peers"](config)
    assert (shown.ok, shown.result) == (True, "0 of 2 members pinned")
    assert "pluralllm-client peers" in shown.fix
    save_pins(state / "peers.toml", {**KEYS, "gone": "0" * 64})
    assert (PROBES["peers"](config).result, PROBES["peers"](config).fix) == ("2 of 2 members pinned", "")
    save_pins(state / "peers.toml", {**KEYS, "ben": "0" * 64})
    assert PROBES["peers"](config).result == "1 of 2 members pinned; another key than pinned: ben"
    seen(state, replace(SeenRoster(ENTRIES), complaint="it goes back", complained="today"))
    assert (PROBES["peers"](config).ok, PROBES["peers"](config).result) == (False, "diverged on today: it goes back")
