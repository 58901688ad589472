"""A real process that others wait on gets SIGTERM: it ends by itself, in bounded time, with exit code 0."""

import contextlib
import http.client
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from drill.trial import ALL, SAMPLE_ONLY
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.wire.channels import blocking_channel
from pluralllm.v1 import federation_pb2, federation_pb2_grpc, operations_pb2, operations_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.usefixtures("forked_workers")]
# Three times what an idle machine needs. Coordinator: five seconds for calls in progress, and the time of the exit itself.
# Client: five seconds to notify the coordinator, and the ends of worker and process; a push would have eight.
COORDINATOR_BOUND_S, CLIENT_BOUND_S = 30.0, 45.0
PATIENT = {"max_local_steps": 50_000}
NOT_CHOSEN = pytest.mark.skip(reason=SAMPLE_ONLY)
QUESTIONS = next(iter(sample_groups(2, 60, 0).values()))
FOR_EVER = process_spec(rounds=2, round={"deadline_s": 3600}, training={"local_steps": 50_000})


def terminate(process: "subprocess.Popen[bytes] | None", bound_s: float) -> None:
    """Sends SIGTERM; the process must end by itself, with exit code 0."""
    assert process is not None
    process.terminate()
    assert process.wait(bound_s) == 0


@contextlib.contextmanager
def waited_on(running: Federation) -> Iterator[None]:
    """Opens a page, watches a run as an operator, and starts an upload that sends nothing and never ends."""
    over = threading.Event()

    def nothing() -> Iterator[federation_pb2.PutChunksRequest]:
        over.wait(60)
        yield from ()

    with contextlib.ExitStack() as stack:
        stack.callback(over.set)
        page = stack.enter_context(
            contextlib.closing(http.client.HTTPConnection((running.state / "page-address").read_text(), timeout=20))
        )
        page.request("GET", "/api/runs/r/events")
        assert page.getresponse().status == 200
        admin = stack.enter_context(blocking_channel(load_identity(running.admin, "test")))
        operations: Any = operations_pb2_grpc.OperationsServiceStub(admin)
        watch = operations.WatchRun(operations_pb2.WatchRunRequest(name="runs/r"), timeout=60)
        assert next(watch).event.sequence == 1
        member = load_identity(running.join("ben"), "test").at(running.address)
        federation_service: Any = federation_pb2_grpc.FederationServiceStub(
            stack.enter_context(blocking_channel(member))
        )
        upload = federation_service.PutChunks.future(nothing(), timeout=60)
        yield
        with pytest.raises(grpc.RpcError):
            upload.result(timeout=10)


def test_a_coordinator_that_is_waited_on_ends_in_bounded_time(tmp_path: Path) -> None:
    """A daemon's poll waits on the coordinator, too."""
    settings = {"PLURALLLM_SERVER_PAGE_LISTEN": "127.0.0.1:0"}
    with federation(
        tmp_path / "federation", tiny_embedding_model(tmp_path / "tiny"), free_port(), **settings
    ) as running:
        remote = running.start_coordinator()
        remote.create_run("r", FOR_EVER.canonical_json())
        remote.start_run("r")
        running.start_client("ann", QUESTIONS, policy=PATIENT)
        until(lambda: any(member["live"] for member in remote.members()), "the daemon is connected", running)
        remote.close()
        with waited_on(running):
            terminate(running.coordinator.popen, COORDINATOR_BOUND_S)
        assert '"server.stopped"' in running.coordinator.log.read_text()


@pytest.mark.parametrize(
    "how", ["there", *(pytest.param(how, marks=() if ALL else NOT_CHOSEN) for how in ("gone", "deaf"))]
)
def test_a_daemon_that_trains_ends_in_bounded_time_and_its_place_is_free_again(tmp_path: Path, how: str) -> None:
    """The coordinator answers, is gone, or accepts calls and answers none."""
    with federation(tmp_path / "federation", tiny_embedding_model(tmp_path / "tiny"), free_port()) as running:
        remote = running.start_coordinator()
        for name in ("ann", "ben"):
            running.start_client(name, QUESTIONS, policy=PATIENT)
        remote.create_run("r", FOR_EVER.canonical_json())
        remote.start_run("r")

        def standing() -> dict[str, Any]:
            found: dict[str, dict[str, Any]] = {each["client"]: each for each in remote.get_run("r")["participants"]}
            return found.get("ann", {"stage": "", "state": "idle"})

        until(lambda: standing()["stage"] == "training" and standing()["progress"] > 0, "ann trains", running)
        coordinator = running.coordinator.popen
        assert coordinator is not None
        if how == "gone":
            running.coordinator.kill()
        if how == "deaf":
            coordinator.send_signal(signal.SIGSTOP)
        try:
            terminate(running.clients["ann"].popen, CLIENT_BOUND_S)
        finally:
            if how == "deaf":
                coordinator.send_signal(signal.SIGCONT)
        assert '"client.stopped"' in running.clients["ann"].log.read_text()
        if how == "there":
            until(lambda: standing()["state"] == "lost", "the place is free", running)
            assert "stopped by its owner" in standing()["reason"]
        remote.close()
