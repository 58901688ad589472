"""The store of members, certificates, invites, roster and audit log in SQL. It uses the one connection of sql_store.py."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from pluralllm.common.errors.membership import InviteUsed
from pluralllm.common.private_rounds.roster import RosterChange, RosterEntry
from pluralllm.common.trust.audit_chain import FIRST_PREVIOUS, AuditEntry
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.server.process.cancellation import unbroken
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.membership import (
    Everyone,
    InviteRecord,
    IssuedCertificate,
    Member,
    MembershipChange,
    NewAuditEntry,
    RosterRow,
)
from pluralllm.server.storage.sql_store import SqlStore, replace_rows


class SqlMembership:
    """The membership store in SQL. The protocol membership.MembershipStore describes the methods."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    @unbroken
    async def everyone(self) -> Everyone:
        async with self._store.reading() as connection:
            members = (await connection.execute(sa.select(t.members).order_by(t.members.c.name))).all()
            certificates = (await connection.execute(sa.select(t.certificates))).all()
            invites = (await connection.execute(sa.select(t.invites))).all()
        return Everyone(
            [
                Member(
                    ClientId(row.name),
                    MemberRole(row.role),
                    row.group_name,
                    GroupRole(row.group_role),
                    row.approved,
                    row.created_s,
                    row.revoked_s,
                    runs=tuple(json.loads(row.runs)),
                    max_examples=row.max_examples,
                )
                for row in members
            ],
            [
                IssuedCertificate(
                    row.serial,
                    ClientId(row.member),
                    row.key_sha256,
                    row.not_after_s,
                    row.issued_s,
                    row.chain_pem,
                    row.revoked_s,
                    predecessor=row.predecessor,
                )
                for row in certificates
            ],
            [
                InviteRecord(
                    row.token_sha256,
                    ClientId(row.name),
                    MemberRole(row.role),
                    row.group_name,
                    GroupRole(row.group_role),
                    row.needs_approval,
                    row.created_s,
                    row.expires_s,
                    row.withdrawn,
                    row.used_by_key,
                    runs=tuple(json.loads(row.runs)),
                    max_examples=row.max_examples,
                )
                for row in invites
            ],
        )

    @unbroken
    async def change_membership(self, change: MembershipChange) -> AuditEntry:
        async with self._store.writing() as connection:
            if change.spends is not None:
                await _check_unspent(connection, change.spends)
            for member in change.members:
                await replace_rows(connection, t.members, ("name",), [_values(member)])
            for certificate in change.certificates:
                await replace_rows(connection, t.certificates, ("serial",), [_values(certificate)])
            for invite in change.invites:
                await replace_rows(connection, t.invites, ("token_sha256",), [_values(invite)])
            for row in change.roster:
                await connection.execute(sa.insert(t.roster).values(_roster_values(row)))
            entry = _chained(change.entry, *await _head(connection))
            values = {**dataclasses.asdict(entry), "sha256": entry.sha256}
            await connection.execute(sa.insert(t.audit_log).values(values))
        return entry

    @unbroken
    async def audit_entries(self, after: int, limit: int) -> Sequence[tuple[AuditEntry, str]]:
        table = t.audit_log
        query = sa.select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
        async with self._store.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        fields = [field.name for field in dataclasses.fields(AuditEntry)]
        return [(AuditEntry(**{name: row[name] for name in fields}), row["sha256"]) for row in rows]

    @unbroken
    async def roster_rows(self, after: int, limit: int) -> Sequence[RosterRow]:
        table = t.roster
        query = sa.select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
        async with self._store.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            RosterRow(
                RosterEntry(row.sequence, row.name, row.group_name, row.fingerprint, RosterChange(row.change)),
                row.key_der,
                bytes.fromhex(row.head),
            )
            for row in rows
        ]

    @unbroken
    async def audit_head(self) -> tuple[int, str]:
        async with self._store.reading() as connection:
            return await _head(connection)


async def _check_unspent(connection: AsyncConnection, token_sha256: str) -> None:
    """Checks that an invite can be used. Raises InviteUsed if the invite is used, withdrawn or missing.

    The function asks the database, not this process's memory, so that only one of two coordinators can use an invite.
    """
    table = t.invites
    invite = (await connection.execute(sa.select(table).where(table.c.token_sha256 == token_sha256))).first()
    if invite is None or invite.used_by_key or invite.withdrawn:
        raise InviteUsed(name="" if invite is None else invite.name)


async def _head(connection: AsyncConnection) -> tuple[int, str]:
    table = t.audit_log
    query = sa.select(table.c.sequence, table.c.sha256).order_by(table.c.sequence.desc()).limit(1)
    newest = (await connection.execute(query)).first()
    return (0, FIRST_PREVIOUS) if newest is None else (newest.sequence, newest.sha256)


def _chained(new: NewAuditEntry, sequence: int, sha256: str) -> AuditEntry:
    return AuditEntry(
        sequence=sequence + 1,
        at_us=round(new.at_s * 1e6),
        actor=new.actor,
        serial=new.serial,
        action=new.action,
        object=new.object,
        result=new.result,
        facts_json=new.facts_json,
        previous_sha256=sha256,
    )


def _roster_values(row: RosterRow) -> dict[str, Any]:
    values = {**dataclasses.asdict(row.entry), "change": row.entry.change.value}
    return {"group_name": values.pop("group"), **values, "key_der": row.key_der, "head": row.head.hex()}


def _values(record: Member | IssuedCertificate | InviteRecord) -> dict[str, Any]:
    """Returns a dict from column names to the values of a record's fields. The field `group` is in the column `group_name`.

    The two names differ because `group` is a reserved word in SQL. The field `runs` is stored as a JSON list.
    """
    values = dataclasses.asdict(record)
    if "group" in values:
        values["group_name"] = values.pop("group")
    if "runs" in values:
        values["runs"] = json.dumps(values["runs"])
    return {name: value.value if isinstance(value, MemberRole | GroupRole) else value for name, value in values.items()}
