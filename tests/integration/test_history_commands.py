"""The commands with which a partner looks at what its client knows of the coordinator's past."""

import asyncio
import json
from pathlib import Path

from hostile.evil_records import CLIENT, RUN, SPEC, VERIFIER, chain_of, honest
from support.commands import CLIENT as COMMAND
from support.commands import typed
from support.coordinator_harness import serving, small_spec

from pluralllm.client.keeping.audit_watch import AuditWatch
from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import AuditHead
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.trust.certificates import spoken
from pluralllm.common.trust.version_record import record_sha256
from pluralllm.common.words.roles import MemberRole

HEADS = {number: record_sha256(record) for number, record in enumerate(chain_of(3))}


async def filled(state: Path) -> None:
    """Fills a state directory as a daemon does that has seen three versions and a head of the audit log."""
    shown = honest(3)
    await History(state / "history", CLIENT, VERIFIER).follow(shown.task, SPEC, shown.fetch)
    await AuditWatch(state / "history", shown.fetch).look(AuditHead(7, "a" * 64, b"signature"))  # type: ignore[arg-type]


def test_the_head_of_a_run_is_shown_in_groups_to_compare_by_phone(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path / "state"))
    done = typed(COMMAND, "history", "--state-dir", tmp_path / "state")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"run {RUN}, version 3, made in round 3 from 4 updates", f"  {spoken(HEADS[3])}"]
    assert lines[2].startswith("audit log, entry 7, seen on ")
    assert lines[3] == f"  {spoken('a' * 64)}"
    done = typed(COMMAND, "history", RUN, "--version", "1", "--state-dir", tmp_path / "state")
    assert spoken(HEADS[1]) in done.stdout


def test_the_history_as_json(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path / "state"))
    value = json.loads(typed(COMMAND, "history", "--json", "--state-dir", tmp_path / "state").stdout)
    (run,) = value["runs"]
    assert (run["run"], run["version"], run["record_sha256"], run["updates"]) == (RUN, 3, HEADS[3], 4)
    assert (value["schema"], value["audit_sequence"]) == ("pluralllm.history/1", 7)
    assert value["audit_complaint"] is None


def test_what_was_never_seen_is_refused_and_an_empty_state_stays_empty(tmp_path: Path) -> None:
    done = typed(COMMAND, "history", "--state-dir", tmp_path / "state")
    assert (done.returncode, done.stdout) == (0, "no run yet\n")
    assert not (tmp_path / "state").exists()
    asyncio.run(filled(tmp_path / "state"))
    for arguments in (("other",), (RUN, "--version", "4"), ("--version", "4")):
        done = typed(COMMAND, "history", *arguments, "--state-dir", tmp_path / "state")
        assert done.returncode != 0
        assert done.stderr.strip(), "it says why"
        assert "Traceback" not in done.stderr


async def test_a_partner_reads_the_part_of_the_audit_log_that_concerns_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "server", SystemClock()) as served:
        await served.member("ann", MemberRole.CLIENT, "group of ann")
        await served.member("ben", MemberRole.CLIENT, "group of ben")
        await served.create("own", small_spec(), start=False)
        entries, (_, head) = served.registry.audit.head[0], served.registry.audit.head
        config = tmp_path / "client.toml"
        values = {"state_dir": tmp_path / "state", "identity": served.identities / "ann", "coordinator": served.address}
        config.write_text("".join(f"{key} = {json.dumps(str(value))}\n" for key, value in values.items()))
        done = await asyncio.to_thread(typed, COMMAND, "audit", "--config", config)
        assert done.returncode == 0, done.stderr
        assert f"of {entries} entries concern this client" in done.stdout
        assert spoken(head) in done.stdout
        assert "members/ann" in done.stdout
        assert "ben" not in done.stdout
        done = await asyncio.to_thread(typed, COMMAND, "audit", "--json", "--config", config)
        value = json.loads(done.stdout)
        assert (value["verified"], value["head_sha256"], value["whole"]) == (entries, head, True)
        assert {entry["object"] for entry in value["entries"]} == {"members/ann", "runs/own"}
        History(tmp_path / "state" / "history")
        await AuditWatch(tmp_path / "state" / "history", lambda *_: asyncio.sleep(0, [])).look(
            AuditHead(2, "0" * 64, b"")
        )
        done = await asyncio.to_thread(typed, COMMAND, "audit", "--config", config)
        assert done.returncode != 0
        assert "entry 2 is not the one that this machine has seen before" in done.stderr
