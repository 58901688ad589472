"""Presence: who comes and goes too often stays away, who keeps a poll open or a lease does not go."""

import pytest
from structlog.testing import capture_logs

from pluralllm.common.words.ids import ClientId, GroupName, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.presence import COMING_EACH_S, COMINGS_AT_ONCE, Presence
from pluralllm.server.runs.sessions import Session, Sessions

ANN, MALLORY = ClientId("ann"), ClientId("mallory")
SILENCE_S = 5.0


class World:
    """A presence whose clients say when they were last seen."""

    def __init__(self) -> None:
        self.sessions, self.leases = Sessions(SILENCE_S), Leases(60.0)
        self.presence = Presence(self.sessions, self.leases)

    def hello(self, client: ClientId, now_s: float) -> Session:
        session = Session(client, "one", GroupName("g"), GroupRole.TRAIN, 50, "1", now_s)
        self.sessions.open(session)
        return session

    def look(self, now_s: float) -> list[ClientId]:
        return list(self.presence.look(now_s))

    def comes_and_goes(self, times: int, now_s: float = 0.0) -> float:
        """Lets the client come and go within 10 s, so many times. Returns the time afterwards."""
        for _ in range(times):
            self.hello(MALLORY, now_s)
            self.look(now_s)
            assert self.look(now_s + SILENCE_S + 0.1) == []
            now_s += 10
        return now_s


@pytest.fixture
def world() -> World:
    return World()


def test_a_client_is_present_until_it_is_silent(world: World) -> None:
    world.hello(ANN, 0.0)
    assert world.look(0.0) == world.look(SILENCE_S) == [ANN]
    assert world.look(SILENCE_S + 0.1) == []
    world.sessions.of(ANN).last_seen_s = 20.0
    assert world.look(20.0) == [ANN]


def test_who_comes_too_often_stays_away_until_a_token_comes(world: World) -> None:
    now_s = world.comes_and_goes(COMINGS_AT_ONCE)
    earned = now_s / COMING_EACH_S
    assert earned == pytest.approx(2.5)
    now_s = world.comes_and_goes(2, now_s)  # the tokens that came meanwhile
    world.hello(MALLORY, now_s)
    world.hello(ANN, now_s)
    assert world.look(now_s) == [ANN]  # the others come as before
    assert world.presence.kept_out == {MALLORY}
    session = world.sessions.of(MALLORY)
    session.polls_open = 1  # a poll that stays open does not help before the time
    assert world.look(3 * COMING_EACH_S - 0.1) == []
    assert world.look(3 * COMING_EACH_S) == [MALLORY]
    assert world.presence.kept_out == frozenset()
    assert world.look(1e6) == [MALLORY]


def test_looks_in_between_take_no_tokens(world: World) -> None:
    world.hello(ANN, 0.0).polls_open = 1
    for second in range(1000):
        assert world.look(float(second)) == [ANN]
    world.sessions.of(ANN).polls_open = 0
    assert world.look(1000.0) == []
    for _ in range(COMINGS_AT_ONCE):
        world.hello(ANN, 1000.0)
        assert world.look(1000.0) == [ANN]
        assert world.look(1000.0 + SILENCE_S + 0.1) == []


def test_a_silent_client_with_a_lease_does_not_go_and_takes_no_token_when_it_speaks_again(world: World) -> None:
    task = TaskName(RunId("r"), RoundNumber(1), TaskKind.TRAIN, ANN)
    world.hello(ANN, 0.0)
    for cycle in range(2 * COMINGS_AT_ONCE):
        now_s = 10.0 * cycle
        world.sessions.of(ANN).last_seen_s = now_s
        assert world.look(now_s) == [ANN]
        world.leases.grant(ANN, RunId("r"), task, now_s)
        assert world.look(now_s + SILENCE_S + 0.1) == []  # no session answers, so it is not idle either
        world.sessions.of(ANN).last_seen_s = now_s + 7
        assert world.look(now_s + 7) == [ANN]
        world.leases.release(ANN)
        world.sessions.of(ANN).last_seen_s = now_s + 9
    assert world.presence.kept_out == frozenset()


def test_the_log_names_who_is_kept_out_once_for_each_time_it_came(world: World) -> None:
    with capture_logs() as log:
        now_s = world.comes_and_goes(COMINGS_AT_ONCE + 12)  # 420 s: three tokens, so nine comings are refused
    lines = [line for line in log if line["event"] == "client.comes_and_goes"]
    assert {line["client"] for line in lines} == {MALLORY}
    assert now_s == 420
    assert 1 <= len(lines) <= 4
