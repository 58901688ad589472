"""SIGTERM to the real processes while somebody waits on them: they end by themselves, in bounded time, with exit code 0."""

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.sample_survey import sample_groups
from pluralllm.common.channels import blocking_channel
from pluralllm.common.identity import load_identity
from pluralllm.v1 import federation_pb2, federation_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.alone]
COORDINATOR_BOUND_S = 10.0  # five seconds for calls under way, and the end itself
CLIENT_BOUND_S = 15.0  # eight for a push, five to tell the coordinator, two for the worker
QUESTIONS = next(iter(sample_groups(2, 60, 0).values()))
FOR_EVER = process_spec(rounds=2, round={"deadline_s": 3600}, training={"local_steps": 1_000})


def seconds_to_end(process: "subprocess.Popen[bytes]", bound_s: float) -> float:
    began_s = time.monotonic()
    process.terminate()
    assert process.wait(bound_s) == 0
    return time.monotonic() - began_s


@contextlib.contextmanager
def hanging_upload(running: Federation, name: str) -> Iterator[None]:
    """A stream of chunks that sends nothing and never ends."""
    over = threading.Event()

    def nothing() -> Iterator[federation_pb2.PutChunksRequest]:
        over.wait(60)
        yield from ()

    with blocking_channel(load_identity(running.join(name), "test").at(running.address)) as channel:
        stub: Any = federation_pb2_grpc.FederationServiceStub(channel)
        call = stub.PutChunks.future(nothing(), timeout=60)
        try:
            yield
            with pytest.raises(grpc.RpcError):
                call.result(timeout=10)
        finally:
            over.set()


def test_a_coordinator_that_is_waited_on_ends_in_bounded_time(tmp_path: Path) -> None:
    """A daemon's poll, an operator's watch, an open page and an upload that hangs."""
    settings = {"PLURALLLM_SERVER_PAGE_LISTEN": "127.0.0.1:0", "PLURALLLM_SERVER_METRICS_LISTEN": "127.0.0.1:0"}
    tiny = tiny_embedding_model(tmp_path / "tiny")
    with federation(tmp_path / "federation", tiny, free_port(), **settings) as running:
        remote = running.start_coordinator()
        remote.create_run("r", FOR_EVER.canonical_json())
        running.start_client("ann", QUESTIONS)
        until(lambda: any(each["live"] for each in remote.members()), "the daemon is connected", running)
        remote.close()
        page = http.client.HTTPConnection((running.state / "page-address").read_text(), timeout=20)
        page.request("GET", "/api/runs/r/events")
        command = [sys.executable, "-m", "pluralllm.cli", "--identity", str(running.admin), "status", "--watch"]
        with (tmp_path / "watch.log").open("wb") as told:
            watching = subprocess.Popen(command, stdout=told, stderr=told)
        try:
            with hanging_upload(running, "ben"):
                time.sleep(2.0)  # the watch is open by then, or still connecting: either must not hold anybody up
                assert running.coordinator.popen is not None
                seconds_to_end(running.coordinator.popen, COORDINATOR_BOUND_S)
        finally:
            watching.kill()
            watching.wait(10)
            page.close()
        assert '"server.stopped"' in running.coordinator.log.read_text()


@pytest.mark.parametrize("is_away", [False, True], ids=["coordinator there", "coordinator away"])
def test_a_daemon_that_trains_ends_in_bounded_time_and_its_place_is_free_again(tmp_path: Path, is_away: bool) -> None:
    with federation(tmp_path / "federation", tiny_embedding_model(tmp_path / "tiny"), free_port()) as running:
        remote = running.start_coordinator()
        for name in ("ann", "ben"):
            running.start_client(name, QUESTIONS)
        remote.create_run("r", FOR_EVER.canonical_json())
        remote.start_run("r")

        def standing() -> dict[str, Any]:
            found: dict[str, dict[str, Any]] = {each["client"]: each for each in remote.get_run("r")["participants"]}
            return found.get("ann", {"stage": "", "state": "idle"})

        until(lambda: standing()["stage"] == "training" and standing()["progress"] > 0, "ann trains", running)
        if is_away:
            running.coordinator.kill()
        ann = running.clients["ann"].popen
        assert ann is not None
        seconds_to_end(ann, CLIENT_BOUND_S)
        assert '"client.stopped"' in running.clients["ann"].log.read_text()
        if not is_away:
            until(lambda: standing()["state"] == "lost", "the place is free", running)
            assert "stopped by its owner" in standing()["reason"]
        remote.close()
