"""Draws the clients that train in a round. The draw depends on a recorded seed, so that the draw can be repeated."""

import hashlib
from collections.abc import Iterable

from pluralllm.common.words.ids import ClientId, RoundNumber


def draw_cohort(seed: int, round_number: RoundNumber, clients: Iterable[ClientId], size: int) -> tuple[ClientId, ...]:
    """Returns the clients that are drawn for a round, sorted by id.

    The clients with the smallest hashes of seed, round and client id are drawn. A client's hash does not depend on the other
    clients.
    size: the number of clients to draw. If there are fewer clients, all clients are returned.
    """
    ranked = sorted(clients, key=lambda client: hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest())
    return tuple(sorted(ranked[:size]))


def task_seed(seed: int, round_number: RoundNumber, client: ClientId) -> int:
    """Returns the seed for one client's random choices in one round: a number x with 0 <= x < 2**63.

    The seed does not depend on the run's name, so that two runs of the same run spec give the same result.
    """
    return int.from_bytes(hashlib.sha256(f"task/{seed}/{round_number}/{client}".encode()).digest()[:8]) >> 1
