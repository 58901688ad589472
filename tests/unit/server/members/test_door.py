"""The door reads little of a request before it knows who calls."""

from typing import Any

import pytest

from pluralllm.common.errors.tree import OverLimit, PluralError
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members import door
from pluralllm.server.members.access import Principal
from pluralllm.server.members.door import MainDoor
from pluralllm.v1 import federation_pb2 as fed
from pluralllm.v1 import operations_pb2 as ops

LONG = "x" * 4_000_000


@pytest.mark.parametrize(
    "request_", [ops.GetRunRequest(name=LONG), fed.CommitUpdateRequest(task=LONG), ops.CreateRunRequest(run_id=LONG)]
)
def test_a_long_name_is_cut_before_it_is_read(request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def noted(text: str) -> str:
        lengths.append(len(text))
        return text

    monkeypatch.setattr(door, "printable", noted)
    assert door.about_of(request_).endswith("xxx")
    assert lengths[0] <= 200 + len("runs/")


class Log:
    """An audit log that keeps the results."""

    def __init__(self) -> None:
        self.results: list[str] = []

    async def refused(self, actor: Any, action: str, about: str, error: PluralError) -> None:
        self.results.append(error.reason)

    async def record(self, actor: Any, action: str, about: str, result: str) -> None:
        self.results.append(result)


async def test_calls_above_the_limit_and_unexpected_failures_of_managing_calls_have_an_entry() -> None:
    audit: Any = Log()
    guarded = MainDoor(lambda context: lambda: Principal(door.LOCAL, MemberRole.ADMIN), audit, calls_per_member=1)
    method, request = "/pluralllm.v1.OperationsService/RevokeMember", ops.RevokeMemberRequest(name="members/ann")

    async def fails() -> None:
        async with guarded.enter(method, None, request):
            with pytest.raises(OverLimit):
                await guarded.enter(method, None, request).__aenter__()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    assert audit.results == ["OVER_LIMIT", "INTERNAL"]
