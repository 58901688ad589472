"""The deadlines of the daemon's calls: an answer that may be large has time on the slowest supported link."""

import pytest

from pluralllm.client.link.transport import CALL_DEADLINE_S, deadline_of
from pluralllm.common.weights.pieces import transfer_s
from pluralllm.common.wire.messages import MAX_MESSAGE_BYTES
from pluralllm.server.rpc.federation import MAX_RECORDED_UPDATES
from pluralllm.v1 import federation_pb2 as pb

LARGEST_UPDATE_BYTES = 256  # of an update in a version record


@pytest.mark.parametrize(
    "method", ["GetRunSpec", "ListVersionRecords", "GetManifest", "GetRollouts", "ListAuditEvents"]
)
def test_a_large_answer_has_time(method: str) -> None:
    assert deadline_of(method, pb.GetRunSpecRequest()) == CALL_DEADLINE_S + transfer_s(MAX_MESSAGE_BYTES)
    assert deadline_of("Hello", pb.GetRunSpecRequest()) == CALL_DEADLINE_S


def test_a_poll_outlives_an_answer_with_records_that_comes_before_its_own() -> None:
    """The coordinator holds a poll for a while; the rest of the poll's deadline is for what comes before its answer."""
    assert transfer_s(MAX_RECORDED_UPDATES * LARGEST_UPDATE_BYTES) < CALL_DEADLINE_S
