"""gRPC silently ignores an unknown option, so these tests find a misspelt name."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from pluralllm.common.process.proxies import Proxies
from pluralllm.common.wire.channels import enrolment_channel
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


@pytest.mark.parametrize(
    ("url", "headers"),
    [("http://proxy:3128", None), ("http://ann:s@proxy:3128", "Proxy-Authorization:Basic YW5uOnM=")],
)
def test_a_proxy_gets_a_header_only_if_it_wants_one(
    url: str, headers: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC would write a line about an empty header to standard error, with each connection."""
    opened: dict[str, Any] = {}
    monkeypatch.setattr(grpc, "secure_channel", lambda target, _, options: opened.update(dict(options), target=target))
    enrolment_channel("fl.example.org:7444", b"", Proxies(url))
    assert opened.get("grpc.http_connect_headers") == headers
    assert opened["grpc.http_connect_server"] == opened["grpc.default_authority"] == "fl.example.org:7444"
    assert opened["target"] == "proxy:3128"
