"""The check of a request's form: how much of it is read."""

from typing import Any

import pytest

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.server.rpc import incoming
from pluralllm.server.rpc.incoming import MAX_ENTRIES, check_request
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import resources_pb2


def requests(entries: int) -> list[Any]:
    return [
        fed.PollRequest(following=["r"] * entries),
        fed.BeginUpdateRequest(metrics={str(number): 0.0 for number in range(entries)}),
    ]


def test_as_many_entries_as_the_limit_allows_are_read_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for request in requests(MAX_ENTRIES):
        check_request(request)
    monkeypatch.setattr(incoming, "NUL", None)  # reading a text would fail
    for request in requests(MAX_ENTRIES + 1):
        with pytest.raises(InvalidArgument, match="has 10001 entries, more than 10000"):
            check_request(request)


def test_the_digests_of_a_large_update_are_no_texts_and_have_no_such_limit() -> None:
    manifest = resources_pb2.BlobManifest(chunk_sha256=[b"d"] * (MAX_ENTRIES + 1))
    check_request(fed.BeginUpdateRequest(manifest=manifest))
