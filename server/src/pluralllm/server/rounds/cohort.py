"""Draws the clients that train in a round. The draw depends on a recorded seed, so that the draw can be repeated."""

import hashlib
from collections.abc import Iterable

from pluralllm.common.words.ids import ClientId, RoundNumber


def draw_cohort(seed: int, round_number: RoundNumber, clients: Iterable[ClientId], size: int) -> tuple[ClientId, ...]:
    """Returns the `size` clients with the smallest hashes of seed, round and client id, sorted by id.

    A client's hash does not depend on the other clients. If there are fewer than `size` clients, returns all clients.
    """
    ranked = sorted(clients, key=lambda client: hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest())
    return tuple(sorted(ranked[:size]))


def task_seed(seed: int, round_number: RoundNumber, client: ClientId) -> int:
    """Returns the seed for one client's random choices in one round: a number x with 0 <= x < 2**63.

    The seed does not depend on the run's name, so that two runs of the same run spec give the same result.
    """
    return int.from_bytes(hashlib.sha256(f"task/{seed}/{round_number}/{client}".encode()).digest()[:8]) >> 1
