"""Any message to any call gets an answer or a refusal from our error tree; a refusal changes nothing, and serving goes on.

The descriptors list every call of every service, so a new call is tested without a change here. A failure prints the smallest
request that shows it. The examples are the same every time; PLURALLLM_FAULTS=all tries many more.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import grpc
import pytest
from fuzz import good_requests
from fuzz.good_requests import RATER, SCORER, TRAINERS
from fuzz.messages import any_message, at_the_edges, nearly, no_message, on_the_wire
from fuzz.world import PEOPLE, SPEC, STRANGER, World, Worlds
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pluralllm.common.errors.grpc_status import CODES, DOMAIN
from pluralllm.common.errors.tree import Refused, leaves
from pluralllm.common.wire.messages import MAX_MESSAGE_BYTES
from pluralllm.server.members.access import ON_ENROLMENT_PORT, RULES
from pluralllm.server.rpc.serving import ENROLMENT_MAX_BYTES, SERVICES
from pluralllm.v1 import enrolment_pb2, federation_pb2, operations_pb2
from pluralllm.v1.resources_pb2 import BlobManifest

ALL = os.environ.get("PLURALLLM_FAULTS") == "all"
DEADLINE_S = 10.0  # no call takes so long; one that does hangs
WATCHED_S = 0.1  # a stream of future events waits, as it should
ACCEPTED = "ACCEPTED"
TOO_LARGE, TOO_LARGE_CODE = "TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's own answer
READING = ("Get", "List", "Watch")
FILES = (federation_pb2, operations_pb2, enrolment_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
pytestmark = pytest.mark.timeout(1200 if ALL else 120)
EVERY = pytest.mark.parametrize("path", METHODS, ids=[path.rpartition("/")[2] for path in METHODS])
# The runs of the worlds have plain rounds. tests/private/test_service.py sends these calls in private rounds.
OF_PRIVATE_ROUNDS = {"GetRoundStep", "PutRoundStep", "GetTranscript", "GetMaskedChunks"}
SAME_EVERY_TIME: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    with Worlds(tmp_path_factory.mktemp("worlds")) as found:
        yield found


@pytest.fixture
def world(worlds: Worlds) -> World:
    return worlds.young()


def test_every_service_that_is_served_is_tried() -> None:
    assert {service.full_name for file in FILES for service in file.DESCRIPTOR.services_by_name.values()} == {*SERVICES}
    others = {path for path in RULES if not path.startswith("/grpc.")} - METHODS.keys()
    assert not others, "these calls are let in and not tried"


def spec_with(**changes: Any) -> bytes:
    """Returns a run spec in JSON; tables in `changes` are merged into its tables."""
    whole = json.loads(SPEC.canonical_json())
    merged = {key: {**whole[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}
    return json.dumps(whole | merged).encode()


@EVERY
def test_any_message_is_answered_or_refused_and_a_refusal_changes_nothing(world: World, path: str) -> None:
    method = METHODS[path]
    outcomes: Counter[str] = Counter()

    @settings(max_examples=1000 if ALL else 25, **SAME_EVERY_TIME)
    @given(callers(path), st.lists(requests(world, method), min_size=1, max_size=3 if method.client_streaming else 1))
    def check(who: str, sent: list[bytes]) -> None:
        outcomes[outcome(world, path, who, sent)] += 1

    check()
    print(path, dict(outcomes))
    if path.rpartition("/")[2] in OF_PRIVATE_ROUNDS:
        assert outcomes.total() > outcomes[ACCEPTED], "each request is refused here"
        return
    assert outcomes[ACCEPTED], "no request was accepted: the handler was hardly tried"
    assert len(outcomes) > 1 or not method.input_type.fields, "no request was refused"


@EVERY
def test_a_field_at_any_edge_is_answered_or_refused_and_a_refusal_changes_nothing(world: World, path: str) -> None:
    method = METHODS[path]
    who = next(name for name in (STRANGER, SCORER, RATER, "admin", TRAINERS[0]) if is_right(name, path))
    changed_one = list(
        at_the_edges(good(world, method), lambda field: good_requests.real_values(world.situation(), field))
    )
    for number in range(len(changed_one)):
        # The request is made again each time, because an accepted one may have changed the values of a good one.
        now = at_the_edges(good(world, method), lambda field: good_requests.real_values(world.situation(), field))
        request = next(itertools.islice(now, number, None))
        try:
            outcome(world, path, who, [request.SerializeToString()])
        except AssertionError as error:
            raise AssertionError(f"{str(request)[:500]}\n{error}") from error


@EVERY
def test_bytes_that_are_no_message_are_refused_and_change_nothing(world: World, path: str) -> None:
    method = METHODS[path]

    @settings(max_examples=300 if ALL else 8, **SAME_EVERY_TIME)
    @given(callers(path), st.lists(no_message(lambda: good(world, method)), min_size=1, max_size=1))
    def check(who: str, sent: list[bytes]) -> None:
        outcome(world, path, who, sent)

    check()


LONG_NAME = {"name": "runs/" + "é" * 50_000}
FOUND: list[
    tuple[str, dict[str, Any], str]
] = [  # repaired faults: a call, the changed fields of a good request, the expected outcome
    ("Poll", {"hold": Duration(seconds=2**62), "held_task": ""}, ACCEPTED),
    ("StartRun", LONG_NAME, "INVALID_ARGUMENT"),
    ("GetRound", LONG_NAME, "INVALID_ARGUMENT"),
    ("CancelRun", {"reason": "a\0b"}, "INVALID_ARGUMENT"),
    ("RevokeMember", {"reason": "\0"}, "INVALID_ARGUMENT"),
    ("StartRun", {"name": "runs/first\0"}, "INVALID_ARGUMENT"),
    ("Hello", {"software_version": "1\0"}, "INVALID_ARGUMENT"),
    ("Hello", {"capabilities": ["a", "\0"]}, "INVALID_ARGUMENT"),
    ("ReportFailure", {"message": "\0"}, "INVALID_ARGUMENT"),
    ("BeginUpdate", {"metrics": {"\0": 1.0}}, "INVALID_ARGUMENT"),
    ("BeginUpdate", {"manifest": BlobManifest(digest="\0")}, "INVALID_ARGUMENT"),
    ("PutChunks", {"digest": "\0"}, "INVALID_ARGUMENT"),
    ("Join", {"token": "\0"}, "INVALID_ARGUMENT"),
    ("ReportProgress", {"task": "runs/a/rounds/01/tasks/train-ann"}, "INVALID_ARGUMENT"),
    ("ReportProgress", {"task": "runs/a/rounds/1/tasks/train-ann\n"}, "INVALID_ARGUMENT"),
    ("ReportProgress", {"task": "runs/a/rounds/١/tasks/train-ann"}, "INVALID_ARGUMENT"),
    ("ListRounds", {"page_token": "١"}, "INVALID_ARGUMENT"),
    ("CreateRun", {"spec_json": spec_with(title="a\0")}, "INVALID_SPEC"),
    ("CreateRun", {"spec_json": spec_with(groups={"train": ["\0"]})}, "INVALID_SPEC"),
    ("CreateRun", {"spec_json": spec_with(round={"deadline_s": 1e308})}, "INVALID_SPEC"),
    ("CreateRun", {"spec_json": spec_with(predictor={"d_model": 10**6})}, "INVALID_SPEC"),
]


@pytest.mark.parametrize(
    ("name", "changes", "expected_outcome"), FOUND, ids=[f"{name}-{[*fields][-1]}" for name, fields, _ in FOUND]
)
def test_requests_that_were_once_answered_wrongly_have_the_expected_outcome(
    world: World, name: str, changes: dict[str, Any], expected_outcome: str
) -> None:
    path = next(path for path in METHODS if path.endswith(f"/{name}"))
    request = type(sent := good(world, METHODS[path]))(**changes)
    for field in changes:
        sent.ClearField(field)
    sent.MergeFrom(request)
    who = next(person for person in (STRANGER, "admin", TRAINERS[0]) if is_right(person, path))
    assert outcome(world, path, who, [sent.SerializeToString()]) == expected_outcome


def test_a_message_larger_than_any_of_ours_is_refused_by_grpc_itself(world: World) -> None:
    path = next(path for path in METHODS if path.endswith("/CreateRun"))
    with pytest.raises(grpc.RpcError) as refused:
        called(world, path, "admin", [b"\0" * (MAX_MESSAGE_BYTES + 1)])
    assert refused.value.code() is TOO_LARGE_CODE


def callers(path: str) -> st.SearchStrategy[str]:
    """Draws a caller, mostly one who may make the call."""
    right = [name for name in (STRANGER, SCORER, RATER, "admin", TRAINERS[0]) if is_right(name, path)]
    return st.sampled_from([*right * 12, "ben", "olga", "admin"])


def is_right(who: str, path: str) -> bool:
    """Whether this caller may send the good request."""
    if path in ON_ENROLMENT_PORT:
        return who == STRANGER
    if path.endswith("/ReportEvaluation"):
        return who == SCORER
    if path.endswith("/GetRollouts"):
        return who == RATER
    return who in (TRAINERS[0], "admin") and PEOPLE[who] in RULES[path].roles


def requests(world: World, method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    """Draws requests; half of them are nearly right."""

    def real_values(field: str) -> Sequence[Any]:
        return good_requests.real_values(world.situation(), field)

    return on_the_wire(any_message(method.input_type, real_values) | nearly(lambda: good(world, method), real_values))


def good(world: World, method: MethodDescriptor) -> Any:
    """Returns a good request; an empty one for a call without one."""
    return good_requests.good(world.situation(), method.name) or message_factory.GetMessageClass(method.input_type)()


def outcome(world: World, path: str, who: str, sent: list[bytes]) -> str:
    """Sends a request; returns ACCEPTED or the reason of the refusal. Fails after anything else."""
    before, result = world.ready(uploaded=path.endswith("/CommitUpdate")), ACCEPTED
    try:
        called(world, path, who, sent)
    except grpc.RpcError as error:
        too_large = who == STRANGER and any(len(message) > ENROLMENT_MAX_BYTES for message in sent)
        result = TOO_LARGE if too_large and error.code() is TOO_LARGE_CODE else refusal(error)
    if result == ACCEPTED and not METHODS[path].name.startswith(READING):
        world.stir()
    else:
        after = world.snapshot()
        assert after == before, f"{result}, and yet {changed(before, after)} changed"
    return result


def called(world: World, path: str, who: str, sent: list[bytes]) -> None:
    """Makes one call over the wire and parses its answers."""
    method, channel = METHODS[path], cast("Any", world.channel(who))  # its stubs accept messages only, no bytes
    read = message_factory.GetMessageClass(method.output_type).FromString
    if method.client_streaming:
        channel.stream_unary(path, None, read)(iter(sent), timeout=DEADLINE_S)
    elif method.server_streaming:
        watches = method.name == "WatchRun"
        answers = channel.unary_stream(path, None, read)(sent[0], timeout=WATCHED_S if watches else DEADLINE_S)
        try:
            for _ in answers:
                if watches:
                    break
        except grpc.RpcError:
            if not watches or answers.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        finally:
            answers.cancel()
    else:
        channel.unary_unary(path, None, read)(sent[0], timeout=DEADLINE_S)


def refusal(error: Any) -> str:
    """Returns the reason of a refusal. Fails if the status has none, has a wrong code, or reports our own fault."""
    status = rpc_status.from_call(error)
    status_text = f"{error.code()}: {error.details()}"
    assert status is not None, f"not one of our errors: {status_text}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), status_text
    assert info.domain == DOMAIN
    leaf = leaves()[info.reason]
    assert CODES[leaf] is error.code(), status_text
    assert issubclass(leaf, Refused), status_text
    return str(info.reason)


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return "; ".join(f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key])[:2000]
