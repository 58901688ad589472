"""How many refusals of one client become events, and how they are counted."""

from pluralllm.common.words.ids import ClientId, RoundNumber, RunId
from pluralllm.server.runs.refusals import RECORDED_IN_A_ROUND, Refusals

R, ANN, BEN = RunId("r"), ClientId("ann"), ClientId("ben")


def recorded(refusals: Refusals, client: ClientId, number: int | None, times: int) -> int:
    return sum(refusals.count(R, client, None if number is None else RoundNumber(number)) for _ in range(times))


def test_the_first_refusals_of_a_client_in_the_open_round_are_recorded() -> None:
    refusals = Refusals()
    assert recorded(refusals, ANN, 1, 100) == RECORDED_IN_A_ROUND == 5
    assert recorded(refusals, BEN, 1, 100) == RECORDED_IN_A_ROUND
    assert recorded(refusals, ANN, 2, 3) == 3
    assert recorded(refusals, ANN, 2, 100) == RECORDED_IN_A_ROUND - 3


def test_refusals_outside_of_the_open_round_are_only_counted() -> None:
    refusals = Refusals()
    assert recorded(refusals, ANN, None, 100) == 0
    assert recorded(refusals, ANN, 1, 1) == 1
    assert refusals.of(R) == {ANN: 101}
    assert refusals.of(RunId("q")) == {}
