"""The Python interface against a real coordinator in this process, over gRPC."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_harness import Served, evaluated, serving, small_spec

from pluralllm.api import Federation, Run, RunChanged, ScoreArrived
from pluralllm.common.errors.membership import InviteForOtherCommand, NotJoined, RoleForbids
from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.process import environment
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.words.roles import MemberRole
from pluralllm.operator.remote import Remote

VALUES: dict[str, Any] = {
    "preset": "attention",
    "rounds": 2,
    "predictor": {"d_model": 8, "layers": 1, "heads": 2, "feedforward": 8, "embedder_layers": 2},
    "embedding": {"model": "tiny", "dimension": 8},
}


def connected(served: Served) -> Federation:
    return Federation.connect(served.identities / "admin", coordinator=served.address)


async def test_a_run_is_created_started_paused_resumed_and_cancelled(tmp_path: Path) -> None:
    def drive(served: Served) -> None:
        with connected(served) as federation:
            run = federation.create("first", small_spec())
            assert (run.name, run.note, run.state().phase, run.state().rounds) == ("first", "", "created", 2)
            assert run.start().phase != "created"
            assert run.pause().paused
            assert not run.resume().paused
            over = run.cancel("enough")
            assert (over.is_over, over.outcome, over.outcome_reason) == (True, "cancelled", "enough")
            second = federation.create("second", small_spec(), start=True)
            assert second.state().phase != "created"
            assert {one.name for one in federation.runs()} == {"first", "second"}
            assert [federation.run().name, federation.run("first").name] == ["second", "first"]
            with pytest.raises(NotFound):
                federation.run("third")

    async with serving(tmp_path / "state") as served:
        await asyncio.to_thread(drive, served)


async def test_values_get_the_private_rounds_that_the_command_gives_and_a_spec_is_sent_as_it_is(tmp_path: Path) -> None:
    def drive(served: Served) -> None:
        with connected(served) as federation:
            four = {**VALUES, "round": {"min_clients": 3, "target_clients": 4}}
            assert "private rounds" in federation.create("private", four).note
            assert "plain rounds" in federation.create("plain", four, plain_rounds=True).note
            file = tmp_path / "run.toml"
            file.write_text('preset = "attention"\nembedding = {model = "tiny", dimension = 8}\n')
            assert "plain rounds" in federation.create("file", file).note
            read = {one.name: one.state().values["updates_read"] for one in federation.runs()}
            assert read["private"] != read["plain"] == read["file"]

    async with serving(tmp_path / "state") as served:
        await asyncio.to_thread(drive, served)


async def test_members_scores_models_and_events_are_typed(tmp_path: Path) -> None:
    def look(served: Served) -> Run:
        federation = connected(served)
        members = {one.name: one for one in federation.members()}
        assert (members["ann"].role, members["ann"].state, members["ann"].group) == ("client", "active", "group of ann")
        run = federation.run()
        people = {one.client: (one.group, one.role) for one in run.state().participants}
        assert people == {name: (f"group of {name}", "train") for name in ("ann", "bob")}
        assert {one.group: one.alignment_score for one in run.state().scores} == {
            "group of ann": 0.5,
            "group of bob": 0.75,
        }
        assert [(one.version, one.questions) for one in run.scores()] == [(0, 9)] * 2
        assert sorted(run.frame().alignment_score) == [0.5, 0.75]
        assert [(one.run, one.version, one.round, one.clients) for one in run.models()] == [("r", 0, 0, ())]
        assert run.rounds(1)[0]["name"] == "runs/r/rounds/1"
        return run

    async with serving(tmp_path / "state") as served:
        await evaluated(served, ann=0.5, bob=0.75)
        run = await asyncio.to_thread(look, served)
        seen = []
        async for event in run.watch_async():
            seen.append(event)
            if isinstance(event, ScoreArrived) and event.client == "bob":
                await asyncio.to_thread(run.cancel)
        assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
        assert {(one.client, one.alignment_score) for one in seen if isinstance(one, ScoreArrived)} == {
            ("ann", 0.5),
            ("bob", 0.75),
        }
        changes = [one.kind for one in seen if isinstance(one, RunChanged)]
        assert changes == ["RunStarted", "RunCancelled"]
        later = await asyncio.to_thread(lambda: [event.sequence for event in run.watch(after=2)])
        assert later == list(range(3, len(seen) + 1))


async def test_a_model_is_downloaded_and_exported_as_a_predictor(tmp_path: Path) -> None:
    def fetch(served: Served) -> None:
        with connected(served) as federation:
            run = federation.create("r", small_spec())
            folder = run.download(tmp_path / "model", 0)
            assert sorted(path.name for path in folder.iterdir()) == [
                "model.safetensors",
                "provenance.json",
                "run_spec.json",
            ]
            predictor = run.predictor(tmp_path / "exported", 0, device="cpu", cache=tmp_path / "cache")
            assert (predictor.config.run, predictor.config.version, predictor.config.context_gain) == ("r", 0, None)
            assert {path.name for path in (tmp_path / "exported").iterdir()} >= {"config.json", "README.md"}
            with pytest.raises(NotFound):
                run.download(tmp_path / "none", 7)

    async with serving(tmp_path / "state") as served:
        await asyncio.to_thread(fetch, served)


async def test_an_invite_is_used_once_and_its_identity_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "home", lambda: tmp_path / "home")

    def join(served: Served, line: str, partner: str) -> None:
        kept = tmp_path / "mine"
        with pytest.raises(NotJoined):
            Federation.connect(kept)
        with Federation.connect(line, folder=kept) as federation, pytest.raises(RoleForbids):  # an observer
            federation.members()
        (tmp_path / "eve.invite").write_text(line)
        with Federation.connect(tmp_path / "eve.invite", folder=kept) as federation:  # the same invite: nothing changes
            assert federation.runs() == []
        with Federation.connect(kept) as federation:
            assert federation.runs() == []
        with pytest.raises(InviteForOtherCommand):
            Federation.connect(partner, folder=tmp_path / "other")
        assert not (tmp_path / "other").exists()
        with pytest.raises(InvalidArgument):
            Federation.connect(kept, coordinator="nowhere")

    def invited(served: Served) -> list[str]:
        remote = Remote.of_member(load_identity(served.identities / "admin", "test").at(served.address))
        places = {"coordinator": served.address, "enrolment": served.enrolment_address}
        invites = [
            remote.invite("eve", MemberRole.OBSERVER, "", None, 600, needs_approval=False, runs=["*"]),
            remote.invite("ann", MemberRole.CLIENT, "g", None, 600, needs_approval=False),
        ]
        remote.close()
        return [invite.model_copy(update=places).to_line() for invite in invites]

    async with serving(tmp_path / "state") as served:
        await asyncio.to_thread(join, served, *await asyncio.to_thread(invited, served))
