from hypothesis import given
from hypothesis import strategies as st

from pluralllm.common.words.ids import ClientId, RoundNumber
from pluralllm.server.rounds.cohort import draw_cohort, task_seed

names = st.sets(st.text("abcdef", min_size=1, max_size=6).map(ClientId), min_size=1, max_size=12)


@given(names, st.integers(0, 100), st.integers(0, 2**62), st.integers(1, 12))
def test_the_cohort_does_not_depend_on_the_order_clients_come_in(
    clients: set[ClientId], number: int, seed: int, size: int
) -> None:
    forward = draw_cohort(seed, RoundNumber(number), sorted(clients), size)
    backward = draw_cohort(seed, RoundNumber(number), sorted(clients, reverse=True), size)
    assert forward == backward == tuple(sorted(forward))
    assert len(forward) == min(size, len(clients))


@given(names, st.integers(1, 12))
def test_a_client_that_leaves_moves_no_other_out(clients: set[ClientId], size: int) -> None:
    whole = draw_cohort(1, RoundNumber(1), clients, size)
    gone = min(clients)
    rest = draw_cohort(1, RoundNumber(1), clients - {gone}, size)
    assert set(whole) - {gone} <= set(rest)


def test_rounds_and_seeds_draw_different_cohorts() -> None:
    clients = [ClientId(f"c{number}") for number in range(30)]
    drawn = {draw_cohort(seed, RoundNumber(number), clients, 5) for seed in (1, 2) for number in range(1, 11)}
    assert len(drawn) == 20


def test_every_client_and_round_has_its_own_seed() -> None:
    seeds = {task_seed(0, RoundNumber(number), ClientId(client)) for number in range(50) for client in ("a", "b")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_and_seeds_are_the_same_in_every_release_because_a_run_is_repeated_with_them() -> None:
    clients = [ClientId(name) for name in ("ann", "ben", "cat", "dan", "eve")]
    assert draw_cohort(7, RoundNumber(3), clients, 2) == ("dan", "eve")
    assert task_seed(7, RoundNumber(3), ClientId("ann")) == 3849193960726168811
