"""gRPC silently ignores an unknown option, so these tests find a misspelt name."""

from pathlib import Path

import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from pluralllm.common.wire.messages import CHANNEL_OPTIONS, COMMAND_OPTIONS, DAEMON_OPTIONS
from pluralllm.server.rpc.serving import ENROLMENT_OPTIONS, OPTIONS

ALL = (CHANNEL_OPTIONS, COMMAND_OPTIONS, DAEMON_OPTIONS, OPTIONS, ENROLMENT_OPTIONS)
NAMES = sorted({name for options in ALL for name, _ in options})
CORE = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_grpc_knows_the_option(name: str) -> None:
    assert name.encode() + b"\0" in CORE


def test_a_name_that_grpc_does_not_know_would_be_found() -> None:
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in CORE
