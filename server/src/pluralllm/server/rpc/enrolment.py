"""EnrolmentService: the RPCs Join and GetMembership on the enrolment port, and Renew on the main port."""

import time
from collections.abc import Callable
from typing import Any

import structlog

from pluralllm.common.errors.membership import (
    CertificateRevoked,
    InviteExpired,
    InviteUsed,
    IssuerExpired,
    TooManyAttempts,
)
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.invite import token_hash
from pluralllm.common.wire.messages import MEMBER_ROLES, PROTOCOL_MAX, PROTOCOL_MIN, ROLES, timestamp
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId, is_id
from pluralllm.common.words.names import MemberName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.attempts import Attempts, News
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.door import caller, peer_of
from pluralllm.server.members.registry import Registry
from pluralllm.server.rpc.messages import addresses_message
from pluralllm.v1 import enrolment_pb2 as pb
from pluralllm.v1 import enrolment_pb2_grpc as pb_grpc
from pluralllm.v1 import federation_pb2, resources_pb2

log = structlog.get_logger()
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here

# Refusals of a caller that has that member's token. In all others the name is a stranger's word, and the audit log keeps no such
# name: a thousand made-up names would fill its list and hide the theft that follows.
NAME_PROVEN = (InviteUsed, InviteExpired, CertificateRevoked, IssuerExpired)
ALL_NETWORKS = 10  # the limit of all strangers together, as a multiple of the limit of one network
UNPROVEN = "members/?"  # stands in the audit log for a name that a stranger gave


class Limits:
    """The limits of one RPC: for strangers by network and together, for the others by the token or certificate that they show."""

    def __init__(self, calls_per_minute: int) -> None:
        self.of_strangers = Attempts(calls_per_minute, ALL_NETWORKS * calls_per_minute)
        self.of_holders = Attempts(calls_per_minute, None)


class Enrolment(pb_grpc.EnrolmentServiceServicer):
    """Answers the RPCs with which members join, check their membership and renew their certificates.

    The table in access.py assigns each RPC to a port. Join and GetMembership need no identity, so the number of calls a minute
    is limited for each of the two RPCs. The two limits are separate. Otherwise many calls of GetMembership could prevent a new
    member from joining. The calls of strangers are limited for each network and together. Callers with the token of an invite
    or with a certificate of this federation are not counted among the strangers: strangers cannot use up their calls. They have
    a limit for each token and for each certificate.
    """

    def __init__(
        self,
        registry: Registry,
        audit: AuditLog,
        calls_per_minute: int,
        wall_s: Callable[[], float],
        addresses: Addresses,
    ) -> None:
        """Stores the arguments. `calls_per_minute` is the limit for one network, one token or one certificate.

        `addresses` are the addresses that members learn.
        """
        self._registry, self._audit = registry, audit
        self._joins, self._questions = (Limits(calls_per_minute) for _ in range(2))
        self._news = News()
        self._wall_s, self._addresses = wall_s, addresses

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        token = token_hash(request.token) if self._registry.knows_token(request.token) else None
        peer = self._counted(self._joins, context, token)
        name = request.name if is_id(request.name) else "?"
        try:
            member, chain = await self._registry.join(request.name, request.token, request.certificate_request_der)
        except PluralError as error:
            # A token that is used twice is a token that was stolen, by this caller or by the one before: worth an alert.
            report = log.error if isinstance(error, InviteUsed) else log.warning
            report("join.refused", name=name, peer=peer, reason=error.reason)
            about = str(MemberName(ClientId(name))) if isinstance(error, NAME_PROVEN) else UNPROVEN
            await self._audit.refused(None, "Join", about, error)
            raise
        log.info("join.done", name=member.name, peer=peer, role=member.role, awaiting_approval=not member.approved)
        is_client = member.role is MemberRole.CLIENT
        return pb.JoinResponse(
            certificate_chain_pem=chain,
            role=MEMBER_ROLES[member.role],
            group=member.group,
            group_role=ROLES[member.group_role] if is_client else resources_pb2.GROUP_ROLE_UNSPECIFIED,
            awaiting_approval=not member.approved,
        )

    async def GetMembership(self, request: pb.GetMembershipRequest, context: Context) -> pb.GetMembershipResponse:
        chain_pem = request.certificate_chain_pem
        serial = self._registry.known_serial(chain_pem) if chain_pem else None
        peer = self._counted(self._questions, context, serial)
        if chain_pem:
            try:
                self._registry.authority.check_member(chain_pem, self._wall_s())
                self._registry.principal(chain_pem)
            except PluralError as error:
                log.warning("standing.refused", peer=peer, reason=error.reason, problem=str(error))
                raise
        protocol = federation_pb2.ProtocolRange(min=PROTOCOL_MIN, max=PROTOCOL_MAX)
        return pb.GetMembershipResponse(server_time=timestamp(self._wall_s()), protocol=protocol)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        chain = await self._registry.renew(caller(), request.certificate_request_der)
        log.info("certificate.renewed", name=caller().name)
        return pb.RenewResponse(certificate_chain_pem=chain, addresses=addresses_message(self._addresses))

    def _counted(self, limits: "Limits", context: Context, secret: str | None) -> str:
        """Counts a call of one RPC against its limits and returns the caller's network.

        secret: hash of the token or serial of the certificate that the caller has shown; None for a stranger.
        Raises TooManyAttempts if the limit is exceeded.
        """
        peer, now_s = peer_of(context), time.monotonic()
        try:
            if secret is None:
                limits.of_strangers.note(peer, now_s)
            else:
                limits.of_holders.note(secret, now_s)
        except TooManyAttempts as error:
            if self._news.is_news(peer, now_s):
                log.warning("enrolment.refused", peer=peer, reason=error.reason)
            raise
        return peer
