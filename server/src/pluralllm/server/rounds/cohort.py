"""The clients that train in a round, drawn by a seed that is on record."""

import hashlib
from collections.abc import Iterable

from pluralllm.common.words.ids import ClientId, RoundNumber


def draw_cohort(seed: int, round_number: RoundNumber, clients: Iterable[ClientId], size: int) -> tuple[ClientId, ...]:
    """The `size` clients with the smallest seeded hashes, sorted by id.

    A client's rank depends on seed, round and its own id alone, not on the other clients.
    """
    ranked = sorted(clients, key=lambda client: hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest())
    return tuple(sorted(ranked[:size]))


def task_seed(seed: int, round_number: RoundNumber, client: ClientId) -> int:
    """Seed of one client's sampling in one round, 0 <= seed < 2**63. It leaves out the run's name: one spec, one result."""
    return int.from_bytes(hashlib.sha256(f"task/{seed}/{round_number}/{client}".encode()).digest()[:8]) >> 1
