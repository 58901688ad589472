"""Memory shows the messages of a private round that the run has on record, whatever else was about to become durable."""

import asyncio
from pathlib import Path

from support import private_members
from support.memory_coordinator import Hooks, MemoryCoordinator
from support.private_round import NAMES, ONE, body_of, keying, send, sha256
from support.run_states import change_state

from pluralllm.common.private_rounds.messages import Body, Complaint, Confirmation, RoundMember, UpdateStatement
from pluralllm.common.words.ids import ClientId, Digest, RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.open_rounds import OpenRound, OpenRounds, recorded
from pluralllm.server.storage.store import RoundMessage

ANN, BEN = ClientId("ann"), ClientId("ben")
FIRST, SECOND = (Confirmation(bytes([number]) * 32, bytes(64)) for number in (1, 2))


def digest_of(message: Body) -> Digest:
    return sha256(message.to_json())


def sent(client: ClientId, message: Body) -> ev.SentMessage:
    return ev.SentMessage(client, digest_of(message))


def test_of_two_messages_of_a_member_that_is_shown_which_is_on_record() -> None:
    messages = OpenRound(RoundNumber(1))
    for message in (FIRST, SECOND):
        messages.add(ANN, digest_of(message), message)
    assert messages.of(Confirmation, [sent(ANN, FIRST)]) == {ANN: FIRST}
    assert messages.of(Confirmation, [sent(ANN, SECOND)]) == {ANN: SECOND}


def test_a_message_that_is_not_on_record_or_is_of_another_kind_or_member_is_not_shown() -> None:
    messages = OpenRound(RoundNumber(1))
    messages.add(ANN, digest_of(FIRST), FIRST)
    assert messages.of(Confirmation, []) == {}
    assert messages.of(Confirmation, [sent(BEN, FIRST), sent(ANN, SECOND)]) == {}
    assert messages.of(Complaint, [sent(ANN, FIRST)]) == {}


async def test_a_statement_is_found_by_the_digest_of_its_masked_file(tmp_path: Path) -> None:
    place, statement = MemoryCoordinator(tmp_path), UpdateStatement(ANN, bytes(range(32)), bytes(64))
    run = await keying(place)
    row = RoundMessage(run.id, ONE, ev.RoundStep.UPDATE, ANN, digest_of(statement), statement.to_json())
    place.tables.runs[run.id].messages[ONE, ev.RoundStep.UPDATE, ANN] = row
    messages = await place.parts.open_rounds.of(run)
    receipt = ev.Receipt(ANN, Digest(bytes(range(32)).hex()), 1)
    assert messages.of(UpdateStatement, [receipt]) == {ANN: statement}
    assert messages.of(UpdateStatement, [sent(ANN, statement)]) == {}


async def test_after_a_restart_the_messages_of_the_open_round_are_read_from_the_store(tmp_path: Path) -> None:
    place, member = MemoryCoordinator(tmp_path), private_members.person("ann").member
    run = await keying(place)
    arrived = ev.KeysArrived(place.clock.now_s(), ONE, ANN, digest_of(member))
    await place.coordinator.dispatch(run, arrived, member.to_json())
    rounds = OpenRounds(place.parts.store, "federation")
    assert (await rounds.of(run)).of(RoundMember, run.state.keyed) == {ANN: member}
    change_state(run, round=RoundNumber(2))
    assert (await rounds.of(run)).number == 2
    assert (await rounds.of(run)).of(RoundMember, run.state.keyed) == {}


async def test_a_message_that_arrives_while_messages_are_read_is_kept(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run, rounds, pauses = await keying(place), place.parts.open_rounds, iter((5, 1, 1))

    async def slowly(operation: str, _: object) -> None:
        for _ in range(next(pauses) if operation == "store.round_messages" else 0):
            await asyncio.sleep(0)

    place.before = slowly
    await asyncio.gather(rounds.of(run), rounds.keep(run, ANN, digest_of(FIRST), FIRST))
    assert (await rounds.of(run)).of(Confirmation, [sent(ANN, FIRST)]) == {ANN: FIRST}


async def test_each_step_has_its_own_messages_on_record(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    run = await keying(place)
    for step in (ev.RoundStep.KEYS, ev.RoundStep.SHARES, ev.RoundStep.UPDATE, ev.RoundStep.CONFIRMATION):
        await send(place, run, step, *NAMES[: 3 if step is ev.RoundStep.CONFIRMATION else 4])
    await send(place, run, ev.RoundStep.REVEAL, BEN)
    for step in (ev.RoundStep.KEYS, ev.RoundStep.SHARES, ev.RoundStep.CONFIRMATION, ev.RoundStep.REVEAL):
        assert recorded(run.state, step, BEN) == sha256(body_of(step, BEN))
        assert recorded(run.state, step, ClientId("eve")) is None
    assert recorded(run.state, ev.RoundStep.REVEAL, ANN) is recorded(run.state, ev.RoundStep.COMPLAINT, ANN) is None


async def test_messages_are_read_once_and_forgotten_with_their_round_and_not_with_an_earlier_one(
    tmp_path: Path,
) -> None:
    place = MemoryCoordinator(tmp_path)
    run, rounds = await keying(place), place.parts.open_rounds
    place.before = hooks = Hooks()
    await rounds.keep(run, ANN, digest_of(FIRST), FIRST)
    rounds.forget(run.id, 0)
    assert (await rounds.of(run)).of(Confirmation, [sent(ANN, FIRST)]) == {ANN: FIRST}
    assert [operation for operation, _ in hooks.calls] == ["store.round_messages"]
    rounds.forget(run.id, 1)
    assert (await rounds.of(run)).of(Confirmation, [sent(ANN, FIRST)]) == {}
    assert [operation for operation, _ in hooks.calls] == ["store.round_messages"] * 2
