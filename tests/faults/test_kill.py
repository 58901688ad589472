"""kill -9 of real processes: the run ends with the bits of an undisturbed run, and its state verifies."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from drill.trial import ALL, SAMPLE_ONLY
from support.cutting_proxy import CuttingProxy
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.remote import Remote

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
KILLS = 5 if ALL else 2
ROUNDS = 8  # a few tenths of a second each; the run must outlive the kills, each some events after a restart
SPEC = process_spec(rounds=ROUNDS)
STATEFUL = process_spec(
    rounds=ROUNDS,
    aggregation={"optimizer": "fedyogi", "server_learning_rate": 0.003, "weighting": "adaptive", "fairness": 10.0},
)
SEED = 20250312


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("model"))


def begin(running: Federation, addresses: dict[str, str] | None = None, spec: RunSpec = SPEC) -> Remote:
    """Starts a coordinator, two clients and a run."""
    remote = running.start_coordinator()
    for name, questions in zip(("ann", "ben"), sample_groups(2, 60, 0).values(), strict=True):
        running.start_client(name, questions, (addresses or {}).get(name))
    remote.create_run("r", spec.canonical_json())
    remote.start_run("r")
    return remote


def end_phase(remote: Remote) -> str:
    try:
        return str(remote.get_run("r")["phase"])
    except PluralError:
        return ""  # the coordinator is down for a moment


def finish(running: Federation, remote: Remote) -> str:
    """Waits for the ends of the run and of its clients, and verifies the state; returns the final model's digest."""
    until(lambda: end_phase(remote) == "ended", "the run ends", running, 120)
    run = remote.get_run("r")
    assert run["outcome"] == "completed", run["outcome_reason"]
    assert run["version"] == SPEC.rounds
    for client in running.clients.values():
        until(lambda client=client: not client.running, "the client hears that the run is over", running)  # type: ignore[misc]
    remote.close()
    running.coordinator.stop()
    verified = running.verify()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return str(run["version_digest"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, embedding_model: Path) -> str:
    with federation(tmp_path_factory.mktemp("undisturbed"), embedding_model, free_port()) as running:
        return finish(running, begin(running))


@pytest.mark.skipif(not ALL, reason="the killed runs below show the same; make faults")
def test_two_undisturbed_runs_are_bit_identical(tmp_path: Path, embedding_model: Path, undisturbed: str) -> None:
    with federation(tmp_path / "again", embedding_model, free_port()) as running:
        assert finish(running, begin(running)) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_stateful(tmp_path_factory: pytest.TempPathFactory, embedding_model: Path) -> str:
    with federation(tmp_path_factory.mktemp("stateful"), embedding_model, free_port()) as running:
        return finish(running, begin(running, spec=STATEFUL))


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        pytest.param(SPEC, "undisturbed", id="fedavg", marks=() if ALL else pytest.mark.skip(reason=SAMPLE_ONLY)),
        pytest.param(STATEFUL, "undisturbed_stateful", id="fedyogi"),
    ],
)
def test_a_coordinator_killed_again_and_again_in_mid_round_ends_with_the_same_model(
    tmp_path: Path, embedding_model: Path, request: pytest.FixtureRequest, spec: RunSpec, model: str
) -> None:
    undisturbed = request.getfixturevalue(model)
    rng = random.Random(SEED)
    with federation(tmp_path / "run", embedding_model, free_port()) as running:
        remote = begin(running, spec=spec)
        for kill in range(KILLS):
            target = sequence(remote) + rng.randint(1, 4)
            until(lambda target=target: sequence(remote) >= target, f"event {target} before kill {kill}", running)  # type: ignore[misc]
            running.coordinator.kill()
            running.coordinator.start()
            until(lambda: end_phase(remote) != "", "the coordinator is back", running)
        assert finish(running, remote) == undisturbed


def sequence(remote: Remote) -> int:
    """Returns the length of the run's event log; 0 while the coordinator is down."""
    try:
        return int(remote.get_run("r")["sequence"])
    except PluralError:
        return 0


@pytest.fixture
def proxies() -> Iterator[list[CuttingProxy]]:
    found: list[CuttingProxy] = []
    yield found
    for proxy in found:
        proxy.close()


def test_a_client_killed_in_mid_upload_sends_the_same_update_when_it_is_back(
    tmp_path: Path, embedding_model: Path, undisturbed_stateful: str, proxies: list[CuttingProxy]
) -> None:
    number = free_port()
    with federation(tmp_path / "run", embedding_model, number) as running:
        killed = threading.Event()

        def kill() -> None:
            running.clients["ann"].kill()
            killed.set()

        proxies.append(CuttingProxy(f"127.0.0.1:{number}", 900_000, kill))
        remote = begin(running, {"ann": proxies[0].address}, STATEFUL)
        until(killed.is_set, "the client is killed in mid-upload", running)
        assert list((tmp_path / "run" / "ann" / "state" / "outbox").glob("*.json")), "it was not in mid-upload"
        running.clients["ann"].start()
        assert finish(running, remote) == undisturbed_stateful
