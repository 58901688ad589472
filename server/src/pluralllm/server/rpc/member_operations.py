"""The RPCs of OperationsService about members: invitation, approval, revocation and the list of members."""

import structlog

from pluralllm.common.errors.membership import NotInitialised
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.clock import Clock
from pluralllm.common.wire.messages import MEMBER_ROLES, MEMBER_ROLES_BACK, ROLES, ROLES_BACK, timestamp
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.names import MemberName
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.members.invite_order import MAX_TTL_S, InviteOrder
from pluralllm.server.members.page_links import PageLinks
from pluralllm.server.members.registry import Registry
from pluralllm.server.members.roster_log import RosterLog
from pluralllm.server.rpc.messages import member_message
from pluralllm.server.rpc.signatures import Signatures
from pluralllm.server.runs.coordinator import Coordinator
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.sessions import Sessions
from pluralllm.server.storage.membership import Member, MemberState
from pluralllm.server.storage.store import Store
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1 import resources_pb2

log = structlog.get_logger()


class MemberOperations:
    """Changes and lists the members of the federation.

    If the server uses no certificates (plain text), no registry of members exists. The list then contains the clients that have
    called Hello.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        registry: Registry | None,
        roster: RosterLog,
        advertised: Addresses,
        store: Store,
        sessions: Sessions,
        leases: Leases,
        clock: Clock,
        signatures: Signatures,
        links: PageLinks,
    ) -> None:
        self._coordinator, self._registry, self._advertised = coordinator, registry, advertised
        self._roster = roster
        self._store, self._sessions, self._leases, self._clock = store, sessions, leases, clock
        self._signatures, self._links = signatures, links

    async def invite(self, by: Principal, request: pb.CreateInviteRequest) -> pb.CreateInviteResponse:
        """Creates an invite in the name of the administrator `by`, and returns the invite with its secret token.

        Raises InvalidArgument if a field of the request is not valid; MemberExists if an active member has the name.
        """
        registry = self._registry_or_refuse()
        if request.role not in MEMBER_ROLES_BACK:
            raise InvalidArgument(field="role", problem="must be CLIENT, OBSERVER or ADMIN")
        order = InviteOrder(
            name=request.name,
            role=MEMBER_ROLES_BACK[request.role],
            group=request.group,
            group_role=ROLES_BACK.get(request.group_role),
            ttl_s=request.ttl.ToMilliseconds() / 1000 if request.HasField("ttl") else MAX_TTL_S,
            needs_approval=request.needs_approval,
            runs=tuple(request.runs),
            max_examples=request.max_examples,
        )
        invite, token = await registry.invite(by, order)
        is_client = invite.role is MemberRole.CLIENT
        return pb.CreateInviteResponse(
            federation=registry.authority.federation,
            name=invite.name,
            role=MEMBER_ROLES[invite.role],
            group=invite.group,
            group_role=ROLES[invite.group_role] if is_client else resources_pb2.GROUP_ROLE_UNSPECIFIED,
            coordinator=self._advertised.coordinator,
            enrolment=self._advertised.enrolment,
            authority_der=registry.authority.root_der,
            record_key_der=self._signatures.record_key_der,
            token=token,
            expire_time=timestamp(invite.expires_s),
            max_examples=invite.max_examples if is_client else 0,
        )

    async def approve(self, by: Principal, name: str) -> resources_pb2.Member:
        """Approves a member, so that the member may make calls, and returns the member. A repeated call changes nothing.

        by: the administrator who approves. Raises NotFound if no member has the name.
        """
        registry = self._registry_or_refuse()
        return self._message(registry, await registry.approve(by, MemberName.parse(name).member))

    async def revoke(self, by: Principal, name: str, reason: str) -> resources_pb2.Member:
        """Revokes a member or its open invite, removes the client from all runs, and returns the member.

        by: the administrator who revokes. Raises NotFound if neither a member nor an open invite has the name; LastAdmin if no
        administrator would remain.
        """
        registry = self._registry_or_refuse()
        client = MemberName.parse(name).member
        member = await registry.revoke(by, client, reason)
        await self._coordinator.remove_client(client)
        if member is None:
            return resources_pb2.Member(name=name, state=resources_pb2.MEMBER_STATE_REVOKED)
        return self._message(registry, member)

    async def reset_peer_key(self, by: Principal, name: str) -> None:
        """Removes a client's peer key, in plain text, too. by: the administrator. Raises NotFound if there is no such key."""
        await self._roster.reset(by, MemberName.parse(name).member)

    def page_link(self, by: Principal) -> pb.CreatePageLinkResponse:
        """Makes a short-lived link to the web page for the member `by`. Raises NotFound if the page is not served to members."""
        self._registry_or_refuse()
        token = self._links.new_link(by)
        return pb.CreatePageLinkResponse(address=self._links.address, token=token)

    async def everyone(self) -> list[resources_pb2.Member]:
        """Returns members, open invites and clients that connected without a certificate, sorted by name."""
        clients = {client.client: client for client in await self._store.clients()}
        messages: dict[ClientId, resources_pb2.Member] = {
            name: member_message(name, None, MemberState.UNPROVEN, None, client) for name, client in clients.items()
        }
        if self._registry is not None:
            for member in self._registry.members():
                state, certificate = self._registry.state_of(member), self._registry.newest_certificate(member.name)
                messages[member.name] = member_message(
                    member.name, member, state, certificate, clients.get(member.name)
                )
            for invite in self._registry.open_invites():
                messages[invite.name] = member_message(invite.name, invite, MemberState.INVITED, None, None)
        now_s = self._clock.now_s()
        for name, message in messages.items():
            if (session := self._sessions.get(name)) is not None:
                message.live = session.is_live(now_s)
                message.last_seen_time.CopyFrom(timestamp(session.last_seen_s))
            if (lease := self._leases.of(name)) is not None:
                message.task = str(lease.task)
            message.peer_key_sha256 = self._roster.fingerprint_of(name) or ""
        return [message for _, message in sorted(messages.items())]

    def _message(self, registry: Registry, member: Member) -> resources_pb2.Member:
        certificate = registry.newest_certificate(member.name)
        return member_message(member.name, member, registry.state_of(member), certificate, None)

    def _registry_or_refuse(self) -> Registry:
        if self._registry is None:
            raise NotInitialised(state_dir="a coordinator in plain text")
        return self._registry
