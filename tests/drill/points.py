"""Where a coordinator can be killed: before and after every durable step, enumerated from the contracts themselves.

A method that is new in a contract, a new kind of event, a new function in files.py: each is a point at once. What only reads
is listed here, so that forgetting to list it makes a point too many, never one too few.
"""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from pluralllm.common.process import files
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.rounds.events import Event
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.membership import MembershipStore
from pluralllm.server.storage.store import Store

BEFORE, AFTER = "before", "after"
APPLY = "store.apply"  # one step for each kind of event
RENAME = "files.rename"  # pathlib's, in the middle of files.publish
CONTRACTS: dict[str, type] = {"store": Store, "membership": MembershipStore, "blobs": Blobs, "uploads": Uploads}
READS: dict[str, frozenset[str]] = {
    "store": frozenset(
        {"runs", "events", "round", "rounds", "receipts", "receipt", "version", "versions", "clients", "model_digests"}
        | {"evaluations", "latest_evaluations", "close"}
    ),
    "membership": frozenset({"everyone", "audit_entries", "audit_head"}),
    "blobs": frozenset({"path", "exists", "digests"}),
    "uploads": frozenset({"missing"}),
}
TRANSLATES_ERRORS = "storage_errors"  # the one function of files.py that touches no file
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "averaging.write_next": write_next,
    **{
        f"files.{name}": value
        for name, value in vars(files).items()
        if inspect.isfunction(value) and value.__module__ == files.__name__ and name != TRANSLATES_ERRORS
    },
}


def methods(contract: str) -> Iterator[str]:
    """The names of a contract's methods that write."""
    for name, value in vars(CONTRACTS[contract]).items():
        if inspect.isfunction(value) and not name.startswith("_") and name not in READS[contract]:
            yield name


def all_steps() -> tuple[str, ...]:
    """Every durable step by name."""
    found = [f"{contract}.{name}" for contract in CONTRACTS for name in methods(contract)]
    kinds = [f"{APPLY}.{kind.__name__}" for kind in Event.__args__]
    return (*(step for step in found if step != APPLY), *kinds, *FUNCTIONS, RENAME)


def all_points() -> tuple[str, ...]:
    """Before and after every step."""
    return tuple(f"{step}.{side}" for step in all_steps() for side in (BEFORE, AFTER))


def passes_to_kill_at(count: int) -> tuple[int, ...]:
    """Of so many passes in an undisturbed run: the first, then those whose number is a power of two.

    The last one is left out, because a pass more or less is chance: how often the coordinator sees idle clients is.
    """
    return (1, *(2**power for power in range(1, count.bit_length()) if 2**power < count))


def replace_everywhere(package: str, original: object, replacement: object, modules: dict[str, ModuleType]) -> None:
    """Whoever has imported it by name gets the replacement too."""
    for name, module in modules.items():
        if name.startswith(f"{package}."):
            for attribute in [key for key, value in vars(module).items() if value is original]:
                setattr(module, attribute, replacement)
