"""Creates an administrator on the coordinator's own machine. The coordinator must be stopped."""

import base64
import time
from pathlib import Path

from pluralllm.common.trust.certificates import PrivateKey
from pluralllm.common.trust.identity import Membership, save_identity
from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.words.addresses import join_address, split_address
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.audit_log import AuditLog
from pluralllm.server.members.authority import Authority
from pluralllm.server.members.record_key import record_key_of
from pluralllm.server.members.registry import Registry
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.by_url import opened_alone
from pluralllm.server.storage.sql_membership import SqlMembership
from pluralllm.server.storage.state_directory import StateDirectory


async def make_admin(
    config: ServerConfig, state: StateDirectory, authority: Authority, name: str, folder: Path, key: PrivateKey
) -> None:
    """Registers an administrator as a member and saves the administrator's identity in `folder`.

    `key` is the administrator's private key. Raises InUse while a coordinator serves; MemberExists if
    the name is in use; StorageFull if the disk is full.
    """
    async with opened_alone(config, state) as store:
        membership = SqlMembership(store)
        audit_log = AuditLog(membership, time.time)
        registry = Registry(membership, audit_log, authority, config.certificate_life_s, time.time)
        await registry.start()
        chain = await registry.make_admin(ClientId(name), key.public_key())
    host = authority.hosts[0]
    signer = RecordSigner(authority.federation, record_key_of(authority.folder))
    membership_file = Membership(
        federation=authority.federation,
        name=ClientId(name),
        role=MemberRole.ADMIN,
        coordinator=config.advertise or join_address(host, split_address(config.listen)[1]),
        enrolment=config.advertise_enrolment or join_address(host, split_address(config.enrolment_listen)[1]),
        record_key=base64.b64encode(signer.public_der).decode(),
    )
    save_identity(folder, membership_file, authority.root_pem, key, chain)
