"""The points at which a coordinator can be killed: before and after every durable step in the contracts.

A new method in a contract, a new kind of event and a new function in files.py are steps at once. Only the methods that read are
listed here; a reading method that is missing in the list makes a point too many, never one too few.
"""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from pluralllm.common.process import files
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.aggregation.private_version import write_private
from pluralllm.server.rounds.events import Event
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.membership import MembershipStore
from pluralllm.server.storage.store import Store

BEFORE, AFTER = "before", "after"
APPLY = "store.apply"  # one step for each kind of event
RENAME = "files.rename"  # the method of pathlib.Path that files.publish calls
CONTRACTS: dict[str, type] = {
    "store": Store,
    "inbox": Inbox,
    "membership": MembershipStore,
    "blobs": Blobs,
    "uploads": Uploads,
}
READS: dict[str, frozenset[str]] = {
    "store": frozenset(
        {
            "runs",
            "events",
            "checkpoint",
            "round",
            "rounds",
            "receipts",
            "receipt_counts",
            "receipt",
            "version",
            "versions",
            "clients",
            "model_digests",
            "named_blobs",
            "round_messages",
        }
        | {"evaluations", "latest_evaluations", "alignment_scores", "settled_runs", "close"}
    ),
    "inbox": frozenset(),
    "membership": frozenset({"everyone", "audit_entries", "audit_head", "roster_rows"}),
    "blobs": frozenset({"path", "exists", "digests"}),
    "uploads": frozenset({"missing"}),
}
# The functions of files.py that write nothing.
NO_WRITERS = frozenset(
    {"storage_errors", "owner_hint", "read_state", "read_state_as", "as_state", "damaged", "is_special"}
    | {"open_at_once", "why_not_writable", "can_others_read"}
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "averaging.write_next": write_next,
    "averaging.write_private": write_private,
    **{
        f"files.{name}": value
        for name, value in vars(files).items()
        if inspect.isfunction(value) and value.__module__ == files.__name__ and name not in NO_WRITERS
        if not name.startswith("_")
    },
}


def methods(contract: str) -> Iterator[str]:
    """Yields the names of a contract's methods that write."""
    for name, value in vars(CONTRACTS[contract]).items():
        if inspect.isfunction(value) and not name.startswith("_") and name not in READS[contract]:
            yield name


def all_steps() -> tuple[str, ...]:
    """Returns the names of all durable steps."""
    contract_steps = [f"{contract}.{name}" for contract in CONTRACTS for name in methods(contract)]
    kinds = [f"{APPLY}.{kind.__name__}" for kind in Event.__args__]
    return (*(step for step in contract_steps if step != APPLY), *kinds, *FUNCTIONS, RENAME)


def all_points() -> tuple[str, ...]:
    """Returns the points before and after every step."""
    return tuple(f"{step}.{side}" for step in all_steps() for side in (BEFORE, AFTER))


def passes_to_kill_at(count: int) -> tuple[int, ...]:
    """Returns the passes to kill at: the first and those whose number is a power of two, below `count`.

    `count` is the number of passes in an undisturbed run. The last pass is left out, because chance decides whether it happens:
    the number of times that the coordinator sees idle clients varies.
    """
    return (1, *(2**power for power in range(1, count.bit_length()) if 2**power < count))


def replace_everywhere(package: str, original: object, replacement: object, modules: dict[str, ModuleType]) -> None:
    """Replaces an object in every module of the package that has imported it by name."""
    for name, module in modules.items():
        if name.startswith(f"{package}."):
            for attribute in [key for key, value in vars(module).items() if value is original]:
                setattr(module, attribute, replacement)
