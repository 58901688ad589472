"""A run is archived over gRPC: lists leave it out, its name goes on to work, and no restart, backup or partner changes that."""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_harness import Served, pass_first_evaluation, serving, small_spec

from pluralllm.api import Federation
from pluralllm.cli.audit_trail import verified_entries
from pluralllm.common.errors.membership import RoleForbids
from pluralllm.common.errors.tree import InvalidArgument, NotFound, RunNotEnded
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote
from pluralllm.server.commands.backup import back_up
from pluralllm.server.commands.restore import restore
from pluralllm.server.commands.verify import verify_stopped
from pluralllm.server.process.config import ServerConfig
from pluralllm.v1 import resources_pb2 as rpb

SPEC = small_spec()
NOW_S = 2e9  # the time of the restore


def remote_of(served: Served, name: str = "admin") -> Remote:
    return Remote.of_member(load_identity(served.identities / name, "").at(served.address))


def names_of(runs: list[dict[str, Any]]) -> list[str]:
    return [run["name"] for run in runs]


async def slipped(served: Served) -> None:
    """Makes the run `kept`, which goes on, and then, by a slip, the run `slip`, which is cancelled with a round open."""
    ann, ben = await served.client("ann"), await served.client("ben")
    await served.create("kept", SPEC, start=False)
    await served.create("slip", SPEC)
    await pass_first_evaluation(ann, ben)
    task = await ann.task()
    remote = remote_of(served)
    with contextlib.closing(remote):
        await asyncio.to_thread(remote.cancel_run, "slip", "a slip")
        await asyncio.to_thread(remote.archive_run, "slip")
        await asyncio.to_thread(remote.start_run, "kept")
    over = await ann.poll(held=task.name, following=["slip"])
    assert (over.run_over.run, over.run_over.outcome) == ("slip", rpb.RUN_OUTCOME_CANCELLED), (
        "the partner hears the end"
    )


def check_lists(remote: Remote) -> None:
    assert names_of(remote.runs()) == names_of(remote.runs(summary=True)) == ["runs/kept"]
    assert names_of(remote.runs(archived=True)) == ["runs/slip", "runs/kept"]
    assert remote.get_run("-")["name"] == "runs/kept"


def check_name(remote: Remote) -> None:
    """Checks that everything that names the archived run works as before."""
    run = remote.get_run("slip")
    assert (run["archived"], run["outcome"], run["outcome_reason"]) == (True, "cancelled", "a slip")
    assert [person["client"] for person in run["participants"]] == ["ann", "ben"]
    assert [row["outcome"] for row in remote.rounds("slip")] == ["abandoned"]
    assert [(row["client"], row["version"]) for row in remote.evaluations("slip")] == [("ann", 0), ("ben", 0)]
    assert remote.model_record(ModelName.parse_short("slip"))[0]["version"] == 0
    kinds = [event["kind"] for event in remote.events("slip", 0)]
    assert (kinds[0], kinds[-2:]) == ("RunStarted", ["RunCancelled", "RunArchived"])


async def test_after_a_slip_the_archived_run_is_out_of_the_way_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serving(state) as served:
        await slipped(served)
        with contextlib.closing(remote_of(served)) as remote:
            for check in (check_lists, check_name):
                await asyncio.to_thread(check, remote)
            entries, _, whole = await asyncio.to_thread(verified_entries, remote, tmp_path / "nowhere")
        assert whole
        archiving = [
            (entry["actor"], entry["object"], entry["result"]) for entry in entries if entry["action"] == "ArchiveRun"
        ]
        assert archiving == [("members/admin", "runs/slip", result) for result in ("BEGUN", "ACCEPTED")]
        with contextlib.closing(remote_of(served, "ann")) as ann:
            own = [(entry["action"], entry["object"]) for entry in (await asyncio.to_thread(ann.audit_events))[0]]
        assert ("ArchiveRun", "runs/slip") in own, "the partner reads what was done to its run"
        await back_up(ServerConfig(state_dir=state), tmp_path / "backup", lambda *_: None)
    report = await verify_stopped(ServerConfig(state_dir=state))
    assert report.is_clean, report.lines()
    await restore(ServerConfig(state_dir=tmp_path / "restored"), tmp_path / "backup", NOW_S, lambda *_: None)
    shutil.copytree(tmp_path / "state-identities", tmp_path / "restored-identities")
    for folder in (state, tmp_path / "restored"):
        async with serving(folder) as served:
            with contextlib.closing(remote_of(served)) as remote:
                for check in (check_lists, check_name):
                    await asyncio.to_thread(check, remote)


async def test_archiving_is_for_administrators_and_for_a_run_that_has_ended_and_may_be_repeated(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        await served.member("eve", MemberRole.OBSERVER)

        def check() -> None:
            with contextlib.closing(remote_of(served, "eve")) as eve:
                for call in (eve.archive_run, eve.unarchive_run):
                    with pytest.raises(RoleForbids):
                        call("r")
            with contextlib.closing(remote_of(served)) as remote:
                with pytest.raises(RunNotEnded, match=r"Run r is waiting; only a run that has ended .* run cancel r"):
                    remote.archive_run("r")
                remote.cancel_run("r", "enough")
                for call in (remote.archive_run, remote.unarchive_run):
                    with pytest.raises(InvalidArgument, match="own name"):
                        call("-")
                    with pytest.raises(NotFound):
                        call("nobody")
                first, again = remote.archive_run("r"), remote.archive_run("r")
                assert (first["archived"], first["sequence"]) == (again["archived"], again["sequence"]) == (True, 3)
                assert names_of(remote.runs()) == []
                assert remote.get_run("-")["name"] == "runs/r", "no other run is there"
                first, again = remote.unarchive_run("r"), remote.unarchive_run("r")
                assert (first["archived"], first["sequence"]) == (again["archived"], again["sequence"]) == (False, 4)
                assert names_of(remote.runs()) == ["runs/r"]

        await asyncio.to_thread(check)


async def test_python_archives_a_run_and_brings_it_back(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:

        def check() -> None:
            with Federation.connect(served.identities / "admin", coordinator=served.address) as federation:
                first, slip = federation.create("first", SPEC), federation.create("slip", SPEC)
                with pytest.raises(RunNotEnded):
                    slip.archive()
                slip.cancel("a slip")
                assert slip.archive().archived
                assert [run.name for run in federation.runs()] == ["first"]
                assert [run.name for run in federation.runs(archived=True)] == ["slip", "first"]
                assert (federation.run().name, federation.run("slip").state().archived) == ("first", True)
                assert [event.kind for event in slip.watch()] == ["RunCancelled", "RunArchived"]
                assert not slip.unarchive().archived
                assert [run.name for run in federation.runs()] == ["slip", "first"]
                assert federation.run().name == first.name, "it is cancelled all the same"

        await asyncio.to_thread(check)
