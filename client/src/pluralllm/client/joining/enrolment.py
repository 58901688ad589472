"""Calls for joining and for a diagnosis, each on a connection of its own.

The calls to the enrolment port need no client certificate, because the caller may have no certificate, or a certificate that the
main port refuses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.process.proxies import DIRECT, Proxies
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.channels import blocking_channel, enrolment_channel
from pluralllm.common.wire.checked_answers import checked_answer
from pluralllm.common.wire.messages import MEMBER_ROLES_BACK, ROLES_BACK, seconds
from pluralllm.common.words.roles import GroupRole, MemberRole
from pluralllm.v1 import enrolment_pb2 as pb
from pluralllm.v1 import enrolment_pb2_grpc

DEADLINE_S = 15.0
HEALTH = "/grpc.health.v1.Health/Check"  # every member may call it; the empty request is a valid one


@dataclass(frozen=True, slots=True)
class Joined:
    """The coordinator's answer to a member that joins: the member's certificate chain, role and group."""

    chain_pem: bytes  # certificate, then the intermediate
    role: MemberRole
    group: str
    group_role: GroupRole | None
    awaiting_approval: bool


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts about the coordinator that anybody may ask for: its clock and the protocol versions that it speaks."""

    time_s: float  # the coordinator's clock, in seconds since the epoch
    protocol_min: int
    protocol_max: int


def join(
    address: str, authority_pem: bytes, name: str, token: str, request_der: bytes, proxies: Proxies = DIRECT
) -> Joined:
    """Uses the token of an invite to get the member's first certificate.

    authority_pem: certificate of the federation's authority. request_der: certificate request, made with the member's key.
    proxies: say how the coordinator is reached.
    Raises Unreachable, AnswerInvalid if the answer breaks the protocol, or an error that the proto file lists for
    EnrolmentService.Join.
    """
    request = pb.JoinRequest(name=name, token=token, certificate_request_der=request_der)
    with _stub(address, authority_pem, proxies) as stub:
        answer = stub.Join(request, timeout=DEADLINE_S)
    response: pb.JoinResponse = checked_answer("Join", request, answer, None)
    return Joined(
        response.certificate_chain_pem,
        MEMBER_ROLES_BACK[response.role],
        response.group,
        ROLES_BACK.get(response.group_role),
        response.awaiting_approval,
    )


def ask_server(address: str, authority_pem: bytes, proxies: Proxies = DIRECT) -> ServerFacts:
    """Asks the coordinator for its time and its protocol versions.

    Raises Unreachable if there is no answer; AnswerInvalid if the answer breaks the protocol.
    """
    request = pb.GetMembershipRequest()
    with _stub(address, authority_pem, proxies) as stub:
        answer = stub.GetMembership(request, timeout=DEADLINE_S)
    response: pb.GetMembershipResponse = checked_answer("GetMembership", request, answer, None)
    return ServerFacts(seconds(response.server_time), response.protocol.min, response.protocol.max)


def check_membership(address: str, authority_pem: bytes, chain_pem: bytes, proxies: Proxies = DIRECT) -> None:
    """Asks the coordinator whether it accepts the certificate chain.

    Raises the coordinator's error if the coordinator rejects the certificate; Unreachable if there is no answer.
    """
    with _stub(address, authority_pem, proxies) as stub:
        stub.GetMembership(pb.GetMembershipRequest(certificate_chain_pem=chain_pem), timeout=DEADLINE_S)


def check_main_port(identity: Identity) -> None:
    """Asks the coordinator's main port whether it serves.

    Raises WrongPort if another port of the coordinator answers, a subclass of NoAnswer, or the coordinator's error.
    """
    address, proxies = identity.membership.coordinator, identity.proxies
    with blocking_channel(identity) as channel:
        try:
            call: Any = channel.unary_unary(HEALTH)
            call(b"", timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise proxies.explained(from_rpc_error(error, address)) from error


@contextmanager
def _stub(address: str, authority_pem: bytes, proxies: Proxies = DIRECT) -> Iterator[Any]:
    """Yields a client of EnrolmentService, and turns an RPC error inside the block into a typed error."""
    with enrolment_channel(address, authority_pem, proxies) as channel:
        try:
            yield enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        except grpc.RpcError as error:
            raise proxies.explained(from_rpc_error(error, address)) from error
