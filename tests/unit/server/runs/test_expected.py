"""A run waits for members and open invites only, and for none of them that cannot come."""

from pathlib import Path

from support.memory_coordinator import MemoryCoordinator
from support.run_states import change_state

from pluralllm.common.words.ids import ClientId, ModelVersion, RoundNumber
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.runs.expected import Expected
from pluralllm.server.storage.membership import InviteRecord, Member

THREE = {"min_clients": 2, "target_clients": 3, "gather_s": 30, "evaluate_every": 100, "grace_after_quorum_s": 90}


def member(name: str, group_role: GroupRole = GroupRole.TRAIN) -> Member:
    return Member(ClientId(name), MemberRole.CLIENT, f"of {name}", group_role, approved=True, created_s=0.0)


def invite(name: str) -> InviteRecord:
    return InviteRecord(
        *("t", ClientId(name), MemberRole.CLIENT, f"of {name}", GroupRole.TRAIN), False, created_s=0.0, expires_s=9.0
    )


async def after_a_look(folder: Path, possible: list[Member | InviteRecord] | None, *names: str) -> Run:
    """Returns the state of a run of three clients, of which `names` are connected, after one look at them."""
    folder.mkdir()  # noqa: ASYNC240 - a test
    place = MemoryCoordinator(folder, possible=None if possible is None else lambda: possible)
    run = await place.new_run(round=THREE)
    for name in names:
        await place.hello(name)
    await place.look(run)
    await place.stop()
    return run.state


async def test_a_run_waits_for_those_who_can_come_and_for_nobody_else(tmp_path: Path) -> None:
    two: list[Member | InviteRecord] = [member("ann"), member("ben")]
    absent: list[Member | InviteRecord] = [member("cat"), invite("cat"), member("cat", GroupRole.HELD_OUT)]
    for number, one in enumerate(absent):
        run = await after_a_look(tmp_path / f"waits-{number}", [*two, one], "ann", "ben")
        assert run.phase is Phase.WAITING, one
    assert (await after_a_look(tmp_path / "anybody", None, "ann", "ben")).phase is Phase.WAITING, "plain text"
    assert (await after_a_look(tmp_path / "one", two, "ann")).phase is Phase.WAITING, "two are needed"
    assert (await after_a_look(tmp_path / "all", two, "ann", "ben")).phase is Phase.EVALUATING


async def test_after_a_revocation_rounds_open_and_close_without_a_wait(tmp_path: Path) -> None:
    people: list[Member | InviteRecord] = [member("ann"), member("ben"), member("cat")]
    place = MemoryCoordinator(tmp_path, possible=lambda: people)
    run = await place.collecting("ann", "ben", "cat", round=THREE)
    for name in ("ann", "ben"):
        await place.deliver(run, name, place.update(run))
    await place.look(run)
    assert run.state.phase is Phase.COLLECTING, "the third client may still deliver"
    people[2:] = [member("dan", GroupRole.HELD_OUT)]  # a round does not need it
    await place.coordinator.remove_client(ClientId("cat"))
    await place.look(run)
    await place.coordinator.until_averaged(run)
    people.append(member("eve"))
    lost = ev.PlaceLost(place.clock.now_s(), ClientId("eve"), "its disk is full", permanent=True)
    await place.coordinator.dispatch(run, lost)  # a person must restart it first
    await place.look(run)
    assert (run.state.version, run.state.round, len(run.state.cohort)) == (1, 2, 2), (
        "nobody waits for the grace, or gathers"
    )
    await place.stop()


async def test_whether_anybody_else_can_come_matters_to_no_open_round_that_is_private(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.collecting("ann", "ben", "cat", round=THREE)
    for name in ("ann", "ben"):
        await place.deliver(run, name, place.update(run))
    await place.coordinator.remove_client(ClientId("cat"))
    expected = Expected(lambda: [member("ann"), member("ben")])
    assert expected.nobody_but(run, 0, ())
    change_state(run, private=PrivateRounds(), away=run.state.cohort)
    assert run.state.active_count == 0
    assert not run.state.has_all_it_can_get
    assert not expected.nobody_but(run, 0, ())
    await place.stop()


async def test_the_closing_round_opens_at_once_when_all_that_can_come_are_there(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path, possible=lambda: [member("ann"), member("dan", GroupRole.HELD_OUT)])
    run = await place.new_run(round=THREE)
    left = ClientId("zoe")  # it is in the roster for the time of a lease, and has left the federation
    change_state(run, closes=True, round=RoundNumber(run.state.rounds), evaluated=ModelVersion(0), roster=(left,))
    await place.hello("ann")
    await place.look(run)
    assert run.state.phase is Phase.WAITING, "one is not enough"
    await place.hello("dan", role=GroupRole.HELD_OUT)
    await place.look(run)
    assert (run.state.is_closing, run.state.cohort) == (True, ("ann", "dan"))
    await place.stop()


async def test_the_closing_round_waits_for_clients_of_held_out_groups_as_well(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await place.new_run(round=THREE)
    change_state(run, round=RoundNumber(run.state.rounds), evaluated=ModelVersion(0))
    expected = Expected(lambda: [member("ann"), member("ben"), member("dan", GroupRole.HELD_OUT)])
    here = [ClientId("ann"), ClientId("ben")]
    for closes in (True, False):
        change_state(run, closes=closes)
        assert expected.nobody_but(run, 2, here) != closes
    await place.stop()
