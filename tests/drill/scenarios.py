"""The scenarios of the drills; together they pass every point. Each returns the digest of its newest version.

The same updates are averaged wherever the coordinator dies. Where chance could let another update in, the scripted clients wait,
stall or send an update that is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from drill.client import Behaviour
from drill.fleet import LIMIT_S, Fleet
from drill.private_clients import Dealing
from support.process_harness import process_spec

from pluralllm.common.rewards.rollout_batch import Candidates, write_rollouts
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.remote import Remote

# The model has two chunks and the server optimizer two moments, so each round publishes five files.
ORDINARY = process_spec(
    rounds=3,
    round={"evaluate_every": 3},
    predictor={"d_model": 160},
    aggregation={"optimizer": "fedyogi", "server_learning_rate": 0.003},
)
QUICK = {"target_clients": 3, "gather_s": 0.4, "grace_after_quorum_s": 0.3, "evaluate_every": 10}
TROUBLED = process_spec(rounds=3, round=QUICK)
STEERED = process_spec(rounds=2, round=QUICK)
# Patient enough that every member is in every sum, wherever the coordinator dies.
PATIENT = {"grace_after_quorum_s": 60.0, "evaluate_every": 9, "max_extensions": 10}
# A model of two chunks.
SMALL = {"d_model": 160, "layers": 1, "heads": 1, "feedforward": 320, "embedder_layers": 2}


def private_spec(rounds: int, **policy: int) -> RunSpec:
    """Returns the spec of a run with private rounds."""
    return process_spec(
        rounds=rounds,
        round={**PATIENT, **policy},
        predictor=SMALL,
        aggregation={"max_examples": 100},
        private_rounds={"colluders": 1, "clip_norm": 4.0, "step_s": 20.0, "closing_scores": False},
    )


PRIVATE = private_spec(2, min_clients=4, target_clients=4)
LONG_LIMIT_S = 400.0  # an idle machine needs less than a minute
LONG = private_spec(14, min_clients=4, target_clients=4)
CHEATED = private_spec(2, min_clients=4, target_clients=6)
BATCHES = [write_rollouts([Candidates(str(number), ("this", "that"), (3, 1))]) for number in (1, 2)]


def gather(fleet: Fleet, plans: Mapping[str, Mapping[int, StrEnum]]) -> None:
    """Starts a coordinator and its clients, and lets the clients join."""
    fleet.start_coordinator()
    fleet.start_clients(plans)
    for name in plans:
        fleet.join(name)


def begin(fleet: Fleet, spec: RunSpec, plans: Mapping[str, Mapping[int, StrEnum]], invited: str = "") -> None:
    """Starts a coordinator, its clients and a run. invited: a client that never joins, so that rounds wait by the clock."""
    gather(fleet, plans)
    if invited:
        fleet.invite(invited)
    fleet.insist("the run is created", lambda remote: remote.create_run("r", spec.canonical_json()))
    fleet.insist("the run is started", lambda remote: remote.start_run("r"))


def receipts(remote: Remote, number: int) -> dict[str, str]:
    """Returns the digests of a round's updates by client; nothing if the round is not open yet."""
    rows = [row for row in remote.rounds("r", 50) if row["name"] == f"runs/r/rounds/{number}"]
    return {receipt["client"]: receipt["update_digest"] for row in rows for receipt in row["receipts"]}


def ordinary(fleet: Fleet) -> str:
    """Plays three rounds with two clients."""
    begin(fleet, ORDINARY, {"ann": {}, "ben": {}})
    return fleet.finish()


def troubled(fleet: Fleet) -> str:
    """Plays a failing client, updates that are refused, a restart in a round, and an update spoilt on the disk.

    A refused client leaves its slot to the others: they may be slower than this client to find the coordinator again.
    """
    never_delivers = dict.fromkeys((1, 2, 3), Behaviour.SEND_NOISE)
    plans = {"ann": {1: Behaviour.DIE}, "ben": {2: Behaviour.WAIT}, "cem": never_delivers}
    begin(fleet, TROUBLED, plans, invited="eve")
    delivered = fleet.insist("ann has delivered in round 2", lambda remote: receipts(remote, 2).get("ann"))
    fleet.restart_coordinator()
    fleet.pair.spoil(fleet.folder, delivered)
    fleet.let_go("ben", 2)
    return fleet.finish()


def steered(fleet: Fleet) -> str:
    """Pauses and resumes a run, revokes a member who has delivered, cancels the run, archives it and brings it back."""
    wait = {1: Behaviour.WAIT, 2: Behaviour.WAIT}
    begin(fleet, STEERED, {"ann": wait, "ben": wait, "dan": {}})
    fleet.insist("the run is paused", lambda remote: remote.pause_run("r"))
    fleet.insist("the run is resumed", lambda remote: remote.resume_run("r"))
    fleet.insist("dan has delivered in round 1", lambda remote: receipts(remote, 1).get("dan"))
    fleet.insist("dan is revoked", lambda remote: remote.revoke("dan", "drill"))
    fleet.insist("dan's update is withdrawn", lambda remote: not receipts(remote, 1))
    for name in ("ann", "ben"):
        fleet.let_go(name, 1)
    fleet.insist("round 2 is open", lambda remote: remote.get_run("r")["round"] == 2)
    fleet.insist("the run is cancelled", lambda remote: remote.cancel_run("r", "drill"))
    fleet.insist("the run is archived", lambda remote: remote.archive_run("r")["archived"])
    fleet.insist("the run is back", lambda remote: not remote.unarchive_run("r")["archived"])
    return fleet.finish(revoked="dan")


def rewarded(fleet: Fleet) -> str:
    """Lets two clients score two batches of rollouts with the model of a run that was never started."""
    gather(fleet, {"ann": {}, "ben": {}})
    fleet.insist("the source is created", lambda remote: remote.create_run("s", TROUBLED.canonical_json()))
    source = fleet.insist(
        "the source has a version", lambda remote: remote.model_record(ModelName(RunId("s"), ModelVersion(0)))
    )[0]
    rewards = {"source": source["name"], "model_digest": source["digest"], "aggregation": {"rule": "adaptive"}}
    spec = process_spec(rounds=2, rewards=rewards)
    fleet.insist("the run is created", lambda remote: remote.create_run("r", spec.canonical_json()))
    fleet.insist("the run is started", lambda remote: remote.start_run("r"))
    for number, batch in enumerate(BATCHES, 1):
        name = fleet.insist("a batch is asked for", lambda remote, batch=batch: remote.ask_rewards("r", batch))  # type: ignore[misc]
        for client in ("ann", "ben"):
            fleet.let_go(client, number)
        fleet.insist(
            "the rewards come",
            lambda remote, name=name: remote.rewards(name)["outcome"] == "closed",  # type: ignore[misc]
        )
    return fleet.finish()


def private(fleet: Fleet, spec: RunSpec = PRIVATE, limit_s: float = LIMIT_S) -> str:
    """Plays private rounds with four members, two if the spec does not say another number."""
    begin(fleet, spec, {name: {} for name in ("ann", "ben", "cat", "dan")})
    return fleet.finish(limit_s=limit_s)


def long_private(fleet: Fleet) -> str:
    """Plays so many private rounds that the coordinator can be killed again and again."""
    return private(fleet, LONG, LONG_LIMIT_S)


def cheated(fleet: Fleet) -> str:
    """Plays a private round with a bad box, and one whose dealer has dealt shares of other secrets, which makes no version.

    The dealer and the member that complains of the bad box are out of the first sum.
    """
    plans: dict[str, Mapping[int, StrEnum]] = {name: {} for name in ("ann", "ben", "cat", "dan", "fay")}
    plans["eve"] = {1: Dealing.BAD_BOX, 2: Dealing.OTHER_SECRETS}
    begin(fleet, CHEATED, plans)
    return fleet.finish(revoked="eve")


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    play: Callable[[Fleet], str]
    settings: Mapping[str, str] = field(default_factory=dict)


SCENARIOS = (
    Scenario("ordinary", ordinary, {"keep_updates": "1"}),
    Scenario("troubled", troubled),
    Scenario("steered", steered),
    Scenario("rewarded", rewarded),
)
PRIVATE_SCENARIOS = (Scenario("private", private), Scenario("cheated", cheated))
KILLS = 8  # of one long run
LONG_PRIVATE = Scenario("long private", long_private, {"keep_updates": "100"})
