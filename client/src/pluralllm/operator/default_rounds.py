"""Private rounds by default: the table [private_rounds] that a new run gets, and the line about it for the operator.

A new run has private rounds if at least FEWEST_PRIVATE clients are to train in a round. A spec file that has the table, as the
one of `pluralllm spec new`, is taken as it is. A file without the table gets it when the run is created, because a partner's
policy usually demands private rounds and would refuse the run only later, on another machine. What the file says is never
changed: only keys that it leaves out are filled in, and the command prints them. If what it says does not fit, the command
refuses and names both ways out. Settings that have no private form leave the rounds plain, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.words.private_rounds import MAX_WEIGHT, threshold
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS
from pluralllm.common.words.spec import RunSpec, merge, spec_from_values

FEWEST_CLIENTS = 3  # in each published model; from two, each of them can compute the update of the other
FEWEST_PRIVATE = 4  # training clients of a round that is private by default
FLAG = "--plain-rounds"
PRIVATE = f"private rounds: {READS_SUMS}"
PLAIN = f"plain rounds: {READS_SINGLE}"
PINS = "Partners first pin each other's keys: pluralllm-client peers pin"


@dataclass(frozen=True, slots=True)
class NewRun:
    """The spec of a run that is to be created, and the line about its rounds for the operator; "" if there is nothing to say."""

    spec: RunSpec
    note: str


def colluders_among(clients: int) -> int:
    """Returns how many clients of a round a new spec lets work together with the coordinator: one in five, at least one."""
    return max(1, clients // 5)


def least_clients(clients: int) -> int:
    """Returns the smallest number of clients with which a round should end, for a number of clients that train.

    It is more than half of the clients even if one in five does not follow the protocol, and at least three.
    """
    return max(FEWEST_CLIENTS, threshold(clients, colluders_among(clients)))


def with_default_rounds(values: Mapping[str, Any], file: str, *, plain: bool) -> NewRun:
    """Returns the spec of a new run: with private rounds, unless it is small, cannot have them, or `plain` is true.

    values: what the spec file says, without the preset's values. file: its name for errors and for the line.
    Raises InvalidSpec if the spec is not valid, or if a key in the file keeps private rounds from working; InvalidArgument if
    `plain` is true and the file has the table [private_rounds].
    """
    spec = spec_from_values(values, file)
    if spec.private_rounds is not None:
        if plain:
            problem = f"contradicts the table [private_rounds] of {file}; remove the one or the other"
            raise InvalidArgument(field=FLAG, problem=problem)
        return NewRun(spec, f"{PRIVATE}. {PINS}")
    if spec.rewards is not None:
        return NewRun(spec, "")
    clients = _training_clients(spec, values)
    if plain:
        return NewRun(spec, plain_note(FLAG, clients))
    if clients < FEWEST_PRIVATE:
        return NewRun(spec, plain_note(f"{clients} clients train in a round", clients))
    table = {"private_rounds": {"colluders": colluders_among(clients)}}
    least = max(spec.round.min_clients, least_clients(clients))
    weight = {"max_examples": min(spec.aggregation.max_examples, MAX_WEIGHT)}
    sizes = {"round": {"min_clients": least, "target_clients": clients}}
    if problem := why_plain(merge(dict(values), {**table, **sizes, "aggregation": weight})):
        return NewRun(spec, plain_note(problem, clients))
    try:
        private = spec_from_values(merge({**table, **sizes}, dict(values)), file)
    except InvalidSpec as error:
        ways = f"{error.problems}\n  or leave the rounds plain: {FLAG} ({READS_SINGLE})"
        raise InvalidSpec(file=file, problems=ways) from error
    return NewRun(private, _private_note(spec, private, file))


def why_plain(values: Mapping[str, Any]) -> str:
    """Returns why a spec with these values, which have the table [private_rounds], is not possible; "" if it is possible."""
    try:
        spec_from_values(values, "")
    except InvalidSpec as error:
        return " ".join(error.problems.split()).removeprefix("(whole file): ")
    return ""


def plain_note(reason: str, clients: int) -> str:
    """Returns the line about plain rounds: what the coordinator reads, why, and what a partner's policy then needs.

    clients: number of clients that train in a round.
    """
    if clients < FEWEST_PRIVATE:
        needed = "A partner that demands private rounds consents first: pluralllm-client consent RUN"
    else:
        needed = 'Only partners whose policy.toml says rounds = "allowed" in [private_rounds] train in them'
    return f"{PLAIN} ({reason}). {needed}"


def _training_clients(spec: RunSpec, values: Mapping[str, Any]) -> int:
    """Returns how many clients are to train in a round: as many as groups are named, if the file leaves the number out."""
    if spec.groups.train and "target_clients" not in values.get("round", {}):
        return len(spec.groups.train)
    return spec.round.target_clients


def _private_note(plain: RunSpec, private: RunSpec, file: str) -> str:
    """Returns the line about a table that the file does not have, and the lines that the run has in addition to the file."""
    assert private.private_rounds is not None
    before, after = plain.round, private.round
    sizes = {key: getattr(after, key) for key in ("min_clients", "target_clients")}
    changed = [f"  {key} = {value}" for key, value in sizes.items() if value != getattr(before, key)]
    lines = ["  [round]", *changed] if changed else []
    lines += ["  [private_rounds]", f"  colluders = {private.private_rounds.colluders}"]
    clients = private.round.target_clients
    why = f"{file} has no table [private_rounds], and {clients} clients train in a round. So the run gets these lines, too"
    return "\n".join([f"{PRIVATE}. {PINS}.", f"{why} ({FLAG} leaves them out):", *lines])
